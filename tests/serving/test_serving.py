"""The HTTP service: its answers against simple references, its errors, and a real socket."""

import asyncio
import base64
import concurrent.futures
import contextlib
import datetime
import http.client
import json
import re
import socket
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from embedded_catalog import vector_text, write_csv
from fastapi.testclient import TestClient
from hostile_catalog import ITEMS, small_config, small_embeddings, small_prepared

import pinsage_jax
from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.embed import NewItemsConfig
from pinsage_jax.config.search import ServeConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.ids import IdTable
from pinsage_jax.reporting.sources import read_source
from pinsage_jax.retrieval import ann
from pinsage_jax.retrieval.online import ExactSearch
from pinsage_jax.retrieval.topk import top_k
from pinsage_jax.serving import api_page, columns, prometheus, server
from pinsage_jax.serving.app import make_app
from pinsage_jax.serving.middleware import RequestLimit
from pinsage_jax.serving.prometheus import ServerMetrics
from pinsage_jax.serving.service import Service
from pinsage_jax.stages import serve as serve_stage
from pinsage_jax.stages.checkpoint import exported_source, open_new_items

HOST = "http://127.0.0.1"
POLICY = "content-security-policy"


@pytest.fixture(scope="module")
def client(catalog):
    config, vectors, *_ = catalog
    prepared = open_prepared(config.workdir)
    # As from the command line with nothing but --workdir: the rest is what was trained with.
    plain = Config(mode="serve", workdir=config.workdir, seed=0, threads=1)
    source = exported_source(plain, len(vectors))
    assert source.trained and source.config.seed == config.seed and source.config.mode == "serve"
    new_items = open_new_items(source.config, prepared)
    service = Service(source, prepared, vectors, None, new_items)
    with TestClient(make_app(service, threads=2), base_url=HOST) as client:
        yield client


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A service with titles but without a model."""
    config, vectors = small_config(tmp_path_factory.mktemp("run")), small_embeddings()
    service = Service(read_source(config, ITEMS), small_prepared(), vectors, None, None)
    with TestClient(make_app(service, threads=1), base_url=HOST) as client:
        yield client


def nearest(scores: np.ndarray, k: int, excluded=()) -> list[str]:
    scores = np.array(scores, float)
    scores[list(excluded)] = -np.inf
    return [f"i{row}" for row in np.argsort(-scores, kind="stable")[:k]]


def ids_of(neighbors: list[dict]) -> list[str]:
    return [entry["item_id"] for entry in neighbors]


def test_neighbors_of_an_item(client, catalog):
    vectors = catalog[1]
    for row in (0, 41, 79):
        answer = client.get("/neighbors", params={"item": f"i{row}", "k": 7}).json()
        assert answer["item"] == f"i{row}"
        assert ids_of(answer["neighbors"]) == nearest(vectors @ vectors[row], 7, [row])
        best = answer["neighbors"][0]
        assert best["score"] == pytest.approx(vectors[int(best["item_id"][1:])] @ vectors[row])
        assert set(best) == {"item_id", "score"}
    assert len(client.get("/neighbors", params={"item": "i3"}).json()["neighbors"]) == 10


def test_exact_search_is_that_of_top_k(small_rng):
    vectors = small_rng.integers(-2, 3, (50, 3)).astype(np.float32)
    excluded = np.array([4, -1, 49])
    for k in (1, 5, 49, 60):
        ids, scores = ExactSearch(vectors).top_k(vectors[[4, 7, 49]], k, excluded)
        wanted, values = top_k(vectors[[4, 7, 49]], vectors, k, excluded)
        assert ids.tolist() == wanted.tolist() and scores.tolist() == values.tolist()


def test_for_a_history(client, catalog):
    vectors = catalog[1]
    asked = {"items": ["i5", "i60", "nobody's", "i5"], "k": 6}
    answer = client.post("/neighbors/history", json=asked).json()
    mean = (vectors[5] + vectors[60]) / 2
    assert ids_of(answer["neighbors"]) == nearest(vectors @ mean, 6, [5, 60])
    assert answer["unknown_items"] == ["nobody's"]
    assert client.get("/health").json()["history_scoring"] == "mean"


def years(rows) -> np.ndarray:
    return 2000 + np.asarray(rows) % 7


def test_several_items_in_one_request(client, catalog):
    vectors = catalog[1]
    answer = client.post("/neighbors", json={"items": ["i3", "i41", "i3"], "k": 4}).json()
    assert [entry["item"] for entry in answer["items"]] == ["i3", "i41", "i3"]
    for entry, row in zip(answer["items"], (3, 41, 3)):
        assert ids_of(entry["neighbors"]) == nearest(vectors @ vectors[row], 4, [row])


def test_rules_of_a_request(client, catalog):
    vectors = catalog[1]
    rows = np.arange(80)
    rules = {"where": "year == query.year or year < 2002", "block_items": ["i0", "nobody's"]}
    wanted = {}
    for row in (3, 42):
        barred = rows[(years(rows) != years(row)) & (years(rows) >= 2002)]
        wanted[row] = nearest(vectors @ vectors[row], 6, [row, 0, *barred])
        answer = client.get("/neighbors", params={"item": f"i{row}", "k": 6, **rules}).json()
        assert ids_of(answer["neighbors"]) == wanted[row]
    batch = client.post("/neighbors", json={"items": ["i3", "i42"], "k": 6, **rules}).json()
    assert [ids_of(entry["neighbors"]) for entry in batch["items"]] == [wanted[3], wanted[42]]
    # One of each year, the best of each.
    answer = client.post("/neighbors", json={"items": ["i3"], "k": 20, "one_per": "year"}).json()
    listed = [int(name[1:]) for name in ids_of(answer["items"][0]["neighbors"])]
    assert sorted(years(listed)) == list(range(2000, 2007))
    allowed = {"items": ["i3"], "k": 5, "allow_items": ["i5", "i9"]}
    answer = client.post("/neighbors", json=allowed).json()["items"][0]["neighbors"]
    assert set(ids_of(answer)) == {"i5", "i9"}
    asked = {"items": ["i5", "i60"], "k": 6, "where": "year > 2003", "boost": "1 + (year == 2005)"}
    scores = vectors @ ((vectors[5] + vectors[60]) / 2)
    factors = np.where(years(rows) == 2005, 2.0, 1.0)
    scores = np.where(scores < 0, scores / factors, scores * factors)
    answer = client.post("/neighbors/history", json=asked).json()["neighbors"]
    assert ids_of(answer) == nearest(scores, 6, [5, 60, *rows[years(rows) <= 2003]])


def test_columns_of_the_items_come_with_them(client, catalog):
    for answer in (
        client.get("/neighbors", params={"item": "i3", "k": 3, "columns": ["year", "item_id"]}),
        client.post("/neighbors", json={"items": ["i3"], "k": 3, "columns": ["year", "item_id"]}),
        client.post("/neighbors/new", json={"items": [LOOK], "k": 3, "columns": ["item_id"]}),
        client.post("/neighbors/history", json={"items": ["i3"], "columns": ["year"]}),
    ):
        found = answer.json()
        (found,) = found.get("items", [found])
        for entry in found["neighbors"]:
            row = int(entry["item_id"][1:])
            values = {"year": years(row), "item_id": entry["item_id"]}
            assert entry["columns"]
            assert entry["columns"] == {name: values[name] for name in entry["columns"]}


def test_values_of_columns_are_json():
    table = pa.table(
        {
            "day": pa.array([datetime.date(2026, 1, 2), None]),
            "at": pa.array([datetime.datetime(2026, 1, 2, 3), None]),
            "price": [float("nan"), 2.5],
            "tags": [["a"], None],
            "sold": [True, None],
        }
    )
    ids = IdTable(pa.array(["a", "b"], pa.large_string()))
    types = {field.name: field.type for field in table.schema}
    held = ItemColumns(ids, "sku", types, table.column)
    first, second = columns.values_of(held, [*types, "sku"], np.array([0, 1]))
    assert first == {
        "day": "2026-01-02", "at": "2026-01-02T03:00:00", "price": None, "tags": ["a"],
        "sold": True, "sku": "a",
    }  # fmt: skip
    assert second == dict.fromkeys(types) | {"price": 2.5, "sku": "b"}


def test_rules_read_the_columns_of_a_new_item(client):
    new = {"item_id": "x", "look": [1.0, 0.0, 0.0, 0.0, 0.0], "year": 2004}
    asked = {"items": [new], "k": 30, "where": "year == query.year"}
    listed = client.post("/neighbors/new", json=asked).json()["items"][0]["neighbors"]
    assert {years(int(name[1:])) for name in ids_of(listed)} == {2004} and len(listed) == 11


def test_for_new_items(client, catalog, tmp_path):
    config, vectors, features, _ = catalog
    rows = [("twin", features[75], 2005), ("held", features[3], 2003)]
    edges = [("c0", "held"), ("unheard of", "held")]
    new = NewItemsConfig(
        new_items=write_csv(
            tmp_path / "new.csv",
            ["item_id", "look", "year"],
            [(name, vector_text(look), year) for name, look, year in rows],
        ),
        new_edges=write_csv(tmp_path / "more.csv", ["collection_id", "item_id"], edges),
    )
    pinsage_jax.embed(config.__class__(**{**vars(config), "new": new}))
    embedded = files.read_json(f"{config.workdir}/new_embeddings/_manifest.json")
    assert embedded["count"] == 2
    import pyarrow.parquet as pq

    table = pq.read_table(f"{config.workdir}/new_embeddings/part-00000.parquet")
    found = np.array(table["embedding"].to_pylist(), np.float32)
    answer = client.post(
        "/neighbors/new",
        json={
            "items": [
                {"item_id": name, "look": [round(float(x), 6) for x in look], "year": year}
                for name, look, year in rows
            ],
            "edges": [{"collection_id": c, "item_id": i} for c, i in edges],
            "k": 5,
        },
    ).json()["items"]
    assert [entry["item"] for entry in answer] == ["twin", "held"]
    for entry, vector in zip(answer, found):
        scores = vectors @ vector
        assert [one["score"] for one in entry["neighbors"]] == pytest.approx(
            sorted(scores, reverse=True)[:5], abs=1e-4
        )
    # Without a name, and with one feature missing: still an item.
    answer = client.post("/neighbors/new", json={"items": [{"look": None, "year": 2001}]})
    assert answer.status_code == 200 and len(answer.json()["items"][0]["neighbors"]) == 10


LOOK = {"item_id": "x", "look": [1.0] * 5, "year": 2001}
REFUSALS = [
    ("GET", "/neighbors?item=nobody", None, 404, r"The item is not in the catalog"),
    ("GET", "/neighbors", None, 400, r"item: field required"),
    ("GET", "/neighbors?item=i1&k=0", None, 400, r"k is 0 but must be from 1 to 100"),
    ("GET", "/neighbors?item=i1&k=101", None, 400, r"k is 101 but must be from 1 to 100"),
    ("GET", "/neighbors?item=i1&k=ten", None, 400, r"k: input should be a valid integer"),
    ("GET", "/nothing", None, 404, r"This path does not exist"),
    ("GET", "/neighbors/", None, 404, r"This path does not exist"),
    ("GET", "/neighbors?item=i1&wher=x", None, 400, r"wher: extra inputs are not permitted"),
    ("GET", "/neighbors?item=i1&columns=yeer", None, 400, r"Columns: .*did you mean 'year'"),
    ("POST", "/neighbors/new", {"items": [{}], "columns": ["?"]}, 400, r"those of --items: item"),
    ("DELETE", "/health", None, 405, r"does not support the method DELETE"),
    ("POST", "/neighbors", {"items": ["i1", "j9"]}, 404, r"The item is not in the catalog"),
    ("GET", "/neighbors?item=i1&where=yeer<3", None, 400, r"Where: 'yeer' .*did you mean 'year'"),
    ("POST", "/neighbors", {"items": ["i1"], "where": "year"}, 400, r"a number, not yes or no"),
    ("POST", "/neighbors", {"items": ["i1"], "where": "(" * 99}, 400, r"Where"),
    ("POST", "/neighbors", {"items": ["i1"], "boost": "year - 2003"}, 400, r"Boost is -3"),
    ("POST", "/neighbors", {"items": ["i1"], "allow_items": ["z"]}, 400, r"Allow_items names no"),
    ("POST", "/neighbors/history", {"items": ["i1"], "where": "year < query.year"}, 400,
     r"a history is not one item"),
    ("POST", "/neighbors/history", b"{", 400, r"The body is not valid JSON"),
    ("POST", "/neighbors/history", {"items": []}, 400, r"items: list should have at least 1"),
    ("POST", "/neighbors/history", {"items": ["a"]}, 404, r"None of the items is in"),
    ("POST", "/neighbors/history", {"items": [7]}, 400, r"items.0: input should be a valid str"),
    ("POST", "/neighbors/history", {"items": ["i1"], "n": 3}, 400, r"n: extra inputs are not"),
    ("POST", "/neighbors/history", {"items": ["i1"] * 1001}, 400, r"at most 1000"),
    ("POST", "/neighbors/history", {"items": ["i1"], "k": 1000}, 400, r"k is 1000"),
    ("POST", "/neighbors/history", [], 400, r"The body: input should be a valid dict"),
    ("POST", "/neighbors/new", {"items": [{}]}, 400, r"list of items has no column 'look'"),
    ("POST", "/neighbors/new", {"items": [{**LOOK, "look": [1.0]}]}, 400, r"'look' holds 1 numb"),
    ("POST", "/neighbors/new", {"items": [{**LOOK, "look": "a"}]}, 400, r"is not a number"),
    ("POST", "/neighbors/new", {"items": [{**LOOK, "year": {}}]}, 400, r"'year' holds struct"),
    ("POST", "/neighbors/new", {"items": [LOOK, {**LOOK, "item_id": 3}]}, 400, r"incompatible"),
    ("POST", "/neighbors/new", {"items": [{**LOOK, "year": 10**400}]}, 400, r"incompatible types"),
    ("POST", "/neighbors/new", {"items": [{**LOOK, "item_id": "i7"}]}, 400, r"'i7' .* already"),
    ("POST", "/neighbors/new", {"items": [LOOK, LOOK]}, 400, r"'x' is in the request's list of it"),
    ("POST", "/neighbors/new", {"items": [LOOK], "edges": [{"item_id": "z", "collection_id": "c"}]},
     400, r"'z' in row 1 of the request's list of edges is not among the new items"),
    ("POST", "/neighbors/new", {"items": [LOOK], "edges": [{}]}, 400, r"list of edges has no col"),
    ("POST", "/neighbors/new", b'{"items": [{"look": [NaN, 1, 1, 1, 1], "year": 1}]}', 400,
     r"NaN or infinity in row 1"),
]  # fmt: skip


@pytest.mark.parametrize("method, path, body, status, sentence", REFUSALS)
def test_refusals(client, method, path, body, status, sentence):
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    body = answer.json()
    assert list(body) == ["error"] and re.search(sentence, body["error"]), body
    assert body["error"].endswith((".", "?")) and "\n" not in body["error"]


def test_long_bodies_are_refused_whatever_they_promise(client):
    long = json.dumps({"items": ["i1"], "k": 3}).encode() + b" " * (256 << 10)

    def in_pieces():
        for start in range(0, len(long), 10_000):
            yield long[start : start + 10_000]

    for content in (long, in_pieces()):
        answer = client.post(
            "/neighbors/history", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
        assert answer.json() == {
            "error": "The body is longer than 256 KiB; send fewer items per request."
        }
    # One byte less than too long, in pieces, is read as it is.
    fits = long[: 256 << 10]
    answer = client.post(
        "/neighbors/history",
        content=iter([fits[:100], fits[100:]]),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 200 and len(answer.json()["neighbors"]) == 3


def test_other_names_of_this_machine_are_refused(client, hostile):
    for name in ("elsewhere.example:8080", "127.0.0.1.elsewhere.example", "[::2]:80", ""):
        answer = client.get("/health", headers={"host": name})
        assert answer.status_code == 400 and "own names alone" in answer.json()["error"]
    for name in ("localhost", "127.0.0.1:8080", "[::1]:99"):
        assert client.get("/health", headers={"host": name}).status_code == 200


def test_too_many_requests_at_once():
    async def never(scope, receive, send):
        await asyncio.sleep(60)

    async def ask(app) -> list[dict]:
        sent: list[dict] = []

        async def send(message):
            sent.append(message)

        await app({"type": "http"}, None, send)
        return sent

    async def two() -> RequestLimit:
        app = RequestLimit(never, most=1)
        waiting = asyncio.create_task(ask(app))
        await asyncio.sleep(0)
        start, body = await ask(app)
        assert start["status"] == 503 and "in progress" in json.loads(body["body"])["error"]
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        return app

    assert asyncio.run(two())._now == 0


def test_a_mistake_of_the_server_is_a_sentence_too(monkeypatch, hostile):
    def broken(*arguments):
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(Service, "neighbors", broken)
    app = TestClient(hostile.app, base_url=HOST, raise_server_exceptions=False)
    answer = app.get("/neighbors?item=i1")
    assert answer.status_code == 500 and list(answer.json()) == ["error"]
    assert "of ours" not in answer.text


def test_the_page_of_the_endpoints_needs_no_network(client):
    page = client.get("/docs")
    assert page.status_code == 200 and "default-src 'none'" in page.headers[POLICY]
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)|url: '([^']+)""", page.text)
    named = {first or second for first, second in addresses}
    assert named == {f"/docs/{name}" for name in api_page._ASSETS} | {"/openapi.json"}
    for name in named:
        assert client.get(name).status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    routes = {"/neighbors", "/neighbors/history", "/neighbors/new", "/health", "/metrics"}
    assert set(paths) == routes
    for operations in paths.values():
        for operation in operations.values():
            assert operation["summary"] and set(operation["responses"]) == {"200", "4XX"}


