"""Columns of input tables as ids, numbers, vectors and times.

Each function takes one Arrow column of one batch, typed (Parquet) or as text
(CSV), and says in one sentence which row is wrong: `where(index)` is
`tables.Batch.where`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.core.errors import UserError

Where = Callable[[int], str]

# Spellings of a missing number in a text column; 'nan' is not one: it is refused.
MISSING_NUMBERS = ("", "NA", "N/A", "#N/A", "n/a", "null", "NULL", "Null", "None")
_SHOWN = 40


def shown_id(value: str) -> str:
    """An id or cell for a message: quoted, on one line and not too long."""
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column type holds text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"


def is_number(kind: pa.DataType) -> bool:
    """Whether a column type holds integers, floats, decimals or booleans."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column type holds lists of numbers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return (lists or pa.types.is_fixed_size_list(kind)) and is_number(kind.value_type)


def ids(column: pa.Array, name: str, where: Where) -> pa.LargeStringArray:
    """Ids as text, without nulls or empty strings.

    Raises:
      UserError: a null or empty id, text that is not UTF-8, or a column that holds
        neither text nor integers.
    """
    kind = column.type
    bytes_like = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    known = is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) or bytes_like
    if not known:
        raise UserError(
            f"Column '{name}' holds {kind} values ({where(0)}); ids must be text or integers."
        )
    try:
        column = column.cast(pa.large_string())
        column.validate(full=True)
    except pa.ArrowInvalid:
        raise UserError(f"Column '{name}' holds ids that are not UTF-8 ({where(0)}).") from None
    missing = pc.fill_null(pc.equal(pc.binary_length(column), 0), True)
    if (row := pc.index(missing, True).as_py()) >= 0:
        raise UserError(f"Column '{name}' is empty in {where(row)}; every row needs an id.")
    return column


def whole_ids(column: pa.Array, name: str, where: Where) -> pa.Int64Array:
    """Ids of an integer column as int64, without nulls, else UserError with the row."""
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise UserError(f"Column '{name}' is empty in {where(row)}; every row needs an id.")
    return column.cast(pa.int64())


def numbers(column: pa.Array, name: str, where: Where) -> pa.DoubleArray:
    """Numbers as float64; missing values are null, NaN and infinity are kept.

    Raises:
      UserError: a text value that is not a number.
    """
    kind = column.type
    if pa.types.is_boolean(kind):
        return column.cast(pa.uint8()).cast(pa.float64())
    if pa.types.is_integer(kind):
        return column.cast(pa.float64(), safe=False)
    if is_number(kind) or pa.types.is_null(kind):
        return column.cast(pa.float64())
    if not is_text(kind):
        raise UserError(f"Column '{name}' holds {kind} values ({where(0)}), not numbers.")
    text = _without_missing(column)
    lowered = pc.utf8_lower(text)
    text = pc.if_else(pc.equal(lowered, "true"), "1", text)
    text = pc.if_else(pc.equal(lowered, "false"), "0", text)
    return _cast(text, pa.float64(), name, where, "not a number")


def weights(column: pa.Array, name: str, where: Where) -> np.ndarray:
    """Edge weights float32 [rows], each finite and above 0, else UserError with the row."""
    values = numbers(column, name, where)
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise UserError(f"Column '{name}' is empty in {where(row)}; every edge needs a weight.")
    with np.errstate(over="ignore", under="ignore"):
        weights = values.to_numpy(zero_copy_only=False).astype(np.float32)
    good = np.isfinite(weights) & (weights > 0)
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(
            f"Column '{name}' is {values[row].as_py()} in {where(row)}; "
            "weights must be finite and above 0."
        )
    return weights


