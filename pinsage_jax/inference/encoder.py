"""The encoder: embeds the nodes of one graph from their neighbor lists and inputs.

A run has two encoders with the same parameters: one over the training graph, to fit and to
validate, and one over the whole graph, to embed.  The network is inductive, so it may pool
over edges that training did not see.
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

_LIST_ROWS = 1 << 14


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns nodes of one graph into embeddings, given parameters.

    Attributes:
      lists: neighbor lists that minibatches are built from.
      inputs: input vectors of nodes.
    """

    config: Config
    lists: NeighborLists
    inputs: NodeInputs

    @classmethod
    def over(cls, config: Config, prepared: Prepared, graph: Graph, bases: np.ndarray) -> Encoder:
        """The encoder with the neighborhoods, degrees and spectral features of `graph`.

        Args:
          bases: float32 [num_items, r] of the training graph (spectral_bases).
        """
        view = GraphView.over(config, prepared, graph, bases)
        return cls(config, view.lists, view.inputs)

    @property
    def inference_lists(self) -> NeighborLists:
        """Samples the lists that embeddings pool over, from --embed_walks walks per node.

        There are more walks than in training because visit counts are estimates, and these
        lists are sampled once instead of every step.
        """
        walks = self.config.embed.embed_walks or self.config.sampling.num_walks
        return self.lists.with_num_walks(walks)

    @functools.cached_property
    def all_inference_lists(self) -> tuple[np.ndarray | ListColumn, np.ndarray | ListColumn]:
        """The lists of all nodes that embeddings pool over: ids and weights [N, T+C]."""
        return self.inference_lists.all_rows()

    def embed(
        self,
        params: Any,
        quiet: bool = False,
        tables: Tables | None = None,
        adjust: Adjust | None = None,
    ) -> np.ndarray:
        """Embeds every item, and with --neighborhood=all every collection: float32 [nodes, Z].

        Args:
          tables, adjust: see PassOptions; by default the tables are freed after the pass.
        """
        # Lists that a store keeps on disk need no copy in the tables.
        ids: np.ndarray | ListColumn
        weights: np.ndarray | ListColumn
        if tables is not None and (tables.keep or self.lists.source.store != "disk"):
            ids, weights = stored_lists(tables, self.inference_lists, self.lists.source.num_nodes)
        else:
            ids, weights = self.all_inference_lists
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
    """Makes the neighbor lists of any nodes, all of width W."""

    @property
    def width(self) -> int:
        """W."""

    def lookup(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n, W] and weights float32 [n, W] of `nodes`."""


def stored_lists(
    tables: Tables, lists: ListSource, num_nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the table "lists" where it is missing: ids int32 [N, W], weights float32 [N, W]."""

    def fill(begin: int, end: int, out: np.ndarray) -> None:
        with Progress(end - begin, "node", "sampling neighborhoods") as progress:
            for first in range(begin, end, _LIST_ROWS):
                nodes = np.arange(first, min(first + _LIST_ROWS, end), dtype=np.int32)
                out[first : first + len(nodes)] = list_rows(*lists.lookup(nodes))
                progress.update(len(nodes))

    table = tables.get_or_fill("lists", (num_nodes, 2 * lists.width), fill, np.int32)
    return split_lists(table)


def list_rows(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Packs ids and weights [n, W] into rows int32 [n, 2W] of the table of lists."""
    return np.concatenate([ids, weights.astype(np.float32).view(np.int32)], axis=1)


def split_lists(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views of rows of the table of lists: ids int32 [n, W] and weights float32 [n, W]."""
    width = rows.shape[1] // 2
    return rows[:, :width], rows[:, width:].view(np.float32)
