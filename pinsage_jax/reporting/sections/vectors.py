"""Sections of the report about the vectors: similarities of random pairs, and a projection."""

from __future__ import annotations

import math

import numpy as np

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.evaluation.evaluate import DEGREE_BUCKETS
from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.reporting import page, space
from pinsage_jax.reporting.figures import Series, line_chart, scatter_chart
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.sections import coloring

_PAIRS = 20_000
_GRID = np.linspace(-1.0, 1.0, 161)
_MAX_PROJECTED = 4000
_NO_FEATURES = "The items have no features to compare with."


def degree_bucket(degree: np.ndarray) -> np.ndarray:
    """Indices int64 [n] into DEGREE_BUCKETS of degrees int [n]."""
    return np.searchsorted([low for _, low in DEGREE_BUCKETS], degree, side="right") - 1


def similarities(prepared: Prepared, embeddings: np.ndarray, seed: int) -> Html:
    """Densities and kurtosis of the cosine similarities of random pairs (Figure 4 of the paper)."""
    series, rows, descriptions, notes = [], [], [], []
    for name, vectors in (("PinSage", embeddings), ("raw features", prepared.features)):
        if vectors.shape[1] == 0:
            notes.append(page.note(_NO_FEATURES))
            continue
        # The same key draws the same pairs for both kinds of vectors.
        cosines, dropped = space.random_cosines(
            vectors, _PAIRS, keyed_generator(seed, "report similarities")
        )
        if len(cosines) == 0:
            notes.append(page.note(f"{name}: fewer than two vectors are nonzero."))
            continue
        series.append(Series(name, _GRID, space.density(cosines, _GRID), fill=True))
        value = space.kurtosis(cosines)
        kurtosis = "undefined (all are equal)" if math.isnan(value) else f"{value:.2f}"
        mean, deviation = f"{cosines.mean():.3f}", f"{cosines.std():.3f}"
        quantiles = "{:.3f} to {:.3f}".format(*np.quantile(cosines, [0.05, 0.95]))
        center = page.with_interval(page.minus(mean), page.minus(quantiles))
        rows.append((name, page.minus(kurtosis), center, deviation))
        descriptions.append(f"{name}: kurtosis {kurtosis}, mean {mean}, 90% within {quantiles}")
        if dropped > 0:
            notes.append(
                page.note(f"{name}: {dropped:.1%} of the pairs contain a zero vector and are "
                          "not counted.")
            )  # fmt: skip
    if not series:
        return page.join(notes)
    alt = "; ".join(descriptions)
    head = ("vectors", "kurtosis", page.with_interval("mean", "5% to 95% quantile"),
            "standard deviation")  # fmt: skip
    chart = line_chart("similarity", f"Density of cosine similarities. {alt}.", series,
                       "cosine similarity")  # fmt: skip
    return page.join(
        (
            page.figures(
                page.figure(chart, "Density of the cosine similarity of random pairs",
                            f"{_PAIRS:,} pairs"),
                page.table("Cosine similarity of random pairs", head, rows, numbers=True),
            ),
            *notes,
            page.note(
                "Kurtosis is the excess over a normal distribution. A wide distribution with low "
                "kurtosis means that the vectors separate unrelated items; a narrow peak means "
                "that most pairs are about equally similar. The paper reports 0.43 for PinSage, "
                "1.20 for visual and 2.49 for annotation vectors."
            ),
        )
    )  # fmt: skip


def projections(prepared: Prepared, embeddings: np.ndarray, seed: int, column: str = "") -> Html:
    """Embeddings and features on their first two principal components, colored by degree.

    Args:
      embeddings: float32 [N, Z].
      column: a column of --items, by whose values the same dots are colored once more; "": none.

    Raises:
      UserError: there is no such column.
    """
    bucket = degree_bucket(prepared.graph.degree()[: prepared.graph.num_items])
    colorings = [("", bucket, [f"{name} edges" for name, _ in DEGREE_BUCKETS])]
    if column:
        coloring.check_column(prepared.item_columns, column)
        colorings.append((column, *coloring.groups_of(prepared.item_columns, column)))
    charts: list[list[Html]] = [[] for _ in colorings]
    notes = [coloring.note_on_others(*colorings[1])] if column else []
    for key, name, vectors in (
        ("pinsage", "PinSage", embeddings),
        ("features", "Raw features", prepared.features),
    ):
        if vectors.shape[1] == 0:
            notes.append(page.note(_NO_FEATURES))
            continue
        flat = space.projection(
            vectors, _MAX_PROJECTED, keyed_generator(seed, "report projection"), seed
        )
        if flat is None:
            notes.append(page.note(f"{name}: the vectors do not span two axes."))
            continue
        subtitle = (
            f"{len(flat.rows):,} items; two components explain {flat.explained_variance:.0%} of "
            "the variance"
        )
        for place, (by, groups, labels) in enumerate(colorings):
            group = groups[flat.rows]
            counts = ", ".join(f"{np.sum(group == number):,} with {label}"
                               for number, label in enumerate(labels))  # fmt: skip
            chart = scatter_chart(
                f"projection-{key}{'-by-column' if by else ''}",
                f"Projection of {name}: {subtitle}. Items: {counts}.",
                flat.points, group, labels,
            )  # fmt: skip
            title = page.join((f"{name} by ", page.user_text(by, 60) if by else "degree"))
            charts[place].append(page.figure(chart, title, subtitle))
    explanation = page.note(
        "The first two principal components of the vectors, scaled to unit length. They show only "
        "part of the variance: groups that overlap here may be far apart. Isolated items (0 edges) "
        "should lie among the others, not in a cluster of their own."
    )
    drawn = [page.figures(*row) for row in charts if row]
    return page.join((*drawn, *notes, explanation) if drawn else notes)
