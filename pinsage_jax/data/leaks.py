"""Checks for data leakage: evaluation pairs and training data must be disjoint.

`--mode=split` checks its own tables with these functions.  The prepare stage always checks
train pairs against eval pairs.  It checks the edges against what a split withheld if the
folder of --eval_pairs holds the files of `--mode=split`:

  manifest.json     created_by, by (collections, items or time), and the cut
  withheld.parquet  collection_id or item_id of everything whose edges are all withheld;
                    not written for a split by time
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import Table, iter_batches

CREATED_BY = "pinsage_jax --mode=split"
MANIFEST, WITHHELD = "manifest.json", "withheld.parquet"


def check_disjoint_pairs(train: np.ndarray, held_out: np.ndarray, item_ids: IdTable) -> None:
    """Checks that no pair is in both tables; (a, b) and (b, a) count as the same pair.

    Args:
      train, held_out: item indices, int32 [P, 2] each.
      item_ids: ids for the message.

    Raises:
      UserError: a pair is in both.
    """
    shared = np.flatnonzero(np.isin(_keys(held_out), _keys(train)))
    if len(shared):
        first, second = (format_id(name.as_py()) for name in item_ids.names(held_out[shared[0]]))
        raise UserError(
            f"--train_pairs and --eval_pairs both pair {first} with {second} "
            f"({len(shared):,} such pairs in all); remove them from one of the two."
        )


def check_withheld(
    withheld: pa.Array, ids: IdTable, degree: np.ndarray, kind: str, edges: str
) -> None:
    """Checks that no withheld item or collection has a training edge.

    Args:
      withheld: ids of what the split withheld, text.
      ids: ids of all items, or of all collections.
      degree: number of training edges of each, int [len(ids)].
      kind: 'item' or 'collection'.
      edges: name of the training edges, for the message.

    Raises:
      UserError: one of them has a training edge.
    """
    indices = ids.lookup(withheld)
    leaked = np.flatnonzero(indices >= 0)
    leaked = leaked[degree[indices[leaked]] > 0]
    if len(leaked):
        raise UserError(
            f"{edges} holds {len(leaked):,} of the {len(withheld):,} {kind}s that --eval_pairs "
            f"withhold, the first being {format_id(withheld[int(leaked[0])].as_py())}; "
            "pass the training edges of the same split."
        )


def check_edge_times(edges: Table, column: str, cut: int, kind: str, cut_text: str) -> None:
    """Checks that no training edge is later than the cut of a split by time.

    Args:
      edges: the training edges, of which one column is streamed.
      column: the column with the times.
      cut: the latest time of a training edge, see `columns.times`.
      kind: its kind, 'number' or 'timestamp'.
      cut_text: the cut as text, for the message.

    Raises:
      UserError: an edge is later, or its time is of the other kind or unit.
    """
    units = column_values.TimeUnits(column)
    units.add(np.array([cut]), kind, lambda _: f"the cut of --eval_pairs ({cut_text})")
    for batch in iter_batches(edges, [column]):
        times, batch_kind = column_values.times(batch.column(column), column, batch.where, kind)
        if batch_kind != kind:
            raise UserError(
                f"Column '{column}' holds a {batch_kind} in {batch.where(0)} but --eval_pairs were "
                f"cut at the {kind} {cut_text}; pass the training edges of the same split."
            )
        units.add(times, batch_kind, batch.where)
        units.check()
        late = times > cut
        if late.any():
            raise UserError(
                f"--{edges.flag}={edges.path} holds an edge later than {cut_text}, where "
                f"--eval_pairs begin ({batch.where(int(np.argmax(late)))}); pass the training "
                "edges of the same split."
            )


def check_against_split(
    eval_pairs: str | pathlib.Path,
    edges: Table,
    items: tuple[IdTable, np.ndarray],
    collections: tuple[IdTable, np.ndarray],
) -> list[str]:
    """Checks training edges against the split that created a table of eval pairs.

    Args:
      eval_pairs: path of the pairs; without the manifest of a split in its folder there is
        nothing to check.
      edges: the training edges.
      items: ids of all items, and the number of training edges of each.
      collections: likewise for collections.

    Returns:
      What was checked: ["collections"], ["items"], ["time"] or [].

    Raises:
      UserError: the training edges hold what the split withheld.
    """
    folder = pathlib.Path(eval_pairs).parent
    manifest = _manifest(folder)
    if manifest is None:
        return []
    by, edges_label = manifest["by"], f"--{edges.flag}={edges.path}"
    if by == "time":
        column = manifest["time_column"]
        if column not in edges.columns:
            logging.warning(
                "%s was split by time but %s has no column '%s': its edges are not checked to be "
                "from before the cut.", eval_pairs, edges_label, column,
            )  # fmt: skip
            return []
        check_edge_times(
            edges, column, manifest["cut"], manifest["time_kind"], manifest["cut_text"]
        )
    else:
        path = folder / WITHHELD
        try:
            withheld = pq.read_table(path).column(0).cast(pa.large_string()).combine_chunks()
        except (OSError, pa.ArrowException):
            raise UserError(
                f"{path} is missing or damaged although {folder / MANIFEST} needs it; "
                "run --mode=split again."
            ) from None
        known = collections if by == "collections" else items
        check_withheld(withheld, *known, by[:-1], edges_label)
    return [by]


def _keys(pairs: np.ndarray) -> np.ndarray:
    """One int64 per pair, equal for (a, b) and (b, a)."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    return pairs.min(axis=1, initial=2**31) << 32 | pairs.max(axis=1, initial=0)


def _manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    try:
        saved = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return saved if isinstance(saved, dict) and saved.get("created_by") == CREATED_BY else None
