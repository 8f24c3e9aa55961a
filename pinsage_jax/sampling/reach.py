"""Which walks may have met a change: nodes near the ones whose edges changed.

A walk of L steps from an item makes 2L hops and reads the row of the node that it
stands on before each: rows at most 2L - 1 hops away (restarts only bring it nearer).
Draws are keyed by start, walk and step, so a walk that reads no changed row goes on as
before.  Up to the first changed row it runs along edges that did not change, so the
distance in either graph bounds it.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.graph.csr import Graph


def walks_to_repeat(graph: Graph, changed: np.ndarray, walk_length: int) -> np.ndarray:
    """Nodes, bool [N], from which a walk may read the row of a changed node.

    Args:
      graph: the graph after (or before) the change.
      changed: int32 [c] nodes whose neighbors or edge weights changed.
    """
    hops = np.full(graph.num_nodes, -1, np.int32)
    queue = np.empty(graph.num_nodes, np.int32)
    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    _spread(indptr, indices, np.unique(changed).astype(np.int32), 2 * walk_length - 1, hops, queue)
    return hops >= 0


@njit(nogil=True, cache=True)
def _spread(indptr, indices, sources, most, hops, queue):
    """hops int32 [N]: distance from the sources, where it is at most `most`; else as given, -1."""
    last = 0
    for place in range(sources.shape[0]):
        hops[sources[place]] = 0
        queue[last] = sources[place]
        last += 1
    first = 0
    while first < last:
        node = queue[first]
        first += 1
        if hops[node] == most:
            break
        for place in range(indptr[node], indptr[node + 1]):
            other = indices[place]
            if hops[other] < 0:
                hops[other] = hops[node] + 1
                queue[last] = other
                last += 1
