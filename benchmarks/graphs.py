"""Synthetic power-law graphs of items and collections, saved in a folder between runs.

Edges join an item drawn with weight (rank + 10)^-0.7 and a collection drawn with weight
(rank + 10)^-0.6; ranks are spread over the ids at random and every node has an edge.
A file NAME.npz has the CSR in both directions (pb_indptr, pb_indices: item to collection;
bp_indptr, bp_indices: collection to item) and can be replaced by any file of this layout.
"""

from __future__ import annotations

import pathlib

import numpy as np

from pinsage_jax.graph.csr import Graph

SIZES = {  # items, collections, edges
    "tiny": (2_000, 500, 40_000),
    "small": (200_000, 50_000, 4_000_000),
    "large": (1_000_000, 250_000, 20_000_000),
}


def load(name: str, folder: pathlib.Path) -> tuple[Graph, pathlib.Path]:
    """The graph `name` in memory and its file, which is made if it is missing."""
    path = folder / f"{name}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, **_both_ways(*SIZES[name]))
        path.with_suffix(".part").replace(path)
    with np.load(path, allow_pickle=False) as saved:
        arrays = {key: saved[key] for key in saved.files}
    items, collections = (len(arrays[f"{way}_indptr"]) - 1 for way in ("pb", "bp"))
    edges = arrays["pb_indptr"][-1]
    indptr = np.concatenate([arrays["pb_indptr"], arrays["bp_indptr"][1:] + edges])
    indices = np.concatenate([arrays["pb_indices"] + np.int32(items), arrays["bp_indices"]])
    graph = Graph(
        indptr.astype(np.int64), indices.astype(np.int32), None, int(items), int(collections)
    )
    return graph, path


def _both_ways(items: int, collections: int, edges: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2018)

    def popular(count: int, power: float):
        reach = np.cumsum((np.arange(count) + 10.0) ** -power)
        order = rng.permutation(count)
        return lambda size: order[np.searchsorted(reach, rng.random(size) * reach[-1])]

    draw_items, draw_collections = popular(items, 0.7), popular(collections, 0.6)
    everyone = [
        (np.arange(items), draw_collections(items)),
        (draw_items(collections), np.arange(collections)),
    ]
    pairs = np.unique(np.concatenate([a * collections + b for a, b in everyone]))
    while len(pairs) < edges:
        size = int(1.1 * (edges - len(pairs))) + 1000
        extra = np.setdiff1d(draw_items(size) * collections + draw_collections(size), pairs)
        extra = rng.permutation(extra)[: edges - len(pairs)]
        pairs = np.union1d(pairs, extra)
    of_item, of_collection = np.divmod(pairs, collections)
    back = np.argsort(of_collection, kind="stable")
    return {
        "pb_indptr": _offsets(of_item, items),
        "pb_indices": of_collection.astype(np.int32),
        "bp_indptr": _offsets(of_collection, collections),
        "bp_indices": of_item[back].astype(np.int32),
    }


def _offsets(rows: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64)
