"""The columns of --items as they were read, for what filters lists at query time.

WORKDIR/prepared/columns.parquet has one row per item that --items holds, in catalog order,
and every column that an expression can read (listing/expressions.py): numbers, texts, times,
yes or no, lists of texts.  Vectors and other nested values are left out.  A query reads only
the columns that it names.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import Table, iter_batches

FILE = "columns.parquet"
_ROWS = 1 << 16
_TEXT = pa.large_string()
_LISTS = pa.list_(pa.large_string())


def stored_type(dtype: pa.DataType) -> pa.DataType | None:
    """The type that a column of `dtype` is kept in; None for one that is left out."""
    if pa.types.is_boolean(dtype):
        return dtype
    if pa.types.is_integer(dtype):
        return pa.float64() if dtype == pa.uint64() else pa.int64()
    if pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        return pa.float64()
    if pa.types.is_date(dtype):
        return pa.date32()
    if pa.types.is_timestamp(dtype):
        return pa.timestamp("us", dtype.tz)
    if column_values.is_text(dtype) or pa.types.is_null(dtype):
        return _TEXT
    return _LISTS if column_values.is_tags(dtype) else None


def write_item_columns(items: Table | None, id_column: str, folder: pathlib.Path) -> dict[str, Any]:
    """Writes the columns of --items, except its ids, batch by batch.

    The columns of a CSV are typed by its first rows.  One that has other cells further down
    is kept as a wider type: whole numbers as numbers, anything else as text.

    Args:
      items: the table, whose ids are unique; None: there is none.
      id_column: its column of ids.
      folder: that of the prepared catalog.

    Returns:
      Name of the column of ids and names of the columns that are kept, for the manifest;
      without any there is no file.
    """
    if items is None:
        return {"ids": id_column, "kept": []}
    types = {name: stored_type(kind) for name, kind in items.columns.items() if name != id_column}
    chosen = {name: kind for name, kind in types.items() if kind is not None}
    while chosen and (misfit := _write(items, chosen, folder / FILE)) is not None:
        chosen[misfit] = pa.float64() if pa.types.is_integer(chosen[misfit]) else _TEXT
    return {"ids": id_column, "kept": list(chosen)}


def saved_file(folder: pathlib.Path) -> pathlib.Path | None:
    """The file in the folder of a prepared catalog; None if there is none."""
    return folder / FILE if (folder / FILE).exists() else None


def _write(items: Table, types: dict[str, pa.DataType], path: pathlib.Path) -> str | None:
    """Writes the columns; returns the first column with a value that its type cannot hold."""
    schema = pa.schema(list(types.items()))
    with (
        files.atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for batch in iter_batches(items, list(types)):
            converted = []
            for name, kind in types.items():
                try:
                    converted.append(_cast(batch.column(name), kind))
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    # The caller writes the file again.
                    return name
            writer.write_table(pa.table(converted, schema=schema), row_group_size=_ROWS)
    return None


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column_values.is_text(column.type) and kind != _TEXT:
        column = column_values.without_missing(column)
    if pa.types.is_list(kind):
        return pa.array(column.to_pylist(), kind)
    # Decimals lose digits as floats do.
    return column.cast(kind, safe=not pa.types.is_decimal(column.type))


class ItemColumns:
    """Columns of items by name, each read when it is first asked for.

    Attributes:
      types: Arrow type of each column; the ids are one of them.
    """

    def __init__(
        self,
        ids: IdTable,
        id_column: str,
        types: Mapping[str, pa.DataType],
        read: Callable[[str], pa.Array | pa.ChunkedArray],
    ):
        """Takes how a column is read.

        Args:
          ids: ids of all N items.
          id_column: name of the column of ids.
          types: types of the other columns.
          read: reads the values of the first items by the name of a column; more are null.
        """
        self._ids, self._id_column, self._from = ids, id_column, read
        self.types: dict[str, pa.DataType] = {id_column: _TEXT}
        self.types |= {name: kind for name, kind in types.items() if name != id_column}
        self.column = functools.lru_cache(maxsize=None)(self._read)

    @classmethod
    def of_file(cls, path: pathlib.Path | None, ids: IdTable, id_column: str) -> ItemColumns:
        """The columns of a file that `write_item_columns` wrote; None: there are ids alone.

        Raises:
          UserError: the file is damaged.
        """
        schema = pa.schema([]) if path is None else _readable_schema(path)
        types = {field.name: field.type for field in schema}
        # Mapped once: a server goes on reading these columns when another model has replaced them.
        content = None if path is None else pa.memory_map(str(path)).read_buffer()

        def read(name: str) -> pa.ChunkedArray:
            return pq.read_table(pa.BufferReader(content), columns=[name]).column(0)

        return cls(ids, id_column, types, read)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> IdTable:
        """Ids of the N items."""
        return self._ids

    def _read(self, name: str) -> pa.Array:
        """A column of all N items."""
        if name == self._id_column:
            return self._ids.ids
        found = self._from(name).cast(self.types[name])
        if isinstance(found, pa.ChunkedArray):
            found = pa.concat_arrays(found.chunks) if found.num_chunks else pa.nulls(0, found.type)
        missing = pa.nulls(len(self) - len(found), found.type)
        return pa.concat_arrays([found, missing]) if len(missing) else found

    def codes(self, name: str) -> np.ndarray:
        """The values of a column as numbers int32 [N], equal for equal values; -1: missing."""
        column = self.column(name)
        if pa.types.is_list(column.type):
            column = pa.array([None if v is None else "\0".join(v) for v in column.to_pylist()])
        encoded = pc.dictionary_encode(column).indices
        return pc.fill_null(encoded, -1).to_numpy(zero_copy_only=False).astype(np.int32)

    def of_table(self, items: Table, ids: IdTable) -> ItemColumns:
        """The columns of other items, in the types of these; those that it lacks are null.

        Args:
          items: a table with one row per id.
          ids: its ids, in the order of its rows.
        """

        def read(name: str) -> pa.ChunkedArray:
            kind = self.types[name]
            if name not in items.columns:
                return pa.chunked_array([], kind)
            try:
                parts = [_cast(batch.column(name), kind) for batch in iter_batches(items, [name])]
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise UserError(
                    f"Column '{name}' of {items.label} has values of another type than in --items "
                    f"({kind})."
                ) from None
            return pa.chunked_array(parts, kind)

        return ItemColumns(ids, self._id_column, self.types, read)

    def given(self, items: Table, ids: IdTable) -> pa.Table:
        """Those of the columns that a table of items has, in the types of these.

        Raises:
          UserError: a value does not fit the type of its column.
        """
        found = self.of_table(items, ids)
        names = [name for name in self.types if name in items.columns and name != self._id_column]
        return pa.table({name: found.column(name) for name in names})

    def followed_by(self, others: ItemColumns, ids: IdTable) -> ItemColumns:
        """These items and then others, which `of_table` made, under the ids of both."""

        def read(name: str) -> pa.ChunkedArray:
            return pa.chunked_array([self.column(name), others.column(name)])

        return ItemColumns(ids, self._id_column, self.types, read)


def open_columns(
    file: pathlib.Path | ItemColumns | None, ids: IdTable, manifest: dict[str, Any]
) -> ItemColumns:
    """The columns of a prepared catalog with this manifest; columns themselves are returned.

    Raises:
      UserError: the catalog was prepared without them.
    """
    about = manifest.get("item_columns")
    if isinstance(file, ItemColumns):
        return file
    if about is None and "items" in manifest.get("inputs", {}):
        raise UserError(
            "The prepared data holds no columns of --items; delete WORKDIR/prepared and run "
            "--mode=prepare again."
        )
    return ItemColumns.of_file(file, ids, about["ids"] if about else "item_id")


def table_bytes(table: pa.Table | None) -> bytes:
    """The rows of a table as bytes, for a hash."""
    if table is None or not table.num_columns:
        return b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def _readable_schema(path: pathlib.Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({message}); run --mode=prepare again.") from None


def write_changed_columns(
    before: pathlib.Path,
    items: int,
    given: pa.Table | None,
    places: np.ndarray,
    path: pathlib.Path,
) -> None:
    """Writes the columns after a change: rows of a table replace those of their items.

    A column that the table lacks keeps the values of known items; new items have none.

    Args:
      before: the file before the change.
      items: number of items after the change.
      given: columns of the table, in the types of the file; row r is item places[r].  None:
        there is no table.
      places: int [r], known items and then new ones.
    """
    row_of = np.full(items, -1, np.int64)
    row_of[places] = np.arange(len(places))
    names = given.column_names if given is not None and len(places) else []
    with pq.ParquetFile(before) as old, files.atomic_file(path) as temporary:
        schema, start = old.schema_arrow, 0
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in _padded(old, schema, items):
                source = row_of[start : start + batch.num_rows]
                start += batch.num_rows
                replaced, taken = pa.array(source >= 0), pa.array(np.maximum(source, 0))
                merged = [
                    pc.if_else(replaced, given.column(name).take(taken), batch.column(name))
                    if given is not None and name in names
                    else batch.column(name)
                    for name in schema.names
                ]
                writer.write_table(pa.table(merged, schema=schema))


def _padded(old: pq.ParquetFile, schema: pa.Schema, total: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file in batches, and null rows up to `total`."""
    for batch in old.iter_batches(_ROWS):
        total -= batch.num_rows
        yield pa.record_batch(batch.columns, schema=schema)
    for start in range(0, total, _ROWS):
        size = min(_ROWS, total - start)
        yield pa.record_batch([pa.nulls(size, field.type) for field in schema], schema=schema)
