"""Numba kernels of the neighbor sampler: random walks, visit counts, top-T selection.

The neighbors of a node are the T nodes that short random walks from it visit most (Ying et
al. 2018, section 3.2).  The kernels are serial, release the interpreter lock and receive
all data as arguments; `neighborhoods.run_blocks` distributes start nodes over threads.
Random numbers come from cpu/counter_random.py, so a neighborhood does not depend on
threads or on the other start nodes of a call.

The walks of several start nodes move together, one hop at a time.  Each hop has two passes
(choose the edge to read, then read it), and each pass prefetches what the next one reads
(cpu/prefetch.py), so that cache misses overlap.

Axis letters: S start nodes, G start nodes of a group, W walks per start node, P recorded
positions per walk, V distinct visited nodes, T neighbors, N nodes, E edges.
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
from pinsage_jax.cpu.prefetch import prefetch

_LOW_32 = np.uint64(0xFFFFFFFF)
TIE_STREAM = np.uint64(0x7469655F62726561)
# Edge positions of _hop: the walk does not take part in this half step, or has no edge.
_STAYS, _STUCK = -2, -1
# Up to so many nodes are sorted by insertion alone.
_INSERTION_SORT_SIZE = 32


@njit(nogil=True, cache=True)
def running_sums(indptr, weights, sums):
    """sums[e] = sum of the weights of e's row up to and including e, in float64.

    The sums start anew in each row: differences of sums over the whole graph would lose
    the weights of a light row to the rounding of heavy rows.
    """
    for row in range(indptr.shape[0] - 1):
        total = 0.0
        for edge in range(indptr[row], indptr[row + 1]):
            total += np.float64(weights[edge])
            sums[edge] = total


@njit(nogil=True, cache=True)
def _draw_bits(keys, num_walks, index, high, low):
    """Draw `index` of all walks of the streams `keys`, split into halves of 32 bits."""
    for row in range(keys.shape[0]):
        for walk in range(num_walks):
            random = draw(keys[row], walk, index)
            high[row * num_walks + walk] = random >> U32
            low[row * num_walks + walk] = random & _LOW_32


@njit(nogil=True, cache=True)
def _hop(graph, current, first, last, masked_collection, bits, spare_bits, edges):
    """Moves every walk that stands on a node of [first, last) to a random neighbor.

    A walk never moves to its masked collection: if the first pick is that collection, a
    second pick among the other neighbors keeps their relative probabilities.  A walk
    without a neighbor to move to gets node -1; walks outside the range do not move.

    `edges` int64 [G W] is scratch: the edge index that a walk follows.
    """
    indptr, indices, cumulative, _ = graph
    weighted = cumulative.shape[0] > 0
    base, span = np.uint32(first), np.uint32(last - first)
    for walk in range(current.shape[0]):
        # With unsigned numbers one comparison tests the range, and Numba omits the handling
        # of negative indices.
        node = np.uint32(current[walk])
        if np.uint32(node - base) >= span:
            edges[walk] = _STAYS
            continue
        low, high = indptr[node], indptr[np.uint64(node) + U1]
        if weighted and low < high:
            edges[walk] = pick_weighted(cumulative, low, high, bits[walk])
        else:
            edges[walk] = low + bounded(bits[walk], high - low) if low < high else _STUCK
        prefetch(indices, edges[walk])
    for walk in range(current.shape[0]):
        edge = edges[walk]
        if edge < 0:
            if edge == _STUCK:
                current[walk] = -1
            continue
        reached = indices[np.uint64(edge)]
        if reached == masked_collection[walk]:
            low, high = indptr[current[walk]], indptr[current[walk] + 1]
            other = edge
            if weighted and high - low > 1:
                other = pick_weighted_except(cumulative, low, high, edge, spare_bits[walk])
            elif high - low > 1:
                other = low + bounded(spare_bits[walk], high - low - 1)
                other += np.int64(other >= edge)
            reached = indices[other] if high - low > 1 else np.int32(-1)
        prefetch(indptr, np.int64(reached))
        current[walk] = reached


@njit(nogil=True, cache=True)
def _walk(graph, plan, starts, masked_collection, keys, current, edges, bits, visited):
    """Moves the W walks of each of G start nodes together, one hop at a time.

    A step goes from an item to a collection and on to an item.  Before each step but the
    first a walk restarts with probability restart_below / 2**32, or if it is stuck: it
    returns to its start node, or ends.

    Args:
      graph, plan: see sample_block.
      starts: int32 [G]; keys: uint64 [G]; masked_collection: int32 [G W].
      current: int32 [G W], edges: int64 [G W], bits: uint64 [4, G W]; scratch.
      visited: int32 [P, G W] output, the node of each walk after each step and, if
        collections count, in the middle of a step; -1 for a walk that ended or is stuck.
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
            restart_node = np.int32(-1) if restart_ends else starts[row]
            for walk in range(row * num_walks, (row + 1) * num_walks):
                restarts = (current[walk] < 0) | (bits[1, walk] < restart_below)
                current[walk] = restart_node if restarts else current[walk]
        # Only collections are masked, so a walk that stands on a collection never meets a
        # masked node: only the first half step reads bits[3].
        for first, last, half in ((0, items, 0), (items, nodes, 2)):
            _hop(graph, current, first, last, masked_collection, bits[half], bits[3], edges)
            if half or count_collections:
                visited[part, : current.shape[0]] = current
                part += 1
        index += 2


