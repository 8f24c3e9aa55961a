"""A small catalog with odd ids and columns of every type, as rows for a vector store."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.data.ids import IdTable

IDS = [
    "plain", 'quo"te', "com,ma", "tab\there", "line\nbreak", "back\\slash", "ünï 日本", "it's",
    "{a}", "\\N", "null", "3",
]  # fmt: skip
_COUNT = len(IDS)
_DAY = datetime.date(2024, 2, 29)
_TIME = datetime.datetime(2024, 2, 29, 12, 30, 1, 250)
COLUMNS = {
    "Unit price": pa.array([None, 0.1, -2e-7, 3.0, *([1.5] * (_COUNT - 4))], pa.float64()),
    "stock": pa.array([None, -(2**62), 0, *range(_COUNT - 3)], pa.int64()),
    "sold": pa.array([None, True, False] * (_COUNT // 3), pa.bool_()),
    "title": pa.array([None, "", *(f"a {name}" for name in IDS[2:])], pa.large_string()),
    "tags": pa.array(
        [None, [], ['a"b', "c\\d", "e,f"], *([["x", "y"]] * (_COUNT - 3))],
        pa.list_(pa.large_string()),
    ),
    "day": pa.array([None, *([_DAY] * (_COUNT - 1))], pa.date32()),
    "seen": pa.array([None, *([_TIME] * (_COUNT - 1))], pa.timestamp("us")),
}


def catalog() -> tuple[ItemColumns, np.ndarray]:
    """Columns of the items, and vectors float32 [12, 5] of different lengths."""
    types = {name: column.type for name, column in COLUMNS.items()}
    ids = IdTable(pa.array(IDS, pa.large_string()))
    vectors = np.random.default_rng(5).normal(size=(_COUNT, 5)).astype(np.float32)
    vectors[:, -1] += 3
    vectors[0, 0], vectors[1, 0] = 1e-7, 0.0
    return ItemColumns(ids, "sku", types, COLUMNS.__getitem__), vectors
