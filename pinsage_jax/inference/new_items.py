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
and so on for each of the K layers.  Besides there is one pass over the graph.

Node ids in this module: the catalog's nodes are [0, N+C), the new items [N+C, N+C+n), and the
new collections follow.  The extended graph has other ids, with all items first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from pinsage_jax.batching.graph_view import item_links, node_inputs
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.catalog.additions import Additions, extend
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.layerwise import NeededRows, PassOptions, embed_all
from pinsage_jax.sampling.content_links import MAX_CANDIDATES, ContentLinks, evenly_spaced
from pinsage_jax.sampling.lists import NeighborLists
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Extended:
    """The extended graph, with conversions between its node ids and those of this module."""

    graph: Graph
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
    """

    def __init__(self, config: Config, prepared: Prepared, bases: np.ndarray):
        """Takes bases float32 [num_items, r] of the training graph (spectral_bases)."""
        self.config, self.prepared, graph = config, prepared, prepared.graph
        self.spectral = SpectralFeatures(graph, bases) if bases.shape[1] else None
        self.inputs = node_inputs(config, prepared.features, graph.degree(), self.spectral)
        everything = config.sampling.neighborhood == "all"
        self.num_nodes = graph.num_nodes if everything else graph.num_items


class NewItemEncoder:
    """Turns new items into embeddings, given parameters.

    Attributes:
      isolated: bool [n], which new items have no edges.
    """

    def __init__(self, catalog: Catalog, additions: Additions):
        config, prepared = catalog.config, catalog.prepared
        graph, new = prepared.graph, additions.graph
        self._config, self._prepared, self._additions = config, prepared, additions
        self._extended = _Extended(
            extend(graph, new), graph.num_items, graph.num_collections, new.num_items
        )
        spectral, degree = catalog.spectral, new.degree()
        self.isolated = degree[: new.num_items] == 0
        new_degree = np.concatenate(
            [degree[: new.num_items], degree[new.num_items + graph.num_collections :]]
        )
        if spectral is not None:
            spectral = spectral.for_new_items(
                _known_collections(new, graph.num_collections),
                new.num_collections - graph.num_collections,
            )
        self._inputs = _StackedInputs(
            catalog.inputs,
            node_inputs(config, additions.features, new_degree, spectral, catalog.inputs.scale),
            graph.num_nodes,
        )

    def embed(self, params: Any) -> np.ndarray:
        """Embeds the new items: float32 [n, Z]."""
        config, layers = self._config, self._config.model.num_layers
        first = self._prepared.graph.num_nodes
        nodes = np.arange(first, first + self._additions.graph.num_items, dtype=np.int32)
        sizes, done = [len(nodes)], 0
        lists = [self._lists(nodes[:0])]
        for _ in range(layers):
            # The rows before `done` have their lists from the layers above.
            lists.append(self._lists(nodes[done:]))
            done, found = len(nodes), lists[-1][0]
            fresh = np.setdiff1d(found[found >= 0], nodes)
            nodes = np.concatenate([nodes, fresh]).astype(np.int32)
            sizes.append(len(nodes))
        ids, weights = (np.concatenate(parts) for parts in zip(*lists, strict=True))
        row_of = np.full(self._extended.graph.num_nodes + 1, -1, np.int32)
        row_of[nodes] = np.arange(len(nodes), dtype=np.int32)
        return embed_all(
            config.model,
            params,
            self._inputs,
            # Id -1, a short list's end, reads the last entry, which is -1 as well.
            (row_of[ids], weights),
            PassOptions(config.embed.embed_block, config.host_threads, quiet=True),
            NeededRows(nodes, tuple(reversed(sizes))),
        )

    def _lists(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists of catalog nodes over the catalog's graph, of new nodes over the extended."""
        width = self._config.sampling.num_neighbors + self._link_size()
        ids = np.empty((len(nodes), width), np.int32)
        weights = np.empty((len(nodes), width), np.float32)
        old = nodes < self._prepared.graph.num_nodes
        for some, read in ((old, self._catalog_lists), (~old, self._new_lists)):
            if some.any():
                ids[some], weights[some] = read(nodes[some])
        return ids, weights

    def _catalog_lists(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        graph, rows = self._prepared.graph, self._prepared.link_rows
        degree = graph.degree()[: graph.num_items]
        wanted = nodes[nodes < graph.num_items]
        links = self._links(rows, degree, np.flatnonzero(degree > 0), wanted)
        return self._lists_over(graph, links).lookup(nodes)

    def _new_lists(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        graph, items = self._extended.graph, self._prepared.graph.num_items
        degree = graph.degree()[: graph.num_items]
        nodes = self._extended.to_graph(nodes)
        rows = _StackedRows(self._prepared.link_rows, self._additions.link_rows)
        linked = np.flatnonzero(degree[:items] > 0)
        links = self._links(rows, degree, linked, nodes[nodes < graph.num_items])
        ids, weights = self._lists_over(graph, links).lookup(nodes)
        return self._extended.from_graph(ids), weights

    def _lists_over(self, graph: Graph, links: ContentLinks) -> NeighborLists:
        config = self._config
        source = NeighborhoodSource(graph, config.sampling, config.seed, config.host_threads)
        lists = NeighborLists.from_config(source, links, config)
        return lists.with_num_walks(config.embed.embed_walks or config.sampling.num_walks)

    def _link_size(self) -> int:
        return self._config.sampling.content_neighbors if self._prepared.features.shape[1] else 0

    def _links(self, link_rows, degree, linked, wanted) -> ContentLinks:
        if not self._link_size():
            return ContentLinks.none(len(degree))
        # The catalog's size decides, so that new items have links exactly if its items do.
        if self._prepared.graph.num_items > self._config.sampling.content_limit:
            wanted = wanted[degree[wanted] == 0]
            linked = evenly_spaced(linked, MAX_CANDIDATES)
        return item_links(link_rows, len(degree), wanted, linked, self._link_size())


def _known_collections(new: Graph, collections: int) -> sparse.csr_matrix:
    """float32 [n, C], 1 where a new item is in a collection of the catalog."""
    collection = new.indices[: new.num_edges] - np.int32(new.num_items)
    rows = np.repeat(np.arange(new.num_items), np.diff(new.indptr[: new.num_items + 1]))
    known = collection < collections
    ones = np.ones(int(known.sum()), np.float32)
    return sparse.csr_matrix(
        (ones, (rows[known], collection[known])), shape=(new.num_items, collections)
    )
