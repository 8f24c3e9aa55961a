"""Counter-based random numbers for Numba kernels, and picks by weight: a draw is a hash of its key.

Draw i of walk w from node u is a hash of (seed, epoch, u, w, i) and has no state.  So
results do not depend on threads or on what else is in a batch, and any single draw can be
computed again.  The hash is the finalizer of splitmix64 (Steele et al. 2014).
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.core.splitmix import GOLDEN, MIX_1, MIX_2
from pinsage_jax.cpu.kernel_cache import njit

U1 = np.uint64(1)
U32 = np.uint64(32)
_U16, _U27, _U30, _U31 = (np.uint64(bits) for bits in (16, 27, 30, 31))


@njit(nogil=True, cache=True)
def mix(value):
    """The splitmix64 finalizer: a bijection of uint64 whose output bits look random."""
    value = np.uint64(value)
    value = (value ^ (value >> _U30)) * MIX_1
    value = (value ^ (value >> _U27)) * MIX_2
    return value ^ (value >> _U31)


@njit(nogil=True, cache=True)
def stream(seed, epoch, node):
    """The key, uint64, of all random numbers of one node in one epoch."""
    key = mix(np.uint64(seed) + GOLDEN)
    key = mix(key + np.uint64(epoch) * GOLDEN + U1)
    return mix(key + np.uint64(node) * GOLDEN + U1)


@njit(nogil=True, cache=True)
def draw(key, walk, index):
    """64 random bits: draw `index` (below 65536) of walk `walk` of the stream `key`."""
    counter = (np.uint64(walk) << _U16) + np.uint64(index) + U1
    return mix(np.uint64(key) + counter * GOLDEN)


@njit(nogil=True, cache=True)
def bounded(bits_32, size):
    """Maps 32 random bits to an integer in [0, size) by multiply-high."""
    return np.int64((np.uint64(bits_32) * np.uint64(size)) >> U32)


@njit(nogil=True, cache=True)
def first_above(cumulative, low, high, target):
    """First index in [low, high) whose running sum exceeds `target`, else high - 1."""
    first, last = low, high - 1
    while first < last:
        middle = (first + last) >> 1
        if cumulative[middle] > target:
            last = middle
        else:
            first = middle + 1
    return first


@njit(nogil=True, cache=True)
def pick_weighted(cumulative, low, high, bits_32):
    """Edge index in [low, high) drawn in proportion to the edge weights.

    `cumulative` holds running sums within each row.  The search ends inside the row even
    if rounding makes the target equal to the row's total.
    """
    target = (np.float64(bits_32) + 0.5) / 4294967296.0 * cumulative[high - 1]
    return first_above(cumulative, low, high, target)


@njit(nogil=True, cache=True)
def pick_weighted_except(cumulative, low, high, excluded, bits_32):
    """As pick_weighted, without the edge `excluded`."""
    before = cumulative[excluded - 1] if excluded > low else 0.0
    weight = cumulative[excluded] - before
    target = (np.float64(bits_32) + 0.5) / 4294967296.0 * (cumulative[high - 1] - weight)
    if target >= before:
        target += weight
    edge = first_above(cumulative, low, high, target)
    if edge == excluded:
        # Only rounding leads here, for a target at the border of the excluded interval.
        edge = excluded - 1 if excluded > low else excluded + 1
    return edge