@njit(nogil=True, cache=True)
def begin_step(key, step, start, restart_below, current, bits):
    """Draws the bits of a step of the walks of one start node, and restarts those that do.

    Args:
      key: stream of the start node.
      step: number of the step; before step 0 no walk restarts.
      start: node to which a walk returns.
      restart_below: restart probability times 2**32, uint64.
      current: int32 [W], nodes of the walks; -1: stuck, which restarts.
      bits: uint64 [3, W] output, for the hop to a collection, the restart, the hop to an item.
    """
    for walk in range(current.shape[0]):
        first = draw(key, walk, 2 * step)
        bits[0, walk], bits[1, walk] = first >> U32, first & _LOW_32
        bits[2, walk] = draw(key, walk, 2 * step + 1) >> U32
        if step > 0 and (current[walk] < 0 or bits[1, walk] < restart_below):
            current[walk] = start


@njit(nogil=True, cache=True)
def table_size(max_distinct, num_nodes):
    """Entries of the hash table of `count_visits` for so many distinct nodes of a graph.

    A small table is at most an eighth full, to avoid collisions; a large one half.
    """
    slots = 8
    while slots < 2 * min(max_distinct, num_nodes) or slots < min(8 * max_distinct, 4096):
        slots *= 2
    return slots


@njit(nogil=True, cache=True)
def count_visits(visited, excluded, num_walks, table, flat, nodes, visits, num_distinct):
    """Counts how often the walks of each of G rows visited each node.

    The only branch that depends on visited nodes is the probing of the hash table: a
    mispredicted branch would cost more than the rest of an iteration.

    Args:
      visited: int32 [P, G W].
      excluded: start nodes and masked neighbors, int32 [G] each; they are not counted,
        and neither is -1.
      table: int32 [a power of 2], flat: int32 [V + 1]; scratch.
      nodes, visits: int32 [G, V + 1] outputs, the distinct nodes of a row and their
        counts, from index 1 on.
      num_distinct: int64 [G] output, number of distinct nodes of a row.
    """
    starts, masked_neighbor = excluded
    mask = np.uint64(table.shape[0] - 1)
    for row in range(starts.shape[0]):
        length = np.uint64(0)
        for part in range(visited.shape[0]):
            for walk in range(row * num_walks, (row + 1) * num_walks):
                node = visited[part, walk]
                flat[length] = node
                length += np.uint64(
                    (node >= 0) & (node != starts[row]) & (node != masked_neighbor[row])
                )
        table[:] = 0
        visits[row] = 0
        count = np.uint64(0)
        for visit in range(np.int64(length)):
            node = flat[visit]
            slot = ((np.uint64(np.uint32(node)) * GOLDEN) >> U32) & mask
            entry = np.uint64(np.uint32(table[slot]))
            while entry != 0 and nodes[row, entry] != node:
                slot = (slot + U1) & mask
                entry = np.uint64(np.uint32(table[slot]))
            count += np.uint64(entry == 0)
            entry = count if entry == 0 else entry
            table[slot] = np.int32(entry)
            nodes[row, entry] = node
            visits[row, entry] += 1
        num_distinct[row] = np.int64(count)


