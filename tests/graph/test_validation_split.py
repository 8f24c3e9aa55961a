"""The validation split against its own definition, checked pair by pair."""

import numpy as np
import pytest

from pinsage_jax.config.data import SplitConfig
from pinsage_jax.graph import validation_split as split_module
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.pair_draws import pairs_per_group
from pinsage_jax.graph.validation_split import validation_split, with_more_cold_pairs


def random_graph(seed, num_items=200, num_collections=60, edges=900):
    rng = np.random.default_rng(seed)
    # The last items and collections stay isolated; collection 0 holds one item.
    items = rng.integers(0, num_items - 5, edges, dtype=np.int32)
    collections = rng.integers(1, num_collections - 3, edges, dtype=np.int32)
    return Graph.from_edges(
        np.append(items, np.int32(3)), np.append(collections, np.int32(0)),
        num_items, num_collections,
    )  # fmt: skip


def members(graph, collection):
    return graph.neighbors(graph.num_items + collection)


def all_pairs(graph, split):
    """{collection: every pair allowed}, by two loops."""
    degree = split.train_graph.degree()
    return {
        int(c): {
            (int(query), int(target))
            for query in members(graph, c)
            for target in members(graph, c)
            if query != target and degree[query] > 0
        }
        for c in split.collections
    }


@pytest.mark.parametrize("limit", [7, 100, 10**6])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_pairs_follow_the_definition(seed, limit):
    graph = random_graph(seed % 1000)
    settings = SplitConfig(0.2, 0.15, limit)
    split = validation_split(graph, settings, seed)
    assert split.collections.dtype == split.items.dtype == split.pairs.dtype == np.int32
    assert split.kinds.dtype == np.dtype("<U4")
    degree = graph.degree()
    eligible = [c for c in range(60) if degree[200 + c] >= 2]
    assert len(split.collections) == round(0.2 * len(eligible))
    assert set(split.collections.tolist()) <= set(eligible)
    assert len(split.items) == round(0.15 * (degree[:200] > 0).sum())
    assert (degree[split.items] > 0).all()

    expected = graph.without(collections=split.collections, items=split.items)
    np.testing.assert_array_equal(split.train_graph.indptr, expected.indptr)
    np.testing.assert_array_equal(split.train_graph.indices, expected.indices)
    train_degree = split.train_graph.degree()
    assert not train_degree[split.items].any()
    assert not train_degree[200 + split.collections].any()

    allowed = all_pairs(graph, split)
    possible = np.array([len(pairs) for pairs in allowed.values()])
    found = [tuple(pair) for pair in split.pairs.tolist()]
    assert len(found) <= limit and set(found) <= set().union(*allowed.values())
    if limit == 10**6:
        assert len(found) == possible.sum()
        assert sorted(found) == sorted(pair for pairs in allowed.values() for pair in pairs)
    elif limit == 100:
        # The largest equal number per collection.
        most = max(m for m in range(101) if np.minimum(possible, m).sum() <= limit)
        assert len(found) == np.minimum(possible, most).sum()
    else:
        assert len(found) == limit
    cold = train_degree[split.pairs[:, 1]] == 0
    assert split.kinds.tolist() == ["cold" if value else "warm" for value in cold]
    assert (train_degree[split.pairs[:, 0]] > 0).all()
    if limit > 7:
        assert 0 < cold.sum() < len(cold)


@pytest.mark.parametrize("limit", [40, 10**6])
def test_more_cold_pairs_come_from_every_collection_of_a_cold_item(limit):
    graph = random_graph(3)
    split = validation_split(graph, SplitConfig(0.2, 0.15, 100), 3)
    more = with_more_cold_pairs(graph, split, limit, 3)
    size = len(split.pairs)
    np.testing.assert_array_equal(more.pairs[:size], split.pairs)
    assert more.kinds[:size].tolist() == split.kinds.tolist()
    added = {tuple(pair) for pair in more.pairs[size:].tolist()}
    assert len(added) == len(more.pairs) - size and set(more.kinds[size:]) == {"cold"}
    degree, items = split.train_graph.degree(), set(split.items.tolist())
    possible = {
        (query, target)
        for c in set(range(60)) - set(split.collections.tolist())
        for query in members(graph, c).tolist()
        for target in members(graph, c).tolist()
        if target in items and degree[query] > 0
    }
    assert added <= possible
    if limit == 10**6:
        assert added == possible - {tuple(pair) for pair in split.pairs.tolist()}
    else:
        assert 0 < len(added) <= limit


