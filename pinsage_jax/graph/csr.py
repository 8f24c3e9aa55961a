"""The bipartite graph of items and collections in one CSR (PinSage section 3.1).

Nodes are items [0, num_items) followed by collections [num_items, N).  Every
edge is stored in both directions, so a walk needs only `indptr` and `indices`:

  indptr   int64   [N+1]  row starts
  indices  int32   [2E]   neighbors, ascending inside a row, no duplicates
  weights  float32 [2E]   the edge's weight, the same in both directions; or None

The first E entries are the rows of the items, the last E those of the collections.
The arrays are in memory or memory-mapped, and read-only once the graph is built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import types

import numpy as np

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph import build_blocks as blocks

_MANIFEST = "manifest.json"
_FORMAT = 2
_MAX_NODES = 2**31 - 1
# Neighbors of a graph without some nodes that are kept in memory.
MOST_COPIED_BYTES = 1 << 31


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """One bipartite graph; see the module docstring for the layout."""

    indptr: np.ndarray  # int64 [N+1]
    indices: np.ndarray  # int32 [2E]
    weights: np.ndarray | None  # float32 [2E]
    num_items: int
    num_collections: int

    @property
    def num_nodes(self) -> int:
        """N: items and collections."""
        return self.num_items + self.num_collections

    @property
    def num_edges(self) -> int:
        """E: distinct (item, collection) pairs, each stored twice."""
        return len(self.indices) // 2

    def degree(self) -> np.ndarray:
        """Number of neighbors of every node, int32 [N]."""
        return np.diff(self.indptr).astype(np.int32)

    def digest(self) -> str:
        """Hash of the edges, their weights and the counts, 16 hexadecimal digits."""
        total = hashlib.blake2b(f"{self.num_items} {self.num_collections}".encode(), digest_size=8)
        for array in (self.indptr, self.indices, self.weights):
            total.update(b"none" if array is None else np.ascontiguousarray(array).data)
            files.release(array)
        return total.hexdigest()

    def neighbors(self, node: int) -> np.ndarray:
        """Neighbors of one node as node ids, int32 [degree], ascending."""
        return self.indices[self.indptr[node] : self.indptr[node + 1]]

    def without(
        self,
        collections: np.ndarray | None = None,
        items: np.ndarray | None = None,
        folder: str | os.PathLike | None = None,
    ) -> Graph:
        """The graph without the edges of some nodes; the numbers of nodes stay.

        Args:
          collections: int32 [*], collection indices counted from 0 (not node ids).
          items: int32 [*], item indices.
          folder: of an unnamed file for the arrays of a graph above MOST_COPIED_BYTES; None: in
            memory.
        """
        isolated = np.zeros(self.num_nodes, np.bool_)
        for names, first, count in (
            (items, 0, self.num_items),
            (collections, self.num_items, self.num_collections),
        ):
            if names is None or len(names) == 0:
                continue
            names = np.asarray(names, np.int64)
            if names.min() < 0 or names.max() >= count:
                raise ValueError(f"indices must lie in [0, {count})")
            isolated[first + names] = True
        indptr = np.zeros(self.num_nodes + 1, np.int64)
        spans = list(blocks.row_spans(self.indptr))
        for span in spans:
            _kernels().count_kept(self.indptr, self.indices, isolated, span, indptr)
            files.release(self.indices)
        edges = (int(indptr[-1]),)
        indices = files.scratch_array(edges, folder, MOST_COPIED_BYTES, np.int32)
        weights = old_weights = _empty(np.float32)
        if self.weights is not None:
            old_weights = self.weights
            weights = files.scratch_array(edges, folder, MOST_COPIED_BYTES)
        for span in spans:
            _kernels().copy_kept(
                self.indptr, self.indices, old_weights, isolated, span, indptr, indices, weights
            )
            blocks.release(self.indices, old_weights, indices, weights)
        # The caller goes on with the new graph: pages of this one are not needed in memory.
        files.release(self.indices)
        files.release(self.weights)
        return dataclasses.replace(
            self,
            indptr=indptr,
            indices=indices,
            weights=None if self.weights is None else weights,
        )

    @classmethod
    def from_edges(
        cls,
        items: np.ndarray,
        collections: np.ndarray,
        num_items: int,
        num_collections: int,
        weights: np.ndarray | None = None,
        folder: str | pathlib.Path | None = None,
    ) -> Graph:
        """Builds the graph from edge lists; see `build`, which also carries times."""
        return build(items, collections, num_items, num_collections, weights, folder=folder)[0]

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes indptr.npy, indices.npy, weights.npy and manifest.json into `folder`."""
        folder = pathlib.Path(folder)
        names = []
        for name in ("indptr", "indices", "weights"):
            array, path = getattr(self, name), folder / f"{name}.npy"
            if array is None:
                path.unlink(missing_ok=True)
                continue
            # An array that `build` mapped into this very file is already there.
            if isinstance(array, np.memmap) and _same_file(array, path):
                if array.flags.writeable:
                    array.flush()
            else:
                files.write_array(path, array)
            names.append(path.name)
        files.write_checked_json(
            folder / _MANIFEST,
            {
                "format": _FORMAT,
                "num_items": self.num_items,
                "num_collections": self.num_collections,
                "num_edges": self.num_edges,
                "weighted": self.weights is not None,
                "dtypes": {"indptr": "int64", "indices": "int32", "weights": "float32"},
                "checksums": files.checksums(folder, names),
            },
        )

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Graph:
        """Opens a saved graph, memory-mapped, every file compared with its checksum.

        Raises:
          UserError: a file is missing, damaged or does not fit the manifest.
        """
        folder = pathlib.Path(folder)
        manifest = files.read_checked_json(folder / _MANIFEST)
        if manifest.get("format") != _FORMAT:
            raise UserError(
                f"{folder / _MANIFEST} has another format than this program reads; "
                "delete the folder and run --mode=prepare again."
            )
        names = ["indptr", "indices"] + (["weights"] if manifest["weighted"] else [])
        arrays = {name: files.read_array(folder / f"{name}.npy") for name in names}
        nodes = manifest["num_items"] + manifest["num_collections"]
        for name, array in arrays.items():
            wanted = nodes + 1 if name == "indptr" else 2 * manifest["num_edges"]
            dtype = manifest["dtypes"][name]
            if array.shape != (wanted,) or array.dtype != np.dtype(dtype):
                raise UserError(
                    f"{folder / name}.npy is {array.dtype} {list(array.shape)} but its manifest "
                    f"says {dtype} [{wanted}]; delete {folder} and run --mode=prepare again."
                )
        files.verify_checksums(folder, manifest["checksums"])
        return cls(
            indptr=arrays["indptr"],
            indices=arrays["indices"],
            weights=arrays.get("weights"),
            num_items=manifest["num_items"],
            num_collections=manifest["num_collections"],
        )


