"""Numba kernels of the sampler: keyed random numbers, walks, visit counts, top-T.

PinSage (Ying et al. 2018, section 3.2) takes as neighbours of a node the T nodes
that short random walks from it visit most.  Everything here is serial, runs
without the interpreter lock and gets all data through its arguments; threads are
made one level up, by cutting the list of seeds.

Random numbers are counters, not state: draw i of walk w from node u is a hash of
(seed, epoch, u, w, i).  The result does not depend on threads or on what else is
in a batch, and a reference can recompute any single draw.

All walks of a seed move one hop at a time, each hop in two passes (where to read,
then read), so that the cache misses of different walks overlap.

Compiled code is cached on disk, which is sound only while every kernel calls none
outside this file; compiling takes about ten seconds a process otherwise.
"""

from __future__ import annotations

import numpy as np
from numba import njit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_32 = np.uint64(0xFFFFFFFF)
U1 = np.uint64(1)
_U16 = np.uint64(16)
_U27 = np.uint64(27)
_U30 = np.uint64(30)
_U31 = np.uint64(31)
U32 = np.uint64(32)
TIE_STREAM = np.uint64(0x7469655F62726561)


@njit(nogil=True, cache=True)
def mix(value):
    """The splitmix64 finaliser: a bijection of uint64 whose bits look random."""
    value = np.uint64(value)
    value = (value ^ (value >> _U30)) * MIX_1
    value = (value ^ (value >> _U27)) * MIX_2
    return value ^ (value >> _U31)


@njit(nogil=True, cache=True)
def stream(seed, epoch, node):
    """Key of all random numbers of one node in one epoch."""
    key = mix(np.uint64(seed) + GOLDEN)
    key = mix(key + np.uint64(epoch) * GOLDEN + U1)
    return mix(key + np.uint64(node) * GOLDEN + U1)


@njit(nogil=True, cache=True)
def draw(key, walk, index):
    """64 random bits: number `index` (below 65536) of walk `walk` of a stream."""
    place = (np.uint64(walk) << _U16) + np.uint64(index) + U1
    return mix(np.uint64(key) + place * GOLDEN)


@njit(nogil=True, cache=True)
def bounded(bits_32, size):
    """An integer in [0, size) from 32 random bits, by multiply-high."""
    return np.int64((np.uint64(bits_32) * np.uint64(size)) >> U32)


@njit(nogil=True, cache=True)
def running_sums(indptr, weights, sums):
    """sums[e] = weights of e's row up to and with e, added left to right in float64.

    Each row starts anew: differences of sums over the whole graph would lose the
    weights of a light row to the rounding of heavy ones.
    """
    for row in range(indptr.shape[0] - 1):
        total = 0.0
        for place in range(indptr[row], indptr[row + 1]):
            total += weights[place]
            sums[place] = total


@njit(nogil=True, cache=True)
def _pick_weighted(cumulative, low, high, bits_32):
    """Row position in [low, high) drawn in proportion to weight.

    `cumulative` holds running sums within each row; the search ends inside the
    row even if rounding makes the drawn mass equal to the row's total.
    """
    target = (np.float64(bits_32) + 0.5) / 4294967296.0 * cumulative[high - 1]
    first, last = low, high - 1
    while first < last:
        middle = (first + last) >> 1
        if cumulative[middle] > target:
            last = middle
        else:
            first = middle + 1
    return first


@njit(nogil=True, cache=True)
def _pick_weighted_without(cumulative, low, high, hole, bits_32):
    """As _pick_weighted, but never position `hole`."""
    before = cumulative[hole - 1] if hole > low else 0.0
    weight = cumulative[hole] - before
    target = (np.float64(bits_32) + 0.5) / 4294967296.0 * (cumulative[high - 1] - weight)
    if target >= before:
        target += weight
    first, last = low, high - 1
    while first < last:
        middle = (first + last) >> 1
        if cumulative[middle] > target:
            last = middle
        else:
            first = middle + 1
    if first == hole:
        # Only rounding leads here: the mass just beside the hole.
        first = hole - 1 if hole > low else hole + 1
    return first


