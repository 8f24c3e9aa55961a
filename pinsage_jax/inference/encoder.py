"""The encoder: one graph, its neighbor lists and inputs, and how they become embeddings.

Training and export use two of them with the same parameters: over the training graph
to fit and validate, over the whole graph to embed.  The network is inductive, so edges
that training withheld may be pooled over afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np

from pinsage_jax.batching.graph_view import GraphView
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core.progress import Progress
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.layerwise import Adjust, PassOptions, embed_all
from pinsage_jax.inference.tables import ScratchTables, Tables
from pinsage_jax.sampling.lists import ListColumn, NeighborLists

_LISTS_AT_ONCE = 1 << 14


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What turns nodes of one graph into embeddings, given parameters.

    Attributes:
      lists: neighbor lists that minibatches are built from.
      inputs: input vectors of nodes.
    """

    config: Config
    lists: NeighborLists
    inputs: NodeInputs

    @classmethod
    def over(cls, config: Config, prepared: Prepared, graph: Graph, bases: np.ndarray) -> Encoder:
        """An encoder whose neighborhoods, degrees and places come from `graph`.

        Args:
          bases: float32 [num_items, r] of the training graph (spectral_bases).
        """
        view = GraphView.over(config, prepared, graph, bases)
        return cls(config, view.lists, view.inputs)

    @property
    def final_source(self) -> NeighborLists:
        """What makes the lists that embeddings pool over.

        Of the same kind as in training, from more walks (--embed_walks): visit counts
        are estimates, and here they are made once instead of every step.
        """
        walks = self.config.embed.embed_walks or self.config.sampling.num_walks
        return self.lists.with_num_walks(walks)

    @functools.cached_property
    def final_lists(self) -> tuple[np.ndarray | ListColumn, np.ndarray | ListColumn]:
        """Lists of all nodes that embeddings pool over: ids and weights [N, T+C]."""
        return self.final_source.all_rows()

    def embed(
        self,
        params: Any,
        quiet: bool = False,
        tables: Tables | None = None,
        adjust: Adjust | None = None,
    ) -> np.ndarray:
        """float32 [nodes, Z] of every item (and collection, with --neighborhood=all).

        Args:
          tables, adjust: as in PassOptions; by default tables of this pass alone.
        """
        # Lists that a store keeps on disk are found again without a copy here.
        ids: np.ndarray | ListColumn
        weights: np.ndarray | ListColumn
        if tables is not None and (tables.keep or self.lists.source.store != "disk"):
            ids, weights = tabled_lists(tables, self.final_source, self.lists.source.num_nodes)
        else:
            ids, weights = self.final_lists
        return embed_all(
            self.config.model,
            params,
            self.inputs,
            (ids, weights),
            PassOptions(
                self.config.embed.embed_block,
                self.config.host_threads,
                quiet,
                tables or ScratchTables(self.config.workdir),
                adjust,
            ),
        )


class ListSource(Protocol):
    """What makes the lists of any nodes: `lookup`(int32 [n]) is ids and weights [n, W]."""

    @property
    def width(self) -> int:
        """W."""

    def lookup(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n, W] and weights float32 [n, W] of `nodes`."""


def tabled_lists(
    tables: Tables, lists: ListSource, num_nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of all nodes as one table `lists`: ids int32 [N, W] and weights float32 [N, W]."""

    def fill(begin: int, end: int, out: np.ndarray) -> None:
        with Progress(end - begin, "node", "sampling neighborhoods") as progress:
            for first in range(begin, end, _LISTS_AT_ONCE):
                nodes = np.arange(first, min(first + _LISTS_AT_ONCE, end), dtype=np.int32)
                out[first : first + len(nodes)] = list_rows(*lists.lookup(nodes))
                progress.update(len(nodes))

    table = tables.get_or_fill("lists", (num_nodes, 2 * lists.width), fill, np.int32)
    return split_lists(table)


def list_rows(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ids and weights [n, W] as rows int32 [n, 2W] of the table of lists."""
    return np.concatenate([ids, weights.astype(np.float32).view(np.int32)], axis=1)


def split_lists(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 and weights float32 [n, W] of rows of the table of lists, without a copy."""
    width = rows.shape[1] // 2
    return rows[:, :width], rows[:, width:].view(np.float32)
