"""The choice of the level of new items, and of what orders the lists, from measured hit-rates."""

import numpy as np
import pytest

from pinsage_jax.ranking.levels import LEVELS, Comparison, choose_level, choose_method

STEPS = np.arange(len(LEVELS))


def comparison(rates, methods, noise=0.001):
    """hit@10 at each level, and of each method; hit@100 is three times that."""
    rng = np.random.default_rng(0)
    both = {name: np.array([rate, 3 * rate]) for name, rate in methods.items()}
    rates = np.stack([rates, 3 * np.asarray(rates)], axis=1)
    # Independent noise of half of a difference's each.
    drawn = {name: rate + noise * rng.normal(size=(200, 2)) for name, rate in both.items()}
    samples = rates[:, None, :] + noise * rng.normal(size=(len(rates), 200, 2))
    return Comparison(rates, both, samples, drawn)


def test_hit_rates_are_those_of_the_ranks_and_noise_is_that_of_the_queries():
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(300), 2)
    ranks = rng.integers(1, 300, 600)
    better = np.maximum(ranks - 60, 1)
    found = Comparison.of([ranks] * len(LEVELS), {"a": better, "b": ranks}, owner, 0, "warm")
    assert found.rates[3].tolist() == [np.mean(ranks <= 10), np.mean(ranks <= 100)]
    assert found.methods["a"].tolist() == [np.mean(better <= 10), np.mean(better <= 100)]
    assert found.best == "a" and found.below(2) == {"hit@10": "a", "hit@100": "a"}
    assert found.method_below("b") == found.below(2) and not found.method_below("a")
    # One query more is noise.
    close = ranks.copy()
    close[0] = 1
    same = Comparison.of([ranks] * len(LEVELS), {"a": close, "b": ranks}, owner, 0, "warm")
    assert not same.below(2)


def test_the_default_level_keeps_both_kinds_at_their_best_method():
    """Cold hit-rates reach content's at level 8 of the list, warm ones the walk's until 14."""
    warm = comparison(0.2 - 0.005 * STEPS, {"walk": 0.13, "content": 0.05})
    cold = comparison(0.005 * STEPS, {"walk": 0.0, "content": 0.04})
    chosen = LEVELS.index(choose_level({"warm": warm, "cold": cold}))
    assert 8 <= chosen <= 14 and not warm.below(chosen) and not cold.below(chosen)
    assert choose_method({"warm": warm, "cold": cold}, chosen) is None


def test_noise_in_warm_hits_is_given_up_for_cold_ones_that_are_below():
    """Where cold hit-rates suffice, warm ones are below the walk's, though by noise alone."""
    warm = comparison(0.1302 - 0.00005 * STEPS, {"walk": 0.13}, noise=0.002)
    cold = comparison(0.005 * STEPS, {"walk": 0.0, "content": 0.06}, noise=0.002)
    chosen = LEVELS.index(choose_level({"warm": warm, "cold": cold}))
    assert warm.rates[chosen, 0] < 0.13
    assert not warm.below(chosen) and not cold.below(chosen)


def test_without_such_a_level_the_warm_hits_are_kept_and_the_ranker_stays():
    warm = comparison(0.14 - 0.005 * STEPS, {"walk": 0.13, "content": 0.02})
    cold = comparison(0.005 * STEPS, {"walk": 0.0, "content": 0.1})
    chosen = LEVELS.index(choose_level({"warm": warm, "cold": cold}))
    assert warm.rates[chosen, 0] >= 0.13 and cold.below(chosen)
    # No method is level with the best ones of both kinds.
    assert choose_method({"warm": warm, "cold": cold}, chosen) is None


@pytest.mark.parametrize(
    "methods, chosen",
    [
        # One method is below no other for either kind.
        ({"vectors": (0.13, 0.1), "walk": (0.13, 0.0)}, "vectors"),
        ({"vectors": (0.05, 0.1), "walk": (0.16, 0.0)}, "walk"),
    ],
)
def test_what_is_below_a_method_is_not_shipped(methods, chosen):
    warm = comparison(0.14 - 0.005 * STEPS, {name: rate for name, (rate, _) in methods.items()})
    cold = comparison(0.001 * STEPS, {name: rate for name, (_, rate) in methods.items()})
    both = {"warm": warm, "cold": cold}
    assert choose_method(both, LEVELS.index(choose_level(both))) == chosen


def test_one_kind_of_target_needs_no_level():
    assert choose_level({"warm": comparison(0.1 + 0 * STEPS, {"walk": 0.05})}) == 0.0
    low = {"warm": comparison(0.1 + 0 * STEPS, {"walk": 0.15, "content": 0.2})}
    assert choose_method(low, 0) == "content"
