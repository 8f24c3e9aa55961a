"""Each baseline against a slow reference on small random graphs with isolated items."""

import math
import sys
import types

import numpy as np
import pytest
from small_catalog import make_config, random_graph

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import baseline_choice, baselines, baselines_fusion, baselines_graph
from pinsage_jax.evaluation.baseline_choice import (
    DEFAULT,
    NAMES,
    Baselines,
    ItemContent,
    parse_baselines,
    position,
)
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.sampling import steered_walks


def dense(graph: Graph) -> np.ndarray:
    """The incidence matrix float64 [N, C], filled edge by edge."""
    matrix = np.zeros((graph.num_items, graph.num_collections))
    for item in range(graph.num_items):
        for edge in range(graph.indptr[item], graph.indptr[item + 1]):
            weight = 1.0 if graph.weights is None else graph.weights[edge]
            matrix[item, graph.indices[edge] - graph.num_items] = weight
    return matrix


def cosine(rows: np.ndarray) -> np.ndarray:
    """Cosine of all pairs of rows; 0 with a row of zeros."""
    result = np.zeros((len(rows), len(rows)))
    for a, first in enumerate(rows):
        for b, second in enumerate(rows):
            size = np.linalg.norm(first) * np.linalg.norm(second)
            result[a, b] = first @ second / size if size else 0.0
    return result


def solved_pagerank(graph: Graph, restart: float) -> np.ndarray:
    """p = restart (I - (1 - restart) P')^-1 e by a dense solve over all nodes."""
    items, total = graph.num_items, graph.num_nodes
    matrix = np.zeros((total, total))
    matrix[:items, items:] = dense(graph)
    matrix[items:, :items] = dense(graph).T
    sums = matrix.sum(axis=1, keepdims=True)
    step = np.divide(matrix, sums, out=np.zeros_like(matrix), where=sums > 0)
    return restart * np.linalg.inv(np.eye(total) - (1 - restart) * step.T)[:items, :items].T


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def graph(request, small_rng) -> Graph:
    return random_graph(small_rng, weighted=request.param)


def everyone(graph: Graph) -> np.ndarray:
    return np.arange(graph.num_items, dtype=np.int32)


def test_popularity_is_the_degree(graph):
    scores = baselines.Popularity(graph).scores(np.array([4, 0]))
    degree = [np.count_nonzero(row) for row in dense(graph)]
    np.testing.assert_array_equal(scores, [degree, degree])
    by_weight = baselines.Popularity(graph, by_weight=True).scores(np.array([4]))
    np.testing.assert_allclose(by_weight, [dense(graph).sum(axis=1)], rtol=1e-5)


def test_content_is_the_cosine_of_features(graph, small_rng, monkeypatch):
    features = small_rng.normal(size=(graph.num_items, 6)).astype(np.float16)
    features[3] = 0
    monkeypatch.setattr(baselines, "_FEATURE_ROWS", 7)
    scores = baselines.Content(features).scores(everyone(graph))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, cosine(features.astype(np.float64)), atol=1e-6)


def test_walk_is_the_visit_count_and_follows_pagerank(graph):
    sampling = SamplingConfig(num_walks=3000, walk_length=6, restart=0.3)
    scorer = baselines.Walk(graph, sampling, seed=1, threads=2)
    scores = scorer.scores(everyone(graph))
    assert scorer.settings["num_walks"] == 30000
    # The exact probability of each item after each step from item to item.
    matrix = dense(graph)
    over_items = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-12)
    over_collections = matrix.T / np.maximum(matrix.T.sum(axis=1, keepdims=True), 1e-12)
    step = over_items @ over_collections
    start = position = np.eye(graph.num_items)
    expected = np.zeros_like(start)
    for number in range(6):
        if number:
            position = 0.7 * position + 0.3 * start
        position = position @ step
        expected += position
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(scores / 30000, expected, atol=0.03)
    isolated = np.flatnonzero(matrix.sum(axis=1) == 0)
    assert len(isolated) >= 5 and not scores[isolated].any() and not scores[:, isolated].any()


