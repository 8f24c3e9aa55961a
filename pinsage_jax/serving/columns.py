"""The values of columns that a request asks to see beside each item, as JSON has them."""

from __future__ import annotations

import datetime
import difflib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.core.errors import UserError


def check_columns(columns: ItemColumns, names: Sequence[str]) -> None:
    """Raises UserError for the first name that is no column of the items."""
    for name in names:
        if name not in columns.types:
            near = difflib.get_close_matches(name, list(columns.types), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "columns are those of --items: " + (
                f"{', '.join(columns.types)}."
            )  # fmt: skip
            raise UserError(f"columns: there is no column '{name[:40]}'; {hint}")


def values_of(columns: ItemColumns, names: Sequence[str], rows: np.ndarray) -> list[dict[str, Any]]:
    """The values of the named columns for each of `rows` int [n]; missing ones are None."""
    taken = pa.array(np.asarray(rows, np.int64))
    found = {name: columns.column(name).take(taken).to_pylist() for name in names}
    return [
        {name: _as_json(values[place]) for name, values in found.items()}
        for place in range(len(rows))
    ]


def _as_json(value: Any) -> Any:
    """A value of a column: times as ISO text; what is not a finite number as None."""
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
