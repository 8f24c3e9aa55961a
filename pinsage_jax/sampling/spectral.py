"""Spectral features of nodes, from a truncated SVD of the item-collection matrix.

The SVD of the degree-normalized matrix of the training graph gives every item of that graph
a base vector b.  The spectral feature of a collection is the mean of its items' base
vectors, and that of an item is the sum of its collections' features, scaled to unit length:

  M = Di^-1/2 A Dc^-1/2 = U S V'        b_i = U_i / sqrt(d_i)
  c_k = mean of b_i over items i in k   s_u = unit(sum of c_k over collections k of u)

Only the base vectors are fixed by training.  The rest follows from the edges of the graph
in use, so a new item, a new collection, and an item with a masked collection have spectral
features without a new decomposition, and an item's feature does not need its own base
vector.  The feature of an isolated node is zero.

Axis letters: N items, C collections, r dimensions, n rows, E edges.
"""

from __future__ import annotations

import copy
import functools
import pathlib

import numpy as np
from absl import logging
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.cpu.prefetch import prefetch
from pinsage_jax.graph.build_blocks import row_spans
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.neighborhoods import run_blocks

FOLDER = "spectral"
# Largest N times r: 0.8 GiB of features, and about six times as much during the SVD.
MAX_SPECTRAL_NUMBERS = 200_000_000
POWER_ITERATIONS = 4
# A graph with more edges is decomposed in its own arrays, by subspace iteration: scikit-learn
# needs a matrix of the edges in memory, and several times that of the result.
MOST_MATRIX_EDGES = 1 << 28
_LARGE_ITERATIONS, _LARGE_SPARE = 3, 4
_ROWS_PER_TASK = 4096
_ROWS_PER_STEP = 1 << 20
_AHEAD = 24


def item_bases(graph: Graph, dim: int, seed: int, threads: int = 1) -> np.ndarray:
    """Base vectors of all items, float32 [N, r].

    Args:
      graph: the training graph.
      dim: requested r; the rank of the matrix limits it to min(N, C) - 1.
      seed: seed of the randomized SVD (Halko et al. 2011).
      threads: host threads.
    """
    items, collections = graph.num_items, graph.num_collections
    if graph.num_edges > MOST_MATRIX_EDGES:
        return large_bases(graph, min(dim, min(items, collections) - 1), seed, threads)
    degree = np.maximum(np.diff(graph.indptr), 1).astype(np.float64)
    scale = 1.0 / np.sqrt(degree)
    edges = graph.num_edges
    # The item rows of the graph are the rows of the matrix, so the indices need no copy.
    values = np.empty(edges, np.float32)
    _edge_scales(graph.indptr, graph.indices, scale, values)
    columns = graph.indices[:edges] - np.int32(items)
    starts = graph.indptr[: items + 1]
    matrix = sparse.csr_matrix((values, columns, starts), shape=(items, collections))
    dim = min(dim, min(items, collections) - 1)
    if dim < 1 or edges == 0:
        return np.zeros((items, 0), np.float32)
    left, _, _ = randomized_svd(matrix, dim, n_iter=POWER_ITERATIONS, random_state=seed)
    left *= scale[:items, None].astype(np.float32)
    return left.astype(np.float32, copy=False)


def large_bases(graph: Graph, dim: int, seed: int, threads: int = 1) -> np.ndarray:
    """The base vectors of item_bases by subspace iteration over the rows of the graph.

    M x is a sum over the neighbors of every item, M' y one over those of every collection, so
    nothing is needed besides the graph, which may be memory-mapped, and r + 4 numbers for each
    node.  Both are float32; products of columns are summed in float64.

    Returns:
      float32 [N, r], the same space as item_bases up to the error of fewer iterations.
    """
    items, width = graph.num_items, dim + _LARGE_SPARE
    scale = (1.0 / np.sqrt(np.maximum(np.diff(graph.indptr), 1))).astype(np.float32)[:, None]
    rng = np.random.Generator(np.random.Philox(seed))
    right = rng.standard_normal((graph.num_collections, width), np.float32)
    for _ in range(_LARGE_ITERATIONS):
        _orthonormalize(right)
        right *= scale[items:]
        left = _sums(graph, 0, items, items, right, threads)
        left *= scale[:items]
        _orthonormalize(left)
        left *= scale[:items]
        right = _sums(graph, items, graph.num_collections, 0, left, threads)
        right *= scale[items:]
    # The columns of `left` span the space, divided by the square root of the degree already.
    _, directions = np.linalg.eigh(_gram(right))
    found = np.empty((items, dim), np.float32)
    chosen = directions[:, ::-1][:, :dim].astype(np.float32)
    for begin in range(0, items, _ROWS_PER_STEP):
        found[begin : begin + _ROWS_PER_STEP] = left[begin : begin + _ROWS_PER_STEP] @ chosen
    return found


