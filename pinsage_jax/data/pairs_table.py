"""Reads tables of engagement pairs (query_id, target_id[, kind]) as item indices.

The kind of a pair is free text by which evaluation groups its metrics.  A pair without a
kind is 'cold' if its target has no edge in the graph and 'warm' otherwise.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.edges_table import group_batches
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import Table, iter_batches

QUERY_COLUMN, TARGET_COLUMN, KIND_COLUMN = "query_id", "target_id", "kind"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs of a table.

    Attributes:
      pairs: query and target, item indices int32 [P, 2].
      kinds: kind of each pair, str [P].
      report: counts of the table's pairs by what became of them: rows, unknown_query,
        unknown_target, self_pairs, kept.
    """

    pairs: np.ndarray
    kinds: np.ndarray
    report: dict[str, int]


def read_pairs(table: Table, item_ids: IdTable, degree: np.ndarray) -> Pairs:
    """Reads a table of pairs in the order of its rows.

    Pairs with an unknown id and pairs of an item with itself are counted, logged and left
    out.

    Args:
      table: the table of pairs.
      item_ids: ids of the catalog's items.
      degree: number of edges of each node, int32 [num_items or more].

    Raises:
      UserError: a column is missing, an id is null, or no pair is usable.
    """
    names = [QUERY_COLUMN, TARGET_COLUMN]
    for name in names:
        table.require(name)
    with_kind = KIND_COLUMN in table.columns
    indices, texts = [], []
    columns = names + ([KIND_COLUMN] if with_kind else [])
    for group in group_batches(iter_batches(table, columns, ids=names), len(item_ids)):
        looked_up = [
            item_ids.lookup(pa.chunked_array([batch.column(name) for batch in group]))
            for name in names
        ]
        indices.append(np.stack(looked_up, axis=1))
        if with_kind:
            for batch in group:
                column = batch.column(KIND_COLUMN)
                texts.extend(column_values.texts(column, KIND_COLUMN, batch.where).to_pylist())
    pairs = np.concatenate(indices)
    unknown = pairs < 0
    known = ~unknown.any(axis=1)
    self_pairs = known & (pairs[:, 0] == pairs[:, 1])
    usable = known & ~self_pairs
    report = {
        "rows": len(pairs),
        "unknown_query": int(unknown[:, 0].sum()),
        "unknown_target": int(unknown[:, 1].sum()),
        "self_pairs": int(self_pairs.sum()),
        "kept": int(usable.sum()),
    }
    if not known.any():
        raise UserError(
            f"{table.label}: none of its {len(pairs):,} pairs names two known items; "
            "are its ids those of --edges and --items?"
        )
    if not usable.any():
        raise UserError(
            f"{table.label}: all {report['self_pairs']:,} known pairs join an item with itself."
        )
    name = f"--{table.flag}" if table.flag else table.label
    if dropped := len(pairs) - int(known.sum()):
        logging.warning(
            "%s: %d of %d pairs dropped because an id is in neither --edges nor --items.",
            name, dropped, len(pairs),
        )  # fmt: skip
    if report["self_pairs"]:
        logging.warning("%s: %d pairs of an item with itself dropped.", name, report["self_pairs"])
    pairs = np.ascontiguousarray(pairs[usable])
    kinds = derived_kinds(pairs, degree)
    if with_kind:
        explicit = np.array(texts, dtype=np.str_)[usable]
        kinds = np.where(explicit == "", kinds, explicit)
    return Pairs(pairs, kinds, report)


def derived_kinds(pairs: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """'cold' for a pair whose target has no edge, else 'warm'; str [P]."""
    return np.where(np.asarray(degree)[pairs[:, 1]] == 0, "cold", "warm").astype("<U4")
