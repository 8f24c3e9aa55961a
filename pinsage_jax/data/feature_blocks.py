"""Blocks of the feature matrix, one class per kind of column.

  dense        vectors, each row scaled to unit length; a missing vector is zeros
  numeric      standardized numbers, or their logarithms; a missing number is 0, and a second
               column indicates it if any was missing in the fitted table; numbers beyond
               those of the fitted table are clipped
  categorical  ones for the most frequent values that a cell holds, and a slot for all others
  text         TF-IDF and SVD of the joined text columns, unit length; no text is zeros

A fitter (DenseFit, ...) reads the table batch by batch with `add`; `finish` returns the
fitted block.  A block transforms a batch to float32 [rows, width].  In both, `column`
returns a column of the batch by its name, and `where` names a row in messages.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

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
        """Rows of unit length, float32 [rows, width].

        Raises:
          UserError: a vector has another length or holds something else than finite numbers.
        """
        out = np.zeros((rows, self.width), np.float32)
        values, present, width = _finite_vectors(column(self.column), self.column, where)
        _check_width(self.column, width, self.width, present, where)
        if len(present):
            out[present] = unit_rows(values)
        return out


@dataclasses.dataclass(frozen=True)
class NumericBlock:
    """One column of numbers, with a column that marks missing ones if `indicator`.

    Numbers are clipped to `low` and `high`, the range of the fitted table (None: no range);
    mean and deviation are those of log(1 + number) if `logarithm`.
    """

    column: str
    mean: float
    deviation: float
    indicator: bool
    low: float | None = None
    high: float | None = None
    logarithm: bool = False
    kind = "numeric"

    @property
    def width(self) -> int:
        """1, or 2 with the indicator."""
        return 2 if self.indicator else 1

    def transform(self, column: Column, rows: int, where: Where) -> np.ndarray:
        """Standardized numbers, float32 [rows, width].

        Raises:
          UserError: a value is NaN, infinity or not a number.
        """
        out = np.zeros((rows, self.width), np.float32)
        values, present = _finite_numbers(column(self.column), self.column, where)
        if beyond := self.beyond(column, where):
            logging.warning("%s", beyond)
        if self.low is not None:
            values = np.clip(values, self.low, self.high)
        if self.logarithm:
            values = np.log1p(values)
        out[present, 0] = (values - self.mean) / self.deviation
        if self.indicator:
            out[~present, 1] = 1.0
        return out

    def beyond(self, column: Column, where: Where) -> str:
        """A sentence about numbers beyond those of the fitted table; "" if there are none."""
        values, present = _finite_numbers(column(self.column), self.column, where)
        if self.low is None or self.high is None:
            return ""
        outside = (values < self.low) | (values > self.high)
        if not outside.any():
            return ""
        index = int(np.argmax(outside))
        row = int(np.flatnonzero(present)[index])
        return (
            f"Column '{self.column}' is {values[index]:g} in {where(row)}, outside of what the "
            f"features were fitted to ({self.low:g} to {self.high:g}); it is clipped, as in "
            f"{outside.sum():,} of {len(values):,} rows."
        )


@dataclasses.dataclass(frozen=True)
class CategoricalBlock:
    """Encoding of `values` by ones; the last slot stands for every other value.

    A cell that holds several values, as a list or cut at `separator`, has a one for each.
    """

    column: str
    values: tuple[str, ...]
    separator: str = ""
    kind = "categorical"

    @property
    def width(self) -> int:
        """Number of values plus 1."""
        return len(self.values) + 1

    def transform(self, column: Column, rows: int, where: Where) -> np.ndarray:
        """Rows of ones, float32 [rows, width]; the row of a missing value is zero."""
        out = np.zeros((rows, self.width), np.float32)
        values, present = column_values.categories(
            column(self.column), self.column, where, self.separator
        )
        known = pa.array(self.values, pa.large_string())
        slots = pc.fill_null(pc.index_in(values, value_set=known), len(self.values))
        out[present, slots.to_numpy(zero_copy_only=False)] = 1.0
        return out


@dataclasses.dataclass(frozen=True)
class TextBlock:
    """One or more text columns, joined and transformed by TF-IDF and SVD."""

    columns: tuple[str, ...]
    fitted: text_vectors.TextTransform
    kind = "text"

    @property
    def width(self) -> int:
        """Number of dimensions after the SVD."""
        return self.fitted.width

    def transform(self, column: Column, rows: int, where: Where) -> np.ndarray:
        """Rows of unit length, float32 [rows, width]."""
        return self.with_words(column, where, 0)[0]

    def with_words(self, column: Column, where: Where, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `transform`, and of each text the `size` words of largest weight.

        Returns:
          float32 [rows, width], and int32 [rows, 2 * size] as of text.top_words.
        """
        texts = joined_text(self.columns, column, where).to_pylist()
        return self.fitted.vectors_and_words(texts, size)


Block = DenseBlock | NumericBlock | CategoricalBlock | TextBlock


