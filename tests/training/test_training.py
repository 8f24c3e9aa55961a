"""Training from prepare to embed: it learns, repeats bit for bit, resumes, and refuses."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalog import random_graph

import pinsage_jax
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.config.data import DataConfig, SyntheticCatalog, SyntheticConfig
from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import calibration
from pinsage_jax.inference import on_devices
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.model.init import init_model
from pinsage_jax.retrieval import blocks
from pinsage_jax.sampling.pairs import PairSource, pairs_per_epoch
from pinsage_jax.stages import train as train_stage
from pinsage_jax.stages.prepare import prepare
from pinsage_jax.training import curriculum, feed
from pinsage_jax.training.checkpoints import Checkpoints

TESTS = pathlib.Path(__file__).parents[1]
CATALOG = SyntheticCatalog(
    items=600,
    collections=150,
    edges=5000,
    topics=12,
    styles=3,
    pairs=600,
)
# Three epochs of five steps: the third has two hard negatives a query.
TOTAL = 15


def config_for(workdir, *, seed=0, sampling=None, model=None, train=None) -> Config:
    """Settings of a run of a few seconds; the dictionaries override."""
    return Config(
        mode="pipeline",
        workdir=str(workdir),
        seed=seed,
        threads=1,
        synthetic=SyntheticConfig(True, synthetic_catalog=CATALOG),
        sampling=SamplingConfig(
            **{"num_neighbors": 10, "num_walks": 40, "hard_walks": 60, **(sampling or {})}
        ),
        model=ModelConfig(
            **{
                "num_layers": 2,
                "hidden_dim": 32,
                "layer_dim": 32,
                "output_dim": 16,
                "spectral_dim": 16,
                **(model or {}),
            }
        ),
        train=TrainConfig(
            **{
                "batch_size": 64,
                "random_negatives": 64,
                "epochs": 3.0,
                "pairs_per_epoch": 320,
                "hard_max": 2,
                "validate_every": 6,
                "checkpoint_every": 3,
                "log_every": 2,
                "warmup_epochs": 1.0,
                "devices": 1,
                **(train or {}),
            }
        ),
        embed=EmbedConfig(checkpoint="last", embed_block=256, embed_walks=None),
    )


@pytest.fixture(scope="module")
def prepared_workdir(tmp_path_factory):
    """A workdir after `prepare`."""
    folder = tmp_path_factory.mktemp("prepared_workdir")
    prepare(config_for(folder))
    return folder


@pytest.fixture
def workdir(prepared_workdir, tmp_path):
    """A workdir of its own with the prepared data."""
    return copy_of(prepared_workdir, tmp_path / "run")


def copy_of(prepared_workdir, folder):
    shutil.copytree(prepared_workdir, folder)
    return folder


class Saved(dict):
    """Host copies of every state that is checkpointed, by step."""


@pytest.fixture
def saved(monkeypatch):
    return spy_on(monkeypatch)


def spy_on(monkeypatch):
    states, save = Saved(), Checkpoints.save

    def recording(self, step, state, meta, metrics=None):
        states[step] = jax.tree.map(np.array, state)
        save(self, step, state, meta, metrics)

    monkeypatch.setattr(Checkpoints, "save", recording)
    return states


def assert_same_bits(left, right):
    ours, theirs = jax.tree.leaves(left), jax.tree.leaves(right)
    assert len(ours) == len(theirs) > 20
    for one, other in zip(ours, theirs):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


def exported(workdir):
    """float32 [items, Z] of the embeddings on disk."""
    table = pq.read_table(pathlib.Path(workdir) / "embeddings" / "part-00000.parquet")
    return np.array(table["embedding"].to_pylist(), np.float32)


@pytest.fixture(scope="module")
def whole(prepared_workdir, tmp_path_factory):
    """An uninterrupted run: (states by step, embeddings, lines of metrics.jsonl)."""
    folder = copy_of(prepared_workdir, tmp_path_factory.mktemp("whole") / "run")
    with pytest.MonkeyPatch.context() as patch:
        states = spy_on(patch)
        outcome = pinsage_jax.train(config_for(folder))
    assert (outcome.step, outcome.total, outcome.interrupted) == (TOTAL, TOTAL, False)
    pinsage_jax.embed(config_for(folder))
    return states, exported(folder), lines_of(folder)


def lines_of(workdir):
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_what_a_run_leaves(whole):
    states, vectors, lines = whole
    assert sorted(states) == [3, 6, 9, 12, 15]
    assert [int(states[step].step) for step in sorted(states)] == sorted(states)
    assert vectors.shape == (600, 16) and np.isfinite(vectors).all()
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [2, 4, 6, 8, 10, 12, 14, 15]
    assert [line["step"] for line in lines if "score" in line] == [6, 12, 15]
    # The curriculum shows: none, one, two hard negatives (less those that miss).
    hard = {line["step"]: line["hard_per_query"] for line in losses}
    assert hard[4] == 0.0 and 0.5 < hard[8] <= 1.0 < hard[14] <= 2.0
    assert all(line["neighbors_left_out"] == 0 for line in losses)


def test_a_second_run_is_bit_identical(workdir, saved, whole):
    pinsage_jax.train(config_for(workdir))
    assert_same_bits(saved[TOTAL], whole[0][TOTAL])
    pinsage_jax.embed(config_for(workdir))
    np.testing.assert_array_equal(exported(workdir), whole[1])


def test_another_seed_is_another_run(workdir, saved, whole):
    pinsage_jax.train(config_for(workdir, seed=1, train={"max_steps": 3}))
    leaves = zip(jax.tree.leaves(saved[3].params), jax.tree.leaves(whole[0][3].params))
    assert all(not np.array_equal(one, other) for one, other in leaves if one.ndim > 1)


@pytest.mark.parametrize("depth,placed", [(0, False), (1, True), (3, False)])
def test_prefetch_depth_does_not_matter(depth, placed, workdir, saved, whole, monkeypatch):
    # Nor does it matter that a run takes the ways of accelerators: batches are packed and placed
    # ahead, a thread saves, and all devices embed and rank.
    monkeypatch.setattr(feed, "places_batches", lambda: placed)
    monkeypatch.setattr(blocks, "is_accelerated", lambda: placed)
    monkeypatch.setattr(on_devices, "holds_messages", lambda *_: placed)
    pinsage_jax.train(config_for(workdir, train={"prefetch": depth}))
    assert_same_bits(saved[TOTAL], whole[0][TOTAL])
    if placed:
        pinsage_jax.embed(config_for(workdir))
        np.testing.assert_allclose(exported(workdir), whole[1], rtol=1e-5, atol=1e-5)
        scores = [
            [line["score"] for line in lines if "score" in line]
            for lines in (lines_of(workdir), whole[2])
        ]
        np.testing.assert_allclose(*scores, rtol=0.05)


@pytest.mark.parametrize("error, used", [(0.0, 4), (0.06, 8), (0.12, 8), (0.04, 4)])
def test_training_ends_when_validation_stops_rising(error, used, workdir, monkeypatch):
    """The score is highest at step 4; of steps within its error the latest is used."""
    scores = itertools.chain([0.1, 0.3, 0.2, 0.25], itertools.repeat(0.9))
    monkeypatch.setattr(
        train_stage.calibration,
        "validate",
        lambda *_: {"score": next(scores), "score_error": error},
    )
    config = config_for(workdir, train={"validate_every": 2, "patience": 2})
    outcome = pinsage_jax.train(config)
    assert (outcome.step, outcome.interrupted) == (8, False) and outcome.total == TOTAL
    assert outcome.best["step"] == used
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.best_step() == used and 4 in checkpoints.steps()
    # It is finished, and its length is part of that.
    assert pinsage_jax.train(config).pairs == 0
    longer = pinsage_jax.train(config_for(workdir, train={"validate_every": 2, "patience": 3}))
    assert longer.step > 8


def test_the_rule_of_the_standard_error():
    def steps(*scores, error=0.05):
        return {n + 1: {"score": s, "score_error": error} for n, s in enumerate(scores)}

    assert curriculum.best_first(steps(0.5, 0.48, 0.3, 0.46, 0.4)) == [4, 1, 2, 5, 3]
    assert curriculum.best_first(steps(0.5, 0.5, None, error=None)) == [1, 2]
    assert curriculum.best_first(steps(None)) == curriculum.highest_first({}) == []
    assert curriculum.highest_first(steps(0.2, 0.5, 0.5)) == [2, 3, 1]


def test_small_tables_take_several_passes_by_default():
    auto, given = TrainConfig(batch_size=100), TrainConfig(batch_size=100, epochs=3.0)
    assert auto.epochs is None and auto.num_epochs == given.num_epochs == 3.0
    graph = random_graph(np.random.default_rng(0), 40, 12, 200)
    for train, expected, steps in ((given, graph.num_edges, 5), (auto, 6400, 192)):
        found = PairSource(graph, 0, least=train.least_epoch_pairs).per_epoch
        assert found == pairs_per_epoch(graph, None, None, train.least_epoch_pairs) == expected
        assert curriculum.total_steps(train, found) == steps
    assert pairs_per_epoch(graph, None, 50, 6400) == 50
    # A table of as many pairs is passed through three times by both.
    least = auto.least_epoch_pairs
    assert pairs_per_epoch(graph, np.zeros((7000, 2), np.int32), None, least) == 7000


def test_a_run_does_not_change_between_epochs_auto_and_a_number(workdir):
    pinsage_jax.train(config_for(workdir, train={"max_steps": 2}))
    with pytest.raises(UserError, match=r"^--epochs=auto differs from 3\.0"):
        pinsage_jax.train(config_for(workdir, train={"max_steps": 2, "epochs": None}))


@pytest.mark.parametrize("rate, named", [(0.05, True), (0.29, False)])
def test_embeddings_below_their_walk_are_named_at_the_end(
    rate, named, workdir, monkeypatch, caplog
):
    measured = {"score": 0.1, "warm_hit@10": rate, "warm_hit@100": 0.5}
    monkeypatch.setattr(train_stage.calibration, "validate", lambda *_: measured)
    plain = calibration.BaselineHitRates({("warm", 10): 0.3, ("warm", 100): 0.5}, {"warm": 400})
    monkeypatch.setattr(calibration.BaselineHitRates, "measure", lambda *_: plain)
    with caplog.at_level("WARNING"):
        pinsage_jax.train(config_for(workdir, train={"max_steps": 3}))
    text = "the embeddings are below what they are made from: walk for warm pairs (hit@10 0.050"
    assert (text in caplog.text) == named


@pytest.mark.parametrize("stop_at", [1, 6, 8, 12])
def test_stop_and_resume_equal_the_uninterrupted_run(stop_at, workdir, saved, whole, monkeypatch):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == stop_at

    monkeypatch.setattr(train_stage, "stop_requested", stop)
    # Batches that were placed and not taken are made again.
    monkeypatch.setattr(feed, "places_batches", lambda: stop_at == 8)
    outcome = pinsage_jax.train(config_for(workdir))
    assert (outcome.step, outcome.interrupted) == (stop_at, True)
    assert max(saved) == stop_at
    # A stop does not wait for a validation; the resumed run begins with it.
    scored = [line["step"] for line in lines_of(workdir) if "score" in line]
    assert scored == [step for step in (6, 12) if step < stop_at]
    saved.clear()
    outcome = pinsage_jax.train(config_for(workdir))
    assert (outcome.step, outcome.interrupted) == (TOTAL, False)
    assert min(saved) == stop_at if stop_at in (6, 12) else min(saved) > stop_at
    scores = [
        [{key: line[key] for key in line if key != "epoch"} for line in lines if "score" in line]
        for lines in (lines_of(workdir), whole[2])
    ]
    assert scores[0] == scores[1] and [line["step"] for line in scores[0]] == [6, 12, TOTAL]
    scored = {line["step"]: line for line in whole[2] if "score" in line}
    best = scored[curriculum.best_first(scored)[0]]
    assert outcome.best == {key: best[key] for key in best if key not in ("epoch", "kind")}
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.best_step() == best["step"]
    assert_same_bits(saved[TOTAL], whole[0][TOTAL])
    pinsage_jax.embed(config_for(workdir))
    np.testing.assert_array_equal(exported(workdir), whole[1])


def test_a_longer_run_continues_a_shorter_one(workdir, saved, whole):
    pinsage_jax.train(config_for(workdir, train={"max_steps": 8}))
    assert max(saved) == 8
    pinsage_jax.train(config_for(workdir))
    assert_same_bits(saved[TOTAL], whole[0][TOTAL])
    steps = [line["step"] for line in lines_of(workdir) if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == TOTAL


def test_a_killed_run_resumes_bit_for_bit(workdir, saved, whole):
    """SIGKILL after the checkpoint of step 6, between two steps or within one."""
    code = (
        "import conftest, time, test_training\n"
        "from pinsage_jax.stages import train as stage\n"
        "stage.stop_requested = lambda: bool(time.sleep(0.3))\n"
        f"stage.train(test_training.config_for({str(workdir)!r}))\n"
    )
    here = pathlib.Path(__file__).parent
    path = os.pathsep.join(map(str, [here, TESTS, TESTS / "helpers", TESTS.parent]))
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    try:
        checksums = workdir / "checkpoints" / "6" / "checksums.json"
        deadline = time.monotonic() + 240
        while not checksums.exists():
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert max(Checkpoints(workdir / "checkpoints", read_only=True).steps()) < TOTAL
    pinsage_jax.train(config_for(workdir))
    assert min(saved) > 6
    assert_same_bits(saved[TOTAL], whole[0][TOTAL])
    steps = [line["step"] for line in lines_of(workdir) if "loss" in line]
    assert steps == [line["step"] for line in whole[2] if "loss" in line]


# What is refused, and what stops.


def test_other_settings_are_refused_with_a_sentence(workdir, saved):
    pinsage_jax.train(config_for(workdir, train={"max_steps": 3}))
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    refused = [
        ({"sampling": {"num_walks": 41}}, "--num_walks=41 differs from 40"),
        ({"train": {"learning_rate": 0.5}}, "--learning_rate=0.5 differs from"),
        ({"train": {"batch_size": 32}}, "--batch_size=32 differs from 64"),
        ({"model": {"hidden_dim": 16}}, "hidden_dim=32 but this run asks for 16"),
        ({"seed": 5}, "--seed=5 differs from 0"),
    ]
    for change, sentence in refused:
        with pytest.raises(UserError, match=sentence) as caught:
            pinsage_jax.train(config_for(workdir, **change))
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before


def steps_on(workdir, devices, max_steps, **train):
    """Trains up to `max_steps` on `devices` faked devices."""
    train = {"checkpoint_every": 2, "devices": devices, "max_steps": max_steps, **train}
    return pinsage_jax.train(config_for(workdir, train=train))


@pytest.mark.parametrize(
    "train", [{}, {"in_batch": False}, {"loss": "margin"}],
    ids=["in_batch", "no_in_batch", "margin"],
)  # fmt: skip
def test_other_devices_go_on_for_the_loss_does_not_depend_on_them(train, workdir, saved):
    steps_on(workdir, 2, 2, **train)
    assert steps_on(workdir, 4, 4, **train).step == 4
    assert steps_on(workdir, 1, 6, **train).step == 6


def test_a_checkpoint_of_other_data_is_refused(workdir, saved, tmp_path):
    config = config_for(workdir, train={"max_steps": 3})
    pinsage_jax.train(config)
    other = dataclasses.replace(
        config,
        synthetic=SyntheticConfig(True, synthetic_catalog=dataclasses.replace(CATALOG, items=500)),
    )
    inputs = {path: path.stat().st_mtime_ns for path in (workdir / "inputs").iterdir()}
    with pytest.raises(UserError, match="catalog of 600 items but the tables have now 500"):
        prepare(other)
    assert {path: path.stat().st_mtime_ns for path in (workdir / "inputs").iterdir()} == inputs
    # Training refuses them too, in case they came by another way.
    elsewhere = dataclasses.replace(other, workdir=str(tmp_path / "elsewhere"))
    prepare(elsewhere)
    shutil.rmtree(workdir / "prepared")
    shutil.copytree(tmp_path / "elsewhere" / "prepared", workdir / "prepared")
    with pytest.raises(UserError, match="catalog of 600 items but the workdir holds"):
        pinsage_jax.train(other)


@pytest.mark.parametrize("checkpoint_every,log_every", [(1, 100), (100, 1)])
def test_a_loss_that_is_not_finite_stops_with_a_sentence(
    checkpoint_every, log_every, workdir, saved, monkeypatch
):
    train = {
        "learning_rate": 1e30,
        "warmup_epochs": 0.0,
        "checkpoint_every": checkpoint_every,
        "validate_every": 100,
        "log_every": log_every,
    }
    makers = []
    make = MinibatchBuilder.make

    def noting(self, step, *devices):
        makers.append(self)
        return make(self, step, *devices)

    monkeypatch.setattr(MinibatchBuilder, "make", noting)
    with pytest.raises(UserError, match=r"The loss is .*--learning_rate") as caught:
        pinsage_jax.train(config_for(workdir, train=train))
    assert "\n" not in str(caught.value)
    # The message names the first wrong step, whenever it is found, and the step can be repeated.
    (path,) = workdir.glob("not_finite_step_*.json")
    kept = json.loads(path.read_text())
    step = kept["step"]
    assert f"at step {step} (learning rate 4.91e+28; its batch is in {path})" in str(caught.value)
    assert (step, kept["epoch"], kept["seed"]) == (2, 1, 0)
    batch, _ = make(makers[0], step - 1)
    for name in ("query_ids", "target_ids", "negative_ids", "hard_ids"):
        assert kept[name] == getattr(batch, name)[0].tolist()
    assert len(kept["query_ids"]) == 64
    assert not prefetch_threads()
    # What is not finite is never checkpointed: it would be continued from for ever.
    for state in saved.values():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.timeout(300)
def test_a_batch_that_cannot_be_made_ends_the_run_and_the_next_one_goes_on(
    workdir, saved, whole, monkeypatch
):
    make = MinibatchBuilder.make

    def failing(self, step, *devices):
        if step == 7:
            raise MemoryError("a batch of our own making")
        return make(self, step, *devices)

    monkeypatch.setattr(MinibatchBuilder, "make", failing)
    with pytest.raises(MemoryError, match="of our own making"):
        pinsage_jax.train(config_for(workdir, train={"prefetch": 4, "producers": 2}))
    assert max(saved) == 6 and not prefetch_threads()
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        again = spy_on(patch)
        pinsage_jax.train(config_for(workdir))
    assert_same_bits(again[TOTAL], whole[0][TOTAL])


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch-")]


# It learns.


def hit_rate(vectors, pairs, k):
    """Share of pairs whose target is among the k best of the query, by plain sorting."""
    hits = 0
    for query, target in pairs:
        scores = vectors @ vectors[query]
        scores[query] = -np.inf
        hits += int((scores > scores[target]).sum()) < k
    return hits / len(pairs)


def planted_tables(folder, seed):
    """20 hidden groups of 20 items; collections follow them, features hardly show them.

    A feature vector is loud noise that means nothing, beside a quiet noisy sign of the
    group.  So features alone fail, and a network must learn which of them to read and
    that neighbors, pooled, say it more clearly.
    """
    rng = np.random.default_rng(seed)
    group = np.arange(400) % 20
    loud = rng.normal(size=(400, 8))
    quiet = np.eye(20)[group] + 0.5 * rng.normal(size=(400, 20))
    items = pa.table(
        {
            "item_id": [f"i{item}" for item in range(400)],
            "vector": np.hstack([loud, quiet]).astype(np.float32).tolist(),
        }
    )
    edges = {"collection_id": [], "item_id": []}
    for collection in range(250):
        own = np.flatnonzero(group == collection % 20)
        # One of eight items is there by accident.
        members = [*rng.choice(own, 7, replace=False), rng.integers(400)]
        edges["collection_id"] += [f"c{collection}"] * 8
        edges["item_id"] += [f"i{item}" for item in members]
    pairs = np.array([rng.permutation(np.flatnonzero(group == k % 20))[:2] for k in range(300)])
    columns = {"query_id": pairs[:, 0], "target_id": pairs[:, 1]}
    folder.mkdir()
    for name, table in (
        ("items", items),
        ("edges", pa.table(edges)),
        ("pairs", pa.table({k: [f"i{item}" for item in v] for k, v in columns.items()})),
    ):
        pq.write_table(table, folder / f"{name}.parquet")


def hit_rates(folder, seed=0):
    """hit@10 of raw features, of the untrained and of the trained network."""
    planted_tables(folder / "tables", seed)
    config = config_for(
        folder / "run",
        seed=seed,
        sampling={"content_neighbors": 0},
        model={"num_layers": 1, "spectral_dim": 0, "whiten": 0.0},
        train={
            "epochs": 6.0,
            "pairs_per_epoch": 1920,
            "batch_size": 128,
            "validate_every": 30,
            "checkpoint_every": 0,
            "learning_rate": 0.15,
            "edge_dropout": 0.0,
            "decay": 0.8,
        },
    )
    data = DataConfig(
        data_dir=str(folder / "tables"),
        edges="edges.parquet",
        items="items.parquet",
        eval_pairs="pairs.parquet",
    )
    config = dataclasses.replace(config, data=data, synthetic=SyntheticConfig())
    prepared = prepare(config)
    features = np.array(prepared.features, np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    # Without --spectral_dim there are no bases.
    bases = np.zeros((len(features), 0), np.float32)
    encoder = Encoder.over(config, prepared, prepared.graph, bases)
    _, params = init_model(config, encoder.inputs.dim, encoder.lists.source.num_nodes)
    untrained = encoder.embed(params, quiet=True)
    pinsage_jax.train(config)
    pinsage_jax.embed(config)
    found = (features, untrained, exported(config.workdir))
    return [hit_rate(vectors, prepared.eval_pairs, 10) for vectors in found]


def test_training_beats_content_and_the_untrained_network(tmp_path):
    """Pairs of one planted group, of which 10 hits of 19 are the most that can be had."""
    content, untrained, trained = hit_rates(tmp_path)
    assert trained > 0.35, (content, untrained, trained)
    assert trained > 3 * max(content, untrained), (content, untrained, trained)
