"""A catalog as the trained network sees it, before or after a change.

What training fitted does not change: the parameters and neighbor embeddings, the base
vectors of the spectral features, the feature transform and the scale of its columns, and
the candidates of content links (the items that had edges when the network was trained).
New items have neither a base vector nor a neighbor embedding, and the spectral feature of a
collection is the mean over its items that have a base vector.  Everything else follows the
current catalog: edges and so walks, degrees and spectral features; features and so content
links.  Without a change it is what encoder.Encoder sees.

Shapes: N nodes with lists, C links of an item, W width of a list.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pinsage_jax.batching.graph_view import item_links, node_inputs
from pinsage_jax.batching.inputs import feature_scale
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.inference.encoder import stored_lists
from pinsage_jax.inference.layerwise import Adjust, PassOptions, embed_all
from pinsage_jax.inference.tables import Tables
from pinsage_jax.sampling.content_links import MAX_CANDIDATES, ContentLinks, evenly_spaced
from pinsage_jax.sampling.link_spaces import make_space
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.spectral import SpectralFeatures
from pinsage_jax.sampling.store import NeighborhoodSource

_LINK_ROWS = 1 << 11
# Cosines of two matrix products may differ by rounding; recomputing a row too many is harmless.
_COSINE_MARGIN = 1e-5


class CurrentCatalog:
    """A catalog as the trained network sees it.

    Attributes:
      graph: its graph.
      degree: int32 [nodes of the graph], which `inputs` and `has_links` read.
      spectral: spectral features, or None.
      inputs: input vectors of its nodes.
      num_nodes: N, the number of items, or of items and collections.
      link_candidates: int [c], items that content links may lead to, ascending.
      link_rows: what content links compare, as in Prepared.
      num_links: C.
      width: W.
      num_based: the first `num_based` items have a base vector of the spectral features.
    """

    def __init__(self, config: Config, trained: Prepared, current: Prepared, bases: np.ndarray):
        """Combines what training fitted with the current catalog.

        Args:
          trained: the catalog that the network was trained on.
          current: the catalog now.
          bases: float32 [num_items, r], spectral_bases of `trained`.
        """
        self.config, self.graph, self.link_rows = config, current.graph, current.link_rows
        graph, sampling = current.graph, config.sampling
        self.spectral = None
        if bases.shape[1]:
            self.spectral = SpectralFeatures(graph, bases, config.host_threads)
        self.num_based = len(bases) if self.spectral is not None else 0
        self.degree = graph.degree()
        scale = feature_scale(trained.features, config.model.whiten)
        self.inputs = node_inputs(config, current.features, self.degree, self.spectral, scale)
        everything = sampling.neighborhood == "all"
        self.num_nodes = graph.num_nodes if everything else graph.num_items
        self._trained_items = trained.graph.num_items
        self._trained_collections = trained.graph.num_collections
        self.link_candidates = np.flatnonzero(trained.graph.degree()[: self._trained_items] > 0)
        self._large = self._trained_items > sampling.content_limit
        if self._large:
            self.link_candidates = evenly_spaced(self.link_candidates, MAX_CANDIDATES)
        self.num_links = sampling.content_neighbors if current.features.shape[1] else 0
        self.width = sampling.num_neighbors + self.num_links if config.model.num_layers else 0
        walks = config.embed.embed_walks or sampling.num_walks
        self._source = NeighborhoodSource(
            graph, dataclasses.replace(sampling, num_walks=walks), config.seed,
            config.host_threads, "none",
        )  # fmt: skip

    def isolated(self, nodes: np.ndarray) -> np.ndarray:
        """bool [n]: which nodes are items without edges."""
        return (nodes < self.graph.num_items) & (self.degree[nodes] == 0)

    def has_links(self, items: np.ndarray) -> np.ndarray:
        """bool [n]: which items have content links."""
        return self.degree[items] == 0 if self._large else np.ones(len(items), np.bool_)

    def lookup(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists of nodes int32 [n]: ids int32 [n, W] and weights float32 [n, W]."""
        items = self.graph.num_items
        links = ContentLinks.none(items)
        if not self.width:
            return np.empty((len(nodes), 0), np.int32), np.empty((len(nodes), 0), np.float32)
        if self.num_links:
            wanted = nodes[nodes < items]
            wanted = wanted[self.has_links(wanted)]
            threads = self.config.host_threads
            links = item_links(
                self.link_rows, items, wanted, self.link_candidates, self.num_links, threads
            )
        return NeighborLists.from_config(self._source, links, self.config).lookup(nodes)

    def params(self, params: Any) -> Any:
        """The parameters, with neighbor embeddings in the order of this graph's nodes."""
        table = params["params"].get("neighbor_embeddings")
        first, items = self._trained_items, self.graph.num_items
        if table is None or len(table) <= first or items == first:
            return params
        # The collections are nodes too, and their ids follow those of the new items.
        table = np.asarray(table)
        reordered = np.zeros((items + self._trained_collections, table.shape[1]), np.float32)
        reordered[:first], reordered[items:] = table[:first], table[first:]
        return {"params": params["params"] | {"neighbor_embeddings": reordered}}

    def links_affected(self, changed: np.ndarray, links: np.ndarray) -> np.ndarray:
        """bool [N]: items whose content links may differ because other items' features changed.

        Args:
          changed: int32 [f], known items whose features changed.
          links: int32 [N, C], links of the items before the change, -1 where there are fewer.
        """
        found = np.zeros(len(links), np.bool_)
        changed = np.intersect1d(changed, self.link_candidates)
        if not len(changed) or not links.shape[1]:
            return found
        space = make_space(self.link_rows)
        for begin in range(0, len(links), _LINK_ROWS):
            items = np.arange(begin, min(begin + _LINK_ROWS, len(links)))
            queries, current = space.encode_queries(items), links[items]
            closest = np.full(len(items), -1.0, np.float32)
            for first in range(0, len(changed), _LINK_ROWS):
                others = space.encode_candidates(changed[first : first + _LINK_ROWS])
                closest = np.maximum(closest, space.cosines(queries, others).max(axis=1))
            last = space.encode_queries(np.maximum(current[:, -1], 0))
            worst = np.where(current[:, -1] >= 0, space.paired_cosines(queries, last), 0.0)
            entered = closest >= worst - _COSINE_MARGIN
            found[items] = (entered | np.isin(current, changed).any(axis=1)) & self.has_links(items)
        return found


def fill_tables(catalog: CurrentCatalog, params: Any, tables: Tables, adjust: Adjust) -> np.ndarray:
    """Embeds every node, float32 [N, Z]; fills the tables of lists, layers and vectors."""
    lists = stored_lists(tables, catalog, catalog.num_nodes)
    return embed_all(
        catalog.config.model,
        catalog.params(params),
        catalog.inputs,
        lists,
        PassOptions(
            catalog.config.embed.embed_block,
            catalog.config.host_threads,
            tables=tables,
            adjust=adjust,
        ),
    )
