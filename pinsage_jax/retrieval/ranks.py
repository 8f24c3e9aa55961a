"""Ranks of targets among the candidates of a query, with a rule for ties.

`ranks_from_scores` ranks by scores of the whole catalog; topk.target_ranks computes the same
ranks from vectors, in blocks.

  P pairs, Q queries, N catalog rows
"""

from __future__ import annotations

import numpy as np

TIE_RULE = (
    "rank = 1 + candidates with a strictly greater score + half, rounded up, of the other "
    "candidates with an equal score; the query itself is never a candidate"
)


def tie_rank(greater: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """Rank under TIE_RULE.

    Args:
      greater: int, number of candidates with a strictly greater score than the target.
      equal: int, number of other candidates with the target's score.

    Returns:
      int64, of the arguments' shape.
    """
    return 1 + np.asarray(greater, np.int64) + (np.asarray(equal, np.int64) + 1) // 2


def ranks_from_scores(
    scores: np.ndarray, rows: np.ndarray, query_ids: np.ndarray, target_ids: np.ndarray
) -> np.ndarray:
    """Ranks of targets, given the scores of the whole catalog.

    Args:
      scores: float [Q, N], finite or -inf; row r scores every item.
      rows: int [P], the row of `scores` that belongs to each pair.
      query_ids: int [P], the query's item, excluded from the ranking; -1: none.
      target_ids: int [P], other than the query.

    Returns:
      int64 [P]; the best rank is 1.

    Raises:
      ValueError: a score is NaN, or a pair's target is its query.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    if np.any(query_ids == target_ids):
        raise ValueError("a target is its own query")
    greater = np.empty(len(rows), np.int64)
    equal = np.empty(len(rows), np.int64)
    for pair, (row, query, target) in enumerate(zip(rows, query_ids, target_ids)):
        row_scores = scores[row]
        target_score = row_scores[target]
        greater[pair] = np.count_nonzero(row_scores > target_score)
        equal[pair] = np.count_nonzero(row_scores == target_score) - 1
        if query >= 0:
            greater[pair] -= row_scores[query] > target_score
            equal[pair] -= row_scores[query] == target_score
    return tie_rank(greater, equal)
