"""A prepared catalog whose ids and titles try to break out of a page."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.search import EvalConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.data.ids import IdTable
from pinsage_jax.graph.csr import Graph

ITEMS, COLLECTIONS = 24, 8
HOSTILE = (
    "<script>alert(1)</script>",
    "\"onmouseover='alert(2)' x=\"",
    "</style><h1>broken",
    "</title><img src=x onerror=alert(3)>",
    "]]><svg onload=alert(4)>",
    "https://example.org/?a=1&b=2",
    "\u202eright to left & \U0001f600\x00\x1b[31m\n\ntwo lines",
    "-->$x_1^2$ &lt;i&gt; {{7*7}}",
)


def hostile_name(place: int) -> str:
    return f"{place} {HOSTILE[place % len(HOSTILE)]}"


def small_prepared(titles: bool = True, width: int = 5, pairs: int = 30, edges: bool = True):
    """A catalog whose first four items have no edges."""
    rng = np.random.default_rng(4)
    item = np.concatenate([np.arange(4, ITEMS), rng.integers(4, 12, 60)]).astype(np.int32)
    collection = rng.integers(0, COLLECTIONS, len(item)).astype(np.int32)
    if not edges:
        item, collection = item[:0], collection[:0]
    graph = Graph.from_edges(item, collection, ITEMS, COLLECTIONS)
    drawn = np.stack([rng.integers(0, 12, pairs), rng.integers(12, ITEMS, pairs)], 1)
    named = [hostile_name(place) for place in range(ITEMS)]
    kinds = [HOSTILE[place % 3] for place in range(pairs)]
    return Prepared(
        graph=graph,
        features=rng.normal(size=(ITEMS, width)).astype(np.float32),
        item_ids=IdTable(pa.array([f"id {name}" for name in named])),
        collection_ids=IdTable(pa.array([f"c{place}" for place in range(COLLECTIONS)])),
        titles=pa.array([None, "", *named[2:]], pa.large_string()) if titles else None,
        train_pairs=None,
        eval_pairs=drawn.astype(np.int32),
        eval_kinds=np.array(kinds, dtype=np.str_),
        manifest={
            "counts": {"items": ITEMS, "duplicate_edges": 2},
            "features": {"blocks": [{"columns": [HOSTILE[0]]}]},
        },
    )


def small_embeddings() -> np.ndarray:
    vectors = np.random.default_rng(8).normal(size=(ITEMS, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def small_config(workdir, **evaluate) -> Config:
    return Config(
        mode="report",
        workdir=str(workdir),
        seed=3,
        threads=1,
        sampling=SamplingConfig(num_walks=20, num_neighbors=5),
        model=ModelConfig(popularity_bias=False),
        train=TrainConfig(batch_size=64),
        evaluate=EvalConfig(bootstrap=20, k=4, **evaluate),
    )
