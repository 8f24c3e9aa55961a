"""Exact top-k for one or a few queries at a time, on the host and without compilation.

topk.py pads queries to blocks of at least 128, which would make a single query slow.

The popularity of items in lists has a weight (--popularity_weight).  With --popularity_bias
the last coordinate of an embedding, 1 + b, does not depend on the query: it holds the
popularity of an item, and the cold-start bias of an isolated one.  A weight w below 1 scales
its share in every inner product, so that lists show fewer popular items, without training
again.

  Q queries, N catalog rows, D dimensions, k neighbors
"""

from __future__ import annotations

import math

import numpy as np

from pinsage_jax.core.errors import UserError


def best_of_scores(
    scores: np.ndarray, excluded: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best columns of each row; of equal scores the lower column comes first.

    Args:
      scores: float32 [Q, N]; the excluded column of each row is overwritten.
      excluded: int [Q], the column that is no candidate of its row; -1: none.

    Returns:
      ids int32 [Q, k] and scores float32 [Q, k], best first; -1 and -inf where there are
      fewer candidates.
    """
    rows, columns = scores.shape
    ids = np.full((rows, k), -1, np.int32)
    best = np.full((rows, k), -np.inf, np.float32)
    with_excluded = np.flatnonzero(excluded >= 0)
    scores[with_excluded, excluded[with_excluded]] = -np.inf
    for row, row_scores in enumerate(scores):
        kth = np.partition(row_scores, columns - k)[columns - k] if k < columns else -np.inf
        # Every score that ties with the k-th best is a candidate; lower columns win.
        candidates = np.flatnonzero(row_scores >= kth)
        candidates = candidates[np.argsort(-row_scores[candidates], kind="stable")][:k]
        candidates = candidates[row_scores[candidates] > -np.inf]
        ids[row, : len(candidates)] = candidates
        best[row, : len(candidates)] = row_scores[candidates]
    return ids, best


class RowSubset:
    """Some rows of an array [N, D], copied when they are read."""

    def __init__(self, vectors: np.ndarray, rows: np.ndarray):
        self._vectors, self._rows = vectors, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, span: slice) -> np.ndarray:
        return self._vectors[self._rows[span]]


class ExactSearch:
    """Exact top-k by inner product over the whole catalog."""

    def __init__(self, vectors: np.ndarray):
        """Takes the catalog's vectors, float32 [N, D], without copying them."""
        self._vectors = vectors

    def top_k(
        self, queries: np.ndarray, k: int, exclude_self: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like topk.top_k over the vectors, for a few queries float32 [Q, D].

        Raises:
          UserError: a score is not finite.
        """
        excluded = np.full(len(queries), -1) if exclude_self is None else exclude_self
        scores = np.empty((len(queries), len(self._vectors)), np.float32)
        # One matrix-vector product per query: the rounding of a matrix-matrix product may
        # depend on Q, and a query's scores must not depend on the other queries.
        for query, row_scores in zip(queries, scores):
            np.matmul(self._vectors, query, out=row_scores)
        if not np.isfinite(scores).all():
            raise UserError("A score is not finite; train again with a lower --learning_rate.")
        return best_of_scores(scores, excluded, k)


def weigh_popularity(vectors: np.ndarray, weight: float, has_popularity: bool) -> np.ndarray:
    """Scales the last coordinate, so that its product counts `weight` times in a score.

    Args:
      vectors: float32 [N, D].
      weight: from 0 to 1.
      has_popularity: whether the last coordinate is the popularity.

    Returns:
      `vectors` themselves for weight 1, else a copy whose last coordinate is scaled by the
      square root of the weight: a product has the coordinates of two items.

    Raises:
      UserError: the weight is not 1 and there is no such coordinate.
    """
    if weight == 1.0:
        return vectors
    if not has_popularity:
        raise UserError(
            f"--popularity_weight={weight}: these embeddings have no popularity coordinate (they "
            "were trained with --popularity_bias=false); leave the flag out."
        )
    weighted = np.array(vectors, np.float32)
    weighted[:, -1] *= np.float32(math.sqrt(weight))
    return weighted