def _gram(rows: np.ndarray) -> np.ndarray:
    """Products of the columns of float32 [n, c], float64 [c, c]."""
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for begin in range(0, len(rows), _ROWS_PER_STEP):
        part = rows[begin : begin + _ROWS_PER_STEP].astype(np.float64)
        total += part.T @ part
    return total


def _orthonormalize(rows: np.ndarray) -> None:
    """Makes the columns of float32 [n, c] orthonormal, in place; dependent ones become zero."""
    squares, directions = np.linalg.eigh(_gram(rows))
    usable = squares > 1e-12 * squares[-1]
    mixing = (directions * np.where(usable, squares, np.inf) ** -0.5).astype(np.float32)
    for begin in range(0, len(rows), _ROWS_PER_STEP):
        rows[begin : begin + _ROWS_PER_STEP] = rows[begin : begin + _ROWS_PER_STEP] @ mixing


def saved_bases(
    workdir: str | pathlib.Path,
    graph: Graph,
    dim: int,
    seed: int,
    fingerprint: str,
    folder: str = FOLDER,
    threads: int = 1,
) -> np.ndarray:
    """Loads the item_bases of the training graph, or computes and saves them.

    They are saved in a folder of WORKDIR because a trained network depends on these vectors.
    A damaged file is computed again, with the same result.

    Args:
      workdir: folder of the run.
      graph, dim, seed: see item_bases.
      fingerprint: identifies the graph and the settings that the vectors depend on.
      folder: name of the folder.
      threads: host threads.
    """
    path = pathlib.Path(workdir) / folder
    manifest = path / "manifest.json"
    if manifest.exists():
        try:
            saved = files.read_checked_json(manifest)
            if saved["fingerprint"] == fingerprint:
                files.verify_checksums(path, saved["files"])
                return files.read_array(path / "bases.npy")
        except UserError as error:
            logging.warning("%s; computing it again.", str(error).split(";")[0])
    bases = item_bases(graph, dim, seed, threads)
    with files.atomic_folder(path) as temporary:
        files.write_array(temporary / "bases.npy", bases)
        sums = files.checksums(temporary, ["bases.npy"])
        content = {"fingerprint": fingerprint, "files": sums}
        files.write_checked_json(temporary / "manifest.json", content)
    return files.read_array(path / "bases.npy")