def test_without_a_model_new_items_are_refused(hostile):
    answer = hostile.post("/neighbors/new", json={"items": [LOOK]})
    assert answer.status_code == 409 and "no checkpoint" in answer.json()["error"]
    assert hostile.get("/health").json()["new_items"] is False


def test_health(client, catalog):
    found = client.get("/health").json()
    assert datetime.datetime.fromisoformat(found.pop("loaded_at")).tzinfo is not None
    assert found == {
        "status": "ok", "items": 80, "dimension": 8, "step": 3, "search": "exact",
        "history_scoring": "mean", "new_items": True, "updated": False, "reload_error": None,
        "followed": None,
    }  # fmt: skip


def test_metrics_count_what_was_asked(hostile):
    def read() -> dict[str, float]:
        answer = hostile.get("/metrics")
        assert answer.headers["content-type"] == prometheus.CONTENT_TYPE
        lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
        pairs = [line.rsplit(" ", 1) for line in lines]
        assert len({name for name, _ in pairs}) == len(pairs)
        return {name: float(value) for name, value in pairs}

    before = read()
    for _ in range(3):
        hostile.get("/neighbors", params={"item": "nobody"})
    hostile.get("/made/up/4711")
    after = read()
    name = 'pinsage_requests_total{path="/neighbors",status="404"}'
    assert after[name] - before.get(name, 0) == 3
    assert 'pinsage_requests_total{path="other",status="404"}' in after
    assert not any("4711" in name for name in after)
    assert (after["pinsage_items"], after["pinsage_processes"]) == (ITEMS, 1)
    buckets = [
        value for name, value in after.items()
        if name.startswith('pinsage_request_seconds_bucket{path="/neighbors"')
    ]  # fmt: skip
    assert buckets == sorted(buckets) and len(buckets) == len(prometheus.BOUNDS) + 1
    count = after['pinsage_request_seconds_count{path="/neighbors"}']
    assert buckets[-1] == count == sum(
        value for name, value in after.items()
        if name.startswith('pinsage_requests_total{path="/neighbors"')
    )  # fmt: skip


