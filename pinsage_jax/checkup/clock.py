"""Measures how fast this machine runs the parts of a pipeline.

No figure here is a constant of some machine.  Each function runs the code of a stage on a
small part of the data, or on random data of the right shape, and returns seconds per unit of
work.  Seconds are float64 [2] everywhere: wall-clock time, which other processes on the
machine increase, and CPU time, which they hardly affect.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core import files
from pinsage_jax.data import text as text_vectors
from pinsage_jax.evaluation import metrics
from pinsage_jax.evaluation.baselines import Baseline, rank_pairs
from pinsage_jax.graph.csr import Graph
from pinsage_jax.retrieval.topk import target_ranks
from pinsage_jax.sampling.content_links import content_links
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts

_STARTS = 512
_LINK_ROWS, _LINK_CANDIDATES = 1024, 8192
_RANK_PAIRS, _RANK_ROWS = 1024, 8192
_BASELINE_PAIRS = 48
_DISK_BYTES = 1 << 25
# Operations of the smaller of the two decompositions that are timed.
_TIMED_OPERATIONS = 1.5e10
# Cost of an operation of a sparse product, which reads a number for every two operations.
_SPARSE_WEIGHT = 4.0
OVERSAMPLES = 10


def now() -> np.ndarray:
    """The current wall-clock time and the CPU time of all threads of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(work: Callable[[], object]) -> np.ndarray:
    """Seconds that one call takes."""
    start = now()
    work()
    return now() - start


