"""Exchanges arrays of this machine with Spark as Parquet tables.

  nodes    node (int64), vector (binary, columns.py): input vectors, layers, embeddings
  lists    node (int64), ids (list of int32, -1 where short), weights (list of float32)
  links    the same for content links, and edges (int32), the node's number of edges
  edges    item (int64) and collection (int64), each numbered from 0, and weight (float32) if
           the graph has weights

Files are written from memory-mapped arrays, and read into them, in blocks.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinsage_jax.core import files
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.lists import ListColumn, NeighborLists
from pinsage_jax.spark.columns import from_column, to_column

_FILE_BYTES = 1 << 26


@contextlib.contextmanager
def scratch_folder(parent: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder for tables between stages, deleted at the end of the block."""
    # The next run deletes folders with such a name that a killed run left.
    folder = pathlib.Path(parent).resolve() / f"spark.tmp-{os.getpid()}"
    with files.reported_os_errors(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    folder: pathlib.Path, rows: int, row_bytes: int, table: Callable[[int, int], pa.Table]
) -> None:
    """Writes table(begin, end) for blocks of [0, rows) into files of about 64 MiB, at least one."""
    step = max(_FILE_BYTES // row_bytes, 1)
    with files.reported_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, begin in enumerate(range(0, max(rows, 1), step)):
            raise_if_stopped()
            part = table(begin, min(begin + step, rows))
            pq.write_table(part, folder / f"part-{number:05d}.parquet")


def write_nodes(
    folder: pathlib.Path, rows: int, width: int, read: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Writes nodes 0 to `rows` - 1 with the vectors float32 [n, width] of read(int32 [n])."""

    def table(begin: int, end: int) -> pa.Table:
        nodes = np.arange(begin, end, dtype=np.int32)
        return pa.table({"node": nodes.astype(np.int64), "vector": to_column(read(nodes))})

    _write(folder, rows, 4 * width + 8, table)


def write_lists(
    folder: pathlib.Path, ids: np.ndarray | ListColumn, weights: np.ndarray | ListColumn
) -> None:
    """Writes the lists of all nodes; ids int32 [N, T] and weights float32 [N, T] are sliced."""

    def table(begin: int, end: int) -> pa.Table:
        return _lists(begin, ids[begin:end], weights[begin:end])

    _write(folder, len(ids), 8 * ids.shape[1] + 8, table)


def write_links(folder: pathlib.Path, lists: NeighborLists) -> None:
    """Writes the content links and the numbers of edges of all nodes."""
    degree = lists.source.graph.degree()

    def table(begin: int, end: int) -> pa.Table:
        links = _lists(begin, *lists.lookup_links(np.arange(begin, end, dtype=np.int32)))
        return links.append_column("edges", pa.array(degree[begin:end]))

    _write(folder, lists.source.num_nodes, 8 * lists.width + 12, table)


def _lists(first: int, ids: np.ndarray, weights: np.ndarray) -> pa.Table:
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * np.int32(ids.shape[1])
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(part.reshape(-1))) for part in (ids, weights)
    ]
    nodes = np.arange(first, first + len(ids), dtype=np.int64)
    return pa.table({"node": nodes, "ids": columns[0], "weights": columns[1]})


def write_edges(folder: pathlib.Path, graph: Graph) -> None:
    """Writes the edges of a graph in the order of its items."""

    def table(begin: int, end: int) -> pa.Table:
        first = np.searchsorted(graph.indptr, begin, side="right") - 1
        last = np.searchsorted(graph.indptr, end, side="left")
        bounds = np.clip(graph.indptr[first : last + 1], begin, end)
        columns = {
            "item": np.repeat(np.arange(first, last, dtype=np.int64), np.diff(bounds)),
            "collection": graph.indices[begin:end].astype(np.int64) - graph.num_items,
        }
        if graph.weights is not None:
            columns["weight"] = graph.weights[begin:end]
        return pa.table(columns)

    _write(folder, graph.num_edges, 20, table)


def read_vectors(folder: pathlib.Path, out: np.ndarray) -> None:
    """Reads the vectors of a table of nodes into `out`, float32 [N, w], by node.

    Raises:
      ValueError: the table does not have exactly one row for each row of `out`.
    """
    done = 0
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(1 << 14):
            nodes = batch.column("node").to_numpy()
            out[nodes] = from_column(batch.column("vector"), out.shape[1])
            done += len(nodes)
    if done != len(out):
        raise ValueError(f"{folder} has {done} vectors of {len(out)} nodes")
