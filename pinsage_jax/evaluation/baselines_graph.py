"""Baselines over the whole graph: item-kNN, personalized PageRank, steered walks, and ALS.

All but the walks use the graph as one sparse matrix of items by collections.

  Q queries, N items, C collections, R restart probabilities
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.evaluation.baselines import Baseline
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.steered_walks import STEERING, visit_probabilities

# Candidate restart probabilities, chosen on validation pairs; the first is the default.
RESTARTS = (0.15, 0.3, 0.5)
# The power iteration stops when the terms still missing sum to less than this; the last mass
# stands for them, so the error is this times what the mass still moves.
_TOLERANCE = 1e-3
# Limits of a block of the iteration: queries, and items times queries.
_PAGERANK_QUERIES = 64
_PAGERANK_CELLS = 1 << 23

# Candidate factors of the content's similarity in steered walks; the first is the default.
STEERINGS = (STEERING, 2.0, 8.0)

# Candidate confidence weights of an edge, chosen on validation pairs; the first is the default.
ALS_ALPHAS = (40.0, 10.0, 1.0)
_ALS_SETTINGS = {"factors": 128, "regularization": 10.0, "iterations": 15}


def incidence(graph: Graph) -> sparse.csr_array:
    """The edges as a sparse float32 matrix [N, C]: an edge's weight, or 1 without weights."""
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


def _divide_rows(matrix: sparse.csr_array, divisors: np.ndarray) -> sparse.csr_array:
    """Divides each row by its divisor; a row whose divisor is 0 becomes empty."""
    scale = np.where(divisors > 0, 1.0 / np.where(divisors > 0, divisors, 1.0), 0.0)
    return sparse.csr_array(sparse.diags_array(scale.astype(np.float32)) @ matrix)


class ItemKnn:
    """Item-kNN: cosine similarity of two items' rows of the incidence matrix."""

    name = "item_knn"

    def __init__(self, graph: Graph):
        self.settings: dict[str, Any] = {}
        matrix = incidence(graph)
        length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).ravel())
        self._rows = _divide_rows(matrix, length)
        self._columns = sparse.csr_array(self._rows.T)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        return (self._rows[query_ids] @ self._columns).toarray().astype(np.float32, copy=False)


class PageRank:
    """Personalized PageRank by power iteration, restarting at the query.

    p = restart * e_q + (1 - restart) * P' p over items and collections.  The graph is
    bipartite, so a walk stands on an item after an even number of steps only, and one
    iteration here takes two steps.
    """

    name = "pagerank"

    def __init__(self, graph: Graph, restart: float = RESTARTS[0], threads: int = 1):
        self.settings: dict[str, Any] = {"restart": restart}
        self._restart, self._threads = restart, threads
        matrix = incidence(graph)
        transposed = sparse.csr_array(matrix.T)
        # The probability mass is a column per query, so both transition matrices are
        # transposed.
        self._to_collections = _arrays(_divide_rows(matrix, _row_sums(matrix)).T)
        self._to_items = _arrays(_divide_rows(transposed, _row_sums(transposed)).T)
        self._num_items, self._num_collections = graph.num_items, graph.num_collections

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Probability mass float32 [Q, N] at each item, for queries int32 [Q]."""
        return self.scores_by_restart(query_ids, (self._restart,))[0]

    def scores_by_restart(self, query_ids: np.ndarray, restarts: tuple[float, ...]) -> np.ndarray:
        """Scores float32 [R, Q, N] of several restart probabilities in one power iteration."""
        items = self._num_items
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
        """Scores float32 [R, Q, N] of one block of queries.

        p is the sum over n of restart * (1 - restart)**(2n) times the mass after 2n steps;
        the mass does not depend on the restart probability.
        """
        factor = (1.0 - np.asarray(restarts, np.float64)) ** 2
        columns = np.arange(len(query_ids))
        mass = np.zeros((self._num_items, len(query_ids)), np.float32)
        between = np.empty((self._num_collections, len(query_ids)), np.float32)
        total = np.zeros((len(restarts), *mass.shape), np.float32)
        coefficient = np.asarray(restarts, np.float64)
        mass[query_ids, columns] = 1.0
        total[:, query_ids, columns] = coefficient[:, None]
        none, nothing = np.empty(0, np.float32), np.empty((0, *between.shape), np.float32)
        tail = np.ones(1)
        while tail.max() >= _TOLERANCE:
            coefficient = coefficient * factor
            tail = coefficient / (1.0 - factor)  # sum of this and all further coefficients
            # At the end the mass has all but converged, so it stands for that of further steps.
            weights = coefficient if tail.max() >= _TOLERANCE else tail
            _sparse_product(*self._to_collections, mass, between, none, nothing)
            _sparse_product(*self._to_items, between, mass, weights.astype(np.float32), total)
        return total.transpose(0, 2, 1)


def _arrays(matrix: sparse.sparray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indptr int64 [R + 1], indices and float32 values of a sparse matrix with R rows."""
    rows = sparse.csr_array(matrix)
    return rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data


