"""The graph of a prepared catalog: read from the table of edges, weighed, pruned and written."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
from absl import logging

from pinsage_jax.config.data import AUTO, DataConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import edges_table, tables
from pinsage_jax.data.ids import unmet_ids
from pinsage_jax.graph import csr, edge_weights
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.edge_weights import EdgeWeights
from pinsage_jax.graph.pruning import keep_edges, kept_edges, read_topics


@dataclasses.dataclass(frozen=True, eq=False)
class BuiltGraph:
    """The graph of the edge table, pruned if --prune_* says so.

    Attributes:
      times: int64 [E] in the order of the items' rows; None without --time_column.
      how: how weights follow from the columns of a table of edges.
      kinds: uint16 [E], see `edge_weights.kinds_of_edges`; None without --kind_column.
      kind_names: names of the kinds.
      distinct_edges: edges before pruning.
    """

    graph: Graph
    times: np.ndarray | None
    how: EdgeWeights
    kinds: np.ndarray | None
    kind_names: tuple[str, ...]
    distinct_edges: int


# Maps the graph with equal kinds to a text as of --kind_weights; "" leaves them equal.
ChooseKindWeights = Callable[[BuiltGraph], str]


def write_graph(
    inputs: dict[str, tables.Table],
    ids: edges_table.Ids,
    config: Config,
    data: DataConfig,
    folder: pathlib.Path,
    choose_kind_weights: ChooseKindWeights | None = None,
) -> BuiltGraph:
    """Reads the edges once more, as indices, and writes the graph that they make.

    Args:
      inputs: the input tables by flag.
      data: the settings of the tables.
      folder: the folder of the prepared catalog; the graph's own is made in it.
      choose_kind_weights: for --kind_weights=auto; without it kinds are equal.

    Raises:
      UserError: a table or a setting has a mistake.
    """
    if data.kind_weights == AUTO:
        equal = dataclasses.replace(data, kind_weights="")
        built = write_graph(inputs, ids, config, equal, folder)
        text = "" if choose_kind_weights is None else choose_kind_weights(built)
        if not text:
            return built
        shutil.rmtree(folder / "graph")
        weighed = dataclasses.replace(data, kind_weights=text)
        return write_graph(inputs, ids, config, weighed, folder)
    codes_folder, graph_folder = folder / "codes", folder / "graph"
    codes = edges_table.write_edge_indices(inputs["edges"], ids, data, codes_folder)
    codes, how = edge_weights.weighed(codes, data, codes_folder)
    graph_folder.mkdir()
    graph, times = csr.build(
        codes.items, codes.collections, len(ids.items), len(ids.collections),
        codes.weights, codes.times, codes_folder if config.prune.prunes else graph_folder,
    )  # fmt: skip
    distinct_edges, kind_names = graph.num_edges, codes.kind_names
    if ids.item_rows:
        _check_ids_meet(ids, graph)
    if config.prune.prunes:
        topics = None
        if config.prune.prune_entropy:
            if "items" not in inputs:
                raise UserError(f"--prune_entropy={config.prune.prune_entropy} needs --items.")
            topics = read_topics(inputs["items"], config.prune.prune_topic_column, graph.num_items)
        kept = kept_edges(graph, config.prune, config.seed, topics)
        graph, times = keep_edges(graph, times, kept, graph_folder)
    graph.save(graph_folder)
    kinds = edge_weights.kinds_of_edges(graph, codes)
    del codes
    shutil.rmtree(codes_folder)
    return BuiltGraph(graph, times, how, kinds, kind_names, distinct_edges)


def _check_ids_meet(ids: edges_table.Ids, graph: Graph) -> None:
    """Warns of ids of --edges that --items lacks.

    Raises:
      UserError: no id is in both tables.
    """
    found = unmet_ids(ids.items, ids.item_rows, graph.degree()[: graph.num_items])
    if found is not None and found.none_met:
        raise UserError(f"{found.sentence} Write the ids of both tables alike.")
    if found is not None:
        logging.warning("%s", found.sentence)
