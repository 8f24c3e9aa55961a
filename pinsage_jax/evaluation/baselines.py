"""Baselines that need no training, and the ranking of pairs by any baseline.

A baseline scores the whole catalog for each query; `rank_pairs` turns the scores into ranks
by the tie rule of metrics.py, the same for every method.  Items about which a baseline has
no information have equal scores and share a rank.

  Q queries, N items, P pairs, D input features
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core.progress import Progress
from pinsage_jax.graph.csr import Graph
from pinsage_jax.retrieval.online import best_of_scores
from pinsage_jax.retrieval.ranks import ranks_from_scores
from pinsage_jax.sampling.link_spaces import WordSpace
from pinsage_jax.sampling.neighborhoods import run_blocks, visit_scores

# Scores in memory at a time: 128 MiB of float32.
_MAX_SCORES = 1 << 25
_MAX_QUERIES = 512
_FEATURE_ROWS = 1 << 16
_ROWS_PER_TASK = 32
# The walk baseline runs this many times the walks of a neighborhood (--num_walks).
WALK_FACTOR = 10


class Baseline(Protocol):
    """A method that scores every item of the catalog for a query item."""

    name: str
    settings: dict[str, Any]  # its parameters, as written to eval.json

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] of every item for queries int32 [Q]; larger is better."""


def query_blocks(query_ids: np.ndarray, num_items: int) -> list[np.ndarray]:
    """The distinct queries int32, ascending, in blocks of bounded memory."""
    queries = np.unique(query_ids).astype(np.int32)
    size = query_block_size(num_items)
    return [queries[start : start + size] for start in range(0, len(queries), size)]


def query_block_size(num_items: int) -> int:
    """Number of queries to score at a time, so that Q * N scores take at most 128 MiB."""
    return int(np.clip(_MAX_SCORES // max(num_items, 1), 1, _MAX_QUERIES))


def rank_pairs(baseline: Baseline, pairs: np.ndarray, num_items: int) -> np.ndarray:
    """Ranks every pair's target in the whole catalog.

    Args:
      baseline: scores the candidates.
      pairs: int32 [P, 2]: query, target.
      num_items: N.

    Returns:
      int64 [P]; the best rank is 1.
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


def top_items(baseline: Baseline, queries: np.ndarray, k: int, num_items: int) -> np.ndarray:
    """The k items of highest score for each query, int32 [Q, k], padded with -1.

    An item that a baseline knows nothing about (no score above 0) is not listed.

    Args:
      queries: int [Q], ascending; no item is listed for itself.
      num_items: N.
    """
    found = []
    for block in query_blocks(queries, num_items):
        ids, scores = best_of_scores(np.array(baseline.scores(block), np.float32), block, k)
        found.append(np.where(scores > 0, ids, -1))
    return np.concatenate([np.empty((0, k), np.int32), *found])


class Popularity:
    """Scores every item by its degree, or by the weights of its edges, whatever the query."""

    name = "popularity"

    def __init__(self, graph: Graph, by_weight: bool = False):
        self.settings: dict[str, Any] = {}
        self._degree = graph.degree()[: graph.num_items].astype(np.float32)
        if by_weight and graph.weights is not None:
            owner = np.repeat(np.arange(graph.num_items), self._degree.astype(np.int64))
            weights = graph.weights[: graph.num_edges]
            self._degree = np.bincount(owner, weights, graph.num_items).astype(np.float32)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        return np.broadcast_to(self._degree, (len(query_ids), len(self._degree)))


class Content:
    """Cosine similarity of the raw features; 0 for an item whose features are all zero."""

    def __init__(self, features: np.ndarray, name: str = "content"):
        """Takes features float [N, D], D > 0; they may be memory-mapped and are not copied."""
        self.name = name
        self.settings: dict[str, Any] = {"dimensions": int(features.shape[1])}
        self._features = features
        scales = [_unit_scale(block) for _, block in self._blocks()]
        self._scale = np.concatenate(scales) if scales else np.empty(0, np.float32)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        queries = np.asarray(self._features[query_ids], np.float32)
        queries = queries * _unit_scale(queries)[:, None]
        result = np.empty((len(query_ids), len(self._features)), np.float32)
        for start, block in self._blocks():
            end = start + len(block)
            result[:, start:end] = queries @ (block * self._scale[start:end, None]).T
        return result

    def _blocks(self):
        for start in range(0, len(self._features), _FEATURE_ROWS):
            yield start, np.asarray(self._features[start : start + _FEATURE_ROWS], np.float32)


def _unit_scale(rows: np.ndarray) -> np.ndarray:
    """Factor float32 [n] that scales each row to unit length; 0 for a row of zeros."""
    length = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
    return np.where(length > 0, 1.0 / np.where(length > 0, length, 1.0), 0.0).astype(np.float32)


class WordContent:
    """Cosine similarity of the items' words (TF-IDF), where items are text alone."""

    name = "content_words"

    def __init__(self, words: np.ndarray, threads: int):
        """Takes words int32 [N, 2K] (data/text.py)."""
        self.settings: dict[str, Any] = {"words": words.shape[1] // 2}
        self._space, self._threads = WordSpace(words), threads
        self._items = self._space.encode_candidates(np.arange(len(words)))

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        result = np.empty((len(query_ids), self._items.size), np.float32)

        def compare(begin: int, end: int) -> None:
            queries = self._space.encode_queries(query_ids[begin:end])
            result[begin:end] = self._space.cosines(queries, self._items)

        run_blocks(len(query_ids), self._threads, compare, _ROWS_PER_TASK)
        return result


class Walk:
    """Visit counts of random walks from the query, as used for neighborhoods."""

    name = "walk"

    def __init__(self, graph: Graph, sampling: SamplingConfig, seed: int, threads: int):
        self._graph, self._sampling = graph, sampling
        self._seed, self._threads = seed, threads
        self._walks = WALK_FACTOR * sampling.num_walks
        self.settings: dict[str, Any] = {
            "num_walks": self._walks,
            "walk_length": sampling.walk_length,
            "restart": sampling.restart,
        }

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        ids, counts = visit_scores(
            self._graph,
            query_ids,
            self._sampling,
            self._seed,
            self._walks,
            self._threads,
        )
        result = np.zeros((len(query_ids), self._graph.num_items), np.float32)
        rows, columns = np.nonzero(ids >= 0)
        result[rows, ids[rows, columns]] = counts[rows, columns]
        return result
