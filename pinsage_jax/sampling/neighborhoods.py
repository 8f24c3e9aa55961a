"""Importance neighborhoods: the T nodes that random walks from a node visit most.

Ying et al. 2018, section 3.2.  The visit counts approximate personalized PageRank;
L1-normalized they are the weights of importance pooling.  Items are numbered before
collections.

Axis letters: S start nodes, T neighbors, W walks per start node, E edges, C reachable items.
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
# Many more than a core can have outstanding reads; what they prefetch fits in the L2 cache.
_WALKS_IN_FLIGHT = 1024


@dataclasses.dataclass(frozen=True)
class Neighborhoods:
    """Neighbor lists of S nodes, most visited first.

    Attributes:
      ids: int32 [S, T], padded with -1; the list of an isolated node is empty.
      counts: visit counts, int32 [S, T], padded with 0.
    """

    ids: np.ndarray
    counts: np.ndarray

    def weights(self, pooling: str = "importance") -> np.ndarray:
        """Pooling weights, float32 [S, T]; rows sum to 1, or to 0 for an empty list.

        For importance pooling they are the visit counts divided by their sum; for mean and
        max pooling they are equal (max pooling only tests whether a weight is positive).
        """
        return pooling_weights(self.counts, pooling)


def pooling_weights(counts: np.ndarray, pooling: str) -> np.ndarray:
    """Pooling weights float32 [S, T] of visit counts [S, T]; see Neighborhoods.weights."""
    weights = counts.astype(np.float32)
    if pooling != "importance":
        weights = (counts > 0).astype(np.float32)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)


class WalkTables:
    """The arrays of a graph that the walk kernels read; created once per graph.

    Attributes:
      graph: the graph.
      indptr, indices: as in Graph.
      cumulative: running sums of the edge weights within each row, float64 [2E]; empty for
        an unweighted graph.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.indptr = np.ascontiguousarray(graph.indptr)
        self.indices = np.ascontiguousarray(graph.indices)
        self.cumulative = np.empty(0, np.float64)
        if graph.weights is not None:
            self.cumulative = row_cumulative(self.indptr, graph.weights)

    @property
    def kernel_arguments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The argument `graph` of kernels.sample_block."""
        return self.indptr, self.indices, self.cumulative, self.graph.num_items

    @property
    def footprint(self) -> int:
        """Size in bytes of the arrays that unweighted walks read: indptr and indices."""
        return self.indptr.nbytes + self.indices.nbytes


def starts_in_flight(num_walks: int) -> int:
    """Number of start nodes whose walks a thread moves together, to overlap cache misses."""
    return max(1, _WALKS_IN_FLIGHT // num_walks)


def row_cumulative(indptr: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Running sums of `weights` [2E] within each row of a CSR matrix, float64 [2E]."""
    sums = np.empty(len(weights), np.float64)
    kernels.running_sums(indptr, np.ascontiguousarray(weights), sums)
    return sums


@functools.lru_cache(maxsize=4)
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="sampler")


def run_blocks(
    rows: int, threads: int, work: Callable[[int, int], None], block: int = _ROWS_PER_TASK
) -> None:
    """Calls work(begin, end) for the blocks of [0, rows) on `threads` threads.

    Kernels release the interpreter lock, so that the threads run in parallel.  `work` writes
    its results in place, so that the order of the blocks does not matter.
    """
    spans = [(begin, min(begin + block, rows)) for begin in range(0, rows, block)]
    if threads <= 1 or len(spans) == 1:
        for begin, end in spans:
            work(begin, end)
        return
    for future in [_pool(threads).submit(work, *span) for span in spans]:
        future.result()


@dataclasses.dataclass(frozen=True, eq=False)
class Masks:
    """The collection and the neighbor that are hidden from the walks of each start node.

    Attributes:
      collection: int [S], node id of a collection that the walks of this row never enter, or
        -1; None masks no collection.
      neighbor: int [S], node id that this row does not count, or -1; None masks no node.
    """

    collection: np.ndarray | None = None
    neighbor: np.ndarray | None = None

    def arrays(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Both masks as int32 [S].

        Raises:
          ValueError: a mask has another shape.
        """
        arrays = []
        for name, mask in (("collection", self.collection), ("neighbor", self.neighbor)):
            array = np.full(count, -1) if mask is None else np.asarray(mask)
            if array.shape != (count,):
                raise ValueError(
                    f"the {name} mask has shape {array.shape}, the start nodes have ({count},)"
                )
            arrays.append(np.ascontiguousarray(array, np.int32))
        return arrays[0], arrays[1]


_NO_MASKS = Masks()


def visit_counts(
    tables: WalkTables,
    starts: np.ndarray,
    sampling: SamplingConfig,
    *,
    seed: int,
    epoch: int = 0,
    threads: int = 1,
    masks: Masks = _NO_MASKS,
    restart_ends: bool = False,
) -> Neighborhoods:
    """Samples the neighborhoods of `starts`.

    Args:
      tables: the graph.
      starts: node ids, int [S].
      sampling: settings of the walks.
      seed, epoch: together with node and walk the key of the random numbers; equal keys
        give equal lists whatever the threads and the other start nodes.
      threads: host threads.
      masks: collections and nodes that walks must not see.
      restart_ends: end a walk where it would return to its start (or is stuck), as DGL's
        PinSAGESampler does; for comparisons.

    Returns:
      Neighborhoods with arrays [S, T].

    Raises:
      IndexError: a start node is not in the graph.
      ValueError: a mask differs in shape from `starts`.
    """
    starts = np.ascontiguousarray(starts, np.int32)
    nodes = tables.indptr.shape[0] - 1
    if starts.size and (starts.min() < 0 or starts.max() >= nodes):
        raise IndexError(f"start nodes must be in [0, {nodes})")
    collection_mask, neighbor_mask = masks.arrays(len(starts))
    ids = np.empty((len(starts), sampling.num_neighbors), np.int32)
    counts = np.empty_like(ids)
    plan = (
        sampling.num_walks,
        sampling.walk_length,
        np.uint64(round(sampling.restart * 2**32)),
        restart_ends,
        sampling.neighborhood == "all",
    )

    def work(begin: int, end: int) -> None:
        kernels.sample_block(
            tables.kernel_arguments,
            plan,
            starts_in_flight(sampling.num_walks),
            starts[begin:end],
            collection_mask[begin:end],
            neighbor_mask[begin:end],
            np.uint64(seed),
            np.uint64(epoch),
            ids[begin:end],
            counts[begin:end],
        )

    run_blocks(len(starts), threads, work)
    return Neighborhoods(ids, counts)


def visit_scores(
    graph: Graph,
    queries: np.ndarray,
    sampling: SamplingConfig,
    seed: int,
    num_walks: int,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks all visited items of each query by visit count: random walks as a recommender.

    Returns:
      (ids, counts): int32 [S, C] each, padded with -1 and 0, where C is the largest number
      of items that the walks can reach: W times the walk length, or all other items.
    """
    reachable = min(num_walks * sampling.walk_length, max(graph.num_items - 1, 1))
    sampling = dataclasses.replace(
        sampling, neighborhood="items", num_neighbors=reachable, num_walks=num_walks
    )
    lists = visit_counts(WalkTables(graph), queries, sampling, seed=seed, threads=threads)
    return lists.ids, lists.counts