def memory_bytes() -> tuple[int, int]:
    """The memory of this machine and the part that is available, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return total, int(found["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return total, page * os.sysconf("SC_AVPHYS_PAGES")


def disk_free(folder: str | os.PathLike) -> int:
    """Free bytes on the disk of `folder`."""
    return shutil.disk_usage(folder).free


def write_seconds(folder: str | os.PathLike) -> np.ndarray:
    """Seconds per byte to write and sync a file in `folder`."""
    content = np.random.default_rng(0).bytes(_DISK_BYTES)
    where = os.fspath(folder)
    with files.reported_os_errors(folder), tempfile.NamedTemporaryFile(dir=where) as handle:

        def write() -> None:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())

        return timed(write) / _DISK_BYTES


def walk_seconds(
    graph: Graph, sampling: SamplingConfig, walks: int, num_neighbors: int, seed: int, threads: int
) -> np.ndarray:
    """Seconds per start node of `walks` walks that keep the `num_neighbors` most visited."""
    tables = WalkTables(graph)
    with_edges = np.flatnonzero(graph.degree()[: graph.num_items] > 0)
    if not len(with_edges):
        return np.zeros(2)
    count = min(len(with_edges), _STARTS * threads)
    starts = with_edges[np.arange(count) * len(with_edges) // count]

    sampling = dataclasses.replace(sampling, num_neighbors=num_neighbors, num_walks=walks)

    def walk(some: np.ndarray) -> None:
        visit_counts(tables, some, sampling, seed=seed, threads=threads)

    walk(starts[:2])
    return timed(lambda: walk(starts)) / count


def link_seconds(width: int, size: int, threads: int) -> np.ndarray:
    """Seconds per pair of items to find `size` content links by vectors of `width` numbers."""
    rows = np.random.default_rng(0).normal(size=(_LINK_CANDIDATES, width)).astype(np.float32)
    queries, candidates = np.arange(_LINK_ROWS * threads), np.arange(_LINK_CANDIDATES)
    queries %= _LINK_CANDIDATES
    content_links(rows[:4], queries[:4], candidates[:4], size, threads)
    seconds = timed(lambda: content_links(rows, queries, candidates, size, threads))
    return seconds / (len(queries) * len(candidates))


def svd_operations(rows: float, columns: float, entries: float, width: int, power: int) -> float:
    """Approximate number of operations of a randomized truncated SVD of a sparse matrix.

    These are products with the matrix and an LU factorization of both sides for each of the
    `power` iterations, then a QR factorization, a small SVD and one more product.
    """
    rank = min(width + OVERSAMPLES, rows, columns)
    products = 2.0 * (2 * power + 2) * entries * rank
    dense = rank**2 * (2 * power * (rows + columns) + 6 * rows + 8 * columns)
    return _SPARSE_WEIGHT * products + dense


def svd_seconds(rows: int, columns: int, entries: int, width: int, power: int) -> np.ndarray:
    """Seconds of the SVD of svd_operations, extrapolated from two smaller matrices.

    One would not do: a part of the work depends on `width` alone and would be
    overrepresented in a single small matrix.
    """
    total = svd_operations(rows, columns, entries, width, power)
    scale = max(total / _TIMED_OPERATIONS, 1.0)
    timings, operations = [], []
    for factor in (1, 2):
        smallest = factor * 2 * (width + OVERSAMPLES)
        part_rows = int(min(rows, max(factor * rows / scale, smallest)))
        part_columns = int(min(columns, max(factor * columns / scale, smallest)))
        part_entries = max(int(entries / max(rows, 1) * part_rows), part_rows)
        part_width = min(width, part_rows, part_columns)
        timings.append(_one_svd(part_rows, part_columns, part_entries, part_width, power))
        operations.append(svd_operations(part_rows, part_columns, part_entries, part_width, power))
    more = operations[1] - operations[0]
    if more <= 0:
        return timings[1] * total / operations[1]
    # Noise must not make the forecast zero: at most nine tenths of the time count as fixed.
    rate = np.maximum(timings[1] - timings[0], timings[1] * 0.1 * more / operations[1]) / more
    return timings[1] + rate * (total - operations[1])


def _one_svd(rows: int, columns: int, entries: int, width: int, power: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coordinates = rng.integers(0, rows, entries), rng.integers(0, columns, entries)
    values = rng.random(entries, np.float32)
    matrix = sparse.csr_matrix((values, coordinates), shape=(rows, columns))
    return timed(lambda: randomized_svd(matrix, width, n_iter=power, random_state=0))


def text_seconds(
    documents: list[str], vocabulary: int, min_df: int
) -> tuple[np.ndarray, int, float]:
    """Measures how long text columns take to process.

    Returns:
      Seconds per document to count its words twice (to fit and to transform), the number of
      terms in the sample, and the mean number of distinct terms per document.
    """

    start = now()
    fitted = text_vectors.fit_text(documents, 1, vocabulary, min_df, "text")
    fitted.transform(documents)
    seconds = now() - start
    words = [len(set(document.lower().split())) for document in documents]
    return seconds / max(len(documents), 1), fitted.terms, float(np.mean(words or [0]))


def rank_seconds(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to compile the exact ranking, and seconds per (pair, item) of ranking."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(_RANK_ROWS, dimensions)).astype(np.float32)
    query, target = np.arange(_RANK_PAIRS), np.arange(_RANK_PAIRS) + 1

    def rank() -> None:
        target_ranks(vectors[query], vectors, query, target)

    first, second = timed(rank), timed(rank)
    return np.maximum(first - second, 0.0), second / (_RANK_PAIRS * _RANK_ROWS)


def baseline_seconds(baseline: Baseline, items: np.ndarray, num_items: int) -> np.ndarray:
    """Seconds per pair to rank by a baseline; queries and targets are from `items`, int [n]."""
    count = min(len(items) - 1, _BASELINE_PAIRS)
    if count < 1:
        return np.zeros(2)
    drawn = items[np.arange(count + 1) * len(items) // (count + 1)]
    pairs = np.stack([drawn[:-1], drawn[1:]], axis=1).astype(np.int32)
    rank_pairs(baseline, pairs[:1], num_items)
    return timed(lambda: rank_pairs(baseline, pairs, num_items)) / count


def bootstrap_seconds() -> np.ndarray:
    """Seconds per (resample, query, method) of the bootstrap."""
    queries, resamples = 2000, 50
    ranks = np.random.default_rng(0).integers(1, 1000, queries)
    table = metrics.query_table(ranks, np.arange(queries))
    generator = metrics.keyed_generator(0, "doctor")
    tables = [table, table]
    seconds = timed(lambda: metrics.bootstrap_means(tables, resamples, generator))
    return seconds / (queries * resamples * len(tables))


def python_overhead_seconds() -> np.ndarray:
    """Seconds of a fixed loop in pure Python, the unit for start-up, plots and tables."""

    def loop() -> None:
        total = 0
        for number in range(3_000_000):
            total += number & 7

    return timed(loop)
