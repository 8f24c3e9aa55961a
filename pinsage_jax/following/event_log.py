"""Reads the log of edges of --follow: files dropped into a folder, or JSON lines on standard input.

A file of the folder is a table as --edges takes it (Parquet, Feather or CSV), or JSON lines
(.jsonl).  It is read once, when it is there whole: write it under a name that begins with a dot
or an underscore, or ends with .tmp, and rename it.  The files are read in the order of their
names, and a restarted server reads all of them again.  What is left out is named in the log.

An event has the columns of --edges; with a column `removed` that is true, it removes the edge, and
needs no weight.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.tables import Batch, Table, iter_batches, open_table, table_in_memory
from pinsage_jax.following.overlay import EdgeEvents
from pinsage_jax.graph.edge_weights import EdgeWeights

STDIN = "-"
FLAG = "follow"
_REMOVED = "removed"
_JSON_LINES = ".jsonl"
_SUFFIXES = (".parquet", ".feather", ".arrow", ".csv", ".csv.gz", ".tsv", _JSON_LINES)
# Lines of standard input that are read as one batch.
_MOST_LINES = 10_000
_NAMED = 3


@dataclasses.dataclass(frozen=True, eq=False)
class RawEvents:
    """Events with their ids.

    Attributes:
      items, collections: ids.
      removed: bool [e].
      weights: float32 [e]; None for a graph without weights.
      arrived: when the first of them could be read, as time.time().
      source: file, or lines of standard input, for messages.
    """

    items: list[str]
    collections: list[str]
    removed: np.ndarray
    weights: np.ndarray | None
    arrived: float
    source: str


class FolderLog:
    """The files of a folder."""

    def __init__(self, folder: pathlib.Path, data: DataConfig, how: EdgeWeights | None):
        """Reads nothing yet; see EventReader.

        Raises:
          UserError: the folder is not there.
        """
        if not folder.is_dir():
            raise UserError(
                f"--{FLAG}={folder} is no folder; make it, and let files with edges be put there."
            )
        self._folder, self._data = folder, data
        self._reader = EventReader(data, how)
        self._seen: dict[str, tuple[int, int]] = {}
        self._strangers: set[str] = set()

    def rewind(self) -> None:
        """Begins again with the first file."""
        self._seen.clear()

    def read(self) -> Iterator[RawEvents]:
        """The events of the files that are new."""
        for path in sorted(self._folder.iterdir()):
            name = path.name
            if name[0] in "._" or name.endswith(".tmp") or not path.is_file():
                continue
            if not name.lower().endswith(_SUFFIXES):
                if name not in self._strangers:
                    self._strangers.add(name)
                    logging.warning("%s is left out: it is no table of edges.", path)
                continue
            about = path.stat()
            stamp = about.st_size, about.st_mtime_ns
            if self._seen.get(name) == stamp:
                continue
            if name in self._seen:
                logging.warning("%s has changed, and all of its edges are applied again.", path)
            self._seen[name] = stamp
            try:
                if name.lower().endswith(_JSON_LINES):
                    with path.open(encoding="utf-8", errors="replace") as lines:
                        table = self._reader.of_lines(lines, str(path), 1)
                else:
                    table = open_table(path, FLAG, self._data)
                found = self._reader.events(table, about.st_mtime, str(path))
            except UserError as error:
                logging.warning("%s is left out: %s", path, error)
                continue
            yield from found


class StreamLog:
    """JSON lines of a stream, read by a thread; what it brings is kept in memory alone."""

    def __init__(self, stream: Iterable[str], data: DataConfig, how: EdgeWeights | None):
        """Starts the thread, which ends with the stream."""
        self._reader, self._number = EventReader(data, how), 1
        self._lines: queue.Queue[tuple[float, str]] = queue.Queue(4 * _MOST_LINES)
        self._kept: list[RawEvents] = []
        self._again: list[RawEvents] = []
        self.ended = threading.Event()

        def copy() -> None:
            for line in stream:
                self._lines.put((time.time(), line))
            self.ended.set()

        threading.Thread(target=copy, name="follow", daemon=True).start()

    def rewind(self) -> None:
        """Begins again with the first line."""
        self._again = list(self._kept)

    def read(self) -> Iterator[RawEvents]:
        """The events of the lines that have come since the last call."""
        yield from self._again
        self._again = []
        lines: list[tuple[float, str]] = []
        while len(lines) < _MOST_LINES and not self._lines.empty():
            lines.append(self._lines.get())
        if not lines:
            return
        source = f"standard input, from line {self._number} on"
        first, self._number = self._number, self._number + len(lines)
        try:
            table = self._reader.of_lines((line for _, line in lines), "standard input", first)
            found = self._reader.events(table, lines[0][0], source)
        except UserError as error:
            logging.warning("%d lines of %s are left out: %s", len(lines), source, error)
            return
        self._kept += found
        yield from found


class EventReader:
    """Reads tables and JSON lines of edges as the catalog's settings say."""

    def __init__(self, data: DataConfig, how: EdgeWeights | None):
        """Takes the columns, and how weights follow from them; None without weights."""
        self._data, self._how = data, how
        self._told: set[str] = set()

    def of_lines(self, lines: Iterable[str], name: str, first: int) -> Table:
        """JSON lines as a table in memory; what is no event is named in the log and left out.

        Args:
          name: names the lines in messages.
          first: number of the first line.

        Raises:
          UserError: the values of a key have different types.
        """
        rows: list[dict[str, Any]] = []
        wrong: list[str] = []
        ids = self._data.item_column, self._data.collection_column
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                wrong.append(f"line {number} is no JSON object")
            elif missing := [key for key in ids if not _is_id(row.get(key))]:
                wrong.append(f"line {number} has no '{missing[0]}' that is text or a whole number")
            else:
                rows.append({**row, **{key: str(row[key]) for key in ids}})
        if wrong:
            more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            logging.warning("%s: left out: %s%s.", name, "; ".join(wrong[:_NAMED]), more)
        optional = self._optional()
        given = dict.fromkeys(key for row in rows for key in row)
        self._tell(name, [key for key in given if key not in (*ids, *optional)])
        columns = {}
        # Where edges have weights, lines that only remove edges need none.
        needed = given if self._how is None else {*given, *optional} - {_REMOVED}
        for key in (*ids, *(key for key in optional if key in given or key in needed)):
            values = [row.get(key) for row in rows]
            try:
                columns[key] = pa.array(values, pa.large_string() if key in ids else None)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                raise UserError(f"'{key}' in {name} has values of different types.") from None
        return table_in_memory(pa.table(columns), name)

    def events(self, table: Table, arrived: float, source: str) -> list[RawEvents]:
        """The rows of a table as events: all of them, so that a damaged file changes nothing.

        Raises:
          UserError: a column is missing, or a value is not one of its kind.
        """
        ids = [self._data.item_column, self._data.collection_column]
        table.require(ids[0], "item_column")
        table.require(ids[1], "collection_column")
        weighed = [] if self._how is None else self._how.require(table)
        wanted = [*ids, *([_REMOVED] if _REMOVED in table.columns else []), *weighed]
        self._tell(source, [name for name in table.columns if name not in wanted])
        found = []
        for batch in iter_batches(table, wanted, ids=ids):
            removed = np.zeros(len(batch), np.bool_)
            if _REMOVED in wanted:
                removed = _flags_of(batch, _REMOVED)
            weights = None
            if self._how is not None:
                weights = _weights_of(batch, self._how, weighed, removed)
            items, collections = (batch.column(name).to_pylist() for name in ids)
            found.append(RawEvents(items, collections, removed, weights, arrived, source))
        return found

    def _optional(self) -> list[str]:
        """Names of the columns beside the ids that events may have."""
        names = [self._data.weight_column, self._data.kind_column, self._data.time_column, _REMOVED]
        return [name for name in dict.fromkeys(names) if name]

    def _tell(self, source: str, unread: list[str]) -> None:
        """Names columns that are not read, each once."""
        if new := [name for name in unread if name not in self._told]:
            self._told.update(new)
            logging.info("%s: not read: %s", source, ", ".join(new))


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        # JSON has halves of surrogate pairs, which no table has.
        return value != "" and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _weights_of(
    batch: Batch, how: EdgeWeights, columns: list[str], removed: np.ndarray
) -> np.ndarray:
    """Weights float32 [R]; rows that remove an edge need none."""
    kept = np.flatnonzero(~removed)
    if not len(kept):
        return np.ones(len(batch), np.float32)
    rows, mask = batch.rows, pa.array(removed)
    for name in columns:
        column = batch.column(name)
        filled = pc.if_else(mask, column[int(kept[0])], column)
        rows = rows.set_column(rows.schema.get_field_index(name), name, filled)
    return how.of_batch(dataclasses.replace(batch, rows=rows))


