"""Caches the neighbor lists of one epoch; a list is sampled when it is first looked up.

Random walks are keyed by (seed, epoch, node, walk), so a node has the same list in all
minibatches of an epoch, and walking it again would only repeat the work.  The minibatches
contain most well-connected nodes every few steps, so re-sampling every epoch costs about
one walk per node and epoch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np


class EpochLists:
    """A table of neighbor lists that is filled on demand; thread-safe.

    Attributes:
      epoch: the epoch of the lists.
    """

    def __init__(self, epoch: int, num_nodes: int, width: int):
        """An empty table; the system allocates its pages when they are first written.

        Args:
          epoch: the epoch of the lists.
          num_nodes: N, number of nodes.
          width: T, length of a list.
        """
        self.epoch = epoch
        self._ids = np.empty((num_nodes, width), np.int32)
        self._counts = np.empty((num_nodes, width), np.int32)
        self._filled = np.zeros(num_nodes, np.bool_)
        # A thread reads a row only after it has seen it marked as filled under this lock, under
        # which it was marked.
        self._lock = threading.Lock()

    def lookup(
        self,
        nodes: np.ndarray,
        skip: np.ndarray,
        walk: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The lists of `nodes` (int32 [S]): ids and counts, int32 [S, T] each.

        A node that two threads miss, or that one call contains twice, is walked twice with
        the same result.

        Args:
          nodes: int32 [S].
          skip: bool [S]; skipped rows may hold anything, since the caller overwrites them.
          walk: maps nodes int32 [s] to their ids and counts, int32 [s, T] each.
        """
        with self._lock:
            missing = ~(self._filled[nodes] | skip)
        if missing.any():
            new = nodes[missing]
            self._ids[new], self._counts[new] = walk(new)
            with self._lock:
                self._filled[new] = True
        return self._ids[nodes], self._counts[nodes]
