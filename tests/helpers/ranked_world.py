"""A catalog whose content, vectors and collections all tell the topic of an item."""

import numpy as np

from pinsage_jax.graph.csr import Graph
from pinsage_jax.ranking.calibrated_model import CalibratedModel
from pinsage_jax.ranking.candidates import FEATURES
from pinsage_jax.ranking.ranker_model import RankerModel


def simple_model() -> RankerModel:
    """A ranker with weights by hand, which orders all lists."""
    weights = np.zeros(len(FEATURES))
    for name, weight in (("similarity", 2.0), ("log_walk", 0.5), ("content", 1.0)):
        weights[FEATURES.index(name)] = weight
    one = CalibratedModel(weights, -1.0)
    models = {kind: {"warm": one, "cold": one} for kind in ("warm", "cold")}
    return RankerModel(models, {"warm": 0.5, "cold": 0.0}, {"warm": "ranker", "cold": "ranker"})


def make_world():
    """Collections by topic; content and vectors tell the topic; a tenth of the items is new."""
    rng = np.random.default_rng(5)
    items, collections, topics = 300, 160, 10
    topic = rng.integers(0, topics, items)
    edges = set()
    for collection in range(collections):
        members = np.flatnonzero(topic == collection % topics)
        members = members[members < 270]
        edges |= {(int(i), collection) for i in rng.choice(members, min(8, len(members)), False)}
    edge_items, edge_collections = np.array(sorted(edges), np.int32).T
    graph = Graph.from_edges(edge_items, edge_collections, items, collections)
    features = np.eye(topics)[topic] + 0.4 * rng.normal(size=(items, topics))
    vectors = np.eye(topics)[topic] + 0.6 * rng.normal(size=(items, topics))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.column_stack([vectors, np.where(graph.degree()[:items] > 0, 1.2, 1.0)])
    return graph, features.astype(np.float32), vectors.astype(np.float32)
