"""Ranking metrics from integer ranks, with bootstrap intervals (Ying et al. 2018, section 4.2).

A pair (query, target) is scored by the rank of its target among all other items of the
catalog; the query itself is never a candidate.  Definitions:

  hit@k       share of pairs whose target has rank <= k
  recall@k    share of a query's targets with rank <= k, averaged over queries
  ndcg@10     DCG of a query's targets in the first ten ranks divided by the best possible
              DCG, averaged over queries
  mrr         mean of 1 / rank over pairs
  scaled_mrr  mean of 1 / ceil(rank / 100) over pairs, as in the paper

Every metric is a ratio sum / count, and both add up over disjoint sets of pairs as long as
all pairs of a query are in the same set.

  P pairs, Q distinct queries, N items, M = len(METRICS)
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

CUTOFFS = (10, 100, 500)
NDCG_DEPTH = 10
SCALED_MRR_STEP = 100

METRICS = (
    *(f"hit@{k}" for k in CUTOFFS),
    *(f"recall@{k}" for k in CUTOFFS),
    f"ndcg@{NDCG_DEPTH}",
    "mrr",
    "scaled_mrr",
)

# Resampled queries in memory at a time.
_MAX_DRAWS = 1 << 22


@dataclasses.dataclass(frozen=True)
class QueryTable:
    """Each query's contribution to each metric.

    Attributes:
      queries: int64 [Q], ids of the queries, ascending.
      sums, counts: float64 [Q, M]; a metric is sums.sum(0) / counts.sum(0).
    """

    queries: np.ndarray
    sums: np.ndarray
    counts: np.ndarray

    def totals(self) -> dict[str, tuple[float, float]]:
        """(sum, count) by metric; those of tables with disjoint queries add up."""
        sums, counts = self.sums.sum(axis=0), self.counts.sum(axis=0)
        return {
            name: (float(sums[column]), float(counts[column]))
            for column, name in enumerate(METRICS)
        }

    def means(self) -> dict[str, float]:
        """Value by metric; empty if there is no pair."""
        return {name: total / count for name, (total, count) in self.totals().items() if count > 0}


def query_table(ranks: np.ndarray, query_ids: np.ndarray) -> QueryTable:
    """Sums the metrics of pairs by query.

    Args:
      ranks: int64 [P]; the best rank is 1.
      query_ids: int [P], the query of each pair; the pairs are distinct.

    Raises:
      ValueError: a rank is below 1.
    """
    ranks = np.asarray(ranks, np.int64)
    if ranks.size and ranks.min() < 1:
        raise ValueError("ranks count from 1")
    queries, rows = np.unique(np.asarray(query_ids, np.int64), return_inverse=True)
    size = np.bincount(rows, minlength=len(queries)).astype(np.float64)

    def per_query(values: np.ndarray) -> np.ndarray:
        return np.bincount(rows, weights=values, minlength=len(queries))

    gain = np.where(ranks <= NDCG_DEPTH, 1.0 / np.log2(1.0 + ranks), 0.0)
    ideal = np.cumsum(1.0 / np.log2(2.0 + np.arange(NDCG_DEPTH)))
    best = ideal[np.minimum(size, NDCG_DEPTH).astype(np.int64) - 1]
    hits = [per_query(ranks <= k) for k in CUTOFFS]
    sums = [
        *hits,
        *(count / size for count in hits),
        per_query(gain) / best,
        per_query(1.0 / ranks),
        per_query(1.0 / np.ceil(ranks / SCALED_MRR_STEP)),
    ]
    averaged_over_queries = [name.startswith(("recall", "ndcg")) for name in METRICS]
    counts = np.where(np.asarray(averaged_over_queries)[None, :], 1.0, size[:, None])
    return QueryTable(queries, np.stack(sums, axis=1), counts)


def keyed_generator(seed: int, label: str) -> np.random.Generator:
    """A generator whose stream depends on the seed and the label alone.

    Changing a label changes the intervals or samples that are drawn under it.
    """
    return np.random.default_rng([seed, zlib.crc32(label.encode())])


def bootstrap_means(
    tables: Sequence[QueryTable], resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Metrics of several methods on bootstrap resamples of the queries.

    Whole queries are drawn with replacement (a cluster bootstrap), because the pairs of one
    query are not independent.  All methods are evaluated on the same draws, so that
    differences between methods are paired.

    Args:
      tables: one per method, over the same queries.
      resamples: number of bootstrap resamples.
      generator: source of the draws; its state advances.

    Returns:
      float64 [len(tables), resamples, M].

    Raises:
      ValueError: the tables are over different queries.
    """
    queries = tables[0].queries
    for table in tables[1:]:
        if not np.array_equal(table.queries, queries):
            raise ValueError("methods were scored on different queries")
    total = len(queries)
    columns = np.concatenate([array for table in tables for array in (table.sums, table.counts)], 1)
    block = max(1, _MAX_DRAWS // max(total, 1))
    parts = []
    for first in range(0, resamples, block):
        rows = min(block, resamples - first)
        drawn = generator.integers(0, total, (rows, total))
        drawn += np.arange(rows)[:, None] * total
        multiplicity = np.bincount(drawn.ravel(), minlength=rows * total).reshape(rows, total)
        parts.append(multiplicity.astype(np.float64) @ columns)
    resampled = np.concatenate(parts).reshape(resamples, len(tables), 2, len(METRICS))
    return np.swapaxes(resampled[:, :, 0] / resampled[:, :, 1], 0, 1)


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over axis 0 of samples float64 [resamples, M]: low [M], high [M]."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail], axis=0)
    return low, high
