"""metrics.py: every metric by hand, ties, adding up parts, and the bootstrap."""

import math
import subprocess
import sys

import numpy as np
import pytest

from pinsage_jax.evaluation import metrics
from pinsage_jax.retrieval.ranks import ranks_from_scores, tie_rank


def slow_rank(scores, query, target):
    """The tie rule, item by item."""
    others = [item for item in range(len(scores)) if item not in (query, target)]
    greater = sum(scores[item] > scores[target] for item in others)
    equal = sum(scores[item] == scores[target] for item in others)
    return 1 + greater + math.ceil(equal / 2)


# Query 7 has targets at ranks 1, 11 and 250; query 2 one at rank 3; query 9 one at 1000.
RANKS = np.array([11, 3, 1, 1000, 250])
QUERIES = np.array([7, 2, 7, 9, 7])


def test_planted_case_pins_every_metric():
    table = metrics.query_table(RANKS, QUERIES)
    totals = table.totals()
    assert table.queries.tolist() == [2, 7, 9]
    assert set(totals) == set(metrics.METRICS)
    assert totals["hit@10"] == (2, 5)
    assert totals["hit@100"] == (3, 5)
    assert totals["hit@500"] == (4, 5)
    assert totals["recall@10"] == pytest.approx((1 + 1 / 3, 3))
    assert totals["recall@100"] == pytest.approx((1 + 2 / 3, 3))
    assert totals["recall@500"] == pytest.approx((2, 3))
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert totals["ndcg@10"] == pytest.approx((1 / math.log2(4) + 1 / ideal, 3))
    assert totals["mrr"] == pytest.approx((1 / 11 + 1 / 3 + 1 + 1 / 1000 + 1 / 250, 5))
    # ceil(rank / 100): 1, 1, 1, 10, 3
    assert totals["scaled_mrr"] == pytest.approx((3 + 1 / 10 + 1 / 3, 5))
    assert table.means()["hit@100"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    "rank,scaled", [(1, 1), (100, 1), (101, 1 / 2), (200, 1 / 2), (201, 1 / 3)]
)
def test_scaled_mrr_changes_after_each_hundred(rank, scaled):
    assert metrics.query_table(np.array([rank]), np.array([0])).means()["scaled_mrr"] == scaled


def test_cutoffs_are_inclusive_and_ndcg_stops_at_ten():
    at = {rank: metrics.query_table(np.array([rank]), np.array([0])).means() for rank in (10, 11)}
    assert at[10]["hit@10"] == 1 and at[11]["hit@10"] == 0
    assert at[10]["ndcg@10"] == pytest.approx(1 / math.log2(11)) and at[11]["ndcg@10"] == 0


def test_more_targets_than_ranks_still_reach_ndcg_one():
    table = metrics.query_table(np.arange(1, 16), np.zeros(15, int))
    assert table.means()["ndcg@10"] == pytest.approx(1)
    assert table.means()["recall@10"] == pytest.approx(10 / 15)


def test_parts_add_up(small_rng):
    ranks, queries = small_rng.integers(1, 900, 200), small_rng.integers(0, 40, 200)
    whole = metrics.query_table(ranks, queries).totals()
    parts = [
        metrics.query_table(ranks[mask], queries[mask]).totals()
        for mask in (queries < 13, queries >= 13)
    ]
    for name in metrics.METRICS:
        assert whole[name] == pytest.approx(np.add(parts[0][name], parts[1][name]))


def test_no_pairs_have_no_means():
    table = metrics.query_table(np.empty(0, int), np.empty(0, int))
    assert table.means() == {}
    assert table.totals()["mrr"] == (0, 0)


def test_ranks_from_one_only():
    with pytest.raises(ValueError, match="count from 1"):
        metrics.query_table(np.array([0]), np.array([0]))


@pytest.mark.parametrize("equal,rank", [(0, 5), (1, 6), (2, 6), (3, 7), (4, 7)])
def test_tie_rule_rounds_half_up(equal, rank):
    assert tie_rank(np.array([4]), np.array([equal])).tolist() == [rank]


def test_ranks_equal_the_slow_reference_with_many_ties(small_rng):
    scores = small_rng.integers(-2, 3, (6, 17)).astype(np.float32)
    scores[3] = 0
    rows = np.repeat(np.arange(6), 16)
    query = rows + 2
    target = np.concatenate([np.delete(np.arange(17), row + 2) for row in range(6)])
    wanted = [slow_rank(scores[r], q, t) for r, q, t in zip(rows, query, target)]
    assert ranks_from_scores(scores, rows, query, target).tolist() == wanted
    outside = ranks_from_scores(scores, rows, np.full(96, -1), target)
    wanted = [slow_rank(scores[r], -1, t) for r, t in zip(rows, target)]
    assert outside.tolist() == wanted


