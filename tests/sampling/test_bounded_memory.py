"""Computations that large graphs do in blocks or samples equal their direct versions."""

import pathlib
import types

import numpy as np
import pytest
from small_runs import make_run, nasty_graph, random_params

from pinsage_jax.batching import graph_view
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.graph import build_blocks, csr
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference import layerwise, reduce_kernels, tables
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.inference.map_reduce import reduce_lists, unpacked
from pinsage_jax.inference.tables import ScratchTables
from pinsage_jax.sampling import content_links as content
from pinsage_jax.sampling import spectral
from pinsage_jax.sampling.pairs import PairSource
from pinsage_jax.sampling.spectral import SpectralFeatures

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]


@pytest.mark.parametrize("power", [0.2, 1.0])
@pytest.mark.parametrize("block", [1, 5, 1 << 16])
def test_target_probability_equals_a_sum_over_edges(block, power, monkeypatch):
    monkeypatch.setattr(build_blocks, "BLOCK_EDGES", block)
    graph = nasty_graph()
    mass = np.zeros(graph.num_items)
    for collection in range(graph.num_items, graph.num_nodes):
        members = graph.neighbors(collection)
        for item in members if len(members) > 1 else ():
            mass[item] += (len(members) - 1) ** power / len(members) if power != 1 else 1.0
    found = PairSource(graph, 0, power=power).target_probability()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mass / mass.sum(), rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_spectral_features_are_sums_of_means(threads, monkeypatch):
    monkeypatch.setattr(spectral, "_ROWS_PER_TASK", 3)
    graph = nasty_graph()
    bases = np.random.default_rng(2).normal(size=(graph.num_items, 5)).astype(np.float32)
    means = {
        node: bases[graph.neighbors(node)].mean(axis=0)
        if len(graph.neighbors(node))
        else np.zeros(5)
        for node in range(graph.num_items, graph.num_nodes)
    }
    features = SpectralFeatures(graph, bases, threads)
    nodes = np.arange(graph.num_nodes, dtype=np.int32)
    out = np.full((len(nodes), 5), np.nan, np.float32)
    features.gather(nodes, graph.degree(), np.full(len(nodes), -1, np.int32), out)
    for node in nodes:
        total = np.zeros(5)
        for collection in graph.neighbors(node) if node < graph.num_items else [node]:
            total = total + means[collection]
        length = np.linalg.norm(total)
        expected = total / length if length > 0 and graph.degree()[node] else np.zeros(5)
        np.testing.assert_allclose(out[node], expected, atol=1e-5)


def test_bases_are_the_singular_vectors_of_the_scaled_graph():
    graph = nasty_graph(items=30, collections=10)
    dense = np.zeros((graph.num_items, graph.num_collections))
    for item in range(graph.num_items):
        dense[item, graph.neighbors(item) - graph.num_items] = 1.0
    degree = np.maximum(graph.degree(), 1)
    dense /= np.sqrt(np.outer(degree[:30], degree[30:]))
    left, values, _ = np.linalg.svd(dense, full_matrices=False)
    bases = spectral.item_bases(graph, 4, 0) * np.sqrt(degree[:30])[:, None]
    assert bases.dtype == np.float64 or bases.dtype == np.float32
    assert values[3] - values[4] > 1e-3
    for column in range(4):
        if min(np.abs(np.delete(values, column) - values[column])) > 1e-3:
            assert abs(left[:, column] @ bases[:, column]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("limit", "dim"), [(160, 4), (159, 3), (40, 1), (39, 0)])
def test_spectral_features_of_many_items_have_fewer_dimensions(limit, dim, monkeypatch, tmp_path):
    monkeypatch.setattr(graph_view, "MAX_SPECTRAL_NUMBERS", limit)
    graph = nasty_graph()
    config = Config("train", str(tmp_path), 0, 1, model=ModelConfig(spectral_dim=4))
    prepared = types.SimpleNamespace(graph=graph, manifest={"fingerprint": "x"})
    split = types.SimpleNamespace(train_graph=graph)
    assert graph_view.spectral_bases(config, prepared, split).shape == (graph.num_items, dim)


