"""Counter-based random numbers for Numba kernels: a draw is a hash of its key.

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
