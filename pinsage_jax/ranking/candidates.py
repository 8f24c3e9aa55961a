"""Candidates of related items by four methods, and the features that the ranker reads.

The methods are the embeddings ("vectors"), plain walks ("walk"), walks steered by content
("steered") and the content itself ("content").  Each proposes its best items for a query, with
and without edges apart, because no walk reaches an item without edges and vectors compare the
two kinds badly.

Q queries, N items, K candidates of a query, F = len(FEATURES), Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from threadpoolctl import ThreadpoolController

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.ranking.steered_walks import STEERING, visit_probabilities
from pinsage_jax.retrieval import kernels
from pinsage_jax.sampling.content_links import content_links
from pinsage_jax.sampling.link_spaces import make_space
from pinsage_jax.sampling.neighborhoods import run_blocks

METHODS = ("vectors", "walk", "steered", "content")
# Of an item: the embeddings' inner product without the popularity coordinate, and this
# coordinate's product; logarithms of the walks' probabilities; similarity of the content;
# log(1 + degree), of an item without edges that of similar items; and the logarithms of its
# ranks by vectors and by content among the candidates of its kind.  Of the query: log(1 +
# degree), and the mean of its ten best similarities by vectors and by content among the
# candidates with and without edges, which indicate how reliable each kind is.
FEATURES = (
    "similarity", "popularity", "log_walk", "log_steered", "content", "log_degree",
    "log_rank_by_vectors", "log_rank_by_content", "query_log_degree", "best_vectors_warm",
    "best_vectors_cold", "best_content_warm", "best_content_cold",
)  # fmt: skip
# Candidates that each method proposes; k if k is larger.
_BY_VECTORS, _BY_WALK, _BY_CONTENT = 150, 100, 60
_LEAST_PROBABILITY = 1e-4
_BEST = 10
_SIMILAR_ITEMS = 10
_MAX_SCORES, _MAX_QUERIES = 1 << 23, 256
_ROWS_PER_TASK = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of Q queries.

    Attributes:
      rows: int32 [Q], the queries.
      ids: int32 [Q, K], ascending, padded with -1 at the beginning; never the query itself.
      isolated: bool [Q, K], whether a candidate has no edges.
      features: float32 [Q, K, F].
      scores: float32 [Q, N] by method, its score of every item; -inf at the query.
    """

    rows: np.ndarray
    ids: np.ndarray
    isolated: np.ndarray
    features: np.ndarray
    scores: dict[str, np.ndarray]


