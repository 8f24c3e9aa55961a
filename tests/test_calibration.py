"""The cold offset of validation: tried in place, and chosen by the smallest lift."""

import numpy as np
import pytest

from pinsage_jax.graph.split import ValidationSplit
from pinsage_jax.retrieval import calibration
from pinsage_jax.retrieval.calibration import Rivals, validate, with_offset

RIVALS = Rivals({("warm", 10): 0.2, ("warm", 100): 0.4, ("cold", 10): 0.1, ("cold", 100): 0.3})


@pytest.fixture
def world():
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(400, 8)).astype(np.float32)
    vectors[:, -1] = 1.0
    edgeless = rng.random(400) < 0.3
    vectors[edgeless, -1] = 0.6
    query, target = np.flatnonzero(~edgeless)[:60], rng.permutation(400)[:60]
    kept = query != target
    pairs = np.stack([query[kept], target[kept]], axis=1).astype(np.int32)
    kinds = np.where(edgeless[pairs[:, 1]], "cold", "warm")
    none = np.empty(0, np.int32)
    return vectors, edgeless, ValidationSplit(None, none, none, pairs, kinds)


@pytest.mark.parametrize("offset", [None, 0.0, 0.25])
def test_validation_is_that_of_moved_copies_and_moves_nothing(offset, world):
    vectors, edgeless, split = world
    before = vectors.copy()
    found = validate(vectors, edgeless, split, RIVALS, offset)
    np.testing.assert_array_equal(vectors, before)
    tried = calibration.OFFSETS if offset is None else (offset,)
    lifts = {}
    for value in tried:
        rates = calibration._rates(with_offset(vectors, edgeless, value), split)
        lifts[value] = min(rates[key] / rate for key, rate in RIVALS.rates.items())
    assert lifts[found["cold_offset"]] == max(lifts.values())
    moved = with_offset(vectors, edgeless, found["cold_offset"])
    rates = calibration._rates(moved, split)
    assert {key: found[f"{key[0]}_hit@{key[1]}"] for key in rates} == rates


def test_vectors_are_put_back_after_a_failure(world):
    vectors, edgeless, split = world
    vectors[0, 0] = np.nan
    before = vectors.copy()
    with pytest.raises(Exception, match="not finite"):
        validate(vectors, edgeless, split, RIVALS, None)
    np.testing.assert_array_equal(vectors, before)


def test_nothing_to_compare_with(world):
    assert validate(*world, Rivals({}), None) == {}
