"""Milvus: Parquet files for its bulk import, and bodies of its REST requests.

collection.json        POST /v2/vectordb/collections/create
part-00000.parquet ... to be put into the bucket of the Milvus instance
import.json            POST /v2/vectordb/jobs/import/create; names the files of the bucket
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pinsage_jax.core.errors import UserError
from pinsage_jax.stores.rows import ID, VECTOR, VERSION, StoreRows
from pinsage_jax.stores.values import dumps

COLLECTION, IMPORT, ROWS = "collection.json", "import.json", "part"
_ROWS_PER_FILE = 250_000
_LONGEST_TEXT, _LONGEST_LIST = 65_535, 4096


def write(rows: StoreRows, table: str, folder: pathlib.Path) -> str:
    """Writes the files into a folder; returns how to go on.

    Raises:
      UserError: a name, a text or a list is none that Milvus takes.
    """
    fields = [_field(name, column) for name, column in rows.columns.items()]
    key = _text_field(ID, rows.ids) | {"isPrimary": True}
    size = {"elementTypeParams": {"dim": str(rows.dimension)}}
    vector = {"fieldName": VECTOR, "dataType": "FloatVector", **size}
    version = _text_field(VERSION, pa.array([rows.version]))
    metric = "COSINE" if rows.by_cosine else "IP"
    index = {"fieldName": VECTOR, "indexName": VECTOR, "metricType": metric}
    parameters = {"params": {"index_type": "AUTOINDEX"}}
    schema = {"autoId": False, "enableDynamicField": False}
    body = {
        "collectionName": table,
        "schema": schema | {"fields": [key, vector, version, *fields]},
        "indexParams": [index | parameters],
    }
    (folder / COLLECTION).write_text(dumps(body) + "\n", encoding="utf-8")
    names = []
    for number, batch in enumerate(rows.batches(_ROWS_PER_FILE)):
        names.append(f"{ROWS}-{number:05d}.parquet")
        columns = {name: _written(batch.column(name)) for name in batch.schema.names}
        pq.write_table(pa.table(columns), folder / names[-1])
    sources = {"collectionName": table, "files": [[name] for name in names]}
    (folder / IMPORT).write_text(dumps(sources) + "\n", encoding="utf-8")
    return f"POST {{}}/{COLLECTION}, copy {ROWS}-*.parquet into Milvus's bucket, POST {IMPORT}"


def _written(column: pa.Array) -> pa.Array:
    """A column as the import reads it: lists of any length, times as ISO text."""
    if pa.types.is_fixed_size_list(column.type):
        return column.cast(pa.list_(pa.float32()))
    if pa.types.is_temporal(column.type):
        return pa.array([None if v is None else v.isoformat() for v in column.to_pylist()])
    if pa.types.is_list(column.type):
        return column.cast(pa.list_(pa.string()))
    return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column


def _field(name: str, column: pa.Array) -> dict[str, Any]:
    """A column as a field of the collection, which may be missing."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise UserError(
            f"--to=milvus: names of fields have letters without accents, digits and _; leave "
            f"column '{name}' out of --export_columns, or rename it in --items."
        )
    nullable = {"nullable": True}
    if pa.types.is_list(column.type):
        text = _text_field(name, column.flatten())["elementTypeParams"]
        longest = pc.max(pc.list_value_length(column)).as_py() or 0
        if longest > _LONGEST_LIST:
            raise UserError(
                f"--to=milvus: a list may have {_LONGEST_LIST:,} entries; leave column '{name}' "
                "out of --export_columns."
            )
        kind = {"dataType": "Array", "elementDataType": "VarChar"}
        limits = {"elementTypeParams": text | {"max_capacity": str(_LONGEST_LIST)}}
        return {"fieldName": name, **kind, **limits, **nullable}
    for test, found in (
        (pa.types.is_boolean, "Bool"),
        (pa.types.is_integer, "Int64"),
        (pa.types.is_floating, "Double"),
    ):
        if test(column.type):
            return {"fieldName": name, "dataType": found, **nullable}
    texts = pa.array([], pa.string()) if pa.types.is_temporal(column.type) else column
    return _text_field(name, texts) | nullable


def _text_field(name: str, texts: pa.Array) -> dict[str, Any]:
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    if longest > _LONGEST_TEXT:
        raise UserError(
            f"--to=milvus: a text may have {_LONGEST_TEXT:,} bytes, and column '{name}' has one of "
            f"{longest:,}; leave it out of --export_columns."
        )
    limit = {"max_length": str(_LONGEST_TEXT)}
    return {"fieldName": name, "dataType": "VarChar", "elementTypeParams": limit}
