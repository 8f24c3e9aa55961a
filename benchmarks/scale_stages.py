"""The stages of scale.py: `generate`, `lists`, `related`, and those of the program.

The program gets fixed settings, so that every size has the same kinds of work.

python -m benchmarks.scale_stages STAGE FLAGS
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time

import numpy as np
import pyarrow as pa
from absl import flags
from pyarrow import csv as pa_csv

from pinsage_jax import cli
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import logging_setup
from pinsage_jax.cpu import allocator
from pinsage_jax.sampling import store
from pinsage_jax.stages import modes
from pinsage_jax.synthetic import generator

_SAMPLED = 100_000
_ROUNDS = 5
_QUERIES = 1_000_000


def generate(config: Config) -> None:
    """Writes the catalog to WORKDIR/inputs."""
    # The cost of ranking a pair is proportional to the size of the catalog.
    settings = dataclasses.replace(
        config.synthetic.chosen, topics=256, pairs=1000, visual_dim=32, text_dim=16,
        number_ids=True, names=False,
    )  # fmt: skip
    generator.write_catalog(settings, pathlib.Path(config.workdir) / "inputs")


def lists(config: Config) -> None:
    """Samples the neighborhoods of all items to disk, where training and embedding find them.

    lists.json has the median rate for random items, without writing.
    """
    prepared = open_prepared(config.workdir)
    folder = pathlib.Path(config.workdir) / store.FOLDER
    settings = prepared.graph, config.sampling, config.seed, config.threads
    source = store.NeighborhoodSource(*settings, "none")
    rng = np.random.default_rng(0)
    size = min(_SAMPLED, prepared.graph.num_items)
    rates = []
    for _ in range(_ROUNDS + 1):
        nodes = rng.integers(0, prepared.graph.num_items, size).astype(np.int32)
        begin = time.perf_counter()
        source.lookup(nodes)
        rates.append(size / (time.perf_counter() - begin))
    found = {"neighborhoods_per_second": float(np.median(rates[1:])), "rounds": rates}
    (pathlib.Path(config.workdir) / "lists.json").write_text(json.dumps(found), encoding="utf-8")
    store.NeighborhoodSource(*settings, "disk", folder).materialize()


def related(config: Config) -> None:
    """Lists related items of a million items, evenly spaced, or of all of a smaller catalog."""
    ids = open_prepared(config.workdir).item_ids
    rows = np.arange(size := min(_QUERIES, len(ids))) * len(ids) // size
    column = pa.table({"item_id": ids.names(rows)})
    pa_csv.write_csv(column, config.evaluate.queries)
    modes.stage("neighbors")(config)


def main(argv: list[str]) -> None:
    """Runs the stage that the first argument names, with the flags of the program."""
    values = flags.FlagValues()
    cli.define_flags(values)
    cli.parse_flags(values, ["scale_stages", *argv[2:]])
    logging_setup.set_up("info")
    config = fixed(cli.config_from_flags(values))
    allocator.single_heap()
    own = {"generate": generate, "lists": lists, "related": related}
    run = own.get(argv[1]) or modes.stage(argv[1])
    run(config)


def fixed(config: Config) -> Config:
    """The settings with fixed constants, so that every size has the same kinds of work."""
    changed = {
        # Large catalogs have content links for items without edges only.
        "sampling": {"content_limit": 10_000},
        "split": {"validation_pairs": 200},
        "train": {"log_every": 5},
    }
    parts = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in changed.items()
    }
    return dataclasses.replace(config, **parts)


if __name__ == "__main__":
    main(sys.argv)
