"""Where neighborhoods come from: walked when asked for, or walked once and kept.

--neighborhood_store says which:

  memory  one [N, T] table, 8 bytes a neighbor, made before the first step.  Right
          where nodes are asked for more often than once per set of neighborhoods (any
          run of several epochs, and inference) and the table fits beside the rest.
  disk    the same table in checked shards under WORKDIR/neighborhoods (shards.py),
          memory-mapped.  Right where the table is large, or its making so long that a
          later stage or a run that was killed should find it again.
  none    nothing is kept.  Right for runs that ask for fewer nodes than there are: a
          few steps on a large catalog.
  auto    memory up to 256 MiB, disk beyond.

Where training re-samples every epoch a store in memory keeps the lists of one epoch, each
walked when it is first asked for (epoch_lists.py); the others then keep none.

The lists are the same in each.  Rows that hide the collection or the edge behind a
training pair are always walked when asked for, because they belong to the pair and not
to the node.  `python -m benchmarks.run neighborhood_store` measures each.
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import logging

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core import files
from pinsage_jax.core.progress import Progress
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.epoch_lists import EpochLists
from pinsage_jax.sampling.neighborhoods import Neighborhoods, WalkTables, visit_counts
from pinsage_jax.sampling.shards import SHARD_NODES, ShardedTable

FOLDER = "neighborhoods"
AUTO_BYTES = 1 << 28
_NODES_PER_STEP = 16384
_FORMAT = 1
_PROBED = 64


class NeighborhoodSource:
    """Answers "which neighbors, with how many visits" for nodes of one graph."""

    def __init__(
        self,
        graph: Graph,
        sampling: SamplingConfig,
        seed: int,
        threads: int = 1,
        store: str = "memory",
        folder: str | pathlib.Path | None = None,
    ):
        """Nothing is sampled yet.

        Args:
          store: memory, disk, none or auto: what `materialize` does.
          folder: where stores on disk lie, each in a folder named by its key; without
            one auto stays in memory.
        """
        self.graph = graph
        self.sampling = sampling
        self.seed = seed
        self.threads = threads
        self.tables = WalkTables(graph)
        self._kept: Neighborhoods | ShardedTable | None = None
        self._newest: EpochLists | None = None
        if store == "auto":
            size = 8 * self.num_nodes * sampling.num_neighbors
            store = "memory" if folder is None or size <= AUTO_BYTES else "disk"
        self.store = store
        self._folder = folder

    @property
    def num_nodes(self) -> int:
        """Nodes that can be asked for: items, or items and collections."""
        return self.graph.num_nodes if self.sampling.neighborhood == "all" else self.graph.num_items

    def like(self, sampling: SamplingConfig) -> NeighborhoodSource:
        """A source with other settings over the same graph, in the same kind of store."""
        return NeighborhoodSource(
            self.graph, sampling, self.seed, self.threads, self.store, self._folder
        )

    def materialize(self) -> Neighborhoods | ShardedTable | None:
        """Walks from every node once and keeps the lists, as far as the store keeps any.

        Raises:
          Stopped, UserError: as ShardedTable does, with a store on disk.
        """
        if self._kept is None and self.store == "disk":
            self._kept = self._on_disk()
        elif self._kept is None and self.store == "memory":
            size = (self.num_nodes, self.sampling.num_neighbors)
            ids, counts = np.empty(size, np.int32), np.empty(size, np.int32)
            with Progress(self.num_nodes, "node", "sampling neighborhoods") as progress:
                for begin in range(0, self.num_nodes, _NODES_PER_STEP):
                    end = min(begin + _NODES_PER_STEP, self.num_nodes)
                    ids[begin:end], counts[begin:end] = self._rows(begin, end)
                    progress.update(end - begin)
            self._kept = Neighborhoods(ids, counts)
        return self._kept

    def _on_disk(self) -> ShardedTable:
        if self._folder is None:
            raise ValueError("a store on disk needs a folder")
        folder = pathlib.Path(self._folder) / self.key()
        logging.info("neighborhoods of %d nodes are kept in %s", self.num_nodes, folder)
        width = self.sampling.num_neighbors
        table = ShardedTable(folder, self.num_nodes, width, self._rows, SHARD_NODES)
        # What is left to walk are a few rows a step.
        files.release(self.graph.indices)
        return table

    def key(self) -> str:
        """What lists depend on, as 16 hexadecimal digits: graph, settings, seed, sampler.

        A few lists are sampled for it, so that a sampler that answers otherwise, in a
        later version, has a key of its own.
        """
        sampling = self.sampling
        some = np.unique(np.linspace(0, max(self.num_nodes - 1, 0), _PROBED).astype(np.int32))
        probe = self._walk(some[: self.num_nodes], 0, None, None, 1)
        return files.fingerprint(
            [
                _FORMAT,
                self.graph.digest(),
                [sampling.neighborhood, sampling.num_neighbors, sampling.num_walks],
                [sampling.walk_length, sampling.restart, sampling.restart_ends, self.seed],
                [probe.ids.tolist(), probe.counts.tolist()],
            ]
        )

    def _rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._walk(np.arange(begin, end, dtype=np.int32), 0, None, None, self.threads)
        return found.ids, found.counts

    def _walk(self, nodes, epoch, hidden, dropped, threads) -> Neighborhoods:
        return visit_counts(
            self.tables,
            nodes,
            self.sampling,
            seed=self.seed,
            epoch=epoch,
            threads=threads,
            hidden=hidden,
            dropped=dropped,
        )

    def lookup(
        self,
        nodes: np.ndarray,
        epoch: int = 0,
        hidden: np.ndarray | None = None,
        dropped: np.ndarray | None = None,
        threads: int | None = None,
    ) -> Neighborhoods:
        """Neighborhoods of `nodes` (int [S]) as [S, T] arrays.

        Unless the settings ask to re-sample, every epoch gives the lists of epoch
        0.  A row with `hidden` or `dropped` set (not -1) is walked accordingly.
        """
        threads = self.threads if threads is None else threads
        epoch = epoch if self.sampling.resample else 0
        special = np.zeros(len(nodes), bool)
        for limit in (hidden, dropped):
            if limit is not None:
                special |= limit >= 0
        found = self._from_tables(nodes, epoch, special, threads)
        if found is None:
            return self._walk(nodes, epoch, hidden, dropped, threads)
        rows = np.flatnonzero(special)
        if rows.size:
            walked = self._walk(
                nodes[rows],
                epoch,
                None if hidden is None else hidden[rows],
                None if dropped is None else dropped[rows],
                threads,
            )
            found.ids[rows], found.counts[rows] = walked.ids, walked.counts
        return found

    def forget_epochs(self) -> None:
        """Drops the lists of the newest epoch: what is asked for next may be an older one."""
        self._newest = None

    def _from_tables(self, nodes, epoch, special, threads) -> Neighborhoods | None:
        """New arrays with the lists of an epoch, right where not `special`; None: none is kept."""
        if self._kept is not None and epoch == 0:
            if isinstance(self._kept, ShardedTable):
                return Neighborhoods(*self._kept.take(nodes))
            return Neighborhoods(self._kept.ids[nodes], self._kept.counts[nodes])
        if not self.sampling.resample or self.store != "memory":
            return None
        lists = self._newest
        if lists is None or lists.epoch < epoch:
            lists = EpochLists(epoch, self.num_nodes, self.sampling.num_neighbors)
            self._newest = lists
        if lists.epoch != epoch:
            # Of a producer that is still in the epoch before.
            return None

        def walk(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            walked = self._walk(some, epoch, None, None, threads)
            return walked.ids, walked.counts

        return Neighborhoods(*lists.take(nodes, special, walk))
