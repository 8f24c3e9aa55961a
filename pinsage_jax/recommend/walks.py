"""Random-walk baseline for recommendation, with the multi-hit boost.

Walks start at every item of a history.  An item that is reached from several history items
scores higher than one that is reached equally often from a single item (Pixie,
Eksombatchai et al. 2018, section 3.1):

  score(i) = (sum over items h of the history of sqrt(visits of i from h)) ** 2

The scorer returns the sum of the roots, which gives the same order.

  U users, N items, R distinct items of the histories
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.recommend.scores import Histories, Tile
from pinsage_jax.sampling.neighborhoods import visit_scores

# Start items per call: each has a padded list of visits of the maximum possible length.
_ITEM_BLOCK = 2048
_MAX_USERS = 1 << 12


class HistoryWalk:
    """Visit counts of walks from all items of a history, combined with the multi-hit boost."""

    name = "walk"
    max_users = _MAX_USERS

    def __init__(self, graph: Graph, sampling: SamplingConfig, seed: int, threads: int):
        """Takes the training graph and the settings of the walks from each item."""
        self._graph, self._sampling = graph, sampling
        self._seed, self._threads = seed, threads

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile with one row per distinct history item: roots of its visit counts."""
        used, rows = np.unique(histories.items, return_inverse=True)
        roots = sparse.csc_array(self.visit_roots(used.astype(np.int32)))

        def block(columns: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            similarities = roots[:, columns].toarray()
            return similarities, np.ones((1, similarities.shape[1]), np.float32)

        weights = np.ones(len(rows), np.float32)
        return Tile(histories.indptr, rows.astype(np.int32), weights, block)

    def visit_roots(self, items: np.ndarray) -> sparse.csr_array:
        """Square roots float32 [R, N] of the visit counts of walks from items int32 [R]."""
        parts = [sparse.csr_array((0, self._graph.num_items), dtype=np.float32)]
        for start in range(0, len(items), _ITEM_BLOCK):
            queries = items[start : start + _ITEM_BLOCK]
            ids, counts = visit_scores(
                self._graph,
                queries,
                self._sampling,
                self._seed,
                self._sampling.num_walks,
                self._threads,
            )
            rows, columns = np.nonzero(ids >= 0)
            values = np.sqrt(counts[rows, columns].astype(np.float32))
            shape = (len(queries), self._graph.num_items)
            parts.append(sparse.csr_array((values, (rows, ids[rows, columns])), shape=shape))
        return sparse.csr_array(sparse.vstack(parts))
