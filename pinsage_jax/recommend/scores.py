"""Ways to score the catalog for a history, and the exact search for the best items.

Every way is a number of rows of similarities to the catalog, which each user adds
up with weights: one row a user for the mean vector, one an item of the history for
sharpened similarities.  Rows are made for a tile of users and a block of columns at a
time; nothing larger is held.  Scores are float32.

  U users, H items of all histories, N items, D dimensions, R rows of a tile, C columns
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from pinsage_jax.core.progress import Progress
from pinsage_jax.evaluation.baselines_graph import incidence
from pinsage_jax.graph.csr import Graph
from pinsage_jax.recommend import kernels as kernels

TIE_RULE = "of equal scores the item that comes first in the catalog"

_COLUMNS = 512
_MOST_USERS = 1 << 15
# Distinct items in the histories of a tile: bounds rows of similarities to 128 MiB.
_MOST_ROWS = 1 << 16
# A user of item-kNN reaches a good part of all collections.
_MOST_KNN_USERS = 1 << 11


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """What each user (or collection) holds.

    Attributes:
      indptr: int64 [U+1].
      items: int32 [H], ascending for each user, no duplicates.
      times: int64 [H] or None.
    """

    indptr: np.ndarray
    items: np.ndarray
    times: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def of(self, user: int) -> np.ndarray:
        """Items of one user, int32."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def select(self, users: np.ndarray) -> Histories:
        """The histories of some users, in their order."""
        lengths = np.diff(self.indptr)[users]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.repeat(self.indptr[users] - indptr[:-1], lengths) + np.arange(indptr[-1])
        times = None if self.times is None else self.times[places]
        return Histories(indptr, self.items[places], times)

    def owners(self) -> np.ndarray:
        """The user of each entry, int64 [H]."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))


def histories_of(graph: Graph, times: np.ndarray | None = None) -> Histories:
    """The items of every collection.

    Args:
      times: int64 [E] in the order of the items' rows, as prepared/times.npy.
    """
    indptr = np.asarray(graph.indptr[graph.num_items :], np.int64) - graph.num_edges
    items = np.asarray(graph.indices[graph.num_edges :])
    if times is not None:
        # Both halves list the edges by item, then collection, if the sort is stable.
        order = np.argsort(graph.indices[: graph.num_edges], kind="stable")
        times = np.asarray(times)[order]
    return Histories(indptr, items, times)


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
    """Rows of similarities that a tile of users adds up.

    Attributes:
      indptr int64 [U+1], rows int32, weights float32: the rows of each user.
      block: from columns, a slice or an array, to similarities float32 [R, C] and the
        scales of the columns float32 [B, C], one for each variant of the score.
    """

    indptr: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    block: Callable[[slice | np.ndarray], tuple[np.ndarray, np.ndarray]]


class Scorer(Protocol):
    """A way to score the catalog for histories.

    Attributes:
      most_users: users that fit in one tile.
    """

    name: str
    most_users: int

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile of users."""


def _row_per_user(count: int, similar: Callable[[slice | np.ndarray], np.ndarray]) -> Tile:
    def block(columns: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = similar(columns)
        return found, np.ones((1, found.shape[1]), np.float32)

    users = np.arange(count, dtype=np.int32)
    return Tile(np.arange(count + 1, dtype=np.int64), users, np.ones(count, np.float32), block)


class Mean:
    """Inner product with the mean of the history's vectors."""

    name = "mean"
    most_users = _MOST_USERS

    def __init__(self, vectors: np.ndarray):
        """Takes float32 [N, D]."""
        self._vectors = vectors

    def tile(self, histories: Histories) -> Tile:
        """One row a user."""
        lengths = np.diff(histories.indptr)
        share = (1.0 / np.maximum(lengths, 1)).astype(np.float32)
        held = sparse.csr_array(
            (np.repeat(share, lengths), histories.items, histories.indptr),
            shape=(len(histories), len(self._vectors)),
        )
        profiles = np.asarray(held @ self._vectors, np.float32)
        return _row_per_user(len(histories), lambda columns: profiles @ self._vectors[columns].T)


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a similarity counts: max(0, s) ** value, or exp(s / value)."""

    kind: str  # power or attention
    value: float


class Sharpened:
    """Sum of sharpened similarities to the history, times popularity.

    The sharper, the more the few closest items of a history decide.  Power 1 ranks
    much as the mean does.  Attention adds up what each item of the history says on its
    own, exp(z_h . z_i / t) being the odds that a network trained by softmax at
    temperature t gives item i after item h.
    """

    most_users = _MOST_USERS

    def __init__(
        self,
        vectors: np.ndarray,
        degree: np.ndarray,
        shape: Shape,
        popularity: float | tuple[float, ...],
        rarity: float,
        threads: int,
    ):
        """Takes float32 [N, D] and the items' training edges int [N].

        Args:
          popularity: the item's exponent of 1 + degree; several give several variants.
          rarity: the history's exponent of 1 / (1 + degree).
        """
        self.name = shape.kind
        self._vectors, self._shape, self._threads = vectors, shape, threads
        exponents = np.atleast_1d(np.asarray(popularity, np.float64))
        self._scales = ((1.0 + degree) ** exponents[:, None]).astype(np.float32)
        self._worth = ((1.0 + degree) ** -rarity).astype(np.float32)
        # No similarity is greater, so that no exponential overflows.
        self._most = float(np.square(vectors, dtype=np.float64).sum(axis=1).max(initial=0.0))

    def tile(self, histories: Histories) -> Tile:
        """One row an item of any of the histories."""
        used, rows = np.unique(histories.items, return_inverse=True)
        sources = self._vectors[used]

        def block(columns: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            similar = sources @ self._vectors[columns].T
            for_threads(
                lambda begin, end: self._sharpen(similar[begin:end]), len(similar), self._threads
            )
            return similar, self._scales[:, columns]

        weights = self._worth[histories.items]
        return Tile(histories.indptr, rows.astype(np.int32), weights, block)

    def _sharpen(self, similar: np.ndarray) -> None:
        if self._shape.kind == "power":
            kernels.sharpen(similar, self._shape.value)
            return
        similar -= np.float32(self._most)
        similar *= np.float32(1.0 / self._shape.value)
        np.exp(similar, out=similar)


class Popularity:
    """The items with the most edges that the user does not hold."""

    name = "popularity"
    most_users = _MOST_USERS

    def __init__(self, graph: Graph):
        self._degree = graph.degree()[None, : graph.num_items].astype(np.float32)

    def tile(self, histories: Histories) -> Tile:
        """One row that all users share."""
        shared = _row_per_user(len(histories), lambda columns: self._degree[:, columns])
        return dataclasses.replace(shared, rows=np.zeros(len(histories), np.int32))


class HistoryKnn:
    """Sum over the history of the cosine of two items' rows of collections."""

    name = "item_knn"
    most_users = _MOST_KNN_USERS

    def __init__(self, graph: Graph):
        matrix = incidence(graph)
        size = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).ravel())
        scale = np.where(size > 0, 1.0 / np.where(size > 0, size, 1.0), 0.0)
        self._rows = sparse.csr_array(sparse.diags_array(scale.astype(np.float32)) @ matrix)

    def tile(self, histories: Histories) -> Tile:
        """One row a user."""
        held = sparse.csr_array(
            (np.ones(len(histories.items), np.float32), histories.items, histories.indptr),
            shape=(len(histories), self._rows.shape[0]),
        )
        reached = sparse.csr_array(held @ self._rows)
        return _row_per_user(
            len(histories), lambda columns: (reached @ self._rows[columns].T).toarray()
        )


