"""Embeds items that the catalog does not contain, without embedding the catalog again.

The vector of a new item is what layer-wise inference (layerwise.py) computes for it over the
extended graph, which has the new items and the new collections too, under these rules:

* The catalog's nodes do not change: they have the same inputs, neighbor lists and hence
  states in every layer as without the new items.
* The walks of a new item run over all edges, old and new, with the random streams of its
  node id in the extended graph.  They may visit other new items of the same collections.
* Its content links lead to items of the catalog that have edges.  Its degree counts its new
  edges.  Its spectral feature is the sum over its collections; that of a new collection is 0.
* Everything that training fitted stays: the feature transform and scale, the base vectors of
  the spectral features, the neighbor embeddings (new nodes have none) and the parameters.

Only the rows that the new items need are computed: their neighbors, the neighbors of these,
and so on for each of the K layers.  Nothing is copied of the catalog: walks read its graph
where it is (new_item_walks.py).

Node ids in this module: the catalog's nodes are [0, N+C), the new items [N+C, N+C+n), and the
new collections follow.  The extended graph has other ids, with all items first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from pinsage_jax.batching.graph_view import node_inputs
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.catalog.additions import Additions
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.inference.layerwise import PassOptions, embed_some
from pinsage_jax.inference.new_item_walks import NewItemWalks
from pinsage_jax.sampling.content_links import MAX_CANDIDATES, content_links, evenly_spaced
from pinsage_jax.sampling.lists import append_links
from pinsage_jax.sampling.neighborhoods import pooling_weights
from pinsage_jax.sampling.spectral import SpectralFeatures
from pinsage_jax.sampling.store import NeighborhoodSource


class _StackedRows:
    """The link rows of the catalog's items, followed by those of the new items."""

    def __init__(self, first: np.ndarray, second: np.ndarray):
        self._parts = first, second
        self.shape = (len(first) + len(second), first.shape[1])
        self.dtype = first.dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        first, second = self._parts
        out = np.empty((len(rows), self.shape[1]), first.dtype)
        old = rows < len(first)
        out[old], out[~old] = first[rows[old]], second[rows[~old] - len(first)]
        return out


class _StackedInputs:
    """The inputs of the catalog's nodes, followed by those of new nodes from id `first` on."""

    def __init__(self, catalog: NodeInputs, new: NodeInputs, first: int):
        self._catalog, self._new, self._first = catalog, new, first

    def gather(self, nodes: np.ndarray) -> np.ndarray:
        """Input vectors float32 [n, D] of nodes int32 [n]."""
        out = np.empty((len(nodes), self._catalog.dim), np.float32)
        old = nodes < self._first
        out[old] = self._catalog.gather(nodes[old])
        out[~old] = self._new.gather(nodes[~old] - np.int32(self._first))
        return out


@dataclasses.dataclass(frozen=True)
class _NodeIds:
    """Conversions between the node ids of this module and those of the extended graph."""

    items: int  # N
    collections: int  # C
    new: int  # n

    def from_graph(self, ids: np.ndarray) -> np.ndarray:
        """Converts node ids (or -1) of the extended graph to those of this module."""
        new = (ids >= self.items) & (ids < self.items + self.new)
        old = (ids >= self.items + self.new) & (ids < self.items + self.new + self.collections)
        return np.where(new, ids + self.collections, np.where(old, ids - self.new, ids)).astype(
            np.int32
        )

    def to_graph(self, new_nodes: np.ndarray) -> np.ndarray:
        """Converts ids of new nodes to those of the extended graph."""
        item = new_nodes < self.items + self.collections + self.new
        return np.where(item, new_nodes - self.collections, new_nodes).astype(np.int32)


class Catalog:
    """What embedding new items reads of the catalog, computed once for any number of them.

    Attributes:
      inputs: input vectors of the catalog's nodes.
      spectral: spectral features of these nodes, or None.
      num_nodes: number of nodes that the network embeds.
      degree: edges of every node, int32 [N + C].
      linked: items that content links may lead to, int [c], ascending.
      source: neighborhoods of the catalog's nodes.
    """

    def __init__(self, config: Config, prepared: Prepared, bases: np.ndarray):
        """Takes bases float32 [num_items, r] of the training graph (spectral_bases)."""
        self.config, self.prepared, graph = config, prepared, prepared.graph
        self.spectral = SpectralFeatures(graph, bases) if bases.shape[1] else None
        self.degree = graph.degree()
        self.inputs = node_inputs(config, prepared.features, self.degree, self.spectral)
        everything = config.sampling.neighborhood == "all"
        self.num_nodes = graph.num_nodes if everything else graph.num_items
        self.linked = np.flatnonzero(self.degree[: graph.num_items] > 0)
        if self.is_large:
            self.linked = evenly_spaced(self.linked, MAX_CANDIDATES)
        walks = config.embed.embed_walks or config.sampling.num_walks
        sampling = dataclasses.replace(config.sampling, num_walks=walks)
        self.source = NeighborhoodSource(
            graph, sampling, config.seed, config.host_threads, store="none"
        )

    @property
    def is_large(self) -> bool:
        """Whether only items without edges have content links; new items follow the catalog."""
        return self.prepared.graph.num_items > self.config.sampling.content_limit