def test_different_graphs_have_different_digests():
    graph = nasty_graph()
    same = Graph(
        graph.indptr.copy(), graph.indices.copy(), None, graph.num_items, graph.num_collections
    )
    assert same.digest() == graph.digest() and len(graph.digest()) == 16
    weights = np.ones(len(graph.indices), np.float32)
    others = [
        Graph(graph.indptr, graph.indices, weights, graph.num_items, graph.num_collections),
        Graph(graph.indptr, graph.indices, 2 * weights, graph.num_items, graph.num_collections),
        Graph(graph.indptr, graph.indices, None, graph.num_items + 1, graph.num_collections - 1),
        nasty_graph(seed=1),
    ]
    assert len({graph.digest(), *(other.digest() for other in others)}) == 5


def test_released_arrays_keep_their_values(tmp_path):
    graph = nasty_graph()
    graph.save(tmp_path)
    mapped = Graph.load(tmp_path)
    before = mapped.without(items=np.array([5]))
    after = mapped.without(items=np.array([5]))
    np.testing.assert_array_equal(mapped.indices, graph.indices)
    np.testing.assert_array_equal(before.indices, after.indices)
    written = np.lib.format.open_memmap(tmp_path / "w.npy", "w+", np.int64, (5000,))
    written[:] = 7
    for array in (written, written[1:3], np.ones(3), None):
        files.release(array)
    assert (written == 7).all()


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_embeddings_do_not_depend_on_tables_on_disk(layers, tmp_path, monkeypatch):
    run = make_run(model={"num_layers": layers})
    ids, weights = run.lists.all_rows()
    params = random_params(run.model, run.inputs.dim)

    def embed(tables=None):
        options = PassOptions(block=16, quiet=True, tables=tables)
        return embed_all(run.model, params, run.inputs, (ids, weights), options)

    wanted = embed()
    assert not isinstance(embed(tables=ScratchTables(tmp_path)), np.memmap)
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 0)
    found = embed(tables=ScratchTables(tmp_path))
    assert isinstance(found, np.memmap) and not list(tmp_path.iterdir())
    np.testing.assert_array_equal(found, wanted)
    found[3, -1] += 1.0
    files.release(found)
    assert found[3, -1] == wanted[3, -1] + np.float32(1.0)


def test_scratch_arrays(tmp_path):
    for folder, limit, mapped in ((None, 0, False), (tmp_path, 24, False), (tmp_path, 23, True)):
        array = files.scratch_array((3, 2), folder, limit)
        assert isinstance(array, np.memmap) == mapped
        assert array.shape == (3, 2) and array.dtype == np.float32
        array[:] = 2.0
        files.release(array)
        assert (array == 2.0).all()
    private = np.memmap(tmp_path / "c", np.float32, "w+", shape=(9,))
    private = np.memmap(tmp_path / "c", np.float32, "c", shape=(9,))
    private[:] = 3.0
    files.release(private)
    assert (private == 3.0).all()
    with pytest.raises(FileNotFoundError):
        files.scratch_array((3, 2), tmp_path / "none", 0)


def test_release_reduces_the_resident_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(1 << 22))
    array = files.read_array(tmp_path / "a.npy")

    def mapped_kib() -> int:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    array.sum()
    full = mapped_kib()
    files.release(array)
    assert mapped_kib() < full - 20_000
    assert array.sum() == 1 << 22


@pytest.mark.parametrize("count", [1, 3, 10, 11])
def test_evenly_spaced(count):
    candidates = np.arange(10) * 7
    chosen = content.evenly_spaced(candidates, count)
    assert len(chosen) == min(count, 10) and np.isin(chosen, candidates).all()
    assert (np.diff(chosen) > 0).all()
    if count >= 10:
        np.testing.assert_array_equal(chosen, candidates)
    assert len(content.evenly_spaced(candidates[:0], count)) == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_links_of_some_items(threads, monkeypatch):
    monkeypatch.setattr(content, "_QUERY_ROWS", 1)
    monkeypatch.setattr(content, "_ROWS_PER_THREAD", 2)
    features = np.random.default_rng(4).normal(size=(30, 6)).astype(np.float32)
    wanted, linked = np.array([0, 7, 8, 29]), np.arange(1, 30, 2)
    links = graph_view.item_links(features, 30, wanted, linked, 5, threads)
    ids, shares = links.lookup(np.arange(30))
    assert links.num_items == 30 and links.ids.shape == (5, 5)
    wanted_ids, wanted_shares = content.content_links(features, wanted, linked, 5)
    np.testing.assert_array_equal(ids[wanted], wanted_ids)
    np.testing.assert_array_equal(shares[wanted], wanted_shares)
    others = np.setdiff1d(np.arange(30), wanted)
    assert (ids[others] == -1).all() and not shares[others].any()


