"""A trained network with its catalog, to embed new items one request after another.

new_items.py defines the vector of a new item.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.additions import Additions, build_additions, touched_graph
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import Table
from pinsage_jax.inference.new_items import Catalog, NewItemEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Attributes:
      params: parameters of the network.
      step: training step of the checkpoint.
      cold_start_bias: added to the last coordinate of items without edges.
    """

    params: Any
    step: int
    cold_start_bias: float

    @functools.cached_property
    def digest(self) -> str:
        """Checksum of the parameters."""
        total = 0
        for leaf in jax.tree.leaves(self.params):
            total = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), total)
        return f"{total:08x}"


@dataclasses.dataclass(frozen=True, eq=False)
class NewItemModel:
    """Embeds items that the catalog does not contain.

    Attributes:
      transform: transform of the catalog's features.
    """

    catalog: Catalog
    transform: FeatureTransform
    trained: Trained

    def read(self, items: Table, edges: Table | None) -> Additions:
        """Reads tables of new items and of their edges; UserError if one has a mistake."""
        known = self.catalog
        return build_additions(known.prepared, self.transform, known.config.data, items, edges)

    def embed(self, additions: Additions) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [n, Z], not encoded for an export, and bool [n]: without edges."""
        encoder = NewItemEncoder(self.catalog, additions)
        vectors = encoder.embed(self.trained.params)
        vectors[encoder.isolated, -1] += np.float32(self.trained.cold_start_bias)
        return vectors, encoder.isolated

    def warm_up(self) -> None:
        """Compiles what a single item takes, with and without edges, by embedding a known one."""
        prepared = self.catalog.prepared
        graph = prepared.graph
        known = int(np.argmax(graph.degree()[: graph.num_items]))
        features = np.asarray(prepared.features[[known]])
        words = None if prepared.words is None else np.asarray(prepared.words[[known]])
        for held in (graph.neighbors(known)[:1] - graph.num_items, np.empty(0, np.int32)):
            held = held.astype(np.int32)
            weights = None if graph.weights is None else np.ones(len(held), np.float32)
            edges, touched = touched_graph(np.zeros_like(held), held, 1, weights)
            self.embed(Additions(IdTable(pa.array(["any"])), features, edges, touched, 0, words))
