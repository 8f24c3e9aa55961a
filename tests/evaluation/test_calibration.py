"""The cold-start bias: validated in place, chosen by the smallest relative hit-rate."""

import numpy as np
import pytest
import reference_calibration as reference

from pinsage_jax.evaluation import calibration
from pinsage_jax.evaluation.calibration import BaselineHitRates, validate, with_cold_start_bias
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.topk import top_k

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
    rates = reference.hit_rates(shifted, split)
    assert {key: found[f"{key[0]}_hit@{key[1]}"] for key in rates} == rates


class Rates:
    """Rates of so many pairs, one a query, that no difference is noise."""

    def __init__(self, of):
        self.of, self.tried = of, []

    def __call__(self, _, bias):
        # The score ranks the kinds apart, and tries no bias.
        self.tried += [] if bias is None else [bias]
        count = 10**8
        rates = {}
        for key, rate in self.of(bias or 0.0).items():
            # Two queries stand for all: the standard error is next to nothing.
            hits = np.array([rate * count, rate * count])
            rates[key] = calibration._Rate(hits, np.full(2, float(count)))
        return rates


def relative(warm, cold):
    """Hit-rates by (kind, k) that are so many times the baselines'."""
    return {
        key: rate * (cold if key[0] == "cold" else warm) for key, rate in BASELINES.rates.items()
    }


@pytest.mark.parametrize("crossing", [0.0, 0.0375, 0.16, 0.31, 0.6])
def test_the_bias_is_found_between_those_of_the_coarse_grid(monkeypatch, crossing, catalog):
    vectors, isolated, split = catalog
    # With the bias, warm relative hit-rates fall and cold ones rise; equal at `crossing`.
    rates = Rates(lambda bias: relative(1 - 0.01 * (bias - crossing), 1 + 3 * (bias - crossing)))
    monkeypatch.setattr(calibration._TopLists, "rates", lambda self, bias: rates(self, bias))
    found = validate(vectors, isolated, split, BASELINES, None)
    assert found["cold_start_bias"] == pytest.approx(crossing, abs=0.0126)
    assert len(rates.tried) <= len(calibration.COARSE_BIASES) + 2 * len(calibration._FINER_STEPS)


def test_no_more_than_two_percent_of_the_warm_hits_are_paid(monkeypatch, catalog):
    """Cold hit-rates are far below their baseline until warm ones have lost a tenth."""
    rates = Rates(lambda bias: relative(1.2 * (1 - 0.2 * bias), 0.1 + 2 * bias))
    monkeypatch.setattr(calibration._TopLists, "rates", lambda self, bias: rates(self, bias))
    found = validate(*catalog, BASELINES, None)
    assert found["cold_start_bias"] == pytest.approx(0.1, abs=0.0126)
    assert found["warm_hit@10"] >= 0.98 * 0.2 * 1.2


def test_what_few_pairs_cannot_tell_apart_is_decided_for_warm_pairs(monkeypatch, catalog):
    """One more hit, of two gained and one lost, is noise."""

    def rates(_, bias):
        hits = np.zeros(40)
        hits[slice(1, 6) if bias and bias >= 0.2 else slice(4)] = 1.0
        some = calibration._Rate(hits, np.ones(40))
        warm = calibration._Rate(np.full(40, 0.9), np.ones(40))
        return {key: some if key[0] == "cold" else warm for key in BASELINES.rates}

    monkeypatch.setattr(calibration._TopLists, "rates", rates)
    assert validate(*catalog, BASELINES, None)["cold_start_bias"] == 0.0


def test_the_error_of_the_score_is_that_of_drawing_queries_again(catalog):
    vectors, isolated, split = catalog
    found, rng, drawn = (
        validate(vectors, isolated, split, BASELINES, 0.2),
        np.random.default_rng(0),
        [],
    )
    hits = {key: reference.hits_apart(vectors, isolated, split, key) for key in BASELINES.rates}
    for _ in range(2000):
        # Each query has one pair here.
        times = rng.multinomial(len(split.pairs), [1 / len(split.pairs)] * len(split.pairs))
        weights = {kind: times[split.kinds == kind] for kind in ("warm", "cold")}
        rates = [np.average(hit, weights=weights[key[0]]) for key, hit in hits.items()]
        drawn.append(np.exp(np.mean(np.log(np.maximum(rates, 0.01)))))
    assert found["score_error"] == pytest.approx(np.std(drawn), rel=0.3)
    assert found["score"] == pytest.approx(np.mean(drawn), rel=0.2)


