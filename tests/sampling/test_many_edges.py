"""Graphs with more than 2**31 entries: rows that lie beyond are read as those of a small graph.

The entries between the rows of the items and those of the collections belong to two items that
nothing leads to, and are a hole of the file, which takes no room on disk.
"""

import numpy as np
import pytest
import reference_sampling as reference

from pinsage_jax.catalog.additions import Additions
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.following import overlay_walks
from pinsage_jax.following.overlay import EdgeEvents, Overlay
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.new_item_walks import NewItemWalks
from pinsage_jax.sampling.neighborhoods import Masks, WalkTables, visit_counts
from pinsage_jax.sampling.pairs import PairSource
from pinsage_jax.sampling.steered_walks import visit_probabilities

ITEMS, COLLECTIONS = 40, 15
HOLE = 2**31 + 2**20
SAMPLING = SamplingConfig(num_neighbors=6, num_walks=20, walk_length=3, restart=0.3)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """One graph twice: small, and with the rows of the collections behind the hole."""
    rng = np.random.default_rng(5)
    pairs = zip(rng.integers(0, ITEMS, 150), rng.integers(0, COLLECTIONS, 150), strict=True)
    edges = {(int(item), int(collection)): 1.0 for item, collection in pairs}
    small = reference.small_graph(edges, ITEMS + 2, COLLECTIONS, weighted=False)
    indptr, half = small.indptr.copy(), small.num_edges
    indptr[ITEMS + 1] += HOLE // 2
    indptr[ITEMS + 2 :] += HOLE
    path = tmp_path_factory.mktemp("hole") / "indices"
    indices = np.memmap(path, np.int32, "w+", shape=(2 * half + HOLE,))
    indices[:half], indices[-half:] = small.indices[:half], small.indices[half:]
    far = Graph(indptr, indices, None, small.num_items, small.num_collections)
    assert far.indptr[-1] - half > 2**31
    yield small, far
    indices._mmap.close()
    path.unlink()


def assert_equal(found, wanted):
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def starts():
    return np.arange(ITEMS, dtype=np.int32)


def test_walks(graphs):
    masks = Masks(np.full(ITEMS, ITEMS + 4, np.int32), np.full(ITEMS, 3, np.int32))
    lists = [visit_counts(WalkTables(g), starts(), SAMPLING, seed=3, masks=masks) for g in graphs]
    assert_equal((lists[1].ids, lists[1].counts), (lists[0].ids, lists[0].counts))
    collections = np.arange(ITEMS + 2, ITEMS + 2 + COLLECTIONS, dtype=np.int32)
    lists = [visit_counts(WalkTables(g), collections, SAMPLING, seed=3) for g in graphs]
    assert_equal((lists[1].ids, lists[1].counts), (lists[0].ids, lists[0].counts))


def test_steered_walks(graphs):
    cosines = np.random.default_rng(1).uniform(-1, 1, (ITEMS, ITEMS + 2)).astype(np.float32)
    found = [visit_probabilities(graph, starts(), cosines, SAMPLING) for graph in graphs]
    assert found[0].any()
    np.testing.assert_array_equal(found[1], found[0])


def test_pairs(graphs):
    batches = [PairSource(g, seed=2, per_epoch=500, power=0.5).batch(0, 300) for g in graphs]
    for name in ("queries", "targets", "source_collection"):
        np.testing.assert_array_equal(getattr(batches[1], name), getattr(batches[0], name))


def test_edges_that_are_added(graphs):
    events = EdgeEvents(
        np.array([0, 7, 9], np.int32), np.array([2, 2, 11], np.int32), np.zeros(3, np.bool_), None
    )
    lists = []
    for graph in graphs:
        overlay = Overlay(graph)
        overlay.apply(events)
        lists.append(overlay_walks.visit_counts(overlay, starts(), SAMPLING, seed=4))
    assert_equal(lists[1], lists[0])


def test_new_items(graphs):
    edges = reference.small_graph({(0, 0): 1.0, (1, 0): 1.0, (1, 1): 1.0}, 2, 2, weighted=False)
    added = Additions(None, np.zeros((2, 1)), edges, np.array([3, 8], np.int32), 0)
    new = np.arange(2, dtype=np.int32) + np.int32(graphs[0].num_nodes)
    lists = [NewItemWalks(WalkTables(g), added).visit_counts(new, SAMPLING, seed=4) for g in graphs]
    assert (lists[0][0] >= 0).any()
    assert_equal(lists[1], lists[0])
