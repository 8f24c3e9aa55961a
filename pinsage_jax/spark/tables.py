"""Writes arrays of one machine as the tables that Spark's tasks read.

  inputs       node (int64), vector (binary, columns.py): input vectors; layers and embeddings
               between stages have the same columns
  lists        node (int64), ids (list of int32, -1 where short), weights (list of float32)
  links        the same for content links, and edges (int32), the node's number of edges
  edges        item (int64) and collection (int64), each numbered from 0, and weight (float32) if
               the graph has weights
  items        node (int64, from 0 in the order of the catalog), item_id (string), edges (int32)
  collections  node (int64, following the items), collection_id (string), edges (int32)

Arrays are memory-mapped and written in blocks.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from pinsage_jax.core import files
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.data.ids import IdTable
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.lists import ListColumn, NeighborLists
from pinsage_jax.spark.columns import from_column, to_column
from pinsage_jax.spark.table_store import Folder

# Tasks share the row groups of a table; a file has several.
_GROUP_BYTES = 1 << 22
_GROUPS_PER_FILE = 16


@contextlib.contextmanager
def scratch_folder(parent: str | os.PathLike) -> Iterator[Folder]:
    """A folder for tables between stages, deleted at the end of the block."""
    # The next run deletes folders with such a name that a killed run left.
    folder = pathlib.Path(parent).resolve() / f"spark.tmp-{os.getpid()}"
    with files.reported_os_errors(folder):
        folder.mkdir(parents=True)
    try:
        yield Folder(str(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(table: Folder, rows: int, row_bytes: int, block: Callable[[int, int], pa.Table]) -> None:
    """Writes block(begin, end) for blocks of [0, rows) into files of about 64 MiB, at least one."""
    step = max(_GROUP_BYTES // row_bytes, 1)
    per_file = step * _GROUPS_PER_FILE
    entries = []
    for number, begin in enumerate(range(0, max(rows, 1), per_file)):
        ends = range(begin, max(min(begin + per_file, rows), begin + 1), step)
        blocks = (_block(block, at, min(at + step, rows)) for at in ends)
        schema = block(0, 0).schema
        entries.append(table.write_part(f"part-{number:05d}", schema, blocks))
    table.finish({"files": entries, "rows": rows})


def _block(block: Callable[[int, int], pa.Table], begin: int, end: int) -> pa.RecordBatch:
    raise_if_stopped()
    rows = block(begin, end).combine_chunks()
    batches = rows.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], rows.schema)


def write_nodes(
    table: Folder, rows: int, width: int, read: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Writes nodes 0 to `rows` - 1 with the vectors float32 [n, width] of read(int32 [n])."""

    def block(begin: int, end: int) -> pa.Table:
        nodes = np.arange(begin, end, dtype=np.int32)
        return pa.table({"node": nodes.astype(np.int64), "vector": to_column(read(nodes))})

    _write(table, rows, 4 * width + 8, block)


def write_lists(
    table: Folder, ids: np.ndarray | ListColumn, weights: np.ndarray | ListColumn
) -> None:
    """Writes the lists of all nodes; ids int32 [N, T] and weights float32 [N, T] are sliced."""

    def block(begin: int, end: int) -> pa.Table:
        return _lists(begin, ids[begin:end], weights[begin:end])

    _write(table, len(ids), 8 * ids.shape[1] + 8, block)


def write_links(table: Folder, lists: NeighborLists) -> None:
    """Writes the content links and the numbers of edges of all nodes."""
    degree = lists.source.graph.degree()

    def block(begin: int, end: int) -> pa.Table:
        links = _lists(begin, *lists.lookup_links(np.arange(begin, end, dtype=np.int32)))
        return links.append_column("edges", pa.array(degree[begin:end]))

    _write(table, lists.source.num_nodes, 8 * lists.width + 12, block)


def _lists(first: int, ids: np.ndarray, weights: np.ndarray) -> pa.Table:
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * np.int32(ids.shape[1])
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(part.reshape(-1))) for part in (ids, weights)
    ]
    nodes = np.arange(first, first + len(ids), dtype=np.int64)
    return pa.table({"node": nodes, "ids": columns[0], "weights": columns[1]})


def write_edges(table: Folder, graph: Graph) -> None:
    """Writes the edges of a graph in the order of its items."""

    def block(begin: int, end: int) -> pa.Table:
        first = np.searchsorted(graph.indptr, begin, side="right") - 1
        last = max(np.searchsorted(graph.indptr, end, side="left"), first)
        bounds = np.clip(graph.indptr[first : last + 1], begin, end)
        columns = {
            "item": np.repeat(np.arange(first, last, dtype=np.int64), np.diff(bounds)),
            "collection": graph.indices[begin:end].astype(np.int64) - graph.num_items,
        }
        if graph.weights is not None:
            columns["weight"] = graph.weights[begin:end]
        return pa.table(columns)

    _write(table, graph.num_edges, 20, block)


def write_ids(table: Folder, column: str, ids: IdTable, degree: np.ndarray, first: int) -> None:
    """Writes the nodes from `first` with their ids and their numbers of edges, int32 [n]."""

    def block(begin: int, end: int) -> pa.Table:
        nodes = np.arange(begin, end, dtype=np.int64)
        names = ids.names(nodes).cast(pa.string())
        return pa.table({"node": first + nodes, column: names, "edges": degree[begin:end]})

    _write(table, len(ids), 64, block)


def read_vectors(table: Folder, out: np.ndarray) -> None:
    """Reads the vectors of a table of nodes into `out`, float32 [N, w], by node.

    Raises:
      ValueError: the table does not have exactly one row for each row of `out`.
    """
    done = 0
    for file in (table.manifest() or {"files": []})["files"]:
        for batch in table.read_part(file["name"]):
            nodes = batch.column("node").to_numpy()
            out[nodes] = from_column(batch.column("vector"), out.shape[1])
            done += len(nodes)
    if done != len(out):
        raise ValueError(f"{table} has {done} vectors of {len(out)} nodes")
