"""Stores of neighborhoods: sampled on demand, or sampled once and cached.

--neighborhood_store chooses one:

  memory  one [N, T] table, 8 bytes per neighbor, sampled before the first step.  For runs
          that look up nodes more often than once (any run of several epochs, and
          inference) if the table fits in memory.
  disk    the same table in verified shards under WORKDIR/neighborhoods (shards.py),
          memory-mapped.  For large tables, and for tables that a later stage or a resumed
          run should find again because sampling takes long.
  none    nothing is cached.  For runs that look up fewer nodes than there are, such as a
          few steps on a large catalog.
  auto    memory up to 256 MiB, else disk.

If training re-samples every epoch, a store in memory caches the lists of one epoch, each
sampled when it is first looked up (EpochLists); the other stores cache none of them.

The lists are the same in every store.  Rows that mask the collection or the neighbor of a
training pair are always sampled on demand, because they belong to the pair and not to the
node.  `python -m benchmarks.run neighborhood_store` measures each store.
"""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable

import numpy as np
from absl import logging

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core import files
from pinsage_jax.core.progress import Progress
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.neighborhoods import Masks, Neighborhoods, WalkTables, visit_counts
from pinsage_jax.sampling.shards import SHARD_NODES, ShardedTable

FOLDER = "neighborhoods"
AUTO_BYTES = 1 << 28
_NODES_PER_STEP = 16384
_FORMAT = 1
_PROBE_NODES = 64


