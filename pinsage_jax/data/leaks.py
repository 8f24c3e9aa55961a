"""Refusals of splits that would let evaluation see what training saw.

`--mode=split` checks its own tables with these functions.  The prepare stage checks
whatever it is given: train pairs against eval pairs always, and the edges against
what was withheld if the folder of --eval_pairs says what that was:

  manifest.json     made_by, by (collections, items or time), and the cut
  withheld.parquet  collection_id or item_id: what lost every edge; not for time
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
from pinsage_jax.data.columns import shown_id
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import Table, iter_batches

MADE_BY = "pinsage_jax --mode=split"
MANIFEST, WITHHELD = "manifest.json", "withheld.parquet"


def refuse_shared_pairs(train: np.ndarray, held_out: np.ndarray, item_ids: IdTable) -> None:
    """Raises UserError if a pair is in both tables, whichever of its items is the query.

    Args:
      train, held_out: int32 [P, 2], item indices.
    """
    shared = np.flatnonzero(np.isin(_keys(held_out), _keys(train)))
    if len(shared):
        first, second = (shown_id(name.as_py()) for name in item_ids.names(held_out[shared[0]]))
        raise UserError(
            f"--train_pairs and --eval_pairs both pair {first} with {second} "
            f"({len(shared):,} such pairs in all); remove them from one of the two."
        )


def refuse_known(
    withheld: pa.Array, ids: IdTable, degree: np.ndarray, kind: str, edges: str
) -> None:
    """Raises UserError if something that was withheld has a training edge.

    Args:
      withheld: ids as text.
      ids: all items, or all collections.
      degree: int [len(ids)], training edges of each.
      kind: item or collection.
      edges: what to call the training edges.
    """
    codes = ids.lookup(withheld)
    known = np.flatnonzero(codes >= 0)
    known = known[degree[codes[known]] > 0]
    if len(known):
        raise UserError(
            f"{edges} holds {len(known):,} of the {len(withheld):,} {kind}s that --eval_pairs "
            f"withhold, the first being {shown_id(withheld[int(known[0])].as_py())}; "
            "give the training edges of the same split."
        )


def refuse_later_edges(edges: Table, column: str, cut: int, kind: str, shown: str) -> None:
    """Raises UserError naming the first edge later than the cut; streams one column.

    Args:
      cut, kind: the last time that trains, and its kind, as `columns.times` has them.
      shown: the cut as a person wrote it.
    """
    for batch in iter_batches(edges, [column]):
        times, found = column_values.times(batch.column(column), column, batch.where, kind)
        if found != kind:
            raise UserError(
                f"Column '{column}' holds a {found} in {batch.where(0)} but --eval_pairs were cut "
                f"at the {kind} {shown}; give the training edges of the same split."
            )
        late = times > cut
        if late.any():
            raise UserError(
                f"--{edges.flag}={edges.path} holds an edge later than {shown}, where --eval_pairs "
                f"begin ({batch.where(int(np.argmax(late)))}); give the training edges of the "
                "same split."
            )


def check_against_split(
    eval_pairs: str | pathlib.Path,
    edges: Table,
    items: tuple[IdTable, np.ndarray],
    collections: tuple[IdTable, np.ndarray],
) -> list[str]:
    """Checks training edges against the split that made a table of eval pairs.

    Args:
      eval_pairs: path of the pairs; without a split's manifest beside them nothing is
        known and nothing is checked.
      edges: the training edges.
      items, collections: all of them, and how many training edges each has.

    Returns:
      What was checked: collections, items or time.

    Raises:
      UserError: training edges hold what the split withheld.
    """
    folder = pathlib.Path(eval_pairs).parent
    manifest = _manifest(folder)
    if manifest is None:
        return []
    by, named = manifest["by"], f"--{edges.flag}={edges.path}"
    if by == "time":
        column = manifest["time_column"]
        if column not in edges.columns:
            logging.warning(
                "%s was cut by time but %s has no column '%s': whether its edges are all from "
                "before the cut is not checked.", eval_pairs, named, column,
            )  # fmt: skip
            return []
        refuse_later_edges(
            edges, column, manifest["cut"], manifest["time_kind"], manifest["cut_shown"]
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
        refuse_known(withheld, *known, by[:-1], named)
    return [by]


def _keys(pairs: np.ndarray) -> np.ndarray:
    """One int64 per pair, the same for (a, b) and (b, a)."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    return pairs.min(axis=1, initial=2**31) << 32 | pairs.max(axis=1, initial=0)


def _manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("made_by") == MADE_BY else None