def test_metrics_of_several_processes_are_added(tmp_path):
    parts = [
        ServerMetrics(prometheus.shared_numbers(tmp_path / "numbers", 3), number)
        for number in range(3)
    ]
    for metrics in parts:
        metrics.name_paths(["/b", "/a"])
    parts[0].add("/a", 200, 0.004)
    parts[2].add("/a", 200, 99.0)
    parts[2].add("/z", 404, 0.5)
    parts[1].add_reload("failed")
    texts = {metrics.text({"pinsage_items": ("Items.", 7)}) for metrics in parts}
    (text,) = texts
    for line in (
        'pinsage_requests_total{path="/a",status="200"} 2',
        'pinsage_requests_total{path="other",status="404"} 1',
        'pinsage_request_seconds_bucket{path="/a",le="0.005"} 1',
        'pinsage_request_seconds_bucket{path="/a",le="+Inf"} 2',
        'pinsage_request_seconds_sum{path="/a"} 99.004000',
        'pinsage_reloads_total{outcome="failed"} 1',
        "pinsage_processes 3",
        "pinsage_items 7",
    ):
        assert line in text.splitlines()


def test_the_explorer_requests_what_the_offline_page_contains(hostile):
    prepared, vectors = small_prepared(), small_embeddings()
    ids, titles = prepared.item_ids.ids.to_pylist(), prepared.titles.to_pylist()
    degree = prepared.graph.degree()[:ITEMS]
    page = hostile.get("/")
    policy = re.search(r'Policy" content="([^"]*)"', page.text)[1]
    assert "connect-src 'self'" in policy and page.headers["x-frame-options"] == "DENY"
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.text)[1])
    assert "items" not in data and data["first_item"] == ids[int(np.argmax(degree))]
    for words in ("1", "SCRIPT", "lines two", "id 3", 'x= "on', "nothing like it", ids[5], " "):
        whole = words.strip().lower()
        ranked = []
        for row, (name, title) in enumerate(zip(ids, titles)):
            low, text = name.lower(), (title or "").lower()
            if whole and all(part in low or part in text for part in whole.split()):
                starts = (low == whole, low.startswith(whole), text.startswith(whole), True)
                ranked.append((starts.index(True), -degree[row], row))
        found = hostile.get("/explorer/search", params={"query": words, "limit": 5}).json()
        assert found["count"] == len(ranked)
        assert [item["id"] for item in found["items"]] == [
            ids[row] for *_, row in sorted(ranked)[:5]
        ]
    item = hostile.get("/explorer/item", params={"id": ids[9]}).json()
    assert (item["title"], item["degree"], len(item["neighbors"])) == (titles[9], degree[9], 3)
    near = top_k(vectors[[9]], vectors, 10, np.array([9]))[0][0]
    assert [other["id"] for other in item["neighbors"][0]] == [ids[row] for row in near]
    assert hostile.get("/explorer/item", params={"id": "nobody"}).status_code == 404
    assert hostile.get("/explorer/random").json()["id"] in ids
    map_data = hostile.get("/explorer/map").json()
    assert map_data["ids"] == ids and len(base64.b64decode(map_data["x"]["data"])) == 2 * ITEMS


