"""Numba kernels that reduce messages, joined already, to one vector a row.

The second job of a layer in the paper's MapReduce inference (Ying et al. 2018,
section 3.4), where messages travel: message e is the vector sent[e], of weight weights[e],
to row receivers[e] of `out`.  Lists of neighbors in one memory are reduced without
making messages, by cpu/pooling_kernels.py.
"""

from __future__ import annotations

from pinsage_jax.cpu.kernel_cache import njit


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
