"""WORKDIR/report.html: one run on one page, to be read offline in any browser.

The page is a single file without scripts or addresses; the same run gives the same
bytes.  Where a part has nothing to show, a sentence says why.
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.version import __version__
from pinsage_jax.reporting import (
    example_section,
    figures,
    page,
    run_sections,
    score_sections,
    space_sections,
)
from pinsage_jax.reporting.sources import directions_of, read_source

REPORT_FILE = "report.html"


def write_report(config: Config, prepared: Prepared, embeddings: np.ndarray) -> pathlib.Path:
    """Writes the page of the run in config.workdir.

    What training logged, its settings and the scores are read from the workdir.

    Args:
      embeddings: float32 [num_items, Z]; the score of two items is their inner product.

    Returns:
      The path of the page.

    Raises:
      UserError: matplotlib is missing, or an embedding is not finite.
    """
    figures.require()
    # A sum of floats in double precision is finite exactly when all its terms are.
    with np.errstate(invalid="ignore"):
        total = embeddings.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise UserError("An embedding is not finite; train again with a lower --learning_rate.")
    source = read_source(config, prepared.graph.num_items)
    used = source.config
    directions, remark = directions_of(source, embeddings), page.join(())
    if directions.shape != embeddings.shape:
        remark = page.note(
            "PinSage without the last coordinate of its vectors, which tells how likely an item is "
            "whatever the query (--popularity_bias)."
        )
    sections = [
        ("scores", "Scoreboard", score_sections.scoreboard(source)),
        ("cutoff", "Hit-rate by K", score_sections.by_cutoff(source)),
        ("degree", "Hit-rate by degree", score_sections.by_degree(source)),
        ("learning", "Learning curves", run_sections.learning(source)),
        (
            "similarity",
            "Similarity of random pairs",
            page.join((space_sections.similarities(prepared, directions, used.seed), remark)),
        ),
        (
            "projection",
            "Projection",
            page.join((space_sections.projections(prepared, directions, used.seed), remark)),
        ),
        (
            "examples",
            "Example queries",
            example_section.examples(used, prepared, embeddings, config.host_threads),
        ),
        ("run", "What was run", run_sections.what_was_run(source, prepared)),
    ]
    name = pathlib.Path(config.workdir).resolve().name
    lead = page.join(
        (page.paragraph("Run ", page.foreign(name), "."), score_sections.in_short(source))
    )
    footer = page.paragraph(f"Made by pinsage_jax {__version__}.")
    whole = page.document("PinSage report", lead, sections, footer)
    path = pathlib.Path(config.workdir) / REPORT_FILE
    with files.atomic_file(path) as temporary:
        temporary.write_text(whole, encoding="utf-8")
    logging.info("report written to %s", path)
    return path
