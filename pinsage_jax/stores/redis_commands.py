"""Redis with its query engine: commands in the Redis protocol (RESP).

  index.redis     FT.CREATE, as text:      redis-cli < index.redis
  items.resp      HSET of every item:      redis-cli --pipe < items.resp

An item is the hash NAME:ITEM_ID.  Its vector is float32, little-endian, as the index reads it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.core.errors import UserError
from pinsage_jax.stores.rows import ID, VECTOR, VERSION, StoreRows
from pinsage_jax.stores.values import payloads

INDEX, ROWS = "index.redis", "items.resp"
# Between the texts of a list.
SEPARATOR = "|"


def write(rows: StoreRows, table: str, folder: pathlib.Path) -> str:
    """Writes both files into a folder; returns how to go on."""
    (folder / INDEX).write_text(_create(rows, table) + "\n", encoding="utf-8")
    with open(folder / ROWS, "wb") as out:
        for batch in rows.batches():
            vectors = batch.column(VECTOR).flatten().to_numpy().astype("<f4")
            vectors = vectors.reshape(len(batch), rows.dimension)
            for payload, vector in zip(payloads(batch), vectors, strict=True):
                parts = [b"HSET", f"{table}:{payload[ID]}".encode()]
                for name, value in payload.items():
                    parts += [name.encode(), _text(value).encode()]
                out.write(_command([*parts, VECTOR.encode(), vector.tobytes()]))
    return f"redis-cli < {{}}/{INDEX}; redis-cli --pipe < {{}}/{ROWS}"


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The fields of every HSET of a file; the vector as float32 [d].

    Raises:
      UserError: the file holds something else.
    """
    with open(path, "rb") as lines:
        while head := lines.readline():
            try:
                parts = [_bulk_string(lines) for _ in range(int(head[1:]))]
            except (ValueError, IndexError):
                raise UserError(f"{path} holds something else than HSET commands.") from None
            fields = {parts[i].decode(): parts[i + 1] for i in range(2, len(parts) - 1, 2)}
            vector = np.frombuffer(fields.pop(VECTOR, b""), "<f4").astype(np.float32)
            yield {name: value.decode() for name, value in fields.items()} | {VECTOR: vector}


def _bulk_string(lines: Any) -> bytes:
    size = int(lines.readline()[1:])
    return lines.read(size + 2)[:-2]


def _command(parts: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return SEPARATOR.join(text for text in value if text is not None)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _create(rows: StoreRows, table: str) -> str:
    metric = "COSINE" if rows.by_cosine else "IP"
    vector = f"VECTOR HNSW 6 TYPE FLOAT32 DIM {rows.dimension} DISTANCE_METRIC {metric}"
    parts = [f"FT.CREATE {table} ON HASH PREFIX 1 {table}: SCHEMA {VECTOR} {vector}"]
    parts += [f"{ID} TAG", f"{VERSION} TAG"]
    parts += [f"{name} {_field_type(column.type)}" for name, column in rows.columns.items()]
    return " ".join(parts)


def _field_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f'TAG SEPARATOR "{SEPARATOR}"'
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "NUMERIC"
    return "TAG" if pa.types.is_boolean(kind) or pa.types.is_temporal(kind) else "TEXT"
