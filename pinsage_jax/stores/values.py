"""Values of rows as text and JSON.

A number of a vector is written with the fewest digits that give the same float32 again.
"""

from __future__ import annotations

import datetime
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.stores.rows import VECTOR, StoreRows

# Qdrant refuses requests above 32 MiB, unless it is told otherwise.
_FILE_BYTES = 8 << 20
# Of JSON: a number of a vector, and the rest of a row.
_NUMBER_BYTES, _ROW_BYTES = 12, 1000


def vector_texts(vectors: pa.Array) -> list[str]:
    """Vectors as text: [0.5,-1,2e-05]; valid JSON, and how pgvector writes them.

    Args:
      vectors: fixed-size lists of float32, finite.
    """
    numbers = vectors.flatten().cast(pa.string())
    lists = pa.FixedSizeListArray.from_arrays(numbers, vectors.type.list_size)
    joined = pc.binary_join(lists.cast(pa.list_(pa.string())), ",")
    return [f"[{text}]" for text in joined.to_pylist()]


def json_value(value: Any) -> Any:
    """A value of a column as JSON has it: times as ISO text, NaN and infinity as null."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def payloads(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows without their vectors, as JSON has them; missing values are left out."""
    names = [name for name in batch.schema.names if name != VECTOR]
    for row in batch.select(names).to_pylist():
        values = ((name, json_value(value)) for name, value in row.items())
        yield {name: value for name, value in values if value is not None}


def dumps(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def json_files(
    rows: StoreRows, folder: pathlib.Path, stem: str, suffix: str
) -> Iterator[tuple[pathlib.Path, Iterator[tuple[dict[str, Any], str]]]]:
    """Files STEM-00000SUFFIX, ... that hold all rows, each of about 8 MiB.

    Returns:
      For each file its path and its rows: (payload, vector as text).
    """
    size = max(_FILE_BYTES // (rows.dimension * _NUMBER_BYTES + _ROW_BYTES), 1)
    for number, batch in enumerate(rows.batches(size)):
        texts = vector_texts(batch.column(VECTOR))
        path = folder / f"{stem}-{number:05d}{suffix}"
        yield path, zip(payloads(batch), texts, strict=True)
