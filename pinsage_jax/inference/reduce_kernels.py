"""Numba kernels that join projected vectors with neighbourhoods and reduce them.

The second job of a layer in the paper's MapReduce inference (Ying et al. 2018,
section 3.4): the projected vectors of a node's neighbours are brought to it and
pooled.  Projected vectors may be a memory map larger than memory; each row of a
block reads only its own neighbours.
"""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True)
def weighted_reduce(projected, ids, weights, out):
    """out[i] = sum over t of weights[i, t] * projected[ids[i, t]].

    Args:
      projected: float32 [N, M]; ids: int32 [n, T], -1 where short; weights:
        float32 [n, T]; out: float32 [n, M] output.
    """
    for row in range(ids.shape[0]):
        out[row, :] = 0.0
        for column in range(ids.shape[1]):
            node = ids[row, column]
            weight = weights[row, column]
            if node < 0 or weight == 0.0:
                continue
            for place in range(out.shape[1]):
                out[row, place] += weight * projected[node, place]


@njit(nogil=True, cache=True)
def max_reduce(projected, ids, weights, out):
    """out[i] = elementwise maximum over neighbours; entries of `projected` are >= 0."""
    for row in range(ids.shape[0]):
        out[row, :] = 0.0
        for column in range(ids.shape[1]):
            node = ids[row, column]
            if node < 0 or weights[row, column] <= 0.0:
                continue
            for place in range(out.shape[1]):
                out[row, place] = max(out[row, place], projected[node, place])