def test_equal_scores_put_the_target_in_the_middle():
    ranks = ranks_from_scores(np.zeros((1, 101)), np.array([0]), np.array([0]), np.array([50]))
    # 99 other candidates tie: 1 + ceil(99 / 2).
    assert ranks.tolist() == [51]


def test_nan_and_a_target_that_is_its_query_are_refused():
    scores = np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match="own query"):
        ranks_from_scores(scores, np.array([0]), np.array([1]), np.array([1]))
    scores[0, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ranks_from_scores(scores, np.array([0]), np.array([0]), np.array([1]))


def slow_bootstrap(table, resamples, generator):
    """One resample after another, one drawn query after another."""
    result = []
    for draws in generator.integers(0, len(table.queries), (resamples, len(table.queries))):
        sums, counts = np.zeros(len(metrics.METRICS)), np.zeros(len(metrics.METRICS))
        for query in draws:
            sums += table.sums[query]
            counts += table.counts[query]
        result.append(sums / counts)
    return np.array(result)


def test_bootstrap_equals_the_slow_reference(small_rng, monkeypatch):
    table = metrics.query_table(small_rng.integers(1, 50, 30), small_rng.integers(0, 9, 30))
    wanted = slow_bootstrap(table, 20, metrics.keyed_generator(1, "x"))
    found = metrics.bootstrap_means([table], 20, metrics.keyed_generator(1, "x"))
    np.testing.assert_allclose(found[0], wanted, rtol=1e-12)
    # Small blocks of resamples draw the same stream.
    monkeypatch.setattr(metrics, "_MAX_DRAWS", 25)
    again = metrics.bootstrap_means([table], 20, metrics.keyed_generator(1, "x"))
    np.testing.assert_allclose(again[0], wanted, rtol=1e-12)


def test_generator_is_keyed_by_seed_and_label():
    draws = {
        (seed, label): metrics.keyed_generator(seed, label).integers(0, 2**60)
        for seed in (0, 1)
        for label in ("a", "b")
    }
    assert len(set(draws.values())) == 4
    assert metrics.keyed_generator(1, "b").integers(0, 2**60) == draws[1, "b"]


def test_bootstrap_covers_the_truth_and_respects_clusters():
    """Query-level effects: 95% intervals cover about 95% of the time."""
    rng = np.random.default_rng(5)
    column = metrics.METRICS.index("hit@10")
    covered, rounds = 0, 200
    for number in range(rounds):
        # Each of 60 queries hits with all of its eight pairs or with none.
        hit = rng.random(60) < 0.3
        ranks = np.repeat(np.where(hit, 1, 600), 8)
        table = metrics.query_table(ranks, np.repeat(np.arange(60), 8))
        samples = metrics.bootstrap_means([table], 300, metrics.keyed_generator(number, "c"))
        low, high = metrics.interval(samples[0])
        covered += low[column] <= 0.3 <= high[column]
    assert 0.88 * rounds <= covered <= 0.995 * rounds


def test_paired_differences_are_tighter_than_separate_ones(small_rng):
    queries = np.arange(400)
    ranks = small_rng.integers(1, 200, 400)
    better = np.maximum(ranks - 1, 1)
    tables = [metrics.query_table(ranks, queries), metrics.query_table(better, queries)]
    samples = metrics.bootstrap_means(tables, 400, metrics.keyed_generator(0, "p"))
    column = metrics.METRICS.index("hit@100")
    paired = np.std(samples[1] - samples[0], axis=0)[column]
    alone = np.std(samples[0], axis=0)[column]
    assert paired < 0.5 * alone
    # The same ranks differ by exactly nothing.
    same = metrics.bootstrap_means([tables[0]] * 2, 50, metrics.keyed_generator(0, "p"))
    assert np.array_equal(same[0], same[1])


def test_methods_on_different_queries_are_refused():
    tables = [metrics.query_table(np.array([1]), np.array([query])) for query in (0, 1)]
    with pytest.raises(ValueError, match="different queries"):
        metrics.bootstrap_means(tables, 5, metrics.keyed_generator(0, ""))


def test_metrics_import_without_jax():
    code = "import sys, pinsage_jax.evaluation.metrics; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