def vectors(column: pa.Array, name: str, where: Where) -> tuple[np.ndarray, np.ndarray, int]:
    """Vectors as one float64 matrix.

    Typed lists, or text of numbers separated by spaces or commas, in brackets or
    not.  A null or empty vector is missing.

    Returns:
      (values [present, width], rows int64 [present], width); width 0 if none is present.

    Raises:
      UserError: unequal lengths in the batch, a missing or unreadable number inside a
        vector, or a column of another type.
    """
    kind = column.type
    if is_text(kind):
        text = pc.utf8_trim(column.cast(pa.large_string()), " \t\r\n[]()")
        text = pc.replace_substring_regex(text, r"[\s,;]+", " ")
        text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text)
        column = pc.split_pattern(text, " ")
    elif pa.types.is_null(kind):
        return np.empty((0, 0)), np.empty(0, np.int64), 0
    elif not is_vector(kind):
        raise UserError(
            f"Column '{name}' holds {kind} values ({where(0)}), not vectors of numbers."
        )
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(lengths > 0)
    if len(rows) == 0:
        return np.empty((0, 0)), rows, 0
    width = int(lengths[rows[0]])
    if (unequal := np.flatnonzero(lengths[rows] != width)).size:
        row = int(rows[unequal[0]])
        raise UserError(
            f"Column '{name}' holds {lengths[row]} numbers in {where(row)} "
            f"but {width} in {where(int(rows[0]))}; all vectors need one length."
        )
    present = column if len(rows) == len(column) else column.take(pa.array(rows))
    flat = present.flatten()
    flat = numbers(flat, name, lambda index: where(int(rows[index // width])))
    if flat.null_count:
        row = int(rows[pc.index(flat.is_null(), True).as_py() // width])
        raise UserError(f"Column '{name}' has a missing number inside the vector of {where(row)}.")
    return flat.to_numpy(zero_copy_only=False).reshape(len(rows), width), rows, width


def texts(column: pa.Array, name: str, where: Where) -> pa.LargeStringArray:
    """Text with missing values as empty strings; numbers and booleans are spelled out."""
    if pa.types.is_nested(column.type):
        raise UserError(f"Column '{name}' holds {column.type} values ({where(0)}), not text.")
    try:
        column = column.cast(pa.large_string())
        column.validate(full=True)
    except pa.ArrowInvalid:
        raise UserError(f"Column '{name}' holds text that is not UTF-8 ({where(0)}).") from None
    return pc.fill_null(column, "")


def times(column: pa.Array, name: str, where: Where, kind: str | None) -> tuple[np.ndarray, str]:
    """Times as int64 [rows], and their kind.

    Numbers keep their unit and lose their fraction (kind 'number'); dates and
    timestamps become microseconds since 1970 in UTC (kind 'timestamp').

    Args:
      kind: the kind found in earlier batches, or None.

    Raises:
      UserError: a value that is missing or is neither.
    """
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise UserError(f"Column '{name}' is empty in {where(row)}; every edge needs a time.")
    stamps = pa.types.is_temporal(column.type) and not pa.types.is_time(column.type)
    if stamps and not pa.types.is_duration(column.type):
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s"))
        zone = getattr(column.type, "tz", None)
        column = column.cast(pa.timestamp("us", zone), safe=False)
        return column.cast(pa.int64()).to_numpy(), "timestamp"
    if pa.types.is_integer(column.type) and column.type != pa.uint64():
        return column.cast(pa.int64()).to_numpy(), "number"
    if is_text(column.type):
        if kind is None:
            kind = "number" if _casts(column.slice(0, 1), pa.float64()) else "timestamp"
        if kind == "timestamp":
            return _text_times(column, name, where), kind
        if _casts(column, pa.int64()):
            return column.cast(pa.int64()).to_numpy(), kind
        column = _cast(column, pa.float64(), name, where, "neither a number nor a date")
    if not is_number(column.type):
        raise UserError(f"Column '{name}' holds {column.type} values ({where(0)}), not times.")
    values = numbers(column, name, where).to_numpy(zero_copy_only=False)
    good = np.abs(values) < 2.0**63
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(f"Column '{name}' is {values[row]} in {where(row)}, which is not a time.")
    return np.floor(values).astype(np.int64), "number"


def _text_times(column: pa.Array, name: str, where: Where) -> np.ndarray:
    for stamp in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        if _casts(column, stamp):
            return column.cast(stamp).cast(pa.int64()).to_numpy()
    zoned = (
        pa.timestamp("us", "UTC") if _casts(column.slice(0, 1), pa.timestamp("us", "UTC")) else None
    )
    stamp = zoned or pa.timestamp("us")
    found = _cast(
        column, stamp, name, where, "neither a number nor a date like 2024-05-31 12:00:00"
    )
    return found.cast(pa.int64()).to_numpy()


def _without_missing(column: pa.Array) -> pa.LargeStringArray:
    text = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    missing = pc.is_in(text, value_set=pa.array(MISSING_NUMBERS, pa.large_string()))
    return pc.if_else(missing, pa.scalar(None, pa.large_string()), text)


def _casts(column: pa.Array, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _cast(column: pa.Array, kind: pa.DataType, name: str, where: Where, fault: str) -> pa.Array:
    """Casts text, or names the first row that cannot be."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        low, high = 0, len(column)
        while high - low > 1:
            middle = (low + high) // 2
            if _casts(column.slice(low, middle - low), kind):
                low = middle
            else:
                high = middle
        shown = shown_id(column[low].as_py())
        raise UserError(f"Column '{name}' is {shown} in {where(low)}, which is {fault}.") from None
