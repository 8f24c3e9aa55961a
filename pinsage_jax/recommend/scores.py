"""Scorers of the catalog for a history, and the exact search for the best items.

Every scorer computes rows of similarities to the catalog, and a user's scores are a
weighted sum of such rows: one row per user for the mean vector, one row per history item
for sharpened similarities.  Rows are computed for a tile of users and a block of columns at
a time, which bounds memory.  Scores are float32.

  U users, H items of all histories, N items, C collections, D dimensions, R rows of a tile,
  c columns of a block, B variants of a score, k recommendations
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from pinsage_jax.core.progress import Progress
from pinsage_jax.graph.csr import Graph
from pinsage_jax.recommend import kernels

TIE_RULE = "of equal scores the item that comes first in the catalog"

_COLUMNS = 512
MAX_USERS = 1 << 15
# Distinct items in the histories of a tile: limits its similarities to 128 MiB.
_MAX_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """The items of each user or collection, in compressed sparse rows.

    Attributes:
      indptr: int64 [U+1].
      items: int32 [H], ascending and distinct for each user.
      times: int64 [H], when each item was added; or None.
    """

    indptr: np.ndarray
    items: np.ndarray
    times: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def of(self, user: int) -> np.ndarray:
        """The items of one user, int32."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def select(self, users: np.ndarray) -> Histories:
        """The histories of the given users, in the given order."""
        lengths = np.diff(self.indptr)[users]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.indptr[users] - indptr[:-1], lengths) + np.arange(indptr[-1])
        times = None if self.times is None else self.times[entries]
        return Histories(indptr, self.items[entries], times)

    def owners(self) -> np.ndarray:
        """The user of each entry, int64 [H]."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))


def histories_of(graph: Graph, times: np.ndarray | None = None) -> Histories:
    """The histories of all collections.

    Args:
      graph: the graph.
      times: int64, time of each edge in the order of the items' rows, as in
        prepared/times.npy.
    """
    indptr = np.asarray(graph.indptr[graph.num_items :], np.int64) - graph.num_edges
    items = np.asarray(graph.indices[graph.num_edges :])
    if times is not None:
        # The graph stores every edge twice: by item, and by collection.  A stable sort of the
        # first order by collection gives the second.
        order = np.argsort(graph.indices[: graph.num_edges], kind="stable")
        times = np.asarray(times)[order]
    return Histories(indptr, items, times)


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """Similarity rows, and the weights with which each user of a tile sums them.

    Attributes:
      indptr: int64 [U+1], boundaries of the users' rows.
      rows: int32, the similarity rows of each user.
      weights: float32, the weight of each such row.
      block: maps columns (a slice or an array) to similarities float32 [R, c] and to scales
        of the columns float32 [B, c], one row per variant of the score.
    """

    indptr: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    block: Callable[[slice | np.ndarray], tuple[np.ndarray, np.ndarray]]


class Scorer(Protocol):
    """A method that scores the catalog for histories.

    Attributes:
      name: name of the method.
      max_users: upper bound on the users of one tile.
    """

    name: str
    max_users: int

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile of users."""


