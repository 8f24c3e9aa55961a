"""Finds the nodes whose random walks may change when edges of the graph change.

A walk of L steps from an item makes 2L hops.  Before each hop it reads the row of the node
on which it stands, so it reads rows at most 2L - 1 hops away from its start (a restart only
brings it closer).  Draws are keyed by start node, walk and step, so a walk that reads no
changed row is the same as before.  Up to the first changed row it follows unchanged edges,
so the distance in either of the two graphs is a valid bound.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.graph.csr import Graph


def nodes_to_resample(graph: Graph, changed: np.ndarray, walk_length: int) -> np.ndarray:
    """Nodes from which a walk may read the row of a changed node, bool [N].

    Args:
      graph: the graph after (or before) the change.
      changed: int32 [c], nodes whose neighbors or edge weights changed.
      walk_length: L, steps of a walk.
    """
    hops = np.full(graph.num_nodes, -1, np.int32)
    queue = np.empty(graph.num_nodes, np.int32)
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    sources = np.unique(changed).astype(np.int32)
    _breadth_first(indptr, indices, sources, 2 * walk_length - 1, hops, queue)
    return hops >= 0


@njit(nogil=True, cache=True)
def _breadth_first(indptr, indices, sources, max_hops, hops, queue):
    """Breadth-first search: distances from the sources, up to `max_hops`.

    Args:
      indptr: int64 [N+1], indices: int32 [2E]; the graph.
      sources: int32 [s], distinct.
      hops: int32 [N] output, -1 on entry; -1 remains for nodes farther away.
      queue: int32 [N]; scratch.
    """
    last = 0
    for index in range(sources.shape[0]):
        hops[sources[index]] = 0
        queue[last] = sources[index]
        last += 1
    first = 0
    while first < last:
        node = queue[first]
        first += 1
        if hops[node] == max_hops:
            break
        for edge in range(indptr[node], indptr[node + 1]):
            other = indices[edge]
            if hops[other] < 0:
                hops[other] = hops[node] + 1
                queue[last] = other
                last += 1
