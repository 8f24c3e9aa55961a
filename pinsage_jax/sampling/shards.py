"""Neighbor lists on disk: a table of all nodes in shards that outlive a kill.

FOLDER/
  00012-1a2b3c4d.npy   int32 [2, rows, T]: ids and visit counts of nodes
                       [12 * shard_nodes, ...); the name holds the CRC-32 of the file

A shard is written beside and renamed, so it is there whole or not at all, and a build
that was stopped goes on with the shards that are missing.  Opening reads every shard
once against its checksum; one that differs is named and made again.  The folder says
nothing about what the lists are of: its name is the caller's key.
"""

from __future__ import annotations

import io
import pathlib
import zlib
from collections.abc import Callable

import numpy as np
from absl import logging

from pinsage_jax.core import files
from pinsage_jax.core.progress import Progress
from pinsage_jax.core.signals import raise_if_stopped

SHARD_NODES = 1 << 16

# (begin, end) -> ids and counts int32 [end - begin, T] of these nodes.
MakeRows = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


class ShardedTable:
    """Lists [N, T] in memory-mapped shards, complete and checked."""

    def __init__(
        self,
        folder: pathlib.Path,
        num_nodes: int,
        width: int,
        make: MakeRows,
        shard_nodes: int = SHARD_NODES,
    ):
        """Opens the shards of `folder` and makes those that are missing or damaged.

        Args:
          num_nodes: N; width: T; shard_nodes: nodes of a shard.
          make: gives the same rows whenever it is called.

        Raises:
          Stopped: a signal asked the run to stop; the shards made so far stay.
          UserError: the disk is full or the folder cannot be written.
        """
        with files.reported_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.remove_temporary_files(folder)
        self._folder, self._width = folder, width
        self._shard_nodes = shard_nodes
        self._shards: list[np.ndarray] = []
        found = _paths_by_number(folder)
        with Progress(num_nodes, "node", "neighborhoods on disk") as progress:
            for number, begin in enumerate(range(0, num_nodes, shard_nodes)):
                raise_if_stopped()
                end = min(begin + shard_nodes, num_nodes)
                shard = None
                for path in found.get(number, []):
                    shard = self._opened(path, end - begin) if shard is None else shard
                if shard is None:
                    shard = self._opened(self._written(number, make(begin, end)), end - begin)
                if shard is None:
                    raise OSError(f"{folder} does not keep what is written to it")
                self._shards.append(shard)
                progress.update(end - begin)

    def _written(self, number: int, rows: tuple[np.ndarray, np.ndarray]) -> pathlib.Path:
        buffer = io.BytesIO()
        np.save(buffer, np.stack(rows).astype(np.int32, copy=False), allow_pickle=False)
        data = buffer.getbuffer()
        path = self._folder / f"{number:05d}-{zlib.crc32(data):08x}.npy"
        with files.atomic_file(path) as temporary:
            temporary.write_bytes(data)
        return path

    def _opened(self, path: pathlib.Path, rows: int) -> np.ndarray | None:
        """The shard int32 [2, rows, T]; None, and the file deleted, if it is damaged."""
        if files.checksum(path) == path.stem.partition("-")[2]:
            shard = files.read_array(path)
            if shard.shape == (2, rows, self._width) and shard.dtype == np.int32:
                return shard
        logging.warning("%s is damaged: its neighborhoods are sampled again.", path)
        path.unlink()
        return None

    def take(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the ids and counts, int32 [S, T], of `nodes` (int [S])."""
        ids = np.empty((len(nodes), self._width), np.int32)
        counts = np.empty_like(ids)
        shard, row = np.divmod(nodes, self._shard_nodes)
        order = np.argsort(shard, kind="stable")
        bounds = np.searchsorted(shard[order], np.arange(len(self._shards) + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            places = order[bounds[number] : bounds[number + 1]]
            of_shard = self._shards[number]
            ids[places], counts[places] = of_shard[0][row[places]], of_shard[1][row[places]]
        return ids, counts


def _paths_by_number(folder: pathlib.Path) -> dict[int, list[pathlib.Path]]:
    found: dict[int, list[pathlib.Path]] = {}
    for path in sorted(folder.glob("*-*.npy")):
        number = path.stem.partition("-")[0]
        if number.isdigit():
            found.setdefault(int(number), []).append(path)
    return found
