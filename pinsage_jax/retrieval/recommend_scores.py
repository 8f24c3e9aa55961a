"""Ways to score the catalogue for a history, and the exact search for the best items.

Every way is a number of rows of similarities to the catalogue, which each user adds
up with weights: one row a user for the mean vector, one an item of the history for
sharpened similarities.  Rows are made for a tile of users and a block of columns at a
time; nothing larger is held.  Scores are float32.

  U users, H items of all histories, N items, D dimensions, R rows of a tile, C columns
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from scipy import sparse

from pinsage_jax.graph.csr import Graph
from pinsage_jax.progress import Progress
from pinsage_jax.retrieval import recommend_kernels as kernels
from pinsage_jax.retrieval.baselines_graph import incidence

TIE_RULE = "of equal scores the item that comes first in the catalogue"

_COLUMNS = 512
_MOST_USERS = 1 << 15
# Items of the histories of a tile: bounds rows of similarities to 128 MiB.
_MOST_ROWS = 1 << 16


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


class Scorer(Protocol):
    """A way to score the catalogue for histories."""

    name: str

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile of users."""


class Tile(Protocol):
    """Rows of similarities that a tile of users adds up.

    Attributes:
      indptr, rows, weights: int64 [U+1], int32, float32: rows of each user.
    """

    indptr: np.ndarray
    rows: np.ndarray
    weights: np.ndarray

    def block(self, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Similarities float32 [R, C] of some columns, and their scale float32 [C]."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """A tile whose rows come from a function of the columns."""

    indptr: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    block: object


def _row_per_user(count: int, block) -> _Rows:
    users = np.arange(count, dtype=np.int32)
    return _Rows(np.arange(count + 1, dtype=np.int64), users, np.ones(count, np.float32), block)


class Mean:
    """Inner product with the mean of the history's vectors."""

    name = "mean"

    def __init__(self, vectors: np.ndarray):
        """Takes float32 [N, D]."""
        self._vectors = vectors

    def tile(self, histories: Histories) -> Tile:
        lengths = np.diff(histories.indptr)
        share = (1.0 / np.maximum(lengths, 1)).astype(np.float32)
        held = sparse.csr_array(
            (np.repeat(share, lengths), histories.items, histories.indptr),
            shape=(len(histories), len(self._vectors)),
        )
        profiles = np.asarray(held @ self._vectors, np.float32)

        def block(columns: slice) -> tuple[np.ndarray, np.ndarray]:
            part = self._vectors[columns]
            return profiles @ part.T, np.ones(len(part), np.float32)

        return _row_per_user(len(histories), block)


class Queries:
    """Inner product with one given vector a user, for the medoids of interests."""

    name = "queries"

    def __init__(self, vectors: np.ndarray, queries: np.ndarray):
        """Takes float32 [N, D] and float32 [U, D]; all users make one tile."""
        self._vectors, self._queries = vectors, queries

    def tile(self, histories: Histories) -> Tile:
        def block(columns: slice) -> tuple[np.ndarray, np.ndarray]:
            part = self._vectors[columns]
            return self._queries @ part.T, np.ones(len(part), np.float32)

        return _row_per_user(len(histories), block)


class Sharpened:
    """Sum over the history of max(0, z_h . z_i) ** power, times popularity.

    A high power lets the few closest items of a history decide; power 1 of
    similarities that are all positive ranks as the mean does.
    """

    name = "sharpened"

    def __init__(
        self, vectors: np.ndarray, degree: np.ndarray, power: float, popularity: float, threads: int
    ):
        """Takes float32 [N, D] and the items' training edges int [N]."""
        self._vectors, self._power, self._threads = vectors, power, threads
        self._scale = ((1.0 + degree) ** popularity).astype(np.float32)

    def tile(self, histories: Histories) -> Tile:
        used, rows = np.unique(histories.items, return_inverse=True)
        sources = self._vectors[used]

        def block(columns: slice) -> tuple[np.ndarray, np.ndarray]:
            similar = sources @ self._vectors[columns].T
            for_threads(
                lambda begin, end: kernels.sharpen(similar[begin:end], self._power),
                len(similar),
                self._threads,
            )
            return similar, self._scale[columns]

        weights = np.ones(len(rows), np.float32)
        return _Rows(histories.indptr, rows.astype(np.int32), weights, block)


class Popularity:
    """The items with the most edges that the user does not hold."""

    name = "popularity"

    def __init__(self, graph: Graph):
        self._degree = graph.degree()[: graph.num_items].astype(np.float32)

    def tile(self, histories: Histories) -> Tile:
        users = len(histories)

        def block(columns: slice) -> tuple[np.ndarray, np.ndarray]:
            part = self._degree[columns]
            return part[None, :], np.ones(len(part), np.float32)

        rows, weights = np.zeros(users, np.int32), np.ones(users, np.float32)
        return _Rows(np.arange(users + 1, dtype=np.int64), rows, weights, block)


class HistoryKnn:
    """Sum over the history of the cosine of two items' rows of collections."""

    name = "item_knn"

    def __init__(self, graph: Graph):
        matrix = incidence(graph)
        size = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).ravel())
        scale = np.where(size > 0, 1.0 / np.where(size > 0, size, 1.0), 0.0)
        self._rows = sparse.csr_array(sparse.diags_array(scale.astype(np.float32)) @ matrix)

    def tile(self, histories: Histories) -> Tile:
        held = sparse.csr_array(
            (np.ones(len(histories.items), np.float32), histories.items, histories.indptr),
            shape=(len(histories), self._rows.shape[0]),
        )
        reached = sparse.csr_array(held @ self._rows)

        def block(columns: slice) -> tuple[np.ndarray, np.ndarray]:
            part = self._rows[columns]
            return (reached @ part.T).toarray(), np.ones(part.shape[0], np.float32)

        return _row_per_user(len(histories), block)


