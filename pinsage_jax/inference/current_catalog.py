"""A catalog as the trained network sees it, also after it has changed.

What training fitted stays: parameters and id messages, the bases that places come from,
the feature transform and the scale of its columns, and the items that content links lead
to (those with edges when the network was trained).  New items have neither a base nor an
id message, and a collection lies at the mean of its items that have a base.  Everything
else is that of the catalog as it is now: edges and so walks, degrees and places,
features and so links.  Without a change it is just what encoder.Encoder sees.

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
from pinsage_jax.inference.encoder import tabled_lists
from pinsage_jax.inference.layerwise import Adjust, PassOptions, embed_all
from pinsage_jax.inference.tables import Tables
from pinsage_jax.sampling.content_links import MAX_CANDIDATES, ContentLinks, evenly_spaced
from pinsage_jax.sampling.link_spaces import make_space
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.spectral import SpectralFeatures
from pinsage_jax.sampling.store import NeighborhoodSource

_LINK_ROWS = 1 << 11
# Cosines of two products may differ by their rounding; a row too many is no harm.
_COSINE_MARGIN = 1e-5


class CurrentCatalog:
    """A catalog, changed or not, as the trained network sees it.

    Attributes:
      graph: its graph.
      inputs: input vectors of its nodes.
      num_nodes: nodes with lists: items, or items and collections.
      width: W.
      based: the first so many items have a base, from which places come.
    """

    def __init__(self, config: Config, trained: Prepared, current: Prepared, bases: np.ndarray):
        """Takes what training saw, what there is now, and spectral_bases of the former."""
        self.config, self.graph, self._link_rows = config, current.graph, current.link_rows
        graph, sampling = current.graph, config.sampling
        spectral = SpectralFeatures(graph, bases, config.host_threads) if bases.shape[1] else None
        self.based = len(bases) if spectral is not None else 0
        self._degree = graph.degree()
        scale = feature_scale(trained.features, config.model.whiten)
        self.inputs = node_inputs(config, current.features, self._degree, spectral, scale)
        everything = sampling.neighborhood == "all"
        self.num_nodes = graph.num_nodes if everything else graph.num_items
        self._trained_items = trained.graph.num_items
        self._trained_collections = trained.graph.num_collections
        self.linked = np.flatnonzero(trained.graph.degree()[: self._trained_items] > 0)
        self._large = self._trained_items > sampling.content_limit
        if self._large:
            self.linked = evenly_spaced(self.linked, MAX_CANDIDATES)
        self.links = sampling.content_neighbors if current.features.shape[1] else 0
        self.width = sampling.num_neighbors + self.links if config.model.num_layers else 0
        walks = config.embed.embed_walks or sampling.num_walks
        self._source = NeighborhoodSource(
            graph, dataclasses.replace(sampling, num_walks=walks), config.seed,
            config.host_threads, "none",
        )  # fmt: skip

    def edgeless(self, nodes: np.ndarray) -> np.ndarray:
        """bool [n], which of the nodes are items without edges."""
        return (nodes < self.graph.num_items) & (self._degree[nodes] == 0)

    def linking(self, items: np.ndarray) -> np.ndarray:
        """bool [n], which of the items have content links."""
        return self._degree[items] == 0 if self._large else np.ones(len(items), np.bool_)

    def lookup(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists of nodes int32 [n]: ids int32 and weights float32 [n, W]."""
        items = self.graph.num_items
        links = ContentLinks.none(items)
        if not self.width:
            return np.empty((len(nodes), 0), np.int32), np.empty((len(nodes), 0), np.float32)
        if self.links:
            wanted = nodes[nodes < items]
            wanted = wanted[self.linking(wanted)]
            threads = self.config.host_threads
            links = item_links(self._link_rows, items, wanted, self.linked, self.links, threads)
        return NeighborLists.from_config(self._source, links, self.config).lookup(nodes)

    def params(self, params: Any) -> Any:
        """The parameters with id messages in the numbers of this graph."""
        messages = params["params"].get("neighbor_embeddings")
        first, items = self._trained_items, self.graph.num_items
        if messages is None or len(messages) <= first or items == first:
            return params
        # With collections as nodes: their numbers moved behind the new items.
        moved = np.zeros((items + self._trained_collections, messages.shape[1]), np.float32)
        moved[:first], moved[items:] = messages[:first], messages[first:]
        return {"params": params["params"] | {"neighbor_embeddings": moved}}

    def relinked(self, changed: np.ndarray, links: np.ndarray) -> np.ndarray:
        """bool [N]: items whose links the features of some linked items may change.

        Args:
          changed: int32 [f] known items with other features.
          links: int32 [N, C], links of the items before the change.
        """
        found = np.zeros(len(links), np.bool_)
        changed = np.intersect1d(changed, self.linked)
        if not len(changed) or not links.shape[1]:
            return found
        space = make_space(self._link_rows)
        for begin in range(0, len(links), _LINK_ROWS):
            items = np.arange(begin, min(begin + _LINK_ROWS, len(links)))
            own, held = space.encode_queries(items), links[items]
            closest = np.full(len(items), -1.0, np.float32)
            for first in range(0, len(changed), _LINK_ROWS):
                others = space.encode_candidates(changed[first : first + _LINK_ROWS])
                closest = np.maximum(closest, space.cosines(own, others).max(axis=1))
            last = space.encode_queries(np.maximum(held[:, -1], 0))
            worst = np.where(held[:, -1] >= 0, space.paired_cosines(own, last), 0.0)
            entered = closest >= worst - _COSINE_MARGIN
            found[items] = (entered | np.isin(held, changed).any(axis=1)) & self.linking(items)
        return found


def fill_tables(catalog: CurrentCatalog, params: Any, tables: Tables, adjust: Adjust) -> np.ndarray:
    """Vectors of every node; lists, layers and vectors are in `tables` then."""
    lists = tabled_lists(tables, catalog, catalog.num_nodes)
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
