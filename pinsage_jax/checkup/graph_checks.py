"""Checks of the graph: counts, degree tails, items and collections that look odd."""

from __future__ import annotations

from typing import Any

import numpy as np

from pinsage_jax.checkup.findings import Findings
from pinsage_jax.checkup.inputs import Inputs
from pinsage_jax.data.columns import examples, share
from pinsage_jax.graph.csr import Graph

# A collection is huge if it holds this share of all items with edges, and this many.
_HUGE_SHARE, _HUGE_ITEMS = 0.05, 200
# From here on a share is worth a warning.
_MANY_ISOLATED, _MANY_SINGLE, _MANY_REPEATED = 0.2, 0.5, 0.1
_NODES_AT_ONCE = 1 << 20


def tails(values: np.ndarray) -> dict[str, int]:
    """Median, 99th percentile and maximum of int [n]; zeros where there is none."""
    if not len(values):
        return {"p50": 0, "p99": 0, "max": 0}
    p50, p99 = np.quantile(values, [0.5, 0.99], method="higher")
    return {"p50": int(p50), "p99": int(p99), "max": int(values.max())}


def row_hashes(graph: Graph, first: int, last: int) -> np.ndarray:
    """A hash of the set of neighbors of nodes first..last-1, uint64; 0 for an empty one.

    The sum of random numbers keyed by the neighbor: two sets of one hash are the same
    set but for a chance of 2**-64 a pair.
    """
    hashes = np.zeros(last - first, np.uint64)
    for begin in range(first, last, _NODES_AT_ONCE):
        end = min(begin + _NODES_AT_ONCE, last)
        starts = np.asarray(graph.indptr[begin : end + 1])
        keys = _mixed(np.asarray(graph.indices[starts[0] : starts[-1]], np.uint64))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(keys, dtype=np.uint64)])
        places = starts - starts[0]
        # Differences of sums modulo 2**64 are exact.
        hashes[begin - first : end - first] = sums[places[1:]] - sums[places[:-1]]
    return hashes


def _mixed(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finalizer, uint64 [n]."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def repeated(hashes: np.ndarray, degree: np.ndarray, least: int) -> np.ndarray:
    """Nodes, int64 ascending, whose neighbors are those of an earlier node.

    Args:
      degree: int [n]; nodes with fewer than `least` neighbors do not count.
    """
    counted = np.flatnonzero(degree >= least)
    pairs = np.stack([hashes[counted], degree[counted].astype(np.uint64)], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    return np.setdiff1d(counted, counted[first])


def check_graph(inputs: Inputs, findings: Findings) -> dict[str, Any]:
    """Counts and tails for the table; findings about items and collections."""
    graph, ids = inputs.graph, inputs.ids
    assert graph is not None and ids is not None
    degree, sizes = inputs.degree, inputs.sizes
    linked = int((degree > 0).sum())
    merged = ids.edge_rows - graph.num_edges
    if merged > _MANY_REPEATED * ids.edge_rows:
        findings.warn(
            "edges",
            f"{share(merged, ids.edge_rows)} rows of --edges repeat an edge and are merged; if "
            "repetition means something, give it as --weight_column.",
        )
    isolated = graph.num_items - linked
    if isolated > _MANY_ISOLATED * graph.num_items:
        names = ids.items.names(np.flatnonzero(degree == 0)[:3]).to_pylist()
        findings.warn(
            "items",
            f"{share(isolated, graph.num_items)} items are in no collection{examples(names)}: they "
            "are embedded by their features alone.",
        )
    _check_collections(inputs, sizes, linked, findings)
    twins = repeated(row_hashes(graph, 0, graph.num_items), degree, 3)
    if len(twins) > _MANY_REPEATED * max(linked, 1):
        findings.warn(
            "items",
            f"{share(len(twins), linked)} items are in exactly the collections of an earlier item"
            f"{examples(ids.items.names(twins[:3]).to_pylist())}: is one thing listed under "
            "several ids?",
        )
    return {
        "items": graph.num_items,
        "items_with_edges": linked,
        "isolated_items": isolated,
        "items_with_the_collections_of_another": len(twins),
        "collections": graph.num_collections,
        "edges": graph.num_edges,
        "edge_rows": ids.edge_rows,
        "repeated_edge_rows": merged,
        "collections_per_item": tails(degree[degree > 0]),
        "items_per_collection": tails(sizes),
        "single_item_collections": int((sizes == 1).sum()),
        "weighted": graph.weights is not None,
    }


def _check_collections(inputs: Inputs, sizes: np.ndarray, linked: int, findings: Findings) -> None:
    """Findings about collections that are huge, single-item, or copies of another."""
    graph, ids = inputs.graph, inputs.ids
    assert graph is not None and ids is not None
    pairs_given = "train_pairs" in inputs.tables

    def named(places: np.ndarray) -> str:
        return examples(ids.collections.names(places[:3]).to_pylist())

    if not (sizes >= 2).any() and not pairs_given:
        findings.problem(
            "collections",
            f"None of the {len(sizes):,} collections holds two items, so there is no pair to train "
            "on; are --collection_column and --item_column the right way round?",
        )
    elif (single := int((sizes == 1).sum())) > _MANY_SINGLE * len(sizes):
        findings.warn(
            "collections",
            f"{share(single, len(sizes))} collections hold a single item: they join nothing and "
            "give no training pair.",
        )
    huge = np.flatnonzero(sizes > max(_HUGE_SHARE * linked, _HUGE_ITEMS))
    if len(huge):
        huge = huge[np.argsort(-sizes[huge], kind="stable")]
        findings.warn(
            "collections",
            f"{len(huge):,} collections hold more than {_HUGE_SHARE:.0%} of all linked items each, "
            f"{share(int(sizes[huge].sum()), graph.num_edges)} edges in all{named(huge)}: walks "
            "through them say little; leave out those that are not somebody's choice.",
        )
    hashes = row_hashes(graph, graph.num_items, graph.num_nodes)
    copies = repeated(hashes, sizes, 2)
    if len(copies) > max(_MANY_REPEATED * (sizes >= 2).sum(), 1):
        findings.warn(
            "collections",
            f"{share(len(copies), int((sizes >= 2).sum()))} collections of two items or more hold "
            f"exactly the items of an earlier one{named(copies)}: exports and copies count "
            "several times.",
        )
    elif len(copies) and (large := copies[sizes[copies] >= 10]).size:
        findings.warn(
            "collections",
            f"{len(large):,} collections of ten items or more hold exactly the items of an earlier "
            f"one{named(large)}.",
        )
