"""Tasks of Spark's Python workers that read and write the tables of table_store.py.

Spark sees rows only: it joins, shuffles and sorts them, with its scratch on the executors' disks.
A table begins as `session.range(shards)`, whose rows say which part of the files a task reads, and
ends as one row for each file that a task wrote, which this process collects for the manifest.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pinsage_jax.core.errors import UserError
from pinsage_jax.data.columns import format_id
from pinsage_jax.export.codec import VectorCodec
from pinsage_jax.export.writer import COLLECTIONS, ITEMS, Kind
from pinsage_jax.inference.map_reduce import rebatch
from pinsage_jax.spark.columns import from_column
from pinsage_jax.spark.layer_tasks import Batches, Task
from pinsage_jax.spark.session import task_errors
from pinsage_jax.spark.table_store import Folder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PARTS = "part string"
# Batches of a few numbers a row are put together to groups of this size.
_GROUP_BYTES = 1 << 23
_KEYS_PER_SHARD = 64


def scan(
    session: SparkSession, table: Folder, shards: int, schema: str, *tasks: Task, **options: Any
) -> DataFrame:
    """Reads a table in `shards` partitions, and applies further tasks in the same workers.

    Args:
      schema: the columns after the last task.
      options: `columns`, those to read.
    """
    task = chain(read(table, shards, **options), *tasks)
    return session.range(0, shards, 1, shards).mapInArrow(task, schema)


def save(rows: DataFrame, table: Folder, *tasks: Task) -> dict[str, Any]:
    """Writes rows, after further tasks, as a table of one file for a partition.

    Returns:
      The manifest of the table.

    Raises:
      UserError: a task failed with one.
    """
    entries = written(rows, *tasks, write(table))
    return table.finish({"files": entries, "rows": sum(entry["rows"] for entry in entries)})


def written(rows: DataFrame, *tasks: Task) -> list[dict[str, Any]]:
    """Runs tasks of which the last writes files; returns the files' entries, by name.

    Raises:
      UserError: a task failed with one.
    """
    with task_errors():
        found = rows.mapInArrow(chain(*tasks), PARTS).collect()
    return sorted((json.loads(row.part) for row in found), key=lambda entry: entry["name"])


def chain(*tasks: Task) -> Task:
    """One task that passes the batches of each to the next."""
    return lambda batches: functools.reduce(lambda some, task: task(some), tasks, iter(batches))


def read(table: Folder, shards: int, columns: list[str] | None = None) -> Task:
    """Task: id (a number below `shards`) -> that part of the table's row groups, in order."""

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for shard in batch.column("id").to_pylist():
                units = _units(table)
                mine = units[len(units) * shard // shards : len(units) * (shard + 1) // shards]
                for name, some in itertools.groupby(mine, key=lambda unit: unit[0]):
                    yield from table.read_part(name, [group for _, group in some], columns)

    return run


def _units(table: Folder) -> list[tuple[str, int]]:
    """Each row group of a table, as the name of its file and its number in it."""
    return [(f["name"], group) for f in files_of(table) for group in range(f["groups"])]


def files_of(table: Folder) -> list[dict[str, Any]]:
    """The files that the manifest of a table lists.

    Raises:
      UserError: the table is missing or was not finished.
    """
    manifest = table.manifest()
    if manifest is None:
        raise UserError(f"{table} is missing or was not finished; write the tables again.")
    return manifest["files"]


def write(table: Folder) -> Task:
    """Task: batches -> part (a file's entry of the manifest as JSON), at most one row."""

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        number = 0 if context is None else context.partitionId()
        groups = _groups(batches)
        first = next(groups, None)
        if first is not None:
            blocks = itertools.chain([first], groups)
            yield _entry(table.write_part(f"part-{number:05d}", first.schema, blocks))

    return run


def _groups(batches: Batches) -> Iterator[pa.RecordBatch]:
    """Puts small batches together to row groups."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        waiting.append(batch)
        size += batch.nbytes
        if size >= _GROUP_BYTES:
            yield _joined(waiting)
            waiting, size = [], 0
    if any(len(batch) for batch in waiting):
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _entry(entry: dict[str, Any]) -> pa.RecordBatch:
    return pa.record_batch([[json.dumps(entry)]], names=["part"])


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The nodes in ranges of `rows`, of items alone or of collections alone, ascending.

    Attributes:
      items: number of items; nodes: with the collections that are embedded.
    """

    rows: int
    items: int
    nodes: int

    def number(self, nodes: np.ndarray) -> np.ndarray:
        """The numbers int64 [n] of the ranges of nodes int64 [n]."""
        after = self._of_items + (nodes - self.items) // self.rows
        return np.where(nodes < self.items, nodes // self.rows, after)

    def span(self, number: int) -> tuple[int, int]:
        """The first node of a range, and the first node after it."""
        of_items = self._of_items
        if number < of_items:
            return number * self.rows, min((number + 1) * self.rows, self.items)
        begin = self.items + (number - of_items) * self.rows
        return begin, min(begin + self.rows, self.nodes)

    def partitioned(self, rows: DataFrame, shards: int) -> DataFrame:
        """Rows by node in `shards` partitions: range r in partition r modulo `shards`."""
        from pyspark.sql import functions as F

        node = F.col("node")
        # Integer division, for there may be more nodes than a double can count.
        first = F.expr(f"node div {self.rows}")
        after = self._of_items + F.expr(f"(node - {self.items}) div {self.rows}")
        number = F.when(node < self.items, first).otherwise(after)
        keys = F.array(*map(F.lit, _partition_keys(rows.sparkSession, shards)))
        return rows.repartition(shards, F.get(keys, F.pmod(number, F.lit(shards)).cast("int")))

    @property
    def _of_items(self) -> int:
        return -(-self.items // self.rows)


def _partition_keys(session: SparkSession, shards: int) -> list[int]:
    """For each partition a number that Spark's hash sends there."""
    from pyspark.sql import functions as F

    ids = session.range(0, _KEYS_PER_SHARD * (shards + 1), 1, 1)
    ids = ids.withColumn("shard", F.pmod(F.hash("id"), F.lit(shards)))
    found = {row[0]: row[1] for row in ids.groupBy("shard").agg(F.min("id")).collect()}
    return [found[shard] for shard in range(shards)]


@dataclasses.dataclass(frozen=True)
class Export:
    """Where embeddings go, in the format of export/writer.py.

    Attributes:
      tables: the folder with the tables items (node, item_id, edges) and collections.
      bias: added to the last coordinate of items without edges.
    """

    out: Folder
    tables: Folder
    ranges: Ranges
    codec: VectorCodec
    bias: float
    width: int

    def schema(self, kind: Kind) -> pa.Schema:
        """The columns of a file."""
        number = pa.from_numpy_dtype(np.dtype(self.codec.dtype))
        dimension = self.codec.project(np.zeros((0, self.width), np.float32)).shape[1]
        fields = [(kind.id_column, pa.string()), ("embedding", pa.list_(number, dimension))]
        return pa.schema([*fields, *[(name, pa.float32()) for name in self.codec.scale_columns]])


def write_export(export: Export, block: int) -> Task:
    """Task: node, vector ([Z]) by `export.ranges`, ascending -> part, a row for each range.

    Args:
      block: vectors of a row group.

    Raises:
      UserError: a vector is not finite.
    """

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        pieces = _pieces(batches, export)
        for number, some in itertools.groupby(pieces, key=lambda piece: piece[0]):
            kind, begin, end, name = _file_of(export, number)
            names = _names(export, kind, begin, end)
            blocks = rebatch((piece[1:] for piece in some), block)
            rows = _encoded(export, kind, begin, end, names, blocks)
            yield _entry(export.out.write_part(name, export.schema(kind), rows))

    return run


def _pieces(batches: Batches, export: Export) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields number of a range, nodes int64 [n] and vectors float32 [n, Z]."""
    for batch in batches:
        nodes = batch.column("node").to_numpy(zero_copy_only=False)
        vectors = from_column(batch.column("vector"), export.width)
        numbers = export.ranges.number(nodes)
        ends = [*np.flatnonzero(np.diff(numbers)) + 1, len(nodes)]
        begin = 0
        for end in ends:
            if end > begin:
                yield int(numbers[begin]), nodes[begin:end], vectors[begin:end]
            begin = end


def _file_of(export: Export, number: int) -> tuple[Kind, int, int, str]:
    """Of a range: its kind of nodes, first node and end, and the beginning of its file's name."""
    begin, end = export.ranges.span(number)
    kind = ITEMS if begin < export.ranges.items else COLLECTIONS
    within = number if kind is ITEMS else number - export.ranges._of_items
    return kind, begin, end, f"{kind.shards}-{within:05d}"


def _names(export: Export, kind: Kind, begin: int, end: int) -> pa.Table:
    """The ids, and where a bias needs them the numbers of edges, of the nodes of a range."""
    of_items = kind is ITEMS
    table, first = ("items", 0) if of_items else ("collections", export.ranges.items)
    columns = [kind.id_column, *(["edges"] if of_items and export.bias else [])]
    return rows_of(export.tables / table, columns, begin - first, end - first)


def rows_of(table: Folder, columns: list[str], begin: int, end: int) -> pa.Table:
    """Rows `begin` to `end` of a table in the order of its files."""
    found: list[pa.RecordBatch] = []
    first = 0
    for file in files_of(table):
        if first < end and first + file["rows"] > begin:
            place = first
            for batch in table.read_part(file["name"], columns=columns):
                low, high = max(begin - place, 0), min(end - place, len(batch))
                if low < high:
                    found.append(batch.slice(low, high - low))
                place += len(batch)
                if place >= end:
                    break
        first += file["rows"]
    rows = pa.Table.from_batches(found).combine_chunks() if found else pa.table({})
    if len(rows) != end - begin:
        raise UserError(f"{table} has no row {begin + len(rows)}; write the tables again.")
    return rows


def _encoded(
    export: Export,
    kind: Kind,
    begin: int,
    end: int,
    names: pa.Table,
    blocks: Iterable[tuple[np.ndarray, ...]],
) -> Iterator[pa.RecordBatch]:
    """Yields the blocks of a file, and checks that these are all nodes of its range."""
    done = begin
    for nodes, vectors in blocks:
        if not np.array_equal(nodes, np.arange(done, done + len(nodes))):
            raise ValueError(f"the rows of nodes from {done} are not each there once")
        some = names.slice(done - begin, len(nodes))
        done += len(nodes)
        if "edges" in names.column_names:
            isolated = some["edges"].to_numpy() == 0
            vectors[isolated, -1] += np.float32(export.bias)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            name = some[kind.id_column][int(np.argmin(finite))].as_py()
            raise UserError(
                f"The vector of {kind.id_column.removesuffix('_id')} {format_id(name)} is not "
                "finite, so nothing is exported; does the item have a number or vector of extreme "
                "size?"
            )
        codes, scales = export.codec.encode(vectors)
        ids = some[kind.id_column].combine_chunks().cast(pa.string())
        flat = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])
        columns = [ids, flat, *[pa.array(scale) for scale in scales.T]]
        yield pa.record_batch(columns, schema=export.schema(kind))
    if done != end:
        raise ValueError(f"nodes {done} to {end} have no rows")
