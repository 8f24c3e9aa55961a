"""Input tables as streams of Arrow record batches.

A table is a Parquet file, a folder of Parquet files, a CSV file or a gzipped CSV file;
the first bytes of a file decide its kind.  CSV columns are read as text, so that ids keep
their leading zeros and only `columns.py` parses numbers; `Table.columns` holds the types
that Arrow infers from the first block of a CSV.  Rows are counted from 1 without the
header of a CSV.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values

BATCH_ROWS = 1 << 20
# In bytes; a CSV row must fit into one block.
_CSV_BLOCK = 1 << 24
_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclasses.dataclass(frozen=True)
class Table:
    """The schema and files of an input table.

    Attributes:
      path: file or folder of the table, or a name for rows in memory.
      flag: the flag that holds the path; "" for rows in memory.
      kind: parquet, csv, csv.gz or memory.
      files: the files in the order in which they are read.
      columns: type by column name.
      num_rows: number of rows; None for a CSV.
      rows: the rows of a table of kind memory, else None.
    """

    path: pathlib.Path
    flag: str
    kind: str
    files: tuple[pathlib.Path, ...]
    columns: dict[str, pa.DataType]
    num_rows: int | None
    rows: pa.Table | None = None

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
            raise UserError(
                f"{self.label} has no column '{column}'{source}; "
                f"its columns are: {', '.join(self.columns)}."
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


def open_table(path: str | pathlib.Path, flag: str) -> Table:
    """Opens a table and reads its schema.

    Args:
      path: a file, or a folder of Parquet files.
      flag: the flag that holds the path, for messages.

    Raises:
      UserError: the path does not exist, a folder holds no Parquet file, a file is
        unreadable or empty, or two columns have the same name.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"--{flag}={path} does not exist.")
    if path.is_dir():
        parts = sorted(
            part
            for part in path.rglob("*")
            # Spark and Hadoop name their markers and unfinished files _... and .hidden.
            if part.suffix in _PARQUET_SUFFIXES and part.is_file() and part.name[0] not in "._"
        )
        if not parts:
            raise UserError(f"--{flag}={path} is a folder without any .parquet file.")
        kind = "parquet"
    else:
        parts, kind = [path], _kind(path, flag)
    types: dict[str, pa.DataType] = {}
    num_rows: int | None = 0
    for part in parts:
        with _readable(part, flag):
            if kind == "parquet":
                with pa_parquet.ParquetFile(part) as handle:
                    schema, rows = handle.schema_arrow, handle.metadata.num_rows
                    names = list(schema.names)
                num_rows += rows
            else:
                with _open_csv(part, kind) as reader:
                    schema, names = reader.schema, list(reader.schema.names)
                    first = next(iter(reader), None)
                # Arrow infers binary for text that is not UTF-8.
                if any(pa.types.is_binary(field.type) for field in schema):
                    raise _not_utf8(part, flag)
                if first is None or first.num_rows == 0:
                    raise UserError(f"--{flag}={part} has no rows.")
                num_rows = None
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UserError(
                f"--{flag}={part} has more than one column '{repeated[0]}'; rename one."
            )
        if types and (missing := [name for name in types if name not in names]):
            raise UserError(
                f"--{flag}={part} has no column '{missing[0]}' although {parts[0]} has it."
            )
        types = types or {name: _value_type(schema.field(name).type) for name in names}
    if num_rows == 0:
        raise UserError(f"--{flag}={path} has no rows.")
    return Table(path, flag, kind, tuple(parts), types, num_rows)


def table_in_memory(rows: pa.Table, name: str) -> Table:
    """A table of rows in memory; messages call it `name` ("the request's items")."""
    types = {field.name: _value_type(field.type) for field in rows.schema}
    path = pathlib.Path(name)
    return Table(path, "", "memory", (path,), types, rows.num_rows, rows)


def holds_integers(table: Table, column: str) -> bool:
    """Whether every file of a Parquet table stores the column as integers that fit int64."""
    if table.kind != "parquet":
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
    if table.kind == "parquet":
        with pa_parquet.ParquetFile(part) as handle:
            for rows in handle.iter_batches(batch_size=batch_rows, columns=names):
                if rows.num_rows:
                    yield _decode_dictionaries(rows.select(names))
        return
    convert = pa_csv.ConvertOptions(
        include_columns=names, column_types={name: pa.large_string() for name in names}
    )
    with _open_csv(part, table.kind, convert) as reader:
        for rows in reader:
            if rows.num_rows:
                yield rows


@contextlib.contextmanager
def _open_csv(
    part: pathlib.Path, kind: str, convert: pa_csv.ConvertOptions | None = None
) -> Iterator[pa_csv.CSVStreamingReader]:
    compression = "gzip" if kind == "csv.gz" else None
    with (
        pa.input_stream(str(part), compression=compression) as stream,
        pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=_CSV_BLOCK),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=convert,
        ) as reader,
    ):
        yield reader


def _kind(path: pathlib.Path, flag: str) -> str:
    try:
        with open(path, "rb") as handle:
            head = handle.read(4)
    except OSError as error:
        raise UserError(f"--{flag}={path} cannot be read ({error.strerror}).") from None
    if head.startswith(_GZIP_MAGIC):
        return "csv.gz"
    if head.startswith(_UTF16_MARKS):
        raise _not_utf8(path, flag)
    if head == _PARQUET_MAGIC or path.suffix in _PARQUET_SUFFIXES:
        return "parquet"
    return "csv"


@contextlib.contextmanager
def _readable(path: pathlib.Path, flag: str) -> Iterator[None]:
    """Raises UserError for Arrow's errors about an unreadable file."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        message = " ".join(str(error).split())[:200].rstrip(".")
        if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in message:
            raise _not_utf8(path, flag) from error
        if "Empty CSV file" in message:
            raise UserError(f"--{flag}={path} has no rows.") from error
        if "straddling" in message:
            raise UserError(
                f"--{flag}={path} has a row longer than {_CSV_BLOCK >> 20} MiB or a quotation mark "
                "that is never closed."
            ) from error
        raise UserError(f"--{flag}={path} cannot be read ({message}); is it damaged?") from error


def _not_utf8(path: pathlib.Path, flag: str) -> UserError:
    return UserError(f"--{flag}={path} is not UTF-8 text; save it as UTF-8 or as Parquet.")


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _decode_dictionaries(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its dictionary-encoded columns decoded."""
    for position, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            decoded = rows.column(position).cast(field.type.value_type)
            rows = rows.set_column(position, field.name, decoded)
    return rows
