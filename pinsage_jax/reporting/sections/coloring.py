"""Groups of items by the values of a column, few enough to have a color each."""

from __future__ import annotations

import difflib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.core.errors import UserError
from pinsage_jax.reporting import page
from pinsage_jax.reporting.page import Html

# The last color of figures.COLORS is a neutral one, for other and missing values.
MAX_GROUPS = 8
_BINS = 5
_OTHERS = "other or none"


def check_column(columns: ItemColumns, name: str) -> None:
    """Checks that --color_column is a column of --items.

    Raises:
      UserError: it is not; the message suggests the nearest name.
    """
    if name in columns.types:
        return
    near = difflib.get_close_matches(name, list(columns.types), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(columns.types)}."
    raise UserError(
        f"--color_column={name} is not a column of --items with numbers, texts, times or lists; "
        f"{hint}"
    )


def groups_of(columns: ItemColumns, name: str) -> tuple[np.ndarray, list[str]]:
    """Groups items by a column.

    Numbers and times of more than MAX_GROUPS values are cut into fifths; of texts and lists
    (by their first entry) the most frequent values have a group each.

    Args:
      columns: columns of N items, one of which is `name`.

    Returns:
      Indices int64 [N] into the labels, and the labels, at most MAX_GROUPS and one for other
      and missing values, which has items if it is there.
    """
    values = columns.column(name)
    if pa.types.is_list(values.type):
        values = pc.list_element(
            pc.if_else(pc.equal(pc.list_value_length(values), 0), None, values), 0
        )
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, None)
    ordered = not pa.types.is_boolean(values.type) and not _is_text(values.type)
    counts = pc.value_counts(pc.drop_null(values))
    if ordered and len(counts) > MAX_GROUPS:
        return _fifths(values)
    return _frequent(values, counts, ordered)


def note_on_others(name: str, groups: np.ndarray, labels: list[str]) -> Html:
    """A note if most items have a rarer value of the column or none; otherwise nothing."""
    share = float(np.mean(groups == len(labels) - 1)) if _OTHERS in labels[-1:] else 0.0
    if share <= 0.5:
        return page.join(())
    return page.note(
        f"{share:.0%} of the items have another value of ", page.user_text(name, 60), " or none, "
        "and are gray.",
    )  # fmt: skip


def _frequent(
    values: pa.Array, counts: pa.StructArray, ordered: bool
) -> tuple[np.ndarray, list[str]]:
    """The most frequent values, numbers in their order and others by frequency."""
    pairs = [(entry["values"], entry["counts"]) for entry in counts.to_pylist()]
    pairs.sort(key=lambda pair: (-pair[1], str(pair[0])))
    kept = [value for value, _ in pairs[:MAX_GROUPS]]
    if ordered:
        kept.sort()
    group = pc.index_in(values, pa.array(kept, values.type))
    numbers = pc.fill_null(group, len(kept)).to_numpy(zero_copy_only=False).astype(np.int64)
    return _with_others(numbers, [_label(value) for value in kept])


def _fifths(values: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Five ranges with about as many items each; fewer where many values are equal."""
    known = pc.drop_null(values)
    ascending = pc.take(known, pc.sort_indices(known))
    starts = [ascending[len(ascending) * part // _BINS] for part in range(_BINS)]
    kept = [one for place, one in enumerate(starts) if place == 0 or one != starts[place - 1]]
    numbers = np.full(len(values), -1, np.int64)
    for start in kept:
        above = pc.fill_null(pc.greater_equal(values, start), False)
        numbers += above.to_numpy(zero_copy_only=False)
    numbers[numbers < 0] = len(kept)
    labels = []
    for place in range(len(kept)):
        members = ascending.filter(pa.array(_between(ascending, kept, place)))
        first, last = members[0].as_py(), members[len(members) - 1].as_py()
        labels.append(_label(first) if first == last else f"{_label(first)} to {_label(last)}")
    return _with_others(numbers, labels)


def _between(ascending: pa.Array, starts: list[pa.Scalar], place: int) -> np.ndarray:
    """Mask bool [n] of the values from one start up to the next."""
    mask = pc.greater_equal(ascending, starts[place]).to_numpy(zero_copy_only=False)
    if place + 1 < len(starts):
        mask &= pc.less(ascending, starts[place + 1]).to_numpy(zero_copy_only=False)
    return mask


def _with_others(numbers: np.ndarray, labels: list[str]) -> tuple[np.ndarray, list[str]]:
    return numbers, [*labels, _OTHERS] if (numbers == len(labels)).any() else labels


def _label(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_text(dtype: pa.DataType) -> bool:
    return pa.types.is_large_string(dtype) or pa.types.is_string(dtype)
