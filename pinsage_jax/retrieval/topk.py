"""Exact retrieval by inner product, in blocks that never exceed a fixed size.

Scores are float32 inner products at full precision; nothing larger than
query_block x catalog_block is held.  The last block of either side is padded, so
that a catalog of one size compiles once (top_k: once more for the last block).

  Q queries, N catalog rows, D dimensions, P pairs
"""

from __future__ import annotations

import functools
import os
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.core.errors import UserError
from pinsage_jax.retrieval import kernels
from pinsage_jax.retrieval.ranks import tie_rank
from pinsage_jax.sampling.neighborhoods import run_blocks

# Few queries against many rows: the cost of top_k beside the product falls with the
# number of rows it selects from.
TOP_K_QUERIES = 256
_ALIGNED = 128
# Not powers of two: rows of 2**n bytes fight for the same lines of a CPU's caches.
TOP_K_ROWS = 225 * _ALIGNED
# Queries that a host thread selects for at once.
_HOST_QUERIES = 32
_RANK_QUERIES = 1024
_RANK_ROWS = (1 << 12) - _ALIGNED
# Counts of "greater" (times this) and "equal" share one float32, exact up to 2**24,
# so a block has at most this many rows.
_GREATER = 1 << 12


def inner_products(queries: jax.Array, block: jax.Array) -> jax.Array:
    """float32 [q, c] scores of queries [q, D] and catalog rows [c, D]."""
    # "highest": some accelerators would round float32 inputs to 10 bits of mantissa.
    return jax.lax.dot_general(queries, block, (((1,), (1,)), ((), ())), precision="highest")


_scores = jax.jit(inner_products)


