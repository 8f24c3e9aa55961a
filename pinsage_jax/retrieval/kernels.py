"""Numba kernels that keep the k best scores of every query, a block of columns at a time.

On a CPU XLA's top_k sorts, which costs several times the product that made the scores.
Here one pass compares them with the worst of the best so far; few are better once some
columns were seen.  Those are put down one after another, and when there is no room left the
k best of them are set apart: far less work than to keep them in order all the time.  The
first block is cut into runs of columns: the k best runs' maxima are k scores, so nothing
below them all is among the k best.

A score and its id are one number, a key: the smaller, the higher the score, and of equal
scores the lower the id.  Blocks come in the order of ids, so that a score equal to the worst
of k is never among the k best.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit

# Scores compared before any is looked at alone, in two steps.
_CHUNK, _PART = 64, 16
# Scores a run has at least where the first block is cut into runs.
_RUN = 4
_SMALLEST = np.finfo(np.float32).tiny
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
def _first_limit(line, size, maxima, keys):
    """What at least `size` scores of `line` are above; maxima, keys [runs] are written over.

    Run r is every runs-th score from r on, so that all runs are compared at once.
    """
    runs = maxima.shape[0]
    maxima[:] = line[:runs]
    for begin in range(runs, line.shape[0] - runs + 1, runs):
        part = line[begin : begin + runs]
        for run in range(runs):
            maxima[run] = part[run] if part[run] > maxima[run] else maxima[run]
    for run in range(runs):
        # NaN is never among the best, though it would seem to be by its bits.
        keys[run] = _key(maxima[run] if maxima[run] == maxima[run] else -np.inf, run)
    _set_apart(keys, runs, size)
    reached = _score(keys[size - 1])
    # The next number below it is enough, unless the processor takes that for zero.
    return -_SMALLEST if abs(reached) < _SMALLEST else np.nextafter(reached, np.float32(-np.inf))


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
    # Of that many runs a quarter have a maximum above the limit: 1.15 k scores in all.
    runs = 4 * size
    worthwhile = _RUN * runs <= columns
    maxima, chosen = np.empty(runs, np.float32), np.empty(runs, np.uint64)
    for row in range(scores.shape[0]):
        line, own, limit = scores[row], keys[row], limits[row]
        used = np.uint64(held[row])
        if used == 0 and worthwhile:
            limit = max(limit, _first_limit(line[:columns], size, maxima, chosen))
        for begin in range(0, columns, _CHUNK):
            end = min(begin + _CHUNK, columns)
            if end - begin == _CHUNK:
                # Of a size that the compiler knows: several comparisons in one instruction.
                chunk, better = line[begin:end], np.int32(0)
                for place in range(_CHUNK):
                    better += np.int32(chunk[place] > limit)
                if better == 0:
                    continue
            for part in range(begin, end, _PART):
                stop = min(part + _PART, end)
                if stop - part == _PART:
                    some, better = line[part:stop], np.int32(0)
                    for place in range(_PART):
                        better += np.int32(some[place] > limit)
                    if better == 0:
                        continue
                for column in range(part, stop):
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
