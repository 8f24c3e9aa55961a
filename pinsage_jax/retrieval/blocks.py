"""Blocks of a catalog on devices: scores of queries, the best of them, and ranks of targets.

`ResidentCatalog` holds a whole catalog in the memory of all local devices, each with a run of
consecutive rows, so that thousands of queries are scored at once in a scan over its blocks.
topk.py uses it on accelerators where the catalog fits.

  Q queries, q queries of a call, N catalog rows, c rows of a block, D dimensions
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed.devices import make_devices, max_table_bytes

_BLOCK_MULTIPLE = 128
# Not a power of two: rows of 2**n bytes map to the same sets of a CPU's caches.
TOP_K_ROWS = 225 * _BLOCK_MULTIPLE


def inner_products(queries: jax.Array, block: jax.Array) -> jax.Array:
    """float32 [q, c] scores of queries [q, D] and catalog rows [c, D]."""
    # "highest": some accelerators would round float32 inputs to 10 bits of mantissa.
    return jax.lax.dot_general(queries, block, (((1,), (1,)), ((), ())), precision="highest")


def top_of(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best of each row [q, c], best first, and their columns; the lower one of equals."""
    # jax.lax.top_k prefers the lower column of equals, but puts -0.0 behind 0.0.
    return jax.lax.top_k(jnp.where(scores == 0, 0.0, scores), k)


