"""Numba kernels that keep the k best scores of every query, a block of columns at a time.

On a CPU XLA's top_k sorts, which costs several times the product that made the scores.
Here one pass compares them with the worst of the best so far; few are better once some
columns were seen, and only those enter a heap.

Rows of a heap: the worst at its root, that is the lowest score and of equal ones the
highest id.  Blocks come in the order of ids, so that an equal score never enters a full
heap.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Scores compared before any is looked at alone.
_CHUNK = 64


@njit(nogil=True, cache=True)
def _is_worse(score, name, other_score, other_name):
    return score < other_score or (score == other_score and name > other_name)


@njit(nogil=True, cache=True)
def _sink(scores, ids, root, size):
    """Moves the root down to where no child is worse."""
    while True:
        child = 2 * root + 1
        if child >= size:
            return
        if child + 1 < size and _is_worse(
            scores[child + 1], ids[child + 1], scores[child], ids[child]
        ):
            child += 1
        if not _is_worse(scores[child], ids[child], scores[root], ids[root]):
            return
        scores[root], scores[child] = scores[child], scores[root]
        ids[root], ids[child] = ids[child], ids[root]
        root = child


@njit(nogil=True, cache=True)
def keep_best(scores, columns, first, best_scores, best_ids):
    """Offers `columns` columns of every row to the row's heap.

    Args:
      scores: float32 [q, c]; column j is of id first + j; NaN never enters.
      columns: how many columns are real.
      best_scores: float32 [q, k], best_ids: int32 [q, k]; at first -inf and -1, later
        heaps of what was seen.
    """
    size = best_scores.shape[1]
    for row in range(scores.shape[0]):
        line, heap, names = scores[row], best_scores[row], best_ids[row]
        for begin in range(0, columns, _CHUNK):
            end = min(begin + _CHUNK, columns)
            worst = heap[0]
            better = np.int32(0)
            for column in range(begin, end):
                better += np.int32(line[column] > worst)
            if better == 0:
                continue
            for column in range(begin, end):
                if line[column] > heap[0]:
                    heap[0] = line[column]
                    names[0] = first + column
                    _sink(heap, names, 0, size)


@njit(nogil=True, cache=True)
def sort_best(best_scores, best_ids):
    """Turns every row's heap into a list, best first and equal scores by lower id."""
    for row in range(best_scores.shape[0]):
        heap, names = best_scores[row], best_ids[row]
        for last in range(heap.shape[0] - 1, 0, -1):
            heap[0], heap[last] = heap[last], heap[0]
            names[0], names[last] = names[last], names[0]
            _sink(heap, names, 0, last)