class DenseFit:
    """Determines the length of a column's vectors; `missing` counts rows without one."""

    def __init__(self, column: str):
        self._column, self._width, self.missing = column, 0, 0

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Checks one batch.

        Raises:
          UserError: vectors differ in length, or one holds NaN or infinity.
        """
        _, present, width = _finite_vectors(column(self._column), self._column, where)
        _check_width(self._column, width, self._width or width, present, where)
        self._width = self._width or width
        self.missing += rows - len(present)

    def finish(self) -> DenseBlock | None:
        """The block, or None if no row has a vector."""
        return DenseBlock(self._column, self._width) if self._width else None


class NumericFit:
    """Mean and standard deviation of a column, updated batch by batch (Chan et al. 1979)."""

    def __init__(self, column: str, logarithm: bool = False):
        """Takes the column, and whether its numbers (0 or more) are to be logarithms."""
        self._column, self._logarithm, self.missing = column, logarithm, 0
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._low, self._high = np.inf, -np.inf

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Adds one batch.

        Raises:
          UserError: a value is NaN, infinity or not a number.
        """
        values, present = _finite_numbers(column(self._column), self._column, where)
        self.missing += int(rows - present.sum())
        if len(values) == 0:
            return
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))
        if self._logarithm:
            values = np.log1p(values)
        # Numbers near the largest float64 overflow here; finish() raises an error then.
        with np.errstate(over="ignore", invalid="ignore"):
            count = self._count + len(values)
            mean = values.mean()
            change = mean - self._mean
            self._squares += np.square(values - mean).sum()
            self._squares += change * change * self._count * len(values) / count
            self._mean += change * len(values) / count
        self._count = count

    def finish(self) -> NumericBlock | None:
        """The block, or None if no row has a number.

        Raises:
          UserError: the standard deviation overflows.
        """
        if self._count == 0:
            return None
        deviation = float(np.sqrt(self._squares / self._count))
        if not np.isfinite(deviation):
            raise UserError(
                f"Column '{self._column}' holds numbers too large to standardize; scale them down."
            )
        # For equal numbers the deviation is rounding noise, and dividing by it would amplify
        # the noise.
        if deviation <= 1e-12 * max(abs(self._mean), 1e-300):
            deviation = 1.0
        return NumericBlock(
            self._column, float(self._mean), deviation, self.missing > 0,
            self._low, self._high, self._logarithm,
        )  # fmt: skip


class CategoricalFit:
    """Counts the values of a column."""

    def __init__(self, column: str, limit: int, separator: str = ""):
        self._column, self._limit, self.missing = column, limit, 0
        self._separator = separator
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Adds one batch."""
        values, present = column_values.categories(
            column(self._column), self._column, where, self._separator
        )
        self.missing += rows - len(np.unique(present))
        counted = pc.value_counts(values)
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
        """The block with the most frequent values (ties by name); None without any value."""
        ordered = sorted(self._counts.items(), key=lambda pair: (-pair[1], pair[0]))
        values = tuple(value for value, _ in ordered[: self._limit])
        return CategoricalBlock(self._column, values, self._separator) if values else None


class TextFit:
    """Collects the text of a sample of the rows and fits the transform to it."""

    def __init__(self, columns: tuple[str, ...], chosen: np.ndarray, settings: dict[str, int]):
        """Takes the columns, the sample's rows (sorted int64 [*]) and arguments of fit_text."""
        self._columns, self._chosen, self._settings = columns, chosen, settings
        self._rows_seen, self.missing = 0, 0
        self._documents: list[str] = []

    def add(self, column: Column, rows: int, where: Where) -> None:
        """Adds one batch."""
        joined = joined_text(self._columns, column, where)
        empty = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(joined)), 0)
        self.missing += pc.sum(empty).as_py() or 0
        low, high = np.searchsorted(self._chosen, [self._rows_seen, self._rows_seen + rows])
        sampled = self._chosen[low:high] - self._rows_seen
        self._documents.extend(joined.take(pa.array(sampled)).to_pylist())
        self._rows_seen += rows

    def finish(self) -> TextBlock | None:
        """The block, or None if the sample has no words."""
        name = f"The text of {', '.join(self._columns)}"
        fitted = text_vectors.fit_text(self._documents, name=name, **self._settings)
        return TextBlock(self._columns, fitted) if fitted.width else None


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Scales the rows of float64 [n, width] to unit length, as float32; zero rows stay zero."""
    # Dividing by the largest absolute value first keeps the squares from overflowing.
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.divide(scaled, norms, out=scaled, where=norms > 0).astype(np.float32)


def joined_text(columns: tuple[str, ...], column: Column, where: Where) -> pa.LargeStringArray:
    """The text columns of each row joined by a space."""
    parts = [column_values.texts(column(name), name, where) for name in columns]
    return pc.binary_join_element_wise(*parts, pa.scalar(" ", pa.large_string()))


def _finite_numbers(column: pa.Array, name: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """The values that are present, float64 [present], and the mask bool [rows] of their rows."""
    values = column_values.numbers(column, name, where)
    present = values.is_valid().to_numpy(zero_copy_only=False)
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    finite = np.isfinite(numbers)
    if not finite.all():
        index = int(np.argmin(finite))
        row = int(np.flatnonzero(present)[index])
        raise UserError(
            f"Column '{name}' is {numbers[index]} in {where(row)}; "
            "features must be finite (leave a missing value empty)."
        )
    return numbers, present


def _finite_vectors(
    column: pa.Array, name: str, where: Where
) -> tuple[np.ndarray, np.ndarray, int]:
    values, rows, width = column_values.vectors(column, name, where)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(rows[np.argmin(finite)])
        raise UserError(
            f"Column '{name}' holds NaN or infinity in {where(row)}; "
            "features must be finite (leave a missing vector empty)."
        )
    return values, rows, width


def _check_width(name: str, width: int, expected: int, rows: np.ndarray, where: Where) -> None:
    if len(rows) and width != expected:
        raise UserError(
            f"Column '{name}' holds {width} numbers in {where(int(rows[0]))} "
            f"but {expected} elsewhere; all vectors need one length."
        )
