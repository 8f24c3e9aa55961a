"""Positive pairs, random negatives and hard negatives of training (Ying et al. 2018, 3.3).

Positive pairs come from a table of engagement pairs if there is one, else they are two
items of one collection.  Random negatives are uniform over the catalog and shared by a
minibatch.  The hard negatives of a query are drawn from a band of ranks of its
personalized PageRank: items related to the query, but less than the positive.

Axis letters: B pairs, P pairs of a table or items of a pool, R random negatives, H hard
negatives per query, C ranks.
"""

from __future__ import annotations

import dataclasses
import threading

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.build_blocks import row_spans
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling import pair_kernels
from pinsage_jax.sampling.neighborhoods import WalkTables, row_cumulative, visit_counts

_PAIR_STREAM = 0x70616972
_RANDOM_STREAM = 0x72616E64
_HARD_STREAM = 0x68617264
_BAND_STREAM = 0x62616E64
_SAMPLE_STREAM = 0x73616D70
# Ranks of hard negatives are scaled down in a catalog smaller than this times the last rank.
_MIN_CATALOG_PER_RANK = 100
_MAX_RANKING_BYTES = 2**30
# Items that are kept of a band where whole rankings would take more than that.
_BAND_SAMPLE = 64


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """B positive pairs.

    Attributes:
      queries: int32 [B], item of each query.
      targets: int32 [B], item of each positive; -1 marks a pair that does not count.
      source_collection: int32 [B], node id of the collection that the pair was drawn
        from; -1 for a pair from a table.
    """

    queries: np.ndarray
    targets: np.ndarray
    source_collection: np.ndarray


def pairs_per_epoch(
    graph: Graph, pairs: np.ndarray | None, per_epoch: int | None = None, least: int = 0
) -> int:
    """Pairs of one epoch: `per_epoch`, or if it is None the number of pairs or edges.

    Args:
      least: a number of pairs or edges below this counts as this.
    """
    return per_epoch or max(graph.num_edges if pairs is None else len(pairs), least)


