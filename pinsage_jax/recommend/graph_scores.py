"""Scorers of a history by the graph alone, and the mixture of them with the network's.

R [N, C] has an item's row of collections, d is an item's and s a collection's number of
edges, h runs over the items of the history:

  cooccurrence   score(i) = d_i^c  sum_h d_h^a  sum_k R_hk s_k^b R_ik
  spectral       score(i) = d_i  sum_h b_h . b_i        b: base vectors of sampling/spectral.py

The first is a walk of three hops whose degrees have free exponents (Paudel et al. 2016,
RP3beta).  The second is the ideal low-pass filter of the normalized graph (Shen et al. 2021,
GF-CF): with the singular vectors u of D^-1/2 R S^-1/2, b = d^-1/2 u.  Its vectors are those
of the recommender and have a width of their own, beside the items' embeddings.

  U users, N items, C collections, D dimensions, c columns of a block
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from pinsage_jax.evaluation.baselines_graph import incidence
from pinsage_jax.graph.csr import Graph
from pinsage_jax.recommend.scores import MAX_USERS, Histories, Scorer, Tile, row_per_user

GRAPH_METHODS = ("cooccurrence", "spectral", "mixed")
# A user's row is nearly dense.
_MAX_USERS = 1 << 11
# So few users are scored over all columns at once, which needs no slices of a sparse matrix.
_FEW_USERS = 64


@dataclasses.dataclass(frozen=True)
class Exponents:
    """Exponents of the degrees that a co-occurrence passes."""

    history: float = -0.5
    collection: float = -0.75
    item: float = -0.25


class Popularity:
    """Baseline: scores every item by its degree, whatever the history."""

    name = "popularity"
    max_users = MAX_USERS

    def __init__(self, graph: Graph):
        self._degree = graph.degree()[None, : graph.num_items].astype(np.float32)

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile with a single similarity row, shared by all users."""
        tile = row_per_user(len(histories), lambda columns: self._degree[:, columns])
        return dataclasses.replace(tile, rows=np.zeros(len(histories), np.int32))


class HistoryKnn:
    """Item-kNN baseline: sum over the history of the cosine of two items' incidence rows."""

    name = "item_knn"
    max_users = _MAX_USERS

    def __init__(self, graph: Graph):
        matrix = incidence(graph)
        size = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).ravel())
        scale = np.where(size > 0, 1.0 / np.where(size > 0, size, 1.0), 0.0)
        self._rows = sparse.csr_array(sparse.diags_array(scale.astype(np.float32)) @ matrix)

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile with one similarity row per user."""
        ones = np.ones(self._rows.shape[0], np.float32)
        sums = sparse.csr_array(summing(histories, ones) @ self._rows)
        return row_per_user(
            len(histories), lambda columns: (sums @ self._rows[columns].T).toarray()
        )


class Cooccurrence:
    """Items that share collections with the history, weighted by powers of degrees."""

    name = "cooccurrence"
    max_users = _MAX_USERS

    def __init__(self, graph: Graph, exponents: Exponents, item_exponents: Sequence[float] = ()):
        """Scales the rows and columns of the incidence matrix.

        Args:
          graph: the training graph; weights of its edges count.
          exponents: powers of the degrees.
          item_exponents: replace exponents.item, one variant of the score each.
        """
        matrix = incidence(graph)
        degree = np.maximum(graph.degree(), 1).astype(np.float64)
        items = degree[: graph.num_items]
        of_collections = sparse.diags_array(degree[graph.num_items :] ** exponents.collection)
        self._rows = sparse.csr_array((matrix @ of_collections).astype(np.float32))
        self._columns = sparse.csr_array(matrix.T.astype(np.float32))
        self._history = (items**exponents.history).astype(np.float32)
        powers = np.asarray(item_exponents or (exponents.item,), np.float64)
        self._scales = (items ** powers[:, None]).astype(np.float32)

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile with one similarity row per user."""
        reached = summing(histories, self._history) @ self._rows
        if len(histories) <= _FEW_USERS:
            whole = (reached @ self._columns).toarray()
            tile = row_per_user(len(histories), lambda columns: whole[:, columns])
        else:
            # Slices of rows are cheaper than slices of columns.
            by_item = sparse.csr_array(self._columns.T)
            tile = row_per_user(
                len(histories), lambda columns: (reached @ by_item[columns].T).toarray()
            )

        def block(columns: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return tile.block(columns)[0], self._scales[:, columns]

        return dataclasses.replace(tile, block=block)


class Spectral:
    """Inner products of base vectors, summed over the history."""

    name = "spectral"
    max_users = _MAX_USERS

    def __init__(self, bases: np.ndarray, degree: np.ndarray):
        """Takes the items' base vectors, float32 [N, D], and their degrees, int [N]."""
        self._bases, self._degree = bases, degree.astype(np.float32)

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile with one similarity row per user."""
        ones = np.ones(len(self._bases), np.float32)
        sums = np.asarray(summing(histories, ones) @ self._bases, np.float32)
        return row_per_user(
            len(histories),
            lambda columns: sums @ (self._bases[columns] * self._degree[columns, None]).T,
        )


class Mixture:
    """Weighted sum of the scores of several scorers with one variant each."""

    name = "mixed"

    def __init__(self, parts: Sequence[tuple[Scorer, float]]):
        """Takes the scorers and their weights."""
        self._parts = parts
        self.max_users = min(_MAX_USERS, *(scorer.max_users for scorer, _ in parts))

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile with one similarity row per user."""
        parts = [(_totals(scorer.tile(histories)), weight) for scorer, weight in self._parts]

        def total(columns: slice | np.ndarray) -> np.ndarray:
            found = [np.float32(weight) * scores(columns) for scores, weight in parts]
            return np.asarray(np.sum(found, axis=0, dtype=np.float32))

        return row_per_user(len(histories), total)


def summing(histories: Histories, weights: np.ndarray) -> sparse.csr_array:
    """Sums over histories as a sparse matrix float32 [U, N]; weights: float32 [N]."""
    return sparse.csr_array(
        (weights[histories.items], histories.items, histories.indptr),
        shape=(len(histories), len(weights)),
    )


def _totals(tile: Tile) -> Callable[[slice | np.ndarray], np.ndarray]:
    """A function from columns to the users' scores, float32 [U, c]."""
    rows = int(tile.rows.max(initial=-1)) + 1

    def totals(columns: slice | np.ndarray) -> np.ndarray:
        similarities, scales = tile.block(columns)
        users = sparse.csr_array(
            (tile.weights, tile.rows, tile.indptr),
            shape=(len(tile.indptr) - 1, max(rows, len(similarities))),
        )
        return np.asarray(users @ similarities, np.float32) * scales

    return totals
