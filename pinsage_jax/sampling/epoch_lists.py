"""Lists of one epoch, walked when first asked for and kept while the epoch lasts.

Walks are keyed by (seed, epoch, node, walk), so a node that several minibatches of an
epoch meet has one and the same list in all of them: walking it again would repeat the
work, not the draw.  Minibatches of K layers name most well-connected nodes every few
steps, so that re-sampling every epoch costs one round of walks an epoch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np


class EpochLists:
    """A table of lists that fills as rows are asked for; for any number of threads.

    Attributes:
      epoch: whose walks are kept.
    """

    def __init__(self, epoch: int, num_nodes: int, width: int):
        """Starts with no row: the system makes the table's pages when they are written.

        Args:
          num_nodes, width: N and T.
        """
        self.epoch = epoch
        self._ids = np.empty((num_nodes, width), np.int32)
        self._counts = np.empty((num_nodes, width), np.int32)
        self._made = np.zeros(num_nodes, np.bool_)
        # A row is read only by who saw it marked, under the lock that marked it.
        self._lock = threading.Lock()

    def take(
        self,
        nodes: np.ndarray,
        unwanted: np.ndarray,
        walk: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lists of `nodes`, int32 [S]: ids and counts, int32 [S, T].

        A node missed by two threads, or twice in one call, is walked twice to the same bits.

        Args:
          unwanted: bool [S], rows that may hold anything: the caller walks them itself.
          walk: nodes int32 [s] -> ids, counts [s, T] of this epoch.
        """
        with self._lock:
            missing = ~(self._made[nodes] | unwanted)
        if missing.any():
            absent = nodes[missing]
            self._ids[absent], self._counts[absent] = walk(absent)
            with self._lock:
                self._made[absent] = True
        return self._ids[nodes], self._counts[nodes]
