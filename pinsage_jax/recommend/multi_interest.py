"""A history as a few interests, after PinnerSage (Pal et al., KDD 2020).

The vectors of a history are clustered by Ward's method, each cluster is represented
by its medoid, and its importance is the number of its items, each halved for every
half-life since it was added.  The most important clusters each bring their nearest
items; places are dealt out by importance (highest averages, Sainte-Lague).

  H items of one history, D dimensions, M interests, k places
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

# Ward's method takes the square of the items in memory.
_MOST_CLUSTERED = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Interests:
    """The interests of one history, most important first.

    Attributes:
      medoids: int64 [M], places in the history.
      importance: float64 [M], summing to 1 over all clusters, kept ones or not.
    """

    medoids: np.ndarray
    importance: np.ndarray


def interests_of(
    vectors: np.ndarray, most: int, ward: float, worth: np.ndarray | None = None
) -> Interests:
    """Clusters one history.

    Args:
      vectors: float [H, D], H > 0, of about unit length.
      most: clusters kept.
      ward: clusters farther apart than this, by Ward's distance, are not merged.
      worth: float64 [H], what each item adds to its cluster's importance; None: 1.

    Returns:
      The clusters of greatest importance; of equal ones the one that holds the
      earlier item.  Of a history of more than 1000 items those of greatest worth
      are clustered, of equal ones the earlier.
    """
    total = len(vectors)
    worth = np.ones(total) if worth is None else np.asarray(worth, np.float64)
    used = np.arange(total)
    if total > _MOST_CLUSTERED:
        used = np.sort(np.argsort(-worth, kind="stable")[:_MOST_CLUSTERED])
    points = np.asarray(vectors, np.float64)[used]
    labels = np.ones(1, np.int64)
    if len(points) > 1:
        labels = fcluster(linkage(points, "ward"), ward, criterion="distance")
    medoids, importance = [], []
    for label in dict.fromkeys(labels.tolist()):
        members = np.flatnonzero(labels == label)
        inside = points[members]
        # Sum of squared distances to the members, up to a constant.
        spread = len(inside) * np.square(inside).sum(axis=1) - 2.0 * inside @ inside.sum(axis=0)
        medoids.append(used[members[int(np.argmin(spread))]])
        importance.append(worth[used[members]].sum())
    shares = np.asarray(importance) / max(float(np.sum(importance)), 1e-300)
    order = np.argsort(-shares, kind="stable")[:most]
    return Interests(np.asarray(medoids, np.int64)[order], shares[order])


def halving_worth(times: np.ndarray, half_life: float) -> np.ndarray | None:
    """What each item is worth, float64 [H]: halved for each half-life before the latest.

    Args:
      times: int64 [H].
      half_life: in the unit of the times; 0: everything is worth the same (None).
    """
    if half_life <= 0 or len(times) == 0:
        return None
    return np.exp2(-(times.max() - times).astype(np.float64) / half_life)


def blend(
    importance: np.ndarray, ids: np.ndarray, scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Deals k places to interests by importance; each takes its best item still free.

    A place goes to the interest with the largest importance / (2 * places + 1), of
    equal ones to the first.

    Args:
      importance: float [M].
      ids int32 [M, k], scores float32 [M, k]: candidates, best first, -1 padded.

    Returns:
      ids int32 [k] and scores float32 [k] in the order of dealing; -1 and -inf padded.
    """
    out_ids = np.full(k, -1, np.int32)
    out_scores = np.full(k, -np.inf, np.float32)
    places = np.zeros(len(importance), np.int64)
    following = np.zeros(len(importance), np.int64)
    claim = np.array(importance, np.float64)
    taken: set[int] = set()
    filled = 0
    while filled < k and claim.max(initial=-1.0) >= 0:
        chosen = int(np.argmax(claim))
        place = following[chosen]
        while place < ids.shape[1] and int(ids[chosen, place]) in taken:
            place += 1
        if place >= ids.shape[1] or ids[chosen, place] < 0:
            claim[chosen] = -1.0
            continue
        out_ids[filled], out_scores[filled] = ids[chosen, place], scores[chosen, place]
        taken.add(int(ids[chosen, place]))
        following[chosen] = place + 1
        places[chosen] += 1
        claim[chosen] = importance[chosen] / (2 * places[chosen] + 1)
        filled += 1
    return out_ids, out_scores
