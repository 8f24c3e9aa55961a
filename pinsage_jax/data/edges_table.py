"""The edge and item tables as ids and edge codes, in two streaming passes.

Pass 1 collects the distinct ids: items in the order of the item table, then those
that only edges name; collections in order of first appearance.  Pass 2 turns each
edge into two int32 codes in memory-mapped files, with its weight and time, from
which `csr.build` makes the graph.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.progress import Progress
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.columns import shown_id
from pinsage_jax.data.ids import IdTable, UniqueIds
from pinsage_jax.data.tables import Batch, Table, holds_integers, iter_batches

_GROUP_ROWS = 1 << 24
_GROUP_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class Ids:
    """What pass 1 finds."""

    items: IdTable
    collections: IdTable
    item_rows: int  # rows of the item table; they are items [0, item_rows)
    edge_rows: int
    titles: pa.Array | None  # large_string [len(items)], null where there is none
    whole: tuple[str, ...] = ()  # id columns that are integers in every table


@dataclasses.dataclass(frozen=True)
class EdgeCodes:
    """What pass 2 writes: one entry per row of the edge table, memory-mapped."""

    items: np.ndarray  # int32 [rows]
    collections: np.ndarray  # int32 [rows]
    weights: np.ndarray | None  # float32 [rows]
    times: np.ndarray | None  # int64 [rows]
    time_kind: str | None  # number or timestamp


def collect_ids(
    edges: Table, items: Table | None, config: DataConfig, title_column: str | None
) -> Ids:
    """Pass 1 over both tables.

    Raises:
      UserError: a missing column, a null id, or an item id that is twice in --items.
    """
    edges.require(config.item_column, "item_column")
    edges.require(config.collection_column, "collection_column")
    if config.item_column == config.collection_column:
        raise UserError(
            f"--item_column and --collection_column are both '{config.item_column}'; "
            "they must be two columns of --edges."
        )
    for flag in ("weight_column", "time_column"):
        if getattr(config, flag):
            edges.require(getattr(config, flag), flag)
    whole = _whole_columns(edges, items, config)
    item_kind = pa.int64() if config.item_column in whole else None
    item_ids, item_rows, titles = UniqueIds(item_kind), 0, []
    if items is not None:
        id_column = config.item_id_column
        wanted = [id_column] + ([title_column] if title_column else [])
        as_numbers = [id_column] if item_kind else []
        with Progress(items.num_rows, "row", "reading item ids") as progress:
            for batch in iter_batches(items, wanted, ids=[id_column], whole=as_numbers):
                item_ids.add(batch.column(config.item_id_column))
                if title_column:
                    column = batch.column(title_column)
                    titles.append(column_values.texts(column, title_column, batch.where))
                item_rows += len(batch)
                progress.update(len(batch))
        known = item_ids.finish("items")
        if len(known) != item_rows:
            _name_duplicate(items, config.item_id_column, known)
    collection_kind = pa.int64() if config.collection_column in whole else None
    collection_ids, edge_rows = UniqueIds(collection_kind), 0
    names = [config.item_column, config.collection_column]
    with Progress(edges.num_rows, "row", "reading edge ids") as progress:
        for batch in iter_batches(edges, names, ids=names, whole=whole):
            item_ids.add(batch.column(config.item_column))
            collection_ids.add(batch.column(config.collection_column))
            edge_rows += len(batch)
            progress.update(len(batch))
    found = item_ids.finish("items")
    aligned = None
    if title_column:
        absent = pa.nulls(len(found) - item_rows, pa.large_string())
        aligned = pa.concat_arrays([*titles, absent])
    collections = collection_ids.finish("collections")
    return Ids(found, collections, item_rows, edge_rows, aligned, whole)


def write_codes(edges: Table, ids: Ids, config: DataConfig, folder: pathlib.Path) -> EdgeCodes:
    """Pass 2: codes, weights and times of every edge row, as .npy files in `folder`.

    Raises:
      UserError: a weight that is not finite and above 0, or a time that is none.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def mapped(name: str, dtype: type) -> np.ndarray:
        return files.new_array(folder / f"{name}.npy", dtype, (ids.edge_rows,))

    names = [config.item_column, config.collection_column]
    extras = [name for name in (config.weight_column, config.time_column) if name]
    items, collections = mapped("items", np.int32), mapped("collections", np.int32)
    weights = mapped("weights", np.float32) if config.weight_column else None
    times = mapped("times", np.int64) if config.time_column else None
    time_kind, start = None, 0
    rows_at_once = 4 * max(len(ids.items), len(ids.collections))
    with Progress(ids.edge_rows, "row", "reading edges") as progress:
        batches = iter_batches(edges, [*names, *extras], ids=names, whole=ids.whole)
        for group in grouped(batches, rows_at_once):
            end = start + sum(len(batch) for batch in group)
            items[start:end] = ids.items.lookup(_chunks(group, names[0]))
            collections[start:end] = ids.collections.lookup(_chunks(group, names[1]))
            for batch in group:
                span = slice(start, start + len(batch))
                if weights is not None:
                    column = batch.column(config.weight_column)
                    weights[span] = column_values.weights(column, config.weight_column, batch.where)
                if times is not None:
                    column = batch.column(config.time_column)
                    times[span], time_kind = column_values.times(
                        column, config.time_column, batch.where, time_kind
                    )
                start += len(batch)
            progress.update(sum(len(batch) for batch in group))
    if start != ids.edge_rows or (start and min(items.min(), collections.min()) < 0):
        raise UserError(f"--{edges.flag}={edges.path} changed while it was read; run again.")
    return EdgeCodes(items, collections, weights, times, time_kind)