def test_many_at_once_get_what_one_gets(client, catalog):
    vectors = catalog[1]

    def ask(row: int) -> list[str]:
        return ids_of(
            client.get("/neighbors", params={"item": f"i{row}", "k": 4}).json()["neighbors"]
        )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(80)))
    assert answers == [nearest(vectors @ vectors[row], 4, [row]) for row in range(80)]


def test_an_index_answers_in_its_place(client, catalog):
    config, vectors, *_ = catalog
    setting = ann.Setting.parse("hnsw16:80", "search")
    index = ann.AnnSearch(ann.build(vectors, setting, 0, 1), setting, vectors, 1)
    source = read_source(Config(mode="serve", workdir=config.workdir, seed=0, threads=1), 80)
    service = Service(source, open_prepared(config.workdir), vectors, index, None)
    assert service.health()["search"] == "hnsw16:80"
    # It holds so many candidates as there are items, so it misses none.
    near = service.neighbors("i41", 7)["neighbors"]
    assert ids_of(near) == nearest(vectors @ vectors[41], 7, [41])
    history = service.recommend(["i5", "i60"], 6)["neighbors"]
    assert ids_of(history) == nearest(vectors @ (vectors[5] + vectors[60]), 6, [5, 60])


# The stage, on a real socket.


def test_the_stage_serves_until_it_is_stopped(catalog, monkeypatch, caplog):
    stop, failed = threading.Event(), []
    monkeypatch.setattr(serve_stage, "stop_requested", stop.is_set)
    config = Config(
        mode="serve", workdir=catalog[0].workdir, seed=0, threads=1,
        serve=ServeConfig(serve_port=0, serve_body_kib=1),
    )  # fmt: skip

    def serve() -> None:
        try:
            serve_stage.serve(config)
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=serve)
    with caplog.at_level("INFO", "absl"):
        worker.start()
        try:
            deadline, found = time.monotonic() + 120, None
            while found is None and worker.is_alive() and time.monotonic() < deadline:
                found = re.search(r"serving at http://127\.0\.0\.1:(\d+)/", caplog.text)
                time.sleep(0.05)
            assert found, (failed, caplog.text)
            port = int(found[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/neighbors?item=i3&k=2")
            answer = connection.getresponse()
            vectors = catalog[1]
            assert answer.status == 200
            assert ids_of(json.loads(answer.read())["neighbors"]) == nearest(
                vectors @ vectors[3], 2, [3]
            )
            connection.request("POST", "/neighbors/new", json.dumps({"items": [LOOK]}),
                               {"content-type": "application/json"})  # fmt: skip
            answer = connection.getresponse()
            assert answer.status == 200 and json.loads(answer.read())["items"][0]["item"] == "x"
            # Only this machine is listened to.
            assert "0.0.0.0" not in caplog.text
            connection.request("POST", "/neighbors/history", b" " * 2000)
            assert connection.getresponse().status == 413
            connection.close()
        finally:
            stop.set()
            worker.join(60)
    assert not worker.is_alive() and failed == []
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_in_use_is_reported_before_anything_is_loaded(catalog):
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        config = Config(
            mode="serve", workdir=catalog[0].workdir, seed=0, threads=1,
            serve=ServeConfig(serve_port=port),
        )  # fmt: skip
        with pytest.raises(
            UserError, match=f"cannot listen on --serve_host=.* --serve_port={port} "
        ):
            serve_stage.serve(config)
    with pytest.raises(UserError, match=r"--serve_host=203\.0\.113\.7"):
        server.listen("203.0.113.7", 0)


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pinsage-jax\[serve\]'"):
        serve_stage.serve(Config(mode="serve", workdir=str(tmp_path), seed=0, threads=1))
