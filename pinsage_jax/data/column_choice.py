"""Which columns of the item table become features, as what, and why others do not.

Flags name columns by kind.  Where a flag is `auto`, the kind of a column is decided by its
type and by all its values: prose is text, strings of few values and lists of strings are
categories, numbers are numbers unless they are names (row numbers, postcodes, ISBNs).
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.table_files import CSV
from pinsage_jax.data.tables import Table, iter_batches

FLAGS = (
    "dense_columns", "numeric_columns", "categorical_columns", "text_columns", "image_columns",
)  # fmt: skip
_TEXT_NAMES = ("text", "title", "description", "abstract")
_TITLE_NAMES = ("title", "name")
_ROW_NUMBER = re.compile(r"__index_level_\d+__|Unnamed: \d+|index|level_0|row_?(number|id)?", re.I)
_CODE = re.compile(
    r"(.*[_ ])?(id|ids|uuid|isbn|isbn1[03]|ean|upc|gtin|asin|sku|zip|zip_?code|post_?code|"
    r"postal_?code|plz|phone|fax)",
    re.I,
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|www\.|/\S*$")
_NUMBERS = re.compile(r"[\s\[(]*[\d.eE+-]+([\s,;]+[\d.eE+-]+)+[\s\])]*")
# Strings of at most this many values, each in this many rows on average, are categories.
_FEW_VALUES, _ROWS_A_VALUE = 50, 5
_MOST_COUNTED = 2_000
# Why a column of codes, such as postcodes, is no feature.
NUMBERS_AS_NAMES = "numbers that are names"
# Fewer rows than this tell neither row numbers nor skewness.
_LEAST_ROWS = 20
# Skewness of positive numbers from which on their logarithm is taken.
_SKEWED = 2.0
# Words a cell on average, from which on strings are prose; characters where none are spaces.
_PROSE_WORDS, _PROSE_CHARACTERS = 3.0, 8.0
_BATCH_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class ChosenColumns:
    """Feature columns by kind.

    Attributes:
      dense, numeric, categorical, text: names of the columns.
      named: those that a flag names; the others were found by their types.
      skewed: numeric columns whose logarithm is standardized.
      ignored: why a column is no feature, by its name.
      image: columns of pictures, which only a flag names.
    """

    dense: tuple[str, ...]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    text: tuple[str, ...]
    named: frozenset[str]
    skewed: frozenset[str] = frozenset()
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    image: tuple[str, ...] = ()

    def all(self) -> list[str]:
        """All feature columns but pictures, each once."""
        return list(dict.fromkeys((*self.dense, *self.numeric, *self.categorical, *self.text)))

    def line(self, table: Table) -> str:
        """One sentence: the columns by kind, and those that are ignored with the reason."""
        numeric = [f"{n} (logarithm)" if n in self.skewed else n for n in self.numeric]
        kinds = (("text", self.text), ("vectors", self.dense), ("numbers", numeric),
                 ("categories", self.categorical), ("pictures", self.image))  # fmt: skip
        parts = [f"{kind}: {', '.join(names)}" for kind, names in kinds if names]
        parts = parts or ["no feature"]
        if self.ignored:
            reasons = (f"{name} ({why})" if why else name for name, why in self.ignored.items())
            parts.append(f"ignored: {', '.join(reasons)}")
        return f"{table.label}: {'; '.join(parts)}."


def line_of_columns(table: Table, used: dict[str, str]) -> str:
    """The same sentence for another table; `used` describes its columns by name."""
    described = ", ".join(
        f"{name} ({what})" for name, what in used.items() if name in table.columns
    )
    ignored = ", ".join(name for name in table.columns if name not in used)
    return f"{table.label}: {described}{f'; ignored: {ignored}' if ignored else ''}."


def choose_title(table: Table, config: DataConfig) -> str | None:
    """The column with the items' titles, or None.

    Raises:
      UserError: the column that --title_column names does not exist.
    """
    if config.title_column:
        table.require(config.title_column, "title_column")
        return config.title_column
    return next((name for name in _TITLE_NAMES if name in table.columns), None)


def named_columns(table: Table, config: DataConfig) -> dict[str, tuple[str, ...] | None]:
    """The columns that each of FLAGS names; None for 'auto'.

    Raises:
      UserError: a column named in a flag does not exist.
    """
    chosen: dict[str, tuple[str, ...] | None] = {}
    for flag in FLAGS:
        value = getattr(config, flag)
        names = [name.strip() for name in value.split(",") if name.strip()]
        if value.strip() == "auto":
            chosen[flag] = None
            continue
        for name in names:
            table.require(name, flag)
        chosen[flag] = tuple(dict.fromkeys(names))
    return chosen


def choose_columns(table: Table, config: DataConfig) -> ChosenColumns:
    """The feature columns that the flags name or, for 'auto', that have suitable values.

    Raises:
      UserError: a column named in a flag does not exist, or the table cannot be read.
    """
    given = named_columns(table, config)
    named = frozenset(name for names in given.values() for name in names or ())
    title = choose_title(table, config)
    rest = [name for name in table.columns if name not in named and name != config.item_id_column]
    profiles = {name: _Profile(name) for name in rest if _is_profiled(table.columns[name])}
    for name in given["numeric_columns"] or ():
        # Whether to take the logarithm.
        if table.kind == CSV or column_values.is_number(table.columns[name]):
            profiles[name] = _Profile(name)
    if profiles:
        for batch in iter_batches(table, list(profiles), batch_rows=_BATCH_ROWS):
            for name, profile in profiles.items():
                profile.add(batch.column(name), table.kind == CSV, config.category_separator)
    found: dict[str, list[str]] = {flag: list(given[flag] or ()) for flag in FLAGS}
    ignored: dict[str, str] = {}
    for name in rest:
        kind = table.columns[name]
        if column_values.is_vector(kind):
            flag, why = "dense_columns", ""
        elif name in profiles:
            flag, why = _kind_of(name, kind, profiles[name], title, table.kind == CSV)
        else:
            what = "times" if pa.types.is_temporal(kind) else f"type {kind}"
            flag, why = "", what
        if flag and given[flag] is None:
            found[flag].append(name)
        else:
            ignored[name] = why or f"--{flag} does not name it"
    skewed = {
        name
        for name in found["numeric_columns"]
        if name in profiles and profiles[name].skewness() > _SKEWED
    }
    dense, numeric, categorical, text, image = (tuple(found[flag]) for flag in FLAGS)
    return ChosenColumns(
        dense, numeric, categorical, text, named, frozenset(skewed), ignored, image
    )


def _is_profiled(kind: pa.DataType) -> bool:
    """Whether the values of a column decide what it is."""
    return (
        column_values.is_text(kind)
        or column_values.is_number(kind)
        or column_values.is_tags(kind)
        or pa.types.is_null(kind)
    )


def _kind_of(
    name: str, kind: pa.DataType, values: _Profile, title: str | None, is_csv: bool
) -> tuple[str, str]:
    """The flag whose kind a column has, or "" and the reason why it has none."""
    is_number = values.numbers_only if is_csv else column_values.is_number(kind)
    if name in _TEXT_NAMES and (
        is_csv or column_values.is_text(kind) or (is_number and name == title)
    ):
        return "text_columns", ""
    if values.present == 0 and not is_number:
        return "", "no value"
    if name == title:
        return "", "shown as the title"
    if is_number:
        if _ROW_NUMBER.fullmatch(name) or (values.consecutive and values.rows >= _LEAST_ROWS):
            return "", f"row numbers; --numeric_columns={name}?"
        large = 2**53 < values.largest < 2**64 and not pa.types.is_floating(kind)
        if _CODE.fullmatch(name) or values.leading_zero or large:
            return "", f"{NUMBERS_AS_NAMES}; --categorical_columns={name}?"
        return "numeric_columns", ""
    return _kind_of_strings(name, kind, values)


def _kind_of_strings(name: str, kind: pa.DataType, values: _Profile) -> tuple[str, str]:
    count = f"{min(values.distinct, _MOST_COUNTED):,}"
    count += " values or more" if values.distinct >= _MOST_COUNTED else " values"
    if column_values.is_tags(kind) or values.several > values.present // 20:
        if 2 <= values.distinct <= values.cells // 2:
            return "categorical_columns", ""
        return "", f"{count} in its lists; --categorical_columns={name}?"
    if values.distinct <= 1:
        return "", "one value"
    if values.addresses > values.sampled // 2:
        return "", "addresses, not prose"
    if values.lists_of_numbers > values.sampled // 2:
        return "", f"numbers in text; --dense_columns={name}?"
    if values.distinct <= min(_FEW_VALUES, values.present // _ROWS_A_VALUE):
        return "categorical_columns", ""
    if values.is_prose:
        return "text_columns", ""
    if values.distinct == values.present:
        return "", "text that is not prose, another in every row"
    return "", f"{count}; --categorical_columns={name}?"


class _Profile:
    """Counts the values of a column, batch by batch."""

    def __init__(self, name: str):
        self._name = name
        self.rows = self.present = 0
        self._values: set[str] = set()
        self.cells = 0  # values, several a row where a cell holds several
        self.several = 0  # rows whose cell holds several
        self.sampled = self.addresses = self.lists_of_numbers = 0
        self._words = self._characters = self._spaceless = 0
        self.numbers_only, self.leading_zero = True, False
        self.consecutive = True
        self._last: float | None = None
        self._count, self._mean, self._square, self._cube = 0, 0.0, 0.0, 0.0
        self._least, self.largest = np.inf, -np.inf

    @property
    def distinct(self) -> int:
        """Number of values, at most _MOST_COUNTED."""
        return len(self._values)

    @property
    def is_prose(self) -> bool:
        """Whether cells are sentences rather than names."""
        cells = max(self.sampled, 1)
        if self._spaceless > self.sampled // 2:
            return self._characters >= _PROSE_CHARACTERS * cells
        return self._words >= _PROSE_WORDS * cells

    def skewness(self) -> float:
        """Skewness of the numbers; 0 if there are few or one is negative."""
        if self._count < _LEAST_ROWS or self._least < 0 or self.largest <= 1 or self._square <= 0:
            return 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            return float(self._cube / self._count / (self._square / self._count) ** 1.5)

    def add(self, column: pa.Array, is_csv: bool, separator: str) -> None:
        """Adds one batch."""
        self.rows += len(column)
        if column_values.is_tags(column.type) or not (
            column_values.is_number(column.type) or is_csv
        ):
            self._add_strings(column, separator)
            return
        text = column
        if is_csv:
            self._add_strings(column, separator)
            if not self.numbers_only:
                return
        try:
            numbers = column_values.numbers(column, self._name, str)
        except UserError:
            self.numbers_only = False
            return
        if is_csv:
            zeros = pc.match_substring_regex(text, r"^0\d")
            self.leading_zero |= bool(pc.any(zeros, min_count=0).as_py())
        else:
            self.present += len(numbers) - numbers.null_count
        self._add_numbers(numbers.drop_null().to_numpy(zero_copy_only=False))

    def _add_numbers(self, values: np.ndarray) -> None:
        values = values[np.isfinite(values)]
        if not len(values):
            return
        with np.errstate(over="ignore"):
            steps = np.diff(values) if self._last is None else np.diff(values, prepend=self._last)
        self.consecutive = self.consecutive and bool((steps == 1).all())
        self._last = float(values[-1])
        self._least = min(self._least, float(values.min()))
        self.largest = max(self.largest, float(values.max()))
        # Moments are merged as in Chan et al. 1979; overflow makes them useless, not wrong.
        with np.errstate(over="ignore", invalid="ignore"):
            # NumPy's numbers become infinite where Python's raise OverflowError.
            count, mean = len(values), np.float64(values.mean())
            square, cube = ((values - mean) ** 2).sum(), ((values - mean) ** 3).sum()
            old, both, change = self._count, self._count + count, mean - self._mean
            self._cube += cube + change**3 * old * count * (old - count) / both**2
            self._cube += 3 * change * (old * square - count * self._square) / both
            self._square += square + change**2 * old * count / both
            self._mean += change * count / both
        self._count = both

    def _add_strings(self, column: pa.Array, separator: str) -> None:
        values, parents = column_values.categories(column, self._name, str, separator)
        rows = np.unique(parents)
        self.present += len(rows)
        self.cells += len(values)
        self.several += int((np.bincount(parents, minlength=1) > 1).sum()) if len(parents) else 0
        if len(self._values) < _MOST_COUNTED:
            self._values.update(pc.unique(values).to_pylist())
        sample = values.slice(0, 200)
        self.sampled += len(sample)
        for text in sample.to_pylist():
            words = len(text.split())
            self._words += words
            self._characters += len(text)
            self._spaceless += words == 1 and not text.isascii()
            self.addresses += bool(_ADDRESS.match(text))
            self.lists_of_numbers += bool(_NUMBERS.fullmatch(text))
