"""Exact top-k and exact ranks by inner product, in blocks of bounded size.

Scores are float32 inner products at full precision; no array is larger than
query_block x catalog_block.  The last block of queries and of catalog rows is padded, so
that XLA compiles once per catalog size (top_k: once more for the last block).

On accelerators a catalog that fits in the memory of the local devices is placed there whole
(blocks.ResidentCatalog), and thousands of queries are scored at once.

  Q queries, N catalog rows, D dimensions, P pairs
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.retrieval import blocks, kernels
from pinsage_jax.retrieval.blocks import (
    TOP_K_ROWS,
    ResidentCatalog,
    Rows,
    even_blocks,
    host_block,
    inner_products,
    select,
    top_of,
)
from pinsage_jax.retrieval.ranks import tie_rank
from pinsage_jax.sampling.neighborhoods import run_blocks

# Few queries against many rows: relative to the matrix product, selection becomes cheaper
# as the number of rows grows.
TOP_K_QUERIES = 256
# Queries that a resident catalog scores at once.
RESIDENT_QUERIES = 4096
# Queries per task of a host thread.
_HOST_QUERIES = 32
_RANK_QUERIES = 1024
_RANK_ROWS = (1 << 12) - 128
# One float32 holds _GREATER * (count of greater scores) + (count of equal scores).  It is
# exact up to 2**24, so a block has at most _GREATER rows.
_GREATER = 1 << 12

_scores = jax.jit(inner_products)


@functools.partial(jax.jit, static_argnames="rows")
def fold_block(best_scores, best_ids, queries, block, first, *, rows):
    """Merges the best of one catalog block into the best of the blocks before it.

    Args:
      best_scores: float32 [q, k], best first, padded with -inf.
      best_ids: int32 [q, k], padded with -1.
      queries: float32 [q, D].
      block: float32 [c, D].
      first: catalog row of the block's row 0.
      rows: number of rows of the block that are not padding; static, because it differs in
        the last block only.
    """
    size = best_scores.shape[1]
    top, columns = select(inner_products(queries, block), min(size, block.shape[0]), rows)
    found = jnp.where(columns < rows, first + columns, -1)
    # Of equal scores the earlier position wins: earlier blocks come first, then lower rows,
    # so the lower id wins.
    best, positions = top_of(jnp.concatenate([best_scores, top], axis=1), size)
    merged_ids = jnp.concatenate([best_ids, found], axis=1)
    return best, jnp.take_along_axis(merged_ids, positions, axis=1)


@jax.jit
def _count_block(queries, block, excluded, target, threshold):
    """Scores of the targets in one block, and the number of candidates at or above a threshold.

    Args:
      queries: float32 [q, D].
      block: float32 [c, D].
      excluded, target: int32 [q], rows of this block; outside [0, c): not in this block.
      threshold: float32 [q].

    Returns:
      The target's score, float32 [q] (meaningless if the target is not in this block), and
      int32 [q] _GREATER * greater + equal over candidates other than `excluded` and `target`.
    """
    last = block.shape[0] - 1
    scores = inner_products(queries, block)

    def encode(some_scores, limits):
        equal = jnp.where(some_scores == limits, 1.0, 0.0)
        return jnp.where(some_scores > limits, float(_GREATER), equal)

    # The sum runs over all columns, as a product with ones: on a CPU a masked sum would cost
    # as much as the scores.  The excluded row and the target are subtracted afterwards;
    # padded rows are NaN, which is neither greater nor equal.
    ones = jnp.ones((1, block.shape[0]), jnp.float32)
    counts = inner_products(encode(scores, threshold[:, None]), ones)[:, 0]
    rows = jnp.stack([excluded, target], axis=1)
    picked = jnp.take_along_axis(scores, jnp.clip(rows, 0, last), axis=1)
    inside = (rows >= 0) & (rows <= last)
    counts -= jnp.where(inside, encode(picked, threshold[:, None]), 0.0).sum(axis=1)
    return picked[:, 1], counts.astype(jnp.int32)


def top_k(
    queries: np.ndarray,
    catalog: np.ndarray | Rows | ResidentCatalog,
    k: int,
    exclude_self: np.ndarray | None = None,
    *,
    query_block: int | None = None,
    catalog_block: int = TOP_K_ROWS,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k catalog rows of highest inner product with every query.

    Args:
      queries: float [Q, D].
      catalog: float [N, D]; may be memory-mapped, or on the devices already.
      exclude_self: int [Q], a catalog row that is no candidate of the query; -1: none.
      query_block: upper bound on the queries per block; None: as many as suit the device.
      catalog_block: upper bound on the catalog rows per block.

    Returns:
      ids int32 [Q, k] and scores float32 [Q, k], best first and of equal scores the lower
      id first; padded with -1 and -inf where there are fewer than k candidates.

    Raises:
      UserError: a value is NaN or infinite.
    """
    total, rows = len(queries), len(catalog)
    ids = np.full((total, k), -1, np.int32)
    scores = np.full((total, k), -np.inf, np.float32)
    # One more than k, so that the query itself can be removed at the end.
    depth = min(k if exclude_self is None else k + 1, rows)
    if total == 0 or depth == 0:
        return ids, scores
    if not isinstance(catalog, ResidentCatalog) and _is_placed(catalog):
        catalog = ResidentCatalog(catalog, catalog_block)
    if isinstance(catalog, ResidentCatalog):
        query_block = even_blocks(total, query_block or RESIDENT_QUERIES)
        starts = range(0, total, query_block)
        parts = [host_block(queries, start, query_block, "query") for start in starts]
        best = _best_of_resident(parts, catalog, depth)
    else:
        query_block = even_blocks(total, query_block or TOP_K_QUERIES)
        starts = range(0, total, query_block)
        find = _best_on_host if jax.default_backend() == "cpu" else _best_on_device
        sent = [jnp.asarray(host_block(queries, start, query_block, "query")) for start in starts]
        best = find(sent, catalog, even_blocks(rows, catalog_block), depth)
    for start, (best_scores, best_ids) in zip(starts, best):
        size = min(query_block, total - start)
        best_ids, best_scores = best_ids[:size], best_scores[:size]
        if exclude_self is not None:
            excluded = np.asarray(exclude_self)[start : start + size, None]
            # A stable sort moves the excluded row to the end, where it is cut off or masked.
            order = (best_ids == excluded).argsort(axis=1, kind="stable")[:, :k]
            best_ids = np.take_along_axis(best_ids, order, 1)
            best_scores = np.take_along_axis(best_scores, order, 1)
            best_scores = np.where(best_ids == excluded, -np.inf, best_scores)
            best_ids = np.where(best_ids == excluded, -1, best_ids)
        ids[start : start + size, : best_ids.shape[1]] = best_ids
        scores[start : start + size, : best_scores.shape[1]] = best_scores
    return ids, scores


