"""Expected visits of random walks, plain or steered by content.

A step goes from an item to one of its collections, each as likely as any other, and from there
to an item i of the collection, the item it came from among them, with probability proportional
to exp(steering * cos(query, i)).  A walk takes step t + 1 after step t with probability
1 - restart, otherwise it ends.  With steering 0 these are plain walks, which drift to whatever is
popular near the query; steered ones stay with its topic.

The probabilities are computed by pushing mass along edges, not by sampling: a thousand walks
would leave too much noise in the tail of a list.  Nodes with little mass do not push theirs on,
which bounds the cost of a query (Andersen, Chung and Lang 2006 bound theirs likewise).

Q queries, N items, L steps of a walk
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.neighborhoods import run_blocks

# Of 4 and 8, the better in validation on citeulike-t.
STEERING = 4.0
# A node with less than this share of a step's mass does not push it on.
LEAST_MASS = 1e-3
_ROWS_PER_TASK = 32


def visit_probabilities(
    graph: Graph,
    queries: np.ndarray,
    cosines: np.ndarray,
    sampling: SamplingConfig,
    threads: int = 1,
    steering: float = STEERING,
    least_mass: float = LEAST_MASS,
    begins: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Expected visits of each item by the walk of each query.

    Args:
      graph: edge weights, if any, do not count.
      queries: int [Q], items; -1: a query that the graph does not contain.
      cosines: float32 [Q, N], similarity of the content to each query.
      sampling: number of steps, and the restart probability.
      threads: host threads; they change no result.
      steering: 0: plain walks, which read no cosines.
      least_mass: nodes with less mass do not push it on; 0: exact.
      begins: the collections that the walks enter first, as node ids: those of query i are
        begins[1][begins[0][i] : begins[0][i + 1]]; None: those of the items `queries`.

    Returns:
      float32 [Q, N], 0 at the query itself; 0 everywhere for a query without edges.
    """
    visits = np.zeros(cosines.shape, np.float32)
    queries = np.ascontiguousarray(queries, np.int32)
    plan = sampling.walk_length, float(sampling.restart), float(steering), float(least_mass)
    arrays = np.asarray(graph.indptr), np.asarray(graph.indices)
    rows, firsts = (queries, arrays) if begins is None else (np.arange(len(queries)), begins)
    rows = np.ascontiguousarray(rows, np.int64)

    def work(begin: int, end: int) -> None:
        span = slice(begin, end)
        _push(
            *arrays, graph.num_items, plan, (*firsts, rows[span]), queries[span], cosines[span],
            visits[span],
        )  # fmt: skip

    run_blocks(len(queries), threads, work, _ROWS_PER_TASK)
    return visits


@njit(nogil=True, cache=True)
def _push(indptr, indices, num_items, plan, begins, queries, cosines, visits):
    """Adds up the mass that each step of a block of queries brings; see visit_probabilities.

    Args:
      indptr, indices: as in Graph.
      plan: (L, restart probability, steering, least mass).
      begins: (indptr, indices) of the collections that walks enter first, and the row of each
        query there, int64 [q].
      queries: int32 [q]; cosines: float32 [q, N]; visits: float32 [q, N], output.
    """
    walk_length, restart, steering, least_mass = plan
    first_indptr, first_indices, first_rows = begins
    nodes = indptr.shape[0] - 1
    mass = np.zeros(nodes, np.float64)
    # The nodes of a step, and of the next half step; exp(...) of each item, summed over each
    # collection, for the query whose row `owner` names.
    here, there = np.empty(nodes, np.int32), np.empty(nodes, np.int32)
    total, owner = np.empty(nodes, np.float64), np.full(nodes, -1, np.int64)
    for row in range(queries.shape[0]):
        query, share, size = queries[row], 1.0, 0
        begin, end = first_indptr[first_rows[row]], first_indptr[first_rows[row] + 1]
        for edge in range(begin, end):
            collection = first_indices[edge]
            if mass[collection] == 0.0:
                here[size] = collection
                size += 1
            mass[collection] += 1.0 / np.float64(end - begin)
        if size == 0:
            continue
        for half in range(1, 2 * walk_length):
            reached = 0
            for position in range(size):
                node = here[position]
                amount, mass[node] = mass[node], 0.0
                if amount < least_mass:
                    continue
                begin, end = indptr[node], indptr[node + 1]
                if node < num_items:
                    each = amount / np.float64(end - begin)
                    for edge in range(begin, end):
                        collection = indices[edge]
                        if mass[collection] == 0.0:
                            there[reached] = collection
                            reached += 1
                        mass[collection] += each
                    continue
                if steering != 0.0 and owner[node] != row:
                    owner[node], total[node] = row, 0.0
                    for edge in range(begin, end):
                        item = indices[edge]
                        if owner[item] != row:
                            owner[item] = row
                            total[item] = np.exp(steering * np.float64(cosines[row, item]))
                        total[node] += total[item]
                each = amount / (np.float64(end - begin) if steering == 0.0 else total[node])
                for edge in range(begin, end):
                    item = indices[edge]
                    if mass[item] == 0.0:
                        there[reached] = item
                        reached += 1
                    mass[item] += each if steering == 0.0 else each * total[item]
            here, there, size = there, here, reached
            if half % 2 == 1:
                for position in range(size):
                    visits[row, here[position]] += np.float32(share * mass[here[position]])
                share *= 1.0 - restart
        for position in range(size):
            mass[here[position]] = 0.0
        if query >= 0:
            visits[row, query] = np.float32(0.0)