def _top(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # jax.lax.top_k prefers the lower column of equals, but puts -0.0 behind 0.0.
    return jax.lax.top_k(jnp.where(scores == 0, 0.0, scores), k)


def _select(scores: jax.Array, k: int, rows: int) -> tuple[jax.Array, jax.Array]:
    """The k best of the first `rows` columns of each row, and their places.

    Faster than _top for small k.  The k best are inside the k runs of columns with the
    best maximum: were one in another run, each of those k runs would hold a better one
    (or an equal one with a lower column, as runs are in order).
    """
    queries, columns = scores.shape
    width = 1
    while 4 * width * width * k <= columns and columns % (2 * width) == 0:
        width *= 2
    if width < 4:
        return _top(jnp.where(jnp.arange(columns)[None, :] < rows, scores, -jnp.inf), k)
    runs = scores.reshape(queries, columns // width, width)
    best = runs.max(axis=2)
    if rows < columns:
        # A mask over all scores would cost as much as the product itself, so only the
        # run that the padding cuts, and those behind it, are corrected.
        cut = rows // width
        inside = jnp.arange(width)[None, :] < rows - cut * width
        cut_run = scores[:, cut * width : (cut + 1) * width]
        best = best.at[:, cut + 1 :].set(-jnp.inf)
        best = best.at[:, cut].set(jnp.where(inside, cut_run, -jnp.inf).max(axis=1))
    _, chosen = _top(best, k)
    # In order of columns, so that equal scores keep preferring the lower one.
    chosen = jnp.sort(chosen, axis=1)[:, :, None]
    candidates = jnp.take_along_axis(runs, chosen, axis=1)
    places = chosen * width + jnp.arange(width)[None, None, :]
    candidates = jnp.where(places < rows, candidates, -jnp.inf).reshape(queries, k * width)
    top, taken = _top(candidates, k)
    return top, jnp.take_along_axis(places.reshape(queries, k * width), taken, axis=1)


@functools.partial(jax.jit, static_argnames="rows")
def _fold_block(best_scores, best_ids, queries, block, first, *, rows):
    """Merges the best of one catalog block into the best so far.

    Args:
      best_scores float32 [q, k], best_ids int32 [q, k]: best first, -inf and -1 padded.
      queries float32 [q, D], block float32 [c, D].
      first: catalog row of the block's row 0.
      rows: how many rows of the block are real; static, as only the last differs.
    """
    size = best_scores.shape[1]
    top, places = _select(inner_products(queries, block), min(size, block.shape[0]), rows)
    found = jnp.where(places < rows, first + places, -1)
    # Earlier of equals first: earlier blocks, then lower rows, so lower ids.
    best, places = _top(jnp.concatenate([best_scores, top], axis=1), size)
    merged_ids = jnp.concatenate([best_ids, found], axis=1)
    return best, jnp.take_along_axis(merged_ids, places, axis=1)


@jax.jit
def _count_block(queries, block, own, target, threshold):
    """Scores of targets in one block, and how many candidates reach a threshold.

    Args:
      own, target: int32 [q], places in this block (outside [0, c): elsewhere).
      threshold: float32 [q].

    Returns:
      float32 [q] the target's score (meaningless when elsewhere), and int32 [q]
      _GREATER * greater + equal over candidates other than `own` and `target`.
    """
    last = block.shape[0] - 1
    scores = inner_products(queries, block)

    def worth(some_scores, limits):
        equal = jnp.where(some_scores == limits, 1.0, 0.0)
        return jnp.where(some_scores > limits, float(_GREATER), equal)

    # The sum runs over all columns without masks, as a product with ones: on a CPU a
    # sum or masks would cost as much as the scores.  What is no candidate is taken out
    # again; padded rows are NaN, which is neither greater nor equal.
    ones = jnp.ones((1, block.shape[0]), jnp.float32)
    counts = inner_products(worth(scores, threshold[:, None]), ones)[:, 0]
    places = jnp.stack([own, target], axis=1)
    picked = jnp.take_along_axis(scores, jnp.clip(places, 0, last), axis=1)
    inside = (places >= 0) & (places <= last)
    counts -= jnp.where(inside, worth(picked, threshold[:, None]), 0.0).sum(axis=1)
    return picked[:, 1], counts.astype(jnp.int32)


class Rows(Protocol):
    """Vectors [N, D] that are made when consecutive rows are read."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """float [n, D]."""


def top_k(
    queries: np.ndarray,
    catalog: np.ndarray | Rows,
    k: int,
    exclude_self: np.ndarray | None = None,
    *,
    query_block: int = TOP_K_QUERIES,
    catalog_block: int = TOP_K_ROWS,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best catalog rows of every query; equal scores by lower id.

    Args:
      queries: float [Q, D].
      catalog: float [N, D]; may be memory-mapped.
      exclude_self: int [Q], a catalog row that is no candidate of the query; -1: none.

    Returns:
      ids int32 [Q, k] and scores float32 [Q, k], best first; where there are fewer
      than k candidates, -1 and -inf.

    Raises:
      UserError: a value is NaN or infinite.
    """
    total, rows = len(queries), len(catalog)
    ids = np.full((total, k), -1, np.int32)
    scores = np.full((total, k), -np.inf, np.float32)
    # One more than asked, so that the query itself can be taken out at the end.
    kept = min(k if exclude_self is None else k + 1, rows)
    if total == 0 or kept == 0:
        return ids, scores
    query_block = even_blocks(total, query_block)
    catalog_block = even_blocks(rows, catalog_block)
    starts = range(0, total, query_block)
    parts = [_block(queries, start, query_block, "query") for start in starts]
    find = _best_on_host if jax.default_backend() == "cpu" else _best_on_device
    best = find(parts, catalog, catalog_block, kept)
    for start, (best_scores, best_ids) in zip(starts, best):
        size = min(query_block, total - start)
        best_ids, best_scores = best_ids[:size], best_scores[:size]
        if exclude_self is not None:
            own = np.asarray(exclude_self)[start : start + size, None]
            last = (best_ids == own).argsort(axis=1, kind="stable")[:, :k]
            own_left = np.take_along_axis(best_ids, last, 1) == own
            best_ids = np.where(own_left, -1, np.take_along_axis(best_ids, last, 1))
            best_scores = np.where(own_left, -np.inf, np.take_along_axis(best_scores, last, 1))
        ids[start : start + size, : best_ids.shape[1]] = best_ids
        scores[start : start + size, : best_scores.shape[1]] = best_scores
    return ids, scores


def _best_on_device(
    parts: list[jax.Array], catalog: np.ndarray | Rows, size: int, kept: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and ids [q, kept], best first, of every block of queries, selected by XLA."""
    nothing = (
        jnp.full((len(parts[0]), kept), -jnp.inf),
        jnp.full((len(parts[0]), kept), -1, jnp.int32),
    )
    best = [nothing] * len(parts)
    for first in range(0, len(catalog), size):
        block = _block(catalog, first, size, "catalog")
        left = min(size, len(catalog) - first)
        best = [
            _fold_block(*so_far, part, block, np.int32(first), rows=left)
            for so_far, part in zip(best, parts)
        ]
    return [(np.asarray(scores), np.asarray(ids)) for scores, ids in best]


def _best_on_host(
    parts: list[jax.Array], catalog: np.ndarray | Rows, size: int, kept: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """As `_best_on_device`, selected by topk_kernels while XLA makes the next scores."""
    rows = len(parts[0])
    best = [
        (
            np.empty((rows, kernels.room(kept)), np.uint64),
            np.zeros(rows, np.int64),
            np.full(rows, -np.inf, np.float32),
        )
        for _ in parts
    ]
    threads = len(os.sched_getaffinity(0))

    def keep(number: int, first: int, made: jax.Array) -> None:
        scores, columns = np.asarray(made), min(size, len(catalog) - first)

        def work(begin: int, end: int) -> None:
            some = slice(begin, end)
            state = (array[some] for array in best[number])
            kernels.keep_best(scores[some], columns, first, kept, *state)

        run_blocks(len(scores), threads, work, _HOST_QUERIES)

    last: tuple[int, int, jax.Array] | None = None
    for first in range(0, len(catalog), size):
        block = _block(catalog, first, size, "catalog")
        for number, part in enumerate(parts):
            made = _scores(part, block)
            if last is not None:
                keep(*last)
            last = number, first, made
    if last is not None:
        keep(*last)
    shape = (len(parts) * rows, kept)
    scores, ids = np.empty(shape, np.float32), np.empty(shape, np.int32)

    def sort(number: int, _: int) -> None:
        own = slice(number * rows, (number + 1) * rows)
        kernels.sort_best(*best[number][:2], kept, scores[own], ids[own])

    run_blocks(len(best), threads, sort, 1)
    return [(scores[at : at + rows], ids[at : at + rows]) for at in range(0, shape[0], rows)]


def target_ranks(
    queries: np.ndarray,
    catalog: np.ndarray,
    query_ids: np.ndarray,
    target_ids: np.ndarray,
    *,
    query_block: int = _RANK_QUERIES,
    catalog_block: int | None = None,
) -> np.ndarray:
    """Exact rank of each pair's target in the whole catalog, by ranks.TIE_RULE.

    The target's score comes out of the very program, on the very block, that its
    rivals are scored with, so that equal vectors have equal scores.  That costs one
    more product a pair with a single block; nothing is sorted.

    Args:
      queries: float [P, D], one row a pair.
      catalog: float [N, D]; may be memory-mapped.
      query_ids: int [P], catalog row of the query, no candidate; -1: none.
      target_ids: int [P], catalog row of the target, other than the query.

    Returns:
      int64 [P], from 1.

    Raises:
      UserError: a value is NaN or infinite.
      ValueError: a target is its own query or no row of the catalog.
    """
    total, rows = len(queries), len(catalog)
    query_ids = np.asarray(query_ids, np.int64)
    target_ids = np.asarray(target_ids, np.int64)
    if np.any(query_ids == target_ids):
        raise ValueError("a target is its own query")
    if total and not (target_ids.min() >= 0 and target_ids.max() < rows):
        raise ValueError(f"targets must lie in [0, {rows})")
    if total == 0:
        return np.empty(0, np.int64)
    # Eight blocks where there is enough to cut: the extra product is an eighth.
    catalog_block = min(catalog_block or max(-(-rows // 8), 512), _RANK_ROWS)
    catalog_block = even_blocks(rows, catalog_block)
    query_block = even_blocks(total, query_block)

    def run(block, first, part, pairs, start, threshold):
        own = _cut(query_ids[pairs] - first, start, query_block, np.int32)
        target = _cut(target_ids[pairs] - first, start, query_block, np.int32)
        return _count_block(part, block, own, target, threshold)

    # Pass 1: each pair against the one block that holds its target.
    threshold = np.zeros(total, np.float32)
    order = np.argsort(target_ids // catalog_block, kind="stable")
    holder = target_ids[order] // catalog_block
    zero = np.zeros(query_block, np.float32)
    for number in np.unique(holder):
        first = int(number) * catalog_block
        block = _block(catalog, first, catalog_block, "catalog", np.nan)
        pairs = order[np.searchsorted(holder, number) : np.searchsorted(holder, number, "right")]
        for start in range(0, len(pairs), query_block):
            chosen = pairs[start : start + query_block]
            part = _block(queries[chosen], 0, query_block, "query")
            picked, _ = run(block, first, part, pairs, start, zero)
            threshold[chosen] = np.asarray(picked)[: len(chosen)]

    # Pass 2: every pair against every block.
    everything = np.arange(total)
    starts = range(0, total, query_block)
    parts = [_block(queries, start, query_block, "query") for start in starts]
    cuts = [_cut(threshold, start, query_block, np.float32) for start in starts]
    greater, equal = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for first in range(0, rows, catalog_block):
        block = _block(catalog, first, catalog_block, "catalog", np.nan)
        counted = [
            run(block, first, part, everything, start, cut)[1]
            for start, part, cut in zip(starts, parts, cuts)
        ]
        counts = np.concatenate([np.asarray(part) for part in counted])[:total]
        greater += counts // _GREATER
        equal += counts % _GREATER
    return tie_rank(greater, equal)


def even_blocks(size: int, most: int) -> int:
    """Rows per block, at most `most`, that cut `size` rows with little padding."""
    blocks = -(-size // most)
    even = -(-size // blocks)
    # Whole vector registers, and runs of columns for _select.
    return min(-(-even // _ALIGNED) * _ALIGNED, most)


def _cut(array: np.ndarray, start: int, size: int, dtype: type) -> np.ndarray:
    """array[start : start + size], padded with zeros at the end."""
    result: np.ndarray = np.zeros(size, dtype)
    piece = array[start : start + size]
    result[: len(piece)] = piece
    return result


def _block(
    array: np.ndarray | Rows, start: int, size: int, side: str, padding: float = 0.0
) -> jax.Array:
    """Rows [start, start + size) on the device as float32, padded at the end."""
    piece = np.asarray(array[start : start + size], np.float32)
    if not np.isfinite(piece).all():
        row = start + int(np.flatnonzero(~np.isfinite(piece).all(axis=1))[0])
        raise UserError(
            f"The vector of {side} row {row} is not finite; "
            "train again with a lower --learning_rate."
        )
    if len(piece) < size:
        padded = np.full((size, piece.shape[1]), padding, np.float32)
        padded[: len(piece)] = piece
        piece = padded
    return jnp.asarray(piece)
