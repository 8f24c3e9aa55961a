"""Embeddings that follow edges as they arrive.

Edges go into an overlay of the graph, and degrees and spectral features follow at once.  A list
is made again when the share of its walks that may have changed since it was made exceeds the
tolerance (overlay_walks.py), and the item is embedded again with it.  So

* with a tolerance near 0 and one layer, every vector is that of the changed graph, but for
  spectral features of neighbors, which reach a vector when its list is made again;
* otherwise a vector is that of an earlier state of the graph, from which at most the tolerance
  of its walks differ, and of two layers the lists of the neighbors are those of now.

What training fitted stays, as in inference/current_catalog.py.  New items are not followed: they
have features, which a table brings (--changed_items).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pinsage_jax.following.overlay import AppliedEdges, EdgeEvents, Overlay
from pinsage_jax.following.overlay_walks import StaleShares, visit_counts
from pinsage_jax.inference.current_catalog import CurrentCatalog
from pinsage_jax.inference.layerwise import PassOptions, embed_some
from pinsage_jax.sampling.content_links import content_links
from pinsage_jax.sampling.lists import append_links
from pinsage_jax.sampling.neighborhoods import pooling_weights

# The spread of a change ends below this part of the tolerance.
_SPREAD_UNTIL = 0.05
_ROWS = 1 << 12
_CACHED_LINKS = 1 << 18


class Follower:
    """A trained network over a changing graph.

    Attributes:
      overlay: the graph now.
    """

    def __init__(
        self,
        catalog: CurrentCatalog,
        bases: np.ndarray,
        params: Any,
        cold_start_bias: float,
        tolerance: float,
    ):
        """Begins with the catalog as it was embedded.

        Args:
          catalog: is changed: its degrees and spectral features follow the events.
          bases: float32 [items, r], the base vectors of the spectral features.
          params: parameters of the network, as it was trained.
          cold_start_bias: added to the last coordinate of items without edges.
          tolerance: the share of a list's walks that may be out of date.
        """
        config = catalog.config
        walks = config.embed.embed_walks or config.sampling.num_walks
        self._sampling = dataclasses.replace(config.sampling, num_walks=walks)
        self._catalog, self._bases = catalog, bases
        self._params, self._bias = catalog.params(params), cold_start_bias
        self._tolerance = tolerance
        self.overlay = Overlay(catalog.graph)
        self._stale = StaleShares(self.overlay, self._sampling, _SPREAD_UNTIL * tolerance)
        self._links: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def apply(self, events: EdgeEvents, new_collections: int = 0) -> int:
        """Changes the graph; embeddings follow with `refreshed`.

        Args:
          events: edges of known items, and of known and new collections.
          new_collections: number of collections that are new; they are numbered behind the
            known ones.

        Returns:
          The number of edges that are other than before.
        """
        self.overlay.add_collections(new_collections)
        applied = self.overlay.apply(events)
        if len(applied.items):
            self._follow_inputs(applied)
            self._stale.add(applied)
        return len(applied.items)

    def refreshed(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeds again what is too old by now.

        Returns:
          The items int32 [n], ascending, and their embeddings float32 [n, Z], not encoded for an
          export.
        """
        rows = np.flatnonzero(self._stale.shares > self._tolerance).astype(np.int32)
        vectors = np.empty((len(rows), self._catalog.config.model.output_dim), np.float32)
        for begin in range(0, len(rows), _ROWS):
            some = rows[begin : begin + _ROWS]
            vectors[begin : begin + _ROWS] = self._embed(some)
            self._stale.shares[some] = 0.0
        return rows, vectors

    def _follow_inputs(self, applied: AppliedEdges) -> None:
        """Brings degrees and spectral features up to date."""
        catalog, overlay = self._catalog, self.overlay
        items = np.unique(applied.items)
        catalog.degree[items] = overlay.degree[items]
        if catalog.spectral is None:
            return
        collections = np.unique(applied.collections)
        rows = overlay.rows_of(collections)
        catalog.spectral.refresh_collections(collections - overlay.num_items, rows, self._bases)
        members = np.union1d(rows[1], items)
        catalog.spectral.refresh_items(members, overlay.rows_of(members))

    def _embed(self, nodes: np.ndarray) -> np.ndarray:
        config, catalog = self._catalog.config, self._catalog
        options = PassOptions(config.embed.embed_block, config.host_threads, quiet=True)
        vectors = embed_some(config.model, self._params, catalog.inputs, self.lists, nodes, options)
        vectors[catalog.isolated(nodes), -1] += np.float32(self._bias)
        return vectors

    def lists(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lists of items int32 [n] now: ids int32 [n, W] and pooling weights float32."""
        config, catalog = self._catalog.config, self._catalog
        threads, pooling = config.host_threads, config.model.pooling
        ids, counts = visit_counts(self.overlay, nodes, self._sampling, config.seed, threads)
        shares = pooling_weights(counts, pooling)
        if not catalog.num_links:
            return ids, shares
        links, kappa = self._links_of(nodes), config.sampling.content_kappa
        return append_links((ids, shares), links, catalog.degree[nodes], pooling, kappa)

    def _links_of(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Content links of items: ids int32 and shares float32, [n, C] each."""
        catalog, size = self._catalog, self._catalog.num_links
        ids = np.full((len(nodes), size), -1, np.int32)
        shares = np.zeros((len(nodes), size), np.float32)
        has_links = catalog.has_links(nodes)
        unknown = [node for node in nodes[has_links].tolist() if node not in self._links]
        if unknown:
            # Features and the items that links may lead to do not change.
            threads = catalog.config.host_threads
            found = content_links(
                catalog.link_rows, np.array(unknown), catalog.link_candidates, size, threads
            )
            if len(self._links) > _CACHED_LINKS:
                self._links.clear()
                return self._links_of(nodes)
            self._links.update(zip(unknown, zip(*found)))
        for row in np.flatnonzero(has_links):
            ids[row], shares[row] = self._links[int(nodes[row])]
        return ids, shares
