"""The validation split: pairs to choose checkpoints by, and the graph left to train on.

A share of the collections is withheld: two items of one withheld collection are a
validation pair.  A share of the items also loses all its edges, so that some pairs have a
cold target.  The split is made from the training edges alone.  Where edges have times, the
collections that began last are withheld, and the items that came last lose their edges: what
is asked in validation is then what will be asked of the next days.  Elsewhere both are random.

Times may be as coarse as the releases of a distribution.  If only some of what a release added
were withheld, the rest would tell about it as nothing will tell about the next release, so all
that came at one time is withheld, where that is at most MOST_OF_ONE_TIME.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from pinsage_jax.config.data import SplitConfig
from pinsage_jax.data.pairs_table import derived_kinds
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.pair_draws import PairGroup, choose, draw_pairs, stream

# Purposes of the random streams; a collection's own is _PAIRS plus its index.
_COLLECTIONS, _ITEMS, _SUBSET, _GIVEN, _PAIRS = 1, 2, 3, 4, 1 << 32
_COLD_SUBSET, _COLD_PAIRS = 8, 5 << 32
# The largest share of the nodes that is withheld because it came at one time.
MOST_OF_ONE_TIME = 0.25
# With times: so many pairs of a cold item make those of earlier collections needless.
ENOUGH_COLD = 500


@dataclasses.dataclass(frozen=True, eq=False)
class ValidationSplit:
    """A graph to train on and pairs to validate with."""

    train_graph: Graph
    collections: np.ndarray  # int32 [*]: withheld collections, counted from 0, ascending
    items: np.ndarray  # int32 [*]: items that lose all their edges, ascending
    pairs: np.ndarray  # int32 [P, 2]: query, target
    kinds: np.ndarray  # <U4 [P]: warm, or cold if the target has no edge in train_graph
    train_pairs: np.ndarray | None = None  # int32 [*, 2]: given pairs left to train on
    by_time: bool = False  # whether the latest collections and items were chosen


def validation_split(
    graph: Graph,
    split: SplitConfig,
    seed: int,
    given: np.ndarray | None = None,
    times: np.ndarray | None = None,
    folder: str | os.PathLike | None = None,
) -> ValidationSplit:
    """Withholds collections and items, and draws the validation pairs.

    The pairs are ordered pairs of two items of one withheld collection whose query keeps
    an edge, at most split.validation_pairs, evenly from the collections (draw_pairs).

    With validation_collections 0 there are no pairs and the graph stays as it is.
    Otherwise at least one collection of two or more items is withheld, if there are two.

    Args:
      given: int32 [*, 2], the pairs of --train_pairs.  Validation pairs are then taken
        from these: as large a share of them as of the collections, and all that contain
        an item without its edges, at most split.validation_pairs; training keeps the
        pairs that are in neither part.
      times: int64 [E], earliest time of each edge in the order of the items' rows.
      folder: where the arrays of a large training graph are, without a name.
    """
    degree = graph.degree()
    eligible = np.flatnonzero(degree[graph.num_items :] >= 2)
    count = round(split.validation_collections * len(eligible))
    if split.validation_collections > 0 and len(eligible) >= 2:
        count = max(count, 1)
    if count == 0:
        none = np.empty(0, np.int32)
        empty = np.empty((0, 2), np.int32)
        return ValidationSplit(graph, none, none, empty, np.empty(0, "<U4"), given)
    began = (None, None) if times is None else _first_times(graph, np.asarray(times))
    collections = _chosen(eligible, count, began[1], seed, _COLLECTIONS)
    linked = np.flatnonzero(degree[: graph.num_items] > 0)
    count = round(split.validation_cold_items * len(linked))
    items = _chosen(linked, count, began[0], seed, _ITEMS)
    train_graph = graph.without(collections, items, folder)
    train_degree = train_graph.degree()
    kept = None
    if given is not None:
        pairs, kept = _split_given_pairs(given, items, train_degree, split, seed)
    else:
        groups = []
        for collection in collections.tolist():
            members = graph.neighbors(graph.num_items + collection)
            groups.append(PairGroup(collection, members[train_degree[members] > 0], members))
        pairs = draw_pairs(groups, split.validation_pairs, seed, _SUBSET, _PAIRS)
    kinds = derived_kinds(pairs, train_degree)
    by_time = times is not None
    return ValidationSplit(train_graph, collections, items, pairs, kinds, kept, by_time)


def _first_times(graph: Graph, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Time int64 of the first edge of each item and of each collection; 0 for one without."""
    items, edges = graph.num_items, graph.num_edges
    began = np.full(graph.num_nodes, np.iinfo(np.int64).max)
    owner = np.repeat(np.arange(items), np.diff(graph.indptr[: items + 1]))
    for nodes in (owner, graph.indices[:edges]):
        np.minimum.at(began, nodes, times)
    began[graph.degree() == 0] = 0
    return began[:items], began[items:]


