"""Item features: a table's columns as one matrix [num_items, D].

The item table is read twice, batch by batch: once to fit the blocks of
`feature_blocks.py`, once to write their rows into a memory-mapped ``.npy`` file of
float32 or float16.  Row i is item i; items without a row in the table get zeros.
log(1 + degree), which the paper appends, depends on the graph in use and is
added later.  Folder:

  features.npy    [num_items, D]
  words.npy       int32 [num_items, 2K], the K words of most weight (text.heaviest_words)
                  where items are text alone; else it is not there
  transform.json  the fitted blocks in order (and text_* files, see text.py)

so that `FeatureTransform.load(folder).transform(rows)` gives new items the same
features.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.progress import Progress
from pinsage_jax.data import columns as column_values
from pinsage_jax.data import feature_blocks as blocks
from pinsage_jax.data import text as text_vectors
from pinsage_jax.data.columns import Where, shown_id
from pinsage_jax.data.tables import Batch, Table, iter_batches

FEATURES_FILE, WORDS_FILE = "features.npy", "words.npy"
_TRANSFORM_FILE = "transform.json"
_FORMAT = 1
_TEXT_NAMES = ("text", "title", "description", "abstract")
_TITLE_NAMES = ("title", "name")
_BATCH_ROWS = 8192
_SAMPLE_SEED = 0


@dataclasses.dataclass(frozen=True)
class ChosenColumns:
    """Feature columns by kind; `named` are those that a flag asked for by name."""

    dense: tuple[str, ...]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    text: tuple[str, ...]
    named: frozenset[str]

    def all(self) -> list[str]:
        """Every column once."""
        return list(dict.fromkeys((*self.dense, *self.numeric, *self.categorical, *self.text)))


def _columns_of(block: blocks.Block) -> tuple[str, ...]:
    return block.columns if isinstance(block, blocks.TextBlock) else (block.column,)


class FeatureTransform:
    """Fitted blocks, applied side by side."""

    def __init__(self, fitted: list[blocks.Block], link_words: int = 0):
        """Takes the blocks, and how many words to keep of items that are text alone."""
        self._blocks = fitted
        # Where no dimension was left out the features say what the words do.
        only = fitted[0] if len(fitted) == 1 else None
        shortened = isinstance(only, blocks.TextBlock) and only.width < only.fitted.terms
        self.link_words = link_words if shortened else 0

    @property
    def width(self) -> int:
        """D: numbers per item."""
        return sum(block.width for block in self._blocks)

    @property
    def columns(self) -> list[str]:
        """Columns that a batch must have."""
        names: list[str] = []
        for block in self._blocks:
            names.extend(_columns_of(block))
        return list(dict.fromkeys(names))

    def transform(self, rows: pa.RecordBatch | pa.Table, where: Where | None = None) -> np.ndarray:
        """Features float32 [rows, D] of a batch that has `columns`, typed or as text.

        Args:
          where: names a row in messages, as `tables.Batch.where` does.

        Raises:
          UserError: a column is missing, a value is not a finite number, or a vector
            has another length than those fitted.
        """
        where, column = where or _row, functools.partial(_column, rows)
        out = np.empty((rows.num_rows, self.width), np.float32)
        start = 0
        for block in self._blocks:
            out[:, start : start + block.width] = block.transform(column, rows.num_rows, where)
            start += block.width
        return out

    def words(self, rows: pa.RecordBatch | pa.Table, where: Where | None = None) -> np.ndarray:
        """Words int32 [rows, 2 * link_words] of a batch; arguments and errors of `transform`."""
        if not self.link_words:
            return np.empty((rows.num_rows, 0), np.int32)
        (block,) = self._blocks
        assert isinstance(block, blocks.TextBlock)
        return block.words(functools.partial(_column, rows), where or _row, self.link_words)

    def describe(self) -> list[dict[str, Any]]:
        """Kind, columns and width of each block, in order."""
        return [
            {
                "kind": block.kind,
                "columns": list(_columns_of(block)),
                "width": block.width,
            }
            for block in self._blocks
        ]

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes transform.json and, if there is text, its files."""
        folder = pathlib.Path(folder)
        written = []
        for block in self._blocks:
            fields = {"kind": block.kind}
            for field in dataclasses.fields(block):
                if field.name != "fitted":
                    fields[field.name] = getattr(block, field.name)
            if isinstance(block, blocks.TextBlock):
                block.fitted.save(folder)
            written.append(fields)
        files.write_json(
            folder / _TRANSFORM_FILE,
            {"format": _FORMAT, "blocks": written, "link_words": self.link_words},
        )

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> FeatureTransform:
        """Opens a saved transform; UserError if a file is missing or damaged."""
        path = pathlib.Path(folder) / _TRANSFORM_FILE
        saved = files.read_json(path)
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            raise UserError(f"{path} has another format; run --mode=prepare again.")
        fitted: list[blocks.Block] = []
        for fields in saved["blocks"]:
            kind = fields.pop("kind")
            if kind == "text":
                transform = text_vectors.TextTransform.load(folder)
                fitted.append(blocks.TextBlock(tuple(fields["columns"]), transform))
            elif kind == "categorical":
                values = tuple(fields["values"])
                fitted.append(blocks.CategoricalBlock(fields["column"], values))
            else:
                made = {"dense": blocks.DenseBlock, "numeric": blocks.NumericBlock}[kind]
                fitted.append(made(**fields))
        return cls(fitted, saved.get("link_words", 0))