def test_given_pairs_and_splits_without_cold_items_stay_as_they_are():
    graph = random_graph(3)
    given = np.array([[1, 2], [3, 4], [5, 6]], np.int32)
    for split in (
        validation_split(graph, SplitConfig(0.2, 0.15, 100), 3, given),
        validation_split(graph, SplitConfig(0.2, 0.0, 100), 3),
    ):
        assert with_more_cold_pairs(graph, split, 100, 3) is split


def test_split_is_repeatable_and_follows_the_seed():
    graph = random_graph(4)
    settings = SplitConfig(0.2, 0.1, 300)
    first, again = (validation_split(graph, settings, 5) for _ in range(2))
    for name in ("collections", "items", "pairs", "kinds"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    other = validation_split(graph, settings, 6)
    assert set(other.collections.tolist()) != set(first.collections.tolist())
    assert set(other.items.tolist()) != set(first.items.tolist())


def test_pairs_of_a_collection_do_not_depend_on_the_others():
    # Streams are keyed by collection: another one's members change nothing here.
    items = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3], np.int32)
    collections = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2], np.int32)
    graph = Graph.from_edges(items, collections, 8, 3)
    larger = Graph.from_edges(
        np.append(items, np.array([6, 7], np.int32)),
        np.append(collections, np.array([1, 1], np.int32)), 8, 3,
    )  # fmt: skip
    splits = [
        validation_split(g, SplitConfig(0.34, 0.0, 2), seed)
        for g in (graph, larger)
        for seed in range(9)
    ]
    for small, large in zip(splits[:9], splits[9:], strict=True):
        assert small.collections.tolist() == large.collections.tolist()
        if small.collections.tolist() != [1]:
            np.testing.assert_array_equal(small.pairs, large.pairs)


def test_collections_of_equal_size_draw_differently():
    items = np.tile(np.arange(30, dtype=np.int32), 20)
    collections = np.repeat(np.arange(20, dtype=np.int32), 30)
    split = validation_split(
        Graph.from_edges(items, collections, 30, 20), SplitConfig(0.5, 0.0, 50), 0
    )
    drawn = split.pairs.reshape(10, 5, 2)
    assert len({block.tobytes() for block in drawn}) == 10


def test_share_zero_changes_nothing():
    graph = random_graph(1)
    split = validation_split(graph, SplitConfig(0.0, 0.3, 50), 0)
    assert split.train_graph is graph
    assert len(split.collections) == len(split.items) == len(split.kinds) == 0
    assert split.pairs.shape == (0, 2) and split.pairs.dtype == np.int32
    split = validation_split(graph, SplitConfig(0.3, 0.0, 50), 0)
    assert (
        len(split.items) == 0
        and len(split.pairs)
        and (split.pairs[:, 0] != split.pairs[:, 1]).all()
    )


def test_tiny_graphs():
    none = np.empty(0, np.int32)
    empty = Graph.from_edges(none, none, 2, 1)
    assert validation_split(empty, SplitConfig(), 0).train_graph is empty
    # One usable collection is never taken away; of two, one is, however small the share.
    one = Graph.from_edges(np.array([0, 1], np.int32), np.zeros(2, np.int32), 2, 1)
    assert len(validation_split(one, SplitConfig(), 0).collections) == 0
    two = Graph.from_edges(np.array([0, 1, 0, 1], np.int32), np.array([0, 0, 1, 1], np.int32), 2, 2)
    split = validation_split(two, SplitConfig(), 0)
    assert len(split.collections) == 1
    assert sorted(map(tuple, split.pairs.tolist())) == [(0, 1), (1, 0)]


def test_queries_without_an_edge_left_give_no_pairs():
    # Items 0 and 1 meet only in the withheld collection, so nothing is left of them.
    graph = Graph.from_edges(
        np.array([0, 1, 2, 3], np.int32), np.array([0, 0, 1, 1], np.int32), 4, 2
    )
    split = validation_split(graph, SplitConfig(0.5, 0.0, 100), 0)
    assert len(split.collections) == 1 and split.pairs.shape == (0, 2)


def test_pairs_per_group_matches_a_search():
    rng = np.random.default_rng(0)
    for _ in range(200):
        possible = rng.integers(0, 12, rng.integers(0, 6))
        limit = int(rng.integers(1, 40))
        best = 0
        while best < possible.max(initial=0) and np.minimum(possible, best + 1).sum() <= limit:
            best += 1
        assert pairs_per_group(possible, limit) == best


