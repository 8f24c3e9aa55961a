"""Numba kernels that draw training pairs and hard negatives by their number.

Every draw is keyed by the number of its pair, so a pair is the same in every batch and in
any order of calls.

Axis letters: B pairs, P pairs of a given list, H hard negatives per query, C ranks, N
nodes, E edges.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.counter_random import (
    GOLDEN,
    U1,
    U32,
    bounded,
    draw,
    mix,
    pick_weighted,
    pick_weighted_except,
    stream,
)
from pinsage_jax.cpu.kernel_cache import njit


@njit(nogil=True, cache=True)
def permuted(key, index, size):
    """Position of `index` in a pseudorandom permutation of [0, size), in constant memory.

    A four-round Feistel network over the smallest even number of bits that can hold
    `size`, applied repeatedly until the value is below `size` (cycle walking).  The order
    of an epoch needs no array, and any position can be computed alone, so that a resumed
    run continues exactly.
    """
    half = 1
    while (np.int64(1) << (2 * half)) < size:
        half += 1
    key = np.uint64(key)
    low = (np.uint64(1) << np.uint64(half)) - U1
    value = np.uint64(index)
    while True:
        left, right = value >> np.uint64(half), value & low
        for round_number in range(4):
            left, right = right, left ^ (mix(key + right * GOLDEN + np.uint64(round_number)) & low)
        value = (left << np.uint64(half)) | right
        if value < np.uint64(size):
            return np.int64(value)


@njit(nogil=True, cache=True)
def collection_pairs(
    indptr, indices, num_items, num_edges, seed, first, queries, targets, source_collection
):
    """Positive pairs of two items of one collection; row r is pair first + r of the run.

    An epoch visits every edge (collection c, item q) once in a permuted order and pairs q
    with another item of c, drawn uniformly.  A collection with a single item has no pair:
    its target is -1.

    Args:
      indptr: int64 [N+1]; indices: int32 [2E]; the rows of the graph.
      num_edges: E; the edges of the collections start at indptr[num_items].
      seed: uint64.
      first: int64, number of the first pair, counted over the whole run.
      queries, targets, source_collection: int32 [B] outputs; source_collection is the
        node id of the collection.
    """
    base = indptr[num_items]
    for row in range(queries.shape[0]):
        number = first + row
        epoch = number // num_edges
        key = stream(seed, epoch, 0)
        edge = base + permuted(key, number - epoch * num_edges, num_edges)
        low, high = num_items, indptr.shape[0] - 1
        while high - low > 1:
            middle = (low + high) >> 1
            if indptr[middle] <= edge:
                low = middle
            else:
                high = middle
        begin, end = indptr[low], indptr[low + 1]
        queries[row] = indices[edge]
        source_collection[row] = low
        if end - begin < 2:
            targets[row] = -1
            continue
        other = begin + bounded(draw(key, number, 1) >> U32, end - begin - 1)
        if other >= edge:
            other += 1
        targets[row] = indices[other]


@njit(nogil=True, cache=True)
def find_unranked(nodes, ranked, table, unranked, rows):
    """Collects the distinct nodes for which `ranked` is false.

    Args:
      nodes: int32 [B]; ranked: bool [N].
      table: int32 [a power of two, at least 2 B], all -1; scratch, a hash table.
      unranked: int32 [B] output, the distinct nodes in the order of first appearance.
      rows: int32 [B] output, index of each node in `unranked`; -1 if the node is ranked.

    Returns:
      The number of nodes in `unranked`.
    """
    mask = table.shape[0] - 1
    count = 0
    for row in range(nodes.shape[0]):
        node = nodes[row]
        rows[row] = -1
        if ranked[node]:
            continue
        slot = np.int64(mix(np.uint64(node)) & np.uint64(mask))
        while table[slot] >= 0 and unranked[table[slot]] != node:
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot] = count
            unranked[count] = node
            count += 1
        rows[row] = table[slot]
    return count


@njit(nogil=True, cache=True)
def _band_of(ranking, low, high):
    """Places [begin, end) of the band in one ranking, which is padded with -1."""
    length, end = 0, ranking.shape[0]
    while length < end:
        middle = (length + end) >> 1
        if ranking[middle] >= 0:
            length = middle + 1
        else:
            end = middle
    begin = low if length >= high else length * low // high
    return begin, min(length, high)


@njit(nogil=True, cache=True)
def sample_bands(rankings, nodes, low, high, seed, sampled):
    """Draws a fixed sample of the ranks [low, high) of every node, with replacement.

    Args:
      rankings, low, high: as in draw_from_band; row i is the ranking of nodes[i].
      nodes: int32 [n].
      seed: uint64.
      sampled: int32 [n, S] output; -1 where the band is empty.
    """
    key = stream(seed, 0, 0)
    for row in range(sampled.shape[0]):
        begin, end = _band_of(rankings[row], low, high)
        for column in range(sampled.shape[1]):
            sampled[row, column] = -1
            if begin < end:
                bits = draw(key, np.int64(nodes[row]), column) >> U32
                sampled[row, column] = rankings[row, begin + bounded(bits, end - begin)]


@njit(nogil=True, cache=True)
def draw_from_band(rankings, rows, low, high, targets, seed, first, drawn):
    """Draws hard negatives from ranks [low, high) of each query's ranking.

    For a ranking shorter than `high` the band shrinks in proportion.  An output is -1 if
    the band is empty or the draw is the query's own target.

    Args:
      rankings: int32 [n, C], items in descending order, padded with -1.
      rows: int32 [B], the row of each query in `rankings`.
      low, high: int64, first rank of the band, and one after its last.
      targets: int32 [B], the targets of the queries.
      seed: uint64.
      first: int64, number of the first pair, counted over the whole run.
      drawn: int32 [B, H] output.
    """
    key = stream(seed, 0, 0)
    for row in range(drawn.shape[0]):
        ranking = rankings[rows[row]]
        begin, end = _band_of(ranking, low, high)
        for column in range(drawn.shape[1]):
            drawn[row, column] = -1
            if begin < end:
                bits = draw(key, first + row, column) >> U32
                item = ranking[begin + bounded(bits, end - begin)]
                if item != targets[row]:
                    drawn[row, column] = item


@njit(nogil=True, cache=True)
def listed_pairs(pairs, seed, first, queries, targets):
    """Pairs of a given list, each once an epoch in a permuted order.

    Args:
      pairs: int32 [P, 2], query and target.
      seed: uint64.
      first: int64, number of the first pair, counted over the whole run.
      queries, targets: int32 [B] outputs.
    """
    size = pairs.shape[0]
    for row in range(queries.shape[0]):
        number = first + row
        epoch = number // size
        index = permuted(stream(seed, epoch, 0), number - epoch * size, size)
        queries[row] = pairs[index, 0]
        targets[row] = pairs[index, 1]


@njit(nogil=True, cache=True)
def weighted_collection_pairs(
    graph, num_items, cumulative, edge_sums, seed, first, queries, targets, source_collection
):
    """Positive pairs of collections drawn with replacement in proportion to a weight.

    Args:
      graph: (indptr int64 [N+1], indices int32 [2E]), the rows of the graph.
      num_items, seed, first: as in collection_pairs.
      cumulative: float64 [collections], running sums of the collections' weights; the
        weight of a collection with fewer than two items must be 0.
      edge_sums: float64 [2E], running sums of the weights of the edges within each row: query
        and target are drawn in proportion to these; empty: each item alike.
      queries, targets, source_collection: int32 [B] outputs; source_collection is the
        node id of the collection.
    """
    key = stream(seed, 0, 1)
    last, (indptr, indices) = cumulative.shape[0] - 1, graph
    weighted = edge_sums.shape[0] > 0
    for row in range(queries.shape[0]):
        number = first + row
        # 53 bits, the precision of float64, because there may be many millions of collections.
        uniform = np.float64(draw(key, number, 0) >> np.uint64(11)) / 9007199254740992.0
        target_weight = uniform * cumulative[last]
        low, high = 0, last
        while low < high:
            middle = (low + high) >> 1
            if cumulative[middle] > target_weight:
                high = middle
            else:
                low = middle + 1
        begin, end = indptr[num_items + low], indptr[num_items + low + 1]
        bits, other_bits = draw(key, number, 1) >> U32, draw(key, number, 2) >> U32
        if weighted:
            query = pick_weighted(edge_sums, begin, end, bits)
            target = pick_weighted_except(edge_sums, begin, end, query, other_bits)
        else:
            query = begin + bounded(bits, end - begin)
            target = begin + bounded(other_bits, end - begin - 1)
            if target >= query:
                target += 1
        queries[row] = indices[query]
        targets[row] = indices[target]
        source_collection[row] = num_items + low


@njit(nogil=True, cache=True)
def add_collections(indptr, indices, num_items, weights, low, high, total):
    """total[item] += weights[collection] for every edge of the collections [low, high).

    indptr int64 [N+1], indices int32 [2E]: the graph; weights float64 [collections]; total
    float64 [num_items], updated in place.
    """
    for collection in range(low, high):
        weight = weights[collection]
        for edge in range(indptr[num_items + collection], indptr[num_items + collection + 1]):
            total[indices[edge]] += weight
