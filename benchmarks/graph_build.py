"""Building the graph: unordered edges to CSR rows, in memory and memory-mapped.

The edges are random with power-law degrees, the worst order for a counting sort.  The times are
those of `csr.build` alone; scale.py includes reading the tables and ids.  Larger graphs miss the
caches more often, so the time per edge grows with the size.

  python -m benchmarks.graph_build --build_edges=1000000
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np

from pinsage_jax.graph import csr

_EDGES_PER_ITEM, _EDGES_PER_COLLECTION = 20, 80


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--build_edges", default="1000000,10000000", help="sizes of the graphs")


def run(options) -> list[dict]:
    """One row for each size and storage."""
    sizes = [int(size) for size in options.build_edges.split(",")]
    if options.quick:
        sizes = [20_000]
    rows = []
    for edges in sizes:
        items, collections = (
            max(edges // _EDGES_PER_ITEM, 2),
            max(edges // _EDGES_PER_COLLECTION, 2),
        )
        codes = _codes(edges, items, 1), _codes(edges, collections, 2)
        _build(codes, items, collections, None)
        for storage in ("memory", "mapped"):
            taken = []
            for _ in range(options.repeat):
                with tempfile.TemporaryDirectory() as folder:
                    begin = time.perf_counter()
                    graph = _build(
                        codes, items, collections, folder if storage == "mapped" else None
                    )
                    taken.append(time.perf_counter() - begin)
            seconds = statistics.median(taken)
            size = graph.indptr.nbytes + graph.indices.nbytes
            rows.append(
                {
                    "edges": edges,
                    "distinct": graph.num_edges,
                    "storage": storage,
                    "seconds": round(seconds, 3),
                    "million_edges_per_s": round(edges / seconds / 1e6, 2),
                    "ns_per_edge": round(1e9 * seconds / edges, 1),
                    "bytes_per_edge": round(size / graph.num_edges, 2),
                }
            )
    return rows


def _build(codes, items: int, collections: int, folder: str | None) -> csr.Graph:
    return csr.build(*codes, items, collections, folder=folder)[0]


def _codes(edges: int, count: int, seed: int) -> np.ndarray:
    """int32 [edges] codes below `count`, shuffled ranks of a power law."""
    rng = np.random.default_rng(seed)
    ranks = (count * rng.random(edges) ** 2).astype(np.int32)
    return rng.permutation(count).astype(np.int32)[ranks]


def main() -> None:
    """Runs this benchmark alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=None)
    add_options(parser)
    for row in run(parser.parse_args()):
        print(row)


if __name__ == "__main__":
    main()
