"""Converts columns of input tables to ids, numbers, vectors, text and times.

Each function takes an Arrow column of one batch, typed (from Parquet) or as text (from
CSV), the column's name, and `where`, which is `tables.Batch.where`: it names a row in
the message of a UserError.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.core.errors import UserError

Where = Callable[[int], str]

# Spellings of a missing number in a text column.  'nan' is none of them: it is an error.
MISSING_NUMBERS = ("", "NA", "N/A", "#N/A", "n/a", "null", "NULL", "Null", "None")
_MAX_ID_LENGTH = 40
_TIME_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
# From 1979 to 2103: the ranges of the units do not overlap.
_PLAUSIBLE_SECONDS = 3 * 10**8, 42 * 10**8
# A share of other numbers, such as 0 where a time is unknown, up to which numbers are dates.
_FEW_TIMES = 0.01
# Ids that a sentence names.
_EXAMPLES = 3


def format_id(value: str) -> str:
    """Formats an id or cell for a message: quoted, escaped and at most 40 characters."""
    return repr(value if len(value) <= _MAX_ID_LENGTH else value[:_MAX_ID_LENGTH] + "...")


def examples(names: list[str]) -> str:
    """Up to _EXAMPLES ids for a sentence: " (such as 'a', 'b')"; empty for none."""
    listed = ", ".join(format_id(name) for name in names[:_EXAMPLES])
    return f" (such as {listed})" if listed else ""


def share(part: int, whole: int) -> str:
    """'12 of 340 (3.5%)'."""
    return f"{part:,} of {whole:,} ({part / max(whole, 1):.1%})"


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


def is_tags(kind: pa.DataType) -> bool:
    """Whether a column type holds lists of strings."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return (lists or pa.types.is_fixed_size_list(kind)) and is_text(kind.value_type)


def categories(
    column: pa.Array, name: str, where: Where, separator: str = ""
) -> tuple[pa.LargeStringArray, np.ndarray]:
    """The categories of each row: those of a list, or of a text cut at `separator`.

    Returns:
      (values, rows): large_string [n] without empty strings, and the row int64 [n] of each,
      ascending; a row has none, one or several.  Blanks around a part of a cut text are
      left out.

    Raises:
      UserError: the column holds other nested values, or text that is not UTF-8.
    """
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if lists or pa.types.is_fixed_size_list(column.type):
        rows = pc.list_parent_indices(column)
        flat = texts(pc.list_flatten(column), name, where)
    else:
        text = texts(column, name, where)
        rows, flat = pa.array(np.arange(len(text))), text
        if separator and pc.any(pc.match_substring(text, separator)).as_py():
            several = pc.match_substring(text, separator)
            cut = pc.split_pattern(text, separator)
            rows, flat = pc.list_parent_indices(cut), pc.list_flatten(cut)
            trimmed = pc.utf8_trim_whitespace(flat)
            flat = pc.if_else(several.take(rows), trimmed, flat)
    present = pc.greater(pc.binary_length(flat), 0)
    kept = rows.filter(present).to_numpy(zero_copy_only=False).astype(np.int64)
    return flat.filter(present), kept


def ids(column: pa.Array, name: str, where: Where) -> pa.LargeStringArray:
    """Ids as text without nulls or empty strings.

    Raises:
      UserError: an id is null or empty or not UTF-8, or the column holds neither text nor
        integers.
    """
    kind = column.type
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) or binary):
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


def integer_ids(column: pa.Array, name: str, where: Where) -> pa.Int64Array:
    """Ids of an integer column as int64.

    Raises:
      UserError: an id is null.
    """
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise UserError(f"Column '{name}' is empty in {where(row)}; every row needs an id.")
    return column.cast(pa.int64())


def numbers(column: pa.Array, name: str, where: Where) -> pa.DoubleArray:
    """Numbers as float64; missing values become null, NaN and infinity are kept.

    Raises:
      UserError: a text value is not a number, or the column holds neither numbers nor text.
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
    text = without_missing(column)
    lowered = pc.utf8_lower(text)
    text = pc.if_else(pc.equal(lowered, "true"), "1", text)
    text = pc.if_else(pc.equal(lowered, "false"), "0", text)
    return _cast(text, pa.float64(), name, where, "not a number")


def weights(column: pa.Array, name: str, where: Where) -> np.ndarray:
    """Edge weights, float32 [rows].

    Raises:
      UserError: a weight is missing, not finite, or not above 0.
    """
    values = numbers(column, name, where)
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise UserError(f"Column '{name}' is empty in {where(row)}; every edge needs a weight.")
    with np.errstate(over="ignore", under="ignore"):
        weights = values.to_numpy(zero_copy_only=False).astype(np.float32)
    valid = np.isfinite(weights) & (weights > 0)
    if not valid.all():
        row = int(np.argmin(valid))
        raise UserError(
            f"Column '{name}' is {values[row].as_py()} in {where(row)}; "
            "weights must be finite and above 0."
        )
    return weights


def vectors(column: pa.Array, name: str, where: Where) -> tuple[np.ndarray, np.ndarray, int]:
    """Vectors as a float64 matrix.

    The column holds lists of numbers, or text of numbers separated by spaces, commas or
    semicolons with or without brackets.  A null or empty vector counts as missing.

    Returns:
      (values, rows, width): values float64 [present, width], the row of each int64
      [present], and the vectors' length; width is 0 if all vectors are missing.

    Raises:
      UserError: vectors of the batch differ in length, a number inside a vector is missing
        or unreadable, or the column has another type.
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
    """Text, with missing values as empty strings; numbers and booleans become text.

    Raises:
      UserError: the column holds nested values or text that is not UTF-8.
    """
    if pa.types.is_nested(column.type):
        raise UserError(f"Column '{name}' holds {column.type} values ({where(0)}), not text.")
    try:
        column = column.cast(pa.large_string())
        column.validate(full=True)
    except pa.ArrowInvalid:
        raise UserError(f"Column '{name}' holds text that is not UTF-8 ({where(0)}).") from None
    return pc.fill_null(column, "")


