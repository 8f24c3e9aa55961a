"""The explorer's file: its data against simple references, and titles that stay data.

test_explorer_browser.py uses it in a browser.
"""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest
from hostile_catalog import HOSTILE, ITEMS, small_config, small_embeddings, small_prepared

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.search import ExplorerConfig
from pinsage_jax.core import files
from pinsage_jax.evaluation.baselines import Walk
from pinsage_jax.evaluation.side_by_side import METHODS, NeighborsByMethod
from pinsage_jax.explorer import explorer
from pinsage_jax.explorer.encoding import encode_integers
from pinsage_jax.graph.csr import Graph
from pinsage_jax.retrieval.online import best_of_scores

KINDS = {1: "<u1", 2: "<u2", 4: "<u4"}


class Scripts(html.parser.HTMLParser):
    """Tags, attributes, and the content of scripts and styles."""

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.attributes, self.contents = [], [], {}
        self.inside = None
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.inside = tag if tag in ("script", "style", "title") else None
        if tag == "script":
            self.inside = dict(attrs).get("id", "script")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.contents[self.inside] = self.contents.get(self.inside, "") + data


def decoded(encoded) -> np.ndarray:
    """Decoded integers, int64, with -1 for missing values."""
    numbers = np.frombuffer(base64.b64decode(encoded["data"]), KINDS[encoded["bytes"]])
    return np.where(numbers == np.iinfo(numbers.dtype).max, -1, numbers.astype(np.int64))


def written(tmp_path, prepared=None, config=None, vectors=None) -> str:
    path = explorer.write_explorer(
        config or small_config(tmp_path),
        prepared or small_prepared(),
        small_embeddings() if vectors is None else vectors,
    )
    assert path == tmp_path / explorer.EXPLORER_FILE
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Scripts(written(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def data(page):
    return json.loads(page.contents["data"])


def test_titles_are_data_and_nothing_else(page, data):
    assert data["items"]["titles"] == small_prepared().titles.to_pylist()
    assert data["items"]["ids"] == small_prepared().item_ids.ids.to_pylist()
    assert page.tags.count("script") == 2 and page.tags.count("style") == 1
    assert not {"img", "svg", "iframe", "link", "object", "form", "base"} & set(page.tags)
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []
    addresses = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert all(address.startswith("#/") for address in addresses)
    assert "<" not in page.contents["data"] and page.contents["title"] == "PinSage explorer"
    assert any("<" in title for title in HOSTILE)


def test_the_policy_allows_this_script_and_this_style_alone(page):
    policy = next(value for _, _, value in page.attributes if "default-src" in value)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for rule, content in (("script-src", "script"), ("style-src", "style")):
        digest = hashlib.sha256(page.contents[content].encode()).digest()
        assert rules[rule] == f"'sha256-{base64.b64encode(digest).decode()}'"
    for rule in ("default-src", "connect-src", "base-uri", "form-action"):
        assert rules[rule] == "'none'"


def test_the_script_inserts_no_markup(page):
    script = page.contents["script"]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                "Function(", "setTimeout", "srcdoc"):  # fmt: skip
        assert way not in script


def test_neighbors_are_those_of_each_method(data):
    prepared, vectors = small_prepared(), small_embeddings()
    config = small_config("unused")
    k, queries = data["k"], np.arange(ITEMS, dtype=np.int32)
    unit = prepared.features / np.linalg.norm(prepared.features, axis=1, keepdims=True)
    dense = {
        "PinSage": vectors @ vectors.T,
        "Content": unit @ unit.T,
        "Walk": Walk(prepared.graph, config.sampling, config.seed, 1).scores(queries),
    }
    assert [method["name"] for method in data["methods"]] == list(dense) == list(METHODS)
    for method in data["methods"]:
        rows = decoded(method["rows"]).reshape(ITEMS, k)
        scores = method["offset"] + method["step"] * decoded(method["scores"]).reshape(ITEMS, k)
        for query in queries:
            line = dense[method["name"]][query].astype(float)
            line[query] = -np.inf
            best = np.sort(line)[::-1][:k]
            if method["name"] != "PinSage":
                best = best[best > 0]
            assert (rows[query, : len(best)] >= 0).all() and (rows[query, len(best) :] < 0).all()
            found = rows[query, : len(best)]
            assert len(set(found.tolist()) | {query}) == len(found) + 1
            assert line[found] == pytest.approx(best, abs=1e-5)
            assert scores[query, : len(best)] == pytest.approx(best, abs=1e-4)


def test_the_map_keeps_distances_and_counts_collections(data):
    degree = small_prepared().graph.degree()[:ITEMS]
    assert decoded(data["items"]["degree"]).tolist() == degree.tolist()
    points = np.stack([decoded(data["map"][axis]) for axis in "xy"], 1)
    assert points.min() >= 0 and np.ptp(points, axis=0).max() == 65534
    unit = small_embeddings().astype(float)
    _, _, axes = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    flat = (unit - unit.mean(axis=0)) @ axes[:2].T

    def distances(of):
        return np.linalg.norm(of[:, None] - of[None], axis=2)

    scale = distances(points.astype(float)).max() / distances(flat).max()
    assert distances(points.astype(float)) == pytest.approx(distances(flat) * scale, abs=40)


def test_the_popularity_bias_does_not_change_the_map(tmp_path):
    config = dataclasses.replace(small_config(tmp_path), model=ModelConfig(popularity_bias=True))
    wide = np.concatenate([small_embeddings(), np.full((ITEMS, 1), 50.0, np.float32)], 1)
    with_popularity = json.loads(Scripts(written(tmp_path, None, config, wide)).contents["data"])
    plain = json.loads(Scripts(written(tmp_path)).contents["data"])
    assert with_popularity["map"] == plain["map"]


def test_without_features_titles_or_edges(tmp_path):
    bare = small_prepared(titles=False, width=0, edges=False)
    same = np.ones((ITEMS, 6), np.float32)
    found = json.loads(Scripts(written(tmp_path, bare, vectors=same)).contents["data"])
    assert found["items"]["titles"] is None
    assert found["map"] == {"note": "The embeddings do not span two axes."}
    for method in found["methods"][1:]:
        assert (decoded(method["rows"]) == -1).all()
    assert found["methods"][1]["empty_reasons"] == ["The items have no features."] * 2
    assert found["methods"][2]["empty_reasons"][0] == "The item has no edges, so no walk leaves it."


def test_one_item(tmp_path):
    one = small_prepared()
    one = dataclasses.replace(
        one,
        graph=Graph.from_edges(np.empty(0, np.int32), np.empty(0, np.int32), 1, 1),
        features=one.features[:1],
        item_ids=type(one.item_ids)(one.item_ids.ids.slice(0, 1)),
        titles=one.titles.slice(0, 1),
        eval_pairs=np.empty((0, 2), np.int32),
    )
    found = json.loads(
        Scripts(written(tmp_path, one, vectors=small_embeddings()[:1])).contents["data"]
    )
    assert [decoded(method["rows"]).tolist() for method in found["methods"]] == [[-1]] * 3


def test_a_large_catalog_has_no_page_and_an_older_one_is_removed(tmp_path):
    written(tmp_path)
    limited = dataclasses.replace(
        small_config(tmp_path), explorer=ExplorerConfig(explorer_limit=ITEMS - 1)
    )
    assert explorer.write_explorer(limited, small_prepared(), small_embeddings()) is None
    assert list(tmp_path.iterdir()) == []


def test_writing_is_deterministic_and_atomic(tmp_path, monkeypatch):
    first = written(tmp_path)
    assert written(tmp_path) == first

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(files.UserError, match="No space left"):
        written(tmp_path, vectors=small_embeddings()[::-1].copy())
    assert [path.name for path in tmp_path.iterdir()] == [explorer.EXPLORER_FILE]
    assert (tmp_path / explorer.EXPLORER_FILE).read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    "numbers, width",
    [([0, 254], 1), ([0, 255], 2), ([65534, -1], 2), ([65535], 4), ([], 1), ([-1], 1)],
)
def test_encoding_and_decoding_of_integers(numbers, width):
    encoded = encode_integers(np.array(numbers, np.int64))
    assert encoded["bytes"] == width and decoded(encoded).tolist() == numbers


