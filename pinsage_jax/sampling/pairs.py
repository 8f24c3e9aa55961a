"""What a training step compares: positive pairs, random and hard negatives.

PinSage (Ying et al. 2018, section 3.3).  Positives come from engagement pairs
when the user has them, else from items that share a collection.  Random negatives
are uniform over the catalog and shared by a minibatch.  Hard negatives of a
query are drawn from a band of its personalized-PageRank ranking: related, but not
as related as the positive.

Shapes: B pairs, R random negatives, H hard negatives per query.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling import pair_kernels
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts

_PAIR_STREAM = 0x70616972
_RANDOM_STREAM = 0x72616E64
_HARD_STREAM = 0x68617264
_BAND_STREAM = 0x62616E64
# A band of ranks needs a catalog this many times its worst rank.
_BANDS_IN_CATALOG = 100
_RANKING_BYTES = 2**30
_COLLECTIONS_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """B positive pairs.

    Attributes:
      queries, targets: int32 [B]; a target of -1 marks a pair that does not count.
      via: int32 [B] node id of the collection the pair was drawn from, or -1.
    """

    queries: np.ndarray
    targets: np.ndarray
    via: np.ndarray


def pairs_per_epoch(graph: Graph, pairs: np.ndarray | None, wanted: int | None = None) -> int:
    """Pairs in one epoch: as many as `wanted` or, with None, as there are pairs or edges."""
    return wanted or (graph.num_edges if pairs is None else len(pairs))


class PairSource:
    """Numbered positive pairs: pair g is the same whoever asks, in any order."""

    def __init__(
        self,
        graph: Graph,
        seed: int,
        pairs: np.ndarray | None = None,
        per_epoch: int | None = None,
        power: float = 1.0,
    ):
        """Draws from `pairs` (int32 [P, 2]) or, without them, from collections.

        Args:
          per_epoch: pairs in an epoch; None: as many as there are pairs or edges.
          power: collections are drawn in proportion to (size - 1) ** power; with 1
            every edge is visited once an epoch instead, which comes to the same
            share (size) for large collections but without repetition.

        Raises:
          UserError: there is nothing to draw from.
        """
        self._graph = graph
        self._seed = np.uint64(seed ^ _PAIR_STREAM)
        self._pairs = None if pairs is None else np.ascontiguousarray(pairs, np.int32)
        self._cumulative = None
        self._available = pairs_per_epoch(graph, pairs)
        if pairs is None and not self._collection_weights(power).any():
            raise UserError(
                "No collection holds two items to train on; give more --edges or --train_pairs, "
                "or set --validation_collections=0."
            )
        if self._available == 0:
            raise UserError("There is no training pair; give --train_pairs with rows, or none.")
        if pairs is None and power != 1.0:
            self._cumulative = np.cumsum(self._collection_weights(power))
        self.per_epoch = pairs_per_epoch(graph, pairs, per_epoch)

    def _collection_weights(self, power: float) -> np.ndarray:
        """float64 [collections]; 0 for those that hold no pair."""
        sizes = np.diff(self._graph.indptr[self._graph.num_items :]).astype(np.float64)
        return np.where(sizes > 1, np.maximum(sizes - 1, 1) ** power, 0.0)

    def epoch_of(self, number: int) -> int:
        """Epoch (from 0) that pair `number` of the run belongs to."""
        return number // self.per_epoch

    def batch(self, first: int, size: int) -> PairBatch:
        """Pairs first .. first+size-1 of the run."""
        queries, targets = np.empty(size, np.int32), np.empty(size, np.int32)
        via = np.full(size, -1, np.int32)
        if self._cumulative is not None:
            pair_kernels.weighted_collection_pairs(
                self._graph.indptr,
                self._graph.indices,
                self._graph.num_items,
                self._cumulative,
                self._seed,
                first,
                queries,
                targets,
                via,
            )
        elif self._pairs is None:
            pair_kernels.collection_pairs(
                self._graph.indptr,
                self._graph.indices,
                self._graph.num_items,
                self._available,
                self._seed,
                first,
                queries,
                targets,
                via,
            )
        else:
            pair_kernels.listed_pairs(self._pairs, self._seed, first, queries, targets)
        return PairBatch(queries, targets, via)

    def target_probability(self) -> np.ndarray:
        """float32 [num_items] chance that an item is the target of a drawn pair."""
        count = self._graph.num_items
        if self._pairs is not None:
            mass = np.bincount(self._pairs[:, 1], minlength=count).astype(np.float64)
        else:
            # Within a collection every item is equally likely to be the target.
            sizes = np.diff(self._graph.indptr[count:])
            weights = (sizes > 1) * sizes.astype(np.float64)
            if self._cumulative is not None:
                weights = np.diff(self._cumulative, prepend=0.0)
            each = weights / np.maximum(sizes, 1)
            starts = self._graph.indptr[count:]
            mass = np.zeros(count)
            # In blocks: an edge takes 16 bytes here, twice what it takes in the graph.
            for begin in range(0, len(sizes), _COLLECTIONS_AT_ONCE):
                end = min(begin + _COLLECTIONS_AT_ONCE, len(sizes))
                items = self._graph.indices[starts[begin] : starts[end]]
                shares = np.repeat(each[begin:end], sizes[begin:end])
                mass += np.bincount(items, weights=shares, minlength=count)
        return (mass / mass.sum()).astype(np.float32)


def random_negatives(pool: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
    """int32 [R] items drawn uniformly, with repetition, from `pool` (int32 [P])."""
    generator = np.random.Generator(np.random.Philox(key=[seed ^ _RANDOM_STREAM, step]))
    return pool[generator.integers(0, len(pool), size)].astype(np.int32)


def hard_band(sampling: SamplingConfig, num_items: int) -> tuple[int, int]:
    """Ranks [low, high) of hard negatives, scaled to the size of the catalog.

    The paper's ranks 2000-5000 are meant for a catalog of millions; where it is
    smaller than 100 times the worst rank, both ends shrink by the same factor.
    """
    low, high = sampling.hard_low, sampling.hard_high
    if sampling.hard_scale and num_items < _BANDS_IN_CATALOG * high:
        factor = num_items / (_BANDS_IN_CATALOG * high)
        low, high = max(1, round(low * factor)), max(2, round(high * factor))
    return low, max(high, low + 1)


class Rankings:
    """Items by personalized PageRank from a node, kept once they have been asked for.

    Several threads may ask at once: what they write for a node is the same.
    """

    def __init__(
        self,
        tables: WalkTables,
        sampling: SamplingConfig,
        seed: int,
        threads: int = 1,
        most_bytes: int = _RANKING_BYTES,
    ):
        """Rankings down to the end of the band of hard negatives (`hard_band`).

        Args:
          most_bytes: rankings are not kept if those of all items take more.
        """
        items = tables.graph.num_items
        self.low, self.high = hard_band(sampling, items)
        self.seed = seed
        self._tables = tables
        self._sampling = dataclasses.replace(sampling, neighborhood="items")
        self._threads = threads
        self._keep = 4 * items * self.high <= most_bytes
        # Memory is only taken for the rows that are written.
        self._kept = np.empty((items if self._keep else 0, self.high), np.int32)
        self._ranked = np.zeros(items, np.bool_)

    def of(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rankings int32 [n, C], padded with -1, and the row int32 [B] of every query in them."""
        found, rows = np.empty(len(queries), np.int32), np.empty(len(queries), np.int32)
        table = np.full(1 << (2 * len(queries)).bit_length(), -1, np.int32)
        count = pair_kernels.unranked(queries, self._ranked, table, found, rows)
        starts = found[:count]
        fresh = visit_counts(
            self._tables,
            starts,
            self._sampling,
            seed=self.seed ^ _HARD_STREAM,
            threads=self._threads,
            num_neighbors=self.high,
            num_walks=self._sampling.hard_walks,
        ).ids
        if not self._keep:
            return fresh, rows
        self._kept[starts] = fresh
        self._ranked[starts] = True
        return self._kept, queries


def hard_negatives(rankings: Rankings, pairs: PairBatch, *, size: int, first: int) -> np.ndarray:
    """Hard negatives int32 [B, H] of each query; -1 where a query has none.

    Ranks items by visit count of `hard_walks` walks from the query (an estimate of
    personalized PageRank) and draws uniformly, with repetition, from the band.  A
    query whose walks reach fewer items than the band's end has its band shrunk in
    proportion.  The query's own target is never drawn.
    """
    drawn = np.empty((len(pairs.queries), size), np.int32)
    lists, rows = rankings.of(pairs.queries)
    key = np.uint64(rankings.seed ^ _BAND_STREAM)
    pair_kernels.draw_from_band(
        lists, rows, rankings.low, rankings.high, pairs.targets, key, first, drawn
    )
    return drawn
