"""Candidates of related items by four methods, and the features that the ranker reads.

The methods are the embeddings ("vectors"), plain walks ("walk"), walks steered by content
("steered") and the content itself ("content").  Each proposes its best items for a query, with
and without edges apart, because no walk reaches an item without edges and vectors compare the
two kinds badly.  Of the items without edges, plain walks propose those whose content is like that
of the items they visit.

Q queries, N items, K candidates of a query, F = len(FEATURES), Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from threadpoolctl import ThreadpoolController

from pinsage_jax.catalog.additions import Additions
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.ranking.similar_items import SIMILAR_ITEMS, SimilarItems
from pinsage_jax.retrieval import kernels
from pinsage_jax.sampling.link_spaces import LinkSpace, make_space
from pinsage_jax.sampling.neighborhoods import run_blocks
from pinsage_jax.sampling.steered_walks import STEERING, visit_probabilities

METHODS = ("vectors", "walk", "steered", "content")
# Of an item: the embeddings' inner product without the popularity coordinate, and this
# coordinate's product; logarithms of the walks' probabilities; similarity of the content;
# log(1 + degree); and the logarithms of its ranks by vectors and by content among the
# candidates of its kind.  Of an item without edges, walks and degree are those of items with
# similar content.  Of the query: log(1 + degree), and the mean of its ten best similarities by
# vectors and by content among the candidates with and without edges, which indicate how
# reliable each kind is.
FEATURES = (
    "similarity", "popularity", "log_walk", "log_steered", "content", "log_degree",
    "log_rank_by_vectors", "log_rank_by_content", "query_log_degree", "best_vectors_warm",
    "best_vectors_cold", "best_content_warm", "best_content_cold",
)  # fmt: skip
# Candidates that each method proposes; k if k is larger.
_BY_VECTORS, _BY_WALK, _BY_CONTENT = 150, 100, 60
_LEAST_PROBABILITY = 1e-4
_BEST = 10
_MAX_SCORES, _MAX_QUERIES = 1 << 23, 256
_ROWS_PER_TASK = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of Q queries.

    Attributes:
      rows: int32 [Q], the queries; -1: one that is not in the catalog.
      cold: bool [Q], whether a query has no edges.
      ids: int32 [Q, K], ascending, padded with -1 at the beginning; never the query itself.
      isolated: bool [Q, K], whether a candidate has no edges.
      features: float32 [Q, K, F].
      popularity: float32 [Q], the popularity coordinate of the queries; 0 without one.
      scores: float32 [Q, N] by method, its score of every item; -inf at the query.
    """

    rows: np.ndarray
    cold: np.ndarray
    ids: np.ndarray
    isolated: np.ndarray
    features: np.ndarray
    popularity: np.ndarray
    scores: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class NewQueries:
    """Q queries that are not in the catalog.

    Attributes:
      vectors: float32 [Q, Z], with their full popularity.
      link_rows: features or words as in CandidateSource.
      indptr, indices: int64 [Q + 1] and int32 [*], the collections of the catalog that hold
        each query, as node ids.
    """

    vectors: np.ndarray
    link_rows: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, link_rows: np.ndarray, held: list[np.ndarray]) -> NewQueries:
        """Queries that are held by collections, int [*] node ids for each query."""
        indptr = np.cumsum([0, *map(len, held)]).astype(np.int64)
        indices = np.concatenate([np.empty(0, np.int32), *held]).astype(np.int32)
        return cls(np.asarray(vectors, np.float32), link_rows, indptr, indices)


def new_queries(graph: Graph, additions: Additions, vectors: np.ndarray) -> NewQueries:
    """New items as queries; the collections that the catalog `graph` does not have are left out.

    Args:
      vectors: float32 [n, Z] of the new items, as exported.
    """
    own, held = additions.graph, list[np.ndarray]()
    for item in range(own.num_items):
        collections = additions.collections[own.neighbors(item) - own.num_items]
        held.append(graph.num_items + collections[collections < graph.num_collections])
    return NewQueries.of(vectors, additions.link_rows, held)


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    """Some queries: what the methods read of them."""

    rows: np.ndarray  # int32 [q], -1: not in the catalog
    vectors: np.ndarray  # float32 [q, Z]
    space: LinkSpace | None  # in which the content of the queries is
    content: np.ndarray  # int [q], their rows in it
    begins: tuple[np.ndarray, np.ndarray] | None  # as in visit_probabilities
    degree: np.ndarray  # int [q]


