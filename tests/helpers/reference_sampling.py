"""Slow, readable reference implementation of the sampling rules in Python.

It is written from the rules and not from the kernels: integers are unbounded and masked to
64 bits, a graph is a dictionary of neighbor lists, walks run one after another, and choices
are made by linear searches.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.graph.csr import Graph

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_TIES = 0x7469655F62726561
PAIRS, HARD, BAND, SAMPLE = 0x70616972, 0x68617264, 0x62616E64, 0x73616D70


# Random numbers: hashes of their keys.


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def stream(seed: int, epoch: int, node: int) -> int:
    key = mix((seed + _GOLDEN) & _MASK)
    key = mix((key + epoch * _GOLDEN + 1) & _MASK)
    return mix((key + node * _GOLDEN + 1) & _MASK)


def draw(key: int, walk: int, index: int) -> int:
    return mix((key + (walk * 65536 + index + 1) * _GOLDEN) & _MASK)


def high(bits: int) -> int:
    return bits >> 32


def low(bits: int) -> int:
    return bits % 2**32


def bounded(bits_32: int, size: int) -> int:
    return bits_32 * size // 2**32


def permuted(key: int, index: int, size: int) -> int:
    """Four Feistel rounds on two halves, repeated until the value is below `size`."""
    half = 1
    while 4**half < size:
        half += 1
    while True:
        left, right = divmod(index, 2**half)
        for turn in range(4):
            left, right = right, left ^ mix((key + right * _GOLDEN + turn) & _MASK) % 2**half
        index = left * 2**half + right
        if index < size:
            return index


# Graphs.


def small_graph(edges: dict[tuple[int, int], float], items: int, collections: int, weighted: bool):
    """A Graph from {(item, collection): weight}, made without the package's builder."""
    rows = [[] for _ in range(items + collections)]
    for (item, collection), weight in sorted(edges.items()):
        rows[item].append((items + collection, weight))
        rows[items + collection].append((item, weight))
    flat = [entry for row in rows for entry in sorted(row)]
    indptr = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    indices = np.array([node for node, _ in flat], np.int32)
    weights = np.array([weight for _, weight in flat], np.float32) if weighted else None
    return Graph(indptr, indices, weights, items, collections)


def adjacency(graph: Graph) -> dict[int, list[tuple[int, float]]]:
    """{node: [(neighbor, weight), ...]}; the weight is None in an unweighted graph."""
    rows = {}
    for node in range(graph.num_nodes):
        edges = range(int(graph.indptr[node]), int(graph.indptr[node + 1]))
        rows[node] = [
            (int(graph.indices[e]), None if graph.weights is None else float(graph.weights[e]))
            for e in edges
        ]
    return rows


# Walks.


def _pick(row: list[tuple[int, float]], bits_32: int) -> int:
    """Position in the row, uniform or in proportion to weight."""
    if row[0][1] is None:
        return bounded(bits_32, len(row))
    sums, total = [], 0.0
    for _, weight in row:
        total += weight
        sums.append(total)
    target = (bits_32 + 0.5) / 2**32 * total
    return next((index for index, mass in enumerate(sums) if mass > target), len(row) - 1)


def _pick_except(row: list[tuple[int, float]], excluded: int, bits_32: int) -> int:
    """As _pick among the other positions: a target beyond `excluded` skips its weight."""
    if row[0][1] is None:
        others = [index for index in range(len(row)) if index != excluded]
        return others[bounded(bits_32, len(row) - 1)]
    sums, total = [], 0.0
    for _, weight in row:
        total += weight
        sums.append(total)
    before = sums[excluded - 1] if excluded else 0.0
    gap = sums[excluded] - before
    target = (bits_32 + 0.5) / 2**32 * (total - gap)
    if target >= before:
        target += gap
    picked = next((index for index, mass in enumerate(sums) if mass > target), len(row) - 1)
    if picked == excluded:
        picked = excluded - 1 if excluded else 1
    return picked


def _step(row, masked_collection: int, bits_32: int, spare_32: int) -> int | None:
    """A random neighbor other than `masked_collection`; None if there is none."""
    if not row:
        return None
    picked = _pick(row, bits_32)
    if row[picked][0] == masked_collection:
        if len(row) == 1:
            return None
        picked = _pick_except(row, picked, spare_32)
    return row[picked][0]


def visits(
    rows,
    num_items,
    start,
    sampling,
    *,
    seed,
    epoch,
    masked_collection,
    masked_neighbor,
    num_walks,
    restart_ends=False,
):
    """{node: visits} of all walks from `start`, one walk at a time."""
    key = stream(seed, epoch, start)
    counts: dict[int, int] = {}

    def count(node):
        if node not in (start, masked_neighbor):
            counts[node] = counts.get(node, 0) + 1

    for walk in range(num_walks):
        node = start
        for step in range(sampling.walk_length):
            first, second = draw(key, walk, 2 * step), draw(key, walk, 2 * step + 1)
            if step > 0 and (node is None or low(first) < round(sampling.restart * 2**32)):
                if restart_ends:
                    break
                node = start
            if node < num_items:
                node = _step(rows[node], masked_collection, high(first), low(second))
                if node is None:
                    continue
                if sampling.neighborhood == "all":
                    count(node)
            node = _step(rows[node], -1, high(second), low(second))
            if node is None:
                continue
            count(node)
    return counts


