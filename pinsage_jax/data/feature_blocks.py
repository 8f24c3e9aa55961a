"""Blocks of the feature matrix, one per kind of column: fitted once, then applied.

  dense        vectors, each row scaled to unit length; missing -> zeros
  numeric      standardized; missing -> 0, and a column that says so if any was missing
  categorical  one-hot of the most frequent values, then one slot for all others
  text         TF-IDF and SVD of the joined text columns, unit length; empty -> zeros

A fitter sees the table batch by batch (`add`), then `finish` gives the block.  A
block turns a batch into float32 [rows, width] and its settings into JSON.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data import text as text_vectors
from pinsage_jax.data.columns import Where

Column = Callable[[str], pa.Array]


@dataclasses.dataclass(frozen=True)
class DenseBlock:
    """One column of vectors."""

    column: str
    width: int
    kind = "dense"

    def transform(self, column: Column, rows: int, where: Where) -> np.ndarray:
        """Unit rows float32 [rows, width]; UserError for another length or a non-number."""
        out = np.zeros((rows, self.width), np.float32)
        values, present, width = _finite_vectors(column(self.column), self.column, where)
        _same_width(self.column, width, self.width, present, where)
        if len(present):
            out[present] = unit_rows(values)
        return out


@dataclasses.dataclass(frozen=True)
class NumericBlock:
    """One column of numbers, and whether it is missing if `indicator`."""

    column: str
    mean: float
    deviation: float
    indicator: bool
    kind = "numeric"

    @property
    def width(self) -> int:
        """1, or 2 with the indicator."""
        return 2 if self.indicator else 1

    def transform(self, column: Column, rows: int, where: Where) -> np.ndarray:
        """Standardized numbers float32 [rows, width]; UserError for NaN or infinity."""
        out = np.zeros((rows, self.width), np.float32)
        values, present = _finite_numbers(column(self.column), self.column, where)
        out[present, 0] = (values - self.mean) / self.deviation
        if self.indicator:
            out[~present, 1] = 1.0
        return out


@dataclasses.dataclass(frozen=True)
class CategoricalBlock:
    """One-hot of `values`; the last slot is for any other value."""

    column: str
    values: tuple[str, ...]
    kind = "categorical"

    @property
    def width(self) -> int:
        """One per value, and one for the rest."""
        return len(self.values) + 1

    def transform(self, column: Column, rows: int, where: Where) -> np.ndarray:
        """One-hot rows float32 [rows, width]; a missing value is a zero row."""
        out = np.zeros((rows, self.width), np.float32)
        found = _categories(column(self.column), self.column, where)
        known = pa.array(self.values, pa.large_string())
        slots = pc.fill_null(pc.index_in(found, value_set=known), len(self.values))
        present = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
        out[present, slots.to_numpy(zero_copy_only=False)[present]] = 1.0
        return out


@dataclasses.dataclass(frozen=True)
class TextBlock:
    """One or more text columns, joined."""

    columns: tuple[str, ...]
    fitted: text_vectors.TextTransform
    kind = "text"

    @property
    def width(self) -> int:
        """Dimensions left by the SVD."""
        return self.fitted.width

    def transform(self, column: Column, rows: int, where: Where) -> np.ndarray:
        """Unit rows float32 [rows, width]."""
        return self.fitted.transform(joined_text(self.columns, column, where).to_pylist())

    def words(self, column: Column, where: Where, size: int) -> np.ndarray:
        """Words int32 [rows, 2 * size]; see text.heaviest_words."""
        return self.fitted.words(joined_text(self.columns, column, where).to_pylist(), size)


Block = DenseBlock | NumericBlock | CategoricalBlock | TextBlock


class DenseFit:
    """Finds the length of a column's vectors."""

    def __init__(self, column: str):
        self._column, self._width, self.missing = column, 0, 0

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Checks one batch; UserError for unequal lengths, NaN or infinity."""
        _, present, width = _finite_vectors(column(self._column), self._column, where)
        _same_width(self._column, width, self._width or width, present, where)
        self._width = self._width or width
        self.missing += rows - len(present)

    def finish(self) -> DenseBlock | None:
        """The block, or None if no row has a vector."""
        return DenseBlock(self._column, self._width) if self._width else None


class NumericFit:
    """Mean and standard deviation of a column, merged batch by batch (Chan et al.)."""

    def __init__(self, column: str):
        self._column, self.missing = column, 0
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Adds one batch; UserError for NaN, infinity or text that is no number."""
        values, present = _finite_numbers(column(self._column), self._column, where)
        self.missing += int(rows - present.sum())
        if len(values) == 0:
            return
        # Numbers near the largest float64 overflow here; finish() says so.
        with np.errstate(over="ignore", invalid="ignore"):
            count = self._count + len(values)
            mean = values.mean()
            change = mean - self._mean
            self._squares += np.square(values - mean).sum()
            self._squares += change * change * self._count * len(values) / count
            self._mean += change * len(values) / count
        self._count = count

    def finish(self) -> NumericBlock | None:
        """The block, or None if no row has a number."""
        if self._count == 0:
            return None
        deviation = float(np.sqrt(self._squares / self._count))
        if not np.isfinite(deviation):
            raise UserError(
                f"Column '{self._column}' holds numbers too large to standardize; scale them down."
            )
        # Equal numbers leave rounding noise as their deviation, which must not be blown up.
        if deviation <= 1e-12 * max(abs(self._mean), 1e-300):
            deviation = 1.0
        return NumericBlock(self._column, float(self._mean), deviation, self.missing > 0)


