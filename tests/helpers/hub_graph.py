"""A graph with a hub, and settings that prune it."""

from __future__ import annotations

import numpy as np

from pinsage_jax.config.data import PruneConfig
from pinsage_jax.graph.csr import Graph

SETTINGS = {
    "none": PruneConfig(),
    "degree": PruneConfig(prune_power=0.6, prune_from=3),
    "size": PruneConfig(prune_collection_items=12),
    "topics": PruneConfig(prune_entropy=1.2, prune_topic_column="topic"),
    "all": PruneConfig(0.5, 2, 14, 1.4, "topic"),
}


def hub_graph(weighted: bool) -> tuple[Graph, np.ndarray]:
    """Item 0 is in every collection, item 1 in none; topics 0 to 3, some unknown."""
    rng = np.random.default_rng(2)
    edges = {(0, c) for c in range(30)}
    edges |= {(int(i), int(c)) for i, c in zip(rng.integers(2, 50, 300), rng.integers(0, 30, 300))}
    pairs = np.array(sorted(edges), np.int32)
    # Odd, so that a weight that is doubled equals no other.
    weights = 2.0 * rng.permutation(len(pairs)) + 1.0 if weighted else None
    topics = rng.integers(-1, 4, 50).astype(np.int32)
    return Graph.from_edges(pairs[:, 0], pairs[:, 1], 50, 30, weights), topics
