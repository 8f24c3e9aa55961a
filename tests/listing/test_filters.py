"""Filters and diversity against the same rules applied to the whole ranking one by one."""

import dataclasses
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_catalog import make_config, make_prepared, random_graph

from pinsage_jax.config.search import SearchConfig
from pinsage_jax.listing import filters
from pinsage_jax.listing.filters import Filters
from pinsage_jax.retrieval import neighbors
from pinsage_jax.retrieval.topk import top_k

ITEMS = 60
# Few candidates at first, so that the filters must fetch more.
POOL, MIN_POOL = 2, 4


@pytest.fixture
def catalog(small_rng):
    graph = random_graph(small_rng, ITEMS, 15, 120, 8)
    return graph, small_rng.normal(size=(ITEMS, 5)).astype(np.float32)


@pytest.fixture
def few_candidates(monkeypatch):
    for name, value in (("_POOL", POOL), ("_MIN_POOL", MIN_POOL), ("_GROWTH", 2)):
        monkeypatch.setattr(filters, name, value)


def collections_of(graph, item):
    return set(graph.neighbors(item).tolist())


def slow_list(graph, vectors, query, k, config, seen):
    """All items by score, then rule by rule."""
    scores = vectors @ vectors[query]
    order = sorted((i for i in range(ITEMS) if i != query), key=lambda i: (-scores[i], i))
    order = [i for i in order if graph.degree()[i] >= config.min_degree and i not in seen]
    if config.diversity:
        order = order[: max(POOL * k, MIN_POOL)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def marginal_relevance(item, others, high, low):
        value = (1 - config.diversity) * (scores[item] - low) / (high - low)
        if not others:
            return value
        return value - config.diversity * max(unit[item] @ unit[other] for other in others)

    chosen, left = [], list(order)
    while left and len(chosen) < k:
        best = left[0]
        if config.diversity:
            values = [
                marginal_relevance(i, chosen, scores[order[0]], scores[order[-1]]) for i in left
            ]
            best = left[int(np.argmax(values))]
        left.remove(best)
        if config.one_per_collection and any(
            collections_of(graph, best) & collections_of(graph, j) for j in chosen
        ):
            continue
        chosen.append(best)
    return chosen


RULES = [
    {"min_degree": 3},
    {"one_per_collection": True},
    {"diversity": 0.6},
    {"diversity": 0.3, "one_per_collection": True, "min_degree": 1},
    {},
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "+".join(rules) or "none")
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("k", [3, 12])
def test_lists_follow_the_rules(catalog, rules, seen, k, few_candidates):
    graph, vectors = catalog
    config = SearchConfig(**rules)
    rule = Filters(config, graph, vectors, seen)
    assert rule.active == bool(rules or seen)
    depths = []

    def fetch(rows, depth):
        depths.append(depth)
        return top_k(vectors[rows], vectors, depth, rows)

    ids, scores = rule.top_k(fetch, ITEMS, k, rule.items_sharing_a_collection)
    assert ids.shape == scores.shape == (ITEMS, k) and max(depths) <= ITEMS
    assert not seen or len(depths) > 1
    for query in range(ITEMS):
        excluded = set()
        if seen:
            excluded = {
                i for i in range(ITEMS) if collections_of(graph, i) & collections_of(graph, query)
            }
        expected = slow_list(graph, vectors, query, k, config, excluded)
        found = ids[query][ids[query] >= 0]
        assert found.tolist() == expected
        np.testing.assert_allclose(
            scores[query, : len(found)], vectors[found] @ vectors[query], atol=1e-5
        )
        assert np.isneginf(scores[query, len(found) :]).all()


def test_filters_reach_the_file(tmp_path, catalog):
    graph, vectors = catalog
    prepared = make_prepared(graph)
    rules = SearchConfig(exclude_seen="on", min_degree=2)
    config = dataclasses.replace(make_config(tmp_path, k=4), search=rules)
    table = pq.read_table(neighbors.write_related(config, prepared, vectors)).to_pylist()
    for query, rows in itertools.groupby(table, key=lambda row: row["item_id"]):
        number = int(query.removeprefix("item-"))
        excluded = {
            i for i in range(ITEMS) if collections_of(graph, i) & collections_of(graph, number)
        }
        names = [row["neighbor_id"] for row in rows]
        expected = slow_list(graph, vectors, number, 4, rules, excluded)
        assert names == [f"item-{i}" for i in expected]
