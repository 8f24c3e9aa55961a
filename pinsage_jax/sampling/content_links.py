"""Content links: for every item, the items with edges that look most like it.

An item without edges has no walk and so no neighbourhood.  Linking it to items
with similar content gives it one ("densification", as LiGNN does for cold nodes),
and the network meets the same kind of list for every item in training: a list is a
blend of walk neighbours and content links, and the more edges an item has, the more
the walk counts:

  weight = d / (d + kappa) * visit share   +   kappa / (d + kappa) * link share

with d the number of edges that may be seen.  Without edges only the links count.

Shapes: N items, C links per item, F features.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.progress import Progress

_QUERY_ROWS = 1024
_CANDIDATE_ROWS = 65536


@dataclasses.dataclass(frozen=True)
class ContentLinks:
    """Links of all items.

    Attributes:
      ids: int32 [N, C] items with edges, most similar first; -1 where there are fewer.
      shares: float32 [N, C], squared cosine similarities, rows summing to 1 (or 0).
    """

    ids: np.ndarray
    shares: np.ndarray

    @classmethod
    def none(cls, num_items: int) -> ContentLinks:
        """No links at all, C = 0."""
        return cls(np.empty((num_items, 0), np.int32), np.empty((num_items, 0), np.float32))


def _unit_rows(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    block = np.asarray(features[rows], np.float32)
    length = np.linalg.norm(block, axis=1, keepdims=True)
    return block / np.maximum(length, 1e-12)


def content_links(
    features: np.ndarray, queries: np.ndarray, candidates: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Links of the rows `queries` to the rows `candidates` of a feature matrix.

    Args:
      features: [N, F]; queries: int [n] rows; candidates: int [c] rows, ascending.
      size: C.

    Returns:
      ids int32 [n, C] (rows of `features`), shares float32 [n, C].  A row is never
      linked to itself nor to one whose cosine is not positive.  Equal cosines are
      ordered by row.
    """
    ids = np.full((len(queries), size), -1, np.int32)
    best = np.zeros((len(queries), size), np.float32)
    with Progress(len(queries), "item", "linking by content") as progress:
        for begin in range(0, len(queries), _QUERY_ROWS):
            rows = queries[begin : begin + _QUERY_ROWS]
            own = _unit_rows(features, rows)
            top = np.full((len(rows), size), -1, np.int32)
            top_scores = np.zeros((len(rows), size), np.float32)
            for first in range(0, len(candidates), _CANDIDATE_ROWS):
                others = candidates[first : first + _CANDIDATE_ROWS]
                scores = own @ _unit_rows(features, others).T
                scores[rows[:, None] == others[None, :]] = 0.0
                top, top_scores = _merge(top, top_scores, others, scores)
            ids[begin : begin + len(rows)] = top
            best[begin : begin + len(rows)] = top_scores
            progress.update(len(rows))
    shares = np.square(best)
    return ids, shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)


def _merge(top, top_scores, others, scores):
    """The best of the best so far and one more block of candidates."""
    size = top.shape[1]
    if scores.shape[1] > size:
        place = np.argpartition(-scores, size - 1, axis=1)[:, :size]
        _settle_ties(scores, place)
    else:
        place = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    ids = np.concatenate([top, others[place].astype(np.int32)], axis=1)
    merged = np.concatenate([top_scores, np.take_along_axis(scores, place, axis=1)], axis=1)
    ids = np.where(merged > 0, ids, np.int32(-1))
    merged = np.maximum(merged, 0.0)
    order = np.lexsort((ids, -merged), axis=1)[:, :size]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(merged, order, axis=1)


def _settle_ties(scores, place):
    """Lets the lowest columns in where more columns tie for the last places of a row."""
    size = place.shape[1]
    last = np.take_along_axis(scores, place, axis=1).min(axis=1)
    tied = (scores >= last[:, None]).sum(axis=1) > size
    for row in np.flatnonzero(tied & (last > 0)):
        above = np.flatnonzero(scores[row] > last[row])
        equal = np.flatnonzero(scores[row] == last[row])
        place[row] = np.concatenate([above, equal[: size - len(above)]])


def blend(
    visit_shares: np.ndarray, link_shares: np.ndarray, edges: np.ndarray, kappa: float
) -> np.ndarray:
    """Pooling weights of lists [walk neighbours, content links], float32 [n, T+C].

    Args:
      visit_shares: float32 [n, T]; link_shares: float32 [n, C]; rows sum to 1 or 0.
      edges: int32 [n] edges that may be seen.
      kappa: edges at which walk and links weigh the same.
    """
    walked = visit_shares.sum(axis=1) > 0
    linked = link_shares.sum(axis=1) > 0
    trust = np.where(linked, edges / np.maximum(edges + kappa, 1e-12), 1.0)
    trust = np.where(walked, trust, 0.0).astype(np.float32)[:, None]
    return np.concatenate([visit_shares * trust, link_shares * (1.0 - trust)], axis=1)