@njit(nogil=True, cache=True)
def _count_visit(node, keys, counts, stamps, stamp, slots, used):
    """Adds one visit of `node` to the open-addressing counter; returns slots used."""
    mask = keys.shape[0] - 1
    slot = np.int64(mix(np.uint64(node)) & np.uint64(mask))
    while stamps[slot] == stamp and keys[slot] != node:
        slot = (slot + 1) & mask
    if stamps[slot] == stamp:
        counts[slot] += 1
        return used
    stamps[slot] = stamp
    keys[slot] = node
    counts[slot] = 1
    slots[used] = slot
    return used + 1


@njit(nogil=True, cache=True)
def _sift_down(order, ids, start, end):
    """Restores the heap whose root is the worst (smallest order, then larger id)."""
    root = start
    while True:
        child = 2 * root + 1
        if child >= end:
            return
        if child + 1 < end and (
            order[child + 1] < order[child]
            or (order[child + 1] == order[child] and ids[child + 1] > ids[child])
        ):
            child += 1
        if order[root] < order[child] or (order[root] == order[child] and ids[root] < ids[child]):
            return
        order[root], order[child] = order[child], order[root]
        ids[root], ids[child] = ids[child], ids[root]
        root = child


@njit(nogil=True, cache=True)
def _select_top(keys, counts, slots, used, tie_key, order, ids, histogram, ids_out, counts_out):
    """Writes the T most visited nodes, best first; unused places get id -1.

    Tie rule: equal counts are ordered by a hash of (stream, node), larger first,
    so that no node is favoured everywhere for having a low id; then by lower id.
    """
    size = ids_out.shape[0]
    threshold = 1
    if used > size:
        # A histogram of counts bounds which nodes can be among the best.
        last = histogram.shape[0] - 1
        histogram[:] = 0
        for place in range(used):
            histogram[min(counts[slots[place]], last)] += 1
        reached, threshold = 0, last
        while reached + histogram[threshold] < size:
            reached += histogram[threshold]
            threshold -= 1
    held = 0
    for place in range(used):
        slot = slots[place]
        count = counts[slot]
        if count < threshold:
            continue
        node = keys[slot]
        tie = mix(tie_key + np.uint64(node) * GOLDEN) >> U32
        rank = (np.uint64(count) << U32) | tie
        if held < size:
            order[held] = rank
            ids[held] = node
            held += 1
            if held == size:
                for root in range(size // 2 - 1, -1, -1):
                    _sift_down(order, ids, root, size)
        elif rank > order[0] or (rank == order[0] and node < ids[0]):
            order[0] = rank
            ids[0] = node
            _sift_down(order, ids, 0, size)
    if held < size:
        for root in range(held // 2 - 1, -1, -1):
            _sift_down(order, ids, root, held)
    for end in range(held - 1, -1, -1):
        # The root is the worst of what is left, so the list fills from its end.
        ids_out[end] = ids[0]
        counts_out[end] = np.int32(order[0] >> U32)
        order[0] = order[end]
        ids[0] = ids[end]
        _sift_down(order, ids, 0, end)
    for place in range(held, size):
        ids_out[place] = -1
        counts_out[place] = 0


@njit(nogil=True, cache=True)
def _hop(indptr, indices, cumulative, current, first, last, hidden, bits, spare_bits, where):
    """Moves every walk standing in [first, last) to a random neighbour, never to `hidden`.

    A walk that cannot move gets -1; walks outside the range stay.  When the first
    pick is the hidden node, a second pick among the others keeps those equally
    likely (or in proportion to weight).
    """
    weighted = cumulative.shape[0] > 0
    walks = current.shape[0]
    for walk in range(walks):
        node = current[walk]
        if node < first or node >= last:
            continue
        low, high = indptr[node], indptr[node + 1]
        if low == high:
            where[walk] = -1
        elif weighted:
            where[walk] = _pick_weighted(cumulative, low, high, bits[walk])
        else:
            where[walk] = low + bounded(bits[walk], high - low)
    for walk in range(walks):
        node = current[walk]
        if node < first or node >= last:
            continue
        place = where[walk]
        if place < 0:
            current[walk] = -1
            continue
        reached = indices[place]
        if reached == hidden:
            low, high = indptr[node], indptr[node + 1]
            if high - low == 1:
                current[walk] = -1
                continue
            if weighted:
                other = _pick_weighted_without(cumulative, low, high, place, spare_bits[walk])
            else:
                other = low + bounded(spare_bits[walk], high - low - 1)
                if other >= place:
                    other += 1
            reached = indices[other]
        current[walk] = reached


@njit(nogil=True, cache=True)
def _walk_and_count(
    indptr,
    indices,
    cumulative,
    num_items,
    start,
    hidden,
    dropped,
    key,
    walk_length,
    restart_below,
    count_collections,
    keys,
    counts,
    stamps,
    stamp,
    slots,
    current,
    where,
    bits,
):
    """Runs all walks of one start node; returns how many distinct nodes were visited.

    A step goes item, collection, item.  Before each further step a walk returns to
    the start with chance restart_below / 2**32; so does a walk that got stuck.
    Visits of the start itself and of `dropped` are not counted.
    """
    num_walks = current.shape[0]
    num_nodes = indptr.shape[0] - 1
    used = 0
    current[:] = start
    for step in range(walk_length):
        for walk in range(num_walks):
            random = draw(key, walk, 2 * step)
            if step > 0 and (current[walk] < 0 or (random & _LOW_32) < restart_below):
                current[walk] = start
            bits[0, walk] = random >> U32
            random = draw(key, walk, 2 * step + 1)
            bits[1, walk] = random >> U32
            bits[2, walk] = random & _LOW_32
        _hop(indptr, indices, cumulative, current, 0, num_items, hidden, bits[0], bits[2], where)
        if count_collections:
            for walk in range(num_walks):
                node = current[walk]
                if node >= 0 and node != start and node != dropped:
                    used = _count_visit(node, keys, counts, stamps, stamp, slots, used)
        _hop(
            indptr, indices, cumulative, current, num_items, num_nodes, -1, bits[1], bits[2], where
        )
        for walk in range(num_walks):
            node = current[walk]
            if node >= 0 and node != start and node != dropped:
                used = _count_visit(node, keys, counts, stamps, stamp, slots, used)
    return used


@njit(nogil=True, cache=True)
def sample_block(
    indptr,
    indices,
    cumulative,
    num_items,
    starts,
    hidden,
    dropped,
    seed,
    epoch,
    num_walks,
    walk_length,
    restart_below,
    count_collections,
    ids_out,
    counts_out,
):
    """Top-T most visited nodes of every start.

    Args:
      indptr: int64 [N+1]; indices: int32 [2E]; cumulative: float64 [2E] running
        sums of the weights within each row, or empty for an unweighted graph.
      starts, hidden, dropped: int32 [S]; -1 in the last two means none.
      restart_below: uint64, the restart chance in units of 2**-32.
      ids_out, counts_out: int32 [S, T], written best first, padded with -1 and 0.
    """
    visits_most = num_walks * walk_length * (2 if count_collections else 1)
    visits_most = min(visits_most, indptr.shape[0])
    capacity = 4
    while capacity < 2 * visits_most:
        capacity *= 2
    keys = np.empty(capacity, np.int32)
    counts = np.empty(capacity, np.int32)
    stamps = np.full(capacity, -1, np.int32)
    slots = np.empty(visits_most + 1, np.int32)
    current = np.empty(num_walks, np.int32)
    where = np.empty(num_walks, np.int64)
    bits = np.empty((3, num_walks), np.uint64)
    order = np.empty(ids_out.shape[1], np.uint64)
    ids = np.empty(ids_out.shape[1], np.int32)
    histogram = np.empty(min(num_walks * walk_length, 1023) + 1, np.int64)
    for row in range(starts.shape[0]):
        start = starts[row]
        key = stream(seed, epoch, start)
        used = 0
        if indptr[start] < indptr[start + 1]:
            used = _walk_and_count(
                indptr,
                indices,
                cumulative,
                num_items,
                start,
                hidden[row],
                dropped[row],
                key,
                walk_length,
                restart_below,
                count_collections,
                keys,
                counts,
                stamps,
                row,
                slots,
                current,
                where,
                bits,
            )
        _select_top(
            keys,
            counts,
            slots,
            used,
            key ^ TIE_STREAM,
            order,
            ids,
            histogram,
            ids_out[row],
            counts_out[row],
        )


@njit(nogil=True, cache=True)
def chosen_nodes(nodes, seed, step, below, chosen):
    """chosen[i] = whether a coin keyed by (seed, step, nodes[i]) fell below `below` / 2**32."""
    for place in range(nodes.shape[0]):
        chosen[place] = draw(stream(seed, step, nodes[place]), 0, 0) >> U32 < below