def top(counts: dict[int, int], key: int, size: int) -> tuple[list[int], list[int]]:
    """Most visits first; then the larger hash of (stream, node); then the lower id."""

    def order(node):
        return -counts[node], -high(mix(((key ^ _TIES) + node * _GOLDEN) & _MASK)), node

    ids = sorted(counts, key=order)[:size]
    padding = size - len(ids)
    return ids + [-1] * padding, [counts[node] for node in ids] + [0] * padding


def neighborhoods(
    graph,
    starts,
    sampling,
    *,
    seed,
    epoch=0,
    masked_collection=None,
    masked_neighbor=None,
    size=None,
    num_walks=None,
    restart_ends=False,
):
    """ids and counts int32 [S, T] of the nodes `starts`."""
    rows = adjacency(graph)
    size, num_walks = size or sampling.num_neighbors, num_walks or sampling.num_walks
    ids, counts = [], []
    for index, start in enumerate(int(start) for start in starts):
        counts_of_start = visits(
            rows,
            graph.num_items,
            start,
            sampling,
            seed=seed,
            epoch=epoch,
            masked_collection=-1 if masked_collection is None else int(masked_collection[index]),
            masked_neighbor=-1 if masked_neighbor is None else int(masked_neighbor[index]),
            num_walks=num_walks,
            restart_ends=restart_ends,
        )
        row_ids, row_counts = top(counts_of_start, stream(seed, epoch, start), size)
        ids.append(row_ids)
        counts.append(row_counts)
    shape = (len(ids), size)
    return np.array(ids, np.int32).reshape(shape), np.array(counts, np.int32).reshape(shape)


# Pairs.


def collection_edges(graph: Graph) -> list[tuple[int, int]]:
    """(collection node, item), by collection, then by item."""
    rows = adjacency(graph)
    nodes = range(graph.num_items, graph.num_nodes)
    return [(node, item) for node in nodes for item, _ in rows[node]]


def collection_pair(graph: Graph, seed: int, number: int) -> tuple[int, int, int]:
    """(query, target, source_collection) of a pair; target -1 if the query is alone in it."""
    edges = collection_edges(graph)
    epoch, index = divmod(number, len(edges))
    key = stream(seed ^ PAIRS, epoch, 0)
    source_collection, query = edges[permuted(key, index, len(edges))]
    others = [item for node, item in edges if node == source_collection and item != query]
    if not others:
        return query, -1, source_collection
    return query, others[bounded(high(draw(key, number, 1)), len(others))], source_collection


def weighted_pair(graph: Graph, seed: int, number: int, power: float) -> tuple[int, int, int]:
    """(query, target, source_collection): a collection drawn by (size - 1) ** power, two items."""
    rows = adjacency(graph)
    key = stream(seed ^ PAIRS, 0, 1)
    nodes = range(graph.num_items, graph.num_nodes)
    sums, total = [], 0.0
    for node in nodes:
        total += float(np.float64(len(rows[node]) - 1) ** power) if len(rows[node]) > 1 else 0.0
        sums.append(total)
    wanted = (draw(key, number, 0) >> 11) / 2**53 * total
    source_collection = next(node for node, mass in zip(nodes, sums, strict=True) if mass > wanted)
    items = [item for item, _ in rows[source_collection]]
    query = items[bounded(high(draw(key, number, 1)), len(items))]
    others = [item for item in items if item != query]
    return query, others[bounded(high(draw(key, number, 2)), len(others))], source_collection


def listed_pair(pairs: list[tuple[int, int]], seed: int, number: int) -> tuple[int, int]:
    epoch, index = divmod(number, len(pairs))
    return tuple(pairs[permuted(stream(seed ^ PAIRS, epoch, 0), index, len(pairs))])


def hard_negatives(graph, queries, targets, sampling, band, *, size, seed, first):
    """int32 [B, H], drawn from ranks [band) of each query's items by visits; -1 for none."""
    items_only = dataclasses.replace(sampling, neighborhood="items")
    best, worst = band
    ids, _ = neighborhoods(
        graph, queries, items_only, seed=seed ^ HARD, size=worst, num_walks=sampling.hard_walks
    )
    key = stream(seed ^ BAND, 0, 0)
    result = []
    for row, target in enumerate(int(target) for target in targets):
        ranked = [int(item) for item in ids[row] if item >= 0]
        # For a short list the band begins at the same fraction of its length.
        band_of_row = (
            ranked[best:] if len(ranked) == worst else ranked[len(ranked) * best // worst :]
        )
        drawn = []
        for column in range(size):
            item = -1
            if band_of_row:
                bits = high(draw(key, first + row, column))
                item = band_of_row[bounded(bits, len(band_of_row))]
            drawn.append(-1 if item == target else item)
        result.append(drawn)
    return np.array(result, np.int32).reshape(len(targets), size)