def select(scores: jax.Array, k: int, rows: int) -> tuple[jax.Array, jax.Array]:
    """The k best of the first `rows` columns of each row, and their columns.

    For small k this is faster than `top_of`.  Columns are cut into runs of equal width.  The k
    best scores lie in the k runs with the largest maxima: if one lay in another run, each of
    those k runs would hold a better score (or an equal one in a lower column, because runs
    are in column order).
    """
    queries, columns = scores.shape
    width = 1
    while 4 * width * width * k <= columns and columns % (2 * width) == 0:
        width *= 2
    if width < 4:
        return top_of(jnp.where(jnp.arange(columns)[None, :] < rows, scores, -jnp.inf), k)
    runs = scores.reshape(queries, columns // width, width)
    best = runs.max(axis=2)
    if rows < columns:
        # Masking all scores would cost as much as the product itself, so only the run in
        # which the padding begins, and the runs after it, are corrected.
        boundary = rows // width
        inside = jnp.arange(width)[None, :] < rows - boundary * width
        boundary_run = scores[:, boundary * width : (boundary + 1) * width]
        best = best.at[:, boundary + 1 :].set(-jnp.inf)
        best = best.at[:, boundary].set(jnp.where(inside, boundary_run, -jnp.inf).max(axis=1))
    _, chosen = top_of(best, k)
    # In column order, so that of equal scores the lower column still comes first.
    chosen = jnp.sort(chosen, axis=1)[:, :, None]
    candidates = jnp.take_along_axis(runs, chosen, axis=1)
    column_ids = chosen * width + jnp.arange(width)[None, None, :]
    candidates = jnp.where(column_ids < rows, candidates, -jnp.inf).reshape(queries, k * width)
    top, positions = top_of(candidates, k)
    return top, jnp.take_along_axis(column_ids.reshape(queries, k * width), positions, axis=1)


class Rows(Protocol):
    """Vectors [N, D] that are computed when consecutive rows are read."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """float [n, D]."""


def even_blocks(size: int, limit: int) -> int:
    """Rows per block, at most `limit`, that cut `size` rows into blocks with little padding."""
    blocks = -(-size // limit)
    even = -(-size // blocks)
    # A multiple of the vector registers' width, which also lets _select cut even runs.
    return min(-(-even // _BLOCK_MULTIPLE) * _BLOCK_MULTIPLE, limit)


def host_block(
    array: np.ndarray | Rows, start: int, size: int, side: str, padding: float = 0.0
) -> np.ndarray:
    """Rows [start, start + size) as float32, padded at the end.

    Raises:
      UserError: a value is NaN or infinite.
    """
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
    return piece


def is_accelerated() -> bool:
    """Whether JAX computes on something else than the CPU."""
    return jax.default_backend() != "cpu"


def fits_on_devices(catalog: np.ndarray | Rows) -> bool:
    """Whether all local devices together have room for the catalog beside other arrays."""
    devices = make_devices()
    size = 4 * len(catalog) * catalog[:1].shape[1]
    return size <= len(devices) * max_table_bytes(devices)


@functools.partial(jax.jit, static_argnames=("depth", "recall"))
def best_of(queries, blocks, first, rows, *, depth, recall=1.0):
    """The best rows of one device's part of a catalog, best first and lower ids first.

    Args:
      queries: float32 [q, D].
      blocks: float32 [b, c, D].
      first: int32, catalog row of the part's first row.
      rows: int32, rows of the part that are not padding.
      depth: number of rows to find.
      recall: share of them that is found in expectation; 1: all.

    Returns:
      float32 [q, depth] and int32 [q, depth], padded with -inf and -1.
    """
    size = blocks.shape[1]

    def fold(best, numbered):
        number, block = numbered
        left = rows - number * size
        scores = inner_products(queries, block)
        inside = jnp.arange(size)[None, :] < left
        scores = jnp.where(inside, scores, -jnp.inf)
        if recall < 1:
            # Of every group of columns the maximum alone is a candidate.  Only TPUs do so; on
            # other devices the result is exact.
            top, columns = jax.lax.approx_max_k(scores, min(depth, size), recall_target=recall)
        else:
            top, columns = select(scores, min(depth, size), size)
        ids = jnp.where(columns < left, first + number * size + columns, -1)
        merged, places = top_of(jnp.concatenate([best[0], top], axis=1), depth)
        return (merged, jnp.take_along_axis(jnp.concatenate([best[1], ids], 1), places, 1)), None

    empty = (
        jnp.full((len(queries), depth), -jnp.inf),
        jnp.full((len(queries), depth), -1, jnp.int32),
    )
    return jax.lax.scan(fold, empty, (jnp.arange(len(blocks), dtype=jnp.int32), blocks))[0]


@jax.jit
def _count(queries, blocks, rows, excluded, target, threshold):
    """Scores of targets in one device's part, and how many rows reach a threshold.

    Args:
      queries, blocks, rows: as in `best_of`.
      excluded, target: int32 [q], rows of the part; outside of it: not in this part.
      threshold: float32 [q].

    Returns:
      The target's score, float32 [q] (0 if the target is not in this part), and int32 [q]
      rows with a greater and with an equal score, without `excluded` and `target`.
    """
    size = blocks.shape[1]
    columns = jnp.arange(size)[None, :]

    def fold(found, numbered):
        number, block = numbered
        picked, greater, equal = found
        scores = inner_products(queries, block)
        here, own = (row[:, None] - number * size for row in (target, excluded))
        score = jnp.take_along_axis(scores, jnp.clip(here, 0, size - 1), axis=1)
        picked = jnp.where((here >= 0) & (here < size), score, picked[:, None])[:, 0]
        counts = (columns < rows - number * size) & (columns != here) & (columns != own)
        limit = threshold[:, None]
        greater += jnp.sum(counts & (scores > limit), axis=1, dtype=jnp.int32)
        equal += jnp.sum(counts & (scores == limit), axis=1, dtype=jnp.int32)
        return (picked, greater, equal), None

    none = jnp.zeros(len(queries), jnp.int32)
    start = (jnp.zeros(len(queries)), none, none)
    return jax.lax.scan(fold, start, (jnp.arange(len(blocks), dtype=jnp.int32), blocks))[0]


@functools.partial(jax.jit, static_argnames="depth")
def _merge(scores, ids, *, depth):
    """The best of the parts' lists [q, parts * depth], of which earlier ones have lower ids."""
    best, places = top_of(scores, depth)
    return best, jnp.take_along_axis(ids, places, axis=1)


class ResidentCatalog:
    """A catalog in the memory of all local devices.

    Attributes:
      shape: (N, D).
    """

    def __init__(self, catalog: np.ndarray | Rows, block: int = TOP_K_ROWS, recall: float = 1.0):
        """Places a catalog, float [N, D] with N > 0, in blocks of at most `block` rows.

        Args:
          recall: share of the best rows that `best` finds in expectation, on TPUs; 1: all.

        Raises:
          UserError: a value is NaN or infinite.
        """
        count, devices = len(catalog), make_devices()
        share = -(-count // len(devices))
        size = even_blocks(share, block)
        span = -(-share // size) * size
        self.shape = (count, catalog[:1].shape[1])
        # Elsewhere XLA sorts all scores for it, which moves more than the exact selection.
        self._recall = recall if devices[0].platform == "tpu" else 1.0
        self._parts: list[tuple[int, jax.Device, jax.Array]] = []
        for device, first in zip(devices, range(0, count, span)):
            # Blocks of the same shape on every device, so that equal vectors have equal scores.
            placed = [
                jax.device_put(host_block(catalog, begin, size, "catalog"), device)
                for begin in range(first, first + span, size)
            ]
            self._parts.append((first, device, jnp.stack(placed)))

    def __len__(self) -> int:
        return self.shape[0]

    def _rows(self, first: int, blocks: jax.Array) -> np.int32:
        return np.int32(min(len(self) - first, blocks.shape[0] * blocks.shape[1]))

    def best(self, queries: np.ndarray, depth: int) -> tuple[jax.Array, jax.Array]:
        """Scores and ids [q, depth] of the best rows for float32 [q, D]; does not wait."""
        found = [
            best_of(
                *(jax.device_put(queries, device), blocks),
                *(np.int32(first), self._rows(first, blocks)),
                depth=depth,
                recall=self._recall,
            )
            for first, device, blocks in self._parts
        ]
        if len(found) == 1:
            return found[0]
        home = self._parts[0][1]
        scores, ids = (
            jnp.concatenate([jax.device_put(part[side], home) for part in found], axis=1)
            for side in (0, 1)
        )
        return _merge(scores, ids, depth=depth)

    def counts(
        self,
        queries: np.ndarray,
        excluded: np.ndarray,
        target: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many rows score above the target, and how many the same, int64 [q].

        The target's score comes from the same program as those that it is compared with.

        Args:
          queries: float32 [q, D].
          excluded: int [q], a row that is no candidate; -1: none.
          target: int [q], a row.
        """

        def run(threshold: np.ndarray) -> list[Any]:
            made = []
            for first, device, blocks in self._parts:
                rows = self._rows(first, blocks)
                own, here = (
                    # Far outside of every part, also of its padding.
                    np.where((ids >= first) & (ids < first + rows), ids - first, -1 << 30)
                    for ids in (excluded, target)
                )
                given = (queries, own.astype(np.int32), here.astype(np.int32), threshold)
                sent = jax.device_put(given, device)
                made.append(_count(sent[0], blocks, rows, *sent[1:]))
            return jax.device_get(made)

        # A target is in one part, and the others say 0.
        threshold = np.sum([part[0] for part in run(np.zeros(len(queries), np.float32))], axis=0)
        counted = run(threshold.astype(np.float32))
        greater, equal = (sum(part[side].astype(np.int64) for part in counted) for side in (1, 2))
        return greater, equal


def resident(catalog: np.ndarray, recall: float = 1.0) -> np.ndarray | ResidentCatalog:
    """The catalog on the devices, for several calls of topk.top_k, where that pays.

    Args:
      recall: as in ResidentCatalog.
    """
    if len(catalog) and is_accelerated() and fits_on_devices(catalog):
        return ResidentCatalog(catalog, recall=recall)
    return catalog
