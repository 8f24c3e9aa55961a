"""Checks of the graph: counts, degree quantiles, and unusual items and collections."""

from __future__ import annotations

from typing import Any

import numpy as np

from pinsage_jax.checkup.findings import Findings
from pinsage_jax.checkup.inputs import Inputs
from pinsage_jax.core.splitmix import GOLDEN, mix_array
from pinsage_jax.data.columns import examples, share
from pinsage_jax.graph.csr import Graph

# A collection is huge if it holds this share of all items with edges, and this many.
_HUGE_SHARE, _HUGE_ITEMS = 0.05, 200
# Larger shares are warned of.
_MANY_ISOLATED, _MANY_SINGLE, _MANY_DUPLICATES = 0.2, 0.5, 0.1
_BLOCK_NODES = 1 << 20


def quantiles(values: np.ndarray) -> dict[str, int]:
    """The median, 99th percentile and maximum of int [n]; all zero if n is 0."""
    if not len(values):
        return {"p50": 0, "p99": 0, "max": 0}
    p50, p99 = np.quantile(values, [0.5, 0.99], method="higher")
    return {"p50": int(p50), "p99": int(p99), "max": int(values.max())}


def row_hashes(graph: Graph, first: int, last: int) -> np.ndarray:
    """Hashes the set of neighbors of each node from `first` to `last` - 1, uint64.

    A hash is the sum of pseudorandom numbers of the neighbors, 0 for the empty set.  Two
    different sets have the same hash with probability 2**-64.
    """
    hashes = np.zeros(last - first, np.uint64)
    for begin in range(first, last, _BLOCK_NODES):
        end = min(begin + _BLOCK_NODES, last)
        starts = np.asarray(graph.indptr[begin : end + 1])
        keys = mix_array(np.asarray(graph.indices[starts[0] : starts[-1]], np.uint64) + GOLDEN)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(keys, dtype=np.uint64)])
        offsets = starts - starts[0]
        # Differences of sums modulo 2**64 are exact.
        hashes[begin - first : end - first] = sums[offsets[1:]] - sums[offsets[:-1]]
    return hashes


def duplicate_nodes(hashes: np.ndarray, degree: np.ndarray, min_degree: int) -> np.ndarray:
    """Nodes, int64 ascending, that have the same neighbors as an earlier node.

    Args:
      hashes: uint64 [n], as row_hashes returns them.
      degree: int [n], number of neighbors.
      min_degree: nodes with fewer neighbors are ignored.
    """
    counted = np.flatnonzero(degree >= min_degree)
    pairs = np.stack([hashes[counted], degree[counted].astype(np.uint64)], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    return np.setdiff1d(counted, counted[first])


def check_graph(inputs: Inputs, findings: Findings) -> dict[str, Any]:
    """Checks the items and collections; returns counts and quantiles for the table."""
    graph, ids = inputs.graph, inputs.ids
    assert graph is not None and ids is not None
    degree, sizes = inputs.degree, inputs.sizes
    with_edges = int((degree > 0).sum())
    merged = ids.edge_rows - graph.num_edges
    if merged > _MANY_DUPLICATES * ids.edge_rows:
        findings.warn(
            "edges",
            f"{share(merged, ids.edge_rows)} rows of --edges repeat an edge and are merged; if "
            "repetition means something, give it as --weight_column.",
        )
    isolated = graph.num_items - with_edges
    if isolated > _MANY_ISOLATED * graph.num_items:
        names = ids.items.names(np.flatnonzero(degree == 0)[:3]).to_pylist()
        findings.warn(
            "items",
            f"{share(isolated, graph.num_items)} items are in no collection{examples(names)}: they "
            "are embedded by their features alone.",
        )
    _check_collections(inputs, sizes, with_edges, findings)
    duplicates = duplicate_nodes(row_hashes(graph, 0, graph.num_items), degree, 3)
    if len(duplicates) > _MANY_DUPLICATES * max(with_edges, 1):
        findings.warn(
            "items",
            f"{share(len(duplicates), with_edges)} items are in exactly the collections of an "
            f"earlier item{examples(ids.items.names(duplicates[:3]).to_pylist())}: is one thing "
            "listed under several ids?",
        )
    return {
        "items": graph.num_items,
        "items_with_edges": with_edges,
        "isolated_items": isolated,
        "items_with_same_collections": len(duplicates),
        "collections": graph.num_collections,
        "edges": graph.num_edges,
        "edge_rows": ids.edge_rows,
        "repeated_edge_rows": merged,
        "collections_per_item": quantiles(degree[degree > 0]),
        "items_per_collection": quantiles(sizes),
        "single_item_collections": int((sizes == 1).sum()),
        "weighted": graph.weights is not None,
    }


def _check_collections(
    inputs: Inputs, sizes: np.ndarray, with_edges: int, findings: Findings
) -> None:
    """Checks for huge, single-item and duplicate collections."""
    graph, ids = inputs.graph, inputs.ids
    assert graph is not None and ids is not None
    has_train_pairs = "train_pairs" in inputs.tables

    def named(rows: np.ndarray) -> str:
        return examples(ids.collections.names(rows[:3]).to_pylist())

    if not (sizes >= 2).any() and not has_train_pairs:
        findings.problem(
            "collections",
            f"None of the {len(sizes):,} collections holds two items, so there is no pair to train "
            "on; are --collection_column and --item_column the right way round?",
        )
    elif (single := int((sizes == 1).sum())) > _MANY_SINGLE * len(sizes):
        findings.warn(
            "collections",
            f"{share(single, len(sizes))} collections hold a single item: they connect no "
            "items and give no training pair.",
        )
    huge = np.flatnonzero(sizes > max(_HUGE_SHARE * with_edges, _HUGE_ITEMS))
    if len(huge):
        huge = huge[np.argsort(-sizes[huge], kind="stable")]
        findings.warn(
            "collections",
            f"{len(huge):,} collections hold more than {_HUGE_SHARE:.0%} of all items with edges "
            f"each, "
            f"{share(int(sizes[huge].sum()), graph.num_edges)} edges in all{named(huge)}: walks "
            "through them carry little information; leave out those that nobody curated.",
        )
    hashes = row_hashes(graph, graph.num_items, graph.num_nodes)
    copies = duplicate_nodes(hashes, sizes, 2)
    if len(copies) > max(_MANY_DUPLICATES * (sizes >= 2).sum(), 1):
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
