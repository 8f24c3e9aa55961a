"""The CSR graph against a dictionary of sets, in memory and memory-mapped."""

import json

import numpy as np
import pytest

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph import build_blocks, csr
from pinsage_jax.graph.csr import Graph


def reference(items, collections, weights=None, times=None):
    """{(item, collection): (added weight, earliest time)}, one edge at a time."""
    edges = {}
    for edge, pair in enumerate(zip(items.tolist(), collections.tolist(), strict=True)):
        weight, time = edges.get(pair, (0.0, None))
        now = None if times is None else int(times[edge])
        edges[pair] = (
            weight + (0.0 if weights is None else float(weights[edge])),
            now if time is None else min(time, now),
        )
    return edges


def assert_matches(graph, edges, weighted, times=None):
    rows = {node: [] for node in range(graph.num_nodes)}
    for (item, collection), (weight, time) in edges.items():
        rows[item].append((graph.num_items + collection, weight, time))
        rows[graph.num_items + collection].append((item, weight, time))
    assert graph.indptr.dtype == np.int64 and graph.indices.dtype == np.int32
    assert graph.num_edges == len(edges)
    assert graph.degree().dtype == np.int32
    assert graph.degree().tolist() == [len(rows[node]) for node in range(graph.num_nodes)]
    for node in range(graph.num_nodes):
        wanted = sorted(rows[node])
        assert graph.neighbors(node).tolist() == [neighbor for neighbor, _, _ in wanted]
        span = slice(graph.indptr[node], graph.indptr[node + 1])
        if weighted:
            np.testing.assert_allclose(graph.weights[span], [w for _, w, _ in wanted], rtol=1e-6)
        if times is not None and node < graph.num_items:
            assert times[span].tolist() == [time for _, _, time in wanted]
    if not weighted:
        assert graph.weights is None


# Empty, one edge, one item, duplicates everywhere, isolated nodes, ordinary.
SHAPES = [(0, 3, 2), (1, 1, 1), (40, 1, 9), (300, 4, 3), (60, 90, 70), (500, 40, 25)]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_build_matches_reference(shape, weighted, mapped, tmp_path):
    edges, num_items, num_collections = shape
    rng = np.random.default_rng(edges)
    items = rng.integers(0, num_items, edges, dtype=np.int32)
    collections = rng.integers(0, num_collections, edges, dtype=np.int32)
    weights = rng.uniform(0.1, 3.0, edges).astype(np.float32) if weighted else None
    times = rng.integers(-(10**12), 10**12, edges)
    wanted = reference(items, collections, weights, times)
    if mapped:
        np.save(tmp_path / "items.npy", items)
        items = np.load(tmp_path / "items.npy", mmap_mode="r")
    folder = tmp_path / "graph" if mapped else None
    if mapped:
        folder.mkdir()
    graph, out_times = csr.build(
        items, collections, num_items, num_collections, weights, times, folder
    )
    assert_matches(graph, wanted, weighted, out_times)

    saved = tmp_path / "saved" if folder is None else folder
    graph.save(saved)
    names = {"indptr.npy", "indices.npy", "manifest.json"} | (
        {"weights.npy"} if weighted else set()
    )
    assert {path.name for path in saved.iterdir()} == names
    loaded = Graph.load(saved)
    assert_matches(loaded, wanted, weighted)
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["num_edges"] == len(wanted)
    assert set(manifest["checksums"]) == names - {"manifest.json"}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_build_in_windows_has_the_same_bits(shape, weighted, tmp_path, monkeypatch):
    edges, num_items, num_collections = shape
    rng = np.random.default_rng(edges + 1)
    items = (num_items * rng.random(edges) ** 3).astype(np.int32)
    collections = (num_collections * rng.random(edges) ** 2).astype(np.int32)
    weights = rng.uniform(0.1, 3.0, edges).astype(np.float32) if weighted else None
    times = rng.integers(-5, 5, edges)
    arrays = items, collections, num_items, num_collections, weights, times
    whole, whole_times = csr.build(*arrays)
    for block, window in ((7, 160), (1, 1), (64, 50)):
        monkeypatch.setattr(build_blocks, "BLOCK_EDGES", block)
        monkeypatch.setattr(build_blocks, "WINDOW_BYTES", window)
        folder = tmp_path / f"{block}-{window}"
        folder.mkdir()
        graph, found_times = csr.build(*arrays, folder)
        np.testing.assert_array_equal(graph.indptr, whole.indptr)
        np.testing.assert_array_equal(graph.indices, whole.indices)
        np.testing.assert_array_equal(found_times, whole_times)
        if weighted:
            np.testing.assert_array_equal(graph.weights, whole.weights)


