"""A pointer chase: as many dependent reads a second as the memory gives.

A walk reads at each hop a place that depends on the last one.  The chase does only that,
in a random cycle over as many bytes as the walk's tables have, with as many chains in
flight: it is the bound of any walk that does not find its tables in a cache.
"""

from __future__ import annotations

import concurrent.futures

import numpy as np

from benchmarks import machine
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.cpu.prefetch import prefetch


@njit(nogil=True, cache=True)
def _cycle(order, following):
    for place in range(order.shape[0]):
        following[order[place], 0] = order[(place + 1) % order.shape[0]]


@njit(nogil=True, cache=True)
def _chase(following, chains, reads):
    """Moves all chains `reads` times, one read each in turn."""
    for _ in range(reads):
        for chain in range(chains.shape[0]):
            chains[chain] = following[chains[chain], 0]
            prefetch(following, np.int64(chains[chain]) * following.shape[1])


class Chase:
    """A random cycle over `size` bytes, one number in every cache line of 64 bytes."""

    def __init__(self, size: int, allocate=np.empty):
        lines = max(size // 64, 64)
        self._rng = np.random.default_rng(0)
        self._following = allocate((lines, 16), np.int32)
        self._following[:] = 0
        _cycle(self._rng.permutation(lines).astype(np.int32), self._following)

    def seconds(self, chains: int, reads: int, threads: int) -> float:
        """Seconds in which each of `threads` threads moves `chains` chains `reads` times."""
        lines = self._following.shape[0]
        places = [self._rng.integers(0, lines, chains).astype(np.int32) for _ in range(threads)]
        _chase(self._following, places[0].copy(), 0)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return machine.seconds(
                lambda: list(pool.map(lambda p: _chase(self._following, p, reads), places))
            )
