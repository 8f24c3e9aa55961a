"""--mode=evaluate of a run with and without evaluation pairs."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import trained_run

from pinsage_jax.catalog.prepare import open_prepared, prepare
from pinsage_jax.config.data import DataConfig, SyntheticConfig
from pinsage_jax.config.search import EvalConfig
from pinsage_jax.evaluation.baselines import Walk, rank_pairs
from pinsage_jax.retrieval.topk import target_ranks
from pinsage_jax.stages.embed import embed_over
from pinsage_jax.stages.evaluate import saved_evaluation
from pinsage_jax.stages.pipeline import pipeline
from pinsage_jax.stages.runs import embeddings, validation_split_of


@pytest.fixture(scope="module")
def two_tables(tmp_path_factory):
    """The settings of a finished run with --edges and --items alone."""
    folder = tmp_path_factory.mktemp("two_tables")
    given = trained_run.settings(folder / "example", max_steps=6)
    prepare(given)
    inputs = folder / "example" / "inputs"
    (written,) = inputs.rglob("edges.parquet")
    config = dataclasses.replace(
        given,
        workdir=str(folder / "run"),
        data=DataConfig(edges=str(written), items=str(written.with_name("items.parquet"))),
        synthetic=SyntheticConfig(),
        evaluate=EvalConfig(bootstrap=0, baselines="walk"),
    )
    pipeline(config)
    return config


def test_without_eval_pairs_every_method_reads_the_training_graph(two_tables):
    config = two_tables
    prepared = open_prepared(config.workdir)
    split = validation_split_of(config, prepared)
    assert len(prepared.eval_pairs) == 0 and len(split.pairs) > 20
    saved = saved_evaluation(config)
    pairs = np.unique(split.pairs, axis=0)
    assert saved["pairs_from"] == "validation" and saved["pairs"] == len(pairs)
    query, target = pairs.T
    items = prepared.graph.num_items

    def walk(graph):
        baseline = Walk(graph, config.sampling, config.seed, 1)
        return rank_pairs(baseline, pairs, items)

    def pinsage(vectors):
        return target_ranks(vectors[query], vectors, query, target)

    vectors, trained = embed_over(config, prepared, split.train_graph, split)
    # Restored, and placed on the device for whatever embeds with them next.
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trained.params))
    _, exported = embeddings(config)
    for name, fair, unfair in (
        ("walk", walk(split.train_graph), walk(prepared.graph)),
        ("pinsage", pinsage(vectors[:items]), pinsage(exported)),
    ):
        curve = saved["methods"][name]["hit_curve"]
        assert curve == {k: pytest.approx(np.mean(fair <= int(k))) for k in curve}
        assert not np.array_equal(fair, unfair)
    # The graph that holds the answers would have given them away.
    assert np.mean(walk(prepared.graph) <= 10) > np.mean(walk(split.train_graph) <= 10)


def test_the_report_says_on_which_pairs_and_whose_choice_they_were(two_tables):
    notes = saved_evaluation(two_tables)["notes"]
    note = notes[0]
    # A ranker is fitted on the same split, where it has pairs enough.
    assert notes[1:] in ([], ["the ranker was fitted on the same validation split"])
    assert "on which training chose its checkpoint" in note
    assert "scored on the training graph" in note
    with open(f"{two_tables.workdir}/report.html", encoding="utf-8") as handle:
        page = handle.read()
    assert note in page and "validation pairs" in page
    with open(f"{two_tables.workdir}/eval.json", encoding="utf-8") as handle:
        assert json.load(handle)["notes"] == notes
