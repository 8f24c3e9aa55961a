"""The neighbor lists and inputs that training and inference read of a catalog.

A run has two such views: one of the training graph, to train and to validate, and one of
the whole graph, to embed.  The network is inductive, so the neighbors and degrees of the
second may come from edges that training did not see.

Axis letters: r spectral dimensions, n items of a list, C content links per item.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from absl import logging

from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.sampling import store
from pinsage_jax.sampling.content_links import (
    MAX_CANDIDATES,
    MOST_COMPARISONS,
    ContentLinks,
    content_links,
    evenly_spaced,
)
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.spectral import MAX_SPECTRAL_NUMBERS, SpectralFeatures, saved_bases
from pinsage_jax.sampling.store import NeighborhoodSource


@dataclasses.dataclass(frozen=True)
class GraphView:
    """The neighbor lists and the input vectors of all nodes of one graph.

    Attributes:
      lists: neighbor lists with pooling weights.
      inputs: input vectors.
    """

    lists: NeighborLists
    inputs: NodeInputs

    @classmethod
    def over(cls, config: Config, prepared: Prepared, graph: Graph, bases: np.ndarray) -> GraphView:
        """The view with the neighborhoods, degrees and spectral features of `graph`.

        Args:
          bases: float32 [num_items, r] of the training graph (spectral_bases).
        """
        source = NeighborhoodSource(
            graph,
            config.sampling,
            config.seed,
            config.host_threads,
            config.store.neighborhood_store,
            pathlib.Path(config.workdir) / store.FOLDER,
        )
        spectral = SpectralFeatures(graph, bases, config.host_threads) if bases.shape[1] else None
        inputs = node_inputs(config, prepared.features, graph.degree(), spectral)
        links = content_links_over(config, prepared, graph)
        return cls(NeighborLists.from_config(source, links, config), inputs)


def node_inputs(
    config: Config,
    features: np.ndarray,
    degree: np.ndarray,
    spectral: SpectralFeatures | None,
    scale: np.ndarray | None = None,
) -> NodeInputs:
    """Input vectors with the columns that `config` asks for; see NodeInputs."""
    return NodeInputs(
        features,
        degree,
        isolated_feature=config.model.isolated_feature,
        node_type=config.sampling.neighborhood == "all",
        whiten=config.model.whiten,
        spectral=spectral,
        scale=scale,
    )


def spectral_bases(config: Config, prepared: Prepared, split: ValidationSplit) -> np.ndarray:
    """Base vectors of the training graph's SVD (sampling/spectral.py), saved in the workdir.

    Returns:
      float32 [num_items, r]; r is --spectral_dim, or less where num_items times r would
      exceed MAX_SPECTRAL_NUMBERS; 0 for no spectral features.
    """
    items = prepared.graph.num_items
    dim = min(config.model.spectral_dim, MAX_SPECTRAL_NUMBERS // max(items, 1))
    if not dim:
        return np.zeros((items, 0), np.float32)
    if dim < config.model.spectral_dim:
        logging.info("%d items: spectral features have %d dimensions to fit in memory", items, dim)
    settings = [dataclasses.asdict(config.split), config.seed, config.model.spectral_dim]
    return saved_bases(
        config.workdir,
        split.train_graph,
        dim,
        config.seed,
        files.fingerprint([prepared.manifest["fingerprint"], *settings]),
        threads=config.host_threads,
    )


def lists_of_some(config: Config, prepared: Prepared, items: np.ndarray) -> NeighborLists:
    """The neighbor lists that the embeddings of `items` (int [n]) pool over.

    The same as Encoder.all_inference_lists over the whole graph, without the lists of other nodes.
    """
    walks = config.embed.embed_walks or config.sampling.num_walks
    sampling = dataclasses.replace(config.sampling, num_walks=walks)
    source = NeighborhoodSource(prepared.graph, sampling, config.seed, config.host_threads, "none")
    links = content_links_over(config, prepared, prepared.graph, np.unique(items))
    return NeighborLists.from_config(source, links, config)


def content_links_over(
    config: Config, prepared: Prepared, graph: Graph, only: np.ndarray | None = None
) -> ContentLinks:
    """Content links of the items `only` (int [n], ascending), or of all items.

    Without features, or with --content_neighbors=0, the links are empty (C = 0).
    """
    size, items = config.sampling.content_neighbors, graph.num_items
    if not size or not prepared.features.shape[1]:
        return ContentLinks.none(items)
    degree = graph.degree()[:items]
    linked = np.flatnonzero(degree > 0)
    wanted = np.arange(items) if only is None else only
    if items > config.sampling.content_limit:
        wanted = wanted[degree[wanted] == 0]
        isolated = max(items - len(linked), 1)
        linked = evenly_spaced(linked, min(MAX_CANDIDATES, MOST_COMPARISONS // isolated))
        logging.info(
            "content links for the %d items without edges only, to %d others",
            len(wanted), len(linked),
        )  # fmt: skip
    return item_links(prepared.link_rows, items, wanted, linked, size, config.host_threads)


def item_links(
    link_rows: np.ndarray,
    items: int,
    wanted: np.ndarray,
    linked: np.ndarray,
    size: int,
    threads: int = 1,
) -> ContentLinks:
    """Content links from the items `wanted` to the items `linked`.

    Args:
      link_rows: as in content_links.
      items: number of items; those that are not in `wanted` get no links.
      wanted, linked: int [n], int [c] items, `linked` ascending.
      size: C.
      threads: host threads.
    """
    ids = np.full((len(wanted) + 1, size), -1, np.int32)
    shares = np.zeros((len(wanted) + 1, size), np.float32)
    ids[:-1], shares[:-1] = content_links(link_rows, wanted, linked, size, threads)
    row_of = np.full(items, len(wanted), np.int32)
    row_of[wanted] = np.arange(len(wanted), dtype=np.int32)
    return ContentLinks(ids, shares, row_of)
