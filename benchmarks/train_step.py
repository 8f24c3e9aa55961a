"""The training step, compared with its matrix products alone, in turns in one process.

The products are read from the step's jaxpr, forward and backward, with their shapes and layouts,
and each kind is compiled alone.  Those in loops count as often as they run.  The rest of the
step's time is gathers, reductions, elementwise operations and the optimizer.

  python -m benchmarks.run train_step

`defaults` has the sizes of the default settings on a catalog of 25,000 items with 512
features; `dgl_t10` and `dgl_t50` those of benchmarks/end_to_end.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.end_to_end import Training, bipartite, settings
from benchmarks.products import alone, flops, products, seconds
from pinsage_jax.config.settings import Config
from pinsage_jax.cpu.allocator import keep_freed_memory


def defaults() -> Config:
    """The default settings of the package, without hard negatives."""
    base = settings(10)
    default = Config(mode="train", workdir="-", seed=0, threads=None)
    model = dataclasses.replace(default.model, spectral_dim=0)
    sampling = dataclasses.replace(default.sampling, content_neighbors=0)
    train = dataclasses.replace(default.train, hard_start="none")
    return dataclasses.replace(base, model=model, sampling=sampling, train=train)


CASES: dict[str, tuple[Callable[[], Config], int]] = {
    "defaults": (defaults, 512),
    "dgl_t10": (lambda: settings(10), 256),
    "dgl_t50": (lambda: settings(50), 256),
}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each case, with the times of the step and of its products."""
    keep_freed_memory()
    repeat = options.repeat
    graph = bipartite(options.graph_file)
    rows = []
    for name in options.cases:
        make, width = CASES[name]
        features = np.random.default_rng(0).standard_normal((graph.num_items, width), np.float32)
        training = Training(graph, make(), features, way="cached")
        step = training.repeated_step()
        kinds = products(training.jaxpr())
        parts = alone(kinds)
        for function, _ in parts:
            seconds(function)
        steps, sums = [], []
        for _ in range(repeat):
            steps.append(seconds(step))
            sums.append(sum(times * seconds(function) for function, times in parts))
        whole, matrix = statistics.median(steps), statistics.median(sums)
        rows.append(
            {
                "case": name,
                "rows": " ".join(str(size) for size in training.rows),
                "step_ms": whole * 1e3,
                "products_ms": matrix * 1e3,
                "ratio": statistics.median(a / b for a, b in zip(steps, sums, strict=True)),
                "gflop": flops(kinds) / 1e9,
                "gflop_per_s": flops(kinds) / matrix / 1e9,
                "repeat": repeat,
            }
        )
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