def _row(index: int) -> str:
    return f"row {index + 1:,}"


def _column(rows: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    if name not in rows.schema.names:
        raise UserError(f"The items have no column '{name}', which the features need.")
    found = rows.column(name)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def choose_columns(table: Table, config: DataConfig) -> ChosenColumns:
    """Feature columns that the flags name or, for 'auto', that the types suggest.

    Raises:
      UserError: a column named in a flag does not exist.
    """
    named: set[str] = set()

    def listed(flag: str) -> tuple[str, ...]:
        names = [name.strip() for name in getattr(config, flag).split(",") if name.strip()]
        for name in names:
            table.require(name, flag)
        named.update(names)
        return tuple(dict.fromkeys(names))

    chosen = {
        flag: None if getattr(config, flag).strip() == "auto" else listed(flag)
        for flag in ("dense_columns", "numeric_columns", "categorical_columns", "text_columns")
    }
    taken = named | {config.item_id_column}

    def suggested(flag: str, fits) -> tuple[str, ...]:
        if (given := chosen[flag]) is not None:
            return given
        return tuple(
            name for name, kind in table.columns.items() if name not in taken and fits(name, kind)
        )

    return ChosenColumns(
        dense=suggested("dense_columns", lambda name, kind: column_values.is_vector(kind)),
        numeric=suggested("numeric_columns", lambda name, kind: column_values.is_number(kind)),
        categorical=suggested("categorical_columns", lambda name, kind: False),
        text=suggested(
            "text_columns",
            lambda name, kind: name in _TEXT_NAMES and column_values.is_text(kind),
        ),
        named=frozenset(named),
    )


def choose_title(table: Table, config: DataConfig) -> str | None:
    """The column shown beside ids, or None; UserError if --title_column does not exist."""
    if config.title_column:
        table.require(config.title_column, "title_column")
        return config.title_column
    return next((name for name in _TITLE_NAMES if name in table.columns), None)


def write_features(
    table: Table | None,
    config: DataConfig,
    num_rows: int,
    num_items: int,
    folder: str | pathlib.Path,
) -> dict[str, Any]:
    """Fits the transform, writes it and the matrix, and reports what was missing.

    Args:
      table: the item table; its row r is item r.  None: no features (D = 0).
      num_rows: its rows.
      num_items: rows of the matrix, at least num_rows.
      folder: existing folder to write to.

    Returns:
      {width, dtype, blocks, missing: {column: rows}, rows_without_item_row, zero_rows}.

    Raises:
      UserError: see FeatureTransform.transform and choose_columns; or a named column
        without a single value.
    """
    folder = pathlib.Path(folder)
    missing: dict[str, int] = {}
    transform = FeatureTransform([])
    if table is not None:
        transform, missing = _fit(table, config, num_rows)
    transform.save(folder)
    shape, dtype = (num_items, transform.width), np.dtype(config.feature_dtype)
    zero_rows = num_items
    if table is None or transform.width == 0:
        files.write_array(folder / FEATURES_FILE, np.zeros(shape, dtype))
        logging.info("The items have no features: only the graph will be used.")
    else:
        # A new file is all zeros, so items without a row need no writing.
        matrix = files.new_array(folder / FEATURES_FILE, dtype, shape)
        words = None
        if transform.link_words:
            width = 2 * transform.link_words
            words = files.new_array(folder / WORDS_FILE, np.int32, (num_items, width))
        done = 0
        with Progress(num_rows, "row", "writing features") as progress:
            for batch in iter_batches(
                table, [config.item_id_column, *transform.columns],
                ids=[config.item_id_column], batch_rows=_BATCH_ROWS,
            ):  # fmt: skip
                for start in range(0, len(batch), _BATCH_ROWS):
                    rows = batch.rows.slice(start, _BATCH_ROWS)
                    where = _item_where(batch, config, start)
                    values = transform.transform(rows, where)
                    if words is not None:
                        words[done : done + len(values)] = transform.words(rows, where)
                    matrix[done : done + len(values)] = values
                    zero_rows -= int(values.any(axis=1).sum())
                    done += len(values)
                    progress.update(len(values))
        matrix.flush()
        if words is not None:
            words.flush()
    without_row = num_items - num_rows if table is not None else num_items
    for name, count in missing.items():
        if count:
            logging.info(
                "%s: missing in %d of %d items; zeros stand for it.", name, count, num_rows
            )
    if table is not None and without_row:
        logging.info("%d items are only in --edges and have zero features.", without_row)
    return {
        "width": transform.width,
        "dtype": dtype.name,
        "blocks": transform.describe(),
        "missing": missing,
        "items_without_row": without_row,
        "items_all_zero": zero_rows,
    }


def _fit(
    table: Table, config: DataConfig, num_rows: int
) -> tuple[FeatureTransform, dict[str, int]]:
    """The fitted transform and the number of rows where each column is missing."""
    chosen = choose_columns(table, config)
    fitters: list[tuple[str, Any]] = []  # a column may be in blocks of two kinds
    fitters += [(name, blocks.DenseFit(name)) for name in chosen.dense]
    fitters += [(name, blocks.NumericFit(name)) for name in chosen.numeric]
    fitters += [
        (name, blocks.CategoricalFit(name, config.category_limit)) for name in chosen.categorical
    ]
    if chosen.text:
        rng = np.random.Generator(np.random.Philox(_SAMPLE_SEED))
        size = min(num_rows, text_vectors.MAX_FITTED_ROWS)
        rows = np.sort(rng.choice(num_rows, size, replace=False, shuffle=False))
        settings = {
            "width": config.text_dim,
            "vocabulary": config.text_vocabulary,
            "min_df": config.text_min_df,
        }
        fitters.append((", ".join(chosen.text), blocks.TextFit(chosen.text, rows, settings)))
    if not fitters:
        return FeatureTransform([]), {}
    with Progress(num_rows, "row", "fitting features") as progress:
        for batch in iter_batches(
            table, [config.item_id_column, *chosen.all()],
            ids=[config.item_id_column], batch_rows=_BATCH_ROWS,
        ):  # fmt: skip
            for start in range(0, len(batch), _BATCH_ROWS):
                rows = batch.rows.slice(start, _BATCH_ROWS)
                where = _item_where(batch, config, start)
                for _, fitter in fitters:
                    fitter.add(rows.column, rows.num_rows, where)
                progress.update(rows.num_rows)
    fitted = []
    for name, fitter in fitters:
        block = fitter.finish()
        if block is not None:
            fitted.append(block)
        elif name in chosen.named:
            raise UserError(
                f"Column '{name}' of --{table.flag}={table.path} holds no value at all; "
                "leave it out of the feature columns."
            )
        else:
            logging.warning("Column '%s' holds no value; it gives no features.", name)
    transform = FeatureTransform(fitted, config.link_words)
    return transform, {name: fitter.missing for name, fitter in fitters}


def _item_where(batch: Batch, config: DataConfig, start: int) -> Where:
    """Names the item beside the row, for messages."""
    ids = batch.column(config.item_id_column)

    def where(index: int) -> str:
        return f"{batch.where(start + index)} (item {shown_id(ids[start + index].as_py())})"

    return where