class CategoricalFit:
    """Counts the values of a column."""

    def __init__(self, column: str, limit: int):
        self._column, self._limit, self.missing = column, limit, 0
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Adds one batch."""
        found = _categories(column(self._column), self._column, where)
        self.missing += found.null_count
        counted = pc.value_counts(found.drop_null())
        self._counts.update(
            dict(
                zip(
                    counted.field("values").to_pylist(),
                    counted.field("counts").to_pylist(),
                    strict=True,
                )
            )
        )

    def finish(self) -> CategoricalBlock | None:
        """The block (values by count, then by name), or None if no row has a value."""
        ordered = sorted(self._counts.items(), key=lambda pair: (-pair[1], pair[0]))
        values = tuple(value for value, _ in ordered[: self._limit])
        return CategoricalBlock(self._column, values) if values else None


class TextFit:
    """Collects the text of the rows chosen for fitting."""

    def __init__(self, columns: tuple[str, ...], chosen: np.ndarray, settings: dict[str, int]):
        """Takes the columns, sorted row numbers int64 [*] and fit_text's settings."""
        self._columns, self._chosen, self._settings = columns, chosen, settings
        self._seen, self.missing = 0, 0
        self._documents: list[str] = []

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Adds one batch."""
        joined = joined_text(self._columns, column, where)
        empty = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(joined)), 0)
        self.missing += pc.sum(empty).as_py() or 0
        low, high = np.searchsorted(self._chosen, [self._seen, self._seen + rows])
        wanted = self._chosen[low:high] - self._seen
        self._documents.extend(joined.take(pa.array(wanted)).to_pylist())
        self._seen += rows

    def finish(self) -> TextBlock | None:
        """The block, or None if there are no words."""
        name = f"The text of {', '.join(self._columns)}"
        fitted = text_vectors.fit_text(self._documents, name=name, **self._settings)
        return TextBlock(self._columns, fitted) if fitted.width else None


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float32; zero rows stay zero; values float64 [n, width]."""
    # Dividing by the largest number first keeps the squares from overflowing.
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.divide(scaled, norms, out=scaled, where=norms > 0).astype(np.float32)


def joined_text(columns: tuple[str, ...], column: Column, where: Where) -> pa.LargeStringArray:
    """The text columns of each row joined by a space."""
    parts = [column_values.texts(column(name), name, where) for name in columns]
    return pc.binary_join_element_wise(*parts, pa.scalar(" ", pa.large_string()))


def _categories(column: pa.Array, name: str, where: Where) -> pa.LargeStringArray:
    text = column_values.texts(column, name, where)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text)


def _finite_numbers(column: pa.Array, name: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Present values float64 [present] and the mask bool [rows] of present rows."""
    values = column_values.numbers(column, name, where)
    present = values.is_valid().to_numpy(zero_copy_only=False)
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    finite = np.isfinite(numbers)
    if not finite.all():
        place = int(np.argmin(finite))
        row = int(np.flatnonzero(present)[place])
        raise UserError(
            f"Column '{name}' is {numbers[place]} in {where(row)}; "
            "features must be finite (leave a missing value empty)."
        )
    return numbers, present


def _finite_vectors(
    column: pa.Array, name: str, where: Where
) -> tuple[np.ndarray, np.ndarray, int]:
    values, rows, width = column_values.vectors(column, name, where)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        place = int(np.argmin(finite))
        raise UserError(
            f"Column '{name}' holds NaN or infinity in {where(int(rows[place]))}; "
            "features must be finite (leave a missing vector empty)."
        )
    return values, rows, width


def _same_width(name: str, found: int, wanted: int, rows: np.ndarray, where: Where) -> None:
    if len(rows) and found != wanted:
        raise UserError(
            f"Column '{name}' holds {found} numbers in {where(int(rows[0]))} "
            f"but {wanted} elsewhere; all vectors need one length."
        )
