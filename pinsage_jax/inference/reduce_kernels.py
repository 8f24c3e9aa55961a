"""Numba kernels that reduce what neighbours sent to one vector a row.

The second job of a layer in the paper's MapReduce inference (Ying et al. 2018,
section 3.4).  A message e is row senders[e] of `sent`, of weight weights[e], to row
receivers[e] of `out`; `sent` may be a memory map larger than memory, of which only the
rows named are read, or hold just the messages' own vectors in their order.
"""

from __future__ import annotations

from numba import njit


@njit(nogil=True, cache=True)
def add_messages(sent, senders, receivers, weights, out):
    """out[receivers[e]] += weights[e] * sent[senders[e]] for all e, in order.

    Args:
      sent: float32 [N, M]; senders: int [E], below 0 where there is no message;
        receivers: int [E]; weights: float32 [E]; out: float32 [n, M], added to.
    """
    for message in range(senders.shape[0]):
        node = senders[message]
        weight = weights[message]
        if node < 0 or weight == 0.0:
            continue
        row = receivers[message]
        for place in range(out.shape[1]):
            out[row, place] += weight * sent[node, place]


@njit(nogil=True, cache=True)
def keep_largest(sent, senders, receivers, weights, out):
    """out[r] = elementwise maximum with what r was sent; entries of `sent` are >= 0."""
    for message in range(senders.shape[0]):
        node = senders[message]
        if node < 0 or weights[message] <= 0.0:
            continue
        row = receivers[message]
        for place in range(out.shape[1]):
            out[row, place] = max(out[row, place], sent[node, place])
