"""Compiled loops of the generator: members of groups by weight, and boards filled with items.

Every number that they return is one that NumPy would compute from the same random numbers: no sum
is taken in another order.  All kernels release the GIL, so that blocks are drawn in threads.

Axis letters: n rows or entries, P parts of an entry, C boards, G groups.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit


@njit(nogil=True, cache=True)
def count_members(groups, weights, starts):
    """Fills starts int64 [G + 1]: where the members of each group begin.

    groups int [n, P]; weights float [n, P]; an entry of weight 0 is no member.
    """
    starts[:] = 0
    for row in range(groups.shape[0]):
        for part in range(groups.shape[1]):
            if weights[row, part] > 0:
                starts[groups[row, part] + 1] += 1
    for group in range(starts.shape[0] - 1):
        starts[group + 1] += starts[group]


@njit(nogil=True, cache=True)
def sum_members(groups, members, weights, cursor, out_members, out_cumulative):
    """Sorts the entries by group, stable, and sums their weights in that order.

    members int32 [n]; cursor int64 [G], the start of each group, advanced in place; out_members
    int32 [m]; out_cumulative float64 [m + 1].
    """
    for row in range(groups.shape[0]):
        for part in range(groups.shape[1]):
            if weights[row, part] > 0:
                position = cursor[groups[row, part]]
                cursor[groups[row, part]] = position + 1
                out_members[position] = members[row]
                out_cumulative[position + 1] = weights[row, part]
    out_cumulative[0] = 0.0
    for position in range(1, out_cumulative.shape[0]):
        out_cumulative[position] += out_cumulative[position - 1]


@njit(nogil=True, cache=True)
def draw_one(starts, cumulative, members, group, uniform):
    """A member of the group, -1 of an empty one; see WeightedGroups.draw."""
    start, stop = starts[group], starts[group + 1]
    if start == stop:
        return np.int64(-1)
    low, high = cumulative[start], cumulative[stop]
    wanted = low + uniform * (high - low)
    # The first entry whose sum is above the wanted one; by rounding it may be that of no entry.
    first, last = start, stop - 1
    while first < last:
        middle = (first + last) >> 1
        if cumulative[middle + 1] > wanted:
            last = middle
        else:
            first = middle + 1
    return np.int64(members[first])


@njit(nogil=True, cache=True)
def draw_members(starts, cumulative, members, groups, uniforms, out):
    """draw_one of each group int [n] and random number float64 [n] into out int64 [n]."""
    for row in range(groups.shape[0]):
        out[row] = draw_one(starts, cumulative, members, groups[row], uniforms[row])


@njit(nogil=True, cache=True)
def _mark_repeated(items, begin, end, keys, stamps, stamp, repeated):
    """Lists rows of [begin, end) whose item an earlier one has; returns how many.

    keys int64 and stamps int64 [power of two]: an open hash table, empty where another stamp is.
    """
    found = 0
    mask = keys.shape[0] - 1
    for row in range(begin, end):
        item = items[row]
        slot = (item * 0x9E3779B1) & mask
        while stamps[slot] == stamp and keys[slot] != item:
            slot = (slot + 1) & mask
        if stamps[slot] == stamp:
            repeated[found] = row
            found += 1
        else:
            stamps[slot] = stamp
            keys[slot] = item
    return found


@njit(nogil=True, cache=True)
def fill_boards(
    board_groups, cumulative, noise, offsets, low, high, draws, by_group, overall, styles,
    probabilities, redraws, out_boards, out_items,
):  # fmt: skip
    """The edges of the boards [low, high); see generator._fill_boards.

    Args:
      board_groups: int32 [C, P]; cumulative: float32 [C, P]; noise: bool [C]; offsets: int64
        [C + 1]; of all boards.
      draws: float64 [n, 4 + 2 * redraws], random numbers of the edges.
      by_group, overall: (starts, cumulative, members) of the items.
      probabilities: float64 [2]: of an edge off topic, and of another style.
      out_boards, out_items: int64 [n] outputs.
    """
    first, parts = offsets[low], board_groups.shape[1]
    largest = 1
    for board in range(low, high):
        largest = max(largest, offsets[board + 1] - offsets[board])
    slots = 4
    while slots < 2 * largest:
        slots *= 2
    keys, stamps = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
    repeated, off_topic = np.zeros(largest, np.int64), np.zeros(draws.shape[0], np.bool_)
    stamp = 0
    for board in range(low, high):
        begin, end = offsets[board] - first, offsets[board + 1] - first
        for row in range(begin, end):
            part = 0
            for place in range(parts):
                if draws[row, 0] >= cumulative[board, place]:
                    part += 1
            group = np.int64(board_groups[board, min(part, parts - 1)])
            if draws[row, 1] < probabilities[1]:
                style = np.int64(draws[row, 1] / probabilities[1] * styles)
                group = group - group % styles + style
            off_topic[row] = noise[board] or draws[row, 3] < probabilities[0]
            out_boards[row] = board
            item = np.int64(-1)
            if not off_topic[row]:
                item = draw_one(by_group[0], by_group[1], by_group[2], group, draws[row, 2])
            if item < 0:
                item = draw_one(overall[0], overall[1], overall[2], 0, draws[row, 2])
            out_items[row] = item
        for attempt in range(redraws):
            stamp += 1
            found = _mark_repeated(out_items, begin, end, keys, stamps, stamp, repeated)
            if found == 0:
                break
            for number in range(found):
                row = repeated[number]
                part_draw, item_draw = draws[row, 4 + 2 * attempt], draws[row, 5 + 2 * attempt]
                # All groups of a board are equally likely here, also those with a small share.
                group = np.int64(board_groups[board, np.int64(part_draw * parts)])
                item = np.int64(-1)
                if not off_topic[row]:
                    item = draw_one(by_group[0], by_group[1], by_group[2], group, item_draw)
                if item < 0:
                    item = draw_one(overall[0], overall[1], overall[2], 0, item_draw)
                out_items[row] = item
