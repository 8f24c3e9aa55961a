"""The arena: judged as the project evaluates itself, settings from validation, peers told."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from scipy import sparse
from small_catalog import make_config, make_prepared, random_graph

from benchmarks.arena import __main__ as arena
from benchmarks.arena import closed_form, contestant, judging, lightgcn
from benchmarks.arena.peers import Peer, Train, Unavailable
from benchmarks.processes import Cost
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation.baselines import Popularity
from pinsage_jax.evaluation.evaluate import evaluate
from pinsage_jax.stages.runs import validation_split_of


def train_of(edges: np.ndarray) -> Train:
    items = len(edges)
    return Train(
        sparse.csr_matrix(edges.astype(np.float32)), None, np.empty((items, 0)), seed=0, threads=1
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A folder with the three tables of 60 items in 40 collections, and 40 pairs."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(1)
    topic = rng.integers(0, 4, 60)
    edges = {
        (collection, int(item))
        for collection in range(40)
        for item in rng.choice(np.flatnonzero(topic[:50] == collection % 4), 6)
    }
    pairs = {
        (int(query), int(target))
        for query in range(30)
        for target in rng.choice(np.flatnonzero(topic == topic[query]), 2)
        if query != target
    }
    collections, items = zip(*sorted(edges))
    queries, targets = zip(*sorted(pairs))
    write = pyarrow.csv.write_csv
    edges_table = {"collection_id": collections, "item_id": [f"i{item}" for item in items]}
    write(pa.table(edges_table), folder / "train_edges.csv")
    words = [f"word{topic[item]} thing{item % 7} word{topic[item]}" for item in range(60)]
    write(
        pa.table({"item_id": [f"i{item}" for item in range(60)], "text": words}),
        folder / "items.csv",
    )
    pairs_table = {"query_id": [f"i{q}" for q in queries], "target_id": [f"i{t}" for t in targets]}
    write(pa.table(pairs_table), folder / "eval_pairs.csv")
    return folder


@pytest.fixture(scope="module")
def config(tables, tmp_path_factory):
    """The settings of the tables, prepared as the command prepares them."""
    out = tmp_path_factory.mktemp("out")
    return arena.opened(arena.parse([f"--data_dir={tables}", f"--out={out}", "--threads=1"]))


def fake(fit, *grid, **about) -> Peer:
    return Peer("fake", about.pop("module", ""), "Fake", grid, fit, **about)


def test_judging_equals_the_evaluation_of_the_project(small_rng, tmp_path):
    graph = random_graph(small_rng, num_items=40, num_collections=12, edges=150)
    vectors = small_rng.integers(-2, 3, (40, 3)).astype(np.float32)
    pairs = {(int(q), int(t)) for q, t in small_rng.integers(0, 40, (150, 2)) if q != t}
    pairs = np.array(sorted(pairs | {(1, 39), (2, 38)}), np.int32)
    kinds = np.where(graph.degree()[pairs[:, 1]] == 0, "cold", "warm")
    prepared = make_prepared(graph, eval_pairs=pairs, eval_kinds=kinds.tolist())
    config = make_config(tmp_path, bootstrap=0, baselines="popularity")
    methods = evaluate(config, prepared, vectors)["methods"]
    models = {"pinsage": vectors, "popularity": Popularity(graph)}
    for name, model in models.items():
        ranks = judging.Fitted(name, {}, model).ranks(pairs, 40)
        found = judging.judge(ranks, pairs, kinds)
        assert set(found) == {"all", "warm", "cold"}
        for kind, values in found.items():
            expected = methods[name]["overall" if kind == "all" else "by_kind"][kind]
            assert values["pairs"] == expected["pairs"]
            for metric, value in expected["metrics"].items():
                assert values[metric] == pytest.approx(value["value"]), (name, kind, metric)


def test_settings_are_those_that_are_best_in_validation():
    truth = np.eye(6, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]
    truth *= np.array([1, 3, 1, 3, 1, 3], np.float32)[:, None]
    seen = []

    def fit(train, good):
        seen.append(train)
        return truth if good else np.zeros_like(truth)

    peer = fake(fit, {"good": False}, {"good": True})
    pairs, train = np.array([[0, 1], [2, 3], [5, 4]], np.int32), train_of(np.eye(6))
    # Among six items every rank is within ten; with a hundred more of no length it is not.
    truth = np.concatenate([truth, np.zeros((100, 6), np.float32)])
    train = train_of(np.eye(106))
    chosen = judging.choose_settings(peer, train, pairs)
    assert chosen.settings == {"good": True, "similarity": "inner product"}
    assert chosen.values == {
        "good False, similarity inner product": 1.0,
        "good False, similarity cosine": 1.0,
        "good True, similarity inner product": 2.0,
        "good True, similarity cosine": 2.0,
    }
    assert len(seen) == 2 and chosen.seconds > 0
    unlike = judging.fit_chosen(peer, train, {"good": True, "similarity": "cosine"})
    np.testing.assert_allclose(np.linalg.norm(unlike.model[:6], axis=1), 1.0)
    assert not unlike.model[6:].any()


def test_few_cold_pairs_count_as_much_as_all_warm_ones():
    """The first settings find three warm pairs, the others two of them and the cold one."""
    edges = np.eye(206)
    edges[5] = 0.0
    near = {True: {0: 1, 2: 3, 4: 6}, False: {0: 1, 2: 3, 4: 5}}

    def fit(train, warm):
        vectors = np.zeros((206, 3), np.float32)
        for place, pair in enumerate(near[warm].items()):
            vectors[list(pair), place] = 1.0
        return vectors

    pairs = np.array([[0, 1], [2, 3], [4, 6], [4, 5]], np.int32)
    chosen = judging.choose_settings(
        fake(fit, {"warm": True}, {"warm": False}), train_of(edges), pairs
    )
    assert chosen.settings["warm"] is False


def test_a_peer_learns_validation_edges_only_after_the_choice(config):
    split = validation_split_of(config, arena.open_prepared(config.workdir))
    edges = []

    def fit(train):
        edges.append(train.edges.nnz)
        return np.ones((train.edges.shape[0], 2), np.float32)

    found = contestant.compete(config, fake(fit, {}), {})
    whole = arena.open_prepared(config.workdir).graph.num_edges
    assert edges == [split.train_graph.num_edges, whole] and edges[0] < edges[1]
    # All items score alike, so that every target ranks in the middle.
    assert found["metrics"]["all"]["hit@10"] == 0.0 and found["metrics"]["all"]["hit@100"] == 1.0
    assert found["fit_seconds"] >= 0 and found["choice_seconds"] > 0


def test_ease_equals_its_definition():
    edges = np.random.default_rng(2).random((9, 30)) < 0.3
    edges[4] = False
    found = closed_form.ease(train_of(edges), l2=2.0).scores(np.arange(9, dtype=np.int32))
    known = np.flatnonzero(edges.any(axis=1))
    inverse = np.linalg.inv(edges[known] @ edges[known].T.astype(float) + 2.0 * np.eye(len(known)))
    expected = np.zeros((9, 9))
    expected[np.ix_(known, known)] = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rp3beta_equals_its_definition():
    edges = np.random.default_rng(3).random((7, 12)) < 0.4
    edges[2], edges[:, 5] = False, False
    found = closed_form.rp3beta(train_of(edges), alpha=0.7, beta=0.5)
    there = edges / np.maximum(edges.sum(axis=1, keepdims=True), 1)
    back = (edges / np.maximum(edges.sum(axis=0, keepdims=True), 1)).T
    expected = there**0.7 @ back**0.7 / np.maximum(edges.sum(axis=1), 1) ** 0.5
    np.testing.assert_allclose(found.scores(np.arange(7, dtype=np.int32)), expected, rtol=1e-5)


def test_what_is_missing_is_told_in_one_sentence(config, monkeypatch):
    monkeypatch.setitem(arena.PEERS, "fake", fake(None, {}, module="no_such_module"))
    assert arena.peer_result(config, "fake", {}) == {
        "skipped": "Fake is not installed (pip install 'pinsage-jax[arena]')"
    }
    monkeypatch.setitem(arena.PEERS, "fake", fake(None, {}, module="there", elsewhere=True))
    assert "--python=fake=PATH" in arena.peer_result(config, "fake", {})["skipped"]


def test_settings_that_need_what_is_lacking_are_left_out():
    def fit(train, words):
        if words:
            raise Unavailable("the items have no words")
        return np.ones((6, 2), np.float32)

    pairs, train = np.array([[0, 1]], np.int32), train_of(np.eye(6))
    chosen = judging.choose_settings(fake(fit, {"words": True}, {"words": False}), train, pairs)
    assert chosen.settings["words"] is False and len(chosen.values) == 2
    with pytest.raises(Unavailable, match="no words"):
        judging.choose_settings(fake(fit, {"words": True}), train, pairs)


def test_content_is_the_tf_idf_of_the_words(config):
    prepared = arena.open_prepared(config.workdir)
    train = contestant.training_data(prepared, prepared.graph, 0, 1, {})
    assert train.content.shape[0] == 60 and train.content.nnz >= 60
    unit = train.content.multiply(train.content).sum(axis=1)
    cosine = (train.content @ train.content.T).toarray() / np.sqrt(np.outer(unit, unit))
    # Items i0 and i7 share the word of their number modulo 7.
    rows = {name: row for row, name in enumerate(prepared.item_ids.ids.to_pylist())}
    assert cosine[rows["i0"], rows["i7"]] > 0


def test_the_command_measures_a_peer_in_its_own_process(tables, tmp_path, capsys, monkeypatch):
    answers = {"ease": RuntimeError("python ended with 1:\nTraceback\nMemoryError: too much")}
    measured = arena.processes.run

    def run(command, log):
        name = next(word for word in command if word.startswith("--peer=")).split("=")[1]
        if name in answers:
            raise answers[name]
        return measured(command, log)

    monkeypatch.setattr(arena.processes, "run", run)
    arguments = [f"--data_dir={tables}", f"--out={tmp_path}", "--threads=1"]
    assert arena.main([*arguments, "--peers=rp3beta,node2vec,ease"]) == 0
    saved = json.loads((tmp_path / "arena.json").read_text())["results"]
    found = saved["rp3beta"]
    assert found["peak_gib"] > 0.05 and 0 < found["fit_seconds"] < found["choice_seconds"]
    assert len(found["validation"]) == 6 and set(found["settings"]) == {"alpha", "beta"}
    assert found["metrics"]["all"]["pairs"] > 20
    printed = capsys.readouterr().out
    assert "fit min" in printed and "GiB" in printed
    assert "ease is skipped: it failed: MemoryError: too much." in printed
    assert "node2vec is skipped: it needs an environment with PecanPy" in printed


def test_the_run_stands_beside_the_peers(trained, tmp_path, capsys, monkeypatch):
    def run(command, log):
        result = next(word for word in command if word.startswith("--result=")).split("=", 1)[1]
        contestant.files.write_json(result, {"skipped": "it is not tried"})
        return Cost(1.0, 0.5, 0.25)

    monkeypatch.setattr(arena.processes, "run", run)
    assert arena.main([f"--workdir={trained.workdir}", "--peers=ease", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "arena.json").read_text())["results"]["pinsage"]
    with open(f"{trained.workdir}/eval.json") as file:
        expected = json.load(file)["methods"]["pinsage"]
    for kind, values in found["metrics"].items():
        group = expected["overall" if kind == "all" else "by_kind"][kind]
        for metric in judging.METRICS:
            assert values[metric] == pytest.approx(group["metrics"][metric]["value"])
    assert "ease is skipped: it is not tried." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either --data_dir or --workdir"),
        (["--workdir=w", "--peers=ngcf"], "ngcf is not one of"),
        (["--workdir=w", "--python=als=/bin/sh"], "a peer and a Python program are expected"),
    ],
)
def test_wrong_command_lines_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        arena.parse(arguments)
    assert message in capsys.readouterr().err


def test_tables_without_pairs_are_refused(tables, tmp_path):
    (tmp_path / "edges.csv").write_bytes((tables / "train_edges.csv").read_bytes())
    options = arena.parse([f"--data_dir={tmp_path}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="eval_pairs"):
        arena.opened(options)
    options.data_dir = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"no train_edges\.\* or edges\.\* table"):
        arena.opened(options)


@pytest.mark.parametrize("name", ["als", "bpr", "item_knn", "lightfm", "item2vec"])
def test_a_peer_by_its_own_code_finds_items_of_a_collection(name, config):
    peer = contestant.PEERS[name]
    pytest.importorskip(peer.module)
    prepared = arena.open_prepared(config.workdir)
    train = contestant.training_data(prepared, prepared.graph, 0, 1, {})
    settings = dict(peer.grid[-1])
    if name == "item2vec":
        settings["sample"] = 0.0  # of so few sequences nothing is to be left out
    if name != "item_knn":
        settings["similarity"] = "cosine"
    fitted = judging.fit_chosen(peer, train, settings)
    matrix = train.edges.toarray()
    together = np.argwhere(np.triu(matrix @ matrix.T, 1) > 1).astype(np.int32)
    ranks = fitted.ranks(together, 60)
    # Of 59 candidates; by chance the median is 30.
    assert np.median(ranks) < 15


def test_lightgcn_hands_edges_to_its_environment_and_takes_vectors_back(monkeypatch):
    edges = np.random.default_rng(4).random((6, 9)) < 0.4

    def run(command, check, env):
        assert command[0] == "/env/python" and command[1] == "-I" and check
        plan = json.loads(command[3])
        assert (plan["items"], plan["collections"], plan["penalty"]) == (6, 9, 0.5)
        with np.load(plan["edges"], allow_pickle=False) as saved:
            found = np.zeros_like(edges)
            found[saved["items"], saved["collections"]] = True
        np.testing.assert_array_equal(found, edges)
        np.save(plan["out"], np.full((6, plan["dim"]), 0.5, np.float32))

    monkeypatch.setattr(lightgcn.subprocess, "run", run)
    train = dataclasses.replace(train_of(edges), pythons={"lightgcn": "/env/python"})
    assert lightgcn.lightgcn(train, 0.1, 0.5).shape == (6, 64)
