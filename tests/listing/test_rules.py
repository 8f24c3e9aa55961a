"""Lists under rules against sorting all items and applying the rules one by one."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import logging as absl_logging
from small_catalog import make_config, make_prepared, random_graph

from pinsage_jax.config.search import RecommendConfig, SearchConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.listing import filters
from pinsage_jax.listing.rules import rules_of
from pinsage_jax.recommend.choice import Choice
from pinsage_jax.recommend.recommender import Recommender
from pinsage_jax.recommend.scores import histories_of
from pinsage_jax.retrieval import ann, neighbors, ruled_search

ITEMS = 60


@pytest.fixture
def catalog(small_rng, tmp_path):
    """A prepared catalog with columns, its vectors, and the columns as a list of dictionaries."""
    graph = random_graph(small_rng, ITEMS, 15, 120, 8)
    vectors = small_rng.normal(size=(ITEMS, 5)).astype(np.float32)
    rows = [
        {
            "price": None if i % 11 == 0 else float(small_rng.integers(1, 30)),
            "kind": None if i % 13 == 0 else "abc"[int(small_rng.integers(3))],
            "stock": bool(small_rng.random() < 0.6),
            "product": f"p{small_rng.integers(25)}",
        }
        for i in range(ITEMS)
    ]
    pq.write_table(pa.Table.from_pylist(rows[:-2]), tmp_path / "columns.parquet")
    # The last two are in edges alone.
    rows[-2:] = [dict.fromkeys(rows[0])] * 2
    prepared = dataclasses.replace(make_prepared(graph), columns_file=tmp_path / "columns.parquet")
    return prepared, vectors, rows


def missing(*values):
    return any(value is None for value in values)


def same_kind(query, item):
    return not missing(query["kind"], item["kind"]) and query["kind"] == item["kind"]


def cheaper(query, item):
    return not missing(query["price"], item["price"]) and item["price"] < 2 * query["price"]


# Flags, the rule of (query, item) and the factor of (query, item).
RULES = {
    "shared": ({"where": "stock and price < 20"},
               lambda q, i: i["stock"] and not missing(i["price"]) and i["price"] < 20),
    "per query": ({"where": "kind == query.kind and price < 2 * query.price"},
                  lambda q, i: same_kind(q, i) and cheaper(q, i)),
    "tight": ({"where": "price == 3 and stock"}, lambda q, i: i["price"] == 3 and i["stock"]),
    "lists": ({"block_items": "item-3, item-4,item-40", "where": "stock"},
              lambda q, i: i["stock"] and i["id"] not in (3, 4, 40)),
    "allowed": ({"allow_items": "item-3,item-5,item-6,item-7"},
                lambda q, i: i["id"] in (3, 5, 6, 7)),
    "nothing": ({"where": "price < 0"}, lambda q, i: False),
    "one each": ({"one_per": "product"}, lambda q, i: True),
    "one each of some": ({"one_per": "kind", "where": "stock"}, lambda q, i: i["stock"]),
    "boost": ({"boost": "1 + 0.5 * stock"}, lambda q, i: True),
    "boost by the query": ({"boost": "1 + 3 * (kind == query.kind)", "where": "stock"},
                           lambda q, i: i["stock"]),
    "with others": ({"where": "stock", "min_degree": 2, "diversity": 0.0}, lambda q, i: i["stock"]),
}  # fmt: skip


def factor(name, query, item):
    if name == "boost":
        return 1.0 if item["stock"] is None else 1 + 0.5 * item["stock"]
    if name == "boost by the query":
        return 1.0 if missing(query["kind"], item["kind"]) else 1 + 3 * same_kind(query, item)
    return 1.0


def slow_list(name, catalog, query, k):
    prepared, vectors, rows = catalog
    flags, rule = RULES[name]
    degree = prepared.graph.degree()
    rows = [{"id": number, **row} for number, row in enumerate(rows)]
    scored = []
    for item in range(ITEMS):
        if item == query or not rule(rows[query], rows[item]):
            continue
        if degree[item] < flags.get("min_degree", 0):
            continue
        score, times = float(vectors[query] @ vectors[item]), factor(name, rows[query], rows[item])
        scored.append((score / times if score < 0 else score * times, item))
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    chosen, used = [], set()
    for score, item in scored:
        value = rows[item].get(flags.get("one_per"))
        if "one_per" in flags and value is not None:
            if value in used:
                continue
            used.add(value)
        chosen.append((item, score))
    return chosen[:k]


def config_of(tmp_path, name, **evaluate):
    search = SearchConfig(**RULES[name][0])
    return dataclasses.replace(make_config(tmp_path, **evaluate), search=search)


@pytest.mark.parametrize("way", ["by groups", "by candidates", "compiled"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("k", [3, 12])
def test_lists_follow_the_rules(tmp_path, catalog, name, way, k, monkeypatch):
    if way == "by candidates":
        monkeypatch.setattr(ruled_search, "_MOST_EVALUATIONS", 0)
        monkeypatch.setattr(ruled_search, "_MIN_CANDIDATES", 5)
        monkeypatch.setattr(ruled_search, "_OVERFETCH", 1)
    if way == "compiled":
        monkeypatch.setattr(ruled_search, "_LARGE_PRODUCT", 0)
    monkeypatch.setattr(filters, "_MIN_POOL", 4)
    prepared, vectors, _ = catalog
    config = config_of(tmp_path, name, k=k)
    found = {}
    table = pq.read_table(neighbors.write_related(config, prepared, vectors)).to_pylist()
    for query, lines in itertools.groupby(table, key=lambda line: line["item_id"]):
        found[query] = [(line["neighbor_id"], line["score"]) for line in lines]
    for query in range(ITEMS):
        wanted = slow_list(name, catalog, query, k)
        listed = found.get(f"item-{query}", [])
        assert [item for item, _ in listed] == [f"item-{item}" for item, _ in wanted], query
        np.testing.assert_allclose(
            [s for _, s in listed], [s for _, s in wanted], rtol=1e-4, atol=1e-5
        )


def test_a_few_queries_have_the_same_lists(tmp_path, catalog):
    prepared, vectors, _ = catalog
    for name in RULES:
        found = neighbors.nearest(config_of(tmp_path, name, k=4), ["item-9"], prepared, vectors)
        wanted = [f"item-{item}" for item, _ in slow_list(name, catalog, 9, 4)]
        assert [entry.item_id for entry in found["item-9"]] == wanted


@pytest.mark.parametrize("name", ["shared", "tight", "lists", "one each", "boost"])
@pytest.mark.parametrize("by", [Choice("mean"), Choice("power", 2.0, 0.25, 0.5)])
def test_recommendations_follow_the_rules(tmp_path, catalog, name, by):
    prepared, vectors, rows = catalog
    config = config_of(tmp_path, name)
    rules = rules_of(config, prepared, histories=True)
    histories, degree = histories_of(prepared.graph), prepared.graph.degree()[:ITEMS]
    rule = filters.Filters(config.search, prepared.graph, vectors, False, rules)
    recommender = Recommender(
        RecommendConfig(), by, vectors, degree, 2, filters=rule, rules=rules, quiet=True
    )
    plain = Recommender(RecommendConfig(), by, vectors, degree, 2, quiet=True)
    ids, scores = recommender.top_k(histories, 5)
    everything, values = plain.top_k(histories, ITEMS)
    for user in range(len(histories)):
        chosen, used = [], set()
        pairs = [(v, i) for i, v in zip(everything[user], values[user]) if i >= 0]
        scored = []
        for value, item in pairs:
            times = factor(name, None, rows[item])
            scored.append((value / times if value < 0 else value * times, item))
        for value, item in sorted(scored, key=lambda pair: (-pair[0], pair[1])):
            if not RULES[name][1](None, {"id": item, **rows[item]}):
                continue
            if name == "one each" and (product := rows[item]["product"]) is not None:
                if product in used:
                    continue
                used.add(product)
            chosen.append((item, value))
        found = ids[user][ids[user] >= 0].tolist()
        assert found == [item for item, _ in chosen[:5]]
        np.testing.assert_allclose(
            scores[user, : len(found)], [value for _, value in chosen[:5]], rtol=1e-4, atol=1e-5
        )


def test_an_index_under_rules_falls_back_to_exact_search(tmp_path, small_rng, monkeypatch):
    pytest.importorskip("faiss")
    count = 600
    graph = random_graph(small_rng, count, 40, 900, 20)
    vectors = small_rng.normal(size=(count, 8)).astype(np.float32)
    columns = pa.table({"n": np.arange(count), "even": np.arange(count) % 2 == 0})
    pq.write_table(columns, tmp_path / "columns.parquet")
    prepared = dataclasses.replace(make_prepared(graph), columns_file=tmp_path / "columns.parquet")
    monkeypatch.setattr(ruled_search, "_INDEX_ITEMS", 0)
    setting = ann.Setting.parse("hnsw16:64", "search")
    search = ann.AnnSearch(ann.build(vectors, setting, 0, 1), setting, vectors, 1)
    messages = []
    monkeypatch.setattr(absl_logging, "info", lambda text, *values: messages.append(text % values))
    for where, share in (("n < 20", 1.0), ("even", 0.95)):
        config = dataclasses.replace(make_config(tmp_path, k=10), search=SearchConfig(where=where))
        exact = pq.read_table(neighbors.write_related(config, prepared, vectors))
        found = pq.read_table(neighbors.write_related(config, prepared, vectors, search))
        assert len(found) == len(exact)
        pairs = [set(zip(t["item_id"].to_pylist(), t["neighbor_id"].to_pylist()))
                 for t in (exact, found)]  # fmt: skip
        recall = len(pairs[0] & pairs[1]) / len(pairs[0])
        assert recall >= share
        measured = [line for line in messages if line.startswith("recall@10 of hnsw16:64")]
        assert abs(float(measured[-1].split(" is ")[1].split()[0]) - recall) < 0.03


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"where": "prise < 3"}, r"--where: 'prise' .* did you mean 'price'\?"),
        ({"one_per": "prodct"}, r"--one_per: .*no column 'prodct'; did you mean 'product'\?"),
        ({"boost": "price - 5"}, r"--boost is -\d+ for item 'item-\d+'; .* above 0"),
        ({"block_items": "nowhere.csv"}, r"--block_items=nowhere.csv: there is no such file"),
        ({"allow_items": "a,b"}, r"--allow_items names no item of the catalog"),
    ],
)
def test_wrong_rules_are_named(tmp_path, catalog, flags, message):
    prepared, vectors, _ = catalog
    config = dataclasses.replace(make_config(tmp_path), search=SearchConfig(**flags))
    with pytest.raises(UserError, match=message):
        neighbors.nearest(config, ["item-1"], prepared, vectors)


def test_a_history_has_no_columns(tmp_path, catalog):
    search = SearchConfig(where="price < query.price")
    config = dataclasses.replace(make_config(tmp_path), search=search)
    with pytest.raises(UserError, match=r"cannot read query\.price here"):
        rules_of(config, catalog[0], histories=True)


def test_lists_of_ids_may_be_files_and_name_what_is_unknown(tmp_path, catalog, monkeypatch):
    prepared, vectors, _ = catalog
    listed = tmp_path / "gone.csv"
    listed.write_text("item_id\nitem-2\nitem-9\nitem-999\n")
    search = SearchConfig(block_items=str(listed))
    config = dataclasses.replace(make_config(tmp_path, k=60), search=search)
    messages = []
    monkeypatch.setattr(
        absl_logging, "warning", lambda text, *values: messages.append(text % values)
    )
    found = neighbors.nearest(config, ["item-1"], prepared, vectors)["item-1"]
    assert {e.item_id for e in found} == {f"item-{i}" for i in range(ITEMS)} - {
        "item-1", "item-2", "item-9",
    }  # fmt: skip
    assert messages == ["--block_items: 1 of 3 ids are not in the catalog (such as 'item-999')."]