def test_row_spans_cover_all_rows():
    indptr = np.array([0, 3, 3, 10, 10, 11, 11])
    assert list(build_blocks.row_spans(indptr, 4)) == [(0, 2), (2, 3), (3, 6)]
    assert list(build_blocks.row_spans(indptr, 100)) == [(0, 6)]
    assert list(build_blocks.row_spans(np.zeros(1, np.int64), 4)) == []


@pytest.mark.parametrize("weighted", [False, True])
def test_without_drops_whole_nodes(weighted):
    rng = np.random.default_rng(5)
    items = rng.integers(0, 30, 200, dtype=np.int32)
    collections = rng.integers(0, 12, 200, dtype=np.int32)
    weights = rng.uniform(0.1, 1.0, 200).astype(np.float32) if weighted else None
    graph = Graph.from_edges(items, collections, 30, 12, weights)
    edges = reference(items, collections, weights)
    for gone_collections, gone_items in [([], []), ([0, 5], []), ([], [3, 29]), ([11], [0, 1])]:
        smaller = graph.without(
            collections=np.array(gone_collections, np.int32), items=np.array(gone_items, np.int32)
        )
        kept = {
            (item, collection): value
            for (item, collection), value in edges.items()
            if item not in gone_items and collection not in gone_collections
        }
        assert smaller.num_nodes == graph.num_nodes
        assert_matches(smaller, kept, weighted)
    assert graph.without(collections=np.arange(12, dtype=np.int32)).num_edges == 0
    with pytest.raises(ValueError, match="0, 30"):
        graph.without(items=np.array([30]))


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_bad_weight_is_named(weight):
    weights = np.array([1.0, 2.0, weight], np.float32)
    with pytest.raises(UserError, match=r"Edge 3 has the weight .*finite and above 0"):
        Graph.from_edges(np.zeros(3, np.int32), np.arange(3, dtype=np.int32), 1, 3, weights)


def test_weights_that_add_up_to_infinity():
    largest = np.full(2, np.finfo(np.float32).max, np.float32)
    with pytest.raises(UserError, match="add up to infinity"):
        Graph.from_edges(np.zeros(2, np.int32), np.zeros(2, np.int32), 1, 1, largest)


def test_too_many_nodes_and_bad_indices():
    none = np.empty(0, np.int32)
    with pytest.raises(UserError, match="32-bit ids"):
        Graph.from_edges(none, none, 2**31 - 1, 1)
    with pytest.raises(ValueError, match="outside"):
        Graph.from_edges(np.array([2], np.int32), np.array([0], np.int32), 2, 1)
    with pytest.raises(ValueError, match="outside"):
        Graph.from_edges(np.array([0], np.int32), np.array([-1], np.int32), 2, 1)
    with pytest.raises(ValueError, match="unequal lengths"):
        Graph.from_edges(np.zeros(2, np.int32), np.zeros(1, np.int32), 2, 1)


@pytest.fixture
def saved(tmp_path):
    items = np.arange(6, dtype=np.int32)
    Graph.from_edges(items, items % 2, 6, 2, np.ones(6, np.float32)).save(tmp_path)
    return tmp_path


def test_load_names_what_is_wrong(saved):
    whole = (saved / "indices.npy").read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    (saved / "indices.npy").write_bytes(bytes(flipped))
    with pytest.raises(UserError, match=r"indices.npy is damaged"):
        Graph.load(saved)
    (saved / "indices.npy").write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"indices.npy"):
        Graph.load(saved)
    np.save(saved / "indices.npy", np.zeros(4, np.int32))
    with pytest.raises(UserError, match=r"indices.npy is int32 \[4\] but its manifest says"):
        Graph.load(saved)
    (saved / "weights.npy").unlink()
    with pytest.raises(UserError, match="does not exist"):
        Graph.load(saved)
    manifest = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(manifest.replace('"num_items": 6', '"num_items": 7'))
    message = r"manifest.json is damaged \(its checksum does not match\)"
    with pytest.raises(UserError, match=message):
        Graph.load(saved)
    files.write_checked_json(saved / "manifest.json", {"format": 99})
    with pytest.raises(UserError, match="another format"):
        Graph.load(saved)
    (saved / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json does not exist"):
        Graph.load(saved)
