"""The stages of scale.py: `generate`, `sample`, and those of the program with fixed settings.

python -m benchmarks.scale_stages STAGE FLAGS
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time

import numpy as np
from absl import flags

from pinsage_jax import cli
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import logging_setup
from pinsage_jax.cpu import allocator
from pinsage_jax.sampling.store import NeighborhoodSource
from pinsage_jax.stages import modes
from pinsage_jax.synthetic import generator

_SAMPLED = 100_000
_ROUNDS = 5


def generate(config: Config) -> None:
    """Writes the catalog to WORKDIR/inputs."""
    # The cost of ranking a pair is proportional to the size of the catalog.
    settings = dataclasses.replace(config.synthetic.chosen, topics=256, pairs=1000)
    generator.write_catalog(settings, pathlib.Path(config.workdir) / "inputs")


def sample(config: Config) -> None:
    """Writes the median rate of sampling neighborhoods of random items to sampled.json."""
    prepared = open_prepared(config.workdir)
    source = NeighborhoodSource(prepared.graph, config.sampling, config.seed, config.threads)
    rng = np.random.default_rng(0)
    size = min(_SAMPLED, prepared.graph.num_items)
    rates = []
    for _ in range(_ROUNDS + 1):
        nodes = rng.integers(0, prepared.graph.num_items, size).astype(np.int32)
        begin = time.perf_counter()
        source.lookup(nodes)
        rates.append(size / (time.perf_counter() - begin))
    found = {"neighborhoods_per_second": float(np.median(rates[1:])), "rounds": rates}
    (pathlib.Path(config.workdir) / "sampled.json").write_text(json.dumps(found), encoding="utf-8")


def main(argv: list[str]) -> None:
    """Runs the stage that the first argument names, with the flags of the program."""
    values = flags.FlagValues()
    cli.define_flags(values)
    cli.parse_flags(values, ["scale_stages", *argv[2:]])
    logging_setup.set_up("info")
    config = fixed(cli.config_from_flags(values))
    allocator.single_heap()
    run = {"generate": generate, "sample": sample}.get(argv[1]) or modes.stage(argv[1])
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
