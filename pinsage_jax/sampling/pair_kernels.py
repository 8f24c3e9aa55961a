"""Numba kernels that draw numbered pairs and hard negatives.

Every draw is keyed by the pair's number, so a pair is the same in whatever batch or
order it is asked for.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.sampling.kernels import GOLDEN, U1, U32, bounded, draw, mix, stream


@njit(nogil=True, cache=True)
def permuted(key, index, size):
    """Place of `index` in a random permutation of [0, size), in constant memory.

    A four-round Feistel network on the smallest even number of bits that holds
    `size`, walked until it lands inside: the order of an epoch needs no array, and
    any position can be recomputed alone, so a resume is exact.
    """
    half = 1
    while (np.int64(1) << (2 * half)) < size:
        half += 1
    key = np.uint64(key)
    low = (np.uint64(1) << np.uint64(half)) - U1
    value = np.uint64(index)
    while True:
        left, right = value >> np.uint64(half), value & low
        for turn in range(4):
            left, right = right, left ^ (mix(key + right * GOLDEN + np.uint64(turn)) & low)
        value = (left << np.uint64(half)) | right
        if value < np.uint64(size):
            return np.int64(value)


@njit(nogil=True, cache=True)
def collection_pairs(
    indptr, indices, num_items, edge_item_rows, seed, first, queries, targets, via
):
    """Positive pairs that share a collection: pair number g = first + row.

    One epoch visits every edge (collection c, item q) once, in a permuted order,
    and pairs q with another item of c drawn uniformly.  Collections with a single
    item give no pair: there the target is -1.

    Args:
      edge_item_rows: int64 number of edges; the collection side of the CSR holds
        them from position indptr[num_items] on.
      first: int64, number of the first pair over the whole run.
      queries, targets, via: int32 [B] outputs; via is the collection's node id.
    """
    base = indptr[num_items]
    for row in range(queries.shape[0]):
        number = first + row
        epoch = number // edge_item_rows
        key = stream(seed, epoch, 0)
        place = base + permuted(key, number - epoch * edge_item_rows, edge_item_rows)
        low, high = num_items, indptr.shape[0] - 1
        while high - low > 1:
            middle = (low + high) >> 1
            if indptr[middle] <= place:
                low = middle
            else:
                high = middle
        begin, end = indptr[low], indptr[low + 1]
        queries[row] = indices[place]
        via[row] = low
        if end - begin < 2:
            targets[row] = -1
            continue
        other = begin + bounded(draw(key, number, 1) >> U32, end - begin - 1)
        if other >= place:
            other += 1
        targets[row] = indices[other]


@njit(nogil=True, cache=True)
def unranked(nodes, ranked, table, found, rows):
    """Lists each node that `ranked` does not hold yet, once.

    Args:
      nodes: int32 [B]; ranked: bool [N].
      table: int32 [capacity], a power of two of at least 2 B, all -1.
      found: int32 [B] output, nodes in the order of their first place.
      rows: int32 [B] output, where in `found` each node is; -1 where it is ranked.

    Returns:
      how many were found.
    """
    mask = table.shape[0] - 1
    count = 0
    for place in range(nodes.shape[0]):
        node = nodes[place]
        rows[place] = -1
        if ranked[node]:
            continue
        slot = np.int64(mix(np.uint64(node)) & np.uint64(mask))
        while table[slot] >= 0 and found[table[slot]] != node:
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot] = count
            found[count] = node
            count += 1
        rows[place] = table[slot]
    return count


@njit(nogil=True, cache=True)
def draw_from_band(rankings, rows, low, high, targets, seed, first, drawn):
    """Draws from ranks [low, high) of each query's ranking; -1 where nothing is to be had.

    A ranking shorter than `high` has its band shrunk in proportion.  A draw of the
    query's own target is void.

    Args:
      rankings: int32 [n, C] items, best first, then -1; rows: int32 [B] rows of it.
      targets: int32 [B].
      first: int64 number of the first pair over the run; keys the draws.
      drawn: int32 [B, H] output.
    """
    key = stream(seed, 0, 0)
    for row in range(drawn.shape[0]):
        ranking = rankings[rows[row]]
        reached, end = 0, ranking.shape[0]
        while reached < end:
            middle = (reached + end) >> 1
            if ranking[middle] >= 0:
                reached = middle + 1
            else:
                end = middle
        begin = low if reached >= high else reached * low // high
        end = min(reached, high)
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
      pairs: int32 [P, 2]; first: int64 number of the first pair over the run.
      queries, targets: int32 [B] outputs.
    """
    size = pairs.shape[0]
    for row in range(queries.shape[0]):
        number = first + row
        epoch = number // size
        place = permuted(stream(seed, epoch, 0), number - epoch * size, size)
        queries[row] = pairs[place, 0]
        targets[row] = pairs[place, 1]


@njit(nogil=True, cache=True)
def weighted_collection_pairs(
    indptr, indices, num_items, cumulative, seed, first, queries, targets, via
):
    """Positive pairs of collections drawn in proportion to a weight, with repetition.

    Args:
      cumulative: float64 [collections], running sums of the collections' weights;
        a collection with fewer than two items must weigh nothing.
      first: int64, number of the first pair over the whole run.
      queries, targets, via: int32 [B] outputs; via is the collection's node id.
    """
    key = stream(seed, 0, 1)
    last = cumulative.shape[0] - 1
    for row in range(queries.shape[0]):
        number = first + row
        # 53 bits, the precision of a float64: collections may number many millions.
        share = np.float64(draw(key, number, 0) >> np.uint64(11)) / 9007199254740992.0
        wanted = share * cumulative[last]
        low, high = 0, last
        while low < high:
            middle = (low + high) >> 1
            if cumulative[middle] > wanted:
                high = middle
            else:
                low = middle + 1
        begin, end = indptr[num_items + low], indptr[num_items + low + 1]
        one = bounded(draw(key, number, 1) >> U32, end - begin)
        other = bounded(draw(key, number, 2) >> U32, end - begin - 1)
        if other >= one:
            other += 1
        queries[row] = indices[begin + one]
        targets[row] = indices[begin + other]
        via[row] = num_items + low
