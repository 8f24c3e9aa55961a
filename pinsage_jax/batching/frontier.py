"""The nodes of a minibatch: the seeds, followed layer by layer by their neighbors.

Algorithm 2 of the paper (Ying et al. 2018), lines 1-7: S(K) are the seeds and S(k-1) is
S(k) with all its neighbors.  blocks.py says how the frontiers are laid out, and
block_kernels.py what a row is.

Axis letters: n_k rows of S(k) with padding, T neighbors, N nodes of the model.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator

import numpy as np

from pinsage_jax.batching import block_kernels

# (nodes, masked_collection, masked_neighbor), int32 [n] each, to neighbor ids int32 [n, T],
# weights float32 [n, T], and bool [n]: rows whose edges were dropped.
ListNeighbors = Callable[
    [np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]
]


class Frontier:
    """The growing node set of one minibatch.

    Attributes:
      rows: most rows of each frontier, seeds first: (n_K, ..., n_0).
      nodes: int32 [n_0], the node of each row; -1 is padding.
      masked_collection: int32 [n_0], the collection that the row must not see, or -1.
      neighbors: int32 [n_1, T], neighbors as rows of this frontier; weights: float32.
      end: rows laid out so far, with the padding between frontiers.
      used: rows that each frontier really added.
      left_out: neighbors for which no row was left.
    """

    def __init__(
        self,
        rows: tuple[int, ...],
        num_neighbors: int,
        unmasked_row: np.ndarray,
        padded: bool = True,
    ):
        """Starts with no node.

        Args:
          num_neighbors: T.
          unmasked_row: int32 [N] of zeros, written to; see block_kernels.insert_seeds.
          padded: whether a frontier begins where the budget of the one before it ends,
            or follows without a gap (trial batches).
        """
        # Only seeds have masks, so the hash table holds no more than their rows.
        capacity = 4
        while capacity < 2 * rows[0]:
            capacity *= 2
        self.rows = rows
        self._padded = padded
        self._unmasked_row = unmasked_row
        self._table = np.full(capacity, -1, np.int32)
        self.nodes = np.full(rows[-1], -1, np.int32)
        self.masked_collection = np.full(rows[-1], -1, np.int32)
        self._masked_neighbor = np.full(rows[-1], -1, np.int32)
        listed = rows[-2] if len(rows) > 1 else 0
        self.neighbors = np.full((listed, num_neighbors), -1, np.int32)
        self.weights = np.zeros((listed, num_neighbors), np.float32)
        self.end = 0
        self.used: list[int] = []
        self.left_out = 0

    def add_seeds(
        self,
        wanted: np.ndarray,
        masked_collection: np.ndarray | None = None,
        masked_neighbor: np.ndarray | None = None,
    ) -> np.ndarray:
        """Adds nodes int32 [S] (-1: none) with their masks (None: no mask).

        Returns:
          int32 [S] rows of the frontier, -1 where there is no node or no row was left.
        """
        wanted = np.ascontiguousarray(wanted, np.int32)
        none = np.full(wanted.shape, -1, np.int32)
        found = np.empty(wanted.shape, np.int32)
        self.end, missing = block_kernels.insert_seeds(
            wanted,
            none if masked_collection is None else masked_collection,
            none if masked_neighbor is None else masked_neighbor,
            self.rows[0],
            self.nodes,
            self.masked_collection,
            self._masked_neighbor,
            self._unmasked_row,
            self._table,
            self.end,
            found,
        )
        self.left_out += missing
        return found

    def expand(self, list_neighbors: ListNeighbors) -> np.ndarray:
        """Adds the neighbors of every frontier in turn (Algorithm 2, lines 2-7).

        Returns:
          bool [rows with a list], rows whose edges were dropped.
        """
        self.used.append(self.end)
        dropped_edges = [np.zeros(0, np.bool_)]
        listed = 0
        for layer in range(len(self.rows) - 1):
            last = self.end
            rows = slice(listed, last)
            ids, weights, dropped = list_neighbors(
                self.nodes[rows], self.masked_collection[rows], self._masked_neighbor[rows]
            )
            # The padding of S(k) stays between its rows and the new ones, so that
            # S(k) is a prefix of S(k-1) at a fixed size.
            begin = self.rows[layer] if self._padded else last
            dropped_edges += [dropped, np.zeros(begin - last, np.bool_)]
            self._insert_neighbors(layer, rows, begin, ids, weights)
            self.used.append(self.end - begin)
            listed = begin
        return np.concatenate(dropped_edges)

    def _insert_neighbors(
        self, layer: int, rows: slice, begin: int, ids: np.ndarray, weights: np.ndarray
    ) -> None:
        """Adds the neighbors of `rows` from row `begin` on, and writes their lists."""
        self.end, missing = block_kernels.insert_neighbors(
            ids,
            rows.start,
            rows.stop,
            self.rows[layer + 1],
            self.nodes,
            self._unmasked_row,
            begin,
            self.neighbors,
        )
        self.weights[rows] = weights
        if missing:
            kept = np.where(self.neighbors[rows] >= 0, weights, np.float32(0.0))
            total = kept.sum(axis=1, keepdims=True)
            self.weights[rows] = kept / np.where(total > 0, total, 1.0)
            self.left_out += missing


class FrontierPool:
    """Makes frontiers that share reusable tables over all nodes; thread-safe."""

    def __init__(self, num_nodes: int, num_neighbors: int):
        """Takes N and T; allocates nothing yet."""
        self._num_nodes, self._num_neighbors = num_nodes, num_neighbors
        self._spare: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    @contextlib.contextmanager
    def frontier(self, rows: tuple[int, ...], padded: bool = True) -> Iterator[Frontier]:
        """An empty frontier, valid within the `with` block; its arrays stay valid after it.

        Args:
          rows, padded: as in Frontier.
        """
        try:
            unmasked_row = self._spare.get_nowait()
        except queue.Empty:
            # Of zeros: the system makes its pages when they are first written.
            unmasked_row = np.zeros(self._num_nodes, np.int32)
        frontier = Frontier(rows, self._num_neighbors, unmasked_row, padded)
        yield frontier
        block_kernels.clear(frontier.nodes, frontier.end, unmasked_row)
        self._spare.put(unmasked_row)
