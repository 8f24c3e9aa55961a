"""Random walks over a changing graph (overlay.py), and how much of them a change reaches.

`visit_counts` walks as sampling/kernels.py does, with the same random streams: the lists are
those of the changed graph, bit for bit.

`add_stale_shares` bounds what lists lose by staying as they were.  A walk differs only if it
leaves a changed edge's end by a choice that the change touched.  For the new edge (i, c) of
weight w, a walk from j does so with probability at most

  sum over t of s_t (P^t(j, i) w / W_i + (P^t H)(j, c) w / W_c),

where P is a step, H its first half, W the weight of a node's edges and s_t the expected number
of steps that begin t steps after the start or a restart.  Walks are reversible, W_j P^t(j, i) =
W_i P^t(i, j), so the sum is w / W_j times what walks from i and from c bring to j: one spread
from the two ends finds it for every j.  What is spread from a node whose mass is below
`threshold` W is left out, which loses at most `threshold` per event and half step.

Axis letters: S start nodes, W walks per start node, P recorded positions, T neighbors, N nodes.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.cpu.counter_random import bounded, pick_weighted, stream
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.cpu.prefetch import prefetch
from pinsage_jax.following.overlay import AppliedEdges, Overlay
from pinsage_jax.sampling.kernels import begin_step, count_visits, select_top, table_size
from pinsage_jax.sampling.neighborhoods import run_blocks

# Positions of _hop: the walk does not take part in this half step, has no edge, or follows
# entry _POOLED - position of the pool.
_STAYS, _STUCK, _POOLED = -2, -1, -3


def visit_counts(
    overlay: Overlay, starts: np.ndarray, sampling: SamplingConfig, seed: int, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The items that walks from `starts` (int32 [S], items) visit most.

    Returns:
      ids and visit counts, int32 [S, T] each, most visited first, padded with -1 and 0.
    """
    starts = np.ascontiguousarray(starts, np.int32)
    shape = len(starts), sampling.num_neighbors
    ids, counts = np.empty(shape, np.int32), np.empty(shape, np.int32)
    base, rows = overlay.kernel_arguments
    plan = (
        sampling.num_walks,
        sampling.walk_length,
        np.uint64(round(sampling.restart * 2**32)),
        overlay.weighted,
    )

    def work(begin: int, end: int) -> None:
        part = slice(begin, end)
        sizes = overlay.num_items, overlay.num_nodes
        _sample(base, rows, sizes, plan, starts[part], np.uint64(seed), ids[part], counts[part])

    run_blocks(len(starts), threads, work)
    return ids, counts


def expected_steps(sampling: SamplingConfig) -> np.ndarray:
    """s_t: how many steps of a walk are expected to begin t steps from its start, float64 [L]."""
    length, restart = sampling.walk_length, sampling.restart
    t = np.arange(length)
    return (1.0 - restart) ** t * (1.0 + restart * (length - 1 - t))


class StaleShares:
    """For every item, the share of its walks that may differ from when its list was made.

    Attributes:
      shares: float64 [items]; may exceed 1.
    """

    def __init__(self, overlay: Overlay, sampling: SamplingConfig, threshold: float):
        """Begins with lists that are up to date."""
        self._overlay, self._steps = overlay, expected_steps(sampling)
        self._threshold = threshold
        self.shares = np.zeros(overlay.num_items, np.float64)
        self._mass = np.zeros(overlay.num_nodes, np.float64)
        self._queues = np.empty((2, overlay.num_nodes), np.int32)

    def add(self, applied: AppliedEdges) -> None:
        """Adds what the changed edges, now in the overlay, may change."""
        nodes = self._overlay.num_nodes
        if nodes > len(self._mass):
            self._mass = np.zeros(2 * nodes, np.float64)
            self._queues = np.empty((2, 2 * nodes), np.int32)
        base, rows = self._overlay.kernel_arguments
        sources = applied.items, applied.collections, applied.sizes
        scratch = self._mass, self._queues
        weighted, threshold = self._overlay.weighted, self._threshold
        add_stale_shares(
            base, rows, weighted, self._steps, sources, threshold, scratch, self.shares
        )


@njit(nogil=True, cache=True)
def _row(base, rows, node):
    """Where the row of a node is: (begin, end, whether in the pool)."""
    slot = rows[0][node]
    if slot >= 0:
        return rows[1][slot], rows[2][slot], True
    return base[0][node], base[0][node + 1], False


@njit(nogil=True, cache=True)
def _hop(base, rows, first, last, weighted, current, bits, edges):
    """Moves every walk that stands on a node of [first, last) to a random neighbor, or to -1."""
    indices, cumulative = base[1], base[2]
    ids, sums = rows[3], rows[4]
    for walk in range(current.shape[0]):
        node = current[walk]
        if node < first or node >= last:
            edges[walk] = _STAYS
            continue
        low, high, pooled = _row(base, rows, node)
        if low == high:
            edges[walk] = _STUCK
            continue
        if weighted:
            edge = pick_weighted(sums if pooled else cumulative, low, high, bits[walk])
        else:
            edge = low + bounded(bits[walk], high - low)
        edges[walk] = _POOLED - edge if pooled else edge
        if not pooled:
            prefetch(indices, edge)
    for walk in range(current.shape[0]):
        edge = edges[walk]
        if edge >= 0:
            current[walk] = indices[edge]
        elif edge == _STUCK:
            current[walk] = -1
        elif edge != _STAYS:
            current[walk] = ids[_POOLED - edge]