class PairSource:
    """Draws positive pairs by their number in the run; a pair depends on nothing else.

    Attributes:
      per_epoch: number of pairs in an epoch.
    """

    def __init__(
        self,
        graph: Graph,
        seed: int,
        pairs: np.ndarray | None = None,
        per_epoch: int | None = None,
        power: float = 1.0,
        by_weight: bool = False,
        least: int = 0,
    ):
        """Chooses how pairs are drawn.

        Args:
          graph: the training graph.
          seed: seed of the run.
          pairs: a table of pairs, int32 [P, 2]; None draws two items of one collection.
          per_epoch: number of pairs in an epoch; None means the number of pairs or edges.
          power: collections are drawn in proportion to (size - 1) ** power.  With 1 every
            edge is visited once an epoch instead: about the same distribution, without
            replacement.
          by_weight: collections are also drawn in proportion to the mean weight of their edges,
            and their items in proportion to the weights, with any power.
          least: fewest pairs of an epoch, as in pairs_per_epoch.

        Raises:
          UserError: there is no pair to draw.
        """
        self._graph = graph
        self._seed = np.uint64(seed ^ _PAIR_STREAM)
        self._pairs = None if pairs is None else np.ascontiguousarray(pairs, np.int32)
        self._cumulative = None
        self._edge_sums = np.empty(0)
        if by_weight and graph.weights is not None and pairs is None:
            self._edge_sums = row_cumulative(graph.indptr, graph.weights)
        self._available = pairs_per_epoch(graph, pairs)
        if pairs is None and not self._collection_weights(power).any():
            raise UserError(
                "No collection holds two items to train on; give more --edges or --train_pairs, "
                "or set --validation_collections=0."
            )
        if self._available == 0:
            raise UserError(
                "There is no training pair; pass a --train_pairs table with rows, or none."
            )
        if pairs is None and (power != 1.0 or len(self._edge_sums)):
            self._cumulative = np.cumsum(self._collection_weights(power))
        self.per_epoch = pairs_per_epoch(graph, pairs, per_epoch, least)

    def _collection_weights(self, power: float) -> np.ndarray:
        """Sampling weights, float64 [collections]; 0 for a collection without a pair."""
        sizes = np.diff(self._graph.indptr[self._graph.num_items :]).astype(np.float64)
        weights = np.where(sizes > 1, np.maximum(sizes - 1, 1) ** power, 0.0)
        if len(self._edge_sums):
            weights *= self._totals() / np.maximum(sizes, 1)
        return weights

    def _totals(self) -> np.ndarray:
        """Sum of the weights of each collection's edges, float64 [collections]."""
        ends = self._graph.indptr[self._graph.num_items :]
        filled = np.diff(ends) > 0
        totals = np.zeros(len(filled))
        totals[filled] = self._edge_sums[ends[1:][filled] - 1]
        return totals

    def epoch_of(self, number: int) -> int:
        """The epoch, counted from 0, of pair `number` of the run."""
        return number // self.per_epoch

    def batch(self, first: int, size: int) -> PairBatch:
        """Pairs first, ..., first + size - 1 of the run."""
        queries, targets = np.empty(size, np.int32), np.empty(size, np.int32)
        source_collection = np.full(size, -1, np.int32)
        if self._cumulative is not None:
            pair_kernels.weighted_collection_pairs(
                (self._graph.indptr, self._graph.indices),
                self._graph.num_items,
                self._cumulative,
                self._edge_sums,
                self._seed,
                first,
                queries,
                targets,
                source_collection,
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
                source_collection,
            )
        else:
            pair_kernels.listed_pairs(self._pairs, self._seed, first, queries, targets)
        return PairBatch(queries, targets, source_collection)

    @property
    def is_symmetric(self) -> bool:
        """Whether both ends are drawn alike: without a table, and not by weight."""
        return self._pairs is None and not len(self._edge_sums)

    def target_probability(self) -> np.ndarray:
        """Probability that an item is the target of a drawn pair, float32 [num_items]."""
        return self._end_probability(1)

    def query_probability(self) -> np.ndarray:
        """Probability that an item is the query of a drawn pair, float32 [num_items].

        Pairs of a table may have a direction; two items of one collection have none.
        """
        return self._end_probability(0)

    def _end_probability(self, column: int) -> np.ndarray:
        """Probability of either end of a pair; `column` of the table of pairs, if there is one."""
        count = self._graph.num_items
        if self._pairs is not None:
            total = np.bincount(self._pairs[:, column], minlength=count).astype(np.float64)
        elif len(self._edge_sums):
            total = self._weighted_ends(column)
        else:
            # All items of a collection are equally likely to be the query, and the target.
            sizes = np.diff(self._graph.indptr[count:])
            weights = (sizes > 1) * sizes.astype(np.float64)
            if self._cumulative is not None:
                weights = np.diff(self._cumulative, prepend=0.0)
            item_weights = weights / np.maximum(sizes, 1)
            total = np.zeros(count)
            graph = self._graph
            for low, high in row_spans(graph.indptr[count:]):
                pair_kernels.add_collections(
                    graph.indptr, graph.indices, count, item_weights, low, high, total
                )
                files.release(graph.indices)
        return (total / total.sum()).astype(np.float32)

    def _weighted_ends(self, column: int) -> np.ndarray:
        """Probabilities float64 [num_items], up to a factor, where items are drawn by weight.

        In a collection of weights w with sum W an item is the query with probability w / W, and
        the target with the sum over the other items q of w_q / W * w / (W - w_q).
        """
        graph, count = self._graph, self._graph.num_items
        assert graph.weights is not None and self._cumulative is not None, "pairs go by weight"
        starts = graph.indptr[count:]
        total = np.zeros(count)
        drawn = np.diff(self._cumulative, prepend=0.0)
        for collection in np.flatnonzero(drawn).tolist():
            row = slice(starts[collection], starts[collection + 1])
            weights = graph.weights[row].astype(np.float64)
            share = weights / weights.sum()
            if column == 1:
                # 1 - share, without the cancellation of a share near 1.
                rest = (weights.sum() - weights) / weights.sum()
                odds = share / np.maximum(rest, np.finfo(np.float64).tiny)
                share = share * (odds.sum() - odds)
            total[graph.indices[row]] += drawn[collection] * share
        return total


