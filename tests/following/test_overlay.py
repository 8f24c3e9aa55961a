"""A changing graph against the graph that is built anew, and walks and shares over both."""

import dataclasses

import numpy as np
import pytest
from changing_graph import apply_slowly, built, edge_weights, random_events
from small_catalog import random_graph

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.following import overlay_walks
from pinsage_jax.following.overlay import EdgeEvents, Overlay
from pinsage_jax.following.overlay_walks import StaleShares
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts

# Without compilation the hashes are products of NumPy scalars, which warn of overflow.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

SAMPLING = SamplingConfig(num_neighbors=6, num_walks=40, walk_length=3, restart=0.3)


@pytest.mark.kernels
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_and_walks_are_those_of_the_changed_graph(weighted):
    rng = np.random.default_rng(3)
    graph = random_graph(rng, weighted=weighted)
    edges, overlay = edge_weights(graph), Overlay(graph)
    # Many rounds, so that the pool is compacted.
    for round_ in range(40):
        new = int(round_ % 9 == 0)
        overlay.add_collections(new)
        events = random_events(rng, graph, overlay.num_collections, 15, weighted)
        before = dict(edges)
        apply_slowly(edges, events)
        applied = overlay.apply(events)
        differ = {p for p in before.keys() | edges.keys() if before.get(p) != edges.get(p)}
        found = set(zip(applied.items.tolist(), (applied.collections - graph.num_items).tolist()))
        assert found == differ
    after = built(edges, graph.num_items, overlay.num_collections, weighted)
    np.testing.assert_array_equal(overlay.degree, after.degree())
    every = np.arange(after.num_nodes)
    indptr, indices = overlay.rows_of(every)
    np.testing.assert_array_equal(indptr, after.indptr)
    np.testing.assert_array_equal(indices, after.indices)
    starts = np.arange(graph.num_items, dtype=np.int32)
    expected = visit_counts(WalkTables(after), starts, SAMPLING, seed=8)
    ids, counts = overlay_walks.visit_counts(overlay, starts, SAMPLING, 8, threads=2)
    np.testing.assert_array_equal(ids, expected.ids)
    np.testing.assert_array_equal(counts, expected.counts)


def test_the_last_event_of_an_edge_counts():
    graph = Graph.from_edges(np.array([0, 1], np.int32), np.array([0, 0], np.int32), 3, 1)
    overlay = Overlay(graph)
    twice = EdgeEvents(
        np.array([2, 0, 2], np.int32), np.zeros(3, np.int32), np.array([False, True, True])
    )
    applied = overlay.apply(twice)
    assert applied.items.tolist() == [0]
    assert overlay.neighbors(3).tolist() == [1] and overlay.degree.tolist() == [0, 1, 0, 1]
    assert len(overlay.apply(twice).items) == 0


def test_unnumbered_nodes_are_refused():
    overlay = Overlay(random_graph(np.random.default_rng(0)))
    one = np.zeros(1, np.int32)
    for items, collections in ((one + 30, one), (one, one + 9), (one - 1, one)):
        with pytest.raises(IndexError, match="not numbered"):
            overlay.apply(EdgeEvents(items, collections, np.zeros(1, bool)))


def transitions(graph, weights):
    """Steps from items to items, and half steps from items to collections, by edge weights."""
    matrix = np.zeros((graph.num_items, graph.num_collections))
    for (item, collection), weight in weights.items():
        matrix[item, collection] = weight
    down = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-30)
    up = matrix.T / np.maximum(matrix.T.sum(1, keepdims=True), 1e-30)
    return down @ up, down, matrix


def slow_shares(graph, edges, applied, sampling):
    """The sum of the module docstring, forward from every item."""
    step, half, matrix = transitions(graph, edges)
    length, restart = sampling.walk_length, sampling.restart
    times = np.zeros(length)
    for begin in range(length):
        # The distance from the last restart, before step `begin`.
        for distance in range(begin):
            times[distance] += (1 - restart) ** distance * restart
        times[begin] += (1 - restart) ** begin
    shares, power = np.zeros(graph.num_items), np.eye(graph.num_items)
    for t in range(length):
        for item, node, size in zip(applied.items, applied.collections, applied.sizes):
            collection = node - graph.num_items
            for end, reach in (
                (matrix[item].sum(), power[:, item]),
                (matrix[:, collection].sum(), (power @ half)[:, collection]),
            ):
                shares += times[t] * reach * size / end
        power = power @ step
    return shares


@pytest.mark.kernels
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_are_those_of_exact_probabilities(weighted):
    rng = np.random.default_rng(11)
    graph = random_graph(rng, weighted=weighted)
    edges, overlay = edge_weights(graph), Overlay(graph)
    stale = StaleShares(overlay, SAMPLING, 0.0)
    events = EdgeEvents(
        np.array([3, 7, 1], np.int32), np.array([2, 5, 4], np.int32), np.zeros(3, bool),
        np.full(3, 1.5, np.float32) if weighted else None,
    )  # fmt: skip
    apply_slowly(edges, events)
    applied = overlay.apply(events)
    assert len(applied.items) >= 2
    stale.add(applied)
    np.testing.assert_allclose(stale.shares, slow_shares(graph, edges, applied, SAMPLING), 1e-9)
    assert not stale._mass.any()
    # A threshold leaves out at most itself for each event and half step.
    exact = stale.shares.copy()
    rough = StaleShares(overlay, SAMPLING, 0.1)
    rough.add(applied)
    lost = exact - rough.shares
    assert lost.min() > -1e-12 and 0 < lost.max() < 0.1 * len(applied.items) * 3 * 2 * 3


def test_shares_bound_the_walks_that_change():
    rng = np.random.default_rng(5)
    graph = random_graph(rng, 60, 20, 240)
    overlay = Overlay(graph)
    sampling = dataclasses.replace(SAMPLING, num_walks=4000, num_neighbors=60)
    starts = np.arange(60, dtype=np.int32)
    before = overlay_walks.visit_counts(overlay, starts, sampling, 1)
    stale = StaleShares(overlay, sampling, 0.0)
    one = EdgeEvents(np.array([4], np.int32), np.array([3], np.int32), np.zeros(1, bool))
    stale.add(overlay.apply(one))
    after = overlay_walks.visit_counts(overlay, starts, sampling, 1)
    for item in range(60):
        old = dict(zip(before[0][item].tolist(), before[1][item].tolist()))
        new = dict(zip(after[0][item].tolist(), after[1][item].tolist()))
        moved = sum(abs(old.get(i, 0) - new.get(i, 0)) for i in old.keys() | new.keys())
        # A walk that changes moves at most all of its visits.
        bound = min(stale.shares[item], 1.0) * sampling.num_walks
        assert moved <= 2 * sampling.walk_length * (bound + 4 * np.sqrt(bound) + 4)


def test_an_item_without_edges_is_stale_when_it_loses_its_last():
    graph = Graph.from_edges(np.array([0, 1], np.int32), np.array([0, 0], np.int32), 3, 1)
    overlay = Overlay(graph)
    stale = StaleShares(overlay, SAMPLING, 0.0)
    last = EdgeEvents(np.array([0], np.int32), np.zeros(1, np.int32), np.array([True]))
    stale.add(overlay.apply(last))
    assert stale.shares[0] >= 1 and stale.shares[2] == 0
