"""Random-walk neighborhoods equal a slow reference and have the exact probabilities."""

import dataclasses

import numpy as np
import pytest
import reference_sampling as reference
from scipy import stats

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core import splitmix
from pinsage_jax.cpu import counter_random
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling import kernels, neighborhoods
from pinsage_jax.sampling.neighborhoods import (
    Masks,
    WalkTables,
    pooling_weights,
    visit_counts,
    visit_scores,
)
from pinsage_jax.sampling.store import NeighborhoodSource

# Without compilation the hashes are products of NumPy scalars, which warn of overflow.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

# Significance level of the tests of distributions; the seeds are fixed.
UNLIKELY = 1e-4


def complete(items, collections):
    return {(item, group): 1.0 for item in range(items) for group in range(collections)}


def scattered(seed, items, collections, edges):
    rng = np.random.default_rng(seed)
    pairs = zip(rng.integers(0, items, edges), rng.integers(0, collections, edges), strict=True)
    return {(int(item), int(group)): 1.0 for item, group in pairs}


# name: (items, collections, {(item, collection): weight})
SHAPES = {
    "single edge": (1, 1, {(0, 0): 1.0}),
    "no edges": (2, 2, {}),
    "path": (3, 3, {(0, 0): 1.0, (1, 0): 1.0, (1, 1): 1.0, (2, 1): 1.0, (2, 2): 1.0}),
    "star": (9, 1, {(item, 0): 1.0 for item in range(9)}),
    "hub": (7, 8, {(0, group): 1.0 for group in range(8)} | {(i, i): 1.0 for i in range(7)}),
    "complete": (4, 3, complete(4, 3)),
    "two components": (
        8,
        4,
        complete(3, 2) | {(3 + i, 2 + g): 1.0 for i in range(4) for g in range(2)},
    ),
    "single-item collections": (
        4,
        6,
        {(0, 0): 1.0, (1, 1): 1.0, (2, 2): 1.0, (0, 3): 1.0, (1, 3): 1.0},
    ),
    "sparse, isolated items and empty collections": (15, 12, scattered(1, 12, 9, 17)),
    "dense": (10, 6, scattered(2, 10, 6, 60)),
}
SETTINGS = {
    "default-like": SamplingConfig(num_neighbors=4, num_walks=9, walk_length=3, restart=0.3),
    "all nodes": SamplingConfig(
        neighborhood="all", num_neighbors=5, num_walks=9, walk_length=3, restart=0.3
    ),
    "more neighbors than nodes": SamplingConfig(num_neighbors=40, num_walks=7, walk_length=2),
    "one walk of one step": SamplingConfig(num_neighbors=3, num_walks=1, walk_length=1),
    "one neighbor": SamplingConfig(num_neighbors=1, num_walks=12, walk_length=2),
    "no restart": SamplingConfig(num_neighbors=4, num_walks=5, walk_length=5, restart=0.0),
    "many walks": SamplingConfig(num_neighbors=6, num_walks=60, walk_length=2, restart=0.3),
    "restart ends": SamplingConfig(num_neighbors=4, num_walks=9, walk_length=4, restart=0.4),
    "restart ends, all nodes": SamplingConfig(
        neighborhood="all",
        num_neighbors=5,
        num_walks=9,
        walk_length=4,
        restart=0.4,
    ),
    "always restart": SamplingConfig(
        neighborhood="all", num_neighbors=4, num_walks=5, walk_length=3, restart=1.0
    ),
}


def make(shape, uneven):
    items, collections, edges = SHAPES[shape]
    if uneven:
        rng = np.random.default_rng(len(edges))
        edges = {pair: float(np.float32(10 ** rng.uniform(-4, 4))) for pair in edges}
    return reference.small_graph(edges, items, collections, uneven)


def starts_and_masks(graph, rng):
    """(starts, masked_collection, masked_neighbor): every start node with several masks.

    The masked collection is none, one of the node's own, or any; the masked neighbor is any.
    """
    rows = []
    for start in range(graph.num_nodes):
        own = graph.neighbors(start).tolist() if start < graph.num_items else []
        anywhere = int(rng.integers(graph.num_items, graph.num_nodes))
        for masked_collection in {-1, anywhere, *own[:3]}:
            rows.append((start, masked_collection, int(rng.integers(-1, graph.num_nodes))))
    return np.array(rows, np.int32).T


