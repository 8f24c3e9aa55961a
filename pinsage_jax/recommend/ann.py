"""Recommendations from the candidates of an approximate index, scored exactly.

A user's candidates are the index's neighbors of the history's mean and of each of its
items.  They are scored by the same formula as in exact search, so the only error is a
missed candidate: mainly an item that would rank high by its popularity alone.

  U users, N items, d dimensions, k recommendations
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pinsage_jax.recommend.scores import Histories, Scorer
from pinsage_jax.retrieval.ann import AnnSearch

# Candidates of each query of a user, in addition to the excluded items.
_MIN_CANDIDATES = 50
_USER_BLOCK = 1024


def best_of_candidates(
    search: AnnSearch,
    vectors: np.ndarray,
    scorer: Scorer,
    histories: Histories,
    k: int,
    exclude: Histories | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Like scores.best_items, but over the candidates of an index only.

    Args:
      search: the index.
      vectors: float32 [N, d].
      scorer: scores the candidates.
      histories: the items of each user.
      k: number of recommendations.
      exclude: items that must not be recommended to each user; default: the histories.
      allowed: bool [N], items that may be recommended; default: all.

    Returns:
      ids int32 [U, k] and scores float32 [U, k], best first, padded with -1 and -inf.
    """
    users = len(histories)
    ids = np.full((users, k), -1, np.int32)
    scores = np.full((users, k), -np.inf, np.float32)
    exclude = exclude or histories
    for begin in range(0, users, _USER_BLOCK):
        chosen = np.arange(begin, min(begin + _USER_BLOCK, users))
        block, excluded = histories.select(chosen), exclude.select(chosen)
        items, item_neighbors, mean_neighbors = _candidates(search, vectors, block, k)
        for row, user in enumerate(chosen):
            if not len(block.of(row)):
                continue
            of_items = item_neighbors[np.searchsorted(items, block.of(row))]
            found = np.unique(np.concatenate([mean_neighbors[row], of_items.ravel()]))
            found = np.setdiff1d(found[found >= 0], excluded.of(row))
            if allowed is not None:
                found = found[allowed[found]]
            values = _scores(scorer, block.select(np.array([row])), found)
            order = np.argsort(-values, kind="stable")[:k]
            ids[user, : len(order)], scores[user, : len(order)] = found[order], values[order]
    return ids, scores


def _candidates(
    search: AnnSearch, vectors: np.ndarray, histories: Histories, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The index's neighbors of the histories' items and means.

    Returns:
      The distinct items of the histories int32 [R], the neighbors of each item int64 [R, c],
      and the neighbors of each user's mean vector int64 [U, m]; padded with -1.
    """
    count, items = len(vectors), np.unique(histories.items)
    depth = min(max(k, _MIN_CANDIDATES) + 1, count)
    lengths = np.diff(histories.indptr)
    means = np.zeros((len(histories), vectors.shape[1]), np.float32)
    np.add.at(means, histories.owners(), np.asarray(vectors[histories.items], np.float32))
    means /= np.maximum(lengths, 1)[:, None].astype(np.float32)
    # The nearest neighbors of a mean are often items of the history, which are excluded.
    mean_depth = min(depth + int(lengths.max(initial=0)), count)
    return items, search.candidates(vectors[items], depth), search.candidates(means, mean_depth)


def _scores(scorer: Scorer, history: Histories, items: np.ndarray) -> Any:
    """Scores float32 [n] of n items for one history."""
    tile = scorer.tile(history)
    similarities, scales = tile.block(items)
    return scales[0] * (tile.weights @ similarities[tile.rows])
