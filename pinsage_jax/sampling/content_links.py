"""Content links: for every item, the items with edges whose content is most similar.

An isolated item has no walks and therefore no neighborhood.  Links to items with similar
content give it one (graph densification, as LiGNN does for cold nodes).  In training every
item has the same kind of list, a blend of walk neighbors and content links in which the
walk counts more the more edges the item has:

  weight = d / (d + kappa) * visit share   +   kappa / (d + kappa) * link share

where d is the number of visible edges.  For d = 0 only the links count.

Axis letters: N items, C links per item, F features, K words per item, T walk neighbors, n
and c rows.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from threadpoolctl import threadpool_limits

from pinsage_jax.core.progress import Progress
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.sampling.link_spaces import make_space
from pinsage_jax.sampling.neighborhoods import run_blocks

# In a catalog larger than `content_limit` every item has this many candidates, so that the
# cost of an item's links does not depend on the size of the catalog.
MAX_CANDIDATES = 1 << 16
# Of more than a quarter of a million isolated items each has fewer, so that all together take this
# many comparisons: minutes, and not hours.
MOST_COMPARISONS = 1 << 34
# The 4 MiB of scores of a block stay in the CPU cache between product and selection.
_QUERY_ROWS = 512
_CANDIDATE_ROWS = 2048
_ROWS_PER_THREAD = 4096
# Encoded candidates of at most so many bytes are cached.
_CACHE_BYTES = 1 << 29


@dataclasses.dataclass(frozen=True)
class ContentLinks:
    """Links of all items.

    Attributes:
      ids: int32 [N, C], items with edges, most similar first, padded with -1.
      shares: float32 [N, C], squared cosine similarities normalized to sum to 1 per row,
        or 0 in a row without links.
      row_of: int32 [num_items], the row of each item if `ids` holds only some items and a
        last row without links for all others; None if row i is item i.
    """

    ids: np.ndarray
    shares: np.ndarray
    row_of: np.ndarray | None = None

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.ids if self.row_of is None else self.row_of)

    def lookup(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 and shares float32, [n, C] each, of `items` (int [n])."""
        rows = items if self.row_of is None else self.row_of[items]
        return self.ids[rows], self.shares[rows]

    @classmethod
    def none(cls, num_items: int) -> ContentLinks:
        """An object without links, C = 0."""
        return cls(np.empty((num_items, 0), np.int32), np.empty((num_items, 0), np.float32))


def content_links(
    link_rows: np.ndarray, queries: np.ndarray, candidates: np.ndarray, size: int, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Links the rows `queries` to the most similar of the rows `candidates`.

    Args:
      link_rows: features [N, F], or words int32 [N, 2K] (link_spaces.py).
      queries: rows int [n].
      candidates: rows int [c], ascending.
      size: C.
      threads: host threads; the links do not depend on them.

    Returns:
      (ids, shares): rows of `link_rows` int32 [n, C], and float32 [n, C].  A row is never
      linked to itself or to a row with a cosine of 0 or less.  Equal cosines are ordered
      by row.
    """
    ids = np.full((len(queries), size), -1, np.int32)
    cosines = np.zeros((len(queries), size), np.float32)
    rows, candidates = queries.astype(np.int32), candidates.astype(np.int32)
    starts = range(0, len(candidates), _CANDIDATE_ROWS)
    blocks = [candidates[first : first + _CANDIDATE_ROWS] for first in starts]
    space = make_space(link_rows)
    # A single block of queries reads every candidate once.
    use_cache = len(rows) > _QUERY_ROWS and (
        4 * len(candidates) * link_rows.shape[1] <= _CACHE_BYTES
    )
    cache = [space.encode_candidates(block) for block in blocks] if use_cache else []

    def link_rows_of(begin: int, end: int) -> None:
        encoded = space.encode_queries(rows[begin:end])
        for number, block in enumerate(blocks):
            others = cache[number] if use_cache else space.encode_candidates(block)
            scores = space.cosines(encoded, others)
            _merge_top(scores, rows[begin:end], block, ids[begin:end], cosines[begin:end])

    def link_shifted(offset: int, begin: int, end: int) -> None:
        link_rows_of(offset + begin, offset + end)

    round_rows = _ROWS_PER_THREAD * threads
    # BLAS gets one thread per call, because `threads` calls run concurrently already.
    with (
        Progress(len(rows), "item", "linking by content") as progress,
        threadpool_limits(1, user_api="blas"),
    ):
        for begin in range(0, len(rows), round_rows):
            end = min(begin + round_rows, len(rows))
            run_blocks(
                end - begin,
                threads,
                functools.partial(link_shifted, begin),
                _QUERY_ROWS,
            )
            progress.update(end - begin)
    shares = np.square(cosines)
    return ids, shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)


def evenly_spaced(candidates: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the candidates, evenly spaced and in order."""
    if len(candidates) <= count:
        return candidates
    return candidates[np.arange(count) * len(candidates) // count]


@njit(nogil=True, cache=True)
def _merge_top(scores, rows, candidates, top, top_scores):
    """Merges one more block of candidates into the best candidates so far, in place.

    Candidates come in ascending order, and one with an equal score stays behind those
    before it, so that equal scores are ordered by row.

    Args:
      scores: float32 [n, c].
      rows: int32 [n]; candidates: int32 [c].
      top: int32 [n, C], best first, padded with -1; top_scores: float32 [n, C], padded
        with 0.
    """
    size = top.shape[1]
    if size == 0:
        return
    for row in range(scores.shape[0]):
        last = top_scores[row, size - 1]
        for column in range(candidates.shape[0]):
            score = scores[row, column]
            # In this form the usual case, no better than the last, needs one comparison.
            if not score > last or candidates[column] == rows[row]:
                continue
            position = size - 1
            while position > 0 and top_scores[row, position - 1] < score:
                top_scores[row, position] = top_scores[row, position - 1]
                top[row, position] = top[row, position - 1]
                position -= 1
            top_scores[row, position] = score
            top[row, position] = candidates[column]
            last = top_scores[row, size - 1]


def blend(
    visit_shares: np.ndarray, link_shares: np.ndarray, edges: np.ndarray, kappa: float
) -> np.ndarray:
    """Pooling weights of lists [walk neighbors, content links], float32 [n, T+C].

    Args:
      visit_shares: float32 [n, T]; rows sum to 1 or 0.
      link_shares: float32 [n, C]; rows sum to 1 or 0.
      edges: int32 [n], visible edges of each node.
      kappa: number of edges at which the walk and the links have equal weight.
    """
    has_walk = visit_shares.sum(axis=1) > 0
    has_links = link_shares.sum(axis=1) > 0
    walk_weight = np.where(has_links, edges / np.maximum(edges + kappa, 1e-12), 1.0)
    walk_weight = np.where(has_walk, walk_weight, 0.0).astype(np.float32)[:, None]
    return np.concatenate([visit_shares * walk_weight, link_shares * (1.0 - walk_weight)], axis=1)
