"""Comparison of two runs: references for ranks, intervals and churn; runs that differ."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from small_catalog import make_config, make_prepared, random_graph

import pinsage_jax
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.tools import CompareConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.ids import IdTable
from pinsage_jax.evaluation import metrics
from pinsage_jax.export import writer
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.reporting import comparison
from pinsage_jax.reporting.comparison import Run
from pinsage_jax.reporting.comparison_text import format_comparison
from pinsage_jax.reporting.sources import Source


def source_of(config):
    return Source(config, True, {"step": 7}, [], [], None, False)


def small_run(tmp_path, vectors, pairs, kinds=None, order=None, **settings):
    """A run in memory; `order` names the items anew: row r is item-<order[r]>."""
    graph = random_graph(np.random.default_rng(1))
    prepared = make_prepared(graph, eval_pairs=pairs, eval_kinds=kinds)
    if order is not None:
        ids = pa.array([f"item-{number}" for number in order], pa.large_string())
        prepared = dataclasses.replace(prepared, item_ids=IdTable(ids))
    config = dataclasses.replace(make_config(tmp_path), **settings)
    return Run(str(tmp_path), prepared, vectors, source_of(config))


@pytest.fixture
def vectors():
    rng = np.random.default_rng(5)
    return [rng.normal(size=(30, 6)).astype(np.float32) for _ in range(2)]


PAIRS = np.array([[0, 1], [0, 2], [3, 4], [5, 6], [7, 8], [7, 9], [10, 29]])
KINDS = ["warm"] * 5 + ["cold"] * 2


def rank(vectors, query, target):
    scores = (vectors @ vectors[query]).astype(np.float64)
    return 1 + sum(
        scores[other] > scores[target] for other in range(len(vectors)) if other != query
    )


def test_metrics_on_the_same_pairs(vectors, tmp_path):
    runs = [small_run(tmp_path, some, PAIRS, KINDS) for some in vectors]
    found = comparison.compare_metrics(*runs, 200, 3)
    assert found["same_pairs"] and found["same_catalog"] and found["pairs"] == 7
    assert {kind: scored["pairs"] for kind, scored in found["kinds"].items()} == {
        "all": 7, "warm": 5, "cold": 2,
    }  # fmt: skip
    for kind, scored in found["kinds"].items():
        chosen = [pair for pair, of in zip(PAIRS, KINDS) if kind in ("all", of)]
        ranks = [np.array([rank(some, *pair) for pair in chosen]) for some in vectors]
        values = scored["metrics"]["hit@10"]
        assert values["values"] == pytest.approx([(r <= 10).mean() for r in ranks])
        mrr = scored["metrics"]["mrr"]
        assert mrr["difference"] == pytest.approx((1 / ranks[1]).mean() - (1 / ranks[0]).mean())
        assert mrr["low"] <= mrr["difference"] <= mrr["high"]


def test_intervals_of_the_difference_are_paired(vectors, tmp_path):
    # The second run's vectors are rotated, which changes no score.
    rotated = vectors[0] @ np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    runs = [small_run(tmp_path, some.astype(np.float32), PAIRS) for some in (vectors[0], rotated)]
    found = comparison.compare_metrics(*runs, 200, 3)["kinds"]["all"]["metrics"]
    for name in metrics.METRICS:
        assert (found[name]["low"], found[name]["high"]) == (0.0, 0.0)
    spread = [high - low for low, high in found["mrr"]["intervals"]]
    assert spread[0] == spread[1] > 0


@pytest.mark.parametrize("width", [60, 80])
def test_on_a_terminal_the_tables_fit_it(width, vectors, tmp_path):
    runs = [small_run(tmp_path, some, PAIRS, KINDS) for some in vectors]
    long = ["epochs=" + "1" * 90, "9"]
    found = comparison.compare_metrics(*runs, 200, 3)
    result = {
        "runs": ["a", "b"],
        "settings": [{"flag": "text_columns", "values": long}],
        "settings_known": [True, True],
        "data": [{"items_without_edges": 10**6}] * 2,
        "metrics": found,
        "neighbors": {"items": 0},
        "lists": [None, None],
        "costs": [{"seconds": {"train": 1.5}, "peak_memory_bytes": 1 << 30}] * 2,
    }
    whole, cut = (format_comparison(result, limit) for limit in (None, width))
    assert long[0] in whole and "Intervals of A" not in whole
    tables = [line for line in cut.splitlines() if "   " in line]
    assert len(tables) > 15 and max(map(len, tables)) <= width
    assert "epochs=1" in cut and "1..." in cut and "--text_columns" in cut
    values = found["kinds"]["all"]["metrics"]["mrr"]
    row = next(line for line in tables if line.startswith("mrr")).split()
    assert row[1:3] == [f"{value:.3f}" for value in values["values"]]
    assert " ".join(row[3:]) == (
        f"{values['difference']:+.3f} [{values['low']:+.3f}, {values['high']:+.3f}]"
    )


def test_without_bootstrap_there_are_no_intervals(vectors, tmp_path):
    runs = [small_run(tmp_path, some, PAIRS) for some in vectors]
    found = comparison.compare_metrics(*runs, 0, 3)["kinds"]["all"]["metrics"]["mrr"]
    assert set(found) == {"values", "difference"}


def test_another_order_of_items_is_the_same_run(vectors, tmp_path):
    order = np.random.default_rng(9).permutation(30)
    place = np.argsort(order)
    first = small_run(tmp_path, vectors[0], PAIRS, KINDS)
    moved = place[PAIRS][np.random.default_rng(1).permutation(7)]
    second = small_run(tmp_path, vectors[0][order], moved, order=order)
    found = comparison.compare_metrics(first, second, 50, 3)
    assert found["same_pairs"] and not found["same_catalog"]
    assert found["kinds"]["all"]["metrics"]["mrr"]["difference"] == pytest.approx(0.0)
    churn = comparison.neighbor_churn(first, second, 5, 1000)
    assert churn["mean_overlap"] == churn["same_first"] == churn["unchanged"] == 1.0


def test_pairs_that_only_one_run_has_are_not_compared(vectors, tmp_path):
    first = small_run(tmp_path, vectors[0], np.concatenate([PAIRS, PAIRS[:2]]), KINDS + KINDS[:2])
    second = small_run(tmp_path, vectors[1], np.array([[5, 6], [0, 1], [11, 12]]))
    found = comparison.compare_metrics(first, second, 50, 3)
    assert (found["pairs"], found["pairs_of_each"], found["same_pairs"]) == (2, [7, 3], False)
    nothing = small_run(tmp_path, vectors[1], np.array([[11, 12]]))
    assert comparison.compare_metrics(first, nothing, 50, 3)["kinds"] == {}


@pytest.mark.parametrize("lacking", [0, 12])
def test_churn_against_sets(lacking, vectors, tmp_path):
    first = small_run(tmp_path, vectors[0], PAIRS)
    names = list(range(30 - lacking)) + [f"new{n}" for n in range(lacking)]
    second = small_run(tmp_path, vectors[1], PAIRS[:0], order=names)
    churn = comparison.neighbor_churn(first, second, 4, 1000)
    overlaps = []
    for item in range(30 - lacking):
        lists = []
        for run in (first, second):
            scores = run.embeddings @ run.embeddings[item]
            scores[item] = -np.inf
            best = np.argsort(-scores, kind="stable")[:4]
            lists.append(run.prepared.item_ids.names(best).to_pylist())
        overlaps.append(len(set(lists[0]) & set(lists[1])) / 4)
    assert churn["items"] == churn["common_items"] == 30 - lacking
    assert churn["mean_overlap"] == pytest.approx(np.mean(overlaps))
    assert churn["all_new"] == pytest.approx(np.mean(np.array(overlaps) == 0))
    worst = [int(name.removeprefix("item-")) for name in churn["most_changed"]]
    assert max(overlaps[item] for item in worst) <= sorted(overlaps)[4]


def test_churn_of_a_sample_and_of_nothing(vectors, tmp_path):
    first, second = (small_run(tmp_path, some, PAIRS) for some in vectors)
    assert comparison.neighbor_churn(first, second, 4, 7)["items"] == 7
    other = small_run(tmp_path, vectors[1], PAIRS, order=[f"x{n}" for n in range(30)])
    assert comparison.neighbor_churn(first, other, 4, 7)["items"] == 0


def test_settings_that_differ(tmp_path):
    config = make_config(tmp_path)
    other = dataclasses.replace(
        config,
        seed=4,
        workdir="elsewhere",
        threads=9,
        model=dataclasses.replace(config.model, num_layers=2),
        train=dataclasses.replace(config.train, margin=0.5),
    )
    found = comparison.settings_difference(source_of(config), source_of(other))
    assert [(row["flag"], row["values"]) for row in found] == [
        ("seed", [3, 4]), ("num_layers", [1, 2]), ("margin", [0.1, 0.5]),
    ]  # fmt: skip
    assert comparison.settings_difference(source_of(config), source_of(config)) == []


def test_the_mode_end_to_end(trained, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shutil.copytree(trained.workdir, folder)
    prepared = open_prepared(second)
    vectors = load_embeddings(second, prepared)
    vectors = vectors + np.random.default_rng(0).normal(0, 0.2, vectors.shape).astype(np.float32)
    manifest = json.loads((second / "embeddings" / "_manifest.json").read_text())
    about = {name: manifest[name] for name in ("step", "settings", "ids", "seed", "normalized")}
    writer.write_embeddings(
        second, trained.embed, writer.Embeddings(prepared.item_ids, vectors), about
    )
    config = dataclasses.replace(
        trained, workdir=str(first), compare=CompareConfig(compare_with=str(second))
    )
    before = sorted(path.name for path in second.iterdir())
    result = pinsage_jax.compare(config)
    text = capsys.readouterr().out
    assert "The settings are the same." in text and "% churn" in text and "costs" in text
    assert f"A: {first}" in text and "B - A" in text
    assert json.loads((first / "compare.json").read_text()) == json.loads(json.dumps(result))
    assert 0.0 < result["neighbors"]["mean_overlap"] < 1.0
    assert result["metrics"]["same_pairs"]
    # The other run is only read.
    assert sorted(path.name for path in second.iterdir()) == before


@pytest.mark.parametrize(
    "other, sentence",
    [(".", "is --workdir itself; name another run"), ("../nothing", "holds no prepared data")],
)
def test_runs_that_cannot_be_compared(other, sentence, trained):
    config = dataclasses.replace(
        trained, compare=CompareConfig(compare_with=f"{trained.workdir}/{other}")
    )
    with pytest.raises(UserError, match=sentence):
        pinsage_jax.compare(config)
