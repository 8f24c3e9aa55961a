"""A pointer chase: the number of dependent random reads per second that the memory allows.

A hop of a walk reads an address that depends on the previous hop.  The chase does only that,
in a random cycle over as many bytes as the walk's tables have, with as many chains in flight.
It bounds the speed of every walk whose tables are not in a cache.
"""

from __future__ import annotations

import concurrent.futures

import numpy as np

from benchmarks import machine
from pinsage_jax.cpu.kernel_cache import njit
from pinsage_jax.cpu.prefetch import prefetch


@njit(nogil=True, cache=True)
def _cycle(order, following):
    for rank in range(order.shape[0]):
        following[order[rank], 0] = order[(rank + 1) % order.shape[0]]


@njit(nogil=True, cache=True)
def _chase(following, chains, reads):
    """Moves all chains `reads` times, in turns of one read each."""
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
        """Seconds that `threads` threads take to move `chains` chains each `reads` times."""
        lines = self._following.shape[0]
        starts = [self._rng.integers(0, lines, chains).astype(np.int32) for _ in range(threads)]
        _chase(self._following, starts[0].copy(), 0)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return machine.seconds(
                lambda: list(pool.map(lambda p: _chase(self._following, p, reads), starts))
            )
