"""Input tables as streams of Arrow record batches.

A table is a Parquet, Feather (Arrow IPC) or CSV file, or a folder of such files; the first
bytes of a file decide its kind (table_files.py, csv_files.py).  CSV columns are read as text,
so that ids keep their leading zeros and only `columns.py` parses numbers; `Table.columns`
holds the types that Arrow infers from the first block of a CSV.  Rows are counted from 1
without the header of a CSV.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from absl import logging

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.csv_files import CsvFormat, check_quotes, csv_format, open_csv
from pinsage_jax.data.table_files import (
    ARROW,
    CSV,
    MEMORY,
    PARQUET,
    arrow_batches,
    files_of,
    kind_of,
    not_utf8,
    of_two_tables,
)

BATCH_ROWS = 1 << 20
# In bytes; a CSV row must fit into one block.
_CSV_BLOCK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Table:
    """The schema and files of an input table.

    Attributes:
      path: file or folder of the table, or a name for rows in memory.
      flag: the flag that holds the path; "" for rows in memory.
      kind: PARQUET, ARROW, CSV or MEMORY of table_files.
      files: the files in the order in which they are read.
      columns: type by column name.
      num_rows: number of rows; None for a CSV.
      rows: the rows of a table of kind memory, else None.
      format: delimiter and header of CSV files.
    """

    path: pathlib.Path
    flag: str
    kind: str
    files: tuple[pathlib.Path, ...]
    columns: dict[str, pa.DataType]
    num_rows: int | None
    rows: pa.Table | None = None
    format: CsvFormat = CsvFormat()

    @property
    def label(self) -> str:
        """Name of the table in messages: --flag=path."""
        return f"--{self.flag}={self.path}" if self.flag else str(self.path)

    def require(self, column: str, flag: str = "") -> None:
        """Checks that the table has a column.

        Args:
          column: name of the column.
          flag: the flag that names the column, for the message.

        Raises:
          UserError: there is no such column.
        """
        if column not in self.columns:
            source = f" (named by --{flag})" if flag else ""
            hint = ""
            if self.kind == CSV and self.format.header and any(map(_has_digit, self.columns)):
                hint = " (if that is no header but the first row, --csv_header=off)"
            raise UserError(
                f"{self.label} has no column '{column}'{source}; "
                f"its columns are: {', '.join(self.columns)}{hint}."
            )


@dataclasses.dataclass(frozen=True)
class Batch:
    """Consecutive rows of one file; `first_row` is the number of the first, from 1."""

    rows: pa.RecordBatch
    file: pathlib.Path
    first_row: int

    def __len__(self) -> int:
        return self.rows.num_rows

    def column(self, name: str) -> pa.Array:
        """The column `name`."""
        return self.rows.column(self.rows.schema.get_field_index(name))

    def where(self, index: int) -> str:
        """Names row `index` of this batch in messages, such as 'row 12 of edges.csv'."""
        return f"row {self.first_row + index:,} of {self.file}"

    def where_item(self, name: str, start: int) -> column_values.Where:
        """Names rows of a slice that begins at `start`, and their items by the ids of `name`."""
        ids = self.column(name)

        def where(index: int) -> str:
            return f"{self.where(start + index)} (item {format_id(ids[start + index].as_py())})"

        return where


def open_table(path: str | pathlib.Path, flag: str, config: DataConfig | None = None) -> Table:
    """Opens a table and reads its schema.

    Args:
      path: a file or a folder.
      flag: the flag that holds the path, for messages.
      config: delimiter and header of CSV files; None finds out the one and expects the other.

    Raises:
      UserError: the path does not exist, a folder holds no table, a file is unreadable,
        empty or of another format, a quotation mark is never closed, or two columns have
        the same name.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"--{flag}={path} does not exist.")
    parts, kind = files_of(path, flag) if path.is_dir() else ([path], kind_of(path, flag))
    types: dict[str, pa.DataType] = {}
    form = CsvFormat()
    num_rows: int | None = 0
    for part in parts:
        with _readable(part, flag):
            if kind == CSV:
                found = csv_format(part, flag, config)
                form = found if part == parts[0] else form
                if found.delimiter != form.delimiter:
                    raise UserError(
                        f"--{flag}={part} has another delimiter than {parts[0]}; write all files "
                        "alike."
                    )
                schema, rows = _csv_schema(part, flag, form), None
            elif kind == ARROW:
                with arrow_batches(part) as (schema, batches):
                    rows = sum(batch.num_rows for batch in batches)
            else:
                with pa_parquet.ParquetFile(part) as handle:
                    schema, rows = handle.schema_arrow, handle.metadata.num_rows
            names = list(schema.names)
            num_rows = None if rows is None or num_rows is None else num_rows + rows
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UserError(
                f"--{flag}={part} has more than one column '{repeated[0]}'; rename one."
            )
        if types and (missing := [name for name in types if name not in names]):
            raise UserError(
                f"--{flag}={part} has no column '{missing[0]}' although {parts[0]} has it."
                f"{of_two_tables(parts[0], part)}"
            )
        if types and (more := [name for name in names if name not in types]):
            if (needed := _needed(flag, config) & {*more}) and of_two_tables(parts[0], part):
                raise UserError(
                    f"--{flag}={parts[0]} has no column '{min(needed)}' although {part} has it."
                    f"{of_two_tables(parts[0], part)}"
                )
            logging.warning(
                "--%s=%s: column '%s' is left out, because %s has none.",
                flag, part, more[0], parts[0],
            )  # fmt: skip
            names = [name for name in names if name in types]
        for name in names:
            kind_here = _value_type(schema.field(name).type)
            types[name] = _common_type(types.get(name, kind_here), kind_here)
    if num_rows == 0:
        raise UserError(f"--{flag}={path} has no rows.")
    return Table(path, flag, kind, tuple(parts), types, num_rows, format=form)


