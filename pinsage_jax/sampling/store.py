"""Where neighbourhoods come from: walked when asked for, or walked once and kept.

A kept store is a [N, T] table (8 bytes a neighbour).  It is right when a node is
asked for more often than once per set of neighbourhoods, which is the case in any
run of several epochs without re-sampling, and in inference.  Rows that hide the
collection or the edge behind a training pair are always walked when asked for,
because they belong to the pair and not to the node.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.config import SamplingConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.progress import Progress
from pinsage_jax.sampling.neighbourhoods import Neighbourhoods, WalkTables, visit_counts

_NODES_PER_STEP = 16384


class NeighbourhoodSource:
    """Answers "which neighbours, with how many visits" for nodes of one graph."""

    def __init__(self, graph: Graph, sampling: SamplingConfig, seed: int, threads: int = 1):
        self.graph = graph
        self.sampling = sampling
        self.seed = seed
        self.threads = threads
        self.tables = WalkTables(graph)
        self._kept: Neighbourhoods | None = None

    @property
    def num_nodes(self) -> int:
        """Nodes that can be asked for: items, or items and collections."""
        return (
            self.graph.num_nodes if self.sampling.neighbourhood == "all" else self.graph.num_items
        )

    def keep_all(self) -> Neighbourhoods:
        """Walks from every node once and keeps the lists; [N, T] arrays."""
        if self._kept is None:
            size = (self.num_nodes, self.sampling.num_neighbours)
            ids, counts = np.empty(size, np.int32), np.empty(size, np.int32)
            with Progress(self.num_nodes, "node", "sampling neighbourhoods") as progress:
                for begin in range(0, self.num_nodes, _NODES_PER_STEP):
                    end = min(begin + _NODES_PER_STEP, self.num_nodes)
                    found = self._walk(
                        np.arange(begin, end, dtype=np.int32), 0, None, None, self.threads
                    )
                    ids[begin:end], counts[begin:end] = found.ids, found.counts
                    progress.update(end - begin)
            self._kept = Neighbourhoods(ids, counts)
        return self._kept

    def _walk(self, nodes, epoch, hidden, dropped, threads) -> Neighbourhoods:
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
    ) -> Neighbourhoods:
        """Neighbourhoods of `nodes` (int [S]) as [S, T] arrays.

        Unless the settings ask to re-sample, every epoch gives the lists of epoch
        0.  A row with `hidden` or `dropped` set (not -1) is walked accordingly.
        """
        threads = self.threads if threads is None else threads
        epoch = epoch if self.sampling.resample else 0
        if self._kept is None or epoch != 0:
            return self._walk(nodes, epoch, hidden, dropped, threads)
        ids, counts = self._kept.ids[nodes], self._kept.counts[nodes]
        special = np.zeros(len(nodes), bool)
        for limit in (hidden, dropped):
            if limit is not None:
                special |= limit >= 0
        rows = np.flatnonzero(special)
        if rows.size:
            walked = self._walk(
                nodes[rows],
                0,
                None if hidden is None else hidden[rows],
                None if dropped is None else dropped[rows],
                threads,
            )
            ids[rows], counts[rows] = walked.ids, walked.counts
        return Neighbourhoods(ids, counts)
