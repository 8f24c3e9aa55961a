"""Events of edges, and the graph after them from scratch."""

from __future__ import annotations

import numpy as np

from pinsage_jax.following.overlay import EdgeEvents
from pinsage_jax.graph.csr import Graph


def edge_weights(graph: Graph) -> dict[tuple[int, int], float]:
    found = {}
    for item in range(graph.num_items):
        for edge in range(graph.indptr[item], graph.indptr[item + 1]):
            weight = 1.0 if graph.weights is None else graph.weights[edge]
            found[item, int(graph.indices[edge]) - graph.num_items] = float(weight)
    return found


def built(edges, items, collections, weighted) -> Graph:
    """The graph of some edges, from scratch."""
    pairs = np.array(sorted(edges), np.int32).reshape(-1, 2)
    weights = None
    if weighted:
        weights = np.array([edges[tuple(pair)] for pair in pairs.tolist()], np.float32)
    columns = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    return Graph.from_edges(*columns, items, collections, weights)


def random_events(rng, graph, collections, count, weighted) -> EdgeEvents:
    weights = rng.choice(np.array([0.5, 2.0, 3.0], np.float32), count) if weighted else None
    return EdgeEvents(
        rng.integers(0, graph.num_items, count).astype(np.int32),
        rng.integers(0, collections, count).astype(np.int32),
        rng.random(count) < 0.4,
        weights,
    )


def apply_slowly(edges, events):
    for place in range(len(events)):
        pair = int(events.items[place]), int(events.collections[place])
        if events.removed[place]:
            edges.pop(pair, None)
        else:
            edges[pair] = 1.0 if events.weights is None else float(events.weights[place])