def best_items(
    scorer: Scorer, histories: Histories, num_items: int, k: int, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every history: best_of_variants for the only variant.

    Returns:
      ids int32 [U, k] and scores float32 [U, k], best first, ties by TIE_RULE; -1 and
      -inf where there are fewer candidates.
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
    threads: int = 1,
    exclude: Histories | None = None,
    columns: int = _COLUMNS,
    quiet: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every history, over the whole catalog.

    Args:
      variants: B, scores that the scorer gives at once.
      exclude: items left out for each user; by default those of the history.

    Returns:
      ids int32 [B, U, k] and scores float32 [B, U, k], as best_items has them.
    """
    users = len(histories)
    ids = np.full((variants, users, k), -1, np.int32)
    scores = np.full((variants, users, k), -np.inf, np.float32)
    seen = exclude or histories
    with Progress(users, "history", f"recommending by {scorer.name}", quiet=quiet) as progress:
        for begin, end in _tiles(histories.indptr, num_items, scorer.most_users):
            chosen = np.arange(begin, end)
            tile, out = scorer.tile(histories.select(chosen)), seen.select(chosen)
            found_ids, found_scores = ids[:, begin:end].copy(), scores[:, begin:end].copy()
            for first in range(0, num_items, columns):
                part = slice(first, min(first + columns, num_items))
                _fold(tile, part, out, found_scores, found_ids, threads)
            ids[:, begin:end], scores[:, begin:end] = found_ids, found_scores
            progress.update(end - begin)
    return ids, scores


def _fold(
    tile: Tile, part: slice, out: Histories, scores: np.ndarray, ids: np.ndarray, threads: int
) -> None:
    block, scales = (np.ascontiguousarray(array, np.float32) for array in tile.block(part))

    def work(low: int, high: int) -> None:
        kernels.fold(
            block, part.start, tile.indptr, tile.rows, tile.weights, scales, out.indptr,
            out.items, low, high, scores, ids, np.empty(block.shape[1], np.float32),
        )  # fmt: skip

    for_threads(work, len(out), threads)


def for_threads(work: Callable[[int, int], None], rows: int, threads: int) -> None:
    """Calls work(begin, end) for `threads` even parts of [0, rows), at once."""
    cuts = np.linspace(0, rows, max(threads, 1) + 1).astype(int).tolist()
    if threads <= 1:
        work(0, rows)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, cuts[:-1], cuts[1:]))


def _tiles(indptr: np.ndarray, num_items: int, most_users: int) -> Iterator[tuple[int, int]]:
    """Consecutive users that fit in one tile, at least one user each."""
    begin, users = 0, len(indptr) - 1
    while begin < users:
        end = min(begin + most_users, users)
        # A smaller catalog has not that many items to hold.
        if num_items > _MOST_ROWS:
            fits = int(np.searchsorted(indptr, indptr[begin] + _MOST_ROWS, side="right")) - 1
            end = min(end, max(fits, begin + 1))
        yield begin, end
        begin = end