class NewItemEncoder:
    """Turns new items into embeddings, given parameters.

    Attributes:
      isolated: bool [n], which new items have no edges.
    """

    def __init__(self, catalog: Catalog, additions: Additions):
        config, prepared, graph = catalog.config, catalog.prepared, catalog.prepared.graph
        new, count = additions.graph, additions.graph.num_items
        self._config, self._catalog, self._additions = config, catalog, additions
        self._ids = _NodeIds(graph.num_items, graph.num_collections, count)
        self._walks = NewItemWalks(catalog.source.tables, additions)
        spectral, degree = catalog.spectral, new.degree()
        self.isolated = degree[:count] == 0
        known = new.num_collections - additions.num_new_collections
        # Of the new items, then of the new collections.
        self._degree = np.concatenate([degree[:count], degree[count + known :]])
        if spectral is not None:
            spectral = spectral.for_new_items(
                _known_collections(additions, graph.num_collections), additions.num_new_collections
            )
        # Read like an array.
        self._link_rows: Any = _StackedRows(prepared.link_rows, additions.link_rows)
        self._inputs = _StackedInputs(
            catalog.inputs,
            node_inputs(config, additions.features, self._degree, spectral, catalog.inputs.scale),
            graph.num_nodes,
        )

    def embed(self, params: Any) -> np.ndarray:
        """Embeds the new items: float32 [n, Z]."""
        config = self._config
        first = self._catalog.prepared.graph.num_nodes
        nodes = np.arange(first, first + self._additions.graph.num_items, dtype=np.int32)
        return embed_some(
            config.model,
            params,
            self._inputs,
            self.lists,
            nodes,
            PassOptions(config.embed.embed_block, config.host_threads, quiet=True),
        )

    def lists(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists of catalog nodes over the catalog's graph, of new nodes over the extended.

        Args:
          nodes: int32 [s], ids of this module.

        Returns:
          ids int32 [s, T + C], ids of this module or -1, and pooling weights float32.
        """
        width = self._config.sampling.num_neighbors + self._link_size()
        ids = np.empty((len(nodes), width), np.int32)
        weights = np.empty((len(nodes), width), np.float32)
        old = nodes < self._catalog.prepared.graph.num_nodes
        for some, read in ((old, self._catalog_lists), (~old, self._new_lists)):
            if some.any():
                ids[some], weights[some] = read(nodes[some])
        return ids, weights

    def _catalog_lists(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        walked = self._catalog.source.lookup(nodes)
        degree = self._catalog.degree[nodes]
        items = nodes < self._ids.items
        return self._with_links(nodes, items, (walked.ids, walked.counts), degree)

    def _new_lists(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        source, starts = self._catalog.source, self._ids.to_graph(nodes)
        found = self._walks.visit_counts(starts, source.sampling, source.seed, source.threads)
        degree = self._degree[nodes - self._catalog.prepared.graph.num_nodes]
        items = starts < self._ids.items + self._ids.new
        ids, weights = self._with_links(starts, items, found, degree)
        return self._ids.from_graph(ids), weights

    def _with_links(
        self,
        nodes: np.ndarray,
        items: np.ndarray,
        walked: tuple[np.ndarray, np.ndarray],
        degree: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lists of nodes of the catalog's or of the extended graph, with their content links.

        Args:
          nodes: int32 [s]; items: bool [s], which of them are items, whose ids are also the
            rows of the stacked features.
          walked: ids and counts of the walks, int32 [s, T] each.
          degree: int32 [s].
        """
        model, size = self._config.model, self._link_size()
        ids, shares = walked[0], pooling_weights(walked[1], model.pooling)
        if not size:
            return ids, shares
        links = np.full((len(nodes), size), -1, np.int32)
        link_shares = np.zeros((len(nodes), size), np.float32)
        wanted = items & (degree == 0) if self._catalog.is_large else items
        if wanted.any():
            links[wanted], link_shares[wanted] = content_links(
                self._link_rows, nodes[wanted], self._catalog.linked, size
            )
        kappa = self._config.sampling.content_kappa
        return append_links((ids, shares), (links, link_shares), degree, model.pooling, kappa)

    def _link_size(self) -> int:
        has_features = self._catalog.prepared.features.shape[1]
        return self._config.sampling.content_neighbors if has_features else 0


def _known_collections(additions: Additions, known: int) -> sparse.csr_matrix:
    """float32 [n, C], 1 where a new item is in one of the C collections of the catalog."""
    new = additions.graph
    collection = additions.collections[new.indices[: new.num_edges] - np.int32(new.num_items)]
    rows = np.repeat(np.arange(new.num_items), np.diff(new.indptr[: new.num_items + 1]))
    old = collection < known
    ones = np.ones(int(old.sum()), np.float32)
    return sparse.csr_matrix((ones, (rows[old], collection[old])), shape=(new.num_items, known))
