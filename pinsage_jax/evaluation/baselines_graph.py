"""Baselines that know the whole graph: item-kNN, personalized PageRank, ALS.

The graph is cut into one sparse matrix of items by collections.

  Q queries, N items, C collections, R restart probabilities
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from pinsage_jax.graph.csr import Graph

# Restart probabilities to choose from on validation pairs; the first is the default.
RESTARTS = (0.15, 0.3, 0.5)
# The walk is followed until this share of its mass is left.
_MASS_LEFT = 1e-4
# Queries iterated at once, and items times queries.
_PAGERANK_QUERIES = 64
_PAGERANK_CELLS = 1 << 23

# Weights of an edge to choose from on validation pairs; the first is the default.
ALS_ALPHAS = (40.0, 10.0, 1.0)
_ALS_SETTINGS = {"factors": 128, "regularization": 10.0, "iterations": 15}


def incidence(graph: Graph) -> sparse.csr_array:
    """Edges as a float32 matrix [N, C]: the weight, or 1."""
    edges = graph.num_edges
    weights = np.ones(edges, np.float32) if graph.weights is None else graph.weights[:edges]
    return sparse.csr_array(
        (
            np.asarray(weights, np.float32),
            np.asarray(graph.indices[:edges], np.int64) - graph.num_items,
            np.asarray(graph.indptr[: graph.num_items + 1], np.int64),
        ),
        shape=(graph.num_items, graph.num_collections),
    )


def _scaled_rows(matrix: sparse.csr_array, sizes: np.ndarray) -> sparse.csr_array:
    """Rows divided by `sizes`; rows of size 0 stay empty."""
    scale = np.where(sizes > 0, 1.0 / np.where(sizes > 0, sizes, 1.0), 0.0)
    return sparse.csr_array(sparse.diags_array(scale.astype(np.float32)) @ matrix)


class ItemKnn:
    """Cosine of two items' rows of collections."""

    name = "item_knn"

    def __init__(self, graph: Graph):
        self.settings: dict[str, Any] = {}
        matrix = incidence(graph)
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).ravel())
        self._rows = _scaled_rows(matrix, length)
        self._columns = sparse.csr_array(self._rows.T)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """float32 [Q, N]."""
        return (self._rows[query_ids] @ self._columns).toarray().astype(np.float32, copy=False)


class PageRank:
    """Personalized PageRank by power iteration; its walks return to the query.

    p = restart * e_q + (1 - restart) * P' p over items and collections.  The graph is
    bipartite, so items are reached by even steps alone and one iteration here is two.
    """

    name = "pagerank"

    def __init__(self, graph: Graph, restart: float = RESTARTS[0], threads: int = 1):
        self.settings: dict[str, Any] = {"restart": restart}
        self._restart, self._threads = restart, threads
        matrix = incidence(graph)
        back = sparse.csr_array(matrix.T)
        # Columns of mass are multiplied from the left, so both are transposed steps.
        self._to_collections = sparse.csr_array(_scaled_rows(matrix, _row_sums(matrix)).T)
        self._to_items = sparse.csr_array(_scaled_rows(back, _row_sums(back)).T)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """float32 [Q, N]: the mass at each item."""
        return self.scores_by_restart(query_ids, (self._restart,))[0]

    def scores_by_restart(self, query_ids: np.ndarray, restarts: tuple[float, ...]) -> np.ndarray:
        """float32 [R, Q, N]: all restarts share one power iteration."""
        items = self._to_items.shape[0]
        result = np.empty((len(restarts), len(query_ids), items), np.float32)
        block = int(np.clip(_PAGERANK_CELLS // max(items, 1), 1, _PAGERANK_QUERIES))

        def work(start: int) -> None:
            part = query_ids[start : start + block]
            result[:, start : start + len(part)] = self._iterate(part, restarts)

        starts = range(0, len(query_ids), block)
        with concurrent.futures.ThreadPoolExecutor(max(self._threads, 1)) as pool:
            list(pool.map(work, starts))
        return result

    def _iterate(self, query_ids: np.ndarray, restarts: tuple[float, ...]) -> np.ndarray:
        """float32 [R, Q, N] of a few queries."""
        stay = (1.0 - np.asarray(restarts, np.float64)) ** 2
        mass = np.zeros((self._to_items.shape[0], len(query_ids)), np.float32)
        mass[query_ids, np.arange(len(query_ids))] = 1.0
        reached = np.zeros((len(restarts), *mass.shape), np.float32)
        left = np.asarray(restarts, np.float64)
        while True:
            for place in range(len(restarts)):
                reached[place] += np.float32(left[place]) * mass
            left = left * stay
            mass = self._to_items @ (self._to_collections @ mass)
            rest = left / (1.0 - stay)
            if rest.max() < _MASS_LEFT:
                break
        # What is left of the walk is by now spread as `mass` is.
        for place in range(len(restarts)):
            reached[place] += np.float32(rest[place]) * mass
        return reached.transpose(0, 2, 1)


def _row_sums(matrix: sparse.csr_array) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1), np.float64).ravel()


class CannotRun(Exception):
    """A baseline cannot run here; the text says why."""


class Als:
    """Inner product of item factors of implicit-feedback ALS (library `implicit`)."""

    name = "als"

    def __init__(self, graph: Graph, alpha: float, seed: int, threads: int):
        """Fits the factors.

        Args:
          alpha: the weight of an edge against that of its absence.

        Raises:
          CannotRun: the library is not installed.
        """
        try:
            from implicit.als import AlternatingLeastSquares
        except ImportError:
            raise CannotRun(
                "the library implicit is not installed (pip install 'pinsage-jax[als]')"
            ) from None
        self.settings: dict[str, Any] = {"alpha": alpha, **_ALS_SETTINGS}
        users = sparse.csr_matrix(incidence(graph).T)
        # The library threads over rows; BLAS threads below that only get in the way.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                **self.settings, random_state=seed, num_threads=threads, use_gpu=False
            )
            model.fit(users, show_progress=False)
        self._factors = np.array(model.item_factors, np.float32)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """float32 [Q, N]."""
        return self._factors[query_ids] @ self._factors.T
