"""Numba kernels that lay out transposed neighbor lists (transposed.py says how).

Shapes: n rows, E entries, W widths of pieces, the last the most.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit


@njit(nogil=True, cache=True)
def _width_of(entries, widths):
    """The number of the smallest width that holds so many entries."""
    for number in range(widths.shape[0]):
        if entries <= widths[number]:
            return number
    return widths.shape[0] - 1


@njit(nogil=True, cache=True)
def fill_groups(starts, lists, list_weights, widths, slots, entries, weights, counts, rows, rests):
    """Writes the entries of all pieces, and where the sums of each row's pieces are.

    Args:
      starts, lists, list_weights: of pooling_kernels.transpose_lists.
      widths: int32 [W]; slots: of a group, which holds the first entries of its pieces, then
        the second ones, and so on, so that a device adds whole matrices.
      entries: int32 [groups * slots] output, of zeros; weights: float32, likewise.
      counts: int32 [W + 1] output; the last is left.
      rows: int32 [n] output: the place of the row's first piece of the last width, or of its
        only one; -1 for a row without entries.
      rests: int32 [n] output: the place of its last piece.
    """
    most, kinds = widths[-1], widths.shape[0]
    pieces = np.zeros(kinds, np.int64)
    for row in range(rows.shape[0]):
        length = starts[row + 1] - starts[row]
        pieces[kinds - 1] += length // most
        if length % most:
            pieces[_width_of(length % most, widths)] += 1
    # The first slot and sum of each width, and how many of its pieces are written.
    first_slot, first_sum = np.zeros(kinds, np.int64), np.zeros(kinds, np.int64)
    written = np.zeros(kinds, np.int64)
    groups, sums = np.int64(0), np.int64(0)
    for kind in range(kinds):
        first_slot[kind], first_sum[kind] = groups * slots, sums
        in_group = slots // widths[kind]
        counts[kind] = (pieces[kind] + in_group - 1) // in_group
        groups += counts[kind]
        sums += counts[kind] * in_group
    for row in range(rows.shape[0]):
        rows[row] = rests[row] = -1
        begin, end = starts[row], starts[row + 1]
        while begin < end:
            length = min(end - begin, most)
            kind = _width_of(length, widths)
            in_group, piece = slots // widths[kind], written[kind]
            written[kind] += 1
            rests[row] = first_sum[kind] + piece
            if rows[row] < 0:
                rows[row] = rests[row]
            slot = first_slot[kind] + piece // in_group * slots + piece % in_group
            for place in range(length):
                entries[slot + place * in_group] = lists[begin + place]
                weights[slot + place * in_group] = list_weights[begin + place]
            begin += length


@njit(nogil=True, cache=True)
def fill_merges(starts, sizes, rests, rows, merges, counts):
    """Writes which sums are added to one, round by round, and the place of each row's last sum.

    Args:
      starts: int32 [n + 1]; sizes: int32 [4], the entries of a whole piece, merges of a group,
        sums of a merge, and the place of the first merge's sum.
      rests: int32 [n] of `fill_groups`; rows: int32 [n] of `fill_groups`, made the place of the
        row's sum.
      merges: int32 [groups * sums of a merge * merges of a group] output, -1 everywhere.
      counts: int32 [W + 1]; the last is made the groups in use.
    """
    most, in_group, width, first = sizes[0], sizes[1], sizes[2], sizes[3]
    several = 0
    total = np.int64(0)
    for row in range(rows.shape[0]):
        length = starts[row + 1] - starts[row]
        if length > most:
            several += 1
            total += (length + most - 1) // most
    named = np.empty(several, np.int64)
    begins = np.zeros(several + 1, np.int64)
    sums = np.empty(total, np.int32)
    place, at = 0, np.int64(0)
    for row in range(rows.shape[0]):
        length = starts[row + 1] - starts[row]
        if length > most:
            named[place] = row
            for piece in range(length // most):
                sums[at] = rows[row] + piece
                at += 1
            if length % most:
                sums[at] = rests[row]
                at += 1
            place += 1
            begins[place] = at
    group = 0
    while named.shape[0]:
        # One round: every row's sums, `width` at a time; rows left with several go on.
        merge, made = group * in_group, np.int64(0)
        next_begins = np.zeros(named.shape[0] + 1, np.int64)
        next_named = np.empty(named.shape[0], np.int64)
        next_sums = np.empty(sums.shape[0], np.int32)
        left = 0
        for place in range(named.shape[0]):
            count = begins[place + 1] - begins[place]
            before = made
            for begin in range(begins[place], begins[place + 1], width):
                for rank in range(min(np.int64(width), begins[place + 1] - begin)):
                    slot = (merge // in_group * width + rank) * in_group + merge % in_group
                    merges[slot] = sums[begin + rank]
                next_sums[made] = first + merge
                made += 1
                merge += 1
            if count <= width:
                rows[named[place]] = next_sums[before]
                made = before
            else:
                next_named[left] = named[place]
                left += 1
                next_begins[left] = made
        group = (merge + in_group - 1) // in_group
        named, begins, sums = next_named[:left], next_begins[: left + 1], next_sums[:made]
    counts[-1] = group
