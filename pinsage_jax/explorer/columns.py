"""Columns of --items on the page: texts beside each item, and colors of the map.

A column is colored by up to MAX_CATEGORIES categories, the other values together, or, if it
holds numbers or times, along a ramp.

  N items, n rows of them
"""

from __future__ import annotations

import collections
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.core.errors import UserError
from pinsage_jax.explorer.encoding import encode_integers
from pinsage_jax.listing.values import BOOL, TAGS, TEXT, TIME, kind_of

MAX_CATEGORIES = 12
# Columns that the map can be colored by; each takes a byte per item.
MAX_COLORS = 24
# Steps of the ramp of numbers; 255 stands for a missing value.
_STEPS = 254
# Beyond these quantiles all numbers have the color of the end.
_ENDS = (0.02, 0.98)
# Positive numbers whose ends differ by more than this factor are colored by their logarithm.
_LOG_FACTOR = 50.0
_MAX_TEXT_LENGTH = 200


def require_column(columns: ItemColumns, name: str, flag: str) -> None:
    """Raises UserError if a column that a flag names is none of --items."""
    if name in columns.types:
        return
    near = difflib.get_close_matches(name, list(columns.types), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(columns.types)}."
    raise UserError(f"--{flag} names the column '{name}', which --items does not have; {hint}")


def named_columns(value: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in value.split(",") if name.strip()]


def shown_texts(columns: ItemColumns, name: str, rows: np.ndarray | None = None) -> list[Any]:
    """Values of a column as they are displayed, texts or None [n].

    Args:
      rows: int [n]; None: all rows.
    """
    values = columns.column(name)
    if rows is not None:
        values = values.take(pa.array(np.asarray(rows, np.int64)))
    return [_shown(value) for value in values.to_pylist()]


def _shown(value: Any) -> str | None:
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return None if value != value else number_text(value)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _MAX_TEXT_LENGTH else f"{text[: _MAX_TEXT_LENGTH - 3]}..."


def number_text(value: float) -> str:
    """A number with up to six significant digits, without an exponent if it is no extreme one."""
    return f"{value:,.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.6g}"


def color_columns(columns: ItemColumns, first: Sequence[str]) -> list[dict[str, Any]]:
    """Colorings of the map by the columns that have one, those in `first` before the others.

    Returns:
      For each column its name and either `labels`, of its categories, or `ends`, the texts at
      the low end, the middle and the high end of its ramp; and `codes` int64 [N]: a category or
      a step of the ramp from 0 to `steps`; -1: no value.
    """
    names = [*first, *(name for name in list(columns.types)[1:] if name not in first)]
    found: list[dict[str, Any]] = []
    left_out = []
    for name in names:
        coloring = _coloring(name, columns.column(name))
        if coloring is not None and len(found) < MAX_COLORS:
            found.append(coloring)
        elif coloring is not None:
            left_out.append(name)
    if left_out:
        logging.info(
            "explorer: the map can be colored by %d columns, not by %s; --show_columns puts a "
            "column first.",
            MAX_COLORS, ", ".join(left_out),
        )  # fmt: skip
    return found


def encoded(coloring: dict[str, Any], rows: np.ndarray | None = None) -> dict[str, Any]:
    """A coloring of all rows, or of some, as the page holds it."""
    codes = coloring["codes"] if rows is None else coloring["codes"][rows]
    return {**coloring, "codes": encode_integers(codes, 1)}


def _coloring(name: str, values: pa.Array) -> dict[str, Any] | None:
    """The coloring of one column; None if it has no two values, or a text for each item."""
    kind = kind_of(values.type)
    if kind is None or values.null_count == len(values):
        return None
    if kind in (TEXT, BOOL, TAGS):
        return _categories(name, values.to_pylist(), kind)
    missing = pc.is_null(values, nan_is_null=True).to_numpy(zero_copy_only=False)
    numbers = pc.cast(pc.cast(values, pa.timestamp("us")), pa.int64()) if kind == TIME else values
    floats = pc.fill_null(pc.cast(numbers, pa.float64(), safe=False), 0.0)
    array = np.where(missing, 0.0, floats.to_numpy(zero_copy_only=False))
    return _ramp(name, array, ~missing & np.isfinite(array), kind == TIME)


def _categories(name: str, values: list[Any], kind: str) -> dict[str, Any] | None:
    if kind == BOOL:
        values = [None if value is None else "yes" if value else "no" for value in values]
    lists = [[value] if isinstance(value, str) else value or [] for value in values]
    counts = collections.Counter(value for each in lists for value in each if value.strip())
    given = sum(counts.values())
    if len(counts) < 2 or (len(counts) > MAX_CATEGORIES and 2 * len(counts) > given):
        return None
    kept = [value for value, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    kept = kept[:MAX_CATEGORIES]
    code_of = {value: code for code, value in enumerate(kept)}
    codes = np.full(len(values), -1, np.int64)
    for row, each in enumerate(lists):
        # Of several values the first one with a color of its own counts.
        found = [code_of[value] for value in each if value in code_of]
        if found or any(value.strip() for value in each):
            codes[row] = found[0] if found else len(kept)
    labels = [_shown(value) or "" for value in kept]
    others = len(counts) - len(kept)
    return {"name": name, "labels": labels, "others": others, "codes": codes}


def _ramp(
    name: str, numbers: np.ndarray, valid: np.ndarray, is_time: bool
) -> dict[str, Any] | None:
    distinct = np.unique(numbers[valid])
    if len(distinct) < 2:
        return None

    def text(value: float) -> str:
        return str(np.datetime64(int(value), "us").astype("datetime64[D]")) if is_time else (
            number_text(float(f"{value:.3g}") if len(distinct) > MAX_CATEGORIES else value)
        )  # fmt: skip

    if len(distinct) <= MAX_CATEGORIES and not is_time:
        codes = np.where(valid, np.searchsorted(distinct, numbers), -1)
        return {"name": name, "labels": [text(v) for v in distinct], "others": 0, "codes": codes}
    low, high = np.quantile(numbers[valid], _ENDS)
    if low == high:
        low, high = distinct[0], distinct[-1]
    log = low > 0 and high / low > _LOG_FACTOR and not is_time
    scaled, ends = numbers, np.array([low, high])
    if log:
        scaled, ends = np.log(np.where(numbers > 0, numbers, low)), np.log(ends)
    share = np.clip((scaled - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)
    middle = np.exp(ends.mean()) if log else ends.mean()
    texts = [text(low), text(middle), text(high)]
    if distinct[0] < low:
        texts[0] = f"\u2264 {texts[0]}"
    if distinct[-1] > high:
        texts[2] = f"\u2265 {texts[2]}"
    codes = np.where(valid, np.round(share * (_STEPS - 1)), -1).astype(np.int64)
    return {"name": name, "ends": texts, "steps": _STEPS - 1, "log": bool(log), "codes": codes}
