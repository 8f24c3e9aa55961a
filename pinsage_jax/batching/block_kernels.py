"""Numba kernels of a minibatch: unique frontiers and re-indexing (the paper's G').

A row of a frontier is an *instance*: a node together with the collection hidden
from it (-1 for none).  The two ends of a training pair are computed with a
neighborhood that must not see the collection the pair came from, so the same
node can stand in a batch twice, once hidden and once not.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_U32 = np.uint64(32)
_U30 = np.uint64(30)
_U31 = np.uint64(31)
_U27 = np.uint64(27)


@njit(nogil=True, cache=True)
def _slot_of(node, hidden, dropped, nodes, hiddens, droppeds, table):
    """Slot that holds this instance's row number, or the empty slot for it."""
    mask = table.shape[0] - 1
    value = (
        (np.uint64(node) << _U32)
        ^ np.uint64(hidden + 1)
        ^ (np.uint64(dropped + 1) << np.uint64(13))
    )
    value = (value ^ (value >> _U30)) * _MIX_1
    value = (value ^ (value >> _U27)) * _MIX_2
    slot = np.int64((value ^ (value >> _U31)) & np.uint64(mask))
    while table[slot] >= 0:
        row = table[slot]
        if nodes[row] == node and hiddens[row] == hidden and droppeds[row] == dropped:
            break
        slot = (slot + 1) & mask
    return slot


@njit(nogil=True, cache=True)
def insert_seeds(
    wanted, hidden, dropped, limit, nodes, hiddens, droppeds, plain, table, used, rows
):
    """Adds instances to a frontier; rows[i] is the row of wanted[i].

    Args:
      wanted, hidden, dropped: int32 [S]; a wanted node of -1 gets row -1.
      limit: rows that the frontier may use; a new instance beyond it gets row -1.
      nodes, hiddens, droppeds: int32 [n] frontier, filled up to `used`.
      plain: int32 [num_nodes], one more than the row of a node from which nothing is
        hidden; 0: it has none yet.
      table: int32 [capacity], rows of the other instances, hashed: a power of two at
        least twice as many; -1 is empty.
      rows: int32 [S] output.

    Returns:
      (rows in use, wanted instances left out).
    """
    left_out = 0
    for place in range(wanted.shape[0]):
        node = wanted[place]
        if node < 0:
            rows[place] = -1
            continue
        is_plain = hidden[place] < 0 and dropped[place] < 0
        slot = np.int64(node)
        if is_plain:
            row = plain[node] - 1
        else:
            slot = _slot_of(node, hidden[place], dropped[place], nodes, hiddens, droppeds, table)
            row = table[slot]
        if row < 0:
            if used >= limit:
                left_out += 1
                rows[place] = -1
                continue
            row = used
            if is_plain:
                plain[node] = row + 1
            else:
                table[slot] = row
            nodes[row] = node
            hiddens[row] = hidden[place]
            droppeds[row] = dropped[place]
            used += 1
        rows[place] = row
    return used, left_out


@njit(nogil=True, cache=True)
def insert_neighbors(ids, first_row, last_row, limit, nodes, plain, used, neighbors):
    """Adds the neighbors of rows [first_row, last_row) and re-indexes their lists.

    Goes column by column, most important neighbors first, so that when the budget
    runs out it is the least important new nodes that are left out.

    Args:
      ids: int32 [rows, T] node ids, -1 for none, of rows first_row onwards.
      limit: rows that the frontier may use.
      nodes, plain: as in `insert_seeds`; nothing is hidden from neighbors.
      neighbors: int32 [n, T] output, rows as indices into the frontier, -1 for
        none or left out.

    Returns:
      (rows in use, neighbors left out).
    """
    left_out = 0
    for column in range(ids.shape[1]):
        for row in range(first_row, last_row):
            node = ids[row - first_row, column]
            if node < 0:
                neighbors[row, column] = -1
                continue
            found = plain[node]
            if found == 0:
                if used >= limit:
                    left_out += 1
                else:
                    nodes[used] = node
                    used += 1
                    found = used
                    plain[node] = used
            neighbors[row, column] = found - 1
    return used, left_out


@njit(nogil=True, cache=True)
def forget(nodes, used, plain):
    """Makes `plain` all zeros again after a frontier of `used` rows."""
    for row in range(used):
        if nodes[row] >= 0:
            plain[nodes[row]] = 0


@njit(nogil=True, cache=True)
def gather_rows(features, scale, nodes, used, out):
    """out[i, :F] = features[nodes[i]] * scale for i < used; nodes without a row stay as they are.

    Args:
      features: [num_items, F]; scale: float32 [F]; nodes: int32 [n]; out: float32 [n, D].
    """
    width = features.shape[1]
    for row in range(used):
        node = nodes[row]
        if node < features.shape[0]:
            for column in range(width):
                out[row, column] = features[node, column] * scale[column]
