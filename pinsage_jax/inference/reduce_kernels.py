"""Numba kernels that reduce weighted messages to one vector per receiver.

This is the reduction of a layer in the paper's MapReduce inference (Ying et al. 2018,
section 3.4) where messages travel between machines: the vector messages[e] with the weight
weights[e] goes to row receivers[e] of `out`.  On one machine neighbor lists are reduced
without copying messages, by cpu/pooling_kernels.py.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.cpu.prefetch import LINE_BYTES as _LINE_BYTES
from pinsage_jax.cpu.prefetch import prefetch

# Bytes behind the numbers of a packed row.
SCALE_BYTES = 4
_AHEAD = 24  # rows between the prefetch of one and its use


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


@njit(nogil=True, cache=True)
def pack_rows(rows, out):
    """Packs rows of numbers from 0 up into bytes: a number is its byte times the row's scale.

    The scale is 1/255 of the largest number, float32, in the last four bytes of the row; the error
    of a number is at most half of it.

    Args:
      rows: float32 [n, M], finite and at least 0.
      out: uint8 [n, M + 4] output.
    """
    scale, width = np.empty(1, np.float32), rows.shape[1]
    scale_bytes = scale.view(np.uint8)
    for row in range(rows.shape[0]):
        largest = np.float32(0.0)
        for column in range(width):
            largest = max(largest, rows[row, column])
        scale[0] = largest / np.float32(255.0)
        inverse = np.float32(255.0) / largest if largest > 0 else np.float32(0.0)
        for column in range(width):
            out[row, column] = np.uint8(rows[row, column] * inverse + np.float32(0.5))
        for place in range(4):
            out[row, width + place] = scale_bytes[place]


@njit(nogil=True, cache=True)
def reduce_packed(packed, ids, weights, largest, out):
    """The weighted sum, or maximum, over lists of rows of `pack_rows`, in float32.

    Args:
      packed: uint8 [N, M + 4].
      ids: int32 [n, T], -1 where a list is short; weights: float32 [n, T], 0 there.
      largest: whether to take the maximum of the rows that have a weight.
      out: float32 [n, M] output.
    """
    width, length = out.shape[1], ids.shape[1]
    flat = ids.reshape(ids.size)
    scale = np.empty(1, np.float32)
    scale_bytes = scale.view(np.uint8)
    for row in range(out.shape[0]):
        total = out[row]
        total[:] = np.float32(0.0)
        for rank in range(length):
            ahead = row * length + rank + _AHEAD
            if ahead < flat.shape[0] and flat[ahead] >= 0:
                first = np.int64(flat[ahead]) * packed.shape[1]
                for column in range(0, packed.shape[1], _LINE_BYTES):
                    prefetch(packed, first + column)
            weight = weights[row, rank]
            if ids[row, rank] < 0 or weight == np.float32(0.0):
                continue
            source = packed[ids[row, rank]]
            for place in range(4):
                scale_bytes[place] = source[width + place]
            if largest:
                factor = scale[0]
                for column in range(width):
                    total[column] = max(total[column], factor * np.float32(source[column]))
            else:
                factor = weight * scale[0]
                for column in range(width):
                    total[column] += factor * np.float32(source[column])
