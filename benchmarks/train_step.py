"""The train step beside its own matrix products, timed in turns in one process.

The products are read from the step's jaxpr, forward and backward, with their shapes and
layouts, loops counted as often as they run; each kind is compiled alone.  What the step
takes beyond them is gathers, reductions, elementwise work and the optimiser.

  python -m benchmarks.run train_step

`defaults` has the sizes of the default settings on a catalogue of 25,000 items with 512
features; `dgl_t10` and `dgl_t50` those of benchmarks/end_to_end.py.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.end_to_end import Training, bipartite, settings
from pinsage_jax.config import Config
from pinsage_jax.parallel import keep_freed_memory


def products(jaxpr: Any, times: int = 1) -> collections.Counter:
    """How often each dot_general runs: (shape, shape, dimension numbers) -> times."""
    found: collections.Counter = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (tuple(each.aval.shape) for each in equation.invars)
            found[left, right, equation.params["dimension_numbers"]] += times
        rounds = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += products(inner, times * rounds)
    return found


def flops(kinds: collections.Counter) -> float:
    """Multiplications and additions of all products."""
    total = 0.0
    for (left, right, (contracted, batched)), times in kinds.items():
        free = [
            size
            for axis, size in enumerate(right)
            if axis not in contracted[1] and axis not in batched[1]
        ]
        total += 2.0 * times * np.prod(left, dtype=float) * np.prod(free, dtype=float)
    return total


def alone(kinds: collections.Counter) -> list[tuple[Callable[[], Any], int]]:
    """A function for each kind of product, on arrays of its own, and how often it counts."""
    rng = np.random.default_rng(0)
    made = []
    for (left, right, numbers), times in kinds.items():
        arrays = [jax.device_put(rng.standard_normal(s, np.float32)) for s in (left, right)]
        product = jax.jit(lambda a, b, numbers=numbers: jax.lax.dot_general(a, b, numbers))
        made.append((lambda product=product, arrays=arrays: product(*arrays), times))
    return made


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    begun = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begun


def defaults() -> Config:
    """The package's own default settings, but hard negatives from the start."""
    base = settings(10)
    plain = Config(mode="train", workdir="-", seed=0, threads=0)
    model = dataclasses.replace(plain.model, structure_dim=0)
    sampling = dataclasses.replace(plain.sampling, content_neighbours=0)
    train = dataclasses.replace(plain.train, hard_start="none")
    return dataclasses.replace(base, model=model, sampling=sampling, train=train)


CASES: dict[str, tuple[Callable[[], Config], int]] = {
    "defaults": (defaults, 512),
    "dgl_t10": (lambda: settings(10), 256),
    "dgl_t50": (lambda: settings(50), 256),
}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of step and product times, one for each case."""
    keep_freed_memory()
    repeat = options.repeat
    graph = bipartite(options.graph_file)
    rows = []
    for name in options.cases:
        make, width = CASES[name]
        features = np.random.default_rng(0).standard_normal((graph.num_items, width), np.float32)
        training = Training(graph, make(), features, kept=True)
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
    """Options of this benchmark, beside those of every benchmark."""
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