def _needed(flag: str, config: DataConfig | None) -> set[str]:
    """Columns without which the table of a flag cannot be read."""
    config = config or DataConfig()
    if flag in ("items", "new_items"):
        return {config.item_id_column}
    return {config.item_column, config.collection_column}


def _csv_schema(part: pathlib.Path, flag: str, form: CsvFormat) -> pa.Schema:
    """The columns of a CSV file, typed by its first block.

    Raises:
      UserError: the file has no rows, is not UTF-8, or does not close a quotation mark.
    """
    try:
        with open_csv(part, flag, form, _CSV_BLOCK) as reader:
            schema, first = reader.schema, next(iter(reader), None)
    except pa.ArrowInvalid as error:
        if "parse error" in str(error):
            # A mark that is not closed is often the reason.
            check_quotes(part, flag, form)
        raise
    # Arrow infers binary for text that is not UTF-8.
    if any(pa.types.is_binary(field.type) for field in schema):
        raise not_utf8(part, flag)
    if first is None or first.num_rows == 0:
        raise UserError(f"--{flag}={part} has no rows.")
    check_quotes(part, flag, form)
    return schema


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A type for columns of two files: text if they do not go together."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if column_values.is_number(one) and column_values.is_number(other):
        return one if pa.types.is_floating(one) else other
    if column_values.is_vector(one) and column_values.is_vector(other):
        return one
    return one if pa.types.is_nested(one) else pa.large_string()


def table_in_memory(rows: pa.Table, name: str) -> Table:
    """A table of rows in memory; messages call it `name` ("the request's items")."""
    types = {field.name: _value_type(field.type) for field in rows.schema}
    path = pathlib.Path(name)
    return Table(path, "", MEMORY, (path,), types, rows.num_rows, rows)


def holds_integers(table: Table, column: str) -> bool:
    """Whether every file of a Parquet table stores the column as integers that fit int64."""
    if table.kind != PARQUET:
        return False
    for part in table.files:
        with _readable(part, table.flag):
            kind = _value_type(pa_parquet.read_schema(part).field(column).type)
        if not pa.types.is_integer(kind) or kind == pa.uint64():
            return False
    return True


