"""Represents a history by a few interests, as in PinnerSage (Pal et al., KDD 2020).

The vectors of a history are clustered by Ward's method.  Each cluster is represented by its
medoid; its importance is the number of its items, where an item's weight halves with every
half-life since the item was added.  Recommendations are the nearest items of the most
important clusters' medoids, which share the k ranks in proportion to their importance
(highest averages with the divisors of Sainte-Lague).

  H items of one history, D dimensions, M interests, k recommendations
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

# The memory of Ward's method is quadratic in the number of items.
_MAX_CLUSTERED_ITEMS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Interests:
    """The interests of one history, most important first.

    Attributes:
      medoids: int64 [M], positions in the history.
      importance: float64 [M], a share of 1 that includes the clusters that were not kept.
    """

    medoids: np.ndarray
    importance: np.ndarray


def interests_of(
    vectors: np.ndarray, limit: int, max_distance: float, weights: np.ndarray | None = None
) -> Interests:
    """Clusters one history.

    Of a history of more than 1000 items those of largest weight are clustered; of equal
    weights the earlier items.

    Args:
      vectors: float [H, D], H > 0, of about unit length.
      limit: number of clusters to keep.
      max_distance: clusters whose Ward distance exceeds this are not merged.
      weights: float64 [H], each item's contribution to its cluster's importance; None: 1.

    Returns:
      The clusters of largest importance; of equal ones that with the earlier item comes
      first.
    """
    total = len(vectors)
    weights = np.ones(total) if weights is None else np.asarray(weights, np.float64)
    used = np.arange(total)
    if total > _MAX_CLUSTERED_ITEMS:
        used = np.sort(np.argsort(-weights, kind="stable")[:_MAX_CLUSTERED_ITEMS])
    points = np.asarray(vectors, np.float64)[used]
    labels = np.ones(1, np.int64)
    if len(points) > 1:
        labels = fcluster(linkage(points, "ward"), max_distance, criterion="distance")
    medoids, importance = [], []
    for label in dict.fromkeys(labels.tolist()):
        members = np.flatnonzero(labels == label)
        cluster = points[members]
        # Sum of squared distances to the members, up to a constant.
        spread = len(cluster) * np.square(cluster).sum(axis=1) - 2.0 * cluster @ cluster.sum(axis=0)
        medoids.append(used[members[int(np.argmin(spread))]])
        importance.append(weights[used[members]].sum())
    shares = np.asarray(importance) / max(float(np.sum(importance)), 1e-300)
    order = np.argsort(-shares, kind="stable")[:limit]
    return Interests(np.asarray(medoids, np.int64)[order], shares[order])


def decayed_weights(times: np.ndarray, half_life: float) -> np.ndarray | None:
    """Weights float64 [H] that halve with each half-life before the latest item.

    Args:
      times: int64 [H].
      half_life: in the unit of the times; 0: no decay (returns None).
    """
    if half_life <= 0 or len(times) == 0:
        return None
    return np.exp2(-(times.max() - times).astype(np.float64) / half_life)


def blend(
    importance: np.ndarray, ids: np.ndarray, scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merges the candidates of several interests into k recommendations.

    The next recommendation is the best unused candidate of the interest with the largest
    importance / (2 * n + 1), where n counts the recommendations that it has contributed; of
    equal quotients the first interest wins.

    Args:
      importance: float [M].
      ids: int32 [M, c], candidates of each interest, best first, padded with -1.
      scores: float32 [M, c].
      k: number of recommendations.

    Returns:
      ids int32 [k] and scores float32 [k] in the order of selection, padded with -1 and -inf.
    """
    out_ids = np.full(k, -1, np.int32)
    out_scores = np.full(k, -np.inf, np.float32)
    contributed = np.zeros(len(importance), np.int64)
    next_candidate = np.zeros(len(importance), np.int64)
    quotient = np.array(importance, np.float64)
    used: set[int] = set()
    filled = 0
    while filled < k and quotient.max(initial=-1.0) >= 0:
        interest = int(np.argmax(quotient))
        candidate = next_candidate[interest]
        while candidate < ids.shape[1] and int(ids[interest, candidate]) in used:
            candidate += 1
        if candidate >= ids.shape[1] or ids[interest, candidate] < 0:
            quotient[interest] = -1.0
            continue
        out_ids[filled] = ids[interest, candidate]
        out_scores[filled] = scores[interest, candidate]
        used.add(int(ids[interest, candidate]))
        next_candidate[interest] = candidate + 1
        contributed[interest] += 1
        quotient[interest] = importance[interest] / (2 * contributed[interest] + 1)
        filled += 1
    return out_ids, out_scores
