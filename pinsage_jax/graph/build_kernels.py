"""Numba kernels that turn edge lists into CSR rows by counting sort.

Every kernel is serial and releases the GIL.  An optional array (weights, times) has
length 0 where it is absent, because the types of a compiled kernel are fixed.

Two stable counting sorts (by collection, then by item) leave the collections of
every item ascending, so duplicates are adjacent and one pass merges them; one
more transposition leaves the items of every collection ascending.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit


@njit(nogil=True, cache=True)
def count_keys(keys, counts):
    """Adds to counts[k] the number of times k occurs; returns the first bad position or -1.

    keys int32 [E]; counts int64 [rows], updated in place.
    """
    rows = counts.shape[0]
    for edge in range(keys.shape[0]):
        key = np.int64(keys[edge])
        if key < 0 or key >= rows:
            return edge
        counts[key] += 1
    return -1


@njit(nogil=True, cache=True)
def first_bad_weight(weights):
    """Position of the first weight that is not finite and above 0, or -1; weights float32 [E]."""
    for edge in range(weights.shape[0]):
        value = weights[edge]
        if not (value > 0.0 and value < np.inf):
            return edge
    return -1


@njit(nogil=True, cache=True)
def scatter_edges(
    keys, values, weights, times, span, window, cursor, out_values, out_weights, out_times
):
    """Moves edge lists into rows by key, keeping input order inside a row.

    keys, values int32 [E]; weights float32 [E or 0]; times int64 [E or 0]; span: the first edge
    and the one after the last; window: the first row to fill and the one after the last; cursor
    int64: the start of each row of the window in the outputs, advanced in place; outputs of the
    edges of the window.
    """
    low, rows = window[0], np.uint32(window[1] - window[0])
    for edge in range(span[0], span[1]):
        row = keys[edge]
        # One comparison: as an unsigned number a row before the window is large.
        if np.uint32(row - low) >= rows:
            continue
        position = cursor[row - low]
        cursor[row - low] = position + 1
        out_values[position] = values[edge]
        if weights.shape[0] > 0:
            out_weights[position] = weights[edge]
        if times.shape[0] > 0:
            out_times[position] = times[edge]


@njit(nogil=True, cache=True)
def transpose_rows(
    indptr, ids, weights, times, span, window, cursor, out_ids, out_weights, out_times
):
    """Transposes rows: the source rows come out ascending in every target row.

    indptr int64 [rows+1]; ids int32 [E] (target rows); span: the first source row and the one
    after the last; window: the same of target rows; cursor int64 and outputs as in
    scatter_edges.
    """
    low, targets = window[0], np.uint32(window[1] - window[0])
    for row in range(span[0], span[1]):
        for edge in range(indptr[row], indptr[row + 1]):
            target = ids[edge]
            if np.uint32(target - low) >= targets:
                continue
            position = cursor[target - low]
            cursor[target - low] = position + 1
            out_ids[position] = row
            if weights.shape[0] > 0:
                out_weights[position] = weights[edge]
            if times.shape[0] > 0:
                out_times[position] = times[edge]


@njit(nogil=True, cache=True)
def merge_duplicates(indptr, ids, weights, times, span, start, written):
    """Merges equal neighbors of sorted rows in place and returns the edges left.

    Weights are added (in float64, the smallest first, so that the order of the input
    changes no bit), the earliest time is kept, and indptr is rewritten for the shortened
    rows.

    Args:
      span: the first row and the one after the last; rows are merged in their order.
      start, written: what the call for the rows before returned; at first indptr[0] and 0.

    Returns:
      Where the next row began before, and the edges written so far.
    """
    for row in range(span[0], span[1]):
        end = indptr[row + 1]
        edge = start
        while edge < end:
            neighbor = ids[edge]
            total = 0.0
            earliest = np.int64(0)
            if times.shape[0] > 0:
                earliest = times[edge]
            if weights.shape[0] > 0:
                last = edge + 1
                while last < end and ids[last] == neighbor:
                    last += 1
                # Two weights have the same sum either way.
                if last > edge + 2:
                    weights[edge:last].sort()
            while edge < end and ids[edge] == neighbor:
                if weights.shape[0] > 0:
                    total += weights[edge]
                if times.shape[0] > 0 and times[edge] < earliest:
                    earliest = times[edge]
                edge += 1
            ids[written] = neighbor
            if weights.shape[0] > 0:
                weights[written] = total
            if times.shape[0] > 0:
                times[written] = earliest
            written += 1
        start = end
        indptr[row + 1] = written
    return start, written


@njit(nogil=True, cache=True)
def count_kept(indptr, indices, isolated, span, out_indptr):
    """Fills out_indptr int64 [N+1] of the graph without the edges of isolated bool [N] nodes.

    span: the first row and the one after the last; rows come in their order, and out_indptr[0] is
    0 before the first call.
    """
    for row in range(span[0], span[1]):
        kept = 0
        if not isolated[row]:
            for edge in range(indptr[row], indptr[row + 1]):
                if not isolated[indices[edge]]:
                    kept += 1
        out_indptr[row + 1] = out_indptr[row] + kept


@njit(nogil=True, cache=True)
def copy_kept(indptr, indices, weights, isolated, span, out_indptr, out_indices, out_weights):
    """Copies the edges of the rows `span` that count_kept counted; weights float32 [2E or 0]."""
    written = out_indptr[span[0]]
    for row in range(span[0], span[1]):
        if isolated[row]:
            continue
        for edge in range(indptr[row], indptr[row + 1]):
            if isolated[indices[edge]]:
                continue
            out_indices[written] = indices[edge]
            if weights.shape[0] > 0:
                out_weights[written] = weights[edge]
            written += 1


@njit(nogil=True, cache=True)
def mark_kinds(indptr, indices, num_items, items, collections, kinds, marked):
    """Sets bit kinds[r] of the edge of every row r; rows of edges that are not there do nothing.

    Args:
      indptr: int64 [N+1]; indices: int32 [2E]; num_items: int32; the graph.
      items, collections: int32 [R]; kinds: uint8 [R], below 16.
      marked: uint16 [E] output, in the order of the items' rows.
    """
    for row in range(items.shape[0]):
        node = num_items + collections[row]
        low, high = indptr[items[row]], indptr[items[row] + 1]
        end = high
        while low < high:
            middle = (low + high) >> 1
            if indices[middle] < node:
                low = middle + 1
            else:
                high = middle
        if low < end and indices[low] == node:
            marked[low] |= np.uint16(np.uint16(1) << np.uint16(kinds[row]))
