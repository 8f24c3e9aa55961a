"""Storage of the tables that layer-wise inference fills: lists, messages, layers, vectors.

ScratchTables     in memory, or in unnamed temporary files above a size; for one pass.
PersistentTables  in files of a folder, filled shard by shard, so that a run that was killed
                  continues with the missing shards:

  messages1.npy             float32 [N, M], one array, memory-mapped
  messages1.00002.1a2b3c4d  empty; marks shard 2 as written and names its CRC-32

A shard is flushed to disk before its mark is made.  Opening a table compares every marked
shard with its checksum; a shard that differs is reported and filled again.  As in the
store of neighborhoods (sampling/shards.py) the name of the folder is a key that the caller
makes of everything the tables depend on.  Unlike there a table is one file, because a row
of the next layer reads rows of all shards.
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
# A larger scratch table is a file, if there is a folder for it.
MAX_TABLE_BYTES = 1 << 30

# (begin, end, table): fills rows [begin, end) of the table.
Fill = Callable[[int, int, np.ndarray], None]


class Tables(Protocol):
    """Tables by name, each filled once.

    Attributes:
      keep: whether the tables stay when the run ends.
    """

    keep: bool

    def get_or_fill(
        self, name: str, shape: tuple[int, int], fill: Fill, dtype: Any = np.float32
    ) -> np.ndarray:
        """The table of a name [rows, columns]; `fill` computes rows that are missing."""

    def drop(self, name: str) -> None:
        """Frees a table that will not be read again."""


class ScratchTables:
    """Tables of one pass."""

    keep = False

    def __init__(self, folder: str | os.PathLike | None = None):
        """Takes a folder for large tables; None: all tables in memory."""
        self._folder = folder
        self._loaded: dict[str, np.ndarray] = {}

    def get_or_fill(
        self, name: str, shape: tuple[int, int], fill: Fill, dtype: Any = np.float32
    ) -> np.ndarray:
        """See Tables."""
        if name not in self._loaded:
            table = files.scratch_array(shape, self._folder, MAX_TABLE_BYTES, dtype)
            fill(0, shape[0], table)
            self._loaded[name] = table
        return self._loaded[name]

    def drop(self, name: str) -> None:
        """See Tables."""
        self._loaded.pop(name, None)


class PersistentTables:
    """Tables on disk, with which a run continues after it was killed."""

    def __init__(self, folder: pathlib.Path, shard_rows: int, keep: bool = False):
        """Opens or makes the folder.

        Args:
          shard_rows: rows of a shard.
          keep: whether the tables of layers stay when they have been read.

        Raises:
          UserError: the folder cannot be written.
        """
        with files.reported_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._shard_rows, self.keep = folder, shard_rows, keep
        self._loaded: dict[str, np.ndarray] = {}

    def get_or_fill(
        self, name: str, shape: tuple[int, int], fill: Fill, dtype: Any = np.float32
    ) -> np.ndarray:
        """The table of a name, memory-mapped read-only; `fill` computes missing shards.

        Raises:
          Stopped: a signal stopped the run; the shards filled so far stay.
          UserError: the disk is full.
        """
        if name in self._loaded:
            return self._loaded[name]
        if 0 in shape:
            self._loaded[name] = np.empty(shape, dtype)
            return self._loaded[name]
        path = self._folder / f"{name}.npy"
        with files.reported_os_errors(path):
            table = self._opened(path, shape, np.dtype(dtype))
            begins = range(0, shape[0], self._shard_rows)
            intact = self._intact(name, table, begins)
            if intact and len(intact) < len(begins):
                logging.info(
                    "%s: %d of %d shards are on disk already", path, len(intact), len(begins)
                )
            for number, begin in enumerate(begins):
                if number in intact:
                    continue
                raise_if_stopped()
                end = min(begin + self._shard_rows, shape[0])
                fill(begin, end, table)
                table.flush()
                # After the flush: a mark says that the shard is on disk.
                self._mark(name, number, table[begin:end]).touch()
                files.release(table)
        self._loaded[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._loaded[name]

    def drop(self, name: str) -> None:
        """Deletes a table: messages always, a layer unless `keep`."""
        if self.keep and not name.startswith("messages"):
            return
        self._loaded.pop(name, None)
        for path in self._folder.glob(f"{name}.*"):
            path.unlink()

    def remove_others(self) -> None:
        """Deletes the other folders beside this one, of other models or data."""
        for path in self._folder.parent.iterdir():
            if path != self._folder and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def _opened(self, path: pathlib.Path, shape: tuple[int, int], dtype: np.dtype) -> np.memmap:
        """The table to fill: the file of an earlier run, or a new one."""
        if path.exists():
            try:
                table = np.load(path, mmap_mode="r+", allow_pickle=False)
            except (ValueError, EOFError):
                table = None
            if table is not None and table.shape == shape and table.dtype == dtype:
                return table
            logging.warning("%s is damaged; computing it again.", path)
            self._unmark(path.stem)
        return files.new_array(path, dtype, shape)

    def _intact(self, name: str, table: np.ndarray, begins: range) -> set[int]:
        """Numbers of the marked shards whose checksums are those of their marks."""
        intact = set()
        for path in sorted(self._folder.glob(f"{name}.?????.????????")):
            number = int(path.name.split(".")[1])
            if number < len(begins):
                begin = begins[number]
                if path == self._mark(name, number, table[begin : begin + self._shard_rows]):
                    intact.add(number)
                    continue
            logging.warning(
                "%s: shard %d is damaged; computing it again.",
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