def test_the_best_scored_by_sorting_everything():
    rng = np.random.default_rng(0)
    for trial in range(60):
        columns = int(rng.integers(1, 12))
        scores = rng.integers(0, 4, (3, columns)).astype(np.float32)
        excluded = np.array([-1, 0, columns - 1])
        k = 1 + trial % 5
        ids, best = best_of_scores(scores.copy(), excluded, k)
        for row in range(3):
            candidates = [column for column in range(columns) if column != excluded[row]]
            ranked = sorted((-scores[row, column], column) for column in candidates)[:k]
            padding = [-1] * (k - len(ranked))
            assert ids[row].tolist() == [column for _, column in ranked] + padding
            assert best[row].tolist() == [-score for score, _ in ranked] + [-np.inf] * len(padding)


def test_lists_of_some_items_are_those_of_all():
    """Neither blocks of queries nor their order change the neighbors."""
    methods = NeighborsByMethod(small_config("unused"), small_prepared(), small_embeddings(), 1)
    every = np.arange(ITEMS)
    for name in METHODS:
        ids, scores = methods.neighbors(name, every, 3)
        some, few = methods.neighbors(name, every[[9, 2, 17]], 3)
        assert some.tolist() == ids[[9, 2, 17]].tolist()
        assert few == pytest.approx(scores[[9, 2, 17]], abs=1e-6)


def test_all_referenced_ids_exist(page):
    ids = {value for _, name, value in page.attributes if name == "id"}
    script = page.contents["script"]
    named = set(re.findall(r'byId\("([\w-]+)"\)', script))
    named |= {
        value
        for _, name, value in page.attributes
        if name in ("aria-controls", "aria-labelledby", "aria-describedby", "for")
    }
    assert named and named <= ids