@njit(nogil=True, cache=True)
def _sparse_product(indptr, indices, values, dense, out, weights, totals):
    """out = matrix @ dense, and totals[k] += weights[k] * out, in one pass.

    SciPy's product uses no SIMD, and a sum of its own takes half as long as the product.

    Args:
      indptr, indices, values: the matrix, see _arrays.
      dense: float32 [columns, Q]; out: float32 [R, Q], output.
      weights: float32 [K]; totals: float32 [K, R, Q].
    """
    for row in range(out.shape[0]):
        sums = out[row]
        sums[:] = np.float32(0.0)
        for entry in range(indptr[row], indptr[row + 1]):
            value, source = values[entry], dense[indices[entry]]
            for column in range(sums.shape[0]):
                sums[column] += value * source[column]
        for number in range(weights.shape[0]):
            weight, total = weights[number], totals[number, row]
            for column in range(sums.shape[0]):
                total[column] += weight * sums[column]


class Steered:
    """Expected visits of walks that prefer items whose content is similar to the query's."""

    name = "steered"

    def __init__(
        self,
        graph: Graph,
        content: Baseline,
        sampling: SamplingConfig,
        threads: int,
        steering: float = STEERINGS[0],
    ):
        """Prepares the walks.

        Args:
          graph: the graph to walk on.
          content: its scores are the similarities of the items' content.
          sampling: number of steps, and the restart probability.
          threads: number of threads.
          steering: factor of the similarity.
        """
        self._graph, self._content, self._sampling = graph, content, sampling
        self._threads, self._steering = threads, steering
        self.settings: dict[str, Any] = {
            "steering": steering,
            "walk_length": sampling.walk_length,
            "restart": sampling.restart,
            "content": content.name,
        }

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        return self.scores_by_steering(query_ids, (self._steering,))[0]

    def scores_by_steering(
        self, query_ids: np.ndarray, steerings: tuple[float, ...]
    ) -> list[np.ndarray]:
        """Scores float32 [Q, N] of each of several factors, of one comparison of the content."""
        cosines = self._content.scores(query_ids)
        return [
            visit_probabilities(
                self._graph, query_ids, cosines, self._sampling, self._threads, steering
            )
            for steering in steerings
        ]


def _row_sums(matrix: sparse.csr_array) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1), np.float64).ravel()


class BaselineUnavailable(Exception):
    """A baseline cannot run on this machine or data; the message gives the reason."""


class PackageMissing(BaselineUnavailable):
    """The package that a baseline needs is not installed."""


class Als:
    """Inner products of the item factors of implicit-feedback ALS (Hu et al. 2008).

    The collections are the users; the factorization is that of the library `implicit`.
    """

    name = "als"

    def __init__(self, graph: Graph, alpha: float, seed: int, threads: int):
        """Fits the factors.

        Args:
          graph: the graph to factorize.
          alpha: confidence weight of an edge relative to a missing edge.
          seed: seed of the initial factors.
          threads: number of threads.

        Raises:
          PackageMissing: the library is not installed.
        """
        try:
            from implicit.als import AlternatingLeastSquares
        except ImportError:
            raise PackageMissing(
                "the library implicit is not installed (pip install 'pinsage-jax[als]')"
            ) from None
        self.settings: dict[str, Any] = {"alpha": alpha, **_ALS_SETTINGS}
        users = sparse.csr_matrix(incidence(graph).T)
        # The library parallelizes over rows; BLAS threads inside would oversubscribe the CPU.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                **self.settings, random_state=seed, num_threads=threads, use_gpu=False
            )
            model.fit(users, show_progress=False)
        self._factors = np.array(model.item_factors, np.float32)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        return self._factors[query_ids] @ self._factors.T
