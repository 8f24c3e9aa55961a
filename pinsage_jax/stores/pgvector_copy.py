"""PostgreSQL with the extension pgvector: a CSV file for COPY and the SQL around it.

items.csv   one row per item
load.sql    creates the table, copies the rows and builds the index, in one transaction:
            psql -v ON_ERROR_STOP=1 -f load.sql, started in this folder
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv as arrow_csv

from pinsage_jax.core.errors import UserError
from pinsage_jax.stores.rows import ID, VECTOR, VERSION, StoreRows
from pinsage_jax.stores.values import vector_texts

ROWS, SQL = "items.csv", "load.sql"
# Of pgvector's type vector, and of an HNSW index over it.
_MOST_DIMENSIONS, _MOST_INDEXED = 16_000, 2000
_LONGEST_NAME = 63


def write(rows: StoreRows, table: str, folder: pathlib.Path) -> str:
    """Writes both files into a folder; returns how to go on.

    Raises:
      UserError: the vectors are too long for pgvector, or a name for PostgreSQL.
    """
    if rows.dimension > _MOST_DIMENSIONS:
        raise UserError(
            f"pgvector holds vectors of up to {_MOST_DIMENSIONS:,} dimensions, and these have "
            f"{rows.dimension:,}; export fewer with --mode=embed --export_dim."
        )
    for name in rows.columns:
        if len(name.encode()) > _LONGEST_NAME:
            raise UserError(
                f"PostgreSQL takes names of up to {_LONGEST_NAME} bytes; leave column '{name}' "
                "out of --export_columns, or rename it in --items."
            )
    schema = pa.schema([pa.field(name, _csv_type(kind)) for name, kind in _types(rows)])
    with arrow_csv.CSVWriter(folder / ROWS, schema) as out:
        for batch in _csv_batches(rows, schema):
            out.write_batch(batch)
    (folder / SQL).write_text(_sql(rows, table), encoding="utf-8")
    return f"cd {{}} && psql -v ON_ERROR_STOP=1 -f {SQL} DATABASE"


def _types(rows: StoreRows) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in rows.schema]


def _csv_type(kind: pa.DataType) -> pa.DataType:
    """Texts are quoted, so that an empty text is none that is missing; numbers are not."""
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return kind if number else pa.string()


def _csv_batches(rows: StoreRows, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in rows.batches():
        columns = []
        for field, column in zip(schema, batch.columns, strict=True):
            if field.name == VECTOR:
                column = pa.array(vector_texts(column), pa.string())
            elif pa.types.is_list(column.type):
                texts = [None if v is None else _array_text(v) for v in column.to_pylist()]
                column = pa.array(texts, pa.string())
            else:
                column = column.cast(field.type)
            columns.append(column)
        yield pa.record_batch(columns, schema=schema)


def _array_text(values: list[str | None]) -> str:
    """A list of texts as PostgreSQL writes an array: {"a","b"}."""
    parts = []
    for value in values:
        escaped = None if value is None else value.replace("\\", "\\\\").replace('"', '\\"')
        parts.append("NULL" if escaped is None else f'"{escaped}"')
    return "{" + ",".join(parts) + "}"


def _sql_type(name: str, kind: pa.DataType, dimension: int) -> str:
    if name == VECTOR:
        return f"vector({dimension}) NOT NULL"
    if name in (ID, VERSION):
        return "text PRIMARY KEY" if name == ID else "text NOT NULL"
    if pa.types.is_list(kind):
        return "text[]"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    for test, found in (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "bigint"),
        (pa.types.is_floating, "double precision"),
        (pa.types.is_date, "date"),
    ):
        if test(kind):
            return found
    return "text"


def _sql(rows: StoreRows, table: str) -> str:
    columns = ",\n".join(
        f'  "{name}" {_sql_type(name, kind, rows.dimension)}' for name, kind in _types(rows)
    )
    operators, order = ("vector_cosine_ops", "<=>") if rows.by_cosine else ("vector_ip_ops", "<#>")
    index = f'CREATE INDEX ON "{table}" USING hnsw ("{VECTOR}" {operators});'
    if rows.dimension > _MOST_INDEXED:
        index = (
            f"-- An index over {VECTOR} holds up to {_MOST_INDEXED} dimensions: search is exact."
        )
    return f"""-- psql -v ON_ERROR_STOP=1 -f {SQL} DATABASE, started in this folder.
-- Nothing is changed if a statement fails, such as the creation of a table that is there already.
BEGIN;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE "{table}" (
{columns}
);
\\copy "{table}" FROM '{ROWS}' WITH (FORMAT csv, HEADER)
{index}
COMMIT;
-- Ten neighbors of a vector:
-- SELECT "{ID}" FROM "{table}" ORDER BY "{VECTOR}" {order} '[...]' LIMIT 10;
"""
