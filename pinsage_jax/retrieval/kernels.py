"""Numba kernels that keep the k best scores of every query, one block of columns at a time.

On a CPU, XLA's top_k sorts all scores, which costs several times the matrix product that
computed them.  These kernels make one pass and compare each score with a limit, the k-th
best score so far, which few later scores exceed.  Scores above the limit are appended to
a buffer; when the buffer is full, quickselect reduces it to the k best.  That is far less
work than keeping a heap or a sorted list.  The first limit comes from cutting the first
block into runs of columns: the k largest maxima of runs are k scores, so no score below
all of them is among the k best.

A score and its id are packed into one uint64 key: a smaller key means a higher score or, of
equal scores, a lower id.  Blocks come in the order of ids, so a score equal to the k-th best
so far never enters.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit

# Scores are compared with the limit in SIMD groups, first of _CHUNK, then of _PART.
_CHUNK, _PART = 64, 16
# The first block is cut into runs only if each run has at least so many scores.
_MIN_RUN = 4
_SMALLEST_NORMAL = np.finfo(np.float32).tiny
_MIN_SPARE_KEYS = 64
_SIGN, _BELOW_SIGN = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_U32, _LOW_32 = np.uint64(32), np.uint64(0xFFFFFFFF)


def key_capacity(size: int) -> int:
    """Length of the key buffer that a row needs to keep its `size` best scores."""
    return size + max(size // 2, _MIN_SPARE_KEYS) + _CHUNK


@njit(nogil=True, cache=True)
def _key(score, name):
    # 0.0 and -0.0 are equal: the sum is 0.0 for both.
    bits = np.float32(score + np.float32(0.0)).view(np.uint32)
    descending = np.uint32(bits if bits & _SIGN else bits ^ _BELOW_SIGN)
    return np.uint64(descending) << _U32 | np.uint64(name)


@njit(nogil=True, cache=True)
def _score(key):
    descending = np.uint32(key >> _U32)
    bits = np.uint32(descending if descending & _SIGN else descending ^ _BELOW_SIGN)
    return bits.view(np.float32)


@njit(nogil=True, cache=True)
def _partition(keys, count, size):
    """Moves the `size` smallest of keys[:count] to the front, the largest of these last.

    Quickselect (Hoare 1961) with the median of three as pivot; all keys are distinct.
    """
    low, high, last = 0, count - 1, size - 1
    while low < high:
        first, middle, end = keys[low], keys[(low + high) >> 1], keys[high]
        pivot = max(min(first, middle), min(max(first, middle), end))
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
def _first_limit(row_scores, size, maxima, keys):
    """A limit that at least `size` of the scores exceed; maxima, keys [runs] are scratch space.

    Run r has every runs-th score from r on, so that all maxima are updated by SIMD.
    """
    runs = maxima.shape[0]
    maxima[:] = row_scores[:runs]
    for begin in range(runs, row_scores.shape[0] - runs + 1, runs):
        part = row_scores[begin : begin + runs]
        for run in range(runs):
            maxima[run] = part[run] if part[run] > maxima[run] else maxima[run]
    for run in range(runs):
        # The bits of NaN would make the smallest key, but NaN must never be among the best.
        keys[run] = _key(maxima[run] if maxima[run] == maxima[run] else -np.inf, run)
    _partition(keys, runs, size)
    kth = _score(keys[size - 1])
    # The next lower number, unless it is subnormal, which the processor may flush to zero.
    if abs(kth) < _SMALLEST_NORMAL:
        return -_SMALLEST_NORMAL
    return np.nextafter(kth, np.float32(-np.inf))


@njit(nogil=True, cache=True)
def keep_best(scores, columns, first, size, keys, counts, limits):
    """Adds one block of scores to the candidates of every row.

    Args:
      scores: float32 [q, c]; column j has the id first + j, an int32; NaN and -inf never enter.
      columns: number of columns that are not padding.
      first: id of column 0.
      size: k.
      keys: uint64 [q, key_capacity(k)], the candidates of each row; updated.
      counts: int64 [q], number of keys of each row in use; updated, 0 before the first block.
      limits: float32 [q]; a score enters if it exceeds the limit; updated, -inf at first.
    """
    full = keys.shape[1] - _CHUNK
    # With 4 k runs, a quarter of the maxima reach the limit, and for scores in random order
    # about 1.15 k scores of the block exceed it.
    runs = 4 * size
    use_runs = _MIN_RUN * runs <= columns
    maxima, run_keys = np.empty(runs, np.float32), np.empty(runs, np.uint64)
    for row in range(scores.shape[0]):
        row_scores, row_keys, limit = scores[row], keys[row], limits[row]
        used = np.uint64(counts[row])
        if used == 0 and use_runs:
            limit = max(limit, _first_limit(row_scores[:columns], size, maxima, run_keys))
        for begin in range(0, columns, _CHUNK):
            end = min(begin + _CHUNK, columns)
            if end - begin == _CHUNK:
                # The length is known at compile time, so that LLVM emits SIMD comparisons.
                chunk, better = row_scores[begin:end], np.int32(0)
                for offset in range(_CHUNK):
                    better += np.int32(chunk[offset] > limit)
                if better == 0:
                    continue
            for part in range(begin, end, _PART):
                stop = min(part + _PART, end)
                if stop - part == _PART:
                    chunk_part, better = row_scores[part:stop], np.int32(0)
                    for offset in range(_PART):
                        better += np.int32(chunk_part[offset] > limit)
                    if better == 0:
                        continue
                for column in range(part, stop):
                    # Without a branch: a key that does not enter is overwritten by the next.
                    row_keys[used] = _key(row_scores[column], first + column)
                    used += np.uint64(row_scores[column] > limit)
            if used >= full:
                _partition(row_keys, np.int64(used), size)
                used = np.uint64(size)
                limit = _score(row_keys[size - 1])
        counts[row], limits[row] = np.int64(used), limit


@njit(nogil=True, cache=True)
def sort_best(keys, counts, size, best_scores, best_ids):
    """Writes the k best of every row, best first and of equal scores the lower id first.

    Args:
      keys: uint64 [q, key_capacity(k)] from `keep_best`; reordered.
      counts: int64 [q] from `keep_best`.
      size: k.
      best_scores: float32 [q, k], output; padded with -inf where there are fewer than k.
      best_ids: int32 [q, k], output; padded with -1.
    """
    for row in range(keys.shape[0]):
        kept = min(counts[row], size)
        _partition(keys[row], counts[row], kept)
        ordered = np.sort(keys[row, :kept])
        for rank in range(size):
            best_scores[row, rank], best_ids[row, rank] = -np.inf, -1
        for rank in range(kept):
            best_scores[row, rank] = _score(ordered[rank])
            best_ids[row, rank] = np.int32(ordered[rank] & _LOW_32)
