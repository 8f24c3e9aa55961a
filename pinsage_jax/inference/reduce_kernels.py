"""Numba kernels that reduce messages, joined already, to one vector a row.

The second job of a layer in the paper's MapReduce inference (Ying et al. 2018,
section 3.4), where messages travel: message e is the vector sent[e], of weight weights[e],
to row receivers[e] of `out`.  Lists of neighbours in one memory are reduced without
making messages, by `max_rows` and by model/pooling_kernels.py.
"""

from __future__ import annotations

from numba import njit

from pinsage_jax.cache_lines import LINE_BYTES, ask_for

_LINE = LINE_BYTES // 4  # entries of float32
_AHEAD = 24  # rows between asking for one and reading it


@njit(nogil=True, cache=True)
def add_messages(sent, receivers, weights, out):
    """out[receivers[e]] += weights[e] * sent[e] for all e, in order.

    Args:
      sent: float32 [E, M]; receivers: int [E]; weights: float32 [E], 0 where there is no
        message; out: float32 [n, M], added to.
    """
    for message in range(sent.shape[0]):
        weight = weights[message]
        if weight == 0.0:
            continue
        row = receivers[message]
        for place in range(out.shape[1]):
            out[row, place] += weight * sent[message, place]


@njit(nogil=True, cache=True)
def keep_largest(sent, receivers, weights, out):
    """out[r] = elementwise maximum with what r was sent; entries of `sent` are >= 0."""
    for message in range(sent.shape[0]):
        if weights[message] <= 0.0:
            continue
        row = receivers[message]
        for place in range(out.shape[1]):
            out[row, place] = max(out[row, place], sent[message, place])


@njit(nogil=True, cache=True)
def max_rows(projected, neighbours, weights, out):
    """out[i] = the maximum of the rows of `projected` that have a weight; no entry is below 0.

    Args:
      projected: float32 [n, M]; neighbours: int32 [S, T] rows of it, contiguous, -1 for none.
      weights: float32 [S, T]; out: float32 [S, M] output.
    """
    listed, width = neighbours.reshape(neighbours.size), out.shape[1]
    for row in range(out.shape[0]):
        best = out[row]
        best[:] = 0.0
        for rank in range(neighbours.shape[1]):
            ahead = row * neighbours.shape[1] + rank + _AHEAD
            if ahead < listed.shape[0]:
                for column in range(0, width, _LINE):
                    ask_for(projected, listed[ahead] * width + column)
            node = neighbours[row, rank]
            if node >= 0 and weights[row, rank] > 0.0:
                sent = projected[node]
                for column in range(width):
                    best[column] = max(best[column], sent[column])
