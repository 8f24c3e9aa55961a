"""Numba kernels that reduce weighted messages to one vector per receiver.

This is the reduction of a layer in the paper's MapReduce inference (Ying et al. 2018,
section 3.4) where messages travel between machines: the vector messages[e] with the weight
weights[e] goes to row receivers[e] of `out`.  On one machine neighbor lists are reduced
without copying messages, by cpu/pooling_kernels.py.
"""

from __future__ import annotations

from pinsage_jax.cpu.kernel_cache import njit


@njit(nogil=True, cache=True)
def add_messages(messages, receivers, weights, out):
    """out[receivers[e]] += weights[e] * messages[e] for all e, in order.

    Args:
      messages: float32 [E, M]; receivers: int [E]; weights: float32 [E], 0 where there is
        no message; out: float32 [n, M], added to.
    """
    for message in range(messages.shape[0]):
        weight = weights[message]
        if weight == 0.0:
            continue
        row = receivers[message]
        for column in range(out.shape[1]):
            out[row, column] += weight * messages[message, column]


@njit(nogil=True, cache=True)
def max_messages(messages, receivers, weights, out):
    """out[receivers[e]] = its elementwise maximum with messages[e] >= 0, for all e."""
    for message in range(messages.shape[0]):
        if weights[message] <= 0.0:
            continue
        row = receivers[message]
        for column in range(out.shape[1]):
            out[row, column] = max(out[row, column], messages[message, column])
