"""The cold-start bias: validated in place, chosen by the smallest relative hit-rate."""

import numpy as np
import pytest

from pinsage_jax.evaluation import calibration
from pinsage_jax.evaluation.calibration import BaselineHitRates, validate, with_cold_start_bias
from pinsage_jax.graph.validation_split import ValidationSplit

BASELINES = BaselineHitRates(
    {("warm", 10): 0.2, ("warm", 100): 0.4, ("cold", 10): 0.1, ("cold", 100): 0.3}
)


@pytest.fixture
def catalog():
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(400, 8)).astype(np.float32)
    vectors[:, -1] = 1.0
    isolated = rng.random(400) < 0.3
    vectors[isolated, -1] = 0.6
    query, target = np.flatnonzero(~isolated)[:60], rng.permutation(400)[:60]
    kept = query != target
    pairs = np.stack([query[kept], target[kept]], axis=1).astype(np.int32)
    kinds = np.where(isolated[pairs[:, 1]], "cold", "warm")
    none = np.empty(0, np.int32)
    return vectors, isolated, ValidationSplit(None, none, none, pairs, kinds)


@pytest.mark.parametrize("bias", [None, 0.0, 0.25])
def test_validation_equals_that_of_a_shifted_copy_and_restores_the_vectors(bias, catalog):
    vectors, isolated, split = catalog
    before = vectors.copy()
    found = validate(vectors, isolated, split, BASELINES, bias)
    np.testing.assert_array_equal(vectors, before)
    assert bias is None or found["cold_start_bias"] == bias
    shifted = with_cold_start_bias(vectors, isolated, found["cold_start_bias"])
    rates = calibration._hit_rates(shifted, split)
    assert {key: found[f"{key[0]}_hit@{key[1]}"] for key in rates} == rates


@pytest.mark.parametrize("crossing", [0.0, 0.0375, 0.16, 0.31, 0.6])
def test_the_bias_is_found_between_those_of_the_coarse_grid(monkeypatch, crossing, catalog):
    vectors, isolated, split = catalog
    last, tried = vectors[isolated, -1], []

    def rates(shifted, _):
        # With the bias, warm relative hit-rates fall and cold ones rise; equal at `crossing`.
        value = float(np.median(shifted[isolated, -1] - last))
        tried.append(value)
        relative = 1.0 - (value - crossing), 1.0 + 3.0 * (value - crossing)
        return {key: rate * relative[key[0] == "cold"] for key, rate in BASELINES.rates.items()}

    monkeypatch.setattr(calibration, "_hit_rates", rates)
    found = validate(vectors, isolated, split, BASELINES, None)
    assert found["cold_start_bias"] == pytest.approx(crossing, abs=0.0126)
    assert len(tried) <= calibration.MAX_BIASES_TRIED


def test_vectors_are_restored_after_a_failure(catalog):
    vectors, isolated, split = catalog
    vectors[0, 0] = np.nan
    before = vectors.copy()
    with pytest.raises(Exception, match="not finite"):
        validate(vectors, isolated, split, BASELINES, None)
    np.testing.assert_array_equal(vectors, before)


def test_without_baseline_hit_rates_nothing_is_validated(catalog):
    assert validate(*catalog, BaselineHitRates({}), None) == {}