class SpectralFeatures:
    """The spectral features of the nodes of one graph.

    Attributes:
      dim: r.
    """

    def __init__(self, graph: Graph, bases: np.ndarray, threads: int = 1):
        """Computes the features of all collections, and their sums over each item.

        Args:
          graph: the graph in use.
          bases: base vectors of the first b items, float32 [b, r].  The items behind them,
            added after training, have none and do not count in a collection's mean.
          threads: host threads; the features do not depend on them.
        """
        self.dim = bases.shape[1]
        items, collections = graph.num_items, graph.num_collections
        self._collections = _sums(graph, items, collections, 0, np.asarray(bases), threads)
        starts = graph.indptr[items:] - graph.num_edges
        if len(bases) < items:
            has_base = graph.indices[graph.num_edges :] < len(bases)
            starts = np.concatenate([[0], np.cumsum(has_base)])[starts]
        self._collections /= np.maximum(np.diff(starts), 1).astype(np.float32)[:, None]
        self._item_sums = _sums(graph, 0, items, items, self._collections, threads)

    def for_new_items(self, known: sparse.csr_matrix, new_collections: int) -> SpectralFeatures:
        """The features of new items and of new collections, which this graph does not have.

        In the result the new items are numbered from 0, and the new collections follow
        them.  The features of this graph's collections do not change; the feature of a new
        collection is zero, because none of its items has a base vector.

        Args:
          known: float32 [n, C], 1 if a new item is in a collection of this graph.
          new_collections: number of new collections.
        """
        features = copy.copy(self)
        features._item_sums = np.asarray(known @ self._collections, np.float32)
        features._collections = np.zeros((new_collections, self.dim), np.float32)
        return features

    def refresh_collections(
        self, collections: np.ndarray, rows: tuple[np.ndarray, np.ndarray], bases: np.ndarray
    ) -> None:
        """Computes the features of some collections again, known or new, from their items.

        Args:
          collections: int [c], counted from 0; new ones enlarge the table.
          rows: indptr int64 [c + 1] and indices int32, their items now, ascending.
          bases: as in the constructor.
        """
        size = int(collections.max(initial=-1)) + 1
        if size > len(self._collections):
            more = np.zeros((size - len(self._collections), self.dim), np.float32)
            self._collections = np.concatenate([self._collections, more])
        indptr, indices = rows
        sums = np.zeros((len(collections), self.dim), np.float32)
        _add_neighbors(indptr, indices, 0, 0, bases, sums, 0, len(collections))
        counts = np.concatenate([[0], np.cumsum(indices < len(bases))])[indptr]
        sums /= np.maximum(np.diff(counts), 1).astype(np.float32)[:, None]
        self._collections[collections] = sums

    def refresh_items(self, items: np.ndarray, rows: tuple[np.ndarray, np.ndarray]) -> None:
        """Computes the sums of some items (int [n]) again.

        Args:
          rows: indptr int64 [n + 1] and indices int32, their collections now as node ids,
            ascending.
        """
        indptr, indices = rows
        sums = np.zeros((len(items), self.dim), np.float32)
        first = len(self._item_sums)
        _add_neighbors(indptr, indices, 0, first, self._collections, sums, 0, len(items))
        self._item_sums[items] = sums

    def gather(
        self, nodes: np.ndarray, edges: np.ndarray, masked_collection: np.ndarray, out: np.ndarray
    ) -> None:
        """Writes the features of `nodes` to `out`.

        Args:
          nodes: int32 [n].
          edges: int32 [n], visible edges of each node; without any the feature is zero.
          masked_collection: int32 [n], node id of a collection that does not count, or -1.
          out: float32 [n, r] output.
        """
        _gather(self._item_sums, self._collections, nodes, edges, masked_collection, out)


def _sums(
    graph: Graph, first: int, rows: int, offset: int, table: np.ndarray, threads: int
) -> np.ndarray:
    """Row i is the sum of table[neighbor - offset] over the neighbors of node first + i.

    Neighbors beyond the end of the table do not count.

    Returns:
      float32 [rows, r].
    """
    out = np.zeros((rows, table.shape[1]), np.float32)
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    for low, high in row_spans(graph.indptr[first : first + rows + 1]):
        work = functools.partial(
            _add_neighbors, indptr, indices, first + low, offset, table, out[low:high]
        )
        run_blocks(high - low, threads, work, _ROWS_PER_TASK)
        files.release(graph.indices)
    return out


@njit(nogil=True, cache=True)
def _add_neighbors(indptr, indices, first, offset, table, out, begin, end):
    """Rows begin to end of _sums."""
    last = indices.shape[0] - 1
    for row in range(begin, end):
        for edge in range(indptr[first + row], indptr[first + row + 1]):
            ahead = np.int64(indices[min(edge + _AHEAD, last)] - offset)
            prefetch(table, ahead * table.shape[1])
            other = indices[edge] - offset
            if other >= table.shape[0]:
                continue
            for column in range(out.shape[1]):
                out[row, column] += table[other, column]


@njit(nogil=True, cache=True)
def _edge_scales(indptr, indices, scale, out):
    """out[e] = scale[item] * scale[collection], float32 [E], of the edges in the items' order."""
    row = 0
    for edge in range(out.shape[0]):
        while indptr[row + 1] <= edge:
            row += 1
        out[edge] = scale[row] * scale[indices[edge]]


@njit(nogil=True, cache=True)
def _gather(item_sums, collections, nodes, edges, masked_collection, out):
    """See SpectralFeatures.gather."""
    items = item_sums.shape[0]
    for row in range(nodes.shape[0]):
        node = nodes[row]
        out[row, :] = 0.0
        if edges[row] <= 0:
            continue
        squares = 0.0
        for column in range(item_sums.shape[1]):
            if node >= items:
                value = collections[node - items, column]
            else:
                value = item_sums[node, column]
                if masked_collection[row] >= 0:
                    value -= collections[masked_collection[row] - items, column]
            out[row, column] = value
            squares += value * value
        if squares > 1e-30:
            length = np.float32(1.0 / np.sqrt(squares))
            for column in range(item_sums.shape[1]):
                out[row, column] *= length
