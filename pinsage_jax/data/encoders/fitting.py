"""Fits the blocks of features in one pass over the item table."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.progress import Progress
from pinsage_jax.data import feature_blocks as blocks
from pinsage_jax.data import text as text_vectors
from pinsage_jax.data.column_choice import choose_columns
from pinsage_jax.data.encoders.blocks import EncodedBlock, EncodedImage, EncodedTextFit
from pinsage_jax.data.encoders.loading import Encoders
from pinsage_jax.data.tables import Table, iter_batches

Block = blocks.Block | EncodedBlock

_SAMPLE_SEED = 0


def fit_blocks(
    table: Table, config: DataConfig, num_rows: int, encoders: Encoders, batch_rows: int
) -> tuple[list[Block], dict[str, int]]:
    """The fitted blocks in order, and the number of rows without a value by column.

    Args:
      table: the item table.
      config: the feature columns, and how to transform them.
      num_rows: number of rows of the table.
      encoders: of text and of pictures.
      batch_rows: rows to read at once.

    Raises:
      UserError: see features.write_features.
    """
    chosen = choose_columns(table, config)
    logging.info("%s", chosen.line(table))
    encoders.check(bool(chosen.text), chosen.image, table.label)
    # A list and not a dictionary, since a column may be in blocks of two kinds.
    fitters: list[tuple[str, Any]] = []
    fitters += [(name, blocks.DenseFit(name)) for name in chosen.dense]
    fitters += [(name, blocks.NumericFit(name, name in chosen.skewed)) for name in chosen.numeric]
    fitters += [
        (name, blocks.CategoricalFit(name, config.category_limit, config.category_separator))
        for name in chosen.categorical
    ]
    if chosen.text and encoders.text is not None:
        fitters.append((", ".join(chosen.text), EncodedTextFit(chosen.text, encoders.text)))
    elif chosen.text:
        rng = np.random.Generator(np.random.Philox(_SAMPLE_SEED))
        size = min(num_rows, text_vectors.MAX_FITTED_ROWS)
        rows = np.sort(rng.choice(num_rows, size, replace=False, shuffle=False))
        settings = {
            "width": config.text_dim,
            "vocabulary": config.text_vocabulary,
            "min_df": config.text_min_df,
        }
        fitters.append((", ".join(chosen.text), blocks.TextFit(chosen.text, rows, settings)))
    # Whether there are pictures, reading them will show.
    pictures: list[Block] = [
        EncodedImage.of((name,), encoders.image) for name in chosen.image if encoders.image
    ]
    if not fitters:
        return pictures, {}
    with Progress(num_rows, "row", "fitting features") as progress:
        for batch in iter_batches(
            table, [config.item_id_column, *chosen.all()],
            ids=[config.item_id_column], batch_rows=batch_rows,
        ):  # fmt: skip
            for start in range(0, len(batch), batch_rows):
                rows = batch.rows.slice(start, batch_rows)
                where = batch.where_item(config.item_id_column, start)
                for _, fitter in fitters:
                    fitter.add(rows.column, rows.num_rows, where)
                progress.update(rows.num_rows)
    fitted: list[Block] = []
    for name, fitter in fitters:
        block = fitter.finish()
        if block is not None:
            fitted.append(block)
        elif name in chosen.named:
            raise UserError(
                f"Column '{name}' of --{table.flag}={table.path} holds no value; "
                "leave it out of the feature columns."
            )
        else:
            logging.warning("Column '%s' holds no value, so it is no feature.", name)
    return [*fitted, *pictures], {name: fitter.missing for name, fitter in fitters}
