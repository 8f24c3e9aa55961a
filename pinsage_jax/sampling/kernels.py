"""Numba kernels of the sampler: keyed random numbers, walks, visit counts, top-T.

PinSage (Ying et al. 2018, section 3.2) takes as neighbors of a node the T nodes
that short random walks from it visit most.  Everything here is serial, runs
without the interpreter lock and gets all data through its arguments; threads are
made one level up, by cutting the list of seeds.

Random numbers are counters, not state: draw i of walk w from node u is a hash of
(seed, epoch, u, w, i).  The result does not depend on threads or on what else is
in a batch, and a reference can recompute any single draw.

All walks of several seeds move one hop at a time, each hop in two passes (where to
read, then read), each of which asks for what the next one reads (cpu/prefetch.py).

Compiling takes about ten seconds, so compiled code is kept on disk (cpu/kernel_cache.py).
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.cpu.prefetch import prefetch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
_LOW_32 = np.uint64(0xFFFFFFFF)
U1 = np.uint64(1)
_U16, _U27, _U30, _U31 = (np.uint64(bits) for bits in (16, 27, 30, 31))
U32 = np.uint64(32)
TIE_STREAM = np.uint64(0x7469655F62726561)
_STAYS, _STUCK = -2, -1
_FEW = 32  # so many nodes are sorted by insertion alone


@njit(nogil=True, cache=True)
def mix(value):
    """The splitmix64 finalizer: a bijection of uint64 whose bits look random."""
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
            total += np.float64(weights[place])
            sums[place] = total


@njit(nogil=True, cache=True)
def _first_above(cumulative, low, high, target):
    """First place in [low, high) whose running sum is above `target`, or the last place."""
    first, last = low, high - 1
    while first < last:
        middle = (first + last) >> 1
        if cumulative[middle] > target:
            last = middle
        else:
            first = middle + 1
    return first


@njit(nogil=True, cache=True)
def _pick_weighted(cumulative, low, high, bits_32):
    """Row position in [low, high) drawn in proportion to weight.

    `cumulative` holds running sums within each row; the search ends inside the
    row even if rounding makes the drawn mass equal to the row's total.
    """
    target = (np.float64(bits_32) + 0.5) / 4294967296.0 * cumulative[high - 1]
    return _first_above(cumulative, low, high, target)


@njit(nogil=True, cache=True)
def _pick_weighted_without(cumulative, low, high, hole, bits_32):
    """As _pick_weighted, but never position `hole`."""
    before = cumulative[hole - 1] if hole > low else 0.0
    weight = cumulative[hole] - before
    target = (np.float64(bits_32) + 0.5) / 4294967296.0 * (cumulative[high - 1] - weight)
    if target >= before:
        target += weight
    place = _first_above(cumulative, low, high, target)
    if place == hole:
        # Only rounding leads here: the mass just beside the hole.
        place = hole - 1 if hole > low else hole + 1
    return place


@njit(nogil=True, cache=True)
def _draw_bits(keys, num_walks, index, high, low):
    """Draw `index` of each of the walks of the streams `keys`, in halves of 32 bits."""
    for row in range(keys.shape[0]):
        for walk in range(num_walks):
            random = draw(keys[row], walk, index)
            high[row * num_walks + walk] = random >> U32
            low[row * num_walks + walk] = random & _LOW_32


@njit(nogil=True, cache=True)
def _hop(graph, current, first, last, hidden, bits, spare_bits, where):
    """Moves every walk standing in [first, last) to a random neighbor that is not hidden.

    A walk that cannot move gets -1; walks outside the range stay.  When the first
    pick is the hidden node, a second pick among the others keeps those equally
    likely (or in proportion to weight).
    """
    indptr, indices, cumulative, _ = graph
    weighted = cumulative.shape[0] > 0
    base, span = np.uint32(first), np.uint32(last - first)
    for walk in range(current.shape[0]):
        # Unsigned: one comparison does, and Numba need not look out for indices below 0.
        node = np.uint32(current[walk])
        if np.uint32(node - base) >= span:
            where[walk] = _STAYS
            continue
        low, high = indptr[node], indptr[np.uint64(node) + U1]
        if weighted and low < high:
            where[walk] = _pick_weighted(cumulative, low, high, bits[walk])
        else:
            where[walk] = low + bounded(bits[walk], high - low) if low < high else _STUCK
        prefetch(indices, where[walk])
    for walk in range(current.shape[0]):
        place = where[walk]
        if place < 0:
            if place == _STUCK:
                current[walk] = -1
            continue
        reached = indices[np.uint64(place)]
        if reached == hidden[walk]:
            low, high = indptr[current[walk]], indptr[current[walk] + 1]
            other = place
            if weighted and high - low > 1:
                other = _pick_weighted_without(cumulative, low, high, place, spare_bits[walk])
            elif high - low > 1:
                other = low + bounded(spare_bits[walk], high - low - 1)
                other += np.int64(other >= place)
            reached = indices[other] if high - low > 1 else np.int32(-1)
        prefetch(indptr, np.int64(reached))
        current[walk] = reached


@njit(nogil=True, cache=True)
def _walk(graph, plan, starts, hidden, keys, current, where, bits, visited):
    """Moves the W walks of each of G start nodes, all at once, one hop at a time.

    A step goes item, collection, item.  Before each further step the chance
    restart_below / 2**32 strikes: the walk returns to its start, or ends.  A walk that
    got stuck does the same.

    Args:
      graph, plan: as of sample_block.
      starts: int32 [G]; keys: uint64 [G]; hidden: int32 [G W].
      current: int32 [G W]; where: int64 [G W]; bits: uint64 [4, G W]; for use here.
      visited: int32 [P, G W], where the walks stand after each step and, if collections
        count, in the middle of it; -1 for a walk that ended or is stuck.
    """
    num_walks, _, restart_below, restart_ends, count_collections = plan
    items, nodes = graph[3], graph[0].shape[0] - 1
    for row in range(starts.shape[0]):
        current[row * num_walks : (row + 1) * num_walks] = starts[row]
    index = part = 0
    while part < visited.shape[0]:
        _draw_bits(keys, num_walks, index, bits[0], bits[1])
        _draw_bits(keys, num_walks, index + 1, bits[2], bits[3])
        for row in range(starts.shape[0] if index > 0 else 0):
            back = np.int32(-1) if restart_ends else starts[row]
            for walk in range(row * num_walks, (row + 1) * num_walks):
                struck = (current[walk] < 0) | (bits[1, walk] < restart_below)
                current[walk] = back if struck else current[walk]
        # What is hidden is a collection, so no walk comes to it from a collection.
        for first, last, half in ((0, items, 0), (items, nodes, 2)):
            _hop(graph, current, first, last, hidden, bits[half], bits[3], where)
            if half or count_collections:
                visited[part, : current.shape[0]] = current
                part += 1
        index += 2


@njit(nogil=True, cache=True)
def _count_visits(visited, left_out, num_walks, table, flat, nodes, visits, used):
    """Counts, for each of G rows, the nodes that its walks visited.

    Nothing branches on what was visited but a collision in the hash table: a branch
    guessed wrong costs more than the rest of a turn.

    Args:
      visited: int32 [P, G W]; left_out: starts and dropped nodes, int32 [G], which do not
        count, nor does -1.
      table: int32 [a power of 2]; flat: int32 [V + 1]; for use here.
      nodes, visits: int32 [G, V + 1], the distinct nodes of a row from place 1 on.
      used: int64 [G], how many they are.
    """
    starts, dropped = left_out
    mask = np.uint64(table.shape[0] - 1)
    for row in range(starts.shape[0]):
        kept = np.uint64(0)
        for part in range(visited.shape[0]):
            for walk in range(row * num_walks, (row + 1) * num_walks):
                node = visited[part, walk]
                flat[kept] = node
                kept += np.uint64((node >= 0) & (node != starts[row]) & (node != dropped[row]))
        table[:] = 0
        visits[row] = 0
        count = np.uint64(0)
        for place in range(np.int64(kept)):
            node = flat[place]
            slot = ((np.uint64(np.uint32(node)) * GOLDEN) >> U32) & mask
            at = np.uint64(np.uint32(table[slot]))
            while at != 0 and nodes[row, at] != node:
                slot = (slot + U1) & mask
                at = np.uint64(np.uint32(table[slot]))
            count += np.uint64(at == 0)
            at = count if at == 0 else at
            table[slot] = np.int32(at)
            nodes[row, at] = node
            visits[row, at] += 1
        used[row] = np.int64(count)


@njit(nogil=True, cache=True)
def _nearly_sort(rank, found, number, size, lists, rank_out, found_out):
    """Copies the best nodes, at least `size` of `number`, nearly in order; returns how many.

    The low half of a rank is a hash and so uniform: with the count it all but tells a
    node's place.  Nodes are put where they are expected to belong.
    """
    expected, chosen, members, begins = lists[0], lists[1], lists[2], lists[3]
    # Most nodes are visited once: they are what is left, not a long chain of additions.
    often = np.uint64(0)
    for index in range(number):
        chosen[often] = index
        often += np.uint64((rank[index] >> U32) > U1)
    members[:] = 0
    most = 1
    for index in range(np.int64(often)):
        count = np.int64(rank[chosen[index]] >> U32)
        members[count] += 1
        most = max(most, count)
    members[1] = number - np.int64(often)
    better = 0
    for count in range(most, 0, -1):
        begins[count] = better
        better += members[count]
    for index in range(number):
        count = rank[index] >> U32
        share = np.uint64(np.uint32(members[count])) * (_LOW_32 - (rank[index] & _LOW_32))
        expected[index] = begins[count] + np.int32(share >> U32)
    end, held = 1 + size * 3 // 4, 0
    while held < min(size, number):
        # One turn finds enough nearly always; the last one would take all.
        end = min(2 * end, number)
        taken = np.uint64(0)
        for index in range(number):
            chosen[taken] = index
            taken += np.uint64(expected[index] < end)
        held = np.int64(taken)
    begins[:end] = 0
    for index in range(held):
        begins[expected[chosen[index]]] += 1
    before = 0
    for place in range(end):
        before += begins[place]
        begins[place] = before - begins[place]
    for index in range(held):
        one = chosen[index]
        place = begins[expected[one]]
        rank_out[place], found_out[place] = rank[one], found[one]
        begins[expected[one]] += 1
    return held


@njit(nogil=True, cache=True)
def _select_top(nodes, visits, used, keys, lists, ranks, top):
    """Writes the T most visited nodes of each row, best first; unused places get id -1.

    Tie rule: equal counts are ordered by a hash of (stream, node), larger first,
    so that no node is favored everywhere for having a low id; then by lower id.
    """
    ids_out, counts_out = top
    size = ids_out.shape[1]
    rank, order = ranks[0], ranks[1]
    found, ids = lists[4], lists[5]
    for row in range(used.shape[0]):
        tie_key = keys[row] ^ TIE_STREAM
        number = used[row]
        for index in range(number):
            node = nodes[row, index + 1]
            tie = mix(tie_key + np.uint64(np.uint32(node)) * GOLDEN) >> U32
            rank[index] = (np.uint64(np.uint32(visits[row, index + 1])) << U32) | tie
            found[index] = node
        held = 0
        if number > _FEW:
            number = _nearly_sort(rank, found, number, size, lists, order, ids)
            rank, order, found, ids = order, rank, ids, found
        for index in range(number):
            mine, node = rank[index], found[index]
            if held == size and (
                mine < order[held - 1] or (mine == order[held - 1] and node > ids[held - 1])
            ):
                continue
            held = min(held + 1, size)
            place = held - 1
            while place > 0 and (
                order[place - 1] < mine or (order[place - 1] == mine and ids[place - 1] > node)
            ):
                order[place], ids[place] = order[place - 1], ids[place - 1]
                place -= 1
            order[place], ids[place] = mine, node
        for place in range(held):
            ids_out[row, place] = ids[place]
            counts_out[row, place] = np.int32(order[place] >> U32)
        ids_out[row, held:] = -1
        counts_out[row, held:] = 0


@njit(nogil=True, cache=True)
def sample_block(graph, plan, group, starts, hidden, dropped, seed, epoch, ids_out, counts_out):
    """Top-T most visited nodes of every start, walked `group` starts at a time.

    Args:
      graph: indptr, int64 [N+1]; indices, int32 [2E]; cumulative, float64 [2E], running
        sums of the weights within each row, or empty for an unweighted graph; the number
        of items.
      plan: W, the number of walks; their steps; restart_below, uint64, the restart chance
        in units of 2**-32; whether a walk ends where it would return to its start;
        whether collections count.
      starts, hidden, dropped: int32 [S]; -1 in the last two means none, and what is
        hidden is a collection.
      ids_out, counts_out: int32 [S, T], written best first, padded with -1 and 0.
    """
    num_walks, walk_length, _, _, count_collections = plan
    group = min(group, starts.shape[0])
    parts = walk_length * (2 if count_collections else 1)
    most = parts * num_walks + 1
    # A small table is kept an eighth full, so that few nodes meet; a large one half.
    slots = 8
    while slots < 2 * min(most, graph[0].shape[0]) or slots < min(8 * most, 4096):
        slots *= 2
    table = np.empty(slots, np.int32)
    current = np.empty(group * num_walks, np.int32)
    hidden_of = np.empty(group * num_walks, np.int32)
    where = np.empty(group * num_walks, np.int64)
    bits = np.empty((4, group * num_walks), np.uint64)
    visited = np.empty((parts, group * num_walks), np.int32)
    nodes = np.empty((group, most), np.int32)
    visits = np.empty((group, most), np.int32)
    used = np.empty(group, np.int64)
    keys = np.empty(group, np.uint64)
    lists = np.empty((6, most), np.int32)
    ranks = np.empty((2, most), np.uint64)
    for begin in range(0, starts.shape[0], group):
        end = min(begin + group, starts.shape[0])
        rows = end - begin
        for row in range(rows):
            keys[row] = stream(seed, epoch, starts[begin + row])
            hidden_of[row * num_walks : (row + 1) * num_walks] = hidden[begin + row]
        here, left_out = current[: rows * num_walks], (starts[begin:end], dropped[begin:end])
        _walk(graph, plan, left_out[0], hidden_of, keys[:rows], here, where, bits, visited)
        _count_visits(visited, left_out, num_walks, table, lists[0], nodes, visits, used)
        top = ids_out[begin:end], counts_out[begin:end]
        _select_top(nodes, visits, used[:rows], keys, lists, ranks, top)


@njit(nogil=True, cache=True)
def chosen_nodes(nodes, seed, step, below, chosen):
    """chosen[i] = whether a coin keyed by (seed, step, nodes[i]) fell below `below` / 2**32."""
    for place in range(nodes.shape[0]):
        chosen[place] = draw(stream(seed, step, nodes[place]), 0, 0) >> U32 < below