def best_items(
    scorer: Scorer,
    histories: Histories,
    num_items: int,
    k: int,
    *,
    threads: int = 1,
    exclude: Histories | None = None,
    columns: int = _COLUMNS,
    quiet: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every history, over the whole catalogue.

    Args:
      exclude: items left out for each user; by default those of the history.

    Returns:
      ids int32 [U, k] and scores float32 [U, k], best first, ties by TIE_RULE; -1 and
      -inf where there are fewer candidates.
    """
    users = len(histories)
    ids = np.full((users, k), -1, np.int32)
    scores = np.full((users, k), -np.inf, np.float32)
    seen = exclude or histories
    with Progress(users, "history", f"recommending by {scorer.name}", quiet=quiet) as progress:
        for begin, end in _tiles(histories.indptr):
            chosen = np.arange(begin, end)
            tile, out = scorer.tile(histories.select(chosen)), seen.select(chosen)
            for first in range(0, num_items, columns):
                block, scale = tile.block(slice(first, min(first + columns, num_items)))
                block = np.ascontiguousarray(block, np.float32)

                def work(low: int, high: int) -> None:
                    kernels.fold(
                        block, first, tile.indptr, tile.rows, tile.weights, scale,
                        out.indptr, out.items, low, high, scores[begin:end], ids[begin:end],
                        np.empty(block.shape[1], np.float32),
                    )  # fmt: skip

                for_threads(work, end - begin, threads)
            progress.update(end - begin)
    return ids, scores


def for_threads(work, rows: int, threads: int) -> None:
    """Calls work(begin, end) for `threads` even parts of [0, rows), at once."""
    cuts = np.linspace(0, rows, max(threads, 1) + 1).astype(int).tolist()
    if threads <= 1:
        work(0, rows)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, cuts[:-1], cuts[1:]))


def _tiles(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """Consecutive users whose histories fit in one tile, at least one user each."""
    begin, users = 0, len(indptr) - 1
    while begin < users:
        end = int(np.searchsorted(indptr, indptr[begin] + _MOST_ROWS, side="right")) - 1
        end = min(max(end, begin + 1), begin + _MOST_USERS, users)
        yield begin, end
        begin = end
