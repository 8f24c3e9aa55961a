"""Neighbor lists on disk: a table of all nodes in shards, written so that a build can resume.

FOLDER/
  00012-1a2b3c4d.npy   int32 [2, rows, T]: ids and visit counts of the nodes from
                       12 * shard_nodes on; the name contains the CRC-32 of the file

A shard is written under a temporary name and renamed, so that it is complete or absent,
and an interrupted build continues with the missing shards.  Opening the table verifies
every shard against its checksum; a damaged one is reported and sampled again.  The
folder's name, which the caller chooses, must identify the lists.
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

# (begin, end) -> ids and counts, int32 [end - begin, T] each, of these nodes.
SampleRows = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


class ShardedTable:
    """Neighbor lists [N, T] in memory-mapped, verified shards."""

    def __init__(
        self,
        folder: pathlib.Path,
        num_nodes: int,
        width: int,
        sample_rows: SampleRows,
        shard_nodes: int = SHARD_NODES,
    ):
        """Opens the shards of `folder` and samples those that are missing or damaged.

        Args:
          folder: folder of the shards; created if it does not exist.
          num_nodes: N, number of nodes.
          width: T, length of a list.
          sample_rows: computes lists; it must return the same ones in every run.
          shard_nodes: number of nodes per shard.

        Raises:
          Stopped: a signal requested a stop; the shards written so far remain.
          UserError: the disk is full or the folder cannot be written.
        """
        with files.reported_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.remove_temporary_files(folder)
        self._folder, self._width = folder, width
        self._shard_nodes = shard_nodes
        self._shards: list[np.ndarray] = []
        existing = _paths_by_number(folder)
        with Progress(num_nodes, "node", "neighborhoods on disk") as progress:
            for number, begin in enumerate(range(0, num_nodes, shard_nodes)):
                raise_if_stopped()
                end = min(begin + shard_nodes, num_nodes)
                shard = None
                for path in existing.get(number, []):
                    shard = self._open(path, end - begin) if shard is None else shard
                if shard is None:
                    shard = self._open(self._write(number, sample_rows(begin, end)), end - begin)
                if shard is None:
                    raise OSError(f"{folder} does not return the bytes that were written to it")
                self._shards.append(shard)
                progress.update(end - begin)

    def _write(self, number: int, rows: tuple[np.ndarray, np.ndarray]) -> pathlib.Path:
        buffer = io.BytesIO()
        np.save(buffer, np.stack(rows).astype(np.int32, copy=False), allow_pickle=False)
        data = buffer.getbuffer()
        path = self._folder / f"{number:05d}-{zlib.crc32(data):08x}.npy"
        with files.atomic_file(path) as temporary:
            temporary.write_bytes(data)
        return path

    def _open(self, path: pathlib.Path, rows: int) -> np.ndarray | None:
        """The shard int32 [2, rows, T]; deletes the file and returns None if it is damaged."""
        if files.checksum(path) == path.stem.partition("-")[2]:
            shard = files.read_array(path)
            if shard.shape == (2, rows, self._width) and shard.dtype == np.int32:
                return shard
        logging.warning("%s is damaged: its neighborhoods are sampled again.", path)
        path.unlink()
        return None

    def lookup(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the ids and counts, int32 [S, T] each, of `nodes` (int [S])."""
        ids = np.empty((len(nodes), self._width), np.int32)
        counts = np.empty_like(ids)
        shard_number, row = np.divmod(nodes, self._shard_nodes)
        order = np.argsort(shard_number, kind="stable")
        bounds = np.searchsorted(shard_number[order], np.arange(len(self._shards) + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            members = order[bounds[number] : bounds[number + 1]]
            shard = self._shards[number]
            ids[members], counts[members] = shard[0][row[members]], shard[1][row[members]]
        return ids, counts

    def release(self) -> None:
        """Drops the pages of the shards from the memory of the process."""
        for shard in self._shards:
            files.release(shard)


def _paths_by_number(folder: pathlib.Path) -> dict[int, list[pathlib.Path]]:
    paths: dict[int, list[pathlib.Path]] = {}
    for path in sorted(folder.glob("*-*.npy")):
        number = path.stem.partition("-")[0]
        if number.isdigit():
            paths.setdefault(int(number), []).append(path)
    return paths
