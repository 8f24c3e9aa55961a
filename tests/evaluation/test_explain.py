"""Explanations against slow references, on a trained run and on awkward items."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from small_catalog import make_config, make_prepared, random_graph

import pinsage_jax
from pinsage_jax import main
from pinsage_jax.batching.graph_view import lists_of_some, spectral_bases
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import explain as explaining
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.sampling.neighborhoods import visit_scores
from pinsage_jax.stages.runs import validation_split_of


def explained(config, query, target, **evaluate):
    settings = dataclasses.replace(config.evaluate, query=query, target=target, **evaluate)
    return dataclasses.replace(config, evaluate=settings)


@pytest.fixture
def pair(trained):
    """(prepared, vectors, row of the query, row of its nearest item)."""
    prepared = open_prepared(trained.workdir)
    vectors = load_embeddings(trained.workdir, prepared)
    query = int(np.argmax(prepared.graph.degree()[: prepared.graph.num_items]))
    scores = vectors @ vectors[query]
    scores[query] = -np.inf
    return prepared, vectors, query, int(np.argmax(scores))


def test_every_part_against_a_reference(trained, pair, tmp_path, capsys):
    prepared, vectors, query, target = pair
    names = prepared.item_ids.ids.to_pylist()
    config = dataclasses.replace(
        explained(trained, names[query], names[target], k=500), workdir=str(tmp_path)
    )
    result = explaining.explain(config, prepared, vectors)
    graph = prepared.graph

    holds = {
        int(node): set(graph.neighbors(int(node)).tolist())
        for node in range(graph.num_items, graph.num_nodes)
    }
    both = {node for node, items in holds.items() if {query, target} <= items}
    shared = result["shared_collections"]
    assert shared["count"] == len(both)
    sizes = [entry["items"] for entry in shared["smallest"]]
    assert sizes == sorted(len(holds[node]) for node in both)[:20]

    ids, counts = visit_scores(
        graph, np.array([query, target]), trained.sampling, trained.seed, 40, 1
    )
    of_target = dict(zip(ids[0].tolist(), counts[0].tolist())).get(target, 0)
    of_query = dict(zip(ids[1].tolist(), counts[1].tolist())).get(query, 0)
    assert result["walk"]["query_to_target"]["visits"] == of_target
    assert result["walk"]["target_to_query"]["visits"] == of_query

    embedding = result["embedding"]
    assert embedding["rank_of_target"] == 1
    others = np.delete(vectors @ vectors[target], target)
    score = float(vectors[target] @ vectors[query])
    assert embedding["rank_of_query"] == 1 + int((others > score + 1e-6).sum())
    parts = embedding["similarity"] + embedding["popularity_bias"]
    assert parts == pytest.approx(embedding["score"])

    one, other = (np.asarray(prepared.features[row], np.float64) for row in (query, target))
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert result["content"]["cosine"] == pytest.approx(cosine, abs=1e-5)

    text = capsys.readouterr().out
    assert names[target] in text and "neighbors of both" in text


def test_weights_are_those_that_the_embedding_pools_over(trained, pair):
    prepared, _, query, target = pair
    bases = spectral_bases(trained, prepared, validation_split_of(trained, prepared))
    ids, weights = Encoder.over(trained, prepared, prepared.graph, bases).all_inference_lists
    rows = np.array([target, query])
    some_ids, some_weights = lists_of_some(trained, prepared, rows).lookup(rows.astype(np.int32))
    np.testing.assert_array_equal(some_ids, ids[rows])
    np.testing.assert_allclose(some_weights, weights[rows], atol=1e-6)

    names = prepared.item_ids.ids.to_pylist()
    config = explained(trained, names[query], names[target], k=500)
    found = explaining._pooled_neighbors(config, prepared, np.array([query, target]))
    for name, row in (("query", query), ("target", target)):
        expected = {}
        for node, weight in zip(ids[row].tolist(), weights[row].tolist()):
            if node >= 0 and weight > 0:
                expected[names[node]] = expected.get(names[node], 0.0) + weight
        listed = {other["item_id"]: other["weight"] for other in found[name]}
        assert listed == pytest.approx(expected, abs=1e-6)
        assert list(listed.values()) == sorted(listed.values(), reverse=True)
        assert sum(listed.values()) == pytest.approx(1.0, abs=1e-5)
    lists = [{other["item_id"] for other in found[name]} for name in ("query", "target")]
    assert {other["item_id"] for other in found["in_both"]} == lists[0] & lists[1]


def test_the_mode_prints_and_writes(trained, pair, tmp_path, monkeypatch, capsys):
    prepared, _, query, target = pair
    names = prepared.item_ids.ids.to_pylist()
    config = explained(trained, names[query], names[target])
    written = {}
    monkeypatch.setattr(explaining.files, "write_json", lambda path, value: written.update(
        {str(path): value}
    ))  # fmt: skip
    pinsage_jax.explain(config)
    ((path, value),) = written.items()
    assert pathlib.Path(path).parent == pathlib.Path(trained.workdir) / "explain"
    json.dumps(value, allow_nan=False)
    assert "collections" in capsys.readouterr().out


def test_items_without_edges_or_features(tmp_path, capsys):
    graph = random_graph(np.random.default_rng(1))
    prepared = make_prepared(graph)
    vectors = np.random.default_rng(2).normal(size=(30, 8)).astype(np.float32)
    config = explained(make_config(tmp_path), "item-29", "item-0")
    result = explaining.explain(config, prepared, vectors)
    assert result["content"] is None and result["neighbors"]["query"] == []
    assert result["walk"]["query_to_target"] == {
        "visits": 0, "share": 0.0, "rank": None, "visited_items": 0,
    }  # fmt: skip
    text = capsys.readouterr().out
    assert "The items have no features." in text and "not visited" in text
    assert "neighbors of largest weight in the query's embedding: none" in text


def test_kinds_of_edges_are_told(tmp_path, capsys):
    graph = Graph.from_edges(*np.array([[0, 1, 2, 0, 1, 3], [0, 0, 0, 1, 1, 2]], np.int32), 5, 3)
    # The edges of item 0 are of the kinds built and kept (collection 0), and kept (collection 1).
    kinds = np.array([3, 2, 2, 2, 1, 1], np.uint16)
    np.save(tmp_path / "kinds.npy", kinds)
    prepared = make_prepared(graph)
    manifest = prepared.manifest | {"kind_names": ["built", "kept"]}
    prepared = dataclasses.replace(prepared, folder=tmp_path, manifest=manifest)
    assert explaining.kinds_of_pair(make_prepared(graph), 0, 1) is None
    assert explaining.kinds_of_pair(prepared, 0, 3) == {}
    assert explaining.kinds_of_pair(prepared, 4, 0) == {}
    assert explaining.kinds_of_pair(prepared, 0, 2) == {"built": 0.5, "kept": 0.5}
    # Collection 0 leads to item 1 with 1/2 * 1/3, half by each kind, and collection 1 with 1/4.
    found = explaining.kinds_of_pair(prepared, 0, 1)
    assert list(found) == ["kept", "built"] and found["built"] == pytest.approx(1 / 12 / (5 / 12))
    vectors = np.random.default_rng(2).normal(size=(5, 8)).astype(np.float32)
    config = explained(make_config(tmp_path), "item-0", "item-1")
    result = explaining.explain(config, prepared, vectors)
    assert result["kinds"] == found
    listed = {entry["item_id"]: entry["kinds"] for entry in result["neighbors"]["query"]}
    assert listed == {"item-1": found, "item-2": {"built": 0.5, "kept": 0.5}}
    text = capsys.readouterr().out
    assert "by kind, of a step from query to target: kept 80%, built 20%" in text
    assert "by kind" in text.split("neighbors of largest weight")[1]


@pytest.mark.parametrize(
    "query, target, sentence",
    [
        ("item-1", "item-1", "are both item-1; name two items"),
        ("item-1", "item-x", "--target: there is no item item-x. Did you mean item-"),
        ("nothing", "item-1", "--query: there is no item nothing."),
    ],
)
def test_ids_that_cannot_be_explained(query, target, sentence, tmp_path):
    graph = random_graph(np.random.default_rng(1))
    config = explained(make_config(tmp_path), query, target)
    with pytest.raises(UserError) as caught:
        explaining.explain(config, make_prepared(graph), np.ones((30, 4), np.float32))
    assert sentence in str(caught.value)


def test_hostile_ids_make_safe_and_different_names():
    hostile = ["../../etc/passwd", "a/b", "a:b", "x" * 10_000, "", "\n", "ab", "a", "bc", "c"]
    names = {explaining.file_name(one, other) for one in hostile for other in hostile}
    assert len(names) == len(hostile) ** 2
    for name in names:
        assert len(name) < 120 and set(name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
        )
        assert name.count(".") == 1 and name.endswith(".json")


def test_without_a_target_one_sentence(tmp_path, capsys):
    code = main.main(["program", f"--workdir={tmp_path}", "--mode=explain", "--query=a"])
    assert code == 2
    assert capsys.readouterr().err == "error: --target is required with --mode=explain.\n"