class CandidateSource:
    """Proposes candidates in one catalog.

    Attributes:
      isolated: bool [N], items without edges.
      num_items: N.
    """

    def __init__(
        self,
        graph: Graph,
        link_rows: np.ndarray,
        vectors: np.ndarray,
        sampling: SamplingConfig,
        threads: int,
        has_popularity: bool,
    ):
        """Prepares the similarity of content and the predicted degrees.

        Args:
          graph: the graph over which the vectors were computed.
          link_rows: features [N, D] or words int32 [N, 2K], as content links compare them.
          vectors: float32 [N, Z].
          sampling: length and restart probability of the walks.
          threads: host threads; they change no result.
          has_popularity: whether the last coordinate is the popularity of an item.
        """
        self._graph, self._vectors, self._sampling = graph, vectors, sampling
        self._threads, self._has_popularity = threads, has_popularity
        self.num_items = graph.num_items
        degree = graph.degree()[: graph.num_items]
        self.isolated = degree == 0
        self._warm, self._cold = np.flatnonzero(degree > 0), np.flatnonzero(degree == 0)
        self._log_degree = np.log1p(degree).astype(np.float32)
        self._space = make_space(link_rows) if link_rows.shape[1] else None
        if self._space is not None:
            self._encoded = self._space.encode_candidates(np.arange(graph.num_items))
        if self._space is not None and len(self._cold) and len(self._warm):
            ids, shares = content_links(link_rows, self._cold, self._warm, _SIMILAR_ITEMS, threads)
            similar = np.where(ids >= 0, self._log_degree[ids], 0.0)
            self._log_degree[self._cold] = (similar * shares).sum(axis=1)

    def blocks(self, rows: np.ndarray, k: int = 0) -> Iterator[Candidates]:
        """The candidates of the items `rows` (int [Q]), in blocks of bounded memory.

        Args:
          k: least number of candidates that each method proposes, where it has as many.
        """
        size = int(np.clip(_MAX_SCORES // max(self.num_items, 1), 1, _MAX_QUERIES))
        for start in range(0, len(rows), size):
            yield self._block(np.asarray(rows[start : start + size], np.int32), k)

    def _block(self, rows: np.ndarray, k: int) -> Candidates:
        scores = self._scores(rows)
        lists = []
        for method, size in (("vectors", _BY_VECTORS), ("content", _BY_CONTENT)):
            for kind in (self._warm, self._cold):
                if len(kind) and (method == "vectors" or self._space is not None):
                    found = best_columns(scores[method], max(size, k), self._threads, kind)
                    lists.append(found)
        for method in ("walk", "steered"):
            found = best_columns(scores[method], max(_BY_WALK, k), self._threads)
            reached = np.take_along_axis(scores[method], np.maximum(found, 0), 1) > 0
            lists.append(np.where((found >= 0) & reached, found, -1))
        ids = np.sort(np.concatenate(lists, axis=1).astype(np.int32), axis=1)
        repeated = np.zeros(ids.shape, np.bool_)
        repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
        ids = np.sort(np.where(repeated | (ids == rows[:, None]), -1, ids), axis=1)
        ids = ids[:, np.argmax((ids >= 0).any(axis=0)) :]
        isolated = self.isolated[ids] & (ids >= 0)
        return Candidates(rows, ids, isolated, self._features(rows, ids, isolated, scores), scores)

    def _scores(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Scores float32 [Q, N] of every item by method."""
        shape = len(rows), self.num_items
        vectors = np.empty(shape, np.float32)

        def multiply(begin: int, end: int) -> None:
            queries = self._vectors[rows[begin:end]]
            np.matmul(queries, self._vectors.T, out=vectors[begin:end])

        # One thread in each product, because the products run beside each other.
        with _blas().limit(limits=1, user_api="blas"):
            run_blocks(shape[0], self._threads, multiply, _ROWS_PER_TASK)
        content = np.zeros(shape, np.float32)
        if self._space is not None:
            space = self._space

            def compare(begin: int, end: int) -> None:
                encoded = space.encode_queries(rows[begin:end])
                content[begin:end] = space.cosines(encoded, self._encoded)

            run_blocks(shape[0], self._threads, compare, _ROWS_PER_TASK)
        walks = {
            name: visit_probabilities(
                self._graph, rows, content, self._sampling, self._threads, steering
            )
            for name, steering in (("walk", 0.0), ("steered", STEERING))
        }
        scores = {"vectors": vectors, "content": content, **walks}
        for values in scores.values():
            values[np.arange(shape[0]), rows] = -np.inf
        return scores

    def _features(
        self,
        rows: np.ndarray,
        ids: np.ndarray,
        isolated: np.ndarray,
        scores: dict[str, np.ndarray],
    ) -> np.ndarray:
        """Features float32 [Q, K, F] of candidates; those of padding are arbitrary."""
        place = np.maximum(ids, 0)
        of = {name: np.take_along_axis(values, place, axis=1) for name, values in scores.items()}
        popularity = np.zeros(ids.shape, np.float32)
        if self._has_popularity:
            popularity = self._vectors[rows, -1][:, None] * self._vectors[place, -1]
        similarity = of["vectors"] - popularity
        features = np.empty((*ids.shape, len(FEATURES)), np.float32)
        features[..., 0], features[..., 1] = similarity, popularity
        features[..., 2] = np.log(np.maximum(of["walk"], 0.0) + _LEAST_PROBABILITY)
        features[..., 3] = np.log(np.maximum(of["steered"], 0.0) + _LEAST_PROBABILITY)
        features[..., 4], features[..., 5] = of["content"], self._log_degree[place]
        features[..., 8] = self._log_degree[rows][:, None]
        kinds = (ids >= 0) & ~isolated, isolated
        features[..., 6] = _log_ranks(of["vectors"], kinds)
        features[..., 7] = _log_ranks(of["content"], kinds)
        for column, values, kind in (
            (9, similarity, kinds[0]),
            (10, similarity, kinds[1]),
            (11, of["content"], kinds[0]),
            (12, of["content"], kinds[1]),
        ):
            features[..., column] = _mean_of_best(values, kind)[:, None]
        return features


@functools.cache
def _blas() -> ThreadpoolController:
    """The thread pools of the libraries, whose search takes longer than a list."""
    return ThreadpoolController()


def best_columns(
    scores: np.ndarray, k: int, threads: int, columns: np.ndarray | None = None
) -> np.ndarray:
    """The columns of the k best scores of each row of float32 [Q, n], best first.

    Args:
      columns: int [m], ascending, those that count; None: all.

    Returns:
      int32 [Q, k'], k' = min(k, n); of equal scores the lower column comes first; -1 where
      the score is -inf.
    """
    rows, width = scores.shape[0], scores.shape[1] if columns is None else len(columns)
    k = min(k, width)
    ids = np.full((rows, k), -1, np.int32)
    best = np.empty((rows, k), np.float32)

    def work(begin: int, end: int) -> None:
        count = end - begin
        keys = np.empty((count, kernels.key_capacity(k)), np.uint64)
        counts, limits = np.zeros(count, np.int64), np.full(count, -np.inf, np.float32)
        part = scores[begin:end]
        if columns is not None:
            # mode="clip" checks no index, which takes half of the time.
            part = part.take(columns, axis=1, mode="clip")
        kernels.keep_best(part, width, 0, k, keys, counts, limits)
        kernels.sort_best(keys, counts, k, best[begin:end], ids[begin:end])

    run_blocks(rows, threads, work, _ROWS_PER_TASK)
    return ids if columns is None else np.where(ids >= 0, columns[ids], -1)


def _log_ranks(values: np.ndarray, kinds: tuple[np.ndarray, ...]) -> np.ndarray:
    """Logarithm of the rank of each value [Q, K] among those of its row and kind (bool [Q, K])."""
    ranks = np.ones(values.shape, np.float32)
    for kind in kinds:
        order = np.argsort(np.where(kind, -values, np.inf), axis=1, kind="stable")
        places = np.empty(order.shape, np.float32)
        np.put_along_axis(
            places, order, np.arange(1, order.shape[1] + 1, dtype=np.float32)[None, :], axis=1
        )
        ranks = np.where(kind, places, ranks)
    return np.log(ranks)


def _mean_of_best(values: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Mean of the ten best values of each row among those of a kind, float32 [Q]; 0 if none."""
    best = -np.sort(np.where(kind, -values, np.inf), axis=1)[:, :_BEST]
    return np.where(np.isfinite(best), best, 0.0).sum(axis=1) / np.maximum(
        np.isfinite(best).sum(axis=1), 1
    )