class CandidateSource:
    """Proposes candidates in one catalog.

    Attributes:
      isolated: bool [N], items without edges.
      popularity: float32 [N], the popularity coordinate; 0 without one.
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
        self.popularity = self._popularity_of(vectors)
        self._warm, self._cold = np.flatnonzero(degree > 0), np.flatnonzero(degree == 0)
        self._degree = degree
        self._log_degree = np.log1p(degree).astype(np.float32)
        self._space = make_space(link_rows) if link_rows.shape[1] else None
        if self._space is not None:
            self._encoded = self._space.encode_candidates(np.arange(graph.num_items))
        self._similar: SimilarItems | None = None
        if self._space is not None and len(self._cold) and len(self._warm):
            self._similar = SimilarItems(link_rows, self._cold, self._warm, threads)
            self._log_degree[self._cold] = self._similar.mean_of(self._log_degree)

    def blocks(self, rows: np.ndarray, k: int = 0) -> Iterator[Candidates]:
        """The candidates of the items `rows` (int [Q]), in blocks of bounded memory.

        Args:
          k: least number of candidates that each method proposes, where it has as many.
        """
        size = self._block_size
        for start in range(0, len(rows), size):
            part = np.asarray(rows[start : start + size], np.int32)
            yield self._block(
                _Block(part, self._vectors[part], self._space, part, None, self._degree[part]), k
            )

    def blocks_of_new(self, queries: NewQueries, k: int = 0) -> Iterator[Candidates]:
        """The same of queries that are not in the catalog."""
        size, space = self._block_size, None
        if self._space is not None:
            space = make_space(queries.link_rows)
        for start in range(0, len(queries.vectors), size):
            rows = np.arange(start, min(start + size, len(queries.vectors)))
            indptr = queries.indptr[start : rows[-1] + 2]
            outside = np.full(len(rows), -1, np.int32)
            begins = np.ascontiguousarray(indptr), queries.indices
            yield self._block(
                _Block(outside, queries.vectors[rows], space, rows, begins, np.diff(indptr)), k
            )

    @property
    def _block_size(self) -> int:
        return int(np.clip(_MAX_SCORES // max(self.num_items, 1), 1, _MAX_QUERIES))

    def _block(self, queries: _Block, k: int) -> Candidates:
        rows, scores, lists = queries.rows, self._scores(queries), []
        for method, size in (("vectors", _BY_VECTORS), ("content", _BY_CONTENT)):
            for kind in (self._warm, self._cold):
                if len(kind) and (method == "vectors" or self._space is not None):
                    found = best_columns(scores[method], max(size, k), self._threads, kind)
                    lists.append(found)
        for method in ("walk", "steered"):
            found = best_columns(scores[method], max(_BY_WALK, k), self._threads)
            lists.append(_reached(found, scores[method]))
        near = {}
        if self._similar is not None:
            near = {name: self._similar.means_of(scores[name]) for name in ("walk", "steered")}
            found = best_columns(near["walk"], max(_BY_WALK, k), self._threads)
            found = _reached(found, near["walk"])
            lists.append(np.where(found >= 0, self._cold[found], -1))
        ids = np.sort(np.concatenate(lists, axis=1).astype(np.int32), axis=1)
        repeated = np.zeros(ids.shape, np.bool_)
        repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
        ids = np.sort(np.where(repeated | (ids == rows[:, None]), -1, ids), axis=1)
        ids = ids[:, np.argmax((ids >= 0).any(axis=0)) :]
        isolated = self.isolated[ids] & (ids >= 0)
        features = self._features(queries, ids, isolated, scores, near)
        popularity = self._popularity_of(queries.vectors)
        return Candidates(rows, queries.degree == 0, ids, isolated, features, popularity, scores)

    def _popularity_of(self, vectors: np.ndarray) -> np.ndarray:
        if self._has_popularity:
            return np.ascontiguousarray(vectors[:, -1], np.float32)
        return np.zeros(len(vectors), np.float32)

    def _scores(self, block: _Block) -> dict[str, np.ndarray]:
        """Scores float32 [Q, N] of every item by method."""
        rows, shape = block.rows, (len(block.rows), self.num_items)
        vectors = np.empty(shape, np.float32)

        def multiply(begin: int, end: int) -> None:
            np.matmul(block.vectors[begin:end], self._vectors.T, out=vectors[begin:end])

        # One thread in each product, because the products run beside each other.
        with _blas().limit(limits=1, user_api="blas"):
            run_blocks(shape[0], self._threads, multiply, _ROWS_PER_TASK)
        content = np.zeros(shape, np.float32)
        if (space := block.space) is not None:

            def compare(begin: int, end: int) -> None:
                encoded = space.encode_queries(block.content[begin:end])
                content[begin:end] = space.cosines(encoded, self._encoded)

            run_blocks(shape[0], self._threads, compare, _ROWS_PER_TASK)
        walks = {
            name: visit_probabilities(
                self._graph,
                rows,
                content,
                self._sampling,
                self._threads,
                steering,
                begins=block.begins,
            )
            for name, steering in (("walk", 0.0), ("steered", STEERING))
        }
        scores = {"vectors": vectors, "content": content, **walks}
        known = np.flatnonzero(rows >= 0)
        for values in scores.values():
            values[known, rows[known]] = -np.inf
        return scores

    def _features(
        self,
        queries: _Block,
        ids: np.ndarray,
        isolated: np.ndarray,
        scores: dict[str, np.ndarray],
        near: dict[str, np.ndarray],
    ) -> np.ndarray:
        """Features float32 [Q, K, F] of candidates; those of padding are arbitrary.

        Args:
          ids, isolated: [Q, K], the candidates.
          near: float32 [Q, C] by walk, the visits of items like each cold one; {}: unknown.
        """
        place = np.maximum(ids, 0)
        of = {name: np.take_along_axis(values, place, axis=1) for name, values in scores.items()}
        popularity = self._popularity_of(queries.vectors)[:, None] * self.popularity[place]
        similarity = of["vectors"] - popularity
        features = np.empty((*ids.shape, len(FEATURES)), np.float32)
        features[..., 0], features[..., 1] = similarity, popularity
        for column, method in ((2, "walk"), (3, "steered")):
            visits = np.maximum(of[method], 0.0)
            if near:
                visits[isolated] = near[method][
                    np.nonzero(isolated)[0], np.searchsorted(self._cold, ids[isolated])
                ]
            features[..., column] = np.log(visits + _LEAST_PROBABILITY)
        features[..., 4], features[..., 5] = of["content"], self._log_degree[place]
        features[..., 8] = self._log_degrees(queries, scores["content"])[:, None]
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

    def _log_degrees(self, queries: _Block, content: np.ndarray) -> np.ndarray:
        """log(1 + degree) of each query, float32 [q]; without edges that of similar items."""
        known = queries.rows >= 0
        found = np.where(
            known, self._log_degree[np.maximum(queries.rows, 0)], np.log1p(queries.degree)
        )
        new = np.flatnonzero(~known & (queries.degree == 0))
        if len(new) and queries.space is not None and len(self._warm):
            ids = best_columns(content[new], SIMILAR_ITEMS, self._threads, self._warm)
            cosines = np.take_along_axis(content[new], np.maximum(ids, 0), axis=1)
            shares = np.square(np.where(ids >= 0, np.maximum(cosines, 0.0), 0.0))
            total = (self._log_degree[np.maximum(ids, 0)] * shares).sum(axis=1)
            found[new] = total / np.maximum(shares.sum(axis=1), 1e-12)
        return found.astype(np.float32)


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


def _reached(found: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The columns int32 [Q, k] of scores [Q, n] whose score is above 0, -1 in place of others."""
    scored = np.take_along_axis(scores, np.maximum(found, 0), axis=1) > 0
    return np.where((found >= 0) & scored, found, -1)


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
