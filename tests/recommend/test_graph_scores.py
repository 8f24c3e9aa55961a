"""Scores by the graph and their choice, against dense matrices and sorting."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from command_line import parsed

from pinsage_jax.config.data import SplitConfig
from pinsage_jax.config.search import RecommendConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import validation_split
from pinsage_jax.recommend import choice as choosing
from pinsage_jax.recommend import graph_choice, metrics, recommend
from pinsage_jax.recommend import graph_scores as gs
from pinsage_jax.recommend import scores as rs
from pinsage_jax.recommend.choice import (
    Choice,
    _with_histories,
    choose,
    graph_scorer,
    validation_users,
)
from pinsage_jax.recommend.graph_choice import GraphChoice, gains
from pinsage_jax.recommend.graph_scores import Exponents
from pinsage_jax.recommend.recommender import Recommender
from pinsage_jax.sampling import spectral
from pinsage_jax.sampling.spectral import item_bases

ITEMS, USERS, WIDTH = 90, 70, 5


def planted_graph(weighted: bool) -> Graph:
    """Three groups of items and users; item 0 and user 0 have no edge."""
    rng = np.random.default_rng(3)
    edges = set()
    while len(edges) < 700:
        item, user = int(rng.integers(1, ITEMS)), int(rng.integers(1, USERS))
        if item % 3 == user % 3 or rng.random() < 0.1:
            edges.add((item, user))
    pairs = np.array(sorted(edges), np.int32)
    weights = rng.uniform(0.5, 2, len(pairs)).astype(np.float32) if weighted else None
    return Graph.from_edges(pairs[:, 0], pairs[:, 1], ITEMS, USERS, weights)


@functools.cache
def dense(graph: Graph) -> np.ndarray:
    matrix = np.zeros((ITEMS, USERS))
    for item in range(ITEMS):
        span = slice(graph.indptr[item], graph.indptr[item + 1])
        weights = 1.0 if graph.weights is None else graph.weights[span]
        matrix[item, graph.indices[span] - ITEMS] = weights
    return matrix


def vectors_of(seed: int = 1) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(ITEMS, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow_cooccurrence(graph: Graph, history, exponents: Exponents) -> np.ndarray:
    matrix, degree = dense(graph), np.maximum(graph.degree(), 1).astype(float)
    total = np.zeros(ITEMS)
    for item in history:
        shared = (matrix[item] * degree[ITEMS:] ** exponents.collection) @ matrix.T
        total += degree[item] ** exponents.history * shared
    return total * degree[:ITEMS] ** exponents.item


@functools.cache
def left_vectors(graph: Graph) -> np.ndarray:
    matrix, degree = dense(graph) > 0, np.maximum(graph.degree(), 1).astype(float)
    normal = matrix / np.sqrt(degree[:ITEMS, None]) / np.sqrt(degree[None, ITEMS:])
    return np.linalg.svd(normal)[0]


def slow_spectral(graph: Graph, history, width: int) -> np.ndarray:
    """The low-pass filter of the binary matrix, from a full singular value decomposition."""
    left, degree = left_vectors(graph)[:, :width], np.maximum(graph.degree(), 1)
    total = np.zeros(ITEMS)
    for item in history:
        total += left @ left[item] / np.sqrt(degree[item])
    return total * np.sqrt(degree[:ITEMS])


def slow_network(graph: Graph, history, choice: Choice, vectors) -> np.ndarray:
    degree = graph.degree()[:ITEMS]
    total = np.zeros(ITEMS)
    for item in history:
        similar = np.exp((vectors @ vectors[item] - graph_choice.NETWORK_BOUND) / choice.value)
        total += similar * (1.0 + degree[item]) ** -choice.rarity
    return total * (1.0 + degree) ** choice.popularity


GRAPH_CHOICE = GraphChoice(Exponents(-0.7, -0.4, -0.2), 3, (1.0, 0.4, 0.3), "attention")


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("by", gs.GRAPH_METHODS)
def test_scores_are_those_of_dense_matrices(by, weighted, few, monkeypatch):
    if not few:
        monkeypatch.setattr(gs, "_FEW_USERS", 0)
    graph, vectors = planted_graph(weighted), vectors_of()
    degree = np.maximum(graph.degree()[:ITEMS, None], 1)
    bases = (left_vectors(graph)[:, : GRAPH_CHOICE.width] / np.sqrt(degree)).astype(np.float32)
    choice = Choice(by, 0.4, 0.2, 0.6, GRAPH_CHOICE)
    scorer = graph_scorer(choice, graph, bases, vectors, 1)
    histories = rs.histories_of(graph)
    ids, scores = rs.best_items(scorer, histories, ITEMS, 10, scan=rs.Scan(2, 13))
    for user in range(USERS):
        history = histories.of(user)
        parts = (
            slow_cooccurrence(graph, history, GRAPH_CHOICE.exponents),
            slow_spectral(graph, history, GRAPH_CHOICE.width),
            slow_network(graph, history, choice, vectors),
        )
        score = {"cooccurrence": parts[0], "spectral": parts[1]}.get(by)
        if score is None:
            score = np.dot(GRAPH_CHOICE.weights, parts)
        order = sorted(set(range(ITEMS)) - set(history), key=lambda item: -score[item])
        np.testing.assert_allclose(scores[user], score[order[:10]], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(score[ids[user]], scores[user], rtol=1e-4, atol=1e-5)
        assert set(ids[user]).isdisjoint(history)


def test_variants_differ_in_the_exponent_of_the_listed_item():
    graph = planted_graph(False)
    histories = rs.histories_of(graph)
    both = gs.Cooccurrence(graph, Exponents(), (0.0, -0.5))
    ids, scores = rs.best_of_variants(both, histories, ITEMS, 5, 2)
    for row, item in enumerate((0.0, -0.5)):
        alone = gs.Cooccurrence(graph, Exponents(item=item))
        expected = rs.best_items(alone, histories, ITEMS, 5)
        np.testing.assert_array_equal(ids[row], expected[0])
        np.testing.assert_array_equal(scores[row], expected[1])


def withheld(weighted: bool = False):
    graph = planted_graph(weighted)
    split = validation_split(graph, SplitConfig(0.3, 0.0, 100), 7)
    return graph, split, validation_users(graph, split, vectors_of(), 7)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_validation_graph_lacks_nothing_but_held_out_edges(weighted):
    graph, split, users = withheld(weighted)
    matrix, found = dense(graph), dense(users.graph)
    changed = np.argwhere(matrix != found)
    assert set(changed[:, 1]) <= set(split.collections)
    assert (found[changed[:, 0], changed[:, 1]] == 0).all()
    histories = {tuple(users.histories.of(user)) for user in range(len(users.histories))}
    for collection in split.collections:
        present = tuple(np.flatnonzero(found[:, collection]))
        assert not present or present in histories
    assert sum(found[:, collection].any() for collection in split.collections) == len(histories)


def test_the_graphs_scores_win_where_the_vectors_are_noise(monkeypatch):
    monkeypatch.setattr(graph_choice, "WIDTHS", (3, 6, 12))
    _, _, users = withheld()
    choice, tried = choose(RecommendConfig(), users, 1)
    assert choice.by in gs.GRAPH_METHODS
    assert {row["by"] for row in tried} >= {"power", "mean", "cooccurrence", "spectral"}
    best = {
        by: max(row["ndcg@20"] for row in tried if row["by"] == by) for by in ("power", "spectral")
    }
    assert best["spectral"] > best["power"]
    # What is written can be read, and scores as it did in validation.
    kept = Choice.from_json(json.loads(json.dumps(dataclasses.asdict(choice))))
    assert kept == choice
    bases = item_bases(users.graph, choice.graph.width, users.seed)
    recommender = Recommender(
        RecommendConfig(), kept, users.vectors, users.degree, 1, graph=users.graph, bases=bases
    )
    ids, _ = recommender.top_k(users.histories, metrics.DEPTH)
    values = metrics.per_user(ids, users.held_out, np.diff(users.held_out.indptr))
    row = next(
        row
        for row in tried
        if row["by"] == choice.by and row["graph"] == dataclasses.asdict(choice)["graph"]
    )
    assert values.mean(axis=0)[1] == pytest.approx(row["ndcg@20"], abs=0.02)


@pytest.mark.parametrize("by", gs.GRAPH_METHODS)
def test_a_method_that_is_named_is_taken(by, monkeypatch):
    monkeypatch.setattr(graph_choice, "WIDTHS", (3, 6))
    _, _, users = withheld()
    choice, tried = choose(RecommendConfig(recommend_by=by), users, 1)
    assert choice.by == by
    assert ("spectral" in {row["by"] for row in tried}) == (by != "cooccurrence")
    assert choose(RecommendConfig(recommend_by=by), None, 1)[0].by == "cooccurrence"


def test_a_choice_is_told_in_words():
    mixed = Choice("mixed", 0.4, 0.2, 0.6, GRAPH_CHOICE)
    alone = dataclasses.replace(GRAPH_CHOICE, weights=(1.0, 0.0, 0.0))
    assert [str(dataclasses.replace(mixed, by=by)) for by in ("spectral", "cooccurrence")] == [
        "spectral vectors of 3 dimensions",
        "co-occurrence (exponents -0.7, -0.4, -0.2)",
    ]
    assert str(mixed) == (
        "co-occurrence (exponents -0.7, -0.4, -0.2) and spectral vectors of 3 dimensions "
        "and the network's attention"
    )
    assert str(dataclasses.replace(mixed, graph=alone)) == str(
        dataclasses.replace(mixed, by="cooccurrence")
    )
    assert str(Choice("mean")) == "the history's mean"
    assert str(Choice("attention", 0.15)) == (
        "attention (exponents of popularity 0.25 and of rarity 0.5, temperature 0.15)"
    )


def test_a_gain_is_more_than_a_standard_error():
    other = np.zeros((100, 2))
    level, better = other.copy(), other.copy()
    level[:2, 1], better[:, 1] = 0.5, 0.01
    assert gains(better, other) and not gains(level * [1, -1], other) and not gains(other, other)


def test_vectors_are_saved_once(tmp_path, monkeypatch):
    graph = planted_graph(False)
    config = parsed(f"--workdir={tmp_path}", "--synthetic")
    choice = Choice("spectral", graph=GraphChoice(width=4))
    first = recommend.spectral_bases(config, choice, graph)
    monkeypatch.setattr(spectral, "item_bases", None)
    np.testing.assert_array_equal(recommend.spectral_bases(config, choice, graph), first)
    assert (tmp_path / recommend.VECTORS_FOLDER / "manifest.json").exists()
    assert recommend.spectral_bases(config, Choice("power"), graph).shape == (ITEMS, 0)


def test_histories_that_training_had_are_added_once():
    graph = planted_graph(True)
    histories = rs.histories_of(graph)
    everyone = np.arange(USERS)
    again = _with_histories(graph.without(collections=everyone), graph, everyone, histories)
    np.testing.assert_array_equal(dense(again), dense(graph))


def test_the_highest_mean_is_chosen_and_of_equal_ones_the_simpler(monkeypatch):
    rng = np.random.default_rng(3)
    lists, noise = rng.random((50, 2)), np.tile([[0.2], [-0.2]], (25, 2))

    def chosen(mixed):
        tried = [(Choice("mixed", graph=GRAPH_CHOICE), mixed)]
        tried += [(Choice("cooccurrence", graph=GRAPH_CHOICE), lists)]
        monkeypatch.setattr(choosing, "_network_candidates", lambda *_: [])
        monkeypatch.setattr(choosing, "_graph_candidates", lambda *_: tried)
        users = dataclasses.make_dataclass("Users", ["graph"])(object())
        return choosing.choose(RecommendConfig(), users, 1)[0].by

    # A gain within the noise is a gain.
    assert chosen(lists + noise + 0.001) == "mixed"
    assert chosen(lists) == chosen(lists + noise - 0.001) == "cooccurrence"
