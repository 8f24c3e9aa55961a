"""Reads the edge and item tables into ids and edge indices, in two streaming passes.

Pass 1 collects the distinct ids: the items of the item table in its order, then the items
that only the edge table has, and the collections, both sorted by id, so that the order of
the rows of the edge table changes nothing.
Pass 2 writes the int32 indices of each edge's item and collection to memory-mapped files,
with its weight and time; `csr.build` builds the graph from them.
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
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.ids import IdTable, UniqueIds
from pinsage_jax.data.tables import Batch, Table, holds_integers, iter_batches

_GROUP_ROWS = 1 << 24
_GROUP_BYTES = 1 << 28
# Kinds of edges; a kind is a bit of a 16-bit number.
_MOST_KINDS = 16


@dataclasses.dataclass(frozen=True)
class Ids:
    """The result of pass 1.

    Attributes:
      items: ids of all items.
      collections: ids of all collections.
      item_rows: number of rows of the item table; row r is item r.
      edge_rows: number of rows of the edge table.
      titles: large_string [len(items)], null for an item without a title; None without a
        title column.
      integer_columns: id columns of the edge table that are integers in every table.
    """

    items: IdTable
    collections: IdTable
    item_rows: int
    edge_rows: int
    titles: pa.Array | None
    integer_columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class EdgeIndices:
    """The result of pass 2: memory-mapped arrays with one entry per row of the edge table.

    Attributes:
      items: index of the edge's item, int32 [rows].
      collections: index of the edge's collection, int32 [rows].
      weights: float32 [rows]; None without a weight column.
      times: int64 [rows], see `columns.times`; None without a time column.
      time_kind: 'number' or 'timestamp'; None without a time column.
      kinds: uint8 [rows], positions in `kind_names`; None without a kind column.
      kind_names: the kinds, ascending.
    """

    items: np.ndarray
    collections: np.ndarray
    weights: np.ndarray | None
    times: np.ndarray | None
    time_kind: str | None
    kinds: np.ndarray | None = None
    kind_names: tuple[str, ...] = ()


def collect_ids(
    edges: Table, items: Table | None, config: DataConfig, title_column: str | None
) -> Ids:
    """Pass 1: collects the ids of both tables.

    Args:
      edges: the edge table.
      items: the item table, or None.
      config: names of the columns.
      title_column: column of `items` with the titles, or None.

    Raises:
      UserError: a column is missing, an id is null, or --items holds an item id twice.
    """
    edges.require(config.item_column, "item_column")
    edges.require(config.collection_column, "collection_column")
    if config.item_column == config.collection_column:
        raise UserError(
            f"--item_column and --collection_column are both '{config.item_column}'; "
            "they must be two columns of --edges."
        )
    for flag in ("weight_column", "time_column", "kind_column"):
        if getattr(config, flag):
            edges.require(getattr(config, flag), flag)
    integer_columns = _integer_columns(edges, items, config)
    item_kind = pa.int64() if config.item_column in integer_columns else None
    item_ids, item_rows, titles = UniqueIds(item_kind), 0, []
    if items is not None:
        id_column = config.item_id_column
        names = [id_column] + ([title_column] if title_column else [])
        as_integers = [id_column] if item_kind else []
        with Progress(items.num_rows, "row", "reading item ids") as progress:
            for batch in iter_batches(items, names, ids=[id_column], integer_ids=as_integers):
                item_ids.add(batch.column(config.item_id_column))
                if title_column:
                    column = batch.column(title_column)
                    titles.append(column_values.texts(column, title_column, batch.where))
                item_rows += len(batch)
                progress.update(len(batch))
        known = item_ids.finish("items")
        if len(known) != item_rows:
            _raise_duplicate(items, config.item_id_column, known)
    collection_kind = pa.int64() if config.collection_column in integer_columns else None
    collection_ids, edge_rows = UniqueIds(collection_kind), 0
    names = [config.item_column, config.collection_column]
    with Progress(edges.num_rows, "row", "reading edge ids") as progress:
        for batch in iter_batches(edges, names, ids=names, integer_ids=integer_columns):
            item_ids.add(batch.column(config.item_column))
            collection_ids.add(batch.column(config.collection_column))
            edge_rows += len(batch)
            progress.update(len(batch))
    all_items = item_ids.finish("items", sorted_from=item_rows)
    aligned_titles = None
    if title_column:
        untitled = pa.nulls(len(all_items) - item_rows, pa.large_string())
        aligned_titles = pa.concat_arrays([*titles, untitled])
    collections = collection_ids.finish("collections", sorted_from=0)
    return Ids(all_items, collections, item_rows, edge_rows, aligned_titles, integer_columns)


def write_edge_indices(
    edges: Table, ids: Ids, config: DataConfig, folder: pathlib.Path
) -> EdgeIndices:
    """Pass 2: writes indices, weights and times of every edge row as .npy files.

    Args:
      edges: the edge table.
      ids: the result of pass 1.
      config: names of the columns.
      folder: where the files are written; created if it does not exist.

    Raises:
      UserError: a weight is not finite and above 0, a time or kind is missing or unreadable,
        times have different units, there are more than 16 kinds, or the table has changed
        since pass 1.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def new_column(name: str, dtype: type) -> np.ndarray:
        return files.new_array(folder / f"{name}.npy", dtype, (ids.edge_rows,))

    names = [config.item_column, config.collection_column]
    optional = (config.weight_column, config.time_column, config.kind_column)
    extras = list(dict.fromkeys(name for name in optional if name))
    items, collections = new_column("items", np.int32), new_column("collections", np.int32)
    weights = new_column("weights", np.float32) if config.weight_column else None
    times = new_column("times", np.int64) if config.time_column else None
    kinds = _Kinds(config.kind_column)
    kind_codes = new_column("kinds", np.uint8) if config.kind_column else None
    time_kind, start = None, 0
    units = column_values.TimeUnits(config.time_column)
    group_rows = 4 * max(len(ids.items), len(ids.collections))
    with Progress(ids.edge_rows, "row", "reading edges") as progress:
        batches = iter_batches(edges, [*names, *extras], ids=names, integer_ids=ids.integer_columns)
        for group in group_batches(batches, group_rows):
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
                    units.add(times[span], time_kind, batch.where)
                if kind_codes is not None:
                    kind_codes[span] = kinds.codes(batch)
                start += len(batch)
            for column in (items, collections, weights, times, kind_codes):
                files.release(column)
            progress.update(sum(len(batch) for batch in group))
    units.check()
    if start != ids.edge_rows or (start and min(items.min(), collections.min()) < 0):
        raise UserError(f"--{edges.flag}={edges.path} changed while it was read; run again.")
    found = kinds.sort(kind_codes)
    return EdgeIndices(items, collections, weights, times, time_kind, kind_codes, found)


