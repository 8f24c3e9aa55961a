"""Checks for data leakage: evaluation pairs and training data must be disjoint.

`--mode=split` checks its own tables with these functions.  The prepare stage always checks
train pairs against eval pairs.  It checks the edges against what a split withheld if the
folder of --eval_pairs holds the files of `--mode=split`:

  manifest.json     created_by, by (collections, items, time or leave_one_out), and the cut
  withheld.parquet  collection_id or item_id of everything whose edges are all withheld, or
                    both of each edge that is left out; not written for a split by time
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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


def check_left_out(edges: Table, columns: tuple[str, str], withheld: pa.Table) -> None:
    """Checks that no training edge is one of those that --split_by=leave_one_out withheld.

    Args:
      edges: the training edges, of which two columns are streamed.
      columns: those with the item and with the collection.
      withheld: collection_id and item_id as text, one row a collection.

    Raises:
      UserError: one of these edges is among the training edges.
    """
    item_column, collection_column = columns
    for batch in iter_batches(edges, list(columns), ids=list(columns)):
        collections = batch.column(collection_column).cast(pa.large_string())
        rows = pc.index_in(collections, value_set=withheld.column("collection_id"))
        left_out = withheld.column("item_id").take(rows)
        same = pc.equal(batch.column(item_column).cast(pa.large_string()), left_out)
        if (row := pc.index(pc.fill_null(same, False), True).as_py()) >= 0:
            item, collection = (format_id(batch.column(name)[row].as_py()) for name in columns)
            raise UserError(
                f"--{edges.flag}={edges.path} holds the edge of item {item} in collection "
                f"{collection} ({batch.where(row)}), which --eval_pairs withhold; pass the "
                "training edges of the same split."
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
      What was checked: ["collections"], ["items"], ["time"], ["leave_one_out"] or [].

    Raises:
      UserError: the training edges hold what the split withheld.
    """
    folder = pathlib.Path(eval_pairs).parent
    manifest = _manifest(folder)
    if manifest is None:
        return []
    by, edges_label = manifest["by"], f"--{edges.flag}={edges.path}"
    names = {"time": ("time_column",), "leave_one_out": ("item_column", "collection_column")}
    columns = [manifest[name] for name in names.get(by, ())]
    if missing := [column for column in columns if column not in edges.columns]:
        logging.warning(
            "%s was split by %s but %s has no column '%s': its edges are not checked against it.",
            eval_pairs, by, edges_label, missing[0],
        )  # fmt: skip
        return []
    if by == "time":
        check_edge_times(
            edges, columns[0], manifest["cut"], manifest["time_kind"], manifest["cut_text"]
        )
        return [by]
    withheld = _read_withheld(folder)
    if by == "leave_one_out":
        check_left_out(edges, (columns[0], columns[1]), withheld)
    else:
        known = collections if by == "collections" else items
        check_withheld(withheld.column(0).combine_chunks(), *known, by[:-1], edges_label)
    return [by]


def _read_withheld(folder: pathlib.Path) -> pa.Table:
    """The ids in withheld.parquet, as text.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = folder / WITHHELD
    try:
        found = pq.read_table(path)
        return found.cast(pa.schema([(name, pa.large_string()) for name in found.column_names]))
    except (OSError, pa.ArrowException):
        raise UserError(
            f"{path} is missing or damaged although {folder / MANIFEST} needs it; "
            "run --mode=split again."
        ) from None


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
