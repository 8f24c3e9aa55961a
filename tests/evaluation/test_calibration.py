"""The cold offset of validation: tried in place, and chosen by the smallest lift."""

import numpy as np
import pytest

from pinsage_jax.evaluation import calibration
from pinsage_jax.evaluation.calibration import Baselines, validate, with_offset
from pinsage_jax.graph.validation_split import ValidationSplit

RIVALS = Baselines({("warm", 10): 0.2, ("warm", 100): 0.4, ("cold", 10): 0.1, ("cold", 100): 0.3})


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
    assert offset is None or found["cold_start_bias"] == offset
    moved = with_offset(vectors, edgeless, found["cold_start_bias"])
    rates = calibration._rates(moved, split)
    assert {key: found[f"{key[0]}_hit@{key[1]}"] for key in rates} == rates


@pytest.mark.parametrize("crossing", [0.0, 0.0375, 0.16, 0.31, 0.6])
def test_the_offset_is_found_between_those_of_the_coarse_grid(monkeypatch, crossing, world):
    vectors, edgeless, split = world
    last, tried = vectors[edgeless, -1], []

    def rates(moved, _):
        # Warm pairs lose with the offset and cold ones gain; the lifts meet at `crossing`.
        value = float(np.median(moved[edgeless, -1] - last))
        tried.append(value)
        lift = 1.0 - (value - crossing), 1.0 + 3.0 * (value - crossing)
        return {key: rate * lift[key[0] == "cold"] for key, rate in RIVALS.rates.items()}

    monkeypatch.setattr(calibration, "_rates", rates)
    found = validate(vectors, edgeless, split, RIVALS, None)
    assert found["cold_start_bias"] == pytest.approx(crossing, abs=0.0126)
    assert len(tried) <= calibration.OFFSETS_TRIED


def test_vectors_are_put_back_after_a_failure(world):
    vectors, edgeless, split = world
    vectors[0, 0] = np.nan
    before = vectors.copy()
    with pytest.raises(Exception, match="not finite"):
        validate(vectors, edgeless, split, RIVALS, None)
    np.testing.assert_array_equal(vectors, before)


def test_nothing_to_compare_with(world):
    assert validate(*world, Baselines({}), None) == {}
