"""Engagement pairs (query_id, target_id[, kind]) as item indices.

A pair's kind is free text that evaluation groups by; where the table has none it
is 'cold' if the target has no edge in the graph and 'warm' otherwise.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.edges_table import grouped
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import Table, iter_batches

QUERY_COLUMN, TARGET_COLUMN, KIND_COLUMN = "query_id", "target_id", "kind"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of item indices and how the table became them."""

    pairs: np.ndarray  # int32 [P, 2]: query, target
    kinds: np.ndarray  # str [P]
    report: dict[str, int]  # rows, unknown_query, unknown_target, self_pairs, kept


def read_pairs(table: Table, item_ids: IdTable, degree: np.ndarray) -> Pairs:
    """Reads a pair table in order of rows.

    Pairs with an unknown id and pairs of an item with itself are dropped, counted
    and logged.

    Args:
      degree: int32 [num_items or more], edges of each item.

    Raises:
      UserError: a missing column, a null id, or no usable pair at all.
    """
    names = [QUERY_COLUMN, TARGET_COLUMN]
    for name in names:
        table.require(name)
    with_kind = KIND_COLUMN in table.columns
    codes, texts = [], []
    wanted = names + ([KIND_COLUMN] if with_kind else [])
    for group in grouped(iter_batches(table, wanted, ids=names), len(item_ids)):
        columns = [
            item_ids.lookup(pa.chunked_array([batch.column(name) for batch in group]))
            for name in names
        ]
        codes.append(np.stack(columns, axis=1))
        if with_kind:
            for batch in group:
                column = batch.column(KIND_COLUMN)
                texts.extend(column_values.texts(column, KIND_COLUMN, batch.where).to_pylist())
    pairs = np.concatenate(codes)
    unknown = pairs < 0
    known = ~unknown.any(axis=1)
    itself = known & (pairs[:, 0] == pairs[:, 1])
    keep = known & ~itself
    report = {
        "rows": len(pairs),
        "unknown_query": int(unknown[:, 0].sum()),
        "unknown_target": int(unknown[:, 1].sum()),
        "self_pairs": int(itself.sum()),
        "kept": int(keep.sum()),
    }
    if not known.any():
        raise UserError(
            f"--{table.flag}={table.path}: none of its {len(pairs):,} pairs names two known items; "
            "are its ids those of --edges and --items?"
        )
    if not keep.any():
        raise UserError(
            f"--{table.flag}={table.path}: all {report['self_pairs']:,} known pairs join an item "
            "with itself."
        )
    if dropped := len(pairs) - int(known.sum()):
        logging.warning(
            "--%s: %d of %d pairs dropped because an id is in neither --edges nor --items.",
            table.flag, dropped, len(pairs),
        )  # fmt: skip
    if report["self_pairs"]:
        logging.warning(
            "--%s: %d pairs of an item with itself dropped.", table.flag, report["self_pairs"]
        )
    pairs = np.ascontiguousarray(pairs[keep])
    kinds = derived_kinds(pairs, degree)
    if with_kind:
        given = np.array(texts, dtype=np.str_)[keep]
        kinds = np.where(given == "", kinds, given)
    return Pairs(pairs, kinds, report)


def derived_kinds(pairs: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """'cold' where a pair's target has no edge, else 'warm'; str [P]."""
    return np.where(np.asarray(degree)[pairs[:, 1]] == 0, "cold", "warm").astype("<U4")
