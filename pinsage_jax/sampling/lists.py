"""Neighbor lists with pooling weights, for training and for inference.

A list holds the T neighbors of the random walks and then C content links.  The same class
computes the lists of a minibatch and of the whole catalog, so that inference pools with
the same weights as training.

Axis letters: N nodes, n rows, T walk neighbors, C content links.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.config.settings import Config
from pinsage_jax.sampling.content_links import ContentLinks, blend
from pinsage_jax.sampling.neighborhoods import pooling_weights
from pinsage_jax.sampling.store import NeighborhoodSource

_ROWS_PER_BLOCK = 1 << 16


class NeighborLists:
    """The neighbor lists [n, T+C] of the nodes of one graph.

    Attributes:
      source: source of the walk neighborhoods.
      pooling: importance, mean or max; see neighborhoods.pooling_weights.
      kappa: weight of the content links; see content_links.blend.
      width: T + C.
    """

    def __init__(
        self,
        source: NeighborhoodSource,
        pooling: str,
        links: ContentLinks | None = None,
        kappa: float = 0.0,
    ):
        self.source = source
        self._links = links or ContentLinks.none(source.graph.num_items)
        self.pooling = pooling
        self.kappa = kappa
        self._degree = source.graph.degree()
        self.width = source.sampling.num_neighbors + self._links.ids.shape[1]

    @classmethod
    def from_config(
        cls, source: NeighborhoodSource, links: ContentLinks, config: Config
    ) -> NeighborLists:
        """Lists with the pooling and the weight of links of `config`."""
        return cls(source, config.model.pooling, links, config.sampling.content_kappa)

    def with_num_walks(self, num_walks: int) -> NeighborLists:
        """The same lists, estimated with another number of walks per node."""
        source = self.source
        if num_walks == source.sampling.num_walks:
            return self
        sampling = dataclasses.replace(source.sampling, num_walks=num_walks)
        return NeighborLists(source.with_config(sampling), self.pooling, self._links, self.kappa)

    def all_rows(self) -> tuple[np.ndarray | ListColumn, np.ndarray | ListColumn]:
        """The lists of all nodes: ids int32 [N, T+C] and weights float32 [N, T+C].

        They are arrays if the source caches its neighborhoods in memory.  Otherwise there are
        too many, and they are ListColumn objects, which compute the rows that are read.
        """
        self.source.materialize()
        if self.source.store != "memory":
            rows = _RowCache(self)
            return ListColumn(rows, 0), ListColumn(rows, 1)
        size = (self.source.num_nodes, self.width)
        ids, weights = np.empty(size, np.int32), np.empty(size, np.float32)
        for begin in range(0, size[0], _ROWS_PER_BLOCK):
            nodes = np.arange(begin, min(begin + _ROWS_PER_BLOCK, size[0]), dtype=np.int32)
            span = slice(nodes[0], nodes[-1] + 1)
            ids[span], weights[span] = self.lookup(nodes)
        return ids, weights

    def lookup(
        self,
        nodes: np.ndarray,
        epoch: int = 0,
        masked_collection: np.ndarray | None = None,
        masked_neighbor: np.ndarray | None = None,
        isolated: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Neighbors and pooling weights of `nodes` (int32 [n]).

        Args:
          nodes: int32 [n].
          epoch, masked_collection, masked_neighbor: as in NeighborhoodSource.lookup.
          isolated: bool [n], nodes to treat as if they had no edges (edge dropout).

        Returns:
          (ids, weights): int32 [n, T+C] padded with -1, and float32 [n, T+C], rows of which
          sum to 1, or to 0 for an empty list.
        """
        walked = self.source.lookup(nodes, epoch, masked_collection, masked_neighbor)
        shares = pooling_weights(walked.counts, self.pooling)
        edges = self._degree[nodes]
        if masked_collection is not None:
            edges = edges - (masked_collection >= 0)
        ids = walked.ids
        if isolated is not None:
            shares = np.where(isolated[:, None], np.float32(0.0), shares)
            ids = np.where(isolated[:, None], np.int32(-1), ids)
        if not self._links.ids.shape[1]:
            return ids, shares
        link_ids, link_shares = self.lookup_links(nodes)
        if masked_neighbor is not None:
            link_ids = np.where(link_ids == masked_neighbor[:, None], np.int32(-1), link_ids)
            link_shares = np.where(link_ids >= 0, link_shares, np.float32(0.0))
            # The remaining links are normalized to sum to 1 again.
            link_shares /= np.maximum(link_shares.sum(axis=1, keepdims=True), np.float32(1e-12))
        links = link_ids, link_shares
        return append_links((ids, shares), links, edges, self.pooling, self.kappa)

    def lookup_links(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Content links of `nodes` (int32 [n]).

        Returns:
          (ids, shares): int32 [n, C] padded with -1, and float32 [n, C].
        """
        items = nodes < self._links.num_items
        ids, shares = self._links.lookup(np.where(items, nodes, 0))
        ids = np.where(items[:, None], ids, np.int32(-1))
        return ids, np.where(ids >= 0, shares, np.float32(0.0))


def append_links(
    walked: tuple[np.ndarray, np.ndarray],
    links: tuple[np.ndarray, np.ndarray],
    edges: np.ndarray,
    pooling: str,
    kappa: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Appends content links to walk neighbors: ids int32 and weights float32, [n, T+C] each.

    Args:
      walked: ids int32 [n, T] and pooling weights float32 [n, T] of the walk neighbors.
      links: ids int32 [n, C] and shares float32 [n, C] of the content links, C at least 1.
      edges: int32 [n], visible edges of each node.
      pooling, kappa: as in NeighborLists.
    """
    weights = blend(walked[1], links[1], edges, kappa)
    if pooling != "importance":
        weights = pooling_weights((weights > 0).astype(np.int32), pooling)
    return np.concatenate([walked[0], links[0]], axis=1), weights


class _RowCache:
    """Computes lists and caches the rows of the last read, of which two columns are read."""

    def __init__(self, lists: NeighborLists):
        self._lists = lists
        self._span, self._rows = (0, 0), lists.lookup(np.empty(0, np.int32))
        self.shape = (lists.source.num_nodes, lists.width)

    def read(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        if self._span != (begin, end):
            self._rows = self._lists.lookup(np.arange(begin, end, dtype=np.int32))
            self._span = (begin, end)
        return self._rows

    def release(self) -> None:
        self._lists.source.release()


class ListColumn:
    """Ids or weights [N, T+C] of neighbor lists, computed when rows are read; not thread-safe.

    Attributes:
      shape: (N, T+C).
    """

    def __init__(self, rows: _RowCache, part: int):
        """Takes the rows, and 0 for the ids or 1 for the weights."""
        self._rows, self._part = rows, part
        self.shape = rows.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Consecutive rows as an array.

        Raises:
          IndexError: the slice has a step.
        """
        begin, end, step = rows.indices(self.shape[0])
        if step != 1:
            raise IndexError("rows are read in order")
        return self._rows.read(begin, max(begin, end))[self._part]

    def release(self) -> None:
        """Drops what was read from the memory of the process, as far as it is mapped."""
        self._rows.release()
