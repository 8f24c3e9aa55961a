"""Peers without a package: EASE and RP3beta, a dozen lines each.

  EASE     Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"
  RP3beta  Paudel et al. 2017, "Updatable, Accurate, Diverse, and Scalable Recommendations"

N items, n items with an edge, Q queries
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, sparse

from benchmarks.arena.peers import Peer, Similarities, Train, Unavailable

# The inverse of a matrix of so many rows takes about 8 GiB.
_MOST_ITEMS = 30_000


class _Weights:
    """EASE's weights of items that have edges; the score of any other item is 0."""

    def __init__(self, known: np.ndarray, weights: np.ndarray, num_items: int):
        self._weights = weights  # float32 [n, n]
        self._known = known  # int [n]
        self._row = np.full(num_items, -1)
        self._row[known] = np.arange(len(known))

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        result = np.zeros((len(query_ids), len(self._row)), np.float32)
        rows = self._row[query_ids]
        found = np.flatnonzero(rows >= 0)
        result[np.ix_(found, self._known)] = self._weights[rows[found]]
        return result


def ease(train: Train, l2: float) -> _Weights:
    """The weights B = -P / diag(P) with P the inverse of X'X + l2, a query being one item.

    Raises:
      Unavailable: too many items for a dense inverse.
    """
    known = np.flatnonzero(np.diff(train.edges.indptr))
    if len(known) > _MOST_ITEMS:
        raise Unavailable(
            f"a dense inverse of {len(known):,} items is too large; the limit is {_MOST_ITEMS:,}"
        )
    edges = train.edges[known]
    gram = (edges @ edges.T).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += l2
    inverse = linalg.inv(gram, overwrite_a=True, check_finite=False)
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0.0)
    return _Weights(known, weights, train.edges.shape[0])


def rp3beta(train: Train, alpha: float, beta: float) -> Similarities:
    """Walks of item, collection, item, each step to the power alpha, over degree to beta."""
    there = _stochastic(train.edges).power(alpha)
    back = _stochastic(sparse.csr_matrix(train.edges.T)).power(alpha)
    degree = np.maximum(np.asarray(train.edges.sum(axis=1)).ravel(), 1.0)
    return Similarities(sparse.csr_matrix((there @ back) @ sparse.diags(degree**-beta)))


def _stochastic(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The rows divided by their sums; an empty row stays empty."""
    total = np.asarray(matrix.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags(1.0 / np.where(total > 0, total, 1.0)) @ matrix)


PEERS = (
    Peer("ease", "", "", tuple({"l2": l2} for l2 in (10.0, 50.0, 250.0, 1000.0)), ease),
    Peer(
        "rp3beta",
        "",
        "",
        tuple({"alpha": alpha, "beta": beta} for alpha in (0.7, 1.0) for beta in (0.0, 0.3, 0.6)),
        rp3beta,
    ),
)
