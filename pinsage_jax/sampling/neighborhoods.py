"""Importance neighborhoods: the T nodes that random walks from a node visit most.

PinSage (Ying et al. 2018, section 3.2).  The visit counts approximate
personalized PageRank; L1-normalized they are the weights of importance pooling.

Shapes: S start nodes, T neighbors.  Nodes are numbered items first.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling import kernels

# Large enough to amortize a call, small enough to balance threads.
_ROWS_PER_TASK = 256
# Many more than a core has reads under way; what they ask for fits the second-level cache.
_WALKS_IN_FLIGHT = 1024


@dataclasses.dataclass(frozen=True)
class Neighborhoods:
    """Neighbor lists of S nodes, most visited first.

    Attributes:
      ids: int32 [S, T]; -1 where a list is short (an item without edges has none).
      counts: int32 [S, T] visit counts; 0 where a list is short.
    """

    ids: np.ndarray
    counts: np.ndarray

    def weights(self, pooling: str = "importance") -> np.ndarray:
        """float32 [S, T] pooling weights; rows sum to 1, or to 0 for an empty list.

        importance: visit counts over their sum.  mean and max: every neighbor
        the same (max pooling only reads which weights are positive).
        """
        return pooling_weights(self.counts, pooling)


def pooling_weights(counts: np.ndarray, pooling: str) -> np.ndarray:
    """L1-normalizes visit counts [S, T] into float32 pooling weights [S, T]."""
    mass = counts.astype(np.float32)
    if pooling != "importance":
        mass = (counts > 0).astype(np.float32)
    return mass / np.maximum(mass.sum(axis=1, keepdims=True), 1.0)


class WalkTables:
    """The graph as the kernels read it; built once per graph.

    Attributes:
      cumulative: float64 [2E] running sums of edge weights within each row, or
        empty for an unweighted graph.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.indptr = np.ascontiguousarray(graph.indptr)
        self.indices = np.ascontiguousarray(graph.indices)
        self.cumulative = np.empty(0, np.float64)
        if graph.weights is not None:
            self.cumulative = row_cumulative(self.indptr, graph.weights)

    @property
    def for_kernels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The tables as kernels.sample_block takes them."""
        return self.indptr, self.indices, self.cumulative, self.graph.num_items

    @property
    def footprint(self) -> int:
        """Bytes that unweighted walks read from: row starts and neighbors."""
        return self.indptr.nbytes + self.indices.nbytes


def seeds_in_flight(num_walks: int) -> int:
    """Start nodes whose walks a thread moves at once, so that their cache misses overlap."""
    return max(1, _WALKS_IN_FLIGHT // num_walks)


def row_cumulative(indptr: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Running sums of `weights` [2E] within each row of a CSR, float64 [2E]."""
    sums = np.empty(len(weights), np.float64)
    kernels.running_sums(indptr, np.ascontiguousarray(weights), sums)
    return sums


@functools.lru_cache(maxsize=4)
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="sampler")


def run_blocks(
    rows: int, threads: int, work: Callable[[int, int], None], block: int = _ROWS_PER_TASK
) -> None:
    """Calls work(begin, end) over [0, rows) in blocks, on `threads` threads.

    The kernels release the interpreter lock, so the threads run at once; results
    are written in place, so their order does not matter.
    """
    spans = [(begin, min(begin + block, rows)) for begin in range(0, rows, block)]
    if threads <= 1 or len(spans) == 1:
        for begin, end in spans:
            work(begin, end)
        return
    for done in [_pool(threads).submit(work, *span) for span in spans]:
        done.result()


def visit_counts(
    tables: WalkTables,
    starts: np.ndarray,
    sampling: SamplingConfig,
    *,
    seed: int,
    epoch: int = 0,
    threads: int = 1,
    hidden: np.ndarray | None = None,
    dropped: np.ndarray | None = None,
    num_neighbors: int | None = None,
    num_walks: int | None = None,
) -> Neighborhoods:
    """Samples the neighborhoods of `starts`.

    Args:
      starts: int [S] node ids.
      seed, epoch: key of the random numbers, with the node and the walk; equal
        keys give equal lists, whatever the threads or the other starts.
      hidden: int [S] collection node that the walks of this row never step on
        when they leave an item, or -1.
      dropped: int [S] node that this row does not count, or -1.
      num_neighbors, num_walks: override T and W of `sampling`.

    Returns:
      Neighborhoods with arrays [S, T].

    Raises:
      IndexError: a start is not a node of the graph.
      ValueError: `hidden` or `dropped` is not as long as `starts`.
    """
    starts = np.ascontiguousarray(starts, np.int32)
    nodes = tables.indptr.shape[0] - 1
    if starts.size and (starts.min() < 0 or starts.max() >= nodes):
        raise IndexError(f"start nodes must lie in [0, {nodes})")
    none = np.full(starts.shape, -1, np.int32)
    hidden = none if hidden is None else np.ascontiguousarray(hidden, np.int32)
    dropped = none if dropped is None else np.ascontiguousarray(dropped, np.int32)
    for name, limit in (("hidden", hidden), ("dropped", dropped)):
        if limit.shape != starts.shape:
            raise ValueError(f"{name} has shape {limit.shape}, starts have {starts.shape}")
    size = num_neighbors or sampling.num_neighbors
    walks = num_walks or sampling.num_walks
    ids = np.empty((starts.shape[0], size), np.int32)
    counts = np.empty((starts.shape[0], size), np.int32)
    plan = (
        walks,
        sampling.walk_length,
        np.uint64(round(sampling.restart * 2**32)),
        sampling.restart_ends,
        sampling.neighborhood == "all",
    )

    def work(begin: int, end: int) -> None:
        kernels.sample_block(
            tables.for_kernels,
            plan,
            seeds_in_flight(walks),
            starts[begin:end],
            hidden[begin:end],
            dropped[begin:end],
            np.uint64(seed),
            np.uint64(epoch),
            ids[begin:end],
            counts[begin:end],
        )

    run_blocks(starts.shape[0], threads, work)
    return Neighborhoods(ids, counts)


def visit_scores(
    graph: Graph,
    queries: np.ndarray,
    sampling: SamplingConfig,
    seed: int,
    num_walks: int,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Items by visit count for each query: the walk used as a recommender.

    Returns:
      ids int32 [S, C] padded with -1, counts int32 [S, C], C = most items that the
      walks can reach (at most W times the walk length).
    """
    items_only = dataclasses.replace(sampling, neighborhood="items")
    reachable = min(num_walks * sampling.walk_length, max(graph.num_items - 1, 1))
    found = visit_counts(
        WalkTables(graph),
        queries,
        items_only,
        seed=seed,
        threads=threads,
        num_neighbors=reachable,
        num_walks=num_walks,
    )
    return found.ids, found.counts