def test_item_knn_is_the_cosine_of_collections(graph):
    queries = everyone(graph)[::-1]
    scores = baselines_graph.ItemKnn(graph).scores(queries)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, cosine(dense(graph))[queries], atol=1e-6)


@pytest.mark.parametrize("restart", [0.15, 0.5])
def test_pagerank_equals_the_dense_solution(graph, restart, monkeypatch):
    monkeypatch.setattr(baselines_graph, "_PAGERANK_QUERIES", 4)
    scores = baselines_graph.PageRank(graph, restart, threads=2).scores(everyone(graph))
    np.testing.assert_allclose(scores, solved_pagerank(graph, restart), atol=2e-5)


def test_pagerank_of_all_restarts_at_once(graph):
    scorer = baselines_graph.PageRank(graph)
    together = scorer.scores_by_restart(everyone(graph), (0.15, 0.3, 0.5))
    for restart, scores in zip((0.15, 0.3, 0.5), together):
        np.testing.assert_allclose(scores, solved_pagerank(graph, restart), atol=2e-5)


def fake_implicit(monkeypatch, seen):
    """A module with the interface of implicit; an item's factors are its edges."""

    class AlternatingLeastSquares:
        def __init__(self, **settings):
            seen["settings"] = settings

        def fit(self, user_items, show_progress):
            seen["shape"] = user_items.shape
            self.item_factors = np.asarray(user_items.todense(), np.float32).T

    package, module = types.ModuleType("implicit"), types.ModuleType("implicit.als")
    module.AlternatingLeastSquares = AlternatingLeastSquares
    monkeypatch.setitem(sys.modules, "implicit", package)
    monkeypatch.setitem(sys.modules, "implicit.als", module)


def test_als_is_the_inner_product_of_item_factors(graph, monkeypatch):
    seen = {}
    fake_implicit(monkeypatch, seen)
    scores = baselines_graph.Als(graph, 10.0, seed=4, threads=1).scores(everyone(graph))
    # Collections are ALS's users; with their rows as factors ALS counts shared ones.
    assert seen["shape"] == (graph.num_collections, graph.num_items)
    assert seen["settings"]["random_state"] == 4 and seen["settings"]["alpha"] == 10.0
    np.testing.assert_allclose(scores, dense(graph) @ dense(graph).T, rtol=1e-5, atol=1e-6)


def test_without_implicit_als_is_skipped_with_a_reason(graph, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "implicit", None)
    monkeypatch.setitem(sys.modules, "implicit.als", None)
    chosen = Baselines(
        make_config(tmp_path, baselines="als"), graph, ItemContent(np.empty((30, 0))), None, 1
    )
    assert [made.name for made in chosen.build(("als", "popularity"))] == ["popularity"]
    assert "pip install" in chosen.skipped["als"]


def test_row_ranks_equal_the_tie_rule(small_rng):
    scores = small_rng.integers(0, 4, (5, 23)).astype(np.float32)
    ranks = baselines_fusion.row_ranks(scores)
    for row, line in enumerate(scores):
        for column, score in enumerate(line):
            equal = np.count_nonzero(line == score) - 1
            assert ranks[row, column] == 1 + np.count_nonzero(line > score) + math.ceil(equal / 2)


def test_late_fusion_is_the_weighted_sum(graph, small_rng):
    features = small_rng.normal(size=(graph.num_items, 4)).astype(np.float32)
    content, knn = baselines.Content(features), baselines_graph.ItemKnn(graph)
    fused = baselines_fusion.LateFusion(content, knn, 0.2).scores(everyone(graph))
    wanted = 0.2 * cosine(features.astype(np.float64)) + 0.8 * cosine(dense(graph))
    np.testing.assert_allclose(fused, wanted, atol=1e-6)


