"""Numba kernels of recommendation: sharpen similarities, sum over histories, keep the best.

The kernels are serial and release the GIL; callers run them on disjoint rows in threads.

  U users, H items of all histories, R similarity rows, C columns of one block, B variants,
  k recommendations
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit


@njit(nogil=True, cache=True)
def sharpen(block, power):
    """Replaces the values of float32 [R, C] by max(0, value) ** power, in place."""
    integer_power = int(power)
    if integer_power != power or integer_power > 64:
        integer_power = 0
    for row in range(block.shape[0]):
        values = block[row]
        if integer_power == 0:
            for column in range(values.shape[0]):
                value = values[column]
                values[column] = np.float32(value**power) if value > 0 else np.float32(0.0)
            continue
        for column in range(values.shape[0]):
            # Exponentiation by squaring.
            base = max(values[column], np.float32(0.0))
            result = np.float32(1.0)
            exponent = integer_power
            while exponent > 0:
                if exponent & 1:
                    result *= base
                base *= base
                exponent >>= 1
            values[column] = result


@njit(nogil=True, cache=True)
def merge_block(
    block, first, indptr, rows, weights, scales, excluded_indptr, excluded, begin, end, scores, ids,
    total,
):  # fmt: skip
    """Scores the items of one block of columns for users [begin, end) and merges the best.

    A user's score of a column is the column's scale times the weighted sum of the user's
    rows of `block`; B variants of the score differ in the scale.  Successive calls pass
    ascending columns, so that of equal scores the lower column stays first.

    Args:
      block: float32 [R, C], similarities.
      first: item of the block's column 0.
      indptr: int64 [U+1], boundaries of the users' rows.
      rows: int32 [H], the rows of `block` of each user.
      weights: float32 [H].
      scales: float32 [B, C].
      excluded_indptr: int64 [U+1], boundaries of the users' excluded items.
      excluded: int32, items that must not be recommended, ascending for each user.
      begin, end: range of users.
      scores: float32 [B, U, k], best first, padded with -inf; updated.
      ids: int32 [B, U, k], padded with -1; updated.
      total: float32 [C], scratch space.
    """
    columns = block.shape[1]
    kept = scores.shape[2]
    for user in range(begin, end):
        for column in range(columns):
            total[column] = 0.0
        for entry in range(indptr[user], indptr[user + 1]):
            similarities = block[rows[entry]]
            weight = weights[entry]
            for column in range(columns):
                total[column] += weight * similarities[column]
        low, high = excluded_indptr[user], excluded_indptr[user + 1]
        start = low + np.searchsorted(excluded[low:high], first)
        for variant in range(scales.shape[0]):
            scale = scales[variant]
            best_scores, best_ids = scores[variant, user], ids[variant, user]
            worst = best_scores[kept - 1]
            next_excluded = start
            for column in range(columns):
                item = first + column
                if next_excluded < high and excluded[next_excluded] == item:
                    next_excluded += 1
                    continue
                value = total[column] * scale[column]
                if value > worst:
                    rank = kept - 1
                    while rank > 0 and value > best_scores[rank - 1]:
                        best_scores[rank] = best_scores[rank - 1]
                        best_ids[rank] = best_ids[rank - 1]
                        rank -= 1
                    best_scores[rank] = value
                    best_ids[rank] = item
                    worst = best_scores[kept - 1]
