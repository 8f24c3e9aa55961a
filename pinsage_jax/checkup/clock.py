"""How fast this machine is now, measured on short pieces of the very work of a run.

Nothing here is a constant of some machine: each function runs the code of a stage on
a small part of the data, or on made-up data of the right shape, and gives seconds a
unit.  Seconds are float64 [2] everywhere: by the clock, in which what else runs on the
machine now is felt, and of the CPU, in which it hardly is.
"""

from __future__ import annotations

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
_RIVAL_PAIRS = 48
_DISK_BYTES = 1 << 25
# Operations of the decomposition that is tried.
_TRIED_OPERATIONS = 1.5e10
# A sparse product reads a number from memory for every two operations.
_SPARSE_WEIGHT = 4.0
OVERSAMPLES = 10


def now() -> np.ndarray:
    """Seconds so far by the clock and of the CPU (all threads of this process)."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(work: Callable[[], object]) -> np.ndarray:
    """Seconds of one call."""
    start = now()
    work()
    return now() - start


def memory_bytes() -> tuple[int, int]:
    """Memory of this machine and how much of it is available, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return total, int(found["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return total, page * os.sysconf("SC_AVPHYS_PAGES")


def disk_free(folder: str | os.PathLike) -> int:
    """Free bytes where `folder` lies."""
    return shutil.disk_usage(folder).free


def write_seconds(folder: str | os.PathLike) -> np.ndarray:
    """Seconds a byte to write and sync a file in `folder`."""
    content = np.random.default_rng(0).bytes(_DISK_BYTES)
    where = os.fspath(folder)
    with files.reported_os_errors(folder), tempfile.NamedTemporaryFile(dir=where) as handle:

        def write() -> None:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())

        return timed(write) / _DISK_BYTES


def walk_seconds(
    graph: Graph, sampling: SamplingConfig, walks: int, kept: int, seed: int, threads: int
) -> np.ndarray:
    """Seconds a start of `walks` walks over the graph that keep `kept` neighbors."""
    tables = WalkTables(graph)
    linked = np.flatnonzero(graph.degree()[: graph.num_items] > 0)
    if not len(linked):
        return np.zeros(2)
    count = min(len(linked), _STARTS * threads)
    starts = linked[np.arange(count) * len(linked) // count]

    def walk(some: np.ndarray) -> None:
        visit_counts(
            tables, some, sampling, seed=seed, threads=threads,
            num_neighbors=kept, num_walks=walks,
        )  # fmt: skip

    walk(starts[:2])
    return timed(lambda: walk(starts)) / count


def link_seconds(width: int, size: int, threads: int) -> np.ndarray:
    """Seconds a pair of items to link by content vectors of `width` numbers."""
    rows = np.random.default_rng(0).normal(size=(_LINK_CANDIDATES, width)).astype(np.float32)
    queries, candidates = np.arange(_LINK_ROWS * threads), np.arange(_LINK_CANDIDATES)
    queries %= _LINK_CANDIDATES
    content_links(rows[:4], queries[:4], candidates[:4], size, threads)
    seconds = timed(lambda: content_links(rows, queries, candidates, size, threads))
    return seconds / (len(queries) * len(candidates))


def svd_operations(rows: float, columns: float, entries: float, width: int, power: int) -> float:
    """Operations of a randomized truncated SVD of a sparse matrix, roughly.

    Products with the matrix, an LU of both sides a power iteration, then a QR, a small
    SVD and one more product.
    """
    kept = min(width + OVERSAMPLES, rows, columns)
    products = 2.0 * (2 * power + 2) * entries * kept
    dense = kept**2 * (2 * power * (rows + columns) + 6 * rows + 8 * columns)
    return _SPARSE_WEIGHT * products + dense


def svd_seconds(rows: int, columns: int, entries: int, width: int, power: int) -> np.ndarray:
    """Seconds of the SVD of svd_operations, from those of two smaller matrices of its kind.

    From two, because a part of the work depends on `width` alone and would weigh too much
    in one small matrix.
    """
    whole = svd_operations(rows, columns, entries, width, power)
    scale = max(whole / _TRIED_OPERATIONS, 1.0)
    tried, operations = [], []
    for times in (1, 2):
        least = times * 2 * (width + OVERSAMPLES)
        part_rows = int(min(rows, max(times * rows / scale, least)))
        part_columns = int(min(columns, max(times * columns / scale, least)))
        part_entries = max(int(entries / max(rows, 1) * part_rows), part_rows)
        kept = min(width, part_rows, part_columns)
        tried.append(_one_svd(part_rows, part_columns, part_entries, kept, power))
        operations.append(svd_operations(part_rows, part_columns, part_entries, kept, power))
    more = operations[1] - operations[0]
    if more <= 0:
        return tried[1] * whole / operations[1]
    # Noise must not turn into a forecast of nothing: no more than nine tenths are fixed.
    rate = np.maximum(tried[1] - tried[0], tried[1] * 0.1 * more / operations[1]) / more
    return tried[1] + rate * (whole - operations[1])


def _one_svd(rows: int, columns: int, entries: int, width: int, power: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    places = rng.integers(0, rows, entries), rng.integers(0, columns, entries)
    values = rng.random(entries, np.float32)
    matrix = sparse.csr_matrix((values, places), shape=(rows, columns))
    return timed(lambda: randomized_svd(matrix, width, n_iter=power, random_state=0))


def text_seconds(
    documents: list[str], vocabulary: int, min_df: int
) -> tuple[np.ndarray, int, float]:
    """How long reading text takes.

    Returns:
      seconds a document to count its words twice (to fit and to write), terms of the
      sample, and distinct terms a document.
    """

    start = now()
    fitted = text_vectors.fit_text(documents, 1, vocabulary, min_df, "text")
    fitted.transform(documents)
    seconds = now() - start
    words = [len(set(document.lower().split())) for document in documents]
    return seconds / max(len(documents), 1), fitted.terms, float(np.mean(words or [0]))


def rank_seconds(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to compile the exact ranking, and seconds a (pair, item) of it."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(_RANK_ROWS, dimensions)).astype(np.float32)
    query, target = np.arange(_RANK_PAIRS), np.arange(_RANK_PAIRS) + 1

    def rank() -> None:
        target_ranks(vectors[query], vectors, query, target)

    first, second = timed(rank), timed(rank)
    return np.maximum(first - second, 0.0), second / (_RANK_PAIRS * _RANK_ROWS)


def rival_seconds(baseline: Baseline, items: np.ndarray, num_items: int) -> np.ndarray:
    """Seconds a pair to rank by a rival; `items`: int [n] to draw queries and targets from."""
    count = min(len(items) - 1, _RIVAL_PAIRS)
    if count < 1:
        return np.zeros(2)
    drawn = items[np.arange(count + 1) * len(items) // (count + 1)]
    pairs = np.stack([drawn[:-1], drawn[1:]], axis=1).astype(np.int32)
    rank_pairs(baseline, pairs[:1], num_items)
    return timed(lambda: rank_pairs(baseline, pairs, num_items)) / count


def bootstrap_seconds() -> np.ndarray:
    """Seconds a (resample, query, method) of the bootstrap."""
    queries, resamples = 2000, 50
    ranks = np.random.default_rng(0).integers(1, 1000, queries)
    table = metrics.query_table(ranks, np.arange(queries))
    generator = metrics.keyed_generator(0, "doctor")
    tables = [table, table]
    seconds = timed(lambda: metrics.bootstrap_means(tables, resamples, generator))
    return seconds / (queries * resamples * len(tables))


def python_overhead_seconds() -> np.ndarray:
    """Seconds of a fixed piece of pure Python: what start-up, plots and tables are made of."""

    def think() -> None:
        total = 0
        for number in range(3_000_000):
            total += number & 7

    return timed(think)
