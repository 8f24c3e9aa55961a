"""OpenSearch and Elasticsearch: an index and bodies of bulk requests.

index.json            PUT /NAME
bulk-00000.ndjson ... POST /NAME/_bulk, each about 8 MiB; an item's id is its _id
"""

from __future__ import annotations

import pathlib
from typing import Any

import pyarrow as pa

from pinsage_jax.core.errors import UserError
from pinsage_jax.stores.rows import ID, VECTOR, VERSION, StoreRows
from pinsage_jax.stores.values import dumps, json_files

INDEX, BULK = "index.json", "bulk"
_LONGEST_ID = 512
# Of dense_vector (Elasticsearch) and knn_vector (OpenSearch).
_MOST_DIMENSIONS = {"elasticsearch": 4096, "opensearch": 16_000}


def write_opensearch(rows: StoreRows, table: str, folder: pathlib.Path) -> str:
    """Writes the bodies for OpenSearch into a folder; returns how to go on."""
    space = "cosinesimil" if rows.by_cosine else "innerproduct"
    vector = {
        "type": "knn_vector",
        "dimension": rows.dimension,
        "method": {"name": "hnsw", "engine": "faiss", "space_type": space},
    }
    return _write("opensearch", rows, table, folder, vector, {"index": {"knn": True}})


def write_elasticsearch(rows: StoreRows, table: str, folder: pathlib.Path) -> str:
    """Writes the bodies for Elasticsearch into a folder; returns how to go on."""
    vector = {
        "type": "dense_vector",
        "dims": rows.dimension,
        "index": True,
        "similarity": "cosine" if rows.by_cosine else "max_inner_product",
    }
    return _write("elasticsearch", rows, table, folder, vector, {})


def _write(
    store: str,
    rows: StoreRows,
    table: str,
    folder: pathlib.Path,
    vector: dict[str, Any],
    settings: dict[str, Any],
) -> str:
    """Raises UserError for vectors or ids that are too long."""
    if rows.dimension > (most := _MOST_DIMENSIONS[store]):
        raise UserError(
            f"--to={store}: a vector may have {most:,} dimensions, and these have "
            f"{rows.dimension:,}; export fewer with --mode=embed --export_dim."
        )
    properties = {name: _mapping(name, column.type) for name, column in rows.columns.items()}
    keyword = {"type": "keyword"}
    properties |= {ID: keyword, VERSION: keyword, VECTOR: vector}
    body = {"settings": settings, "mappings": {"dynamic": "strict", "properties": properties}}
    (folder / INDEX).write_text(dumps(body) + "\n", encoding="utf-8")
    for path, found in json_files(rows, folder, BULK, ".ndjson"):
        lines = []
        for payload, text in found:
            if len(payload[ID].encode()) > _LONGEST_ID:
                raise UserError(
                    f"--to={store}: an id may have {_LONGEST_ID} bytes; that of item "
                    f"'{payload[ID][:40]}...' is longer."
                )
            lines.append(dumps({"index": {"_id": payload[ID]}}))
            lines.append(f'{dumps(payload)[:-1]},"{VECTOR}":{text}}}')
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"PUT {{}}/{INDEX} to /{table}, then POST each {BULK}-*.ndjson to /{table}/_bulk"


def _mapping(name: str, kind: pa.DataType) -> dict[str, Any]:
    for test, found in (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "long"),
        (pa.types.is_floating, "double"),
        (pa.types.is_temporal, "date"),
        (pa.types.is_list, "keyword"),
    ):
        if test(kind):
            return {"type": found}
    exact = {"keyword": {"type": "keyword", "ignore_above": 256}}
    return {"type": "text", "fields": exact}
