"""The hash for arrays against Python's integers, and its constants in one place."""

import pathlib

import numpy as np
import reference_sampling as reference

import pinsage_jax
from pinsage_jax.core import splitmix
from pinsage_jax.cpu import counter_random

EDGES = np.array([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1], np.uint64)


def test_arrays_kernels_and_python_agree(small_rng):
    values = np.concatenate([EDGES, small_rng.integers(0, 2**64, 200, np.uint64)])
    expected = [reference.mix(int(value)) for value in values]
    assert splitmix.mix_array(values).tolist() == expected
    assert [int(counter_random.mix(value)) for value in values] == expected


def test_the_constants_are_written_once():
    root = pathlib.Path(pinsage_jax.__file__).parent
    for constant in (splitmix.GOLDEN, splitmix.MIX_1, splitmix.MIX_2):
        digits = f"{int(constant):x}"
        found = [path for path in root.rglob("*.py") if digits in path.read_text().lower()]
        assert [path.name for path in found] == ["splitmix.py"]
