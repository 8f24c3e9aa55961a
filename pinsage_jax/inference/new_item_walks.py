"""Random walks of new items over the catalog's graph and their own edges, without a copy of it.

The walks are those of sampling/kernels.py over the extended graph, bit for bit.  Only rows
that new edges touch differ from the catalog's: a new item has a row of its own, and the row
of a collection is the catalog's, followed by its new items, whose ids are higher than those
of all old ones.  So an addition takes memory in proportion to its own edges, and the arrays
of the catalog are read where they are.

Node ids are those of the extended graph: N items of the catalog, n new ones, C collections of
the catalog, m new ones.

Axis letters: S start nodes, W walks per start node, P recorded positions per walk, T
neighbors, e new edges, t collections that they touch.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.catalog.additions import Additions
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.cpu.counter_random import bounded, first_above, pick_weighted, stream
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.cpu.prefetch import prefetch
from pinsage_jax.sampling.kernels import begin_step, count_visits, select_top, table_size
from pinsage_jax.sampling.neighborhoods import WalkTables, row_cumulative, run_blocks

# Positions of _hop: the walk does not take part in this half step, has no edge, or follows
# new edge _ADDED - position.
_STAYS, _STUCK, _ADDED = -2, -1, -3


@dataclasses.dataclass(frozen=True, eq=False)
class AddedRows:
    """The rows of new edges, as the kernels read them.

    Attributes:
      collections: int32 [t], touched collections in ascending order, new ones from C on.
      item_starts, collection_starts: int64 [n + 1] and [t + 1], row starts.
      held: int32 [e], the collections of each new item, ascending.
      holders: int32 [e], the new items of each touched collection, ascending, from 0 on.
      held_sums, holder_sums: float64 [e], running sums of the weights within each row; those
        of a collection go on where its row in the catalog ends.  Empty without weights.
    """

    collections: np.ndarray
    item_starts: np.ndarray
    collection_starts: np.ndarray
    held: np.ndarray
    holders: np.ndarray
    held_sums: np.ndarray
    holder_sums: np.ndarray

    @classmethod
    def of(cls, tables: WalkTables, additions: Additions) -> AddedRows:
        """The rows of some additions to the graph of `tables`."""
        edges, touched = additions.graph, additions.collections
        count, new = edges.num_edges, edges.num_items
        starts = edges.indptr[new:] - count
        held_sums = holder_sums = np.empty(0, np.float64)
        if edges.weights is not None:
            sums = row_cumulative(edges.indptr, edges.weights)
            held_sums, holder_sums = sums[:count], np.empty(count, np.float64)
            first = tables.graph.num_items
            _sums_after(
                tables.indptr, tables.cumulative, first, touched,
                starts, edges.weights[count:], holder_sums,
            )  # fmt: skip
        return cls(
            touched,
            edges.indptr[: new + 1],
            starts,
            touched[edges.indices[:count] - np.int32(new)],
            edges.indices[count:],
            held_sums,
            holder_sums,
        )


class NewItemWalks:
    """Samples the neighborhoods of new nodes."""

    def __init__(self, tables: WalkTables, additions: Additions):
        """Takes the walk tables of the catalog's graph, which are shared by all additions."""
        self._tables, self._graph = tables, tables.graph
        self._new = additions.graph.num_items
        self._nodes = self._graph.num_nodes + self._new + additions.num_new_collections
        rows = AddedRows.of(tables, additions)
        self._rows = tuple(getattr(rows, field.name) for field in dataclasses.fields(rows))

    def visit_counts(
        self, starts: np.ndarray, sampling: SamplingConfig, seed: int, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The most visited nodes of new nodes: what sampling.neighborhoods.visit_counts returns.

        Args:
          starts: int32 [S], ids of new nodes in the extended graph.
          sampling: settings of the walks.
          seed: seed of the run.
          threads: host threads.

        Returns:
          ids in the extended graph and visit counts, int32 [S, T] each.
        """
        starts = np.ascontiguousarray(starts, np.int32)
        shape = len(starts), sampling.num_neighbors
        ids, counts = np.empty(shape, np.int32), np.empty(shape, np.int32)
        base = self._tables.indptr, self._tables.indices, self._tables.cumulative
        sizes = self._graph.num_items, self._new, self._graph.num_collections, self._nodes
        plan = (
            sampling.num_walks,
            sampling.walk_length,
            np.uint64(round(sampling.restart * 2**32)),
            sampling.neighborhood == "all",
        )

        def work(begin: int, end: int) -> None:
            part = slice(begin, end)
            _sample(
                base,
                self._rows,
                sizes,
                plan,
                starts[part],
                np.uint64(seed),
                ids[part],
                counts[part],
            )

        run_blocks(len(starts), threads, work)
        return ids, counts


@njit(nogil=True, cache=True)
def _sums_after(indptr, cumulative, first, collections, starts, weights, sums):
    """Running sums of new edges that follow the rows of collections; see AddedRows.

    Args:
      indptr, cumulative: of the catalog; the node of collection c is first + c.
      collections, starts: the touched collections and the starts of their new edges.
      weights: float32 [e]; sums: float64 [e] output.
    """
    known = indptr.shape[0] - 1 - first
    for row in range(collections.shape[0]):
        total = 0.0
        if collections[row] < known:
            low, high = indptr[first + collections[row]], indptr[first + collections[row] + 1]
            total = cumulative[high - 1] if high > low else 0.0
        for edge in range(starts[row], starts[row + 1]):
            total += np.float64(weights[edge])
            sums[edge] = total


@njit(nogil=True, cache=True)
def _row_of(collections, collection):
    """Row of a collection among the touched ones, ascending; -1 if it is none of them."""
    low, high = 0, collections.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if collections[middle] < collection:
            low = middle + 1
        else:
            high = middle
    return low if low < collections.shape[0] and collections[low] == collection else -1


@njit(nogil=True, cache=True)
def _to_collections(base, added, sizes, current, bits, edges):
    """Moves every walk that stands on an item to a random collection, or to -1."""
    indptr, indices, cumulative = base
    item_starts, held, held_sums = added[1], added[3], added[5]
    items, new, _, _ = sizes
    weighted = cumulative.shape[0] > 0 or held_sums.shape[0] > 0
    for walk in range(current.shape[0]):
        node = current[walk]
        if node < 0 or node >= items + new:
            edges[walk] = _STAYS
            continue
        edge = np.int64(_STUCK)
        if node < items:
            low, high = indptr[node], indptr[node + 1]
            if weighted and low < high:
                edge = pick_weighted(cumulative, low, high, bits[walk])
            elif low < high:
                edge = low + bounded(bits[walk], high - low)
            prefetch(indices, edge)
        else:
            low, high = item_starts[node - items], item_starts[node - items + 1]
            if weighted and low < high:
                edge = _ADDED - pick_weighted(held_sums, low, high, bits[walk])
            elif low < high:
                edge = _ADDED - (low + bounded(bits[walk], high - low))
        edges[walk] = edge
    for walk in range(current.shape[0]):
        edge = edges[walk]
        if edge >= 0:
            current[walk] = indices[edge] + new
            prefetch(indptr, np.int64(indices[edge]))
        elif edge == _STUCK:
            current[walk] = -1
        elif edge != _STAYS:
            current[walk] = held[_ADDED - edge] + items + new


@njit(nogil=True, cache=True)
def _to_items(base, added, sizes, current, bits, edges):
    """Moves every walk that stands on a collection to a random item."""
    indptr, indices, cumulative = base
    collections, starts, holders, sums = added[0], added[2], added[4], added[6]
    items, new, known, _ = sizes
    weighted = cumulative.shape[0] > 0 or sums.shape[0] > 0
    for walk in range(current.shape[0]):
        collection = current[walk] - items - new
        if collection < 0:
            edges[walk] = _STAYS
            continue
        low = high = more_low = more_high = np.int64(0)
        if collection < known:
            low, high = indptr[items + collection], indptr[items + collection + 1]
        row = _row_of(collections, collection)
        if row >= 0:
            more_low, more_high = starts[row], starts[row + 1]
        old, more = high - low, more_high - more_low
        if old + more == 0:
            edges[walk] = _STUCK
        elif weighted:
            total = sums[more_high - 1] if more > 0 else cumulative[high - 1]
            target = (np.float64(bits[walk]) + 0.5) / 4294967296.0 * total
            if more == 0 or (old > 0 and cumulative[high - 1] > target):
                edges[walk] = first_above(cumulative, low, high, target)
            else:
                edges[walk] = _ADDED - first_above(sums, more_low, more_high, target)
        else:
            place = bounded(bits[walk], old + more)
            edges[walk] = low + place if place < old else _ADDED - (more_low + place - old)
        if edges[walk] >= 0:
            prefetch(indices, edges[walk])
    for walk in range(current.shape[0]):
        edge = edges[walk]
        if edge >= 0:
            current[walk] = indices[edge]
            prefetch(indptr, np.int64(indices[edge]))
        elif edge == _STUCK:
            current[walk] = -1
        elif edge != _STAYS:
            current[walk] = holders[_ADDED - edge] + items


@njit(nogil=True, cache=True)
def _sample(base, added, sizes, plan, starts, seed, ids_out, counts_out):
    """The T most visited nodes of every start node; as kernels.sample_block, without masks.

    Args:
      base: (indptr, indices, cumulative) of the catalog's graph, as in sample_block.
      added: the fields of AddedRows, in order.
      sizes: (N, n, C, number of nodes of the extended graph).
      plan: (W, steps per walk, restart probability times 2**32, whether visits of collections
        count).
      starts: int32 [S].
      seed: uint64.
      ids_out, counts_out: int32 [S, T] outputs, best first, padded with -1 and 0.
    """
    num_walks, walk_length, restart_below, count_collections = plan
    parts = walk_length * (2 if count_collections else 1)
    max_distinct = parts * num_walks + 1
    table = np.empty(table_size(max_distinct, sizes[3]), np.int32)
    current, edges = np.empty(num_walks, np.int32), np.empty(num_walks, np.int64)
    bits = np.empty((3, num_walks), np.uint64)
    visited = np.empty((parts, num_walks), np.int32)
    nodes, visits = np.empty((1, max_distinct), np.int32), np.empty((1, max_distinct), np.int32)
    num_distinct, keys = np.empty(1, np.int64), np.empty(1, np.uint64)
    no_mask = np.full(1, -1, np.int32)
    scratch, ranks = np.empty((6, max_distinct), np.int32), np.empty((2, max_distinct), np.uint64)
    for row in range(starts.shape[0]):
        keys[0] = stream(seed, np.uint64(0), starts[row])
        current[:] = starts[row]
        part = 0
        for step in range(walk_length):
            begin_step(keys[0], step, starts[row], restart_below, current, bits)
            _to_collections(base, added, sizes, current, bits[0], edges)
            if count_collections:
                visited[part] = current
                part += 1
            _to_items(base, added, sizes, current, bits[2], edges)
            visited[part] = current
            part += 1
        some = slice(row, row + 1)
        excluded = starts[some], no_mask
        count_visits(visited, excluded, num_walks, table, scratch[0], nodes, visits, num_distinct)
        top = ids_out[some], counts_out[some]
        select_top(nodes, visits, num_distinct, keys, scratch, ranks, top)
