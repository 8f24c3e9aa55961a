"""Converts columns of the item table to a feature matrix [num_items, D].

The item table is read twice, batch by batch: first to fit the blocks of
`feature_blocks.py` and `encoders/blocks.py`, then to write the matrix as a memory-mapped
``.npy`` file of float32 or float16.  Row i is item i; items that the table does not have get
zeros.  The log degree that Ying et al. 2018 append depends on the graph in use and is added by
`batching/inputs.py`.  The folder holds:

  features.npy    [num_items, D]
  words.npy       int32 [num_items, 2K], the K words of largest weight (text.top_words);
                  only written if the only features are text
  transform.json  the fitted blocks in order (and text_* files, see text.py)
  projection.npy  only with --input_dim below their width (encoders/projection.py)

`FeatureTransform.load(folder).transform(rows)` computes the same features for new items; where an
encoder made them, it is to be given again.
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
from pinsage_jax.data import feature_blocks as blocks
from pinsage_jax.data import text as text_vectors
from pinsage_jax.data.columns import Where
from pinsage_jax.data.encoders.blocks import ENCODED, EncodedBlock, EncodedImage
from pinsage_jax.data.encoders.encoder import IMAGE, TEXT, Encoder
from pinsage_jax.data.encoders.fitting import Block, fit_blocks
from pinsage_jax.data.encoders.loading import Encoders
from pinsage_jax.data.encoders.pictures import BATCH_ROWS as PICTURE_ROWS
from pinsage_jax.data.encoders.pictures import Pictures
from pinsage_jax.data.encoders.projection import RAW_FILE, Projection, project_file
from pinsage_jax.data.tables import Table, iter_batches

FEATURES_FILE, WORDS_FILE = "features.npy", "words.npy"
_TRANSFORM_FILE = "transform.json"
_FORMAT = 1
_BATCH_ROWS = 8192
# After so many rows what was written leaves the process's memory.
_RELEASED_ROWS = 1 << 17
# A share of the item rows, from which on those without features are warned of.
_MANY_EMPTY = 0.01


# Fields of a block that transform.json does not hold.
_NOT_IN_JSON = ("fitted", "encoder")


def _columns_of(block: Block) -> tuple[str, ...]:
    return block.columns if isinstance(block, blocks.TextBlock | EncodedBlock) else (block.column,)


class FeatureTransform:
    """Fitted blocks whose outputs are concatenated to the features of an item."""

    def __init__(
        self, fitted: list[Block], link_words: int = 0, projection: Projection | None = None
    ):
        """Takes the blocks, and the number of words to keep if the only block is text."""
        self._blocks, self._projection = fitted, projection
        # Without a reduction of dimensions the features hold the same information as words.
        only = fitted[0] if len(fitted) == 1 else None
        shortened = isinstance(only, blocks.TextBlock) and only.width < only.fitted.terms
        self.link_words = link_words if shortened else 0

    @property
    def width(self) -> int:
        """D, the number of features per item."""
        if self._projection is not None:
            return self._projection.matrix.shape[1]
        return sum(block.width for block in self._blocks)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that a batch must have."""
        names: list[str] = []
        for block in self._blocks:
            names.extend(_columns_of(block))
        return list(dict.fromkeys(names))

    @property
    def picture_columns(self) -> list[str]:
        """Names of those of the columns that hold pictures; `Pictures` reads them."""
        return [block.columns[0] for block in self._blocks if isinstance(block, EncodedImage)]

    @property
    def batch_rows(self) -> int:
        """Rows to transform at once, which fit into memory."""
        return PICTURE_ROWS if self.picture_columns else _BATCH_ROWS

    @property
    def encoders(self) -> dict[str, dict[str, Any]]:
        """Name and fingerprint of each encoder, by flag."""
        encoded = [block for block in self._blocks if isinstance(block, EncodedBlock)]
        return {b.flag: {"name": b.name, "fingerprint": b.fingerprint} for b in encoded}

    @property
    def needs(self) -> list[str]:
        """A sentence for each encoder that is not given, and without which texts are refused."""
        encoded = (block for block in self._blocks if isinstance(block, EncodedBlock))
        return [block.needed() for block in encoded if block.encoder is None]

    def transform(self, rows: pa.RecordBatch | pa.Table, where: Where | None = None) -> np.ndarray:
        """Features of a batch, float32 [rows, D].

        Args:
          rows: has the columns `columns`, typed or as text; pictures as `Pictures` reads them.
          where: names a row in messages (`tables.Batch.where`).

        Raises:
          UserError: a column is missing, a value is not a finite number, a vector
            differs in length from the fitted ones, or an encoder fails or is not given.
        """
        where, column = where or _row, functools.partial(_column, rows)
        width = sum(block.width for block in self._blocks)
        out = np.empty((rows.num_rows, width), np.float32)
        start = 0
        for block in self._blocks:
            out[:, start : start + block.width] = block.transform(column, rows.num_rows, where)
            start += block.width
        return self._projected(out)

    def _projected(self, values: np.ndarray) -> np.ndarray:
        return values if self._projection is None else self._projection.apply(values)

    def beyond(self, rows: pa.RecordBatch | pa.Table) -> list[str]:
        """Sentences about numbers that `transform` clips; its errors."""
        column = functools.partial(_column, rows)
        found = (b.beyond(column, _row) for b in self._blocks if isinstance(b, blocks.NumericBlock))
        return [sentence for sentence in found if sentence]

    def with_words(
        self, rows: pa.RecordBatch | pa.Table, where: Where | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features and words of a batch from one TF-IDF; arguments and errors of `transform`.

        Returns:
          float32 [rows, D] and int32 [rows, 2 * link_words].
        """
        if not self.link_words:
            return self.transform(rows, where), np.empty((rows.num_rows, 0), np.int32)
        (block,) = self._blocks
        assert isinstance(block, blocks.TextBlock)
        column = functools.partial(_column, rows)
        values, words = block.with_words(column, where or _row, self.link_words)
        return self._projected(values), words

    def words(self, rows: pa.RecordBatch | pa.Table, where: Where | None = None) -> np.ndarray:
        """The words of `with_words` alone."""
        return self.with_words(rows, where)[1]

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
                if field.name not in _NOT_IN_JSON:
                    fields[field.name] = getattr(block, field.name)
            if isinstance(block, blocks.TextBlock):
                block.fitted.save(folder)
            written.append(fields)
        files.write_json(
            folder / _TRANSFORM_FILE,
            {"format": _FORMAT, "blocks": written, "link_words": self.link_words}
            | ({} if self._projection is None else {"projection": self._projection.about()}),
        )
        if self._projection is not None:
            self._projection.save(folder)

    @classmethod
    def load(cls, folder: str | pathlib.Path, encoders: Encoders | None = None) -> FeatureTransform:
        """Opens a saved transform.

        Args:
          encoders: what the command names; a transform without what it needs refuses items
            that have something to encode.

        Raises:
          UserError: a file is missing, damaged or of another format, or an encoder is not that
            of the transform.
        """
        path = pathlib.Path(folder) / _TRANSFORM_FILE
        saved = files.read_json(path)
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            raise UserError(f"{path} has another format; run --mode=prepare again.")
        encoders, fitted = encoders or Encoders(), list[Block]()
        by_flag: dict[str, Encoder | None] = {TEXT: encoders.text, IMAGE: encoders.image}
        for fields in saved["blocks"]:
            kind = fields.pop("kind")
            if kind in ENCODED:
                block = ENCODED[kind].restored(**fields)
                fitted.append(block.given(by_flag[block.flag]))
            elif kind == "text":
                transform = text_vectors.TextTransform.load(folder)
                fitted.append(blocks.TextBlock(tuple(fields["columns"]), transform))
            elif kind == "categorical":
                values = tuple(fields["values"])
                fitted.append(
                    blocks.CategoricalBlock(fields["column"], values, fields.get("separator", ""))
                )
            else:
                block_type = {"dense": blocks.DenseBlock, "numeric": blocks.NumericBlock}[kind]
                fitted.append(block_type(**fields))
        used = {block.flag for block in fitted if isinstance(block, EncodedBlock)}
        for flag, encoder in by_flag.items():
            if encoder is not None and flag not in used:
                raise UserError(
                    f"{encoder.label}: the catalog in {path.parent} was prepared without --{flag}; "
                    "leave it out, or train with it in a --workdir of its own."
                )
        about, projection = saved.get("projection"), None
        if about is not None:
            width = sum(block.width for block in fitted)
            projection = Projection.load(path.parent, about, width)
        return cls(fitted, saved.get("link_words", 0), projection)

    def projecting(self, projection: Projection) -> FeatureTransform:
        """This transform with a projection after the blocks."""
        return FeatureTransform(self._blocks, self.link_words, projection)


def _row(index: int) -> str:
    return f"row {index + 1:,}"


def _column(rows: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    if name not in rows.schema.names:
        raise UserError(f"The items have no column '{name}', which the features need.")
    column = rows.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def write_features(
    table: Table | None,
    config: DataConfig,
    num_rows: int,
    num_items: int,
    folder: str | pathlib.Path,
    encoders: Encoders | None = None,
) -> dict[str, Any]:
    """Fits the transform; writes it and the feature matrix; reports missing values.

    Args:
      table: the item table, whose row r is item r; None means no features (D = 0).
      config: the feature columns, and how to transform them.
      num_rows: number of rows of the table.
      num_items: number of rows of the matrix, at least num_rows.
      folder: an existing folder for the files.
      encoders: of text and of pictures; None: text is transformed by TF-IDF.

    Returns:
      {"width": D, "dtype": ..., "blocks": see FeatureTransform.describe,
      "encoders": FeatureTransform.encoders, if there are any,
      "missing": {column: rows without a value}, "items_without_row": items that the table
      does not have, "items_all_zero": items whose features are all zero}.

    Raises:
      UserError: see FeatureTransform.transform and choose_columns; a column that a flag
        names holds no value; or an encoder has no column.
    """
    folder = pathlib.Path(folder)
    missing: dict[str, int] = {}
    transform = FeatureTransform([])
    if table is not None:
        fitted, missing = fit_blocks(table, config, num_rows, encoders or Encoders(), _BATCH_ROWS)
        transform = FeatureTransform(fitted, config.link_words)
    elif encoders is not None and (given := encoders.text or encoders.image):
        raise UserError(f"{given.label} needs --items, the table with what it encodes.")
    shape, dtype = (num_items, transform.width), np.dtype(config.feature_dtype)
    narrower = 0 < config.input_dim < transform.width
    zero_rows = num_items
    if table is None or transform.width == 0:
        files.write_array(folder / FEATURES_FILE, np.zeros(shape, dtype))
        logging.info("The items have no features: only the graph will be used.")
    else:
        # A new file is all zeros, as are the features of items without a row.
        path, kind = folder / FEATURES_FILE, dtype
        if narrower:
            path, kind = folder / RAW_FILE, np.dtype(np.float32)
        matrix = files.new_array(path, kind, shape)
        words = None
        if transform.link_words:
            width = 2 * transform.link_words
            words = files.new_array(folder / WORDS_FILE, np.int32, (num_items, width))
        done, size = 0, transform.batch_rows
        pictures = Pictures(transform.picture_columns, table, config)
        with Progress(num_rows, "row", "writing features") as progress:
            for batch in iter_batches(
                table, [config.item_id_column, *transform.columns],
                ids=[config.item_id_column], batch_rows=size,
            ):  # fmt: skip
                for start in range(0, len(batch), size):
                    where = batch.where_item(config.item_id_column, start)
                    rows = pictures.loaded(batch.rows.slice(start, size), where)
                    values, row_words = transform.with_words(rows, where)
                    if words is not None:
                        words[done : done + len(values)] = row_words
                    matrix[done : done + len(values)] = values
                    zero_rows -= int(values.any(axis=1).sum())
                    done += len(values)
                    progress.update(len(values))
                    if done // _RELEASED_ROWS > (done - len(values)) // _RELEASED_ROWS:
                        files.release(matrix)
        matrix.flush()
        if words is not None:
            words.flush()
        if narrower:
            del matrix
            found = project_file(path, folder / FEATURES_FILE, config.input_dim, dtype)
            transform = transform.projecting(found)
        pictures.warn()
        pictures.require_some()
        missing |= pictures.missing
    transform.save(folder)
    without_row = num_items - num_rows if table is not None else num_items
    empty = 0 if table is None or not transform.width else zero_rows - without_row
    _report_missing(missing, empty, num_rows)
    if table is not None and without_row:
        logging.info("%d items are only in --edges and have zero features.", without_row)
    return {
        "width": transform.width,
        **({"encoders": transform.encoders} if transform.encoders else {}),
        "dtype": dtype.name,
        "blocks": transform.describe(),
        "missing": missing,
        "items_without_row": without_row,
        "items_all_zero": zero_rows,
    }


def _report_missing(missing: dict[str, int], empty: int, num_rows: int) -> None:
    """Logs values that are missing by column, and the rows whose features are all zero."""
    for name, count in missing.items():
        if count:
            logging.info(
                "%s: missing in %d of %d items and replaced by zeros.", name, count, num_rows
            )
    level = logging.WARNING if empty > _MANY_EMPTY * num_rows else logging.INFO
    if empty:
        logging.log(level, "%d of %d rows of --items have no feature but zeros.", empty, num_rows)
