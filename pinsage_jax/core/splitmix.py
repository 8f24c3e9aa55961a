"""The hash of splitmix64 (Steele et al. 2014): its constants, and a NumPy form for arrays.

cpu/counter_random.py has the same hash for Numba kernels.
"""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
_U27, _U30, _U31 = (np.uint64(bits) for bits in (27, 30, 31))


def mix_array(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finalizer: a bijection of uint64 whose output bits look random.

    Args:
      values: uint64 [n]; an array, because NumPy warns when a scalar overflows.

    Returns:
      uint64 [n].
    """
    values = (values ^ (values >> _U30)) * MIX_1
    values = (values ^ (values >> _U27)) * MIX_2
    return values ^ (values >> _U31)