def times(column: pa.Array, name: str, where: Where, kind: str | None) -> tuple[np.ndarray, str]:
    """Times as int64 [rows], and their kind, 'number' or 'timestamp'.

    Numbers keep their unit and are rounded down.  Dates and timestamps become
    microseconds since 1970-01-01 in UTC.

    Args:
      column: the column.
      name: its name.
      where: names a row in messages.
      kind: the kind of earlier batches; None for the first batch.

    Raises:
      UserError: a value is missing, or is neither a number nor a date, or is of another
        kind than earlier ones.
    """
    values, found = _times(column, name, where, kind)
    if kind is not None and found != kind:
        raise UserError(
            f"Column '{name}' holds a {found} in {where(0)} but a {kind} before; all times of a "
            "table need one kind and one unit."
        )
    return values, found


class TimeUnits:
    """Finds numbers that count from 1970 in different units, such as of files of two programs."""

    def __init__(self, name: str):
        """Takes the name of the column, for the message."""
        self._name = name
        self._first: dict[str, str] = {}
        self._count = self._others = 0

    def add(self, values: np.ndarray, kind: str, where: Where) -> None:
        """Adds a batch of `times`, int64 [rows], and their kind."""
        if kind != "number" or not len(values):
            return
        self._count += len(values)
        others = len(values)
        for unit, per_second in _TIME_UNITS.items():
            low, high = (seconds * per_second for seconds in _PLAUSIBLE_SECONDS)
            inside = (values >= low) & (values < high)
            if inside.any():
                self._first.setdefault(unit, where(int(np.argmax(inside))))
                others -= int(inside.sum())
        self._others += others

    def check(self) -> None:
        """Raises UserError if nearly all numbers are times since 1970, of more than one unit."""
        if len(self._first) < 2 or self._others > _FEW_TIMES * self._count:
            return
        (one, here), (other, there) = list(self._first.items())[:2]
        raise UserError(
            f"Column '{self._name}' counts {one} since 1970 in {here}, but {other} in {there}; "
            "write all times of a table in one unit."
        )


def _times(column: pa.Array, name: str, where: Where, kind: str | None) -> tuple[np.ndarray, str]:
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
            kind = "number" if _can_cast(column.slice(0, 1), pa.float64()) else "timestamp"
        if kind == "timestamp":
            return _text_times(column, name, where), kind
        if _can_cast(column, pa.int64()):
            return column.cast(pa.int64()).to_numpy(), kind
        column = _cast(column, pa.float64(), name, where, "neither a number nor a date")
    if not is_number(column.type):
        raise UserError(f"Column '{name}' holds {column.type} values ({where(0)}), not times.")
    values = numbers(column, name, where).to_numpy(zero_copy_only=False)
    valid = np.abs(values) < 2.0**63
    if not valid.all():
        row = int(np.argmin(valid))
        raise UserError(f"Column '{name}' is {values[row]} in {where(row)}, which is not a time.")
    return np.floor(values).astype(np.int64), "number"


def _text_times(column: pa.Array, name: str, where: Where) -> np.ndarray:
    zoned = pa.timestamp("us", "UTC")
    for stamp in (pa.timestamp("us"), zoned):
        if _can_cast(column, stamp):
            return column.cast(stamp).cast(pa.int64()).to_numpy()
    # Some row cannot be parsed; the first row tells whether times have a zone.
    stamp = zoned if _can_cast(column.slice(0, 1), zoned) else pa.timestamp("us")
    problem = "neither a number nor a date like 2024-05-31 12:00:00"
    return _cast(column, stamp, name, where, problem).cast(pa.int64()).to_numpy()


def without_missing(column: pa.Array) -> pa.LargeStringArray:
    """Trimmed text, null where it spells a missing number."""
    text = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    missing = pc.is_in(text, value_set=pa.array(MISSING_NUMBERS, pa.large_string()))
    return pc.if_else(missing, pa.scalar(None, pa.large_string()), text)


def _can_cast(column: pa.Array, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _cast(column: pa.Array, kind: pa.DataType, name: str, where: Where, problem: str) -> pa.Array:
    """Casts a text column; UserError names the first row that cannot be cast."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        # Arrow does not name the row, so a binary search finds it.
        low, high = 0, len(column)
        while high - low > 1:
            middle = (low + high) // 2
            if _can_cast(column.slice(low, middle - low), kind):
                low = middle
            else:
                high = middle
        value = format_id(column[low].as_py())
        raise UserError(
            f"Column '{name}' is {value} in {where(low)}, which is {problem}."
        ) from None