def _is_placed(catalog: np.ndarray | Rows) -> bool:
    """Whether a catalog goes to the devices whole."""
    return blocks.is_accelerated() and blocks.fits_on_devices(catalog)


def _best_of_resident(
    parts: list[np.ndarray], catalog: ResidentCatalog, depth: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Like `_best_on_device`; the devices score a block while the one before it is fetched."""
    found, last = [], None
    for part in parts:
        made = catalog.best(part, depth)
        if last is not None:
            found.append(jax.device_get(last))
        last = made
    return [*found, jax.device_get(last)]


def _best_on_device(
    parts: list[jax.Array], catalog: np.ndarray | Rows, size: int, depth: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and ids [q, depth], best first, of every block of queries, selected by XLA."""
    empty = (
        jnp.full((len(parts[0]), depth), -jnp.inf),
        jnp.full((len(parts[0]), depth), -1, jnp.int32),
    )
    best = [empty] * len(parts)
    for first in range(0, len(catalog), size):
        block = jnp.asarray(host_block(catalog, first, size, "catalog"))
        rows = min(size, len(catalog) - first)
        best = [
            fold_block(*so_far, part, block, np.int32(first), rows=rows)
            for so_far, part in zip(best, parts)
        ]
    return [(np.asarray(scores), np.asarray(ids)) for scores, ids in best]


def _best_on_host(
    parts: list[jax.Array], catalog: np.ndarray | Rows, size: int, depth: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Like `_best_on_device`, selected by `kernels` while XLA computes the next scores."""
    rows = len(parts[0])
    best = [
        (
            np.empty((rows, kernels.key_capacity(depth)), np.uint64),
            np.zeros(rows, np.int64),
            np.full(rows, -np.inf, np.float32),
        )
        for _ in parts
    ]
    threads = len(os.sched_getaffinity(0))

    def select(number: int, first: int, device_scores: jax.Array) -> None:
        scores, columns = np.asarray(device_scores), min(size, len(catalog) - first)

        def work(begin: int, end: int) -> None:
            span = slice(begin, end)
            state = (array[span] for array in best[number])
            kernels.keep_best(scores[span], columns, first, depth, *state)

        run_blocks(len(scores), threads, work, _HOST_QUERIES)

    pending: tuple[int, int, jax.Array] | None = None
    for first in range(0, len(catalog), size):
        block = jnp.asarray(host_block(catalog, first, size, "catalog"))
        for number, part in enumerate(parts):
            # XLA runs asynchronously: the scores before these are selected meanwhile.
            device_scores = _scores(part, block)
            if pending is not None:
                select(*pending)
            pending = number, first, device_scores
    if pending is not None:
        select(*pending)
    shape = (len(parts) * rows, depth)
    scores, ids = np.empty(shape, np.float32), np.empty(shape, np.int32)

    def sort(number: int, _: int) -> None:
        span = slice(number * rows, (number + 1) * rows)
        kernels.sort_best(*best[number][:2], depth, scores[span], ids[span])

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
    """Exact rank of each pair's target in the whole catalog; ties by ranks.TIE_RULE.

    A target is scored by the same compiled program, on the same block, as the candidates it
    is compared with, so that equal vectors have equal scores to the bit.  That costs one
    extra product per pair with a single block; nothing is sorted.

    Args:
      queries: float [P, D], one row per pair.
      catalog: float [N, D]; may be memory-mapped.
      query_ids: int [P], catalog row of the query, which is no candidate; -1: none.
      target_ids: int [P], catalog row of the target, other than the query.
      query_block: upper bound on the pairs per block.
      catalog_block: upper bound on the catalog rows per block.

    Returns:
      int64 [P]; the best rank is 1.

    Raises:
      UserError: a value is NaN or infinite.
      ValueError: a target equals its query or is no row of the catalog.
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
    if _is_placed(catalog):
        return _ranks_in_resident(queries, ResidentCatalog(catalog), query_ids, target_ids)
    # With eight blocks, the extra product of pass 1 costs an eighth of pass 2.
    catalog_block = min(catalog_block or max(-(-rows // 8), 512), _RANK_ROWS)
    catalog_block = even_blocks(rows, catalog_block)
    query_block = even_blocks(total, query_block)

    def run(block, first, part, pairs, start, threshold):
        excluded = _cut(query_ids[pairs] - first, start, query_block, np.int32)
        target = _cut(target_ids[pairs] - first, start, query_block, np.int32)
        return _count_block(part, block, excluded, target, threshold)

    # Pass 1 scores each pair's target: only the block that contains it is needed.
    threshold = np.zeros(total, np.float32)
    order = np.argsort(target_ids // catalog_block, kind="stable")
    block_of = target_ids[order] // catalog_block
    zero = np.zeros(query_block, np.float32)
    for number in np.unique(block_of):
        first = int(number) * catalog_block
        block = jnp.asarray(host_block(catalog, first, catalog_block, "catalog", np.nan))
        begin, end = np.searchsorted(block_of, number), np.searchsorted(block_of, number, "right")
        pairs = order[begin:end]
        for start in range(0, len(pairs), query_block):
            chosen = pairs[start : start + query_block]
            part = jnp.asarray(host_block(queries[chosen], 0, query_block, "query"))
            picked, _ = run(block, first, part, pairs, start, zero)
            threshold[chosen] = np.asarray(picked)[: len(chosen)]

    # Pass 2 counts, over all blocks, the candidates that score above or equal to the target.
    all_pairs = np.arange(total)
    starts = range(0, total, query_block)
    parts = [jnp.asarray(host_block(queries, start, query_block, "query")) for start in starts]
    thresholds = [_cut(threshold, start, query_block, np.float32) for start in starts]
    greater, equal = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for first in range(0, rows, catalog_block):
        block = jnp.asarray(host_block(catalog, first, catalog_block, "catalog", np.nan))
        counted = [
            run(block, first, part, all_pairs, start, limits)[1]
            for start, part, limits in zip(starts, parts, thresholds)
        ]
        counts = np.concatenate([np.asarray(part) for part in counted])[:total]
        greater += counts // _GREATER
        equal += counts % _GREATER
    return tie_rank(greater, equal)


def _ranks_in_resident(
    queries: np.ndarray, catalog: ResidentCatalog, query_ids: np.ndarray, target_ids: np.ndarray
) -> np.ndarray:
    """`target_ranks` by the devices that hold the catalog."""
    total = len(queries)
    size = even_blocks(total, RESIDENT_QUERIES)
    ranks: np.ndarray = np.empty(total, np.int64)
    for start in range(0, total, size):
        part = host_block(queries, start, size, "query")
        ids = [_cut(every, start, size, np.int64) for every in (query_ids, target_ids)]
        greater, equal = catalog.counts(part, *ids)
        ranks[start : start + size] = tie_rank(greater, equal)[: total - start]
    return ranks


def _cut(array: np.ndarray, start: int, size: int, dtype: type) -> np.ndarray:
    """array[start : start + size], padded with zeros at the end."""
    result: np.ndarray = np.zeros(size, dtype)
    piece = array[start : start + size]
    result[: len(piece)] = piece
    return result
