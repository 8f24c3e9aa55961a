"""What --mode=split withholds from a graph, and the evaluation pairs that this offers."""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.pair_draws import PairGroup, choose, stream

# Purposes of the random streams; split_tables.py has those of the pairs.
_COLLECTIONS, _ITEMS, _LEFT_OUT = 11, 12, 14


@dataclasses.dataclass(frozen=True, eq=False)
class Withheld:
    """A split of the graph, in indices."""

    train_graph: Graph
    groups: list[PairGroup]  # pairs on offer, at most one group per collection
    collections: np.ndarray  # int32 [*], withheld collections, ascending
    items: np.ndarray  # int32 [*], withheld items, ascending
    left_out: np.ndarray | None = None  # int32 [C], item withheld of each collection, or -1


def withhold_collections(graph: Graph, share: float, seed: int) -> Withheld:
    """Withholds a share of the collections of two or more items."""
    degree = graph.degree()
    eligible = np.flatnonzero(degree[graph.num_items :] >= 2)
    chosen = choose(eligible, max(1, round(share * len(eligible))), seed, _COLLECTIONS)
    train = graph.without(collections=chosen)
    known = train.degree()[: graph.num_items] > 0
    groups = []
    for collection in chosen.tolist():
        members = graph.neighbors(graph.num_items + collection)
        groups.append(PairGroup(collection, members[known[members]], members))
    return Withheld(train, groups, chosen, np.empty(0, np.int32))


def withhold_items(graph: Graph, share: float, seed: int) -> Withheld:
    """Takes all edges from a share of the items that have any."""
    linked = np.flatnonzero(graph.degree()[: graph.num_items] > 0)
    chosen = choose(linked, max(1, round(share * len(linked))), seed, _ITEMS)
    train = graph.without(items=chosen)
    cold = np.zeros(graph.num_items, np.bool_)
    cold[chosen] = True
    touched = np.unique(np.concatenate([graph.neighbors(item) for item in chosen.tolist()]))
    groups = []
    for node in touched.tolist():
        members = graph.neighbors(node)
        targets = cold[members]
        groups.append(PairGroup(node - graph.num_items, members[~targets], members[targets]))
    return Withheld(train, groups, np.empty(0, np.int32), chosen)


def withhold_after(graph: Graph, times: np.ndarray, cut: int) -> Withheld:
    """Withholds the edges after the cut.

    Args:
      times: int64 [E], earliest time of each edge, in the order of the items' rows.
    """
    items, collections = _edges_of(graph)
    late = np.asarray(times) > cut
    shape = graph.num_items, graph.num_collections
    train = Graph.from_edges(items[~late], collections[~late], *shape)
    after = Graph.from_edges(items[late], collections[late], *shape)
    known = train.degree()[: graph.num_items] > 0
    groups = []
    for node in (np.flatnonzero(after.degree()[graph.num_items :]) + graph.num_items).tolist():
        entered, before = after.neighbors(node), train.neighbors(node)
        queries = before if len(before) else entered[known[entered]]
        groups.append(PairGroup(int(node) - graph.num_items, queries, entered))
    none = np.empty(0, np.int32)
    return Withheld(train, groups, none, none)


def leave_one_out(graph: Graph, times: np.ndarray | None, seed: int) -> Withheld:
    """Withholds one edge of every collection of two or more items.

    Args:
      times: int64 [E], as in `withhold_after`: the latest edge of a collection is withheld, of
        equal ones a random one.  None: a random edge.
    """
    items, collections = _edges_of(graph)
    # A random order of all edges; of those with the latest time the last one is taken.
    order = stream(seed, _LEFT_OUT).permutation(graph.num_edges)
    if times is not None:
        order = order[np.argsort(np.asarray(times)[order], kind="stable")]
    order = order[np.argsort(collections[order], kind="stable")]
    size = graph.degree()[graph.num_items :]
    last = np.cumsum(size) - 1
    chosen = order[last[size >= 2]]
    left_out = np.full(graph.num_collections, -1, np.int32)
    left_out[collections[chosen]] = items[chosen]
    kept = np.ones(graph.num_edges, np.bool_)
    kept[chosen] = False
    train = Graph.from_edges(items[kept], collections[kept], graph.num_items, graph.num_collections)
    groups = []
    for collection in np.sort(collections[chosen]).tolist():
        target = left_out[collection : collection + 1]
        groups.append(PairGroup(collection, train.neighbors(graph.num_items + collection), target))
    none = np.empty(0, np.int32)
    return Withheld(train, groups, none, none, left_out)


def _edges_of(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Items and collections int32 [E] of the edges, in the order of the items' rows."""
    items = np.repeat(
        np.arange(graph.num_items, dtype=np.int32), np.diff(graph.indptr[: graph.num_items + 1])
    )
    return items, graph.indices[: graph.num_edges] - np.int32(graph.num_items)
