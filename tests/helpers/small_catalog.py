"""A prepared catalog in memory, for tests of the stages after prepare."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.search import EvalConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.data.ids import IdTable
from pinsage_jax.graph.csr import Graph


def random_graph(
    rng: np.random.Generator,
    num_items: int = 30,
    num_collections: int = 9,
    edges: int = 80,
    isolated: int = 5,
    weighted: bool = False,
) -> Graph:
    """A random graph whose last `isolated` items, and last collection, have no edge."""
    items = rng.integers(0, num_items - isolated, edges).astype(np.int32)
    collections = rng.integers(0, num_collections - 1, edges).astype(np.int32)
    # One item alone in a collection of its own is the other awkward case.
    items[0], collections[0] = 0, 0
    keep = (collections != 0) | (items == 0)
    items, collections = items[keep], collections[keep]
    weights = rng.uniform(0.1, 4.0, len(items)).astype(np.float32) if weighted else None
    return Graph.from_edges(items, collections, num_items, num_collections, weights)


def make_prepared(
    graph: Graph,
    features: np.ndarray | None = None,
    eval_pairs: np.ndarray | None = None,
    eval_kinds: list[str] | None = None,
    titles: list[str | None] | None = None,
) -> Prepared:
    """Items are named item-0, item-1, ..."""
    items = graph.num_items
    pairs = np.empty((0, 2), np.int32) if eval_pairs is None else np.asarray(eval_pairs, np.int32)
    kinds = ["warm"] * len(pairs) if eval_kinds is None else eval_kinds
    return Prepared(
        graph=graph,
        features=np.empty((items, 0), np.float32) if features is None else features,
        item_ids=IdTable(pa.array([f"item-{i}" for i in range(items)], pa.large_string())),
        collection_ids=IdTable(
            pa.array([f"c-{i}" for i in range(graph.num_collections)], pa.large_string())
        ),
        titles=None if titles is None else pa.array(titles, pa.large_string()),
        train_pairs=None,
        eval_pairs=pairs,
        eval_kinds=np.array(kinds, dtype=np.str_),
        manifest={"pairs": {"eval_pairs": {"unknown_query": 2, "unknown_target": 1}}},
    )


def make_config(workdir, **evaluate) -> Config:
    """Settings of a small run; keyword arguments are those of EvalConfig."""
    return Config(
        mode="evaluate",
        workdir=str(workdir),
        seed=3,
        threads=2,
        sampling=SamplingConfig(num_walks=20),
        evaluate=EvalConfig(**evaluate),
    )
