"""list_statistics.py and popularity.py against sums by hand and scores by definition."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from small_catalog import make_config, make_prepared, random_graph

from pinsage_jax.config.search import SearchConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation.baselines import Popularity, Walk, top_items
from pinsage_jax.evaluation.evaluate import POPULARITY_WEIGHTS, evaluate
from pinsage_jax.retrieval import ann
from pinsage_jax.retrieval.list_statistics import list_statistics, sampled_queries
from pinsage_jax.retrieval.online import weigh_popularity
from pinsage_jax.retrieval.topk import top_k


def test_statistics_equal_sums_by_hand():
    ids = np.array([[1, 2, 3], [1, 2, -1], [1, -1, -1], [0, 1, 5]])
    degree, collections = np.array([0, 7, 3, 1, 2, 0]), 15
    found = list_statistics(ids, degree, collections)
    places = [1, 2, 3, 1, 2, 1, 0, 1, 5]
    counts = [places.count(item) for item in range(6)]
    assert counts == [1, 4, 2, 1, 0, 1]
    assert found["queries"] == 4
    assert found["coverage"] == pytest.approx(5 / 6)
    gaps = sum(abs(a - b) for a, b in itertools.product(counts, counts))
    assert found["gini"] == pytest.approx(gaps / (2 * 6 * sum(counts)))
    assert found["top_1_percent"] == pytest.approx(4 / 9)  # one item of six, at least one
    assert found["most_listed"] == 1.0 and found["most_listed_row"] == 1
    assert found["mean_degree"] == pytest.approx(sum(degree[places]) / 9)
    surprise = [-math.log2((degree[item] + 1) / 16) for item in places]
    assert found["novelty"] == pytest.approx(sum(surprise) / 9)


def test_empty_lists_and_a_large_catalog():
    empty = list_statistics(np.full((3, 2), -1), np.zeros(4, np.int32), 0)
    assert empty["coverage"] == 0.0 and empty["most_listed_row"] is None
    assert list(sampled_queries(4)) == [0, 1, 2, 3] and len(sampled_queries(0)) == 0
    assert len(sampled_queries(50_000)) == 10_000 and len(sampled_queries(1 << 24)) == 128


@pytest.fixture
def vectors(small_rng):
    rows = small_rng.normal(size=(60, 5)).astype(np.float32)
    rows[:, -1] = 1 + np.abs(rows[:, -1])
    return rows


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_last_coordinate_counts_by_its_weight(vectors, weight):
    weighted = weigh_popularity(vectors, weight, True)
    cosines, popularity = vectors[:, :-1] @ vectors[:, :-1].T, vectors[:, -1]
    expected = cosines + weight * np.outer(popularity, popularity)
    np.testing.assert_allclose(weighted @ weighted.T, expected, rtol=1e-4, atol=1e-6)
    assert (weighted is vectors) == (weight == 1.0)
    if weight != 1.0:
        with pytest.raises(UserError, match=r"--popularity_weight=.*no popularity coordinate"):
            weigh_popularity(vectors, weight, False)
    else:
        assert weigh_popularity(vectors, 1.0, False) is vectors


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_an_index_of_the_unweighted_vectors_searches_by_the_weight(vectors, weight):
    pytest.importorskip("faiss")
    setting = ann.Setting.parse("hnsw32:64", "search")
    index, weighted = ann.build(vectors, setting, 0, 1), weigh_popularity(vectors, weight, True)
    rows = np.arange(60)
    search = ann.AnnSearch(index, setting, weighted, 1, weight)
    # The index's own candidates, without the exact scores that would hide wrong ones.
    best = np.argsort(-(weighted @ weighted.T), axis=1, kind="stable")[:, :3]
    found = search.candidates(weighted, 3)
    assert np.mean([set(a) == set(b) for a, b in zip(found, best)]) > 0.95
    np.testing.assert_array_equal(
        search.top_k(weighted, 5, rows)[0], top_k(weighted, weighted, 5, rows)[0]
    )


def test_evaluation_measures_the_lists_of_every_method(vectors, small_rng, tmp_path, caplog):
    graph = random_graph(small_rng, num_items=60, num_collections=12, edges=200)
    pairs = np.array([(q, t) for q, t in small_rng.integers(0, 60, (80, 2)) if q != t], np.int32)
    prepared = make_prepared(graph, vectors.copy(), pairs)
    popular = vectors.copy()
    popular[7, -1] = 100.0
    config = make_config(tmp_path, bootstrap=0, baselines="default")
    with caplog.at_level("WARNING"):
        result = evaluate(config, prepared, popular, has_popularity=True)
    assert "item-7 stands in 98% of the embeddings' lists of 10" in caplog.text
    degree = graph.degree()[:60]
    queries = np.arange(60)
    by_method = {
        "pinsage": top_k(popular, popular, 10, queries)[0],
        "popularity": top_items(Popularity(graph), queries, 10, 60),
        "walk": top_items(Walk(graph, config.sampling, config.seed, 1), queries, 10, 60),
    }
    for name, ids in by_method.items():
        expected = list_statistics(ids, degree, graph.num_collections)
        assert result["methods"][name]["lists"] == expected, name
    # Nothing is known of an item that no walk reached: it is not listed.
    assert (by_method["walk"][degree == 0] == -1).all()
    assert result["methods"]["popularity"]["lists"]["coverage"] == pytest.approx(11 / 60)
    weights = {entry["weight"]: entry for entry in result["popularity_weights"]}
    assert tuple(weights) == POPULARITY_WEIGHTS
    main = result["methods"]["pinsage"]
    assert weights[1.0]["lists"] == main["lists"]
    hit = main["overall"]["all"]["metrics"]["hit@10"]["value"]
    assert weights[1.0]["hit@10"]["all"] == pytest.approx(hit)
    assert weights[0.0]["lists"]["most_listed"] < 0.6
    assert json.loads((tmp_path / "eval.json").read_text())["popularity_weight"] == 1.0


def test_evaluation_scores_the_weighted_vectors(vectors, small_rng, tmp_path):
    graph = random_graph(small_rng, num_items=60, num_collections=12, edges=200)
    pairs = np.array([(q, t) for q, t in small_rng.integers(0, 60, (80, 2)) if q != t], np.int32)
    prepared = make_prepared(graph, None, pairs)
    settings = {"bootstrap": 0, "baselines": "none"}
    low = make_config(tmp_path, **settings)
    low = dataclasses.replace(low, search=SearchConfig(popularity_weight=0.5))
    weighted = evaluate(low, prepared, vectors, has_popularity=True)
    by_hand = evaluate(
        make_config(tmp_path, **settings), prepared, weigh_popularity(vectors, 0.5, True)
    )
    assert weighted["methods"] == by_hand["methods"] and weighted["popularity_weight"] == 0.5
    assert by_hand["popularity_weights"] == []