@njit(nogil=True, cache=True)
def _sample(base, rows, sizes, plan, starts, seed, ids_out, counts_out):
    """The T most visited items of every start node; as kernels.sample_block, without masks.

    Args:
      base, rows: see Overlay.kernel_arguments.
      sizes: (number of items, N).
      plan: (W, steps per walk, restart probability times 2**32, whether edges have weights).
      starts: int32 [S].
      seed: uint64.
      ids_out, counts_out: int32 [S, T] outputs, best first, padded with -1 and 0.
    """
    num_walks, walk_length, restart_below, weighted = plan
    items, num_nodes = sizes
    max_distinct = walk_length * num_walks + 1
    table = np.empty(table_size(max_distinct, num_nodes), np.int32)
    current, edges = np.empty(num_walks, np.int32), np.empty(num_walks, np.int64)
    bits = np.empty((3, num_walks), np.uint64)
    visited = np.empty((walk_length, num_walks), np.int32)
    nodes, visits = np.empty((1, max_distinct), np.int32), np.empty((1, max_distinct), np.int32)
    num_distinct, keys = np.empty(1, np.int64), np.empty(1, np.uint64)
    no_mask = np.full(1, -1, np.int32)
    scratch, ranks = np.empty((6, max_distinct), np.int32), np.empty((2, max_distinct), np.uint64)
    for row in range(starts.shape[0]):
        keys[0] = stream(seed, np.uint64(0), starts[row])
        current[:] = starts[row]
        for step in range(walk_length):
            begin_step(keys[0], step, starts[row], restart_below, current, bits)
            _hop(base, rows, 0, items, weighted, current, bits[0], edges)
            _hop(base, rows, items, num_nodes, weighted, current, bits[2], edges)
            visited[step] = current
        some = slice(row, row + 1)
        excluded = starts[some], no_mask
        count_visits(visited, excluded, num_walks, table, scratch[0], nodes, visits, num_distinct)
        top = ids_out[some], counts_out[some]
        select_top(nodes, visits, num_distinct, keys, scratch, ranks, top)


@njit(nogil=True, cache=True)
def _weight(base, rows, node, weighted):
    """The weight of all edges of a node; their number without weights."""
    low, high, pooled = _row(base, rows, node)
    if low == high:
        return 0.0
    if not weighted:
        return np.float64(high - low)
    return rows[4][high - 1] if pooled else base[2][high - 1]


@njit(nogil=True, cache=True)
def _spread(base, rows, weighted, queue, count, threshold, mass, reached):
    """Moves the mass of `count` queued nodes to their neighbors in proportion to the weights.

    A node with less than `threshold` times its weight is not spread.

    Args:
      queue: int32, nodes with mass, each once; reached: int32 output, the nodes reached.
      mass: float64 [N], changed in place.

    Returns:
      The number of nodes reached.
    """
    found = 0
    for index in range(count):
        node = queue[index]
        low, high, pooled = _row(base, rows, node)
        total, held = _weight(base, rows, node, weighted), mass[node]
        mass[node] = 0.0
        if low == high or held < threshold * total:
            continue
        sums = rows[4] if pooled else base[2]
        before = 0.0
        for edge in range(low, high):
            share = 1.0
            if weighted:
                share = sums[edge] - before
                before = sums[edge]
            other = rows[3][edge] if pooled else base[1][edge]
            if mass[other] == 0.0:
                reached[found] = other
                found += 1
            mass[other] += held * share / total
    return found


@njit(nogil=True, cache=True)
def add_stale_shares(base, rows, weighted, steps, sources, threshold, scratch, shares):
    """Adds to every item the share of its walks that changed edges may change.

    Args:
      base, rows: see Overlay.kernel_arguments, after the changes.
      weighted: whether edges have weights.
      steps: float64 [L], see expected_steps.
      sources: items int32 [a], collections (node ids) int32 [a], changes of weight float64 [a].
      threshold: see the module docstring.
      scratch: mass float64 [N], zeros on entry and on return; queues int32 [2, N].
      shares: float64 [items], changed in place.
    """
    mass, queues = scratch
    changed_items, changed_collections, changes = sources
    queue, other = queues[0], queues[1]
    count = 0
    for index in range(changes.shape[0]):
        node = changed_collections[index]
        if mass[node] == 0.0:
            other[count] = node
            count += 1
        mass[node] += changes[index]
    count = _spread(base, rows, weighted, other, count, 0.0, mass, queue)
    for index in range(changes.shape[0]):
        node = changed_items[index]
        if mass[node] == 0.0:
            queue[count] = node
            count += 1
        mass[node] += changes[index]
    for step in range(steps.shape[0]):
        for index in range(count):
            node = queue[index]
            total = _weight(base, rows, node, weighted)
            # Without edges all walks of the node are new.
            shares[node] += steps[step] * mass[node] / total if total > 0.0 else 1.0
        if step == steps.shape[0] - 1:
            for index in range(count):
                mass[queue[index]] = 0.0
        else:
            count = _spread(base, rows, weighted, queue, count, threshold, mass, other)
            count = _spread(base, rows, weighted, other, count, threshold, mass, queue)
