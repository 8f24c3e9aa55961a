"""Numba kernels of a minibatch: unique frontiers and re-indexing (the paper's G').

A row of a frontier is an *instance*: a node together with its masks, the collection and
the neighbor that its neighborhood must not hold (-1 for none).  The two ends of a training
pair must not see the collection that the pair was drawn from (or each other), so the same
node can have two rows in a batch, one with a mask and one without.

Axis letters: S seeds, n rows of a frontier, T neighbors, N nodes of the model, F features,
D input features.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.counter_random import mix
from pinsage_jax.cpu.kernel_cache import njit

_U13, _U32 = np.uint64(13), np.uint64(32)


@njit(nogil=True, cache=True)
def _slot_of(node, collection, neighbor, nodes, masked_collection, masked_neighbor, table):
    """Slot that holds this instance's row number, or the empty slot for it."""
    mask = table.shape[0] - 1
    value = (
        (np.uint64(node) << _U32) ^ np.uint64(collection + 1) ^ (np.uint64(neighbor + 1) << _U13)
    )
    slot = np.int64(mix(value) & np.uint64(mask))
    while table[slot] >= 0:
        row = table[slot]
        if (
            nodes[row] == node
            and masked_collection[row] == collection
            and masked_neighbor[row] == neighbor
        ):
            break
        slot = (slot + 1) & mask
    return slot


@njit(nogil=True, cache=True)
def insert_seeds(
    wanted,
    wanted_collection,
    wanted_neighbor,
    limit,
    nodes,
    masked_collection,
    masked_neighbor,
    unmasked_row,
    table,
    used,
    rows,
):
    """Adds instances to a frontier; rows[i] is the row of wanted[i].

    Args:
      wanted: int32 [S] nodes; a node of -1 gets row -1.
      wanted_collection, wanted_neighbor: int32 [S], the masks of `wanted`.
      limit: rows that the frontier may use; a new instance beyond it gets row -1.
      nodes, masked_collection, masked_neighbor: int32 [n], instances of the frontier,
        filled up to `used`.
      unmasked_row: int32 [N], one more than the row of a node without masks; 0: that
        node has none yet.
      table: int32 [capacity], rows of the instances with masks, hashed: a power of two
        at least twice as many; -1 is empty.
      rows: int32 [S] output.

    Returns:
      (rows in use, wanted instances left out).
    """
    left_out = 0
    for seed in range(wanted.shape[0]):
        node, collection, neighbor = wanted[seed], wanted_collection[seed], wanted_neighbor[seed]
        if node < 0:
            rows[seed] = -1
            continue
        unmasked = collection < 0 and neighbor < 0
        slot = np.int64(node)
        if unmasked:
            row = unmasked_row[node] - 1
        else:
            slot = _slot_of(
                node, collection, neighbor, nodes, masked_collection, masked_neighbor, table
            )
            row = table[slot]
        if row < 0:
            if used >= limit:
                left_out += 1
                rows[seed] = -1
                continue
            row = used
            if unmasked:
                unmasked_row[node] = row + 1
            else:
                table[slot] = row
            nodes[row] = node
            masked_collection[row] = collection
            masked_neighbor[row] = neighbor
            used += 1
        rows[seed] = row
    return used, left_out


@njit(nogil=True, cache=True)
def insert_neighbors(ids, first_row, last_row, limit, nodes, unmasked_row, used, neighbors):
    """Adds the neighbors of rows [first_row, last_row) and re-indexes their lists.

    Goes column by column, most important neighbors first, so that when the budget
    runs out it is the least important new nodes that are left out.

    Args:
      ids: int32 [rows, T] node ids, -1 for none, of rows first_row onwards.
      limit: rows that the frontier may use.
      nodes, unmasked_row: as in `insert_seeds`; neighbors have no masks.
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
            found = unmasked_row[node]
            if found == 0:
                if used >= limit:
                    left_out += 1
                else:
                    nodes[used] = node
                    used += 1
                    found = used
                    unmasked_row[node] = used
            neighbors[row, column] = found - 1
    return used, left_out


@njit(nogil=True, cache=True)
def clear(nodes, used, unmasked_row):
    """Makes `unmasked_row` all zeros again after a frontier of `used` rows."""
    for row in range(used):
        if nodes[row] >= 0:
            unmasked_row[nodes[row]] = 0


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
