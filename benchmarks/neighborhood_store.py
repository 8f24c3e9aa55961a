"""Neighborhood stores: sampling on demand, a table in memory, and shards on disk.

For each kind of walks: the time to make a store, to open an existing one (with all checksums), and
to look up lists, and the number of look-ups of every node after which the store has saved its
cost.  Minibatches look up random nodes, and inference looks up nodes in order.

  python -m benchmarks.neighborhood_store
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.store import NeighborhoodSource

_WALKS = {
    "T=10, 50 walks of 2": SamplingConfig(
        num_neighbors=10, num_walks=50, walk_length=2, restart=0.5
    ),
    "T=50, 100 walks of 5": SamplingConfig(
        num_neighbors=50, num_walks=100, walk_length=5, restart=0.0
    ),
}
_NODES = 20_000


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--store_edges", type=int, default=4_000_000, help="edges of the graph")


def run(options) -> list[dict]:
    """One row per kind of walks and store."""
    edges = 20_000 if options.quick else options.store_edges
    items, collections = max(edges // 20, 2), max(edges // 80, 2)
    rng = np.random.default_rng(0)
    graph = Graph.from_edges(
        _codes(rng, edges, items), _codes(rng, edges, collections), items, collections
    )
    rows = []
    for name, sampling in _WALKS.items():
        walked = 0.0
        for kind in ("none", "memory", "disk"):
            with tempfile.TemporaryDirectory() as folder:
                row = _one(graph, sampling, kind, folder, options)
            walked = walked or row["random_per_s"]
            saved = 1.0 / walked - 1.0 / row["random_per_s"]
            row["pays_after"] = round(row["make_s"] / items / saved, 2) if saved > 0 else 0.0
            rows.append({"walks": name, "items": items, **row})
    return rows


def _one(graph: Graph, sampling: SamplingConfig, kind: str, folder: str, options) -> dict:
    source = NeighborhoodSource(graph, sampling, 0, options.threads, kind, folder)
    source.lookup(np.arange(300, dtype=np.int32))
    made = _seconds(source.materialize)
    opened = 0.0
    if kind == "disk":
        opened = _seconds(source.with_config(sampling).materialize)
    rng = np.random.default_rng(1)
    size = min(_NODES, graph.num_items)
    taken: dict[str, list[float]] = {"random": [], "in_order": []}
    for _ in range(options.repeat):
        first = int(rng.integers(0, graph.num_items - size + 1))
        for order, nodes in (
            ("random", rng.integers(0, graph.num_items, size)),
            ("in_order", np.arange(first, first + size)),
        ):
            nodes = nodes.astype(np.int32)
            taken[order].append(_seconds(lambda nodes=nodes: source.lookup(nodes)))
    return {
        "store": kind,
        "make_s": round(made, 2) if kind != "none" else 0.0,
        "open_s": round(opened, 2),
        "random_per_s": round(size / statistics.median(taken["random"])),
        "in_order_per_s": round(size / statistics.median(taken["in_order"])),
        "bytes_per_node": 0 if kind == "none" else 8 * sampling.num_neighbors,
    }


def _seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _codes(rng: np.random.Generator, edges: int, count: int) -> np.ndarray:
    """int32 [edges] codes below `count`, shuffled ranks of a power law."""
    ranks = (count * rng.random(edges) ** 2).astype(np.int32)
    return rng.permutation(count).astype(np.int32)[ranks]


def main() -> None:
    """Runs this benchmark alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add_options(parser)
    for row in run(parser.parse_args()):
        print(row)


if __name__ == "__main__":
    main()
