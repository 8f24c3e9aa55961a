"""The passes of `csr.build` in blocks, so that memory-mapped edges need little of the memory.

A pass of a counting sort writes to places all over its result.  Where the result is a file, each
round fills a window of it in memory and reads all edges, block by block; rounds run in threads,
because their windows are apart.  The order inside a row is that of one round, so the result is the
same.  What a block has read or written is let go at once; it stays in the page cache as long as
there is room.

Axis letters: E edges, R rows.
"""

from __future__ import annotations

import concurrent.futures
import os
import types
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pinsage_jax.core import files

# Edges that are read at a time, and memory of a window; each thread has one.
BLOCK_EDGES = 1 << 25
WINDOW_BYTES = 1 << 30


def edge_spans(count: int) -> Iterator[slice]:
    """Consecutive slices of at most BLOCK_EDGES of `count` edges."""
    for start in range(0, count, BLOCK_EDGES):
        yield slice(start, min(start + BLOCK_EDGES, count))


def row_spans(indptr: np.ndarray, edges: int | None = None) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of rows with at most so many edges each, or of one row with more.

    Args:
      indptr: int64 [R + 1].
      edges: most edges; None: BLOCK_EDGES.
    """
    low, rows = 0, len(indptr) - 1
    while low < rows:
        limit = int(indptr[low]) + (edges or BLOCK_EDGES)
        high = int(np.searchsorted(indptr, limit, side="right")) - 1
        high = min(max(high, low + 1), rows)
        yield low, high
        low = high


def release(*arrays: np.ndarray) -> None:
    """Lets the pages of mapped arrays, or of slices of them, go."""
    for array in arrays:
        # A slice has the map of the array that it was cut from.
        files.release(array)


def offsets(keys: np.ndarray, rows: int) -> np.ndarray:
    """Row starts int64 [R + 1] for the rows that `keys` int32 [E] names.

    Raises:
      ValueError: a key is no row.
    """
    counts = np.zeros(rows + 1, np.int64)
    for part in edge_spans(len(keys)):
        if (bad := _kernels().count_keys(keys[part], counts[1:])) >= 0:
            bad += part.start
            raise ValueError(f"edge {bad} names {keys[bad]}, outside [0, {rows})")
        release(keys)
    return np.cumsum(counts, out=counts)


def _in_windows(
    starts: np.ndarray,
    out: Sequence[np.ndarray],
    fill: Callable[[tuple[int, int], np.ndarray, Sequence[np.ndarray]], None],
) -> None:
    """Calls fill(window, cursor, part of `out`) for windows of the rows that begin at `starts`.

    Arrays in memory are filled in one round.  Of files a window is filled in memory and written
    as a whole: the system would write pages that are filled at random many times over.

    Args:
      starts: int64 [R + 1]; out: arrays [E], or empty ones.
    """
    width = sum(array.itemsize for array in out if len(array))
    mapped = isinstance(out[0], np.memmap)
    windows = list(row_spans(starts, max(WINDOW_BYTES // max(width, 1), 1)))
    if not mapped:
        windows = [(0, len(starts) - 1)]

    def run(window: tuple[int, int]) -> None:
        part = slice(int(starts[window[0]]), int(starts[window[1]]))
        cursor = starts[window[0] : window[1]] - part.start
        if not mapped:
            fill(window, cursor, out)
            return
        filled = [np.empty(min(part.stop - part.start, len(array)), array.dtype) for array in out]
        fill(window, cursor, filled)
        for array, values in zip(out, filled, strict=True):
            array[part][: len(values)] = values
        release(*out)

    threads = min(len(os.sched_getaffinity(0)), max(len(windows), 1))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # A list, so that an error is raised here.
        list(pool.map(run, windows))


def scatter(edges: Sequence[np.ndarray], starts: np.ndarray, out: Sequence[np.ndarray]) -> None:
    """Moves edge lists into rows by key; see build_kernels.scatter_edges.

    Args:
      edges: keys, values, weights, times [E]; starts: of the rows, int64 [R + 1].
      out: values, weights, times [E].
    """

    def fill(window: tuple[int, int], cursor: np.ndarray, filled: Sequence[np.ndarray]) -> None:
        for part in edge_spans(len(edges[0])):
            span = part.start, part.stop
            _kernels().scatter_edges(*edges, span, window, cursor, *filled)
            release(*edges)

    _in_windows(starts, out, fill)


def transpose(
    indptr: np.ndarray,
    rows: Sequence[np.ndarray],
    starts: np.ndarray,
    out: Sequence[np.ndarray],
) -> None:
    """Transposes rows; see build_kernels.transpose_rows.

    Args:
      indptr: row starts int64; rows: ids, weights, times [E].
      starts: of the target rows, int64; out: ids, weights, times [E].
    """

    def fill(window: tuple[int, int], cursor: np.ndarray, filled: Sequence[np.ndarray]) -> None:
        for span in row_spans(indptr):
            _kernels().transpose_rows(indptr, *rows, span, window, cursor, *filled)
            release(*rows)

    _in_windows(starts, out, fill)


def merge_duplicates(indptr: np.ndarray, rows: Sequence[np.ndarray]) -> int:
    """Merges equal neighbors in place; see build_kernels.merge_duplicates.

    Args:
      indptr: row starts int64, rewritten; rows: ids, weights, times [E].

    Returns:
      Edges that are left.
    """
    # A copy, because the starts change while rows are merged.
    spans = list(row_spans(indptr))
    start, written = 0, 0
    for span in spans:
        start, written = _kernels().merge_duplicates(indptr, *rows, span, start, written)
        release(*rows)
    return int(written)


def _kernels() -> types.ModuleType:
    """The compiled kernels; a graph that is only opened does not load Numba."""
    from pinsage_jax.graph import build_kernels

    return build_kernels
