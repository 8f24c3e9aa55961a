"""Content links: for every item, the items with edges that look most like it.

An item without edges has no walk and so no neighborhood.  Linking it to items
with similar content gives it one ("densification", as LiGNN does for cold nodes),
and the network meets the same kind of list for every item in training: a list is a
blend of walk neighbors and content links, and the more edges an item has, the more
the walk counts:

  weight = d / (d + kappa) * visit share   +   kappa / (d + kappa) * link share

with d the number of edges that may be seen.  Without edges only the links count.

Shapes: N items, C links per item, F features, K words an item.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from threadpoolctl import threadpool_limits

from pinsage_jax.core.progress import Progress
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.sampling.link_spaces import space_of
from pinsage_jax.sampling.neighborhoods import run_blocks

# Above `content_limit` items every item has this many candidates, so that links cost the
# same per item in a catalog of any size.
MOST_CANDIDATES = 1 << 16
# The scores of a block, 4 MiB, stay in the cache between the product and the selection.
_QUERY_ROWS = 512
_CANDIDATE_ROWS = 2048
_ROUND_ROWS = 4096
_KEPT_BYTES = 1 << 29


@dataclasses.dataclass(frozen=True)
class ContentLinks:
    """Links of all items.

    Attributes:
      ids: int32 [N, C] items with edges, most similar first; -1 where there are fewer.
      shares: float32 [N, C], squared cosine similarities, rows summing to 1 (or 0).
      row_of: int32 [num_items] row of each item in these, where they hold only some and
        a last one without links for all others; None: row i is item i.
    """

    ids: np.ndarray
    shares: np.ndarray
    row_of: np.ndarray | None = None

    @property
    def num_items(self) -> int:
        """Items that can be asked for."""
        return len(self.ids if self.row_of is None else self.row_of)

    def of(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and shares [n, C] of `items` (int [n])."""
        rows = items if self.row_of is None else self.row_of[items]
        return self.ids[rows], self.shares[rows]

    @classmethod
    def none(cls, num_items: int) -> ContentLinks:
        """No links at all, C = 0."""
        return cls(np.empty((num_items, 0), np.int32), np.empty((num_items, 0), np.float32))


def content_links(
    link_rows: np.ndarray, queries: np.ndarray, candidates: np.ndarray, size: int, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Links of the rows `queries` to the rows `candidates`.

    Args:
      link_rows: [N, F] features, or int32 [N, 2K] words (link_spaces.py).
      queries: int [n] rows; candidates: int [c] rows, ascending.
      size: C.
      threads: host threads; they change no link.

    Returns:
      ids int32 [n, C] (rows of `link_rows`), shares float32 [n, C].  A row is never
      linked to itself nor to one whose cosine is not positive.  Equal cosines are
      ordered by row.
    """
    ids = np.full((len(queries), size), -1, np.int32)
    best = np.zeros((len(queries), size), np.float32)
    rows, candidates = queries.astype(np.int32), candidates.astype(np.int32)
    starts = range(0, len(candidates), _CANDIDATE_ROWS)
    blocks = [candidates[first : first + _CANDIDATE_ROWS] for first in starts]
    space = space_of(link_rows)
    fits = 4 * len(candidates) * link_rows.shape[1] <= _KEPT_BYTES
    kept = [space.block(block) for block in blocks] if fits else []

    def work(begin: int, end: int) -> None:
        own = space.side(rows[begin:end])
        for number, others in enumerate(blocks):
            scores = space.cosines(own, kept[number] if fits else space.block(others))
            _keep_best(scores, rows[begin:end], others, ids[begin:end], best[begin:end])

    def shifted(by: int, begin: int, end: int) -> None:
        work(by + begin, by + end)

    at_once = _ROUND_ROWS * threads
    # The threads are ours: a product in more of them would only take cores from others.
    with (
        Progress(len(rows), "item", "linking by content") as progress,
        threadpool_limits(1, user_api="blas"),
    ):
        for begin in range(0, len(rows), at_once):
            end = min(begin + at_once, len(rows))
            run_blocks(
                end - begin,
                threads,
                functools.partial(shifted, begin),
                _QUERY_ROWS,
            )
            progress.update(end - begin)
    shares = np.square(best)
    return ids, shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)


def spread(candidates: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the candidates, evenly spaced, in order."""
    if len(candidates) <= most:
        return candidates
    return candidates[np.arange(most) * len(candidates) // most]


@njit(nogil=True, cache=True)
def _keep_best(scores, rows, others, top, top_scores):
    """Merges one more block of candidates into the best so far, in place.

    scores float32 [n, c] of rows int32 [n] and others int32 [c]; top int32 [n, C] and
    top_scores float32 [n, C], best first, -1 and 0 where there are fewer.  Candidates
    come in ascending order, so an equal one stays behind those before it.
    """
    size = top.shape[1]
    if size == 0:
        return
    for row in range(scores.shape[0]):
        last = top_scores[row, size - 1]
        for column in range(others.shape[0]):
            score = scores[row, column]
            # Written so that the usual case, no better than the last, is one comparison.
            if not score > last or others[column] == rows[row]:
                continue
            place = size - 1
            while place > 0 and top_scores[row, place - 1] < score:
                top_scores[row, place] = top_scores[row, place - 1]
                top[row, place] = top[row, place - 1]
                place -= 1
            top_scores[row, place] = score
            top[row, place] = others[column]
            last = top_scores[row, size - 1]


def blend(
    visit_shares: np.ndarray, link_shares: np.ndarray, edges: np.ndarray, kappa: float
) -> np.ndarray:
    """Pooling weights of lists [walk neighbors, content links], float32 [n, T+C].

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