class _Kinds:
    """Numbers the kinds of a column, in the order in which they come."""

    def __init__(self, column: str):
        self._column, self._numbers = column, dict[str, int]()

    def codes(self, batch: Batch) -> np.ndarray:
        """Numbers uint8 [rows] of the kinds of a batch."""
        texts = column_values.texts(batch.column(self._column), self._column, batch.where)
        coded = texts.dictionary_encode()
        numbers = []
        for name in coded.dictionary.to_pylist():
            if not name:
                row = pc.index(texts, "").as_py()
                raise UserError(
                    f"Column '{self._column}' is empty in {batch.where(row)}; every edge needs a "
                    "kind."
                )
            numbers.append(self._numbers.setdefault(name, len(self._numbers)))
        if len(self._numbers) > _MOST_KINDS:
            raise UserError(
                f"Column '{self._column}' has more than {_MOST_KINDS} kinds, such as "
                f"{', '.join(list(self._numbers)[:3])}; merge some, or name another --kind_column."
            )
        return np.array(numbers, np.uint8)[coded.indices.to_numpy(zero_copy_only=False)]

    def sort(self, codes: np.ndarray | None) -> tuple[str, ...]:
        """Renumbers uint8 [rows] in place so that the kinds, which are returned, ascend."""
        names = tuple(sorted(self._numbers))
        if codes is not None and names:
            places = np.array([names.index(name) for name in self._numbers], np.uint8)
            for begin in range(0, len(codes), _GROUP_ROWS):
                part = slice(begin, begin + _GROUP_ROWS)
                codes[part] = places[codes[part]]
        return names


def _integer_columns(edges: Table, items: Table | None, config: DataConfig) -> tuple[str, ...]:
    """Id columns of --edges that hold integers there and, for items, also in --items."""
    columns = [name for name in (config.collection_column,) if holds_integers(edges, name)]
    if items is not None:
        items.require(config.item_id_column, "item_id_column")
    integer_items = items is None or holds_integers(items, config.item_id_column)
    if integer_items and holds_integers(edges, config.item_column):
        columns.append(config.item_column)
    return tuple(columns)


def group_batches(batches: Iterator[Batch], rows: int) -> Iterator[list[Batch]]:
    """Groups batches to lists of about `rows` rows, at most 16 million rows or 256 MiB.

    Fewer, larger look-ups are faster because IdTable.lookup hashes all ids on each call.
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


def _raise_duplicate(items: Table, column: str, known: IdTable) -> None:
    """Raises UserError for the first row whose item id an earlier row has."""
    # Ids are in the order of first appearance, so row r holds id r up to the duplicate.
    row = 0
    for batch in iter_batches(items, [column], ids=[column]):
        ids = batch.column(column)
        expected = known.ids.slice(row, len(batch))
        equal = pc.equal(ids.slice(0, len(expected)), expected)
        position = pc.index(equal, False).as_py()
        if position < 0 and len(expected) < len(batch):
            position = len(expected)
        if position >= 0:
            raise UserError(
                f"Item {format_id(ids[position].as_py())} is in --{items.flag} more than once, "
                f"again in {batch.where(position)}; keep one row per item."
            )
        row += len(batch)
    raise UserError(f"--{items.flag}={items.path} changed while it was read; run again.")
