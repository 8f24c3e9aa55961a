"""Random walks as a rival at recommending for histories, with the multi-hit boost.

Walks start at every item of a history; an item that several of them reach is worth
more than one that a single item reaches as often in all (Pixie, Eksombatchai et al.
2018, section 3.1):

  score(i) = (sum over items h of the history of sqrt(visits of i from h)) ** 2

Recommendations are ordered by the sum of roots, which is the same order.

  U users, N items, R distinct items of the histories, W walks from each
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.recommend.scores import Histories, Tile
from pinsage_jax.sampling.neighborhoods import visit_scores

# Items walked from at once: their visits are held padded to the longest list possible.
_ITEMS_AT_ONCE = 2048
_MOST_USERS = 1 << 12


class HistoryWalk:
    """Visit counts of walks from all items of a history, added up with the multi-hit boost."""

    name = "walk"
    most_users = _MOST_USERS

    def __init__(self, graph: Graph, sampling: SamplingConfig, seed: int, threads: int):
        """Takes the training graph; `sampling` tells the walks from each item."""
        self._graph, self._sampling = graph, sampling
        self._seed, self._threads = seed, threads

    def tile(self, histories: Histories) -> Tile:
        """One row an item of any of the histories: the roots of its visit counts."""
        used, rows = np.unique(histories.items, return_inverse=True)
        roots = sparse.csc_array(self.roots(used.astype(np.int32)))

        def block(columns: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found = roots[:, columns].toarray()
            return found, np.ones((1, found.shape[1]), np.float32)

        weights = np.ones(len(rows), np.float32)
        return Tile(histories.indptr, rows.astype(np.int32), weights, block)

    def roots(self, items: np.ndarray) -> sparse.csr_array:
        """float32 [R, N]: the square root of how often walks from `items` visit each item."""
        parts = [sparse.csr_array((0, self._graph.num_items), dtype=np.float32)]
        for start in range(0, len(items), _ITEMS_AT_ONCE):
            queries = items[start : start + _ITEMS_AT_ONCE]
            ids, counts = visit_scores(
                self._graph,
                queries,
                self._sampling,
                self._seed,
                self._sampling.num_walks,
                self._threads,
            )
            rows, places = np.nonzero(ids >= 0)
            values = np.sqrt(counts[rows, places].astype(np.float32))
            shape = (len(queries), self._graph.num_items)
            parts.append(sparse.csr_array((values, (rows, ids[rows, places])), shape=shape))
        return sparse.csr_array(sparse.vstack(parts))