def _flags_of(batch: Batch, name: str) -> np.ndarray:
    """A column of truth values as bool [R]; an empty value is false.

    Raises:
      UserError: a value is neither true nor false.
    """
    known = {"": False, "false": False, "0": False, "none": False, "true": True, "1": True}
    found = np.zeros(len(batch), np.bool_)
    for row, value in enumerate(batch.column(name).to_pylist()):
        text = str(value).strip().lower()
        if text not in known:
            raise UserError(f"'{name}' is {value!r} in {batch.where(row)}; write true or false.")
        found[row] = known[text]
    return found


class Names:
    """Rows of items and collections by their ids, with new collections."""

    def __init__(self, items: dict[str, int], collections: list[str]):
        """Takes the rows of the known items, and the ids of the known collections in order."""
        self._items = items
        self._collections = {name: row for row, name in enumerate(collections)}

    def resolve(self, raw: RawEvents) -> tuple[EdgeEvents, int]:
        """The events in rows, and how many collections are new.

        Events of unknown items, and removals from unknown collections, are named in the log and
        left out.
        """
        events: list[tuple[int, int, int]] = []
        unknown: list[str] = []
        nowhere, before = 0, len(self._collections)
        for place, (item, collection) in enumerate(zip(raw.items, raw.collections)):
            row = self._items.get(item)
            if row is None:
                unknown.append(item)
                continue
            if collection not in self._collections:
                if raw.removed[place]:
                    nowhere += 1
                    continue
                self._collections[collection] = len(self._collections)
            events.append((row, self._collections[collection], place))
        if unknown:
            names = ", ".join(format_id(name) for name in list(dict.fromkeys(unknown))[:_NAMED])
            logging.warning(
                "%s: left out %d edges of items that the catalog lacks (%s); bring them with "
                "--changed_items.",
                raw.source, len(unknown), names,
            )  # fmt: skip
        if nowhere:
            logging.warning("%s: left out %d removals that name no edge.", raw.source, nowhere)
        rows = np.array(events, np.int32).reshape(-1, 3)
        places = rows[:, 2]
        weights = None if raw.weights is None else raw.weights[places]
        items, collections = (np.ascontiguousarray(rows[:, column]) for column in (0, 1))
        found = EdgeEvents(items, collections, raw.removed[places], weights)
        return found, len(self._collections) - before
