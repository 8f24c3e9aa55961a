"""Converts vectors to a column of Spark's tables, one binary value each, and back.

A value is little-endian float32.  Java and Arrow would convert an array column number by
number, but they copy a binary column as a whole.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_FLOAT = np.dtype("<f4")


def to_column(vectors: np.ndarray) -> pa.BinaryArray:
    """Converts float32 [n, w] to a binary column of n values.

    Raises:
      ValueError: the vectors do not fit in one Arrow column.
    """
    rows, width = vectors.shape
    data = np.ascontiguousarray(vectors, _FLOAT)
    size = width * _FLOAT.itemsize
    if rows * size >= 2**31:
        raise ValueError(
            f"{rows} vectors of {width} do not fit in one Arrow column; use smaller batches"
        )
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(size)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), rows, buffers)


def from_column(column: pa.Array, width: int) -> np.ndarray:
    """Converts a binary column to float32 [n, w], without a copy if Arrow has one aligned chunk.

    Raises:
      ValueError: a value is null or of another length.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if len(column) == 0:
        return np.empty((0, width), np.float32)
    _, offsets, data = column.buffers()
    kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    ends = np.frombuffer(offsets, kind)[column.offset : column.offset + len(column) + 1]
    size = width * _FLOAT.itemsize
    if column.null_count or np.any(np.diff(ends) != size):
        raise ValueError(f"a vector is missing or does not have {width} numbers")
    flat = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    # Arrow's own buffers are aligned, but a slice of one may begin anywhere.
    flat = flat if flat.ctypes.data % _FLOAT.itemsize == 0 else flat.copy()
    return flat.view(_FLOAT).reshape(len(column), width)
