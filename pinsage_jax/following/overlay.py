"""A graph with changed rows over one whose arrays stay as they are.

A row that an event touches is written anew, whole and ascending, into a pool; every other row
is read where it is.  So an event costs memory in proportion to the two rows that it touches,
and walks (overlay_walks.py) are those of the changed graph, bit for bit.  Items stay those of
the graph; new collections are numbered after the known ones.

Axis letters: N nodes of the changed graph, e events, R rows in the pool, P entries of the pool.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.neighborhoods import WalkTables

_FIRST_ENTRIES = 1 << 10


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeEvents:
    """Edges in the order of their arrival; the last event of an edge counts.

    Attributes:
      items: int32 [e], items of the graph.
      collections: int32 [e], counted from 0; numbers from the known ones on are new collections.
      removed: bool [e], whether the edge is removed and not added.
      weights: float32 [e], new weights of added edges; None for a graph without weights.
    """

    items: np.ndarray
    collections: np.ndarray
    removed: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items)


@dataclasses.dataclass(frozen=True, eq=False)
class AppliedEdges:
    """The edges that events changed, each once; the others were so already.

    Attributes:
      items, collections: int32 [a], collections as node ids.
      sizes: float64 [a], by how much the weight of the edge changed; 1 without weights.
    """

    items: np.ndarray
    collections: np.ndarray
    sizes: np.ndarray


class Overlay:
    """A changing graph.

    Attributes:
      num_items: items, which stay.
      num_collections: collections, with new ones.
      degree: int32 [N], edges of every node now.
    """

    def __init__(self, graph: Graph):
        """Begins with the edges of `graph`, which is not changed."""
        self._tables = WalkTables(graph)
        self.num_items, self.num_collections = graph.num_items, graph.num_collections
        self.weighted = graph.weights is not None
        self._weights = graph.weights
        self.degree = graph.degree()
        self._known = graph.num_nodes
        self._slot = np.full(graph.num_nodes, -1, np.int32)
        self._starts = np.zeros(_FIRST_ENTRIES, np.int64)
        self._ends = np.zeros(_FIRST_ENTRIES, np.int64)
        self._ids = np.empty(_FIRST_ENTRIES, np.int32)
        self._sums = np.empty(_FIRST_ENTRIES if self.weighted else 0, np.float64)
        self._rows = self._filled = 0

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.num_items + self.num_collections

    @property
    def kernel_arguments(self) -> tuple[tuple, tuple]:
        """The arguments `base` and `rows` of the kernels of this folder.

        base: (indptr int64, indices int32, cumulative float64) of the graph, as in
        sampling/kernels.py.  rows: (slot int32 [N], starts and ends int64 [R], ids int32 [P],
        sums float64 [P]): node u has the entries starts[s] to ends[s] of the pool where
        s = slot[u] is not negative, with running sums of weights where there are weights.
        """
        base = self._tables.indptr, self._tables.indices, self._tables.cumulative
        return base, (self._slot, self._starts, self._ends, self._ids, self._sums)

    def neighbors(self, node: int) -> np.ndarray:
        """Neighbors of a node now, int32 [degree], ascending."""
        slot = self._slot[node]
        if slot >= 0:
            return self._ids[self._starts[slot] : self._ends[slot]]
        return self._tables.indices[self._tables.indptr[node] : self._tables.indptr[node + 1]]

    def add_collections(self, count: int) -> None:
        """Numbers `count` new collections, without edges yet."""
        if not count:
            return
        first = self.num_nodes
        self.num_collections += count
        self.degree = np.concatenate([self.degree, np.zeros(count, np.int32)])
        self._slot = np.concatenate([self._slot, np.full(count, -1, np.int32)])
        for node in range(first, first + count):
            self._write(node, np.empty(0, np.int32), np.empty(0, np.float32))

    def apply(self, events: EdgeEvents) -> AppliedEdges:
        """Changes the rows of both ends of every edge that the events change.

        Raises:
          IndexError: an item or a collection has no number here.
        """
        pairs = np.stack([events.items, events.collections + np.int32(self.num_items)], axis=1)
        if len(pairs) and (
            pairs[:, 0].min() < 0 or pairs[:, 0].max() >= self.num_items
            or pairs[:, 1].min() < self.num_items or pairs[:, 1].max() >= self.num_nodes
        ):  # fmt: skip
            raise IndexError("an event names a node that is not numbered")
        # The last event of each edge, in the order of items and collections.
        reverse = np.unique(pairs[::-1], axis=0, return_index=True)[1]
        last = len(pairs) - 1 - reverse
        pairs, removed = pairs[last], events.removed[last]
        weights = np.ones(len(last), np.float32)
        if events.weights is not None:
            weights = events.weights[last]
        weights = np.where(removed, np.float32(0), weights)
        before = np.zeros(len(last), np.float32)
        bounds = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
        for begin, end in zip(bounds, [*bounds[1:], len(pairs)]):
            before[begin:end] = self._weights_in_row(pairs[begin, 0], pairs[begin:end, 1])
        changed = before != weights
        pairs, weights = pairs[changed], weights[changed]
        self._rewrite(pairs[:, 0], pairs[:, 1], weights)
        order = np.lexsort((pairs[:, 0], pairs[:, 1]))
        self._rewrite(pairs[order, 1], pairs[order, 0], weights[order])
        sizes = np.abs(weights.astype(np.float64) - before[changed])
        return AppliedEdges(
            np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), sizes
        )

    def rows_of(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of some nodes (int [n]): indptr int64 [n + 1] and indices int32."""
        nodes = np.ascontiguousarray(nodes, np.int32)
        indptr = np.concatenate([[0], np.cumsum(self.degree[nodes], dtype=np.int64)])
        indices = np.empty(indptr[-1], np.int32)
        _copy_rows(*self.kernel_arguments, nodes, indptr, indices)
        return indptr, indices

    def _row_weights(self, node: int) -> np.ndarray:
        """Weights float32 [degree] of a node's edges now; ones without weights."""
        if not self.weighted:
            return np.ones(len(self.neighbors(node)), np.float32)
        slot = self._slot[node]
        if slot < 0:
            assert self._weights is not None, "the graph has weights"
            return self._weights[self._tables.indptr[node] : self._tables.indptr[node + 1]]
        sums = self._sums[self._starts[slot] : self._ends[slot]]
        return np.diff(sums, prepend=0.0).astype(np.float32)

    def _weights_in_row(self, node: int, others: np.ndarray) -> np.ndarray:
        """Weights float32 [n] of the edges to `others`, ascending; 0 where there is none."""
        row = self.neighbors(node)
        if not len(row):
            return np.zeros(len(others), np.float32)
        place = np.minimum(np.searchsorted(row, others), len(row) - 1)
        return np.where(row[place] == others, self._row_weights(node)[place], np.float32(0))

    def _rewrite(self, nodes: np.ndarray, others: np.ndarray, weights: np.ndarray) -> None:
        """Sets edges of rows, sorted by node and then by other end; weight 0 removes one."""
        bounds = np.flatnonzero(np.diff(nodes, prepend=-1))
        for begin, end in zip(bounds, [*bounds[1:], len(nodes)]):
            node, given = nodes[begin], others[begin:end]
            row, old = self.neighbors(node), self._row_weights(node)
            stays = ~np.isin(row, given, assume_unique=True)
            added = weights[begin:end] > 0
            ids = np.concatenate([row[stays], given[added]])
            order = np.argsort(ids, kind="stable")
            values = np.concatenate([old[stays], weights[begin:end][added]])
            self._write(node, ids[order], values[order])

    def _write(self, node: int, ids: np.ndarray, weights: np.ndarray) -> None:
        """Puts the row of a node into the pool, behind all others."""
        slot = self._slot[node]
        if slot < 0:
            slot = self._slot[node] = self._rows
            self._rows += 1
            self._starts = _grown(self._starts, self._rows)
            self._ends = _grown(self._ends, self._rows)
        begin = self._filled
        self._filled += len(ids)
        if self._filled > len(self._ids):
            begin = self._compact(node, len(ids))
        self._ids[begin : self._filled] = ids
        if self.weighted:
            self._sums[begin : self._filled] = np.cumsum(weights, dtype=np.float64)
        self._starts[slot], self._ends[slot] = begin, self._filled
        self.degree[node] = len(ids)

    def _compact(self, replaced: int, size: int) -> int:
        """Moves the rows in use to the front of a pool with room for `size` more entries.

        Args:
          replaced: the node whose row is about to be written, and is not kept.

        Returns:
          Where the `size` entries begin; `_filled` is where they end.
        """
        self._ends[self._slot[replaced]] = self._starts[self._slot[replaced]]
        used = int((self._ends[: self._rows] - self._starts[: self._rows]).sum())
        room = max(2 * (used + size), _FIRST_ENTRIES)
        ids, sums = np.empty(room, np.int32), np.empty(room if self.weighted else 0, np.float64)
        done = 0
        for slot in range(self._rows):
            begin, end = self._starts[slot], self._ends[slot]
            count = end - begin
            ids[done : done + count] = self._ids[begin:end]
            if self.weighted:
                sums[done : done + count] = self._sums[begin:end]
            self._starts[slot], self._ends[slot] = done, done + count
            done += count
        self._ids, self._sums, self._filled = ids, sums, done + size
        return done


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    """The array, or a copy of at least twice its length that holds `size` entries."""
    if size <= len(array):
        return array
    return np.concatenate([array, np.zeros(max(len(array), size - len(array)), array.dtype)])


@njit(nogil=True, cache=True)
def _copy_rows(base, rows, nodes, indptr, out):
    """Copies the rows of nodes int32 [n] to out[indptr[i] : indptr[i + 1]]."""
    for index in range(nodes.shape[0]):
        node = nodes[index]
        slot = rows[0][node]
        for place in range(indptr[index + 1] - indptr[index]):
            if slot >= 0:
                out[indptr[index] + place] = rows[3][rows[1][slot] + place]
            else:
                out[indptr[index] + place] = base[1][base[0][node] + place]
