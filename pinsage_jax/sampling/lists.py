"""Neighbor lists with pooling weights: what training and inference both pool over.

A list is the walk's top T, followed by C content links when there are any.  One
class makes them for a minibatch and for the whole catalog, so that inference uses
the weights that training saw.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.config.settings import Config
from pinsage_jax.sampling.content_links import ContentLinks, blend
from pinsage_jax.sampling.neighborhoods import pooling_weights
from pinsage_jax.sampling.store import NeighborhoodSource

_ROWS_AT_ONCE = 1 << 16


class NeighborLists:
    """Lists [n, T+C] of nodes of one graph.

    Attributes:
      source: where walk neighborhoods come from.
      pooling, kappa: how weights follow from visits, and how links are blended in.
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
    def made_of(
        cls, source: NeighborhoodSource, links: ContentLinks, config: Config
    ) -> NeighborLists:
        """Lists with the pooling and the blend of `config`."""
        return cls(source, config.model.pooling, links, config.sampling.content_kappa)

    def with_walks(self, num_walks: int) -> NeighborLists:
        """The same kind of lists from another number of walks per node."""
        source = self.source
        if num_walks == source.sampling.num_walks:
            return self
        other = source.like(dataclasses.replace(source.sampling, num_walks=num_walks))
        return NeighborLists(other, self.pooling, self._links, self.kappa)

    def all_rows(self) -> tuple[np.ndarray | ListColumn, np.ndarray | ListColumn]:
        """Lists of every node: ids int32 [N, T+C] and weights float32 [N, T+C].

        Arrays if the source keeps its neighborhoods in memory.  If it does not, because
        they are too many, columns that make rows when rows are read.
        """
        self.source.materialize()
        if self.source.store != "memory":
            rows = _LastRows(self)
            return ListColumn(rows, 0), ListColumn(rows, 1)
        size = (self.source.num_nodes, self.width)
        ids, weights = np.empty(size, np.int32), np.empty(size, np.float32)
        for begin in range(0, size[0], _ROWS_AT_ONCE):
            some = np.arange(begin, min(begin + _ROWS_AT_ONCE, size[0]), dtype=np.int32)
            ids[some[0] : some[-1] + 1], weights[some[0] : some[-1] + 1] = self.of(some)
        return ids, weights

    def of(
        self,
        nodes: np.ndarray,
        epoch: int = 0,
        hidden: np.ndarray | None = None,
        dropped: np.ndarray | None = None,
        edgeless: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Neighbors and weights of `nodes` (int32 [n]).

        Args:
          epoch, hidden, dropped: as in NeighborhoodSource.lookup.
          edgeless: bool [n], nodes listed as if they had no edges.

        Returns:
          ids int32 [n, T+C], -1 where short; weights float32 [n, T+C], rows summing
          to 1, or to 0 for an empty list.
        """
        found = self.source.lookup(nodes, epoch, hidden, dropped)
        shares = pooling_weights(found.counts, self.pooling)
        edges = self._degree[nodes]
        if hidden is not None:
            edges = edges - (hidden >= 0)
        ids = found.ids
        if edgeless is not None:
            shares = np.where(edgeless[:, None], np.float32(0.0), shares)
            ids = np.where(edgeless[:, None], np.int32(-1), ids)
        if not self._links.ids.shape[1]:
            return ids, shares
        link_ids, link_shares = self.links_of(nodes)
        if dropped is not None:
            link_ids = np.where(link_ids == dropped[:, None], np.int32(-1), link_ids)
            link_shares = np.where(link_ids >= 0, link_shares, np.float32(0.0))
            # The links that are left share out what the dropped one had.
            link_shares /= np.maximum(link_shares.sum(axis=1, keepdims=True), np.float32(1e-12))
        return joined_lists((ids, shares), (link_ids, link_shares), edges, self.pooling, self.kappa)

    def links_of(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Content links of `nodes` (int32 [n]): ids int32 [n, C], -1 for none, and shares."""
        items = nodes < self._links.num_items
        ids, shares = self._links.of(np.where(items, nodes, 0))
        ids = np.where(items[:, None], ids, np.int32(-1))
        return ids, np.where(ids >= 0, shares, np.float32(0.0))


def joined_lists(
    walked: tuple[np.ndarray, np.ndarray],
    links: tuple[np.ndarray, np.ndarray],
    edges: np.ndarray,
    pooling: str,
    kappa: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of walk neighbors and content links: ids and weights [n, T+C].

    Args:
      walked: ids int32 [n, T] and pooling weights float32 [n, T].
      links: ids int32 [n, C] and shares float32 [n, C], C at least 1.
      edges: int32 [n] edges that may be seen.
      pooling, kappa: as in NeighborLists.
    """
    weights = blend(walked[1], links[1], edges, kappa)
    if pooling != "importance":
        weights = pooling_weights((weights > 0).astype(np.int32), pooling)
    return np.concatenate([walked[0], links[0]], axis=1), weights


class _LastRows:
    """The lists of the rows that were read last; ids and weights are made together."""

    def __init__(self, lists: NeighborLists):
        self._lists = lists
        self._span, self._made = (0, 0), lists.of(np.empty(0, np.int32))
        self.shape = (lists.source.num_nodes, lists.width)

    def read(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        if self._span != (begin, end):
            self._made = self._lists.of(np.arange(begin, end, dtype=np.int32))
            self._span = (begin, end)
        return self._made


class ListColumn:
    """Ids or weights [N, T+C] of lists that are made when rows are read; for one thread.

    Attributes:
      shape: (N, T+C).
    """

    def __init__(self, rows: _LastRows, part: int):
        self._rows, self._part = rows, part
        self.shape = rows.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Consecutive rows, as an array."""
        begin, end, step = rows.indices(self.shape[0])
        if step != 1:
            raise IndexError("rows are read in order")
        return self._rows.read(begin, max(begin, end))[self._part]
