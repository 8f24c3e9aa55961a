"""Exact retrieval for one or a few queries at a time, on the host and without compilation.

topk.py works in blocks of 128 queries and more, which a single one would have to pay for.

  Q queries, N catalog rows, D dimensions, k neighbors
"""

from __future__ import annotations

import numpy as np


def best_of_scores(scores: np.ndarray, own: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best columns of each row; of equal scores the lower column.

    Args:
      scores: float32 [Q, N]; the query's own column is overwritten.
      own: int [Q], a column that is no candidate; -1: none.

    Returns:
      ids int32 [Q, k] and scores float32 [Q, k], best first; -1 and -inf where there are
      fewer candidates.
    """
    rows, columns = scores.shape
    ids = np.full((rows, k), -1, np.int32)
    best = np.full((rows, k), -np.inf, np.float32)
    taken = np.flatnonzero(own >= 0)
    scores[taken, own[taken]] = -np.inf
    for row, line in enumerate(scores):
        cut = np.partition(line, columns - k)[columns - k] if k < columns else -np.inf
        # All that reach the k-th best, because its equals are chosen by their column.
        candidates = np.flatnonzero(line >= cut)
        candidates = candidates[np.argsort(-line[candidates], kind="stable")][:k]
        candidates = candidates[line[candidates] > -np.inf]
        ids[row, : len(candidates)] = candidates
        best[row, : len(candidates)] = line[candidates]
    return ids, best


class ExactSearch:
    """The catalog's best by inner product."""

    def __init__(self, vectors: np.ndarray):
        """Takes float32 [N, D], not copied."""
        self._vectors = vectors

    def top_k(
        self, queries: np.ndarray, k: int, exclude_self: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As topk.top_k over the vectors, for few queries float32 [Q, D]."""
        own = np.full(len(queries), -1) if exclude_self is None else exclude_self
        scores = np.empty((len(queries), len(self._vectors)), np.float32)
        # One product a query: a product of two matrices may round otherwise for another Q.
        for query, line in zip(queries, scores):
            np.matmul(self._vectors, query, out=line)
        return best_of_scores(scores, own, k)
