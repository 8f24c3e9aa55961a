"""Numba kernels that keep the k best scores of every query, a block of columns at a time.

On a CPU XLA's top_k sorts, which costs several times the product that made the scores.
Here one pass compares them with the worst of the best so far; few are better once some
columns were seen.  Those are put down one after another, and when there is no room left the
k best of them are set apart: far less work than to keep them in order all the time.

A score and its id are one number, a key: the smaller, the higher the score, and of equal
scores the lower the id.  Blocks come in the order of ids, so that a score equal to the worst
of k is never among the k best.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# Scores compared before any is looked at alone.
_CHUNK = 64
_LEAST_SPARE = 64
_SIGN, _BELOW_SIGN = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_U32, _LOW_32 = np.uint64(32), np.uint64(0xFFFFFFFF)


def room(size: int) -> int:
    """Keys a row needs to keep the `size` best."""
    return size + max(size // 2, _LEAST_SPARE) + _CHUNK


@njit(nogil=True, cache=True)
def _key(score, name):
    # 0.0 and -0.0 are equal: the sum is 0.0 for both.
    bits = np.float32(score + np.float32(0.0)).view(np.uint32)
    falling = np.uint32(bits if bits & _SIGN else bits ^ _BELOW_SIGN)
    return np.uint64(falling) << _U32 | np.uint64(name)


@njit(nogil=True, cache=True)
def _score(key):
    falling = np.uint32(key >> _U32)
    return np.uint32(falling if falling & _SIGN else falling ^ _BELOW_SIGN).view(np.float32)


@njit(nogil=True, cache=True)
def _set_apart(keys, held, size):
    """Moves the `size` smallest of keys[:held], all different, to the front, the largest last."""
    low, high, last = 0, held - 1, size - 1
    while low < high:
        one, other, third = keys[low], keys[(low + high) >> 1], keys[high]
        pivot = max(min(one, other), min(max(one, other), third))
        left, right = low, high
        while left <= right:
            while keys[left] < pivot:
                left += 1
            while keys[right] > pivot:
                right -= 1
            if left <= right:
                keys[left], keys[right] = keys[right], keys[left]
                left += 1
                right -= 1
        if last <= right:
            high = right
        elif last >= left:
            low = left
        else:
            return


@njit(nogil=True, cache=True)
def keep_best(scores, columns, first, size, keys, held, limits):
    """Offers `columns` columns of every row to the row's keys.

    Args:
      scores: float32 [q, c]; column j is of id first + j, in int32; NaN and -inf never enter.
      columns: how many columns are real; size: k.
      keys: uint64 [q, room(k)]; held: int64 [q], how many of a row's keys are in use, at
        first 0; limits: float32 [q], what a score must be above, at first -inf.
    """
    full = keys.shape[1] - _CHUNK
    for row in range(scores.shape[0]):
        line, own, limit = scores[row], keys[row], limits[row]
        used = np.uint64(held[row])
        for begin in range(0, columns, _CHUNK):
            end = min(begin + _CHUNK, columns)
            if end - begin == _CHUNK:
                # Of a size that the compiler knows: several comparisons in one instruction.
                chunk, better = line[begin:end], np.int32(0)
                for place in range(_CHUNK):
                    better += np.int32(chunk[place] > limit)
                if better == 0:
                    continue
            for column in range(begin, end):
                own[used] = _key(line[column], first + column)
                used += np.uint64(line[column] > limit)
            if used >= full:
                _set_apart(own, np.int64(used), size)
                used = np.uint64(size)
                limit = _score(own[size - 1])
        held[row], limits[row] = np.int64(used), limit


@njit(nogil=True, cache=True)
def sort_best(keys, held, size, best_scores, best_ids):
    """Writes every row's best, best first and equal scores by lower id.

    Args:
      keys, held: of `keep_best`; keys are moved about.
      best_scores: float32 [q, k], best_ids: int32 [q, k]; outputs, -inf and -1 where there
        are fewer.
    """
    for row in range(keys.shape[0]):
        kept = min(held[row], size)
        _set_apart(keys[row], held[row], kept)
        ordered = np.sort(keys[row, :kept])
        for place in range(size):
            best_scores[row, place], best_ids[row, place] = -np.inf, -1
        for place in range(kept):
            best_scores[row, place] = _score(ordered[place])
            best_ids[row, place] = np.int32(ordered[place] & _LOW_32)
