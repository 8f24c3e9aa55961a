"""Reads what a store holds: an export of this program, a LanceDB table, or a dump of a store.

A dump is a table with the columns item_id and embedding, and model_version if it has one:

  .parquet           embedding is a list of numbers
  .csv               embedding is text, as pgvector writes it: [1,2,3]
  .json              a list of rows, or the answer of a store: {"result": {"points": [...]}} of
                     Qdrant, {"hits": {"hits": [...]}} of OpenSearch, {"data": [...]} of Milvus
  .ndjson, .jsonl    one row a line; the actions of a bulk request are passed over

A row of JSON may hold its columns under "payload" or "_source", and its vector as "vector".
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.stores import lance_table, redis_commands
from pinsage_jax.stores.canary import Held
from pinsage_jax.stores.rows import ID, VECTOR, VERSION

# Written beside the files of a store, with its name and table.
MANIFEST = "export.json"
_ROWS_OF = {
    "pgvector": "items.csv",
    "qdrant": "points-*.json",
    "milvus": "part-*.parquet",
    "opensearch": "bulk-*.ndjson",
    "elasticsearch": "bulk-*.ndjson",
    "redis": "items.resp",
    "huggingface": "embeddings/part-*.parquet",
}
_LISTS = (("points",), ("result", "points"), ("result",), ("hits", "hits"), ("data",), ("rows",))
_ACTIONS = {"index", "create", "update"}


def lance_at(path: pathlib.Path, table: str) -> tuple[pathlib.Path, str] | None:
    """The database and the table of LanceDB at a path; None if there is another thing."""
    if path.suffix == ".lance":
        return path.parent, path.stem
    about = export_at(path)
    if about is not None:
        return (path, about["table"]) if about["store"] == "lancedb" else None
    return (path, table) if path.is_dir() and any(path.glob("*.lance")) else None


def export_at(path: pathlib.Path) -> dict[str, Any] | None:
    """What is noted of an export that this program wrote; None: there is none at the path."""
    if not (path / MANIFEST).is_file():
        return None
    about = files.read_json(path / MANIFEST)
    known = isinstance(about, dict) and {"store", "table", "files"} <= about.keys()
    return about if known and str(about.get("program", "")).startswith("pinsage_jax") else None


def read(path: pathlib.Path, table: str) -> Held:
    """What a store holds at a path.

    Args:
      table: the table of a database of LanceDB.

    Raises:
      UserError: there is nothing that can be read, or a column is missing.
    """
    if not path.exists():
        raise UserError(f"--check={path} does not exist.")
    if (lance := lance_at(path, table)) is not None:
        return _held(f"{lance[0]}/{lance[1]}.lance", [lance_table.read(*lance)])
    if path.is_dir():
        about = export_at(path)
        if about is None:
            raise UserError(
                f"--check={path} is neither an export nor a LanceDB database; name a file that was "
                "dumped from the store."
            )
        parts = sorted(path.glob(_ROWS_OF[about["store"]]))
        return _held(str(path), [_table(part) for part in parts])
    return _held(str(path), [_table(path)])


def _held(label: str, tables: list[pa.Table]) -> Held:
    ids, vectors, versions = [], [], []
    for found in tables:
        for name in (ID, VECTOR):
            if name not in found.column_names:
                raise UserError(f"{label} has no column '{name}'.")
        ids += found.column(ID).cast(pa.string()).chunks
        vectors.append(_matrix(found.column(VECTOR), label))
        if VERSION in found.column_names:
            versions += found.column(VERSION).cast(pa.string()).chunks
    every = pa.chunked_array(ids, pa.string()).combine_chunks()
    if not len(every):
        raise UserError(f"{label} holds no row.")
    if len({part.shape[1] for part in vectors if len(part)}) > 1:
        raise UserError(f"{label} holds vectors of different lengths.")
    of_rows = pa.chunked_array(versions, pa.string()).combine_chunks()
    matrix = np.concatenate([part for part in vectors if len(part)])
    return Held(label, every, matrix, of_rows if len(of_rows) == len(every) else None)


def _matrix(column: pa.ChunkedArray, label: str) -> np.ndarray:
    """Vectors float32 [n, d] of lists of numbers, or of their texts."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.to_pylist()
        column = pa.chunked_array([_parsed(lambda: [json.loads(t) for t in texts], label)])
    if not len(column):
        return np.empty((0, 0), np.float32)
    rows = column.combine_chunks()
    if column.null_count or rows.flatten().null_count:
        raise UserError(f"{label} has a row without a vector.")
    numbers = rows.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    width, left = divmod(len(numbers), len(rows))
    even = pa.types.is_fixed_size_list(rows.type) or set(
        np.diff(rows.offsets.to_numpy(zero_copy_only=False)).tolist()
    ) == {width}
    if left or not even:
        raise UserError(f"{label} holds vectors of different lengths.")
    return numbers.reshape(len(rows), width)


def _table(path: pathlib.Path) -> pa.Table:
    """Ids, vectors and versions of one file."""
    kinds: dict[str, Callable[[pathlib.Path], pa.Table]] = {
        ".parquet": pq.read_table,
        ".csv": _csv,
        ".json": lambda file: _rows(_listed(json.loads(file.read_text(encoding="utf-8")))),
        ".ndjson": lambda file: _rows(_lines(file)),
        ".jsonl": lambda file: _rows(_lines(file)),
        ".resp": lambda file: _rows(redis_commands.read(file)),
    }
    if path.suffix not in kinds:
        raise UserError(
            f"--check={path}: a dump ends in {', '.join(name for name in kinds)}; convert it."
        )
    return _parsed(lambda: kinds[path.suffix](path), str(path))


def _parsed(read_it: Callable[[], Any], label: str) -> Any:
    """What a function reads; what it stumbles over as UserError."""
    try:
        return read_it()
    except (ValueError, TypeError, AttributeError, KeyError, pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{label} cannot be read ({message}).") from None


def _csv(path: pathlib.Path) -> pa.Table:
    texts = {ID: pa.string(), VECTOR: pa.string(), VERSION: pa.string()}
    options = arrow_csv.ConvertOptions(column_types=texts)
    parsing = arrow_csv.ParseOptions(newlines_in_values=True)
    found = arrow_csv.read_csv(path, convert_options=options, parse_options=parsing)
    return found.select([name for name in texts if name in found.column_names])


def _lines(path: pathlib.Path) -> Iterator[Any]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line) if line.strip() else None
            if row is not None and not (len(row) == 1 and row.keys() <= _ACTIONS):
                yield row


def _listed(value: Any) -> list[Any]:
    """The rows of an answer, wherever it holds them."""
    for keys in _LISTS:
        inner = value
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, list):
            return inner
    return value


def _rows(values: Iterable[Any]) -> pa.Table:
    ids, vectors, versions = [], [], []
    for value in values:
        row = value | (value.get("payload") or {}) | (value.get("_source") or {})
        ids.append(str(row[ID]))
        vectors.append(np.asarray(row[VECTOR] if VECTOR in row else row["vector"], np.float32))
        versions.append(row.get(VERSION))
    columns = {ID: pa.array(ids, pa.string()), VECTOR: pa.array(vectors, pa.list_(pa.float32()))}
    if any(version is not None for version in versions):
        columns[VERSION] = pa.array(versions, pa.string())
    return pa.table(columns)