@pytest.mark.parametrize("seed", range(4))
def test_given_pairs_are_split_and_not_drawn(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(seed)
    given = np.unique(rng.integers(0, graph.num_items, (60, 2)), axis=0).astype(np.int32)
    given = given[given[:, 0] != given[:, 1]]
    split = validation_split(graph, SplitConfig(0.3, 0.2, 1000), seed, given)
    degree = split.train_graph.degree()
    cold_items = set(split.items.tolist())
    held, kept = set(map(tuple, split.pairs.tolist())), set(map(tuple, split.train_pairs.tolist()))
    everything = set(map(tuple, given.tolist()))
    assert not held & kept and held | kept <= everything
    # What is neither was held out and has a query without an edge.
    assert all(degree[query] == 0 for query, _ in everything - held - kept)
    assert not any(query in cold_items or target in cold_items for query, target in kept)
    for (query, target), kind in zip(split.pairs.tolist(), split.kinds, strict=True):
        assert degree[query] > 0 and kind == ("warm" if degree[target] else "cold")
    rest = sum(not ({q, t} & cold_items) for q, t in everything)
    assert len(kept) == rest - round(0.3 * rest)
    assert len(validation_split(graph, SplitConfig(0.3, 0.2, 5), seed, given).pairs) <= 5
    whole = validation_split(graph, SplitConfig(0.0, 0.2, 5), seed, given)
    assert whole.train_pairs is given and len(whole.pairs) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_with_times_the_latest_are_withheld(seed):
    graph = random_graph(5)
    rng = np.random.default_rng(seed)
    # Few values, so that some collections and items begin at the same time.
    times = rng.integers(0, 12, graph.num_edges)
    settings = SplitConfig(0.2, 0.15, 50)
    split = validation_split(graph, settings, seed, times=times)
    began = {}
    place = 0
    for item in range(graph.num_items):
        for node in graph.neighbors(item).tolist():
            for key in (item, node):
                began[key] = min(began.get(key, 99), int(times[place]))
            place += 1
    degree = graph.degree()
    eligible = [c for c in range(60) if degree[200 + c] >= 2]
    linked = np.flatnonzero(degree[:200] > 0).tolist()
    for chosen, all_nodes, first, share in (
        (split.collections, eligible, 200, 0.2),
        (split.items, linked, 0, 0.15),
    ):
        ages = sorted(began[first + node] for node in all_nodes)
        count = round(share * len(all_nodes))
        # All that began at the time of the earliest, unless that is a quarter or more.
        whole = sum(age >= ages[-count] for age in ages)
        count = whole if whole <= 0.25 * len(all_nodes) else count
        assert len(set(chosen.tolist())) == count and (np.diff(chosen) > 0).all()
        assert sorted(began[first + node] for node in chosen.tolist()) == ages[-count:]
    other = validation_split(graph, settings, seed + 10, times=times)
    assert (split.items.tolist(), split.collections.tolist()) != (
        other.items.tolist(), other.collections.tolist()
    )  # fmt: skip
    same = validation_split(graph, settings, seed, times=times)
    np.testing.assert_array_equal(same.pairs, split.pairs)


@pytest.mark.parametrize(("added", "whole"), [(24, True), (40, False)])
def test_of_coarse_times_all_of_the_last_is_withheld(added, whole):
    """Of 100 collections some are of release 2; the share asks for 5, and 25 are the most."""
    items = np.repeat(np.arange(100), 2).astype(np.int32)
    collections = np.concatenate([(np.arange(200) + shift) % 100 for shift in (0, 1)])
    items, collections = np.tile(items, 2), collections.astype(np.int32)
    graph = Graph.from_edges(items, collections, 100, 100)
    owner = graph.indices[: graph.num_edges] - 100
    times = np.where(owner >= 100 - added, 2, 1)
    split = validation_split(graph, SplitConfig(0.05, 0.0, 1000), 3, times=times)
    assert split.by_time and (split.collections >= 100 - added).all()
    assert len(split.collections) == (added if whole else 5)


def test_of_a_split_by_time_cold_pairs_are_of_the_latest_collections(monkeypatch):
    graph = random_graph(5)
    times = np.random.default_rng(0).integers(0, 1000, graph.num_edges)
    split = validation_split(graph, SplitConfig(0.2, 0.15, 50), 0, times=times)
    cold = int((split.kinds == "cold").sum())
    assert 0 < cold < 20
    monkeypatch.setattr(split_module, "ENOUGH_COLD", cold)
    assert with_more_cold_pairs(graph, split, 1000, 0) is split
    # With too few of them there are pairs of earlier collections, up to the number.
    monkeypatch.setattr(split_module, "ENOUGH_COLD", cold + 7)
    more = with_more_cold_pairs(graph, split, 1000, 0)
    assert 0 < len(more.pairs) - len(split.pairs) <= 7