def build(
    items: np.ndarray,
    collections: np.ndarray,
    num_items: int,
    num_collections: int,
    weights: np.ndarray | None = None,
    times: np.ndarray | None = None,
    folder: str | os.PathLike | None = None,
) -> tuple[Graph, np.ndarray | None]:
    """Builds the graph, and the time of each edge, from edge lists in any order.

    Duplicate edges are merged: weights are added, the earliest time is kept.

    Args:
      items: int32 [E_in], item indices; plain or memory-mapped.
      collections: int32 [E_in], collection indices counted from 0.
      weights: float32 [E_in], finite and above 0.
      times: int64 [E_in].
      folder: existing folder for all arrays, memory-mapped, so that memory is
        bounded; the graph's arrays are left there under the names that `save` uses.
        None: arrays in memory.

    Returns:
      The graph and the times int64 [E] in the order of the items' rows (the first
      E entries of `indices`), or None.

    Raises:
      UserError: too many nodes, or a weight that is not finite and above 0.
      ValueError: an index out of range or arrays of unequal length.
    """
    num_nodes = num_items + num_collections
    if num_nodes > _MAX_NODES:
        raise UserError(
            f"The graph has {num_nodes:,} items and collections, more than the "
            f"{_MAX_NODES:,} that 32-bit ids can name; split the data."
        )
    items, collections, optional = _checked_edges(items, collections, weights, times)
    arrays = _Arrays(folder)
    rows = _item_rows(items, collections, (num_items, num_collections), optional, arrays)
    indptr = arrays.array("indptr", num_nodes + 1, np.int64)
    indices = arrays.array("indices", 2 * rows.count, np.int32)
    out_weights = None
    if weights is not None:
        out_weights = arrays.array("weights", 2 * rows.count, np.float32)
    rows.fill_graph(indptr, indices, out_weights)
    out_times = None if times is None else np.array(rows.times)
    # The arrays of the rows lie in files that are deleted now.
    del rows
    arrays.discard("by_item")
    return Graph(indptr, indices, out_weights, num_items, num_collections), out_times


