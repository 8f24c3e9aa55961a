"""Structural input: where an item's collections lie in a spectral map of the graph.

The map is the truncated SVD of the degree-normalized item-collection matrix of the
training graph.  It gives every item known then a base vector; a collection lies at
the mean of its items' bases, and an item at the (unit-length) sum of its
collections:

  M = Di^-1/2 A Dc^-1/2 = U S V'        b_i = U_i / sqrt(d_i)
  c_k = mean of b_i over items i in k   s_u = unit(sum of c_k over collections k of u)

Only the bases are learned.  Everything else is computed from the edges of the graph
in use, so a new item, a new collection, or an item whose collection is hidden from
it has its place without a new decomposition, and no item's place needs its own base.
An item without edges has no place: zeros.

Shapes: N items, C collections, r dimensions.
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
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.neighborhoods import run_blocks

FOLDER = "structure"
# N times r at most: 0.8 GiB of places, and some six times that while they are found.
MOST_PLACE_NUMBERS = 200_000_000
POWER_ITERATIONS = 4
_ROWS_PER_TASK = 4096


def item_bases(graph: Graph, dim: int, seed: int) -> np.ndarray:
    """Base vectors of all items, float32 [num_items, r], r = min(dim, what the graph gives)."""
    items, collections = graph.num_items, graph.num_collections
    degree = np.maximum(np.diff(graph.indptr), 1).astype(np.float64)
    scale = 1.0 / np.sqrt(degree)
    edges = graph.num_edges
    # The rows of the graph are those of the matrix; 8 bytes an edge and no copies.
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


def saved_bases(
    workdir: str | pathlib.Path, graph: Graph, dim: int, seed: int, fingerprint: str
) -> np.ndarray:
    """item_bases of the training graph, computed once per workdir and fingerprint.

    Kept in WORKDIR/structure/ because the trained network belongs to these very
    vectors; a damaged file is computed again, which gives the same ones.
    """
    folder = pathlib.Path(workdir) / FOLDER
    manifest = folder / "manifest.json"
    if manifest.exists():
        try:
            saved = files.read_checked_json(manifest)
            if saved["fingerprint"] == fingerprint:
                files.verify_checksums(folder, saved["files"])
                return files.read_array(folder / "bases.npy")
        except UserError as error:
            logging.warning("%s; computing it again.", str(error).split(";")[0])
    bases = item_bases(graph, dim, seed)
    with files.atomic_folder(folder) as temporary:
        files.write_array(temporary / "bases.npy", bases)
        sums = files.checksums(temporary, ["bases.npy"])
        content = {"fingerprint": fingerprint, "files": sums}
        files.write_checked_json(temporary / "manifest.json", content)
    return bases


class Structure:
    """Places of the nodes of one graph.

    Attributes:
      dim: r.
    """

    def __init__(self, graph: Graph, bases: np.ndarray, threads: int = 1):
        """Takes the bases and the graph in use.

        Args:
          bases: float32 [b, r] of the first b items; those behind them, which came
            later, have none and do not count in a collection's mean.
        """
        self.dim = bases.shape[1]
        items, collections = graph.num_items, graph.num_collections
        self._collections = _sums(graph, items, collections, 0, np.asarray(bases), threads)
        starts = graph.indptr[items:] - graph.num_edges
        if len(bases) < items:
            counted = graph.indices[graph.num_edges :] < len(bases)
            starts = np.concatenate([[0], np.cumsum(counted)])[starts]
        self._collections /= np.maximum(np.diff(starts), 1).astype(np.float32)[:, None]
        self._totals = _sums(graph, 0, items, items, self._collections, threads)

    def of_new_items(self, known: sparse.csr_matrix, new_collections: int) -> Structure:
        """Places of items, and of collections of theirs, that this graph does not hold.

        Nodes count from 0, new items first.  Places of the graph's own collections stay
        as they are; a new collection has no item with a base, so its place is zeros.

        Args:
          known: float32 [n, num_collections], 1 where a new item is in a collection.
        """
        places = copy.copy(self)
        places._totals = np.asarray(known @ self._collections, np.float32)
        places._collections = np.zeros((new_collections, self.dim), np.float32)
        return places

    def gather(
        self, nodes: np.ndarray, edges: np.ndarray, hidden: np.ndarray, out: np.ndarray
    ) -> None:
        """Writes the places of `nodes` (int32 [n]) into out float32 [n, r].

        Args:
          edges: int32 [n] edges that may be seen; a node with none gets zeros.
          hidden: int32 [n] collection (node id) that the node must not know of, or -1.
        """
        _gather_places(self._totals, self._collections, nodes, edges, hidden, out)


def _sums(
    graph: Graph, first: int, rows: int, shift: int, table: np.ndarray, threads: int
) -> np.ndarray:
    """float32 [rows, r]: of nodes first + row, the sum of the rows neighbor - shift there are."""
    out = np.zeros((rows, table.shape[1]), np.float32)
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    work = functools.partial(_add_neighbors, indptr, indices, first, shift, table, out)
    run_blocks(rows, threads, work, _ROWS_PER_TASK)
    return out


@njit(nogil=True, cache=True)
def _add_neighbors(indptr, indices, first, shift, table, out, begin, end):
    for row in range(begin, end):
        for edge in range(indptr[first + row], indptr[first + row + 1]):
            other = indices[edge] - shift
            if other >= table.shape[0]:
                continue
            for column in range(out.shape[1]):
                out[row, column] += table[other, column]


@njit(nogil=True, cache=True)
def _edge_scales(indptr, indices, scale, out):
    """out float32 [E]: scale[item] * scale[collection] of every edge in order of the items."""
    row = 0
    for edge in range(out.shape[0]):
        while indptr[row + 1] <= edge:
            row += 1
        out[edge] = scale[row] * scale[indices[edge]]


@njit(nogil=True, cache=True)
def _gather_places(totals, collections, nodes, edges, hidden, out):
    items = totals.shape[0]
    for row in range(nodes.shape[0]):
        node = nodes[row]
        out[row, :] = 0.0
        if edges[row] <= 0:
            continue
        squares = 0.0
        for column in range(totals.shape[1]):
            if node >= items:
                value = collections[node - items, column]
            else:
                value = totals[node, column]
                if hidden[row] >= 0:
                    value -= collections[hidden[row] - items, column]
            out[row, column] = value
            squares += value * value
        if squares > 1e-30:
            length = np.float32(1.0 / np.sqrt(squares))
            for column in range(totals.shape[1]):
                out[row, column] *= length