class NeighborhoodSource:
    """Returns the neighbors and visit counts of the nodes of one graph."""

    def __init__(
        self,
        graph: Graph,
        sampling: SamplingConfig,
        seed: int,
        threads: int = 1,
        store: str = "memory",
        folder: str | pathlib.Path | None = None,
    ):
        """Samples nothing yet.

        Args:
          graph: the graph of the walks.
          sampling: settings of the walks.
          seed: seed of the run.
          threads: host threads; the lists do not depend on them.
          store: memory, disk, none or auto; what `materialize` does.
          folder: parent folder of stores on disk; without one, auto means memory.
        """
        self.graph = graph
        self.sampling = sampling
        self.seed = seed
        self.threads = threads
        self.tables = WalkTables(graph)
        self._cache: Neighborhoods | ShardedTable | None = None
        self._epoch_lists: EpochLists | None = None
        self._epoch_lock = threading.Lock()
        if store == "auto":
            size = 8 * self.num_nodes * sampling.num_neighbors
            store = "memory" if folder is None or size <= AUTO_BYTES else "disk"
        self.store = store
        self._folder = folder

    @property
    def num_nodes(self) -> int:
        """Number of nodes with a list: items, or items and collections."""
        return self.graph.num_nodes if self.sampling.neighborhood == "all" else self.graph.num_items

    def with_config(self, sampling: SamplingConfig) -> NeighborhoodSource:
        """A source over the same graph, in the same kind of store, with other settings."""
        return NeighborhoodSource(
            self.graph, sampling, self.seed, self.threads, self.store, self._folder
        )

    def materialize(self) -> Neighborhoods | ShardedTable | None:
        """Samples and caches the lists of all nodes; None if the store caches nothing.

        Raises:
          Stopped: a signal requested a stop.
          UserError: the disk is full or the folder cannot be written.
        """
        if self._cache is None and self.store == "disk":
            self._cache = self._open_shards()
        elif self._cache is None and self.store == "memory":
            size = (self.num_nodes, self.sampling.num_neighbors)
            ids, counts = np.empty(size, np.int32), np.empty(size, np.int32)
            with Progress(self.num_nodes, "node", "sampling neighborhoods") as progress:
                for begin in range(0, self.num_nodes, _NODES_PER_STEP):
                    raise_if_stopped()
                    end = min(begin + _NODES_PER_STEP, self.num_nodes)
                    ids[begin:end], counts[begin:end] = self._sample_rows(begin, end)
                    progress.update(end - begin)
            self._cache = Neighborhoods(ids, counts)
        return self._cache

    def _open_shards(self) -> ShardedTable:
        if self._folder is None:
            raise ValueError("a store on disk needs a folder")
        folder = pathlib.Path(self._folder) / self.key()
        logging.info("neighborhoods of %d nodes are stored in %s", self.num_nodes, folder)
        width = self.sampling.num_neighbors
        table = ShardedTable(folder, self.num_nodes, width, self._sample_rows, SHARD_NODES)
        # From now on only the masked rows of a step are sampled, which read little of the graph.
        files.release(self.graph.indices)
        return table

    def key(self) -> str:
        """16 hexadecimal digits that identify the lists: graph, settings, seed and sampler.

        The key also covers the lists of a few nodes, so that a later version with a
        different sampler has a different key.
        """
        sampling = self.sampling
        nodes = np.linspace(0, max(self.num_nodes - 1, 0), _PROBE_NODES).astype(np.int32)
        nodes = np.unique(nodes)[: self.num_nodes]
        probe = self._sample(nodes, 0, None, None, 1)
        return files.fingerprint(
            [
                _FORMAT,
                self.graph.digest(),
                [sampling.neighborhood, sampling.num_neighbors, sampling.num_walks],
                [sampling.walk_length, sampling.restart, self.seed],
                [probe.ids.tolist(), probe.counts.tolist()],
            ]
        )

    def _sample_rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        lists = self._sample(np.arange(begin, end, dtype=np.int32), 0, None, None, self.threads)
        return lists.ids, lists.counts

    def _sample(self, nodes, epoch, masked_collection, masked_neighbor, threads) -> Neighborhoods:
        return visit_counts(
            self.tables,
            nodes,
            self.sampling,
            seed=self.seed,
            epoch=epoch,
            threads=threads,
            masks=Masks(masked_collection, masked_neighbor),
        )

    def lookup(
        self,
        nodes: np.ndarray,
        epoch: int = 0,
        masked_collection: np.ndarray | None = None,
        masked_neighbor: np.ndarray | None = None,
        threads: int | None = None,
    ) -> Neighborhoods:
        """The neighborhoods of `nodes` (int [S]), arrays [S, T].

        Unless the settings re-sample every epoch, the lists of all epochs are those of
        epoch 0.  Rows with a mask are sampled on demand.

        Args:
          nodes: int [S].
          epoch: epoch of the walks.
          masked_collection, masked_neighbor: int32 [S], -1 for no mask; see Masks.
          threads: host threads; None means those of the source.
        """
        threads = self.threads if threads is None else threads
        epoch = epoch if self.sampling.resample else 0
        masked = np.zeros(len(nodes), bool)
        for mask in (masked_collection, masked_neighbor):
            if mask is not None:
                masked |= mask >= 0
        lists = self._from_cache(nodes, epoch, masked, threads)
        if lists is None:
            return self._sample(nodes, epoch, masked_collection, masked_neighbor, threads)
        rows = np.flatnonzero(masked)
        if rows.size:
            sampled = self._sample(
                nodes[rows],
                epoch,
                None if masked_collection is None else masked_collection[rows],
                None if masked_neighbor is None else masked_neighbor[rows],
                threads,
            )
            lists.ids[rows], lists.counts[rows] = sampled.ids, sampled.counts
        return lists

    def release(self) -> None:
        """Drops the pages of lists on disk, and of the graph, from the memory of the process."""
        files.release(self.graph.indices)
        if isinstance(self._cache, ShardedTable):
            self._cache.release()

    def clear_epoch_lists(self) -> None:
        """Drops the cached lists of an epoch, so that an earlier epoch can be cached."""
        self._epoch_lists = None

    def _from_cache(self, nodes, epoch, masked, threads) -> Neighborhoods | None:
        """Copies of cached lists, valid in rows that are not `masked`; None without a cache."""
        if self._cache is not None and epoch == 0:
            if isinstance(self._cache, ShardedTable):
                return Neighborhoods(*self._cache.lookup(nodes))
            return Neighborhoods(self._cache.ids[nodes], self._cache.counts[nodes])
        if not self.sampling.resample or self.store != "memory":
            return None
        # One thread makes the table of an epoch, and none that is late puts an older one back.
        with self._epoch_lock:
            cache = self._epoch_lists
            if cache is None or cache.epoch < epoch:
                cache = EpochLists(epoch, self.num_nodes, self.sampling.num_neighbors)
                self._epoch_lists = cache
        if cache.epoch != epoch:
            # The caller is a producer that still builds batches of the previous epoch.
            return None

        def walk(missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            lists = self._sample(missing, epoch, None, None, threads)
            return lists.ids, lists.counts

        return Neighborhoods(*cache.lookup(nodes, masked, walk))


class EpochLists:
    """The neighbor lists of one epoch, each sampled when it is first looked up; thread-safe.

    Random walks are keyed by (seed, epoch, node, walk), so a node has the same list in all
    minibatches of an epoch, and walking it again would only repeat the work.  The minibatches
    contain most well-connected nodes every few steps, so re-sampling every epoch costs about
    one walk per node and epoch.

    Attributes:
      epoch: the epoch of the lists.
    """

    def __init__(self, epoch: int, num_nodes: int, width: int):
        """An empty table; the system allocates its pages when they are first written.

        Args:
          epoch: the epoch of the lists.
          num_nodes: N, number of nodes.
          width: T, length of a list.
        """
        self.epoch = epoch
        self._ids = np.empty((num_nodes, width), np.int32)
        self._counts = np.empty((num_nodes, width), np.int32)
        self._filled = np.zeros(num_nodes, np.bool_)
        # A thread reads a row only after it has seen it marked as filled under this lock, under
        # which it was marked.
        self._lock = threading.Lock()

    def lookup(
        self,
        nodes: np.ndarray,
        skip: np.ndarray,
        walk: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The lists of `nodes` (int32 [S]): ids and counts, int32 [S, T] each.

        A node that two threads miss, or that one call contains twice, is walked twice with
        the same result.

        Args:
          nodes: int32 [S].
          skip: bool [S]; skipped rows may hold anything, since the caller overwrites them.
          walk: maps nodes int32 [s] to their ids and counts, int32 [s, T] each.
        """
        with self._lock:
            missing = ~(self._filled[nodes] | skip)
        if missing.any():
            new = nodes[missing]
            self._ids[new], self._counts[new] = walk(new)
            with self._lock:
                self._filled[new] = True
        return self._ids[nodes], self._counts[nodes]
