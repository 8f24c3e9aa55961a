"""Where the tables of whole-catalog inference lie while, and after, they are filled.

ScratchTables  in memory, or in nameless files above a size; gone when they are done.
KeptTables     in files under a folder, filled shard by shard, so that a run that was
               killed goes on with the shards that are missing:

  sent1.npy                float32 [N, M], one array, mapped into memory
  sent1.00002.1a2b3c4d     shard 2 of it is written; the name holds the CRC-32 of its bytes

A shard is flushed to disk before its mark is made.  Opening compares every marked shard
with its checksum; one that differs is named and filled again.  Like a store of
neighborhoods (sampling/shards.py) the folder does not say what the tables are of: its
name is the caller's key.  Unlike there a table is one file, because a row of the next
layer reads rows of all shards.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from absl import logging

from pinsage_jax.core import files
from pinsage_jax.core.signals import raise_if_stopped

FOLDER = "layers"
# Scratch tables that take more than this lie on disk, where there is a folder for them.
MOST_TABLE_BYTES = 1 << 30

# (begin, end, table): fills rows [begin, end) of the table.
Fill = Callable[[int, int, np.ndarray], None]


class Tables(Protocol):
    """Tables by name, each filled once.

    Attributes:
      keep: whether they outlive the run.
    """

    keep: bool

    def filled(
        self, name: str, shape: tuple[int, int], fill: Fill, dtype: Any = np.float32
    ) -> np.ndarray:
        """The table of that name; made by `fill` where it is not there yet."""

    def drop(self, name: str) -> None:
        """The table is not needed any more."""


class ScratchTables:
    """Tables of one pass."""

    keep = False

    def __init__(self, folder: str | os.PathLike | None = None):
        """Takes the folder for large tables; None: everything in memory."""
        self._folder = folder
        self._held: dict[str, np.ndarray] = {}

    def filled(
        self, name: str, shape: tuple[int, int], fill: Fill, dtype: Any = np.float32
    ) -> np.ndarray:
        """See Tables."""
        if name not in self._held:
            table = files.scratch_array(shape, self._folder, MOST_TABLE_BYTES, dtype)
            fill(0, shape[0], table)
            self._held[name] = table
        return self._held[name]

    def drop(self, name: str) -> None:
        """See Tables."""
        self._held.pop(name, None)


class KeptTables:
    """Tables on disk that outlive a kill."""

    def __init__(self, folder: pathlib.Path, shard_rows: int, keep: bool = False):
        """Opens or makes the folder.

        Args:
          shard_rows: rows that are written, and found again, at once.
          keep: whether layers stay when they are not needed any more.

        Raises:
          UserError: the folder cannot be written.
        """
        with files.reported_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._shard_rows, self.keep = folder, shard_rows, keep
        self._held: dict[str, np.ndarray] = {}

    def filled(
        self, name: str, shape: tuple[int, int], fill: Fill, dtype: Any = np.float32
    ) -> np.ndarray:
        """The table of that name, mapped read-only; shards that are missing are filled.

        Raises:
          Stopped: a signal asked the run to stop; the shards filled so far stay.
          UserError: the disk is full.
        """
        if name in self._held:
            return self._held[name]
        if 0 in shape:
            self._held[name] = np.empty(shape, dtype)
            return self._held[name]
        path = self._folder / f"{name}.npy"
        with files.reported_os_errors(path):
            table = self._opened(path, shape, np.dtype(dtype))
            begins = range(0, shape[0], self._shard_rows)
            intact = self._intact(name, table, begins)
            if intact and len(intact) < len(begins):
                logging.info(
                    "%s: %d of %d shards are there already", path, len(intact), len(begins)
                )
            for number, begin in enumerate(begins):
                if number in intact:
                    continue
                raise_if_stopped()
                end = min(begin + self._shard_rows, shape[0])
                fill(begin, end, table)
                table.flush()
                # Only now: a mark says that the shard is on disk.
                self._mark(name, number, table[begin:end]).touch()
                files.release(table)
        self._held[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._held[name]

    def drop(self, name: str) -> None:
        """Deletes a table; what was sent always, a layer unless layers are kept."""
        if self.keep and not name.startswith("sent"):
            return
        self._held.pop(name, None)
        for path in self._folder.glob(f"{name}.*"):
            path.unlink()

    def remove_others(self) -> None:
        """Deletes the folders beside this one: tables of other models or data."""
        for path in self._folder.parent.iterdir():
            if path != self._folder and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _opened(self, path: pathlib.Path, shape: tuple[int, int], dtype: np.dtype) -> np.memmap:
        """The table to be filled, as it was left or new."""
        if path.exists():
            try:
                table = np.load(path, mmap_mode="r+", allow_pickle=False)
            except (ValueError, EOFError):
                table = None
            if table is not None and table.shape == shape and table.dtype == dtype:
                return table
            logging.warning("%s is damaged: it is made again.", path)
            self._unmark(path.stem)
        return files.new_array(path, dtype, shape)

    def _intact(self, name: str, table: np.ndarray, begins: range) -> set[int]:
        """Numbers of the shards that are marked and have the checksum of their mark."""
        intact = set()
        for path in sorted(self._folder.glob(f"{name}.?????.????????")):
            number = int(path.name.split(".")[1])
            if number < len(begins):
                begin = begins[number]
                if path == self._mark(name, number, table[begin : begin + self._shard_rows]):
                    intact.add(number)
                    continue
            logging.warning(
                "%s: shard %d is damaged: it is computed again.",
                self._folder / f"{name}.npy", number,
            )  # fmt: skip
            path.unlink()
        return intact

    def _mark(self, name: str, number: int, rows: np.ndarray) -> pathlib.Path:
        crc = zlib.crc32(np.ascontiguousarray(rows).data.cast("B"))
        return self._folder / f"{name}.{number:05d}.{crc:08x}"

    def _unmark(self, name: str) -> None:
        for path in self._folder.glob(f"{name}.?????.????????"):
            path.unlink()
