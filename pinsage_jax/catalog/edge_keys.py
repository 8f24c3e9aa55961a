"""Encodes edges as one integer each, so that sets of edges can be compared.

n edges, E edges of a graph
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.graph import csr


def edges_of(graph: csr.Graph) -> np.ndarray:
    """Items and collections int32 [E, 2] of all edges, in the order of the items' rows."""
    counts = np.diff(graph.indptr[: graph.num_items + 1])
    items = np.repeat(np.arange(graph.num_items, dtype=np.int32), counts)
    return np.stack([items, graph.indices[: graph.num_edges] - np.int32(graph.num_items)], axis=1)


def edge_keys(pairs: np.ndarray, collections: int) -> np.ndarray:
    """One int64 [n] per edge of int32 [n, 2], in the order of (item, collection)."""
    return pairs[:, 0].astype(np.int64) * collections + pairs[:, 1]


def pairs_of_keys(keys: np.ndarray, collections: int) -> np.ndarray:
    """The inverse of edge_keys."""
    return np.stack(np.divmod(keys, max(collections, 1)), axis=1).astype(np.int32)


def contained(some: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which of `some` (int64 [n]) are among the ascending keys: bool [n]."""
    place = np.minimum(np.searchsorted(keys, some), max(len(keys) - 1, 0))
    return keys[place] == some if len(keys) else np.zeros(len(some), np.bool_)
