"""Compiled loops of recommending: sharpen similarities, add histories, keep the best.

Serial and nogil; callers give each thread rows of its own.

  U users, H items of all histories, R similarity rows, C columns of one block, B variants,
  k kept
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit


@njit(nogil=True, cache=True)
def sharpen(block, power):
    """Replaces float32 [R, C] by max(0, value) ** power, in place."""
    whole = int(power)
    if whole != power or whole > 64:
        whole = 0
    for row in range(block.shape[0]):
        line = block[row]
        if whole == 0:
            for column in range(line.shape[0]):
                value = line[column]
                line[column] = np.float32(value**power) if value > 0 else np.float32(0.0)
            continue
        for column in range(line.shape[0]):
            base = max(line[column], np.float32(0.0))
            result = np.float32(1.0)
            left = whole
            while left > 0:
                if left & 1:
                    result *= base
                base *= base
                left >>= 1
            line[column] = result


@njit(nogil=True, cache=True)
def fold(
    block, first, indptr, rows, weights, scales, seen_indptr, seen, begin, end, scores, ids, total
):
    """Scores users [begin, end) on one block of columns and merges the best.

    A user's score of a column is its scale times the weighted sum of the rows of
    `block` that are the user's; there are B variants that differ in the scale.  Columns
    come in ascending order from call to call, so that of equal scores the lower column
    stays first.

    Args:
      block: float32 [R, C].
      first: item of the block's column 0.
      indptr int64 [U+1], rows int32 [H], weights float32 [H]: rows of each user.
      scales: float32 [B, C].
      seen_indptr int64 [U+1], seen int32: items left out, ascending for each user.
      scores float32 [B, U, k], ids int32 [B, U, k]: best first; -inf and -1 where free.
      total: float32 [C], scratch.
    """
    columns = block.shape[1]
    kept = scores.shape[2]
    for user in range(begin, end):
        for column in range(columns):
            total[column] = 0.0
        for place in range(indptr[user], indptr[user + 1]):
            line = block[rows[place]]
            weight = weights[place]
            for column in range(columns):
                total[column] += weight * line[column]
        low, high = seen_indptr[user], seen_indptr[user + 1]
        start = low + np.searchsorted(seen[low:high], first)
        for variant in range(scales.shape[0]):
            scale = scales[variant]
            best_scores, best_ids = scores[variant, user], ids[variant, user]
            worst = best_scores[kept - 1]
            skip = start
            for column in range(columns):
                item = first + column
                if skip < high and seen[skip] == item:
                    skip += 1
                    continue
                value = total[column] * scale[column]
                if value > worst:
                    place = kept - 1
                    while place > 0 and value > best_scores[place - 1]:
                        best_scores[place] = best_scores[place - 1]
                        best_ids[place] = best_ids[place - 1]
                        place -= 1
                    best_scores[place] = value
                    best_ids[place] = item
                    worst = best_scores[kept - 1]