def _chosen(
    nodes: np.ndarray, count: int, began: np.ndarray | None, seed: int, purpose: int
) -> np.ndarray:
    """`count` of the nodes int [n], int32 ascending: those that began last, or random ones.

    With times they are all that began since the time of the earliest of them, unless these
    are more than MOST_OF_ONE_TIME of the nodes: then random ones of that time are left out.

    Args:
      began: int64, time of each node.  None: no times.
    """
    if began is None:
        return choose(nodes, count, seed, purpose)
    nodes = stream(seed, purpose).permutation(nodes)
    latest = np.argsort(began[nodes], kind="stable")[max(len(nodes) - count, 0) :]
    if len(latest):
        since = np.flatnonzero(began[nodes] >= began[nodes[latest[0]]])
        if len(since) <= MOST_OF_ONE_TIME * len(nodes):
            latest = since
    return np.sort(nodes[latest]).astype(np.int32)


def _split_given_pairs(
    given: np.ndarray, items: np.ndarray, degree: np.ndarray, split: SplitConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Validation pairs int32 [P, 2] and the pairs int32 [*, 2] that training keeps.

    Args:
      given: int32 [*, 2]; items: int32 [*], items without their edges.
      degree: int32 [N] in the training graph.
    """
    given = np.asarray(given, np.int32)
    isolated = np.asarray(np.isin(given, items).any(axis=1))
    rest = np.flatnonzero(~isolated)
    drawn = choose(rest, round(split.validation_collections * len(rest)), seed, _GIVEN)
    withheld = isolated.copy()
    withheld[drawn] = True
    usable = np.flatnonzero(withheld & (degree[given[:, 0]] > 0))
    if len(usable) > split.validation_pairs:
        usable = choose(usable, split.validation_pairs, seed, _SUBSET)
    return given[usable], given[~withheld]


def with_more_cold_pairs(
    graph: Graph, split: ValidationSplit, limit: int, seed: int
) -> ValidationSplit:
    """A copy of the split with more pairs of a cold target.

    Few collections are withheld, and few of their items are cold.  All other edges of a cold
    item are withheld too, so each collection that it was taken from gives pairs of an item that
    the collection keeps and the cold one.  Given pairs are all in the split already.  With times
    only the collections that began last are like those that will be asked about, and others
    give pairs where these have few.

    Args:
      graph: the whole graph.
      limit: most pairs that are added, drawn evenly from the collections.
    """
    if split.by_time:
        limit = min(limit, ENOUGH_COLD - int((split.kinds == "cold").sum()))
    if split.train_pairs is not None or not len(split.items) or limit <= 0:
        return split
    cold = np.zeros(graph.num_items, np.bool_)
    cold[split.items] = True
    warm = split.train_graph.degree()[: graph.num_items] > 0
    touched = np.unique(np.concatenate([graph.neighbors(int(item)) for item in split.items]))
    groups = []
    for collection in np.setdiff1d(touched - graph.num_items, split.collections).tolist():
        members = graph.neighbors(graph.num_items + collection)
        groups.append(PairGroup(collection, members[warm[members]], members[cold[members]]))
    drawn = draw_pairs(groups, limit, seed, _COLD_SUBSET, _COLD_PAIRS)
    known = {tuple(pair) for pair in split.pairs.tolist()}
    more = [pair for pair in np.unique(drawn, axis=0).tolist() if tuple(pair) not in known]
    pairs = np.concatenate([split.pairs, np.array(more, np.int32).reshape(-1, 2)])
    kinds = np.concatenate([split.kinds, np.full(len(more), "cold")])
    return dataclasses.replace(split, pairs=pairs, kinds=kinds)
