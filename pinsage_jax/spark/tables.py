"""Parquet tables between this machine's arrays and Spark: nodes, lists, vectors.

  nodes    node (int64), vector (binary, columns.py): input vectors, layers, embeddings
  lists    node (int64), ids (list of int32, -1 where short), weights (list of float32)
  links    the same of content links, and edges (int32) that the node has
  edges    item (int64), collection (int64): numbers of both from 0; weight (float32) where
           the graph has them

Files are written from, and read into, memory-mapped arrays in blocks.
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
    """A folder for tables between stages, gone after the block."""
    # The name of what a killed run leaves, which the next one deletes.
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
    """Files of table(begin, end) over [0, rows), of about 64 MiB each and at least one."""
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
    """Nodes 0 to `rows` with the vectors float32 [n, width] of read(int32 [n])."""

    def table(begin: int, end: int) -> pa.Table:
        nodes = np.arange(begin, end, dtype=np.int32)
        return pa.table({"node": nodes.astype(np.int64), "vector": to_column(read(nodes))})

    _write(folder, rows, 4 * width + 8, table)


def write_lists(
    folder: pathlib.Path, ids: np.ndarray | ListColumn, weights: np.ndarray | ListColumn
) -> None:
    """Lists of nodes 0 to N; ids int32 [N, T] and weights float32 [N, T] are read by slices."""

    def table(begin: int, end: int) -> pa.Table:
        return _lists(begin, ids[begin:end], weights[begin:end])

    _write(folder, len(ids), 8 * ids.shape[1] + 8, table)


def write_links(folder: pathlib.Path, lists: NeighborLists) -> None:
    """Content links and numbers of edges of all nodes."""
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
    """The edges of a graph, in the order of its items."""

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
    """The vectors of a nodes table into float32 out [N, w], row = node.

    Raises:
      ValueError: the table has not exactly one row per row of `out`.
    """
    done = 0
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(1 << 14):
            nodes = batch.column("node").to_numpy()
            out[nodes] = from_column(batch.column("vector"), out.shape[1])
            done += len(nodes)
    if done != len(out):
        raise ValueError(f"{folder} has {done} vectors of {len(out)} nodes")
