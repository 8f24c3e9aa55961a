"""The encoder: one graph, its neighbor lists and inputs, and how they become embeddings.

Training and export use two of them with the same parameters: over the training graph
to fit and validate, over the whole graph to embed.  The network is inductive, so edges
that training withheld may be pooled over afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import Any, Protocol

import numpy as np
from absl import logging

from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.progress import Progress
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.inference.layerwise import Adjust, embed_all
from pinsage_jax.inference.tables import ScratchTables, Tables
from pinsage_jax.sampling import store
from pinsage_jax.sampling.content_links import (
    MOST_CANDIDATES,
    ContentLinks,
    content_links,
    spread,
)
from pinsage_jax.sampling.lists import ListColumn, NeighborLists
from pinsage_jax.sampling.spectral import MOST_PLACE_NUMBERS, Structure, saved_bases
from pinsage_jax.sampling.store import NeighborhoodSource

_LISTS_AT_ONCE = 1 << 14


def threads_of(config: Config) -> int:
    """Host threads to use."""
    return config.threads or len(os.sched_getaffinity(0))


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
        source = NeighborhoodSource(
            graph,
            config.sampling,
            config.seed,
            threads_of(config),
            config.store.neighborhood_store,
            pathlib.Path(config.workdir) / store.FOLDER,
        )
        structure = Structure(graph, bases, threads_of(config)) if bases.shape[1] else None
        inputs = node_inputs(config, prepared.features, graph.degree(), structure)
        links = _content_links(config, prepared, graph)
        return cls(config, NeighborLists.made_of(source, links, config), inputs)

    @property
    def final_source(self) -> NeighborLists:
        """What makes the lists that embeddings pool over.

        Of the same kind as in training, from more walks (--embed_walks): visit counts
        are estimates, and here they are made once instead of every step.
        """
        walks = self.config.embed.embed_walks or self.config.sampling.num_walks
        return self.lists.with_walks(walks)

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
          tables, adjust: as in embed_all; by default tables of this pass alone.
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
            ids,
            weights,
            block=self.config.embed.embed_block,
            threads=threads_of(self.config),
            quiet=quiet,
            tables=tables or ScratchTables(self.config.workdir),
            adjust=adjust,
        )


class ListSource(Protocol):
    """What makes the lists of any nodes: `of`(int32 [n]) is ids and weights [n, W]."""

    @property
    def width(self) -> int:
        """W."""

    def of(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n, W] and weights float32 [n, W] of `nodes`."""


def tabled_lists(
    tables: Tables, lists: ListSource, num_nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of all nodes as one table `lists`: ids int32 [N, W] and weights float32 [N, W]."""

    def fill(begin: int, end: int, out: np.ndarray) -> None:
        with Progress(end - begin, "node", "sampling neighborhoods") as progress:
            for first in range(begin, end, _LISTS_AT_ONCE):
                nodes = np.arange(first, min(first + _LISTS_AT_ONCE, end), dtype=np.int32)
                out[first : first + len(nodes)] = list_rows(*lists.of(nodes))
                progress.update(len(nodes))

    table = tables.filled("lists", (num_nodes, 2 * lists.width), fill, np.int32)
    return split_lists(table)


def list_rows(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ids and weights [n, W] as rows int32 [n, 2W] of the table of lists."""
    return np.concatenate([ids, weights.astype(np.float32).view(np.int32)], axis=1)


def split_lists(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 and weights float32 [n, W] of rows of the table of lists, without a copy."""
    width = rows.shape[1] // 2
    return rows[:, :width], rows[:, width:].view(np.float32)


def node_inputs(
    config: Config,
    features: np.ndarray,
    degree: np.ndarray,
    structure: Structure | None,
    scale: np.ndarray | None = None,
) -> NodeInputs:
    """Input vectors with the columns that `config` asks for; see NodeInputs."""
    return NodeInputs(
        features,
        degree,
        degree_feature=config.model.degree_feature,
        edgeless_feature=config.model.edgeless_feature,
        node_type=config.sampling.neighborhood == "all",
        whiten=config.model.whiten,
        structure=structure,
        scale=scale,
    )


def spectral_bases(config: Config, prepared: Prepared, split: ValidationSplit) -> np.ndarray:
    """Base vectors of the training graph's structure, [num_items, r]; r = 0 for none.

    r is --spectral_dim, or less where that would make more than MOST_PLACE_NUMBERS.
    """
    items = prepared.graph.num_items
    dim = min(config.model.spectral_dim, MOST_PLACE_NUMBERS // max(items, 1))
    if not dim:
        return np.zeros((items, 0), np.float32)
    if dim < config.model.spectral_dim:
        logging.info("%d items: places have %d dimensions, to fit into memory", items, dim)
    settings = [dataclasses.asdict(config.split), config.seed, config.model.spectral_dim]
    return saved_bases(
        config.workdir,
        split.train_graph,
        dim,
        config.seed,
        files.fingerprint([prepared.manifest["fingerprint"], *settings]),
    )


def lists_of_some(config: Config, prepared: Prepared, items: np.ndarray) -> NeighborLists:
    """The lists that embeddings of `items` (int [n]) pool over; of no other node.

    The same as Encoder.final_lists over the whole graph, without the work for all.
    """
    walks = config.embed.embed_walks or config.sampling.num_walks
    sampling = dataclasses.replace(config.sampling, num_walks=walks)
    source = NeighborhoodSource(prepared.graph, sampling, config.seed, threads_of(config), "none")
    links = _content_links(config, prepared, prepared.graph, np.unique(items))
    return NeighborLists.made_of(source, links, config)


def _content_links(
    config: Config, prepared: Prepared, graph: Graph, only: np.ndarray | None = None
) -> ContentLinks:
    """Content links over `graph`, of the items `only` (int [n], ascending) or of all.

    None where there is no content or none are asked for.
    """
    size, items = config.sampling.content_neighbors, graph.num_items
    if not size or not prepared.features.shape[1]:
        return ContentLinks.none(items)
    degree = graph.degree()[:items]
    linked = np.flatnonzero(degree > 0)
    wanted = np.arange(items) if only is None else only
    if items > config.sampling.content_limit:
        wanted = wanted[degree[wanted] == 0]
        linked = spread(linked, MOST_CANDIDATES)
        logging.info(
            "content links for the %d items without edges only, to %d others",
            len(wanted), len(linked),
        )  # fmt: skip
    return item_links(prepared.link_rows, items, wanted, linked, size, threads_of(config))


def item_links(
    link_rows: np.ndarray,
    items: int,
    wanted: np.ndarray,
    linked: np.ndarray,
    size: int,
    threads: int = 1,
) -> ContentLinks:
    """Links of the items `wanted` to the items `linked`; the others of `items` have none.

    Args:
      link_rows: as in content_links.
    """
    ids = np.full((len(wanted) + 1, size), -1, np.int32)
    shares = np.zeros((len(wanted) + 1, size), np.float32)
    ids[:-1], shares[:-1] = content_links(link_rows, wanted, linked, size, threads)
    row_of = np.full(items, len(wanted), np.int32)
    row_of[wanted] = np.arange(len(wanted), dtype=np.int32)
    return ContentLinks(ids, shares, row_of)
