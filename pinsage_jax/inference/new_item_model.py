"""A trained network and what it reads of the catalog, kept to embed new items again and again.

new_items.py says what a new item's vector is.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.additions import Additions, build_additions
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import Table
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.new_items import Catalog, NewItemEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A checkpoint to embed with.

    Attributes:
      params: parameters of the network.
      step: training steps behind them.
      offset: cold offset.
    """

    params: Any
    step: int
    offset: float

    @functools.cached_property
    def digest(self) -> str:
        """Checksum of the parameters."""
        total = 0
        for leaf in jax.tree.leaves(self.params):
            total = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), total)
        return f"{total:08x}"


@dataclasses.dataclass(frozen=True, eq=False)
class NewItemModel:
    """What embeds items that the catalog does not hold.

    Attributes:
      transform: of the catalog's features.
    """

    catalog: Catalog
    transform: FeatureTransform
    trained: Trained

    def read(self, items: Table, edges: Table | None) -> Additions:
        """What two tables hold; UserError for whatever is wrong with them."""
        known = self.catalog
        return build_additions(known.prepared, self.transform, known.config.data, items, edges)

    def embed(self, additions: Additions) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [n, Z], not encoded for an export, and bool [n]: without edges."""
        encoder = NewItemEncoder(self.catalog, additions)
        vectors = encoder.embed(self.trained.params)
        vectors[encoder.edgeless, -1] += np.float32(self.trained.offset)
        return vectors, encoder.edgeless

    def warm_up(self) -> None:
        """Compiles what a single item takes, with edges and without, by embedding a known one."""
        prepared = self.catalog.prepared
        graph = prepared.graph
        known = int(np.argmax(graph.degree()[: graph.num_items]))
        features = np.asarray(prepared.features[[known]])
        words = None if prepared.words is None else np.asarray(prepared.words[[known]])
        for held in (graph.neighbors(known)[:1] - graph.num_items, np.empty(0, np.int32)):
            held = held.astype(np.int32)
            weights = None if graph.weights is None else np.ones(len(held), np.float32)
            edges = Graph.from_edges(np.zeros_like(held), held, 1, graph.num_collections, weights)
            self.embed(Additions(IdTable(pa.array(["any"])), features, edges, words))