def iter_batches(
    table: Table,
    columns: Sequence[str],
    ids: Sequence[str] = (),
    batch_rows: int | None = None,
    integer_ids: Sequence[str] = (),
) -> Iterator[Batch]:
    """Streams columns of a table, batch by batch in the order of its rows.

    Args:
      table: the table.
      columns: names of the columns to read.
      ids: those of the columns that hold ids; they become large_string without nulls or
        empty strings.  The other columns of a CSV are large_string too.
      batch_rows: maximum number of rows in a batch of a Parquet table; None means
        BATCH_ROWS.
      integer_ids: those of `ids` that become int64 instead (see holds_integers).

    Raises:
      UserError: a column is missing; an id is null, empty, or neither text nor integer;
        a file is damaged or not UTF-8; or rows of a CSV differ in their number of fields.
    """
    names = list(dict.fromkeys(columns))
    for name in names:
        table.require(name)
    for part in table.files:
        first_row = 1
        with _readable(part, table.flag):
            for rows in _raw_batches(part, table, names, batch_rows or BATCH_ROWS):
                batch = Batch(rows, part, first_row)
                if table.kind == CSV:
                    _check_long_cells(table, batch, ids)
                for name in ids:
                    as_integers = name in integer_ids
                    convert = column_values.integer_ids if as_integers else column_values.ids
                    converted = convert(batch.column(name), name, batch.where)
                    position = rows.schema.get_field_index(name)
                    rows = rows.set_column(position, name, converted)
                    batch = Batch(rows, part, first_row)
                first_row += rows.num_rows
                yield batch


def _raw_batches(
    part: pathlib.Path, table: Table, names: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    if table.rows is not None:
        for rows in table.rows.select(names).combine_chunks().to_batches(batch_rows):
            yield _decode_dictionaries(rows)
        return
    if table.kind == PARQUET:
        # With its buffer a reader keeps all that it has read until it is closed.
        with pa_parquet.ParquetFile(part, pre_buffer=False) as handle:
            for rows in handle.iter_batches(batch_size=batch_rows, columns=names):
                if rows.num_rows:
                    yield _decode_dictionaries(rows.select(names))
        return
    if table.kind == ARROW:
        with arrow_batches(part) as (_, batches):
            for batch in batches:
                rows = batch.select(names)
                for start in range(0, rows.num_rows, batch_rows):
                    yield _decode_dictionaries(rows.slice(start, batch_rows))
        return
    convert = pa_csv.ConvertOptions(
        include_columns=names, column_types={name: pa.large_string() for name in names}
    )
    with open_csv(part, table.flag, table.format, _CSV_BLOCK, convert) as reader:
        for rows in reader:
            if rows.num_rows:
                yield rows


def _check_long_cells(table: Table, batch: Batch, ids: Sequence[str]) -> None:
    """Looks for quoted cells that seem to hold rows of the table.

    Raises:
      UserError: an id seems to do so; other columns are warned of.
    """
    delimiter, columns = table.format.delimiter, len(table.columns)
    if columns < 2:
        return
    for name in batch.rows.schema.names:
        column = batch.column(name)
        long = pc.and_(pc.match_substring(column, "\n"), pc.match_substring(column, delimiter))
        for row in np.flatnonzero(pc.fill_null(long, False).to_numpy(zero_copy_only=False)):
            text = column[int(row)].as_py()
            held = [line.split(delimiter) for line in text.split("\n")[1:]]
            if not any(len(cells) == columns and all(cells) for cells in held):
                continue
            sentence = (
                f"Column '{name}' is {format_id(text)} in {batch.where(int(row))}, a quoted cell "
                "that holds whole rows of the table; is a quotation mark closed too late?"
            )
            if name in ids:
                raise UserError(sentence)
            logging.warning("%s", sentence)
            break


@contextlib.contextmanager
def _readable(path: pathlib.Path, flag: str) -> Iterator[None]:
    """Raises UserError for Arrow's errors about an unreadable file."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        message = " ".join(str(error).split())[:200].rstrip(".")
        if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in message:
            raise not_utf8(path, flag) from error
        if "Empty CSV file" in message:
            raise UserError(f"--{flag}={path} has no rows.") from error
        if "CSV parse error" in message and "columns" in message:
            raise UserError(
                f"--{flag}={path} cannot be read ({message}); every row needs as many cells as the "
                "header, and a cell that holds the delimiter needs quotation marks."
            ) from error
        if "straddling" in message:
            raise UserError(
                f"--{flag}={path} has a row longer than {_CSV_BLOCK >> 20} MiB or a quotation mark "
                "that is never closed."
            ) from error
        raise UserError(f"--{flag}={path} cannot be read ({message}); is it damaged?") from error


def _has_digit(name: str) -> bool:
    return any(letter.isdigit() for letter in name)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _decode_dictionaries(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its dictionary-encoded columns decoded."""
    for position, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            decoded = rows.column(position).cast(field.type.value_type)
            rows = rows.set_column(position, field.name, decoded)
    return rows
