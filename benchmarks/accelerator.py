"""Training and embedding with the paper's sizes: utilization, bandwidth and idle time.

Ying et al. 2018: two layers, T=50, m=2048, d=1024, batches of 2048 pairs with 500 shared
random negatives, 4,352 features; 1350 ms an iteration on 16 K80.  Reported are the time
of a step with and without its batches, its matrix products over a measured ceiling
(model FLOP utilization), the bandwidth of its gathers over that of a copy, the share of
time that the device waits and the threads that would remove it, and items embedded a second.

  python -m benchmarks.run accelerator --compute_dtype bfloat16
  python -m benchmarks.run accelerator --target=h200,v5e:2x2,v5p:2x2x1

With --target nothing runs: the train step, the stages of inference and top-k are compiled
for accelerators that need not be there (benchmarks/aot), and what the compilers say is
tabulated.

Where JAX finds no accelerator, or with --small, sizes are small: the numbers then say
only that the script works.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.end_to_end import Training, bipartite, settings
from benchmarks.products import flops, products, seconds
from pinsage_jax.config.settings import Config
from pinsage_jax.cpu.allocator import keep_freed_memory
from pinsage_jax.model.pooling import pool_neighbors


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of an experiment: those of the paper, or small ones for a check of the script."""

    neighbors: int
    hidden: int
    layer: int
    batch: int
    negatives: int
    hard: int
    features: int
    ceiling: int  # rows and columns of the matrices whose product is the ceiling
    steps: int


PAPER = Sizes(50, 2048, 1024, 2048, 500, 6, 4352, 8192, 20)
SMALL = Sizes(10, 64, 32, 64, 32, 2, 96, 512, 3)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One table for training, one for the gathers, one for embedding."""
    if options.target:
        # Its programs have the sizes of this module.
        from benchmarks.aot import ahead

        return ahead.rows(options)
    keep_freed_memory()
    small = options.small or options.quick or jax.default_backend() == "cpu"
    sizes = SMALL if small else PAPER
    if options.hard is not None:
        sizes = dataclasses.replace(sizes, hard=options.hard)
    graph = bipartite(options.graph_file)
    features = np.random.default_rng(0).standard_normal(
        (graph.num_items, sizes.features), np.float32
    )
    training = Training(
        graph,
        config(sizes, options.compute_dtype),
        features,
        way="cached",
        producers=options.accelerator_producers,
        hard=sizes.hard,
    )
    rows: list[dict[str, Any]] = [_step(training, sizes, options)]
    rows += _gathers(training, features, options)
    block = training.config.embed.embed_block
    spent = _median(lambda: training.embed(block, options.threads), options.repeat)
    rows.append({"items": graph.num_items, "embedded_items_per_s": graph.num_items / spent})
    if small:
        rows.append({"note": "Small sizes: these numbers say that the script works, no more."})
    return rows


def config(sizes: Sizes, compute_dtype: str) -> Config:
    """The settings of a run of these sizes."""
    base = settings(sizes.neighbors)
    model = dataclasses.replace(
        base.model,
        hidden_dim=sizes.hidden,
        layer_dim=sizes.layer,
        output_dim=sizes.layer,
        compute_dtype=compute_dtype,
    )
    train = dataclasses.replace(
        base.train,
        batch_size=sizes.batch,
        random_negatives=sizes.negatives,
        hard_start="full" if sizes.hard else "none",
    )
    return dataclasses.replace(base, model=model, train=train)


def _step(training: Training, sizes: Sizes, options) -> dict[str, Any]:
    """Time of a step, its utilization and the wait for batches."""
    operations = flops(products(training.jaxpr()))
    alone = _median(training.repeated_step(), options.repeat)
    paces = [training.measure(sizes.steps) for _ in range(options.repeat)]
    rate = statistics.median(pace.pairs_per_s for pace in paces)
    dtype = training.config.model.compute_dtype
    ceiling = _ceiling(sizes.ceiling, dtype, options.repeat)
    return {
        "device": jax.devices()[0].device_kind,
        "products": dtype,
        "rows": " ".join(str(size) for size in training.rows),
        "step_ms": alone * 1e3,
        "tflop": operations / 1e12,
        "ceiling_tflop_per_s": ceiling / 1e12,
        "utilization": operations / alone / ceiling,
        "step_with_batches_ms": sizes.batch / rate * 1e3,
        "utilization_with_batches": operations * rate / sizes.batch / ceiling,
        "wait_share": statistics.median(pace.wait_share for pace in paces),
        "producers": options.accelerator_producers,
        "producers_needed": max(pace.producers_needed for pace in paces),
    }


def _ceiling(size: int, dtype: str, repeat: int) -> float:
    """Operations/s of the product of two square matrices."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return 2.0 * size**3 / _median(lambda: product(matrix, matrix), repeat)


def _gathers(training: Training, features: np.ndarray, options) -> list[dict[str, Any]]:
    """GB/s of what a step gathers and scatters, and of a plain copy of the inputs."""
    rng = np.random.default_rng(0)
    config = training.config
    senders, pooling = training.rows[-1], training.rows[-2]
    width, kind = config.model.hidden_dim, jnp.dtype(config.model.compute_dtype)
    shape = (pooling, config.sampling.num_neighbors)
    named = jax.device_put(rng.integers(0, senders, shape, np.int32))
    weights = jnp.full(shape, 1.0 / shape[1], jnp.float32)
    projected, bias = jnp.ones((senders, width), kind), jnp.zeros(width, kind)
    table = jax.device_put(features)
    nodes = jax.device_put(rng.integers(0, len(features), senders, np.int32))

    def pool(sent):
        return pool_neighbors(sent, bias, named, weights, "importance")

    def returned(sent, cotangent):
        return jax.vjp(pool, sent)[1](cotangent)[0]

    pooled, read = jax.jit(pool), jax.jit(lambda table, nodes: table[nodes])
    derivative, copy = jax.jit(returned), jax.jit(lambda table: table + 1)
    cotangent = jnp.ones((pooling, width), kind)
    entry = width * kind.itemsize
    sides: dict[str, tuple[Callable[[], Any], float]] = {
        "copy of the table": (lambda: copy(table), 2.0 * features.nbytes),
        "input vectors": (
            lambda: read(table, nodes),
            2.0 * senders * features.shape[1] * features.itemsize,
        ),
        "pooling": (lambda: pooled(projected), entry * (named.size + pooling)),
        "its derivative": (
            lambda: derivative(projected, cotangent),
            entry * (named.size + senders),
        ),
    }
    rows = []
    for name, (work, size) in sides.items():
        spent = _median(work, options.repeat)
        rows.append(
            {"gather": name, "ms": spent * 1e3, "gb": size / 1e9, "gb_per_s": size / spent / 1e9}
        )
    return rows


def _median(work: Callable[[], Any], repeat: int) -> float:
    """Median seconds of a call, the first left out."""
    return statistics.median([seconds(work) for _ in range(repeat + 1)][1:])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    parser.add_argument("--small", action="store_true", help="small sizes on any device")
    parser.add_argument("--compute_dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--accelerator_producers", type=int, default=2, help="threads")
    parser.add_argument("--hard", type=int, help="hard negatives a query instead of the paper's 6")
    parser.add_argument("--target", default="", help="compile for h200, v5e:2x2, v5p:2x2x1")
    parser.add_argument("--sizes", default="default,workload,paper", help="of --target")
    parser.add_argument("--target_devices", type=int, nargs="+", default=[1, 4], help="counts")
    parser.add_argument("--stages", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--frontiers", action="store_true", help="measure the rows of --sizes")