def random_negatives(pool: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
    """R = `size` items, int32 [R], drawn uniformly with replacement from `pool` int32 [P]."""
    generator = np.random.Generator(np.random.Philox(key=[seed ^ _RANDOM_STREAM, step]))
    return pool[generator.integers(0, len(pool), size)].astype(np.int32)


def hard_band(sampling: SamplingConfig, num_items: int) -> tuple[int, int]:
    """Ranks [low, high) of hard negatives, scaled to the size of the catalog.

    The ranks 2000 to 5000 of Ying et al. 2018 are for a catalog of billions.  In a catalog
    smaller than 100 times the last rank, both ends are scaled down by the same factor.
    """
    low, high = sampling.hard_low, sampling.hard_high
    if sampling.hard_scale and num_items < _MIN_CATALOG_PER_RANK * high:
        factor = num_items / (_MIN_CATALOG_PER_RANK * high)
        low, high = max(1, round(low * factor)), max(2, round(high * factor))
    return low, max(high, low + 1)


def kept_ranks(num_items: int, high: int, max_bytes: int = _MAX_RANKING_BYTES) -> int:
    """Items that are kept of every ranking: `high`, a sample of the band, or 0."""
    return next((n for n in (high, _BAND_SAMPLE) if 4 * num_items * n <= max_bytes), 0)


class Rankings:
    """Keeps each query's ranking of items by personalized PageRank, or a sample of its band.

    The sample has 64 items, drawn once with replacement: a query is ranked once in a run
    and not for every batch, and its hard negatives are those items.

    Thread-safe; a query that two threads miss is ranked twice, with the same result.

    Attributes:
      band: the places [low, high) of hard negatives in what `lookup` returns.
      seed: seed of the run.
    """

    def __init__(
        self,
        tables: WalkTables,
        sampling: SamplingConfig,
        seed: int,
        threads: int = 1,
        max_bytes: int = _MAX_RANKING_BYTES,
    ):
        """Computes nothing yet; rankings end with the band of hard negatives (`hard_band`).

        Args:
          tables: the training graph.
          sampling: numbers and lengths of walks, and the band.
          seed: seed of the run.
          threads: host threads; the results do not depend on them.
          max_bytes: what may be kept of the rankings of all items; where whole rankings take
            more, samples are kept, or nothing.
        """
        items = tables.graph.num_items
        self._low, self._high = hard_band(sampling, items)
        self.seed = seed
        self._tables = tables
        self._sampling = dataclasses.replace(
            sampling,
            neighborhood="items",
            num_neighbors=self._high,
            num_walks=sampling.hard_walks,
        )
        self._threads = threads
        width = kept_ranks(items, self._high, max_bytes)
        self._samples = 0 < width < self._high
        self.band = (0, width) if self._samples else (self._low, self._high)
        # The system allocates a page of the array when it is first written.
        self._kept = np.empty((items if width else 0, width), np.int32)
        self._ranked = np.zeros(items, np.bool_)
        # A thread reads a ranking only after it has seen it marked under this lock, under which
        # it was marked.
        self._lock = threading.Lock()

    def lookup(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rankings of `queries` (int32 [B]), or samples of their bands.

        Returns:
          (rankings, rows): int32 [n, C], items in descending order, padded with -1; and
          int32 [B], the row of each query's ranking.
        """
        unranked, rows = np.empty(len(queries), np.int32), np.empty(len(queries), np.int32)
        table = np.full(1 << (2 * len(queries)).bit_length(), -1, np.int32)
        with self._lock:
            count = pair_kernels.find_unranked(queries, self._ranked, table, unranked, rows)
        starts = unranked[:count]
        new = visit_counts(
            self._tables,
            starts,
            self._sampling,
            seed=self.seed ^ _HARD_STREAM,
            threads=self._threads,
        ).ids
        if not len(self._kept):
            return new, rows
        if self._samples:
            ranked, new = new, np.empty((count, self._kept.shape[1]), np.int32)
            key = np.uint64(self.seed ^ _SAMPLE_STREAM)
            pair_kernels.sample_bands(ranked, starts, self._low, self._high, key, new)
        self._kept[starts] = new
        with self._lock:
            self._ranked[starts] = True
        return self._kept, queries


def hard_negatives(rankings: Rankings, pairs: PairBatch, *, size: int, first: int) -> np.ndarray:
    """Hard negatives of each query, int32 [B, H]; -1 for a missing one.

    Items are ranked by the visit counts of `hard_walks` walks from the query, an estimate
    of personalized PageRank, and drawn uniformly with replacement from the band of ranks.
    If the walks reach fewer items than the end of the band, the band shrinks in
    proportion.  A query's own target is never returned.  Of a large catalog the draws are
    among a sample of the band (`Rankings`).

    Args:
      rankings: rankings of the training graph.
      pairs: B pairs.
      size: H.
      first: number of the first pair, counted over the whole run.
    """
    drawn = np.empty((len(pairs.queries), size), np.int32)
    ranked_items, rows = rankings.lookup(pairs.queries)
    key = np.uint64(rankings.seed ^ _BAND_STREAM)
    pair_kernels.draw_from_band(
        ranked_items, rows, *rankings.band, pairs.targets, key, first, drawn
    )
    return drawn