@njit(nogil=True, cache=True)
def _nearly_sort(rank, ids, number, size, scratch, rank_out, ids_out):
    """Copies at least the `size` best of `number` nodes, nearly sorted; returns their number.

    A rank is the visit count in the high half and a hash in the low half (select_top).
    The nodes of one count form a bucket; since the hash is uniform, a node's position in
    the sorted bucket is about (1 - hash / 2**32) times the bucket's size.  A counting sort
    by this expected position leaves few inversions for the insertion sort.
    """
    expected, chosen, bucket_size, begins = scratch[0], scratch[1], scratch[2], scratch[3]
    # Most nodes are visited once.  Their number is computed by subtraction instead of
    # counting, which would be one long chain of dependent additions.
    repeated = np.uint64(0)
    for index in range(number):
        chosen[repeated] = index
        repeated += np.uint64((rank[index] >> U32) > U1)
    bucket_size[:] = 0
    largest = 1
    for index in range(np.int64(repeated)):
        count = np.int64(rank[chosen[index]] >> U32)
        bucket_size[count] += 1
        largest = max(largest, count)
    bucket_size[1] = number - np.int64(repeated)
    better = 0
    for count in range(largest, 0, -1):
        begins[count] = better
        better += bucket_size[count]
    for index in range(number):
        count = rank[index] >> U32
        offset = np.uint64(np.uint32(bucket_size[count])) * (_LOW_32 - (rank[index] & _LOW_32))
        expected[index] = begins[count] + np.int32(offset >> U32)
    end, num_chosen = 1 + size * 3 // 4, 0
    while num_chosen < min(size, number):
        # The first iteration nearly always finds enough; the last one takes all nodes.
        end = min(2 * end, number)
        taken = np.uint64(0)
        for index in range(number):
            chosen[taken] = index
            taken += np.uint64(expected[index] < end)
        num_chosen = np.int64(taken)
    begins[:end] = 0
    for index in range(num_chosen):
        begins[expected[chosen[index]]] += 1
    before = 0
    for position in range(end):
        before += begins[position]
        begins[position] = before - begins[position]
    for index in range(num_chosen):
        node = chosen[index]
        position = begins[expected[node]]
        rank_out[position], ids_out[position] = rank[node], ids[node]
        begins[expected[node]] += 1
    return num_chosen


@njit(nogil=True, cache=True)
def select_top(nodes, visits, num_distinct, keys, scratch, ranks, top):
    """Writes the T most visited nodes of each row, best first, padded with id -1.

    Ties: nodes with equal counts are ordered by a hash of (stream, node), larger first, so
    that low ids are not favored everywhere; then by lower id.
    """
    ids_out, counts_out = top
    size = ids_out.shape[1]
    rank, top_rank = ranks[0], ranks[1]
    ids, top_ids = scratch[4], scratch[5]
    for row in range(num_distinct.shape[0]):
        tie_key = keys[row] ^ TIE_STREAM
        number = num_distinct[row]
        for index in range(number):
            node = nodes[row, index + 1]
            tie = mix(tie_key + np.uint64(np.uint32(node)) * GOLDEN) >> U32
            rank[index] = (np.uint64(np.uint32(visits[row, index + 1])) << U32) | tie
            ids[index] = node
        length = 0
        if number > _INSERTION_SORT_SIZE:
            number = _nearly_sort(rank, ids, number, size, scratch, top_rank, top_ids)
            rank, top_rank, ids, top_ids = top_rank, rank, top_ids, ids
        for index in range(number):
            new, node = rank[index], ids[index]
            if length == size and (
                new < top_rank[length - 1]
                or (new == top_rank[length - 1] and node > top_ids[length - 1])
            ):
                continue
            length = min(length + 1, size)
            position = length - 1
            while position > 0 and (
                top_rank[position - 1] < new
                or (top_rank[position - 1] == new and top_ids[position - 1] > node)
            ):
                top_rank[position] = top_rank[position - 1]
                top_ids[position] = top_ids[position - 1]
                position -= 1
            top_rank[position], top_ids[position] = new, node
        for position in range(length):
            ids_out[row, position] = top_ids[position]
            counts_out[row, position] = np.int32(top_rank[position] >> U32)
        ids_out[row, length:] = -1
        counts_out[row, length:] = 0