class Fixed:
    """A baseline with given scores."""

    def __init__(self, scores, name="fixed"):
        self.name, self.settings, self._scores = name, {}, np.asarray(scores, np.float32)

    def scores(self, query_ids):
        return self._scores[query_ids]


def test_rank_fusion_adds_reciprocal_ranks_without_the_query():
    first = Fixed([[9, 3, 2, 1], [0, 0, 0, 0], [0] * 4, [0] * 4])
    second = Fixed([[0, 1, 2, 3], [0, 9, 0, 0], [0] * 4, [0] * 4])
    scores = baselines_fusion.RankFusion(first, second).scores(np.array([0, 1]))
    wanted = [1 / 61 + 1 / 63, 1 / 62 + 1 / 62, 1 / 63 + 1 / 61]
    np.testing.assert_allclose(scores[0, 1:], wanted, rtol=1e-6)
    # Three ties without the query: rank 1 + ceil(2 / 2) in both lists.
    np.testing.assert_allclose(scores[1, [0, 2, 3]], 2 / 62, rtol=1e-6)


def test_rank_pairs_equals_ranking_by_hand(small_rng, monkeypatch):
    table = small_rng.integers(0, 5, (20, 20))
    pairs = np.array([(q, t) for q, t in small_rng.integers(0, 20, (90, 2)) if q != t])
    wanted = []
    for query, target in pairs:
        others = [table[query, item] for item in range(20) if item not in (query, target)]
        best = table[query, target]
        wanted.append(1 + sum(o > best for o in others) + -(-sum(o == best for o in others) // 2))
    for cells in (1 << 25, 60):
        monkeypatch.setattr(baselines, "_MAX_SCORES", cells)
        assert baselines.rank_pairs(Fixed(table), pairs, 20).tolist() == wanted


def test_choose_takes_the_best_value_and_the_earlier_of_equals(small_rng):
    pairs = np.array([[0, 1], [2, 3]])
    good, bad = np.zeros((300, 300), np.float32), np.zeros((300, 300), np.float32)
    good[0, 1] = good[2, 3] = 1
    bad[0, 1] = bad[2, 3] = -1

    def scored(queries):
        return [bad[queries], good[queries], good[queries]]

    choice = baselines_fusion.choose((0.1, 0.2, 0.3), scored, pairs, 300, seed=0)
    assert choice.value == 0.2
    assert choice.objective == {"0.1": 0.0, "0.2": 2.0, "0.3": 2.0}


def split_of(graph, pairs):
    none = np.empty(0, np.int32)
    return ValidationSplit(graph, none, none, np.asarray(pairs), np.array(["warm"] * len(pairs)))


def test_settings_are_chosen_on_validation_pairs_and_their_graph(small_rng, tmp_path):
    """Content alone finds the validation targets, so late fusion must lean on content."""
    graph = random_graph(small_rng, num_items=400, num_collections=6, edges=400)
    features = small_rng.normal(size=(400, 8)).astype(np.float32)
    twins = features[:100] + 0.01 * small_rng.normal(size=(100, 8)).astype(np.float32)
    features[200:300] = twins
    pairs = np.stack([np.arange(100), np.arange(200, 300)], axis=1)
    config = make_config(tmp_path)
    chosen = Baselines(config, graph, ItemContent(features), split_of(graph, pairs), 1)
    made = {
        baseline.name: baseline
        for baseline in chosen.build(("fusion", "pagerank", "fusion_pagerank"))
    }
    assert made["fusion"].settings["content_weight"] > 0.5
    assert made["fusion"].settings["chosen_on"] == "validation pairs"
    assert set(made["pagerank"].settings["candidates"]) == {"0.15", "0.3", "0.5"}
    assert made["fusion_pagerank"].settings["restart"] == made["pagerank"].settings["restart"]
    # The withheld graph decides: with the edges of another graph the objective changes.
    other = random_graph(small_rng, num_items=400, num_collections=40, edges=400)
    again = Baselines(config, graph, ItemContent(features), split_of(other, pairs), 1)
    found = next(again.build(("pagerank",))).settings["candidates"]
    assert found != made["pagerank"].settings["candidates"]


def test_als_is_tuned_on_validation_pairs(small_rng, tmp_path, monkeypatch):
    fake_implicit(monkeypatch, {})
    graph = random_graph(small_rng)
    pairs = np.array([[0, 1], [2, 3]])
    chosen = Baselines(
        make_config(tmp_path), graph, ItemContent(np.ones((30, 2))), split_of(graph, pairs), 1
    )
    settings = next(chosen.build(("als",))).settings
    # The stand-in ignores alpha, so the three tie and the default stays.
    assert settings["alpha"] == 40.0 and set(settings["candidates"]) == {"40", "10", "1"}


def test_without_validation_pairs_the_defaults_are_used_and_logged(graph, tmp_path):
    empty = split_of(graph, np.empty((0, 2), np.int32))
    for validation in (None, empty):
        chosen = Baselines(
            make_config(tmp_path), graph, ItemContent(np.ones((30, 2))), validation, 1
        )
        fusion, pagerank = chosen.build(("fusion", "pagerank"))
        assert fusion.settings["content_weight"] == 0.5
        assert pagerank.settings["restart"] == 0.15
        assert "nothing" in pagerank.settings["chosen_on"]


def test_without_features_content_and_its_fusions_are_skipped(graph, tmp_path, monkeypatch):
    fake_implicit(monkeypatch, {})
    chosen = Baselines(
        make_config(tmp_path), graph, ItemContent(np.empty((30, 0), np.float32)), None, 1
    )
    made = [baseline.name for baseline in chosen.build(NAMES)]
    assert made == ["popularity", "walk", "item_knn", "pagerank", "als"]
    assert set(chosen.skipped) == {"content", "steered", "fusion", "fusion_pagerank"}


def test_every_baseline_runs_on_a_graph_without_edges(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit", None)
    none = np.empty(0, np.int32)
    graph = Graph.from_edges(none, none, 6, 2)
    chosen = Baselines(
        make_config(tmp_path), graph, ItemContent(np.eye(6, dtype=np.float32)), None, 1
    )
    for baseline in chosen.build(NAMES):
        scores = baseline.scores(np.array([0, 5], np.int32))
        assert scores.shape == (2, 6) and np.isfinite(scores).all(), baseline.name


def test_parse_baselines():
    assert parse_baselines("default") == DEFAULT
    assert {"pagerank", "steered", "als", "content_columns"} <= set(DEFAULT)
    assert parse_baselines("all") == NAMES
    assert parse_baselines("none") == () == parse_baselines("")
    assert parse_baselines("als, walk,als,default")[:4] == ("als", "walk", "popularity", "content")
    with pytest.raises(UserError, match="knn is not one of popularity"):
        parse_baselines("walk,knn")


BLOCKS = (
    {"kind": "dense", "columns": ["image"], "width": 3},
    {"kind": "numeric", "columns": ["price"], "width": 1},
    {"kind": "text", "columns": ["title", "about it"], "width": 2},
)


def test_every_feature_column_is_a_baseline_of_its_own(graph, small_rng, tmp_path):
    features = small_rng.normal(size=(graph.num_items, 6)).astype(np.float32)
    content = ItemContent(features, blocks=BLOCKS)
    chosen = Baselines(make_config(tmp_path), graph, content, None, 1)
    made = {baseline.name: baseline for baseline in chosen.build(("content_columns",))}
    # A number has no direction.
    assert list(made) == ["content_image", "content_title_about_it"]
    for name, columns in (("content_image", slice(0, 3)), ("content_title_about_it", slice(4, 6))):
        wanted = cosine(features[:, columns].astype(np.float64))
        np.testing.assert_allclose(made[name].scores(everyone(graph)), wanted, atol=1e-6)
    # One block is all of the content, and projected features have no columns of blocks.
    assert ItemContent(features[:, :3], blocks=BLOCKS[:1]).by_column() == {}
    assert ItemContent(features[:, :4], blocks=BLOCKS).by_column() == {}


def test_of_many_columns_the_widest_are_baselines_with_names_of_their_own(small_rng, monkeypatch):
    monkeypatch.setattr(baseline_choice, "_MAX_COLUMNS", 2)
    blocks = [
        {"kind": "categorical", "columns": [name], "width": width}
        for name, width in (("a b", 2), ("c", 1), ("a-b", 4))
    ]
    found = ItemContent(small_rng.normal(size=(5, 7)), blocks=blocks).by_column()
    assert found == {"content_a_b": slice(0, 2), "content_a_b_1": slice(3, 7)}


def test_words_of_a_text_are_a_baseline(graph, small_rng, tmp_path):
    terms = small_rng.permuted(np.tile(np.arange(9, dtype=np.int32), (30, 1)), axis=1)[:, :4]
    weights = small_rng.uniform(0.1, 1, (30, 4)).astype(np.float32)
    weights[7] = 0
    words = np.concatenate([terms, weights.view(np.int32)], axis=1)
    rows = np.zeros((30, 9))
    np.put_along_axis(rows, terms, weights, axis=1)
    content = ItemContent(np.ones((30, 2), np.float32), words)
    chosen = Baselines(make_config(tmp_path), graph, content, None, 2)
    (found,) = chosen.build(("content_columns",))
    assert found.name == "content_words"
    np.testing.assert_allclose(found.scores(everyone(graph)), cosine(rows), atol=1e-6)


def test_steered_walks_follow_the_content_and_are_tuned_on_validation_pairs(graph, tmp_path):
    config = make_config(tmp_path)
    features = np.eye(30, dtype=np.float32)[np.arange(30) % 3]
    pairs = np.array([[0, 3], [1, 4], [2, 5]])
    content = ItemContent(features)
    chosen = Baselines(config, graph, content, split_of(graph, pairs), 1)
    (steered,) = chosen.build(("steered",))
    assert set(steered.settings["candidates"]) == {"2", "4", "8"}
    queries, cosines = everyone(graph), baselines.Content(features).scores(everyone(graph))
    wanted = steered_walks.visit_probabilities(
        graph, queries, cosines, config.sampling, 1, steered.settings["steering"]
    )
    np.testing.assert_array_equal(steered.scores(queries), wanted)


def test_the_default_leaves_out_what_takes_long_and_als_without_its_extra(
    graph, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "implicit", None)
    monkeypatch.setitem(sys.modules, "implicit.als", None)
    monkeypatch.setattr(baseline_choice, "_MAX_PAGERANK_WORK", graph.num_edges * 10 - 1)
    content = ItemContent(np.ones((30, 2), np.float32))
    made = {}
    for text in ("default", "default,pagerank", "all"):
        config = make_config(tmp_path, baselines=text)
        chosen = Baselines(config, graph, content, None, 1, queries=10)
        made[text] = [one.name for one in chosen.build(parse_baselines(text))], chosen.skipped
    names, skipped = made["default"]
    assert names == ["popularity", "content", "walk", "steered"]
    assert set(skipped) == {"pagerank"} and "--baselines=default,pagerank" in skipped["pagerank"]
    assert "pagerank" in made["default,pagerank"][0] and "pagerank" in made["all"][0]
    assert set(made["all"][1]) == {"als"}


def test_methods_of_an_evaluation_are_in_the_order_of_all_baselines():
    names = ["walk", "pinsage", "content_image", "content", "popularity"]
    assert sorted(names, key=position) == [
        "pinsage", "popularity", "content", "content_image", "walk",
    ]  # fmt: skip