def _whole_columns(edges: Table, items: Table | None, config: DataConfig) -> tuple[str, ...]:
    """Id columns of --edges that are integers there and, for items, in --items too."""
    whole = [name for name in (config.collection_column,) if holds_integers(edges, name)]
    if items is not None:
        items.require(config.item_id_column, "item_id_column")
    of_items = items is None or holds_integers(items, config.item_id_column)
    if of_items and holds_integers(edges, config.item_column):
        whole.append(config.item_column)
    return tuple(whole)


def grouped(batches: Iterator[Batch], rows: int) -> Iterator[list[Batch]]:
    """Batches in lists of about `rows` rows, because a look-up hashes all ids each time.

    A list is cut short at 16 million rows or 256 MiB.
    """
    group: list[Batch] = []
    count = size = 0
    for batch in batches:
        group.append(batch)
        count += len(batch)
        size += batch.rows.nbytes
        if count >= min(rows, _GROUP_ROWS) or size >= _GROUP_BYTES:
            yield group
            group, count, size = [], 0, 0
    if group:
        yield group


def _chunks(group: list[Batch], name: str) -> pa.ChunkedArray:
    return pa.chunked_array([batch.column(name) for batch in group])


def _name_duplicate(items: Table, column: str, known: IdTable) -> None:
    """Raises UserError for the first item id that an earlier row holds too."""
    # Ids are in order of first appearance: until a duplicate, row r holds id r.
    row = 0
    for batch in iter_batches(items, [column], ids=[column]):
        ids = batch.column(column)
        expected = known.ids.slice(row, len(batch))
        equal = pc.equal(ids.slice(0, len(expected)), expected)
        place = pc.index(equal, False).as_py()
        if place < 0 and len(expected) < len(batch):
            place = len(expected)
        if place >= 0:
            raise UserError(
                f"Item {shown_id(ids[place].as_py())} is in --{items.flag} more than once, "
                f"again in {batch.where(place)}; keep one row per item."
            )
        row += len(batch)
    raise UserError(f"--{items.flag}={items.path} changed while it was read; run again.")