def test_the_score_does_not_hang_on_how_the_kinds_are_merged(catalog):
    """Cold items that are listed behind all others count as far as they are right themselves."""
    vectors, isolated, split = catalog
    low, high = (validate(vectors, isolated, split, BASELINES, bias) for bias in (0.0, 9.0))
    assert low["score"] == high["score"] and low["cold_hit@100"] < high["cold_hit@100"]
    rates = [reference.hits_apart(vectors, isolated, split, key).mean() for key in BASELINES.rates]
    assert low["score"] == pytest.approx(np.exp(np.mean(np.log(np.maximum(rates, 0.01)))), rel=0.02)


def test_vectors_are_restored_after_a_failure(catalog):
    vectors, isolated, split = catalog
    vectors[0, 0] = np.nan
    before = vectors.copy()
    with pytest.raises(Exception, match="not finite"):
        validate(vectors, isolated, split, BASELINES, None)
    np.testing.assert_array_equal(vectors, before)


def test_without_baseline_hit_rates_nothing_is_validated(catalog):
    assert validate(*catalog, BaselineHitRates({}), None) == {}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_the_bias_is_that_of_ranking_the_catalog_for_each(share, ties):
    """Few and many isolated items; with ties scores are whole numbers, so that all is exact."""
    items, chosen = 3000, set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(items, 6)).astype(np.float32)
        if ties:
            vectors = np.round(vectors)
        vectors[:, -1] = 1.0
        isolated = rng.random(items) < share
        # Isolated items are a little unpopular, as a network learns it.
        vectors[isolated, -1] = 0.75
        query = rng.choice(np.flatnonzero(~isolated), 300)
        # Targets near the query once the bias is right, so that many ranks are at the cutoffs.
        right = with_cold_start_bias(vectors, isolated, 0.1 * seed)
        nearest = np.argsort(-(vectors[query] @ right.T), axis=1)
        target = nearest[np.arange(300), rng.integers(0, 250, 300)]
        kept = (query != target) & (rng.random(300) < np.where(isolated[target], 1.0, 0.5))
        pairs = np.stack([query[kept], target[kept]], axis=1).astype(np.int32)
        kinds = np.where(isolated[pairs[:, 1]], "cold", "warm")
        if len(set(kinds.tolist())) < 2:
            continue
        none = np.empty(0, np.int32)
        split = ValidationSplit(None, none, none, pairs, kinds)
        # Baselines that both kinds of pairs reach with the right bias.
        baselines = BaselineHitRates(reference.hit_rates(right, split))
        found = validate(vectors, isolated, split, baselines, None)
        bias, rates = reference.choose_bias(vectors, isolated, split, baselines)
        assert found["cold_start_bias"] == bias
        assert {key: found[f"{key[0]}_hit@{key[1]}"] for key in rates} == rates
        chosen.add(bias)
    # With whole numbers any bias costs too many warm hits.
    assert len(chosen) > 1 or ties


def test_the_catalog_is_ranked_once_whatever_the_biases(catalog, monkeypatch):
    read = []

    def counting(queries, rows, *arguments):
        read.append(len(rows))
        return top_k(queries, rows, *arguments)

    monkeypatch.setattr(calibration, "top_k", counting)
    validate(*catalog, BASELINES, None)
    assert sum(read) == len(catalog[0])


def test_a_query_that_is_isolated_is_refused(catalog):
    vectors, isolated, split = catalog
    isolated[split.pairs[0, 0]] = True
    with pytest.raises(ValueError, match="isolated"):
        validate(vectors, isolated, split, BASELINES, None)
