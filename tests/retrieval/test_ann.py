"""Indexes: recall and exact scores, refusal of damaged or foreign files, and the table."""

import dataclasses
import json
import logging
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_catalog import make_config, make_prepared, random_graph

import pinsage_jax
from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.search import RecommendConfig, SearchConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.export.writer import Embeddings, write_embeddings
from pinsage_jax.recommend.choice import Choice
from pinsage_jax.recommend.recommend import recommend
from pinsage_jax.recommend.recommender import Recommender
from pinsage_jax.recommend.scores import histories_of
from pinsage_jax.retrieval import ann, index_table, neighbors, saved_index
from pinsage_jax.retrieval.ann import AnnSearch, Setting
from pinsage_jax.retrieval.topk import top_k
from pinsage_jax.stages import search

ITEMS, WIDTH = 400, 12
SETTINGS = "hnsw8:16,hnsw8:300,ivfpq12:99,ivfpq4:1"


@pytest.fixture(scope="module")
def indexed_catalog(tmp_path_factory):
    """(config, prepared, vectors) of a workdir with embeddings and indexes."""
    workdir = tmp_path_factory.mktemp("indexed")
    rng = np.random.default_rng(1)
    prepared = make_prepared(random_graph(rng, ITEMS, 40, 900, 30))
    centers = rng.normal(size=(25, WIDTH))
    vectors = centers[rng.integers(0, 25, ITEMS)] + 0.4 * rng.normal(size=(ITEMS, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors[:, -1] = 1.0
    write_embeddings(workdir, EmbedConfig(), Embeddings(prepared.item_ids, vectors), {"step": 1})
    config = dataclasses.replace(
        make_config(workdir, k=5), mode="index", search=SearchConfig(index_settings=SETTINGS)
    )
    return config, prepared, vectors, index_table.build_indexes(config, vectors, 1)


def searching(config, name):
    return dataclasses.replace(config, search=SearchConfig(search=name))


def naive(vectors, rows, k=10):
    scores = vectors[rows] @ vectors.T
    scores[np.arange(len(rows)), rows] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def test_plain_faiss_opens_an_index_and_finds_ids(indexed_catalog):
    import faiss

    config, prepared, vectors, result = indexed_catalog
    folder = index_table.pathlib.Path(config.workdir) / "index"
    table = pq.read_table(folder / "item_ids.parquet")
    assert table.column("position").to_pylist() == list(range(ITEMS))
    files.verify_checksums(folder, result["ids"])
    index = faiss.read_index(str(folder / "hnsw8.faiss"))
    faiss.ParameterSpace().set_index_parameter(index, "efSearch", 300)
    labels = index.search(vectors[:5], 3)[1]
    assert labels.dtype == np.int64
    found = table.column("item_id").take(labels.ravel()).to_pylist()
    best = np.argsort(-(vectors[:5] @ vectors.T), axis=1, kind="stable")[:, :3]
    wanted = prepared.item_ids.names(best.ravel()).to_pylist()
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= 14


def test_the_table_reports_the_recall_of_each_setting(indexed_catalog, tmp_path, capsys):
    config, _, vectors, result = indexed_catalog
    saved = json.loads((index_table.pathlib.Path(config.workdir) / "index/index.json").read_text())
    assert saved == result
    lines = {line["setting"]: line for line in result["settings"]}
    assert list(lines) == ["exact", *SETTINGS.split(",")]
    rows = np.arange(ITEMS)
    expected = [set(row) for row in naive(vectors, rows).tolist()]
    for name, line in lines.items():
        assert 0 <= line["p50_ms"] <= line["p99_ms"] and line["timed_queries"] >= 5
        if name == "exact":
            assert line["recall@10"] == 1.0
            continue
        search = saved_index.open_search(searching(config, name), vectors, 1)
        found = search.top_k(vectors, 10, rows)[0].tolist()
        recall = np.mean([len(set(a) & b) / 10 for a, b in zip(found, expected)])
        assert line["recall@10"] == pytest.approx(recall, abs=1e-9)
        assert line["bytes"] > 0 and line["build_seconds"] > 0
    assert lines["hnsw8:300"]["recall@10"] > 0.97
    assert lines["ivfpq12:99"]["recall@10"] > lines["ivfpq4:1"]["recall@10"] + 0.03
    assert lines["hnsw8:300"]["recall@10"] > lines["hnsw8:16"]["recall@10"]
    # Exact reranking corrects the order that quantized scores give.
    assert lines["ivfpq12:99"]["recall@10"] >= lines["ivfpq12:99"]["recall@10_unreranked"]
    text = index_table.format_table(result["settings"]).splitlines()
    assert len(text) == 6 and "recall@10" in text[0] and text[2].startswith("hnsw8:16")
    narrow = index_table.format_table(result["settings"], 44).splitlines()
    assert max(map(len, narrow)) <= 44 and text[0].startswith(narrow[0])
    assert narrow[-1] == "Not shown: p99 ms, build s, MiB."


def test_scores_and_order_are_exact(indexed_catalog):
    config, _, vectors, _ = indexed_catalog
    search = saved_index.open_search(searching(config, "ivfpq12:99"), vectors, 1)
    rows = np.array([3, 77])
    ids, scores = search.top_k(vectors[rows], 7, rows)
    assert ids.dtype == np.int32 and not (ids == rows[:, None]).any()
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", vectors[ids], vectors[rows]), 1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    # More neighbors are requested than the catalog has.
    ids, scores = search.top_k(vectors[rows], ITEMS + 5, rows)
    assert (ids[:, -1] == -1).all() and np.isneginf(scores[:, -1]).all()


def test_cells_of_a_large_catalog_are_found_by_an_inverted_file(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, 8))
    vectors = (centers[rng.integers(0, 40, 3000)] + 0.2 * rng.normal(size=(3000, 8))).astype("f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = np.arange(0, 3000, 30)
    expected = top_k(vectors[rows], vectors, 10, rows)[0]
    monkeypatch.setattr(ann, "MOST_FLAT_VECTORS", 1000)
    monkeypatch.setattr(ann, "_LARGE_CELLS", 64)
    setting = Setting.parse("ivfpq8:16", "search")
    path = tmp_path / "index.faiss"
    ann.save(ann.build(vectors, setting, 0, 1), path)
    index = ann.load(path, files.checksum(path), vectors)
    found, scores = AnnSearch(index, setting, vectors, 1).top_k(vectors[rows], 10, rows)
    assert index.nlist == 64 and index.ntotal == 3000
    hits = [len({*one} & {*other}) for one, other in zip(found.tolist(), expected.tolist())]
    assert np.mean(hits) > 8
    chosen = vectors[found[0]] @ vectors[rows[0]]
    np.testing.assert_allclose(scores[0], chosen, rtol=1e-6)


def test_neighbors_by_an_index(indexed_catalog, capsys):
    config, prepared, vectors, _ = indexed_catalog
    config = searching(config, "hnsw8:300")
    config = dataclasses.replace(
        config, evaluate=dataclasses.replace(config.evaluate, query="item-9")
    )
    neighbors.print_neighbors(config, prepared, vectors)
    exact = capsys.readouterr().out
    search = saved_index.open_search(config, vectors, 1)
    neighbors.print_neighbors(config, prepared, vectors, search)
    assert capsys.readouterr().out == exact


@pytest.mark.parametrize("by", ["mean", "power", "attention", "interests"])
@pytest.mark.parametrize("hide", [True, False])
def test_recommendations_among_everything_are_the_exact_ones(indexed_catalog, by, hide):
    """An index that returns the whole catalog misses nothing: the scoring is the same."""
    config, prepared, vectors, _ = indexed_catalog
    graph = prepared.graph

    class Everything(AnnSearch):
        def __init__(self):
            self.setting = Setting("hnsw", 8, 300)

        def candidates(self, queries, k):
            return np.tile(np.arange(ITEMS), (len(queries), 1))

    value = {"power": 2.0, "attention": 0.3}.get(by, 1.0)
    exact = Recommender(
        RecommendConfig(),
        Choice(by, value),
        vectors,
        graph.degree()[:ITEMS],
        1,
        exclude_history=hide,
    )
    histories = histories_of(graph)
    # A collection without items has no query vector.
    histories = histories.select(np.flatnonzero(np.diff(histories.indptr)))
    ids, scores = exact.top_k(histories, 6)
    found, values = dataclasses.replace(exact, search=Everything()).top_k(histories, 6)
    np.testing.assert_allclose(values, scores, rtol=1e-4, atol=1e-6)
    assert (found == ids).mean() > 0.98  # but for the order of near ties
    real = saved_index.open_search(searching(config, "hnsw8:300"), vectors, 1)
    near, _ = dataclasses.replace(exact, search=real).top_k(histories, 6)
    assert np.mean([len(set(a) & set(b)) / 6 for a, b in zip(near.tolist(), ids.tolist())]) > 0.6
    inside = [set(row.tolist()) & set(histories.of(user)) for user, row in enumerate(found)]
    assert any(inside) != hide


def test_recommendations_by_an_index_log_its_recall(indexed_catalog, tmp_path, caplog):
    config, prepared, vectors, _ = indexed_catalog
    search = saved_index.open_search(searching(config, "hnsw8:300"), vectors, 1)
    config = dataclasses.replace(
        config,
        workdir=str(tmp_path),
        recommend=RecommendConfig(recommend_by="mean"),
        evaluate=dataclasses.replace(config.evaluate, k=4),
        search=SearchConfig(search="hnsw8:300", min_degree=2),
    )
    with caplog.at_level(logging.INFO, "absl"):
        recommend(config, prepared, vectors, 1, lambda: None, search)
    logged = r"recall@4 of hnsw8:300 against exact search is (0\.[5-9]|1\.0)\d+"
    assert re.search(logged, caplog.text)
    listed = pq.read_table(tmp_path / "recommendations.parquet")["item_id"].to_pylist()
    degree = prepared.graph.degree()
    assert len(listed) > 100
    assert min(degree[int(name.removeprefix("item-"))] for name in set(listed)) == 2


def test_an_index_is_not_used_when_it_should_not(indexed_catalog, tmp_path):
    config, _, vectors, _ = indexed_catalog
    folder = index_table.pathlib.Path(config.workdir) / "index"
    with pytest.raises(UserError, match=r"no such index \(built: hnsw8, ivfpq12, ivfpq4\)"):
        saved_index.open_search(searching(config, "hnsw9:16"), vectors, 1)
    with pytest.raises(UserError, match="holds no index; run --mode=index first"):
        elsewhere = dataclasses.replace(searching(config, "hnsw8:16"), workdir=str(tmp_path))
        saved_index.open_search(elsewhere, vectors, 1)
    for text in ("hnsw", "hnsw1:4", "ivfpq8:0", "flat:3"):
        with pytest.raises(UserError, match=r"--search: .* is no index; write hnswM:EF"):
            saved_index.open_search(searching(config, text), vectors, 1)
    path = folder / "hnsw8.faiss"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=r"hnsw8\.faiss is missing or damaged"):
            saved_index.open_search(searching(config, "hnsw8:16"), vectors, 1)
    finally:
        path.write_bytes(whole)
    with pytest.raises(UserError, match="indexes other vectors"):
        saved_index.open_search(searching(config, "hnsw8:16"), vectors[:-1], 1)
    # The embeddings were exported again after the index was built.
    manifest = folder.parent / "embeddings" / "_manifest.json"
    before = manifest.read_text()
    try:
        manifest.write_text(before.replace("part-00000", "part-00001"))
        with pytest.raises(UserError, match="built from other embeddings"):
            saved_index.open_search(searching(config, "hnsw8:16"), vectors, 1)
    finally:
        manifest.write_text(before)


def test_small_catalogs_have_no_quantized_index(tmp_path, capsys):
    prepared = make_prepared(random_graph(np.random.default_rng(0)))
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    write_embeddings(tmp_path, EmbedConfig(), Embeddings(prepared.item_ids, vectors), {"step": 1})
    config = dataclasses.replace(
        make_config(tmp_path), search=SearchConfig(index_settings="ivfpq4:2,hnsw4:8")
    )
    result = index_table.build_indexes(config, vectors, 1)
    assert [line["setting"] for line in result["settings"]] == ["exact", "hnsw4:8"]
    rows = np.arange(30)
    exact = top_k(vectors, vectors, 10, rows)[0]
    search = saved_index.open_search(searching(config, "hnsw4:8"), vectors, 1)
    assert (search.top_k(vectors, 10, rows)[0] == exact).mean() > 0.5


def test_bytes_per_vector_divide_the_dimensions():
    assert ann.fit_code_size(Setting("ivfpq", 64, 8), 96).name == "ivfpq48:8"
    assert ann.fit_code_size(Setting("ivfpq", 64, 8), 31).name == "ivfpq31:8"
    assert ann.fit_code_size(Setting("hnsw", 64, 8), 31).name == "hnsw64:8"


def test_without_faiss_the_extra_is_named(indexed_catalog, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    config, _, vectors, _ = indexed_catalog
    with pytest.raises(UserError, match=r"pip install 'pinsage-jax\[ann\]'"):
        saved_index.open_search(searching(config, "hnsw8:16"), vectors, 1)


def test_the_stage(tmp_path, monkeypatch):
    prepared = make_prepared(random_graph(np.random.default_rng(0)))
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    write_embeddings(tmp_path, EmbedConfig(), Embeddings(prepared.item_ids, vectors), {"step": 1})
    monkeypatch.setattr(search, "open_prepared", lambda workdir: prepared)
    config = dataclasses.replace(make_config(tmp_path), mode="index")
    assert "hnsw16:32" in {line["setting"] for line in search.index(config)["settings"]}
    pinsage_jax.neighbors(dataclasses.replace(searching(config, "hnsw16:32"), mode="neighbors"))
    assert (tmp_path / "related_items.parquet").exists()
