"""Whole-catalog inference and exact top-k, compared with their matrix products alone.

Inference embeds every item, layer by layer.  It is compared with its matrix products at the same
shapes plus one pass over the features (a copy, block by block).  The rest of its time is the
input vectors, the join with the neighborhoods and the tables between layers.  Top-k is compared
with the product of queries and catalog, block by block.  Both sides run in turns in one process.

  python -m benchmarks.run inference

`defaults` has the sizes of the default settings with 512 features, `dgl_t10` and `dgl_t50`
those of benchmarks/end_to_end.py.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.end_to_end import Training, bipartite
from benchmarks.products import alone, flops, products, seconds
from benchmarks.train_step import CASES
from pinsage_jax.cpu.allocator import keep_freed_memory
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.retrieval import topk


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of items/s and queries/s, with the ratio to the time of the products."""
    keep_freed_memory()
    graph = bipartite(options.graph_file)
    rows = [_inference(name, graph, options) for name in options.inference_cases]
    return rows + [_top_k(k, graph.num_items, options) for k in options.ks]


def _inference(name: str, graph, options: argparse.Namespace) -> dict[str, Any]:
    make, width = CASES[name]
    config = make()
    features = np.random.default_rng(0).standard_normal((graph.num_items, width), np.float32)
    training = Training(graph, config, features, way="cached", warm_up=0)
    items, block = graph.num_items, options.block

    def embed() -> np.ndarray:
        return training.embed(block, options.threads)

    copied = np.empty((block, width), np.float32)

    def read_features() -> None:
        for begin in range(0, items, block):
            part = features[begin : begin + block]
            np.copyto(copied[: len(part)], part)

    kinds = products(_jaxpr(config, training.params, training.inputs.dim, block))
    parts = alone(kinds)
    blocks = -(-items // block)

    def multiply() -> float:
        return blocks * sum(times * seconds(function) for function, times in parts)

    whole, product, read = _in_turn(embed, multiply, read_features, options.repeat)
    middle = statistics.median
    return {
        "case": name,
        "items": items,
        "items_per_s": items / middle(whole),
        "embed_ms": middle(whole) * 1e3,
        "products_ms": middle(product) * 1e3,
        "features_ms": middle(read) * 1e3,
        "ratio": middle(a / (b + c) for a, b, c in zip(whole, product, read, strict=True)),
        "gflop": flops(kinds) * blocks / 1e9,
        "repeat": options.repeat,
    }


def _jaxpr(config, params, dim: int, block: int) -> Any:
    """Every stage of inference over one block."""
    model = PinSage(config.model)
    layers = config.model.num_layers

    def stages(params, features, ids, h, pooled):
        def apply(method, *arguments):
            return model.apply(params, *arguments, method=method)

        for layer in range(1, layers + 1):
            state = features if layer == 1 else h
            yield apply("project", layer, state, ids)
            if layer < layers:
                yield apply("combine", layer, state, pooled)
        yield apply("finish", features if layers == 1 else h, pooled, features)

    shapes = [(block, dim), (block, config.model.layer_dim), (block, config.model.hidden_dim)]
    features, h, pooled = (np.zeros(shape, np.float32) for shape in shapes)
    ids = np.zeros(block, np.int32)
    return jax.make_jaxpr(lambda *arguments: list(stages(*arguments)))(
        params, features, ids, h, pooled
    ).jaxpr


def _top_k(k: int, items: int, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    catalog = rng.standard_normal((items, options.width), np.float32)
    queries = catalog[rng.choice(items, min(options.queries, items), replace=False)]

    def search() -> tuple[np.ndarray, np.ndarray]:
        return topk.top_k(queries, catalog, k)

    product = jax.jit(topk.inner_products)
    parts, blocks = [], []
    for side, most in ((queries, topk.TOP_K_QUERIES), (catalog, topk.TOP_K_ROWS)):
        size = topk.even_blocks(len(side), most)
        blocks.append(-(-len(side) // size))
        # A padded last block is replaced by another block of the same shape.
        whole = max(len(side) // size, 1)
        parts.append(
            [jax.device_put(side[: size * whole][n * size :][:size]) for n in range(whole)]
        )

    def all_products() -> jax.Array:
        for block in range(blocks[1]):
            for some in range(blocks[0]):
                made = product(parts[0][some % len(parts[0])], parts[1][block % len(parts[1])])
        return made

    found, multiplied, _ = _in_turn(
        search, lambda: seconds(all_products), lambda: None, options.repeat
    )
    return {
        "k": k,
        "items": items,
        "queries": len(queries),
        "width": options.width,
        "queries_per_s": len(queries) / statistics.median(found),
        "top_k_ms": statistics.median(found) * 1e3,
        "product_ms": statistics.median(multiplied) * 1e3,
        "ratio": statistics.median(a / b for a, b in zip(found, multiplied, strict=True)),
        "repeat": options.repeat,
    }


def _in_turn(
    whole: Callable[[], Any],
    multiply: Callable[[], float],
    read: Callable[[], Any],
    repeat: int,
) -> tuple[list[float], ...]:
    """Seconds of each side, without the first round."""
    taken = [(seconds(whole), multiply(), seconds(read)) for _ in range(repeat + 1)]
    return tuple(list(column) for column in zip(*taken[1:], strict=True))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    cases = list(CASES)
    parser.add_argument("--inference_cases", nargs="+", default=cases, choices=cases)
    parser.add_argument("--block", type=int, default=8192, help="rows embedded at once")
    parser.add_argument("--ks", type=int, nargs="*", default=[10, 100, 500])
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256, help="dimensions of top-k's vectors")
