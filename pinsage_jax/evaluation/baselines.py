"""Baselines that need no training, and the ranking that every rival goes through.

A baseline scores the whole catalog for each query; `rank_pairs` turns scores into
ranks by the tie rule of metrics.py, the same for all.  So an item that a baseline
knows nothing about ties with all others it knows nothing about.

  Q queries, N items, P pairs, D input features
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core.progress import Progress
from pinsage_jax.graph.csr import Graph
from pinsage_jax.retrieval.ranks import ranks_from_scores
from pinsage_jax.sampling.neighborhoods import visit_scores

# Scores held at once: 128 MiB of float32.
_SCORES_AT_ONCE = 1 << 25
_MOST_QUERIES = 512
_FEATURE_ROWS = 1 << 16
# As a recommender the walk gets this many times the walks behind a neighborhood.
WALK_FACTOR = 10


class Baseline(Protocol):
    """A way to score items for a query item."""

    name: str
    settings: dict[str, Any]  # what it was run with, as eval.json shows it

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] of every item for queries int32 [Q]; larger is better."""


def query_blocks(query_ids: np.ndarray, num_items: int) -> list[np.ndarray]:
    """The distinct queries, ascending, in blocks whose scores fit in memory."""
    queries = np.unique(query_ids).astype(np.int32)
    size = queries_at_once(num_items)
    return [queries[start : start + size] for start in range(0, len(queries), size)]


def queries_at_once(num_items: int) -> int:
    """Queries whose scores of the whole catalog fit in memory."""
    return int(np.clip(_SCORES_AT_ONCE // max(num_items, 1), 1, _MOST_QUERIES))


def rank_pairs(baseline: Baseline, pairs: np.ndarray, num_items: int) -> np.ndarray:
    """Rank of every pair's target in the whole catalog, int64 [P].

    Args:
      pairs: int32 [P, 2]: query, target.
    """
    ranks = np.empty(len(pairs), np.int64)
    with Progress(total=len(pairs), unit="pair", name=f"ranking by {baseline.name}") as progress:
        for queries in query_blocks(pairs[:, 0], num_items):
            chosen = np.flatnonzero((pairs[:, 0] >= queries[0]) & (pairs[:, 0] <= queries[-1]))
            query, target = pairs[chosen].T
            rows = np.searchsorted(queries, query)
            ranks[chosen] = ranks_from_scores(baseline.scores(queries), rows, query, target)
            progress.update(len(chosen))
    return ranks


class Popularity:
    """Every query gets the items with the most edges."""

    name = "popularity"

    def __init__(self, graph: Graph):
        self.settings: dict[str, Any] = {}
        self._degree = graph.degree()[: graph.num_items].astype(np.float32)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """float32 [Q, N]."""
        return np.broadcast_to(self._degree, (len(query_ids), len(self._degree)))


class Content:
    """Cosine of the raw features; an item whose features are all zero scores 0."""

    name = "content"

    def __init__(self, features: np.ndarray):
        """Takes float [N, D], D > 0; may be memory-mapped and is not copied."""
        self.settings: dict[str, Any] = {"dimensions": int(features.shape[1])}
        self._features = features
        parts = [_unit_scale(part) for _, part in self._parts()]
        self._scale = np.concatenate(parts) if parts else np.empty(0, np.float32)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """float32 [Q, N]."""
        queries = np.asarray(self._features[query_ids], np.float32)
        queries = queries * _unit_scale(queries)[:, None]
        result = np.empty((len(query_ids), len(self._features)), np.float32)
        for start, part in self._parts():
            end = start + len(part)
            result[:, start:end] = queries @ (part * self._scale[start:end, None]).T
        return result

    def _parts(self):
        for start in range(0, len(self._features), _FEATURE_ROWS):
            yield start, np.asarray(self._features[start : start + _FEATURE_ROWS], np.float32)


def _unit_scale(rows: np.ndarray) -> np.ndarray:
    """What scales each row to unit length, float32; 0 for a row of zeros."""
    length = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
    return np.where(length > 0, 1.0 / np.where(length > 0, length, 1.0), 0.0).astype(np.float32)


class Walk:
    """Visit counts of random walks from the query: what the neighborhoods know."""

    name = "walk"

    def __init__(self, graph: Graph, sampling: SamplingConfig, seed: int, threads: int):
        self._graph, self._sampling = graph, sampling
        self._seed, self._threads = seed, threads
        self._walks = WALK_FACTOR * sampling.num_walks
        self.settings: dict[str, Any] = {
            "num_walks": self._walks,
            "walk_length": sampling.walk_length,
            "restart": sampling.restart,
            "restart_ends": sampling.restart_ends,
        }

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """float32 [Q, N]."""
        ids, counts = visit_scores(
            self._graph,
            query_ids,
            self._sampling,
            self._seed,
            self._walks,
            self._threads,
        )
        result = np.zeros((len(query_ids), self._graph.num_items), np.float32)
        rows, places = np.nonzero(ids >= 0)
        result[rows, ids[rows, places]] = counts[rows, places]
        return result
