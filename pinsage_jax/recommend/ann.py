"""Recommendations among what an index finds, scored exactly.

Candidates of a user are the index's neighbors of the history's mean and of each of its
items; they are scored by the very formula of exact search, so that only candidates are
missed.  Items that popularity alone would lift are not looked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pinsage_jax.recommend.scores import Histories, Scorer
from pinsage_jax.retrieval.ann import AnnSearch

# Of each query of a user, beside what is left out.
_FEWEST_CANDIDATES = 50
_USERS_AT_ONCE = 1024


def best_among(
    search: AnnSearch,
    vectors: np.ndarray,
    scorer: Scorer,
    histories: Histories,
    k: int,
    exclude: Histories | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As recommend_scores.best_items, over candidates only.

    Args:
      vectors: float32 [N, d].
      exclude: items left out for each user; by default those of the history.

    Returns:
      ids int32 [U, k] and scores float32 [U, k], -1 and -inf padded.
    """
    users = len(histories)
    ids = np.full((users, k), -1, np.int32)
    scores = np.full((users, k), -np.inf, np.float32)
    seen = exclude or histories
    for begin in range(0, users, _USERS_AT_ONCE):
        chosen = np.arange(begin, min(begin + _USERS_AT_ONCE, users))
        own, out = histories.select(chosen), seen.select(chosen)
        items, near_items, near_means = _candidates(search, vectors, own, k)
        for place, user in enumerate(chosen):
            if not len(own.of(place)):
                continue
            of_items = near_items[np.searchsorted(items, own.of(place))]
            near = np.unique(np.concatenate([near_means[place], of_items.ravel()]))
            near = np.setdiff1d(near[near >= 0], out.of(place))
            values = _scored(scorer, own.select(np.array([place])), near)
            order = np.argsort(-values, kind="stable")[:k]
            ids[user, : len(order)], scores[user, : len(order)] = near[order], values[order]
    return ids, scores


def _candidates(
    search: AnnSearch, vectors: np.ndarray, histories: Histories, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct items of the histories, what is near each, and what is near each user's mean."""
    count, items = len(vectors), np.unique(histories.items)
    depth = min(max(k, _FEWEST_CANDIDATES) + 1, count)
    lengths = np.diff(histories.indptr)
    means = np.zeros((len(histories), vectors.shape[1]), np.float32)
    np.add.at(means, histories.owners(), np.asarray(vectors[histories.items], np.float32))
    means /= np.maximum(lengths, 1)[:, None].astype(np.float32)
    # The nearest to a mean are often what is left out.
    of_means = min(depth + int(lengths.max(initial=0)), count)
    return items, search.candidates(vectors[items], depth), search.candidates(means, of_means)


def _scored(scorer: Scorer, history: Histories, items: np.ndarray) -> Any:
    """Scores float32 [n] of some items for one history."""
    tile = scorer.tile(history)
    similar, scales = tile.block(items)
    return scales[0] * (tile.weights @ similar[tile.rows])