def test_bases_of_a_large_graph_span_the_same_space(monkeypatch):
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 6, 1500), rng.integers(0, 6, 400)
    items = rng.integers(0, 1500, 20_000)
    collections = rng.integers(0, 400, 20_000)
    alike = rng.random(20_000) < 0.8
    by_topic = [np.flatnonzero(topics[1] == topic) for topic in range(6)]
    collections[alike] = [rng.choice(by_topic[topic]) for topic in topics[0][items[alike]]]
    graph = Graph.from_edges(items.astype(np.int32), collections.astype(np.int32), 1500, 400)
    expected = spectral.item_bases(graph, 6, 0)
    monkeypatch.setattr(spectral, "MOST_MATRIX_EDGES", 100)
    monkeypatch.setattr(spectral, "_ROWS_PER_STEP", 333)
    monkeypatch.setattr(build_blocks, "BLOCK_EDGES", 1000)
    found = spectral.item_bases(graph, 6, 0, threads=2)
    assert found.shape == expected.shape and found.dtype == np.float32
    # Times the square root of the degree both are orthonormal, so the angles say how far apart.
    root = np.sqrt(np.maximum(graph.degree()[:1500], 1))[:, None]
    np.testing.assert_allclose(np.linalg.norm(found * root, axis=0), 1, atol=1e-4)
    first, second = (np.linalg.qr(bases * root)[0] for bases in (expected, found))
    assert np.linalg.svd(first.T @ second)[1].min() > 0.9
    np.testing.assert_array_equal(spectral.item_bases(graph, 6, 0, threads=1), found)


def test_a_graph_without_dependent_columns_has_bases():
    # One edge: a matrix of rank 1 has columns of zeros where it has no more directions.
    graph = Graph.from_edges(np.zeros(1, np.int32), np.zeros(1, np.int32), 5, 4)
    assert np.isfinite(spectral.large_bases(graph, 2, 0)).all()


@pytest.mark.parametrize("pooling", ["importance", "max"])
def test_packed_messages_are_near_float32(pooling):
    rng = np.random.default_rng(1)
    rows = np.maximum(rng.normal(size=(40, 37)), 0).astype(np.float32)
    rows[3] = 0
    packed = np.empty((40, 37 + reduce_kernels.SCALE_BYTES), np.uint8)
    reduce_kernels.pack_rows(rows, packed)
    step = rows.max(axis=1, keepdims=True) / 255
    assert (np.abs(unpacked(packed) - rows) <= 0.51 * step).all()
    ids = rng.integers(-1, 40, (25, 6)).astype(np.int32)
    weights = np.where(ids >= 0, rng.random((25, 6)), 0).astype(np.float32)
    found, exact, decoded = (np.empty((25, 37), np.float32) for _ in range(3))
    reduce_lists(pooling, packed, ids, weights, found)
    reduce_lists(pooling, unpacked(packed), ids, weights, decoded)
    reduce_lists(pooling, rows, ids, weights, exact)
    np.testing.assert_allclose(found, decoded, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, exact, atol=float(step.max() * weights.sum(axis=1).max()))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_catalog_of_packed_messages_has_almost_the_same_embeddings(layers, monkeypatch, tmp_path):
    run = make_run(model={"num_layers": layers})
    lists, params = run.lists.all_rows(), random_params(run.model, run.inputs.dim)

    def embedded(stored=None):
        options = PassOptions(block=16, quiet=True, tables=stored)
        return np.array(embed_all(run.model, params, run.inputs, lists, options))

    exact = embedded()
    monkeypatch.setattr(layerwise, "MOST_FLOAT_BYTES", 0)
    found = embedded(tables.PersistentTables(tmp_path, 7))
    assert found.shape == exact.shape
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    np.testing.assert_array_equal(embedded(), found)


def test_a_large_graph_without_nodes_is_a_file(monkeypatch, tmp_path):
    graph = nasty_graph()
    collections, items = np.array([1], np.int32), np.array([2, 5], np.int32)
    expected = graph.without(collections, items, tmp_path)
    assert not isinstance(expected.indices, np.memmap)
    monkeypatch.setattr(csr, "MOST_COPIED_BYTES", 0)
    monkeypatch.setattr(build_blocks, "BLOCK_EDGES", 3)
    found = graph.without(collections, items, tmp_path)
    assert isinstance(found.indices, np.memmap) and not list(tmp_path.iterdir())
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_many_isolated_items_have_fewer_candidates(monkeypatch):
    assert 250_000 * content.MAX_CANDIDATES <= content.MOST_COMPARISONS