@njit(nogil=True, cache=True)
def sample_block(
    graph,
    plan,
    group,
    starts,
    masked_collection,
    masked_neighbor,
    seed,
    epoch,
    ids_out,
    counts_out,
):
    """The T most visited nodes of every start node, walked `group` start nodes at a time.

    Args:
      graph: (indptr int64 [N+1], indices int32 [2E], cumulative float64 [2E], number of
        items); cumulative holds running sums of the weights within each row, and is empty
        for an unweighted graph.
      plan: (W, steps per walk, restart_below, restart_ends, count_collections):
        restart_below is the restart probability times 2**32, uint64; with restart_ends a
        walk ends where it would return to its start node; count_collections tells whether
        visits of collections count.
      starts: int32 [S].
      masked_collection: int32 [S], collection that the row's walks never enter, or -1.
      masked_neighbor: int32 [S], node that the row does not count, or -1.
      seed, epoch: uint64, keys of the random numbers.
      ids_out, counts_out: int32 [S, T] outputs, best first, padded with -1 and 0.
    """
    num_walks, walk_length, _, _, count_collections = plan
    group = min(group, starts.shape[0])
    parts = walk_length * (2 if count_collections else 1)
    max_distinct = parts * num_walks + 1
    table = np.empty(table_size(max_distinct, graph[0].shape[0] - 1), np.int32)
    current = np.empty(group * num_walks, np.int32)
    walk_masks = np.empty(group * num_walks, np.int32)
    edges = np.empty(group * num_walks, np.int64)
    bits = np.empty((4, group * num_walks), np.uint64)
    visited = np.empty((parts, group * num_walks), np.int32)
    nodes = np.empty((group, max_distinct), np.int32)
    visits = np.empty((group, max_distinct), np.int32)
    num_distinct = np.empty(group, np.int64)
    keys = np.empty(group, np.uint64)
    scratch = np.empty((6, max_distinct), np.int32)
    ranks = np.empty((2, max_distinct), np.uint64)
    for begin in range(0, starts.shape[0], group):
        end = min(begin + group, starts.shape[0])
        rows = end - begin
        for row in range(rows):
            keys[row] = stream(seed, epoch, starts[begin + row])
            walk_masks[row * num_walks : (row + 1) * num_walks] = masked_collection[begin + row]
        walks = current[: rows * num_walks]
        excluded = starts[begin:end], masked_neighbor[begin:end]
        _walk(graph, plan, excluded[0], walk_masks, keys[:rows], walks, edges, bits, visited)
        count_visits(visited, excluded, num_walks, table, scratch[0], nodes, visits, num_distinct)
        top = ids_out[begin:end], counts_out[begin:end]
        select_top(nodes, visits, num_distinct[:rows], keys, scratch, ranks, top)


@njit(nogil=True, cache=True)
def choose_nodes(nodes, seed, step, threshold, chosen):
    """Chooses each node with probability threshold / 2**32, keyed by (seed, step, node).

    Args:
      nodes: int32 [n]; chosen: bool [n] output; seed, step, threshold: uint64.
    """
    for row in range(nodes.shape[0]):
        chosen[row] = draw(stream(seed, step, nodes[row]), 0, 0) >> U32 < threshold