def row_per_user(count: int, similarities: Callable[[slice | np.ndarray], np.ndarray]) -> Tile:
    """A tile of `count` users whose scores are `similarities` of columns, float32 [U, c]."""

    def block(columns: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = similarities(columns)
        return rows, np.ones((1, rows.shape[1]), np.float32)

    users = np.arange(count, dtype=np.int32)
    return Tile(np.arange(count + 1, dtype=np.int64), users, np.ones(count, np.float32), block)


class Mean:
    """Inner product with the mean of the history's vectors."""

    name = "mean"
    max_users = MAX_USERS

    def __init__(self, vectors: np.ndarray):
        """Takes the items' vectors, float32 [N, D]."""
        self._vectors = vectors

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile with one similarity row per user."""
        lengths = np.diff(histories.indptr)
        share = (1.0 / np.maximum(lengths, 1)).astype(np.float32)
        averaging = sparse.csr_array(
            (np.repeat(share, lengths), histories.items, histories.indptr),
            shape=(len(histories), len(self._vectors)),
        )
        means = np.asarray(averaging @ self._vectors, np.float32)
        return row_per_user(len(histories), lambda columns: means @ self._vectors[columns].T)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Function of a similarity s: max(0, s) ** value (power) or exp(s / value) (attention)."""

    kind: str  # power or attention
    value: float


class Sharpened:
    """Sum of sharpened similarities to the history's items, times a power of 1 + degree.

    The sharper the function, the more the score depends on the few closest items of the
    history.  Power 1 ranks almost like the mean.  Attention sums exp(z_h . z_i / t) over the
    history, which is proportional to the probability of item i given item h under a network
    trained by softmax at temperature t.
    """

    max_users = MAX_USERS

    def __init__(
        self,
        vectors: np.ndarray,
        degree: np.ndarray,
        shape: Shape,
        popularity: float | tuple[float, ...],
        rarity: float,
        threads: int,
        bound: float | None = None,
    ):
        """Prepares the scales of items and the weights of history items.

        Args:
          vectors: float32 [N, D].
          degree: int [N], number of training edges of each item.
          shape: function of a similarity.
          popularity: exponent of the scored item's 1 + degree; several exponents give as
            many variants of the score.
          rarity: exponent of a history item's 1 / (1 + degree).
          threads: number of threads.
          bound: subtracted from similarities in attention; None: an upper bound of them.
        """
        self.name = shape.kind
        self._vectors, self._shape, self._threads = vectors, shape, threads
        exponents = np.atleast_1d(np.asarray(popularity, np.float64))
        self._scales = ((1.0 + degree) ** exponents[:, None]).astype(np.float32)
        self._item_weights = ((1.0 + degree) ** -rarity).astype(np.float32)
        # An upper bound of all similarities; subtracted, it keeps exponentials from overflow.
        if bound is None:
            bound = float(np.square(vectors, dtype=np.float64).sum(axis=1).max(initial=0.0))
        self._bound = bound

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile with one similarity row per distinct item of the histories."""
        used, rows = np.unique(histories.items, return_inverse=True)
        sources = self._vectors[used]

        def block(columns: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            similarities = sources @ self._vectors[columns].T
            run_in_threads(
                lambda begin, end: self._sharpen(similarities[begin:end]),
                len(similarities),
                self._threads,
            )
            return similarities, self._scales[:, columns]

        weights = self._item_weights[histories.items]
        return Tile(histories.indptr, rows.astype(np.int32), weights, block)

    def _sharpen(self, similarities: np.ndarray) -> None:
        """Applies the shape to similarities [R, c] in place."""
        if self._shape.kind == "power":
            kernels.sharpen(similarities, self._shape.value)
            return
        similarities -= np.float32(self._bound)
        similarities *= np.float32(1.0 / self._shape.value)
        np.exp(similarities, out=similarities)


@dataclasses.dataclass(frozen=True)
class Scan:
    """How a scorer goes through the catalog.

    Attributes:
      threads: number of threads.
      columns: items per block.
      quiet: whether to show no progress bar.
    """

    threads: int = 1
    columns: int = _COLUMNS
    quiet: bool = False


_DEFAULT_SCAN = Scan()


def best_items(
    scorer: Scorer, histories: Histories, num_items: int, k: int, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every history, for a scorer with a single variant.

    The arguments are those of `best_of_variants`.

    Returns:
      ids int32 [U, k] and scores float32 [U, k], best first, ties by TIE_RULE; padded with -1
      and -inf.
    """
    ids, scores = best_of_variants(scorer, histories, num_items, k, 1, **settings)
    return ids[0], scores[0]


def best_of_variants(
    scorer: Scorer,
    histories: Histories,
    num_items: int,
    k: int,
    variants: int,
    *,
    exclude: Histories | None = None,
    items: np.ndarray | None = None,
    scan: Scan = _DEFAULT_SCAN,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of the whole catalog for every history and variant of the score.

    Args:
      scorer: scores the catalog.
      histories: the items of each user.
      num_items: N.
      k: number of items to return.
      variants: B, the number of variants of the scorer.
      exclude: items that must not be returned for each user; default: the histories.
      items: the items that may be returned, int64, ascending; default: all.
      scan: threads, size of blocks and progress; no result depends on it.

    Returns:
      ids int32 [B, U, k] and scores float32 [B, U, k], as those of `best_items`.
    """
    users = len(histories)
    ids = np.full((variants, users, k), -1, np.int32)
    scores = np.full((variants, users, k), -np.inf, np.float32)
    exclude, candidates = exclude or histories, num_items
    if items is not None:
        exclude, candidates = _among(exclude, items), len(items)
    with Progress(users, "history", f"recommending by {scorer.name}", quiet=scan.quiet) as progress:
        for begin, end in _tiles(histories.indptr, num_items, scorer.max_users):
            chosen = np.arange(begin, end)
            tile, excluded = scorer.tile(histories.select(chosen)), exclude.select(chosen)
            best_ids, best_scores = ids[:, begin:end].copy(), scores[:, begin:end].copy()
            for first in range(0, candidates, scan.columns):
                block = slice(first, min(first + scan.columns, candidates))
                found = tile.block(block if items is None else items[block])
                _merge_block(found, first, tile, excluded, best_scores, best_ids, scan.threads)
            ids[:, begin:end], scores[:, begin:end] = best_ids, best_scores
            progress.update(end - begin)
    if items is not None and len(items):
        ids = np.where(ids >= 0, items[ids], -1).astype(np.int32)
    return ids, scores


def _among(histories: Histories, items: np.ndarray) -> Histories:
    """The histories restricted to `items`, as positions in `items`."""
    position = np.searchsorted(items, histories.items)
    found = np.append(items, -1)[position] == histories.items
    counts = np.concatenate([[0], np.cumsum(found)])
    return Histories(counts[histories.indptr].astype(np.int64), position[found].astype(np.int32))


def _merge_block(
    found: tuple[np.ndarray, np.ndarray],
    first: int,
    tile: Tile,
    excluded: Histories,
    scores: np.ndarray,
    ids: np.ndarray,
    threads: int,
) -> None:
    """Scores a block of columns from `first` on, and merges it into scores and ids [B, U, k]."""
    block, scales = (np.ascontiguousarray(array, np.float32) for array in found)

    def work(low: int, high: int) -> None:
        kernels.merge_block(
            block, first, tile.indptr, tile.rows, tile.weights, scales, excluded.indptr,
            excluded.items, low, high, scores, ids, np.empty(block.shape[1], np.float32),
        )  # fmt: skip

    run_in_threads(work, len(excluded), threads)


def run_in_threads(work: Callable[[int, int], None], rows: int, threads: int) -> None:
    """Calls work(begin, end) for `threads` parts of [0, rows) of equal size, in parallel."""
    if threads <= 1:
        work(0, rows)
        return
    boundaries = np.linspace(0, rows, threads + 1).astype(int).tolist()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, boundaries[:-1], boundaries[1:]))


def _tiles(indptr: np.ndarray, num_items: int, max_users: int) -> Iterator[tuple[int, int]]:
    """Yields ranges (begin, end) of consecutive users that fit in one tile, at least one user."""
    begin, users = 0, len(indptr) - 1
    while begin < users:
        end = min(begin + max_users, users)
        # A smaller catalog cannot exceed the limit of distinct items.
        if num_items > _MAX_ROWS:
            last = int(np.searchsorted(indptr, indptr[begin] + _MAX_ROWS, side="right")) - 1
            end = min(end, max(last, begin + 1))
        yield begin, end
        begin = end