@pytest.mark.kernels
@pytest.mark.parametrize("uneven", [False, True], ids=["unweighted", "uneven weights"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_the_reference(shape, uneven):
    graph = make(shape, uneven)
    tables = WalkTables(graph)
    starts, masked_collection, masked_neighbor = starts_and_masks(graph, np.random.default_rng(3))
    for name, sampling in SETTINGS.items():
        same = {"seed": 11, "epoch": 2, "restart_ends": name.startswith("restart ends")}
        masks = Masks(masked_collection, masked_neighbor)
        got = visit_counts(tables, starts, sampling, masks=masks, **same)
        ids, counts = reference.neighborhoods(
            graph,
            starts,
            sampling,
            masked_collection=masked_collection,
            masked_neighbor=masked_neighbor,
            **same,
        )
        assert got.ids.dtype == np.int32 and got.counts.dtype == np.int32
        np.testing.assert_array_equal(got.ids, ids, err_msg=name)
        np.testing.assert_array_equal(got.counts, counts, err_msg=name)


@pytest.mark.parametrize("trial", range(40))
def test_equal_to_the_reference_on_random_graphs(trial):
    """The package builds the graphs from edges with duplicates, whose weights are added."""
    rng = np.random.default_rng([7, trial])
    items, collections = (int(count) for count in rng.integers(1, 30, 2))
    edges = int(rng.integers(0, 3 * (items + collections)))
    item_ids = rng.integers(0, items, edges, dtype=np.int32)
    collection_ids = rng.integers(0, collections, edges, dtype=np.int32)
    weights = None
    if trial % 2:
        weights = (10 ** rng.uniform(-6, 6, edges)).astype(np.float32)
    graph = Graph.from_edges(item_ids, collection_ids, items, collections, weights)
    assert graph.num_edges == len(set(zip(item_ids.tolist(), collection_ids.tolist())))
    sampling = SamplingConfig(
        neighborhood=("items", "all")[trial // 2 % 2],
        num_neighbors=int(rng.integers(1, 12)),
        num_walks=int(rng.integers(1, 20)),
        walk_length=int(rng.integers(1, 5)),
        restart=float(rng.uniform(0, 1)),
    )
    ends = trial % 3 == 0
    starts, masked_collection, masked_neighbor = starts_and_masks(graph, rng)
    seed = int(rng.integers(0, 2**40))
    got = visit_counts(
        WalkTables(graph),
        starts,
        sampling,
        seed=seed,
        masks=Masks(masked_collection, masked_neighbor),
        restart_ends=ends,
    )
    ids, counts = reference.neighborhoods(
        graph,
        starts,
        sampling,
        seed=seed,
        masked_collection=masked_collection,
        masked_neighbor=masked_neighbor,
        restart_ends=ends,
    )
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(got.counts, counts)


@pytest.mark.kernels
def test_random_numbers_equal_the_reference():
    """For the largest arguments too, since every sum wraps at 64 bits."""
    rng = np.random.default_rng(0)
    values = [0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1]
    values += [int(value) for value in rng.integers(0, 2**64, 20, dtype=np.uint64)]
    for value in values:
        assert int(counter_random.mix(np.uint64(value))) == reference.mix(value)
        key = reference.stream(value, 5, 2**31 - 1)
        assert int(counter_random.stream(np.uint64(value), 5, 2**31 - 1)) == key
        wanted = reference.draw(value, 10**6, 65535)
        assert int(counter_random.draw(np.uint64(value), 10**6, 65535)) == wanted
    for bits in (0, 1, 2**31, 2**32 - 1):
        for size in (1, 2, 3, 7, 2**31 - 1):
            got = counter_random.bounded(np.uint64(bits), size)
            assert got == reference.bounded(bits, size) and 0 <= got < size


@pytest.mark.kernels
def test_different_streams_have_different_keys():
    rng = np.random.default_rng(1)
    streams = {tuple(row) for row in rng.integers(0, 5, (200, 3)).tolist()}
    assert len({int(counter_random.stream(*stream)) for stream in streams}) == len(streams)
    key = np.uint64(counter_random.stream(1, 2, 3))
    draws = {
        int(counter_random.draw(key, walk, index)) for walk in range(20) for index in range(20)
    }
    assert len(draws) == 400


def test_draws_are_uniform_and_independent():
    """Chi-square tests of the leading bits and of pairs of consecutive draws."""
    key = np.uint64(counter_random.stream(3, 0, 17))
    bits = np.array(
        [[int(counter_random.draw(key, walk, i)) for i in range(3)] for walk in range(20_000)],
        np.uint64,
    )
    for cells in (
        bits[:, 0] >> np.uint64(58),
        bits[:, 1] & np.uint64(63),
        (bits[:, 0] >> np.uint64(61)) * np.uint64(8) + (bits[:, 1] >> np.uint64(61)),
        (bits[:, 0] >> np.uint64(61)) * np.uint64(8)
        + ((bits[:, 0] >> np.uint64(29)) & np.uint64(7)),
        (bits[1:, 2] >> np.uint64(61)) * np.uint64(8) + (bits[:-1, 2] >> np.uint64(61)),
    ):
        counts = np.bincount(cells.astype(np.int64), minlength=64)
        assert stats.chisquare(counts).pvalue > UNLIKELY


@pytest.mark.kernels
def test_ties_are_ordered_by_hash():
    """In a complete graph all items are equally likely, so small counts are often equal."""
    graph = reference.small_graph(complete(40, 2), 40, 2, False)
    sampling = SamplingConfig(num_neighbors=12, num_walks=30, walk_length=1)
    starts = np.arange(40, dtype=np.int32)
    got = visit_counts(WalkTables(graph), starts, sampling, seed=5)
    ids, counts = reference.neighborhoods(graph, starts, sampling, seed=5)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(got.counts, counts)
    tied = got.counts[:, 11] == got.counts[:, 10]
    assert tied.mean() > 0.9
    # An order by id would favor low ids for every start node; the hash favors none.
    assert abs(ids[ids >= 0].mean() - 19.5) < 3
    order = [tuple(row) for row in ids.tolist()]
    assert any(list(row) != sorted(row) for row in order)


@pytest.mark.kernels
def test_thousands_of_visits():
    edges = {(0, 0): 1.0, (1, 0): 8.0, (2, 0): 8.0, (3, 0): 8.0, (4, 0): 1.0, (5, 0): 1.0}
    graph = reference.small_graph(edges, 6, 1, True)
    sampling = SamplingConfig(num_neighbors=2, num_walks=1500, walk_length=3)
    got = visit_counts(WalkTables(graph), np.array([0]), sampling, seed=1)
    ids, counts = reference.neighborhoods(graph, [0], sampling, seed=1)
    assert counts.min() > 1023
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(got.counts, counts)


def select(nodes, visits, key, size):
    """The kernel's selection from rows of nodes and visits, int32 [G, V] each."""
    rows, width = nodes.shape
    shifted = [np.concatenate([np.zeros((rows, 1), np.int32), a], 1) for a in (nodes, visits)]
    length = max(width, int(visits.max(initial=0))) + 1
    ids, counts = np.empty((2, rows, size), np.int32)
    kernels.select_top(
        *shifted,
        np.full(rows, width),
        np.full(rows, key, np.uint64),
        np.empty((6, length), np.int32),
        np.empty((2, length), np.uint64),
        (ids, counts),
    )
    return ids, counts


@pytest.mark.kernels
@pytest.mark.parametrize("width", [1, 31, 32, 33, 200])
def test_selection_equals_sorting(width):
    """For few and many nodes, shorter and longer lists, and several distributions of counts."""
    rng = np.random.default_rng(width)
    nodes = np.stack([rng.choice(10**6, width, replace=False) for _ in range(8)]).astype(np.int32)
    kinds = [np.ones((8, width)), rng.integers(1, 4, (8, width)), rng.zipf(1.5, (8, width))]
    kinds.append(rng.permuted(np.tile(np.arange(1, width + 1), (8, 1)), axis=1))
    for visits in kinds:
        visits = np.minimum(visits, 3000).astype(np.int32)
        for size in (1, 2, 3, 10, width, width + 5):
            ids, counts = select(nodes, visits, 99, size)
            for row in range(8):
                visits_of_row = dict(zip(nodes[row].tolist(), visits[row].tolist()))
                expected = reference.top(visits_of_row, 99, size)
                assert (ids[row].tolist(), counts[row].tolist()) == expected


@pytest.mark.kernels
@pytest.mark.parametrize("others", [0, 60])
def test_equal_hashes_are_ordered_by_id(others):
    """Searches two nodes whose hashes agree in all 32 bits."""
    # The kernel XORs the key with the tie stream, so that the key of the hashes is 0.
    key = np.uint64(reference._TIES)
    nodes = np.arange(1, 200_000, dtype=np.uint64)
    hashes = splitmix.mix_array(nodes * splitmix.GOLDEN) >> np.uint64(32)
    order = np.argsort(hashes, kind="stable")
    twice = np.flatnonzero(np.diff(hashes[order]) == 0)
    assert len(twice)
    low, high = (int(nodes[order[twice[0] + step]]) for step in (0, 1))
    assert low < high and reference.mix(low * reference._GOLDEN % 2**64) >> 32 == hashes[low - 1]
    for pair in ((low, high), (high, low)):
        row = np.array([[*range(10**6, 10**6 + others), *pair]], np.int32)
        visits = np.ones_like(row)
        visits[0, -2:] = 2
        assert select(row, visits, key, 1)[0].tolist() == [[low]]
        assert select(row, visits, key, 2)[0].tolist() == [[low, high]]


# Weights.


@pytest.mark.kernels
def test_a_heavy_row_does_not_affect_the_rows_after_it():
    """Running sums start anew in each row, so that a weight of 1e30 is not added to others."""
    heavy = {(0, 0): 1e30, (1, 0): 1e30}
    light = {(2, 1): 1e-6, (3, 1): 3e-6, (4, 1): 2e-6}
    sampling = SamplingConfig(num_neighbors=3, num_walks=60, walk_length=2)
    graph = reference.small_graph(heavy | light, 5, 2, True)
    starts = np.arange(graph.num_nodes, dtype=np.int32)
    got = visit_counts(WalkTables(graph), starts, sampling, seed=0)
    ids, counts = reference.neighborhoods(graph, starts, sampling, seed=0)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(got.counts, counts)
    assert set(got.ids[2].tolist()) == {3, 4, -1}


@pytest.mark.kernels
@pytest.mark.parametrize("bits", [0, 1, 2**31, 2**32 - 1])
def test_weighted_picks_stay_in_their_row(bits):
    """With extreme weights and draws a pick is in its row and never the excluded edge."""
    rows = ([1.0, 1e-30, 1e30], [1e30, 1e-30, 1.0], [1e-30, 1e30, 1e-30], [1e-38, 1e-38], [0.1] * 7)
    for row in rows:
        # A pick outside the row would read the sums of the neighboring rows.
        cumulative = np.concatenate([[1e-9], np.cumsum(row), [1e99]])
        low, high = 1, 1 + len(row)
        assert low <= counter_random.pick_weighted(cumulative, low, high, np.uint64(bits)) < high
        for excluded in range(low, high):
            edge = kernels.pick_weighted_except(cumulative, low, high, excluded, np.uint64(bits))
            assert low <= edge < high and edge != excluded


# Independence of threads and of batches.


@pytest.fixture(scope="module")
def wide():
    rng = np.random.default_rng(9)
    edges = {(int(rng.zipf(1.6) % 700), int(rng.integers(0, 120))): 1.0 for _ in range(3000)}
    return reference.small_graph(
        {pair: float(np.float32(rng.uniform(0.1, 9))) for pair in edges}, 700, 120, True
    )


@pytest.mark.parametrize("neighborhood", ["items", "all"])
def test_same_bits_for_any_number_of_threads(wide, neighborhood):
    sampling = SamplingConfig(neighborhood=neighborhood, num_walks=20, num_neighbors=8)
    tables, starts = WalkTables(wide), np.arange(wide.num_nodes, dtype=np.int32)
    once = visit_counts(tables, starts, sampling, seed=4, epoch=1)
    assert (once.ids >= 0).any(axis=1).sum() > 300
    for threads in (2, 3):
        again = visit_counts(tables, starts, sampling, seed=4, epoch=1, threads=threads)
        np.testing.assert_array_equal(again.ids, once.ids)
        np.testing.assert_array_equal(again.counts, once.counts)


def test_a_node_has_the_same_list_in_any_batch(wide):
    sampling = SamplingConfig(num_walks=20, num_neighbors=8)
    tables, starts = WalkTables(wide), np.arange(wide.num_nodes, dtype=np.int32)
    once = visit_counts(tables, starts, sampling, seed=4)
    rng = np.random.default_rng(2)
    for chosen in (
        rng.permutation(starts),
        starts[::7],
        starts[5:6],
        rng.integers(0, wide.num_nodes, 600).astype(np.int32),
    ):
        again = visit_counts(tables, chosen, sampling, seed=4, threads=2)
        np.testing.assert_array_equal(again.ids, once.ids[chosen])
        np.testing.assert_array_equal(again.counts, once.counts[chosen])
    none = visit_counts(tables, starts[:0], sampling, seed=4, threads=2)
    assert none.ids.shape == (0, 8)


@pytest.mark.parametrize("walks_in_flight", [1, 60, 10**6])
def test_same_bits_for_any_number_of_walks_in_flight(wide, walks_in_flight, monkeypatch):
    sampling = SamplingConfig(num_walks=20, num_neighbors=8)
    tables, starts = WalkTables(wide), np.arange(wide.num_nodes, dtype=np.int32)
    once = visit_counts(tables, starts, sampling, seed=4, restart_ends=True)
    monkeypatch.setattr(neighborhoods, "_WALKS_IN_FLIGHT", walks_in_flight)
    again = visit_counts(tables, starts, sampling, seed=4, restart_ends=True)
    np.testing.assert_array_equal(again.ids, once.ids)
    np.testing.assert_array_equal(again.counts, once.counts)


def test_seed_and_epoch_matter(wide):
    sampling = SamplingConfig(num_walks=20, num_neighbors=8)
    tables, starts = WalkTables(wide), np.arange(wide.num_items, dtype=np.int32)
    lists = [
        visit_counts(tables, starts, sampling, seed=seed, epoch=epoch).ids.tobytes()
        for seed in (0, 1, 2**33)
        for epoch in (0, 1)
    ]
    assert len(set(lists)) == 6


# Walks follow edges.


@pytest.mark.kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_one_walk_follows_edges(shape):
    """One step of one walk visits a collection of the start, then an item of that collection."""
    graph = make(shape, False)
    rows = {node: set(graph.neighbors(node).tolist()) for node in range(graph.num_nodes)}
    sampling = SamplingConfig(neighborhood="all", num_neighbors=4, num_walks=1, walk_length=1)
    starts = np.arange(graph.num_items, dtype=np.int32)
    tables = WalkTables(graph)
    for epoch in range(5):
        got = visit_counts(tables, starts, sampling, seed=0, epoch=epoch)
        for start, row in enumerate(got.ids.tolist()):
            visited = [node for node in row if node >= 0]
            if not rows[start]:
                assert visited == []
                continue
            (collection,) = [node for node in visited if node >= graph.num_items]
            assert collection in rows[start]
            assert all(item in rows[collection] - {start} for item in visited if item != collection)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_walks_stay_in_their_component(shape, uneven):
    graph = make(shape, uneven)
    sampling = SamplingConfig(neighborhood="all", num_neighbors=50, num_walks=50, walk_length=8)
    starts = np.arange(graph.num_nodes, dtype=np.int32)
    got = visit_counts(WalkTables(graph), starts, sampling, seed=0)
    for start in range(graph.num_nodes):
        component, front = {start}, [start]
        while front:
            front = [n for node in front for n in graph.neighbors(node).tolist()]
            front = [node for node in set(front) if node not in component]
            component.update(front)
        visited = {node for node in got.ids[start].tolist() if node >= 0}
        assert start not in visited and visited <= component
        assert bool(visited) == (len(component) > 1)


@pytest.mark.kernels
def test_masked_collections_and_neighbors():
    """An item whose only collection is masked has the list of an isolated item."""
    graph = reference.small_graph({(0, 0): 1.0, (1, 0): 1.0, (1, 1): 1.0, (2, 1): 1.0}, 3, 2, False)
    tables = WalkTables(graph)
    sampling = SamplingConfig(neighborhood="all", num_neighbors=5, num_walks=40, walk_length=3)

    def visited(start, masked_collection=-1, masked_neighbor=-1):
        arrays = [
            np.array([value], np.int32) for value in (start, masked_collection, masked_neighbor)
        ]
        found = visit_counts(
            tables,
            arrays[0],
            sampling,
            seed=0,
            masks=Masks(arrays[1], arrays[2]),
        )
        assert ((found.ids >= 0) == (found.counts > 0)).all()
        return {node for node in found.ids[0].tolist() if node >= 0}

    assert visited(0) == {1, 2, 3, 4}
    assert visited(0, masked_collection=3) == set()
    assert visited(1, masked_collection=3) == {2, 4}
    assert visited(2, masked_collection=3) == {1, 4}
    assert visited(3, masked_collection=4) == {0, 1}
    assert visited(0, masked_neighbor=1) == {2, 3, 4}
    assert visited(0, masked_neighbor=4) == {1, 2, 3}


# Statistics against exact probabilities.

# Item 0 is in every collection, so that two remain if one is masked.
TOY = {
    (0, 0): 1.0,
    (0, 1): 2.5,
    (1, 0): 4.0,
    (1, 1): 0.5,
    (2, 1): 2.0,
    (0, 2): 3.0,
    (2, 2): 1.0,
    (3, 2): 0.25,
    (3, 1): 6.0,
}
TOY_ITEMS, TOY_COLLECTIONS = 4, 3


def transitions(weighted, masked_collection):
    """Transition matrices, float64 [N, N], of the first and the second half of a step.

    The first moves walks from items to collections, the second from collections to items;
    other nodes do not move.  The row of a node without a neighbor sums to 0.
    """
    nodes = TOY_ITEMS + TOY_COLLECTIONS
    mass = np.zeros((nodes, nodes))
    for (item, collection), weight in TOY.items():
        value = weight if weighted else 1.0
        mass[item, TOY_ITEMS + collection] = mass[TOY_ITEMS + collection, item] = value
    from_items, from_collections = np.eye(nodes), np.eye(nodes)
    leaving = mass.copy()
    if masked_collection >= 0:
        leaving[:, masked_collection] = 0
    for node in range(nodes):
        matrix, row = (from_items, leaving) if node < TOY_ITEMS else (from_collections, mass)
        matrix[node] = row[node] / max(row[node].sum(), 1e-300)
    return from_items, from_collections


def expected_visits(start, sampling, weighted, masked_collection, restart_ends=False):
    """float64 [N]: mean visits of one walk, by multiplying transition matrices."""
    from_items, from_collections = transitions(weighted, masked_collection)
    home = np.eye(len(from_items))[start]
    place, visits = home, np.zeros(len(home))
    for step in range(sampling.walk_length):
        if step:
            stays = (1 - sampling.restart) * place
            place = stays + (1 - stays.sum()) * home * (not restart_ends)
        place = place @ from_items
        if sampling.neighborhood == "all":
            # A walk that is still on its start node has not moved in this half step.
            visits += place * (home == 0)
        place = place @ from_collections
        visits += place
    return visits * (home == 0)


def sampled_visits(start, sampling, weighted, masked_collection, epochs, restart_ends=False):
    """int64 [epochs, N] visit counts."""
    tables = WalkTables(reference.small_graph(TOY, TOY_ITEMS, TOY_COLLECTIONS, weighted))
    counts = np.zeros((epochs, tables.graph.num_nodes + 1), np.int64)
    masked_collection = np.array([masked_collection], np.int32)
    for epoch in range(epochs):
        found = visit_counts(
            tables,
            np.array([start]),
            sampling,
            seed=77,
            epoch=epoch,
            masks=Masks(masked_collection),
            restart_ends=restart_ends,
        )
        counts[epoch, found.ids[0]] = found.counts[0]
    return counts[:, :-1]


WALKS = {
    "one step": SamplingConfig(num_walks=8, walk_length=1, restart=0.0, num_neighbors=7),
    "long, no restart": SamplingConfig(num_walks=8, walk_length=4, restart=0.0, num_neighbors=7),
    "restart": SamplingConfig(num_walks=8, walk_length=5, restart=0.4, num_neighbors=7),
    "restart, all nodes": SamplingConfig(
        neighborhood="all", num_walks=8, walk_length=5, restart=0.4, num_neighbors=7
    ),
    "restart ends": SamplingConfig(num_walks=8, walk_length=5, restart=0.4, num_neighbors=7),
}


@pytest.mark.parametrize("masked_collection", [-1, 4, 6])
@pytest.mark.parametrize("start", [0, 3, 5])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("walks", WALKS)
def test_mean_visits_are_exact(walks, weighted, start, masked_collection):
    """Mean visit counts over epochs equal the exact expectation.

    The visits of one walk are dependent, but those of different epochs are not.  The
    covariance of the mean over epochs is estimated from the same sample, so its squared
    Mahalanobis distance from the exact mean is chi-square distributed.
    """
    sampling, epochs = WALKS[walks], 3000
    ends = walks == "restart ends"
    counts = sampled_visits(start, sampling, weighted, masked_collection, epochs, ends)
    exact = sampling.num_walks * expected_visits(start, sampling, weighted, masked_collection, ends)
    assert counts[:, exact == 0].sum() == 0
    varies = counts.std(axis=0) > 0
    distance = (counts.mean(axis=0) - exact)[varies]
    np.testing.assert_allclose(counts.mean(axis=0)[~varies], exact[~varies], atol=1e-9)
    covariance = np.cov(counts[:, varies], rowvar=False, ddof=1).reshape(varies.sum(), -1)
    rank = np.linalg.matrix_rank(covariance, hermitian=True)
    distance_squared = epochs * distance @ np.linalg.pinv(covariance, hermitian=True) @ distance
    assert stats.chi2.sf(distance_squared, rank) > UNLIKELY


@pytest.mark.parametrize("masked_collection", [-1, 4, 5, 6])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("start", range(TOY_ITEMS + TOY_COLLECTIONS))
def test_chi_square_of_one_step(start, weighted, masked_collection):
    """Walks of one step are independent, so their counts are multinomial."""
    walks = 40_000
    sampling = SamplingConfig(num_walks=walks, walk_length=1, num_neighbors=7)
    counts = sampled_visits(start, sampling, weighted, masked_collection, 1)[0]
    exact = walks * expected_visits(start, sampling, weighted, masked_collection)
    assert counts[exact == 0].sum() == 0
    # The other walks returned to the start node or were stuck.
    observed = np.append(counts, walks - counts.sum())[np.append(exact, walks - exact.sum()) > 1e-6]
    wanted = np.append(exact, walks - exact.sum())
    wanted = wanted[wanted > 1e-6]
    if len(wanted) == 1:
        assert observed.tolist() == [walks]
    else:
        assert stats.chisquare(observed, wanted).pvalue > UNLIKELY


# The Python layer above the kernels.


def test_pooling_weights():
    counts = np.array([[6, 3, 1], [2, 0, 0], [0, 0, 0]], np.int32)
    np.testing.assert_allclose(
        pooling_weights(counts, "importance"),
        np.array([[0.6, 0.3, 0.1], [1, 0, 0], [0, 0, 0]], np.float32),
    )
    for pooling in ("mean", "max"):
        np.testing.assert_allclose(
            pooling_weights(counts, pooling),
            np.array([[1 / 3, 1 / 3, 1 / 3], [1, 0, 0], [0, 0, 0]], np.float32),
        )


def test_invalid_starts_and_masks_raise():
    tables = WalkTables(make("path", False))
    for starts in ([-1], [6], [0, 99]):
        with pytest.raises(IndexError, match=r"\[0, 6\)"):
            visit_counts(tables, np.array(starts), SamplingConfig(), seed=0)
    for mask in ("collection", "neighbor"):
        with pytest.raises(ValueError, match=f"the {mask} mask"):
            masks = Masks(**{mask: np.array([3, 3])})
            visit_counts(tables, np.arange(3), SamplingConfig(), seed=0, masks=masks)


def test_mapped_graph_gives_the_same_lists(wide, tmp_path):
    sampling = SamplingConfig(num_walks=10, num_neighbors=4)
    starts = np.arange(50, dtype=np.int32)
    wide.save(tmp_path)
    in_memory = visit_counts(WalkTables(wide), starts, sampling, seed=0)
    mapped = visit_counts(WalkTables(Graph.load(tmp_path)), starts, sampling, seed=0)
    np.testing.assert_array_equal(in_memory.ids, mapped.ids)
    np.testing.assert_array_equal(in_memory.counts, mapped.counts)


def test_visit_scores_rank_every_reached_item():
    graph = make("sparse, isolated items and empty collections", False)
    sampling = SamplingConfig(neighborhood="all", num_neighbors=2, num_walks=3)
    queries = np.arange(graph.num_items, dtype=np.int32)
    ids, counts = visit_scores(graph, queries, sampling, seed=6, num_walks=25, threads=2)
    items_only = dataclasses.replace(sampling, neighborhood="items")
    wanted_ids, wanted_counts = reference.neighborhoods(
        graph, queries, items_only, seed=6, size=graph.num_items - 1, num_walks=25
    )
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(counts, wanted_counts)


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize("neighborhood", ["items", "all"])
def test_cached_lists_equal_sampled_ones(wide, neighborhood, resample, monkeypatch):
    monkeypatch.setattr("pinsage_jax.sampling.store._NODES_PER_STEP", 300)
    sampling = SamplingConfig(
        neighborhood=neighborhood, num_walks=10, num_neighbors=4, resample=resample
    )
    uncached = NeighborhoodSource(wide, sampling, seed=8, threads=1, store="none")
    cached = NeighborhoodSource(wide, sampling, seed=8, threads=2)
    assert cached.num_nodes == (wide.num_nodes if neighborhood == "all" else wide.num_items)
    table = cached.materialize()
    assert table.ids.shape == (cached.num_nodes, 4) and cached.materialize() is table
    before = table.ids.copy(), table.counts.copy()
    rng = np.random.default_rng(0)
    nodes = rng.integers(0, cached.num_nodes, 200).astype(np.int32)
    # Masks that change the lists: the item's first collection, the list's first neighbor.
    first = np.array([(*wide.neighbors(node).tolist(), -1)[0] for node in nodes])
    masked_collection = np.where((rng.random(200) < 0.5) & (nodes < wide.num_items), first, -1)
    masked_neighbor = np.where(rng.random(200) < 0.5, table.ids[nodes, 0], -1)
    masks = {
        "masked_collection": masked_collection.astype(np.int32),
        "masked_neighbor": masked_neighbor.astype(np.int32),
    }
    lists = []
    for epoch in (0, 1):
        for names in (
            (),
            ("masked_collection",),
            ("masked_neighbor",),
            ("masked_collection", "masked_neighbor"),
        ):
            masks_of = {name: masks[name] for name in names}
            one = uncached.lookup(nodes, epoch, **masks_of)
            other = cached.lookup(nodes, epoch, **masks_of)
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_array_equal(one.counts, other.counts)
            lists.append(one.ids)
    # All epochs have the same lists unless the settings re-sample them.
    for first, second in zip(lists[:4], lists[4:]):
        assert np.array_equal(first, second) != resample
    assert not np.array_equal(lists[0], lists[1]) and not np.array_equal(lists[0], lists[2])
    np.testing.assert_array_equal(table.ids, before[0])
    np.testing.assert_array_equal(table.counts, before[1])