def _checked_edges(
    items: np.ndarray,
    collections: np.ndarray,
    weights: np.ndarray | None,
    times: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Edge lists in the dtypes of `build`; weights and times by name, empty where not given."""
    for array in (collections, weights, times):
        if array is not None and len(array) != len(items):
            raise ValueError("edge arrays have unequal lengths")
    items, collections = _cast(items, np.int32), _cast(collections, np.int32)
    if weights is not None:
        weights = _cast(weights, np.float32)
        if (bad := _kernels().first_bad_weight(weights)) >= 0:
            raise UserError(
                f"Edge {bad + 1:,} has the weight {weights[bad]}; "
                "weights must be finite and above 0."
            )
    return items, collections, {
        "weights": _empty(np.float32) if weights is None else weights,
        "times": _empty(np.int64) if times is None else _cast(times, np.int64),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class _ItemRows:
    """Distinct edges as rows of items, from which the rows of collections follow.

    Attributes:
      offsets: int64 [num_items + 1], row starts.
      collections: int32 [E], ascending inside a row.
      weights, times: float32 and int64 [E], or empty.
    """

    offsets: np.ndarray
    collections: np.ndarray
    weights: np.ndarray
    times: np.ndarray
    num_collections: int

    @property
    def count(self) -> int:
        """E."""
        return len(self.collections)

    def fill_graph(
        self, indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray | None
    ) -> None:
        """Fills the arrays of the graph: these rows, then those of the collections."""
        num_items, count = len(self.offsets) - 1, self.count
        by_collection = blocks.offsets(self.collections, self.num_collections)
        indptr[: num_items + 1] = self.offsets
        indptr[num_items:] = by_collection + count
        # Rows of items hold collection indices here; as nodes, collections follow the items.
        for part in blocks.edge_spans(count):
            indices[part] = self.collections[part] + np.int32(num_items)
            blocks.release(indices, self.collections)
        if weights is not None:
            weights[:count] = self.weights
        blocks.transpose(
            self.offsets,
            (self.collections, self.weights, _empty(np.int64)),
            by_collection,
            (
                indices[count:],
                _empty(np.float32) if weights is None else weights[count:],
                _empty(np.int64),
            ),
        )


def _item_rows(
    items: np.ndarray,
    collections: np.ndarray,
    sizes: tuple[int, int],
    optional: dict[str, np.ndarray],
    arrays: _Arrays,
) -> _ItemRows:
    """Sorts edges into rows of items, by collection inside a row, and merges duplicates.

    Two passes of a counting sort: into rows of collections, then by items; the second
    keeps the order of the first.
    """
    num_items, num_collections = sizes
    by_collection = blocks.offsets(collections, num_collections)
    middle = arrays.edge_arrays("by_collection", len(items), optional)
    blocks.scatter((collections, items, *optional.values()), by_collection, middle)
    by_item = blocks.offsets(items, num_items)
    rows = arrays.edge_arrays("by_item", len(items), optional)
    blocks.transpose(by_collection, middle, by_item, rows)
    del middle
    arrays.discard("by_collection")
    kept = blocks.merge_duplicates(by_item, rows)
    ids, weights, times = (array[:kept] if len(array) else array for array in rows)
    # A sum of finite weights can still overflow.
    if _kernels().first_bad_weight(weights) >= 0:
        raise UserError("The weights of one edge's duplicates add up to infinity; scale them down.")
    return _ItemRows(by_item, ids, weights, times, num_collections)


class _Arrays:
    """Arrays in memory, or in memory-mapped ``.npy`` files of a folder."""

    def __init__(self, folder: str | os.PathLike | None):
        self._folder = None if folder is None else pathlib.Path(folder)

    def array(self, name: str, length: int, dtype: type) -> np.ndarray:
        if self._folder is None:
            return np.empty(length, dtype)
        path = self._folder / f"{name}.npy"
        return files.new_array(path, dtype, (length,))

    def edge_arrays(
        self, name: str, length: int, optional: dict[str, np.ndarray]
    ) -> list[np.ndarray]:
        """Ids, then each optional array (empty where the input is empty)."""
        arrays = [self.array(f"{name}-ids", length, np.int32)]
        for column, values in optional.items():
            if len(values):
                arrays.append(self.array(f"{name}-{column}", length, values.dtype.type))
            else:
                arrays.append(np.empty(0, values.dtype))
        return arrays

    def discard(self, name: str) -> None:
        if self._folder is not None:
            for path in self._folder.glob(f"{name}-*.npy"):
                path.unlink()


def _kernels() -> types.ModuleType:
    """The compiled kernels; a graph that is only opened does not load Numba."""
    from pinsage_jax.graph import build_kernels

    return build_kernels


def _cast(array: np.ndarray, dtype: type) -> np.ndarray:
    """The array itself if it has the dtype, so that a memory map stays one."""
    return np.ascontiguousarray(array, dtype) if array.dtype != dtype else array


def _empty(dtype: type) -> np.ndarray:
    return np.empty(0, dtype)


def _same_file(array: np.memmap, path: pathlib.Path) -> bool:
    return array.filename is not None and pathlib.Path(array.filename) == path.resolve()
