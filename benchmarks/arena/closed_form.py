"""Peers without a package: EASE and RP3beta, a dozen lines each.

  EASE     Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"
  RP3beta  Paudel et al. 2017, "Updatable, Accurate, Diverse, and Scalable Recommendations"

N items, C collections with an edge, Q queries
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, sparse

from benchmarks.arena.peers import Peer, Similarities, Train, Unavailable

# The inverse of a matrix of so many rows takes about 8 GiB.
_MOST_ROWS = 30_000
_ROWS = 1024


class _Weights:
    """EASE's weights, made for the queries that are asked for.

    With X [C, N] and G = (XX' + l2)^-1 the inverse of X'X + l2 is (I - X' G X) / l2, so that a
    matrix of collections by collections is inverted, and none of items by items is made.
    """

    def __init__(self, edges: sparse.csr_matrix, inverse: np.ndarray):
        """Takes X' float32 [N, C] and G float64 [C, C]."""
        self._edges, self._inverse = edges, inverse
        rows = range(0, edges.shape[0], _ROWS)
        self._diagonal = np.concatenate(
            [
                1.0 - part.multiply(part @ inverse).sum(axis=1).A1
                for part in (sparse.csr_matrix(edges[row : row + _ROWS]) for row in rows)
            ]
        )

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]; 0 at the query itself."""
        precision = -(self._edges @ (self._edges[query_ids] @ self._inverse).T).T
        result = (precision / -self._diagonal).astype(np.float32)
        result[np.arange(len(query_ids)), query_ids] = 0.0
        return result


def ease(train: Train, l2: float) -> _Weights:
    """The weights B = -P / diag(P) with P the inverse of X'X + l2, a query being one item.

    Raises:
      Unavailable: too many collections for a dense inverse.
    """
    known = np.flatnonzero(np.diff(train.edges.tocsc().indptr))
    if len(known) > _MOST_ROWS:
        raise Unavailable(
            f"a dense inverse of {len(known):,} collections is too large; the limit is "
            f"{_MOST_ROWS:,}"
        )
    edges = sparse.csr_matrix(train.edges[:, known])
    gram = (edges.T @ edges).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += l2
    factor = linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
    return _Weights(edges, linalg.cho_solve(factor, np.eye(len(known)), overwrite_b=True))


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
