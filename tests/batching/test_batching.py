"""Minibatches against a slow reference: every row read back by value (feature = node id)."""

import itertools

import numpy as np
import pytest
import reference_sampling as slow
from scipy import sparse
from small_runs import DEGREE_SCALE, make_run, nasty_graph, pairs_of, random_links

from pinsage_jax.batching.blocks import Budgets, padded_size
from pinsage_jax.batching.inputs import NodeInputs, feature_scale
from pinsage_jax.batching.prefetch import Prefetcher
from pinsage_jax.data.text import top_words
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling import content_links as content
from pinsage_jax.sampling.content_links import ContentLinks
from pinsage_jax.sampling.lists import NeighborLists

EDGE_DROPOUT = 0x7374726970


# The reference: an instance is (node, masked collection, masked neighbor), -1 for no mask.


def has_dropped_edges(run, step, node):
    key = slow.stream(run.seed ^ EDGE_DROPOUT, step, node)
    return slow.high(slow.draw(key, 0, 0)) < round(run.train.edge_dropout * 2**32)


def edges_seen(run, instance, step):
    node, masked_collection, _ = instance
    if has_dropped_edges(run, step, node):
        return 0
    return sum(1 for other in run.graph.neighbors(node) if other != masked_collection)


def slow_list(run, instance, step, pooling="importance"):
    """[(node, weight), ...] in the order of the list; weightless entries left out."""
    node, masked_collection, masked_neighbor = instance
    ids, counts = slow.neighborhoods(
        run.graph,
        [node],
        run.sampling,
        seed=run.seed,
        epoch=0,
        masked_collection=[masked_collection],
        masked_neighbor=[masked_neighbor],
    )
    walked = [(int(i), int(c)) for i, c in zip(ids[0], counts[0]) if i >= 0]
    if has_dropped_edges(run, step, node):
        walked = []
    if pooling != "importance":
        walked = [(other, 1) for other, _ in walked]
    total = sum(count for _, count in walked)
    linked = []
    if run.links is not None and node < run.graph.num_items:
        linked = [
            (int(other), float(share))
            for other, share in zip(run.links.ids[node], run.links.shares[node])
            if other >= 0 and other != masked_neighbor
        ]
    link_total = sum(share for _, share in linked)
    degree = sum(1 for other in run.graph.neighbors(node) if other != masked_collection)
    kappa = run.sampling.content_kappa
    trust = degree / (degree + kappa) if degree else 0.0
    trust = 0.0 if not walked else (1.0 if not linked else trust)
    entries = [(other, trust * count / total) for other, count in walked]
    entries += [(other, (1.0 - trust) * share / link_total) for other, share in linked]
    entries = [(other, weight) for other, weight in entries if weight > 0]
    if pooling != "importance":
        entries = [(other, 1.0 / len(entries)) for other, _ in entries]
    return entries


def meaning_of_seeds(run, batch, device=0):
    """{row: instance} from the pairs and negatives of one device's part."""
    meaning = {}

    def note(row, instance):
        assert meaning.setdefault(int(row), instance) == instance, "one row, two instances"

    for place in range(batch.queries.shape[1]):
        query, target = int(batch.query_ids[device, place]), int(batch.target_ids[device, place])
        source_collection = source_collection_of(run, batch, place, device)
        if target < 0:
            note(batch.queries[device, place], (query, *limits(run.masked, source_collection, -1)))
            continue
        if batch.pair_weights[device, place]:
            note(
                batch.queries[device, place],
                (query, *limits(run.masked, source_collection, target)),
            )
            note(
                batch.targets[device, place],
                (target, *limits(run.masked, source_collection, query)),
            )
    for row, node in zip(batch.negatives[device], batch.negative_ids[device]):
        if node >= 0:
            note(row, (int(node), -1, -1))
    for row, node in zip(batch.hard[device].ravel(), batch.hard_ids[device].ravel()):
        if node >= 0:
            note(row, (int(node), -1, -1))
    return meaning


def limits(masked, source_collection, other):
    """(masked collection, masked neighbor) of one item of a pair."""
    if not masked:
        return -1, -1
    if source_collection >= 0:
        return source_collection, -1
    return -1, other


def source_collection_of(run, batch, place, device):
    """The collection of a pair, recomputed from its number."""
    if run.pairs._pairs is not None:
        return -1
    each = batch.queries.shape[1]
    first = run.step * run.train.batch_size + device * each
    if run.sampling.pair_power == 1.0:
        query, target, source_collection = slow.collection_pair(run.graph, run.seed, first + place)
    else:
        alone = run.pairs.batch(first + place, 1)
        query, target, source_collection = (
            int(part[0]) for part in (alone.queries, alone.targets, alone.source_collection)
        )
    assert (query, target) == (batch.query_ids[device, place], batch.target_ids[device, place])
    return source_collection


def node_of(run, row):
    """Node that a row of features stands for; None for a collection (no features)."""
    return round(float(row[0] / run.unit)) - 1 if row[0] > 0 else None


def degree_value(edges):
    """The input that says how many edges a node has."""
    return DEGREE_SCALE * np.log1p(edges)


def check_batch(run, builder, step):
    """Compares every row of one minibatch with the reference; returns it."""
    run.step = step
    batch, info = builder.make(step)
    rows, layers = builder.budgets.rows, run.model.num_layers
    assert info.left_out == 0
    for device in range(batch.queries.shape[0]):
        known = meaning_of_seeds(run, batch, device)
        assert len(set(known.values())) == len(known), "an instance has two rows"
        assert sorted(known) == list(range(len(known))), "seeds are not the first rows"
        listed = {}
        frontier, begin = list(range(len(known))), 0
        for layer in range(layers):
            begin = rows[layer]
            fresh = {}
            for row in frontier:
                wanted = slow_list(run, known[row], step, run.model.pooling)
                places = np.flatnonzero(batch.weights[device, row])
                assert len(places) == len(wanted)
                for place, (other, weight) in zip(places, wanted):
                    target_row = int(batch.neighbors[device, row, place])
                    instance = (other, -1, -1)
                    known.setdefault(target_row, instance)
                    fresh.setdefault(target_row, instance)
                    assert known[target_row] == instance
                    np.testing.assert_allclose(batch.weights[device, row, place], weight, rtol=1e-5)
                listed[row] = wanted
            values = list(known.values())
            assert len(set(values)) == len(values), "an instance has two rows"
            new = sorted(row for row in fresh if row not in listed and row >= begin)
            assert new == list(range(begin, begin + len(new))), "S(k) is no prefix of S(k-1)"
            assert all(row < rows[layer + 1] for row in new)
            frontier = new
        # Features of every row in use, by value.
        for row, instance in known.items():
            node = instance[0]
            vector = batch.features[device, row]
            if node < run.graph.num_items:
                assert node_of(run, vector) == node
            else:
                assert vector[0] == 0.0
            seen = edges_seen(run, instance, step)
            np.testing.assert_allclose(vector[1], degree_value(seen), rtol=1e-6)
            if run.model.isolated_feature:
                isolated = edges_seen(run, instance, step) == 0
                assert vector[2] == np.float32(DEGREE_SCALE * isolated)
            assert batch.node_ids[device, row] == node
            if run.sampling.neighborhood == "all":
                assert vector[-1] == (node >= run.graph.num_items)
        # Rows that stand for nothing weigh nothing and have no name.
        padding = np.delete(batch.node_ids[device], list(known))
        assert (padding == -1).all()
        for row in range(batch.weights.shape[1]):
            if row not in listed:
                assert not batch.weights[device, row].any()
        assert batch.features.shape[1] == rows[-1]
        assert batch.neighbors.min(initial=0) >= 0
        assert batch.neighbors.max(initial=0) < rows[-1]
    return batch, info


@pytest.mark.parametrize("mode", ["collection", "edge", "none"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampling": {"neighborhood": "all"}},
        {"links": 3},
        {"links": 3, "kept": False, "train": {"edge_dropout": 0.4}},
        {"model": {"pooling": "mean", "isolated_feature": False}, "train": {"edge_dropout": 0.3}},
        {"sampling": {"pair_power": 0.5}},
        {"sampling": {"neighborhood": "all"}, "links": 2, "train": {"edge_dropout": 0.3}},
    ],
    ids=["items", "all", "links", "links-strip", "mean-strip", "power", "all-links-strip"],
)
def test_minibatch_equals_the_slow_reference(mode, settings):
    settings = {
        name: dict(value) if isinstance(value, dict) else value for name, value in settings.items()
    }
    settings["masked"] = mode != "none"
    if mode == "edge":
        settings["train_pairs"] = pairs_of(make_run(**settings))
    run = make_run(**settings)
    builder = run.builder()
    for step in (0, 7, 40):
        check_batch(run, builder, step)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("devices", [1, 2])
def test_minibatch_of_any_depth(layers, devices):
    run = make_run(model={"num_layers": layers}, links=1, train={"batch_size": 4})
    builder = run.builder(devices)
    assert builder.budgets.num_layers == layers
    assert list(builder.budgets.rows) == sorted(builder.budgets.rows)
    for step in (0, 30):
        batch, info = check_batch(run, builder, step)
        assert batch.neighbors.shape[1:] == (builder.budgets.rows[-2] if layers else 0, 5)
        assert len(info.used) == layers + 1


def test_with_listed_pairs():
    pairs = np.array([[7, 9], [8, 0], [0, 10], [11, 7], [7, 7]], np.int32)
    run = make_run(train_pairs=pairs, links=2)
    builder = run.builder()
    seen = set()
    for step in range(3):
        batch, _ = check_batch(run, builder, step)
        seen |= set(zip(batch.query_ids[0].tolist(), batch.target_ids[0].tolist()))
    assert seen == {tuple(pair) for pair in pairs.tolist()}


# What a pair must not see.


def run_of_one_shared_collection(**settings):
    """Items 0 and 1 share their only collection (node 4); 2 and 3 have another one."""
    graph = Graph.from_edges(
        np.array([0, 1, 2, 3], np.int32), np.array([0, 0, 1, 1], np.int32), 4, 2
    )
    return make_run(graph, **settings)


def test_an_item_whose_only_collection_is_masked_is_isolated():
    run = run_of_one_shared_collection()
    batch, _ = run.builder().make(0)
    rows = np.concatenate([batch.queries[0], batch.targets[0]])
    assert batch.pair_weights[0].all()
    assert not batch.weights[0, rows].any()
    assert not batch.features[0, rows, 1].any()
    # As negatives the same items see everything.
    plain = batch.negatives[0]
    assert (batch.weights[0, plain].sum(axis=1) == 1).all()
    np.testing.assert_allclose(batch.features[0, plain, 1], degree_value(1), rtol=1e-6)


def test_listed_pairs_drop_each_end_from_the_others_list():
    pairs = pairs_of(make_run())
    run = make_run(train_pairs=pairs, sampling={"num_neighbors": 30}, links=8)
    batches = [run.builder().make(step)[0] for step in range(6)]
    met = 0
    for batch in batches:
        for ends in zip(batch.queries[0], batch.target_ids[0], batch.pair_weights[0]):
            met += check_absent(run, batch, *ends)
        for ends in zip(batch.targets[0], batch.query_ids[0], batch.pair_weights[0]):
            met += check_absent(run, batch, *ends)
    assert met > 20
    shown = make_run(masked=False, sampling={"num_neighbors": 30})
    seen = [
        int(target) in listed_nodes(shown, batch, row)
        for batch in (shown.builder().make(step)[0] for step in range(6))
        for row, target in zip(batch.queries[0], batch.target_ids[0])
        if target >= 0
    ]
    assert np.mean(seen) > 0.5


def listed_nodes(run, batch, row):
    places = np.flatnonzero(batch.weights[0, row])
    return {node_of(run, batch.features[0, other]) for other in batch.neighbors[0, row, places]}


def check_absent(run, batch, row, other, weight):
    if weight == 0:
        return 0
    assert int(other) not in listed_nodes(run, batch, row)
    return 1


def test_dropping_a_content_link_leaves_weights_that_sum_to_one():
    links = ContentLinks(
        np.array([[1, 2], [0, 3], [3, 0], [2, 1]], np.int32), np.full((4, 2), 0.5, np.float32)
    )
    run = run_of_one_shared_collection()
    lists = NeighborLists(run.lists.source, "importance", links, 0.5)
    nodes = np.array([0, 0, 2], np.int32)
    ids, weights = lists.lookup(nodes, masked_neighbor=np.array([1, 3, 3], np.int32))
    assert ids[:, -2:].tolist() == [[-1, 2], [1, 2], [-1, 0]]
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)
    assert not weights[ids < 0].any()


# Budgets.


def tiny(run, seeds, *more):
    sizes = list(itertools.accumulate((seeds, *more)))
    return run.builder(budgets=Budgets(tuple(sizes)))


@pytest.mark.parametrize("room", [1, 2, 5, 9])
def test_a_full_frontier_leaves_out_the_least_important(room):
    run = make_run(model={"num_layers": 1}, links=2, sampling={"num_neighbors": 5})
    whole, info = run.builder().make(2)
    seeds = info.used[0]
    batch, cut = tiny(run, seeds, room).make(2)
    full_rows = whole.features[0]
    # The reference walks column by column, top neighbors of all rows first.
    kept: list[int] = []
    allowed = [[False] * whole.weights.shape[2] for _ in range(seeds)]
    left_out = 0
    for column in range(whole.weights.shape[2]):
        for row in range(seeds):
            if whole.weights[0, row, column] == 0 and whole.neighbors[0, row, column] == 0:
                continue
            other = int(whole.neighbors[0, row, column])
            if other >= seeds and other not in kept:
                if len(kept) == room:
                    left_out += 1
                    continue
                kept.append(other)
            allowed[row][column] = True
    assert 0 < left_out == cut.left_out
    assert cut.used == (seeds, room)
    for row in range(seeds):
        weights = np.where(allowed[row], whole.weights[0, row], 0.0)
        total = weights.sum()
        np.testing.assert_allclose(
            batch.weights[0, row], weights / total if total > 0 else weights, rtol=1e-5
        )
        for column in np.flatnonzero(batch.weights[0, row]):
            there = batch.features[0, batch.neighbors[0, row, column]]
            here = full_rows[whole.neighbors[0, row, column]]
            np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("room", [1, 3, 6, 12])
def test_seeds_that_find_no_room_do_not_count(room):
    run = make_run(train={"hard_start": "full", "batch_size": 4, "random_negatives": 8})
    whole, _ = run.builder().make(1)
    batch, info = tiny(run, room, 40, 40).make(1)
    known: list[tuple] = []
    run.step = 1
    left_out = 0

    def fits(node, masked_collection):
        nonlocal left_out
        if node < 0:
            return False
        if (node, masked_collection) not in known:
            if len(known) == room:
                left_out += 1
                return False
            known.append((node, masked_collection))
        return True

    source_collections = [
        slow.collection_pair(run.graph, run.seed, 4 + place)[2] for place in range(4)
    ]
    queries = [
        fits(int(q), source_collection)
        for q, source_collection in zip(whole.query_ids[0], source_collections)
    ]
    targets = [
        fits(int(t), source_collection)
        for t, source_collection in zip(whole.target_ids[0], source_collections)
    ]
    negatives = [fits(int(n), -1) for n in whole.negative_ids[0]]
    hard = [fits(int(n), -1) for n in whole.hard_ids[0].ravel()]
    assert info.left_out >= left_out > 0
    np.testing.assert_array_equal(batch.pair_weights[0], np.array(queries) & np.array(targets))
    np.testing.assert_array_equal(batch.negative_ids[0] >= 0, negatives)
    np.testing.assert_array_equal(batch.hard_ids[0].ravel() >= 0, hard)
    assert info.used[0] == room
    assert max(batch.queries.max(), batch.targets.max(), batch.negatives.max()) < room


def test_measured_budgets_hold_most_steps():
    run = make_run(train={"hard_start": "curriculum", "epochs": 3.0})
    builder = run.builder()
    left_out = [builder.make(step)[1].left_out for step in range(0, 60, 5)]
    assert sum(left_out) == 0


def test_padded_size_has_headroom_and_a_limit():
    for rows in (0, 1, 7, 63, 64, 500, 1000, 6_700, 161_000):
        size = padded_size(rows, 10**6)
        assert size % 64 == 0
        headroom = min(rows / 16, rows / 64 + 2 * rows**0.5 - 3)
        assert rows + headroom < size <= rows + rows / 16 + 65
        assert padded_size(rows, rows + 3) <= rows + 3


# A batch is a function of its step.


def assert_same(left, right):
    for name in left._fields:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


STEPS = (5, 0, 3, 5, 9)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("resample", [True, False])
def test_same_batch_in_any_order_and_with_any_threads(kept, resample):
    settings = {
        "links": 2,
        "kept": kept,
        "sampling": {"resample": resample},
        "train": {"edge_dropout": 0.3, "hard_start": "full", "pairs_per_epoch": 16},
    }
    builder = make_run(**settings).builder()
    alone = {step: make_run(**settings).builder().make(step)[0] for step in set(STEPS)}
    for step in STEPS:
        assert_same(builder.make(step)[0], alone[step])
    many = make_run(threads=3, **settings).builder()
    for step in STEPS:
        assert_same(many.make(step)[0], alone[step])


def test_an_epoch_samples_each_node_once(monkeypatch):
    settings = {"kept": False, "train": {"pairs_per_epoch": 16}, "sampling": {"resample": True}}
    run = make_run(masked=False, **settings)
    builder = run.builder()
    source, sampled = run.lists.source, []
    sample = source._sample

    def record(nodes, epoch, *rest):
        sampled.extend((epoch, node) for node in nodes.tolist())
        return sample(nodes, epoch, *rest)

    monkeypatch.setattr(source, "_sample", record)
    steps = range(3 * 16 // run.train.batch_size)
    for step in steps:
        builder.make(step)
    assert {epoch for epoch, _ in sampled} == {0, 1, 2}
    assert len(sampled) == len(set(sampled))
    sampled.clear()
    builder.make(steps[-1])
    assert not sampled


def test_resampling_changes_lists_from_epoch_to_epoch():
    settings = {"train": {"pairs_per_epoch": 8}, "sampling": {}, "masked": False}
    settings["sampling"]["num_walks"] = 4
    run = make_run(**settings)
    settings["sampling"]["resample"] = True
    fresh = make_run(**settings)
    node = np.arange(run.graph.num_items, dtype=np.int32)
    np.testing.assert_array_equal(run.lists.lookup(node, 0)[0], fresh.lists.lookup(node, 0)[0])
    np.testing.assert_array_equal(run.lists.lookup(node, 0)[0], run.lists.lookup(node, 3)[0])
    assert (fresh.lists.lookup(node, 0)[0] != fresh.lists.lookup(node, 3)[0]).any()
    same = [
        all(
            np.array_equal(a, b)
            for a, b in zip(run.builder().make(s)[0], fresh.builder().make(s)[0])
        )
        for s in (0, 3)
    ]
    assert same == [True, False]


@pytest.mark.parametrize("depth,threads", [(0, 1), (1, 1), (3, 1), (4, 3)])
def test_same_batches_through_the_queue(depth, threads):
    run = make_run(links=2, threads=2, train={"edge_dropout": 0.3, "hard_start": "full"})
    builder = run.builder()
    with Prefetcher(builder.make, 2, 8, depth, threads) as batches:
        for step, (batch, info) in enumerate(batches, start=2):
            expected, expected_info = builder.make(step)
            assert_same(batch, expected)
            assert info == expected_info


# Devices.


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_share_out_the_same_pairs_and_negatives(devices):
    settings = {"train": {"hard_start": "full", "edge_dropout": 0.3}, "links": 2}
    run = make_run(**settings)
    whole_builder, builder = run.builder(1), run.builder(devices)
    for step in (0, 11):
        whole, info = whole_builder.make(step)
        parts, _ = check_batch(run, builder, step)
        for name in ("query_ids", "target_ids", "pair_weights", "query_logq", "target_logq"):
            np.testing.assert_array_equal(getattr(parts, name).reshape(-1), getattr(whole, name)[0])
        for name in ("hard_ids", "hard_logq"):
            joined = getattr(parts, name).reshape(getattr(whole, name)[0].shape)
            np.testing.assert_array_equal(joined, getattr(whole, name)[0])
        for device in range(devices):
            np.testing.assert_array_equal(parts.negative_ids[device], whole.negative_ids[0])
        assert info.hard_per_query > 0.5


def test_a_batch_that_devices_cannot_share_is_an_error():
    with pytest.raises(ValueError, match="not a multiple of 3 devices"):
        make_run().builder(3)


# Hard negatives, stripping, log chances.


def test_hard_negatives_follow_the_curriculum_and_the_reference():
    run = make_run(train={"hard_max": 2, "pairs_per_epoch": 16, "epochs": 5.0})
    builder = run.builder()
    for step, wanted in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (8, 2)):
        batch, info = builder.make(step)
        pairs = run.pairs.batch(step * 8, 8)
        expected = slow.hard_negatives(
            run.graph, pairs.queries, pairs.targets, run.sampling, (3, 9),
            size=wanted, seed=run.seed, first=step * 8,
        )  # fmt: skip
        assert batch.hard_ids.shape == (1, 8, 2)
        np.testing.assert_array_equal(batch.hard_ids[0, :, :wanted], expected)
        assert (batch.hard_ids[0, :, wanted:] == -1).all()
        assert info.hard_per_query == (expected >= 0).sum() / 8


@pytest.mark.parametrize("devices", [1, 2])
def test_shared_hard_negatives_are_those_of_the_first_queries_of_a_step(devices):
    train = {"hard_max": 2, "pairs_per_epoch": 16, "epochs": 5.0}
    run = make_run(train={**train, "shared_hard_queries": 3})
    builder = run.builder(devices)
    for step, wanted in ((0, 0), (2, 1), (8, 2)):
        batch, info = builder.make(step)
        pairs = run.pairs.batch(step * 8, 3)
        expected = slow.hard_negatives(
            run.graph, pairs.queries, pairs.targets, run.sampling, (3, 9),
            size=wanted, seed=run.seed, first=step * 8,
        )  # fmt: skip
        assert batch.hard_ids.shape == batch.hard_logq.shape == (devices, 1, 6)
        for device in range(devices):
            ids = batch.hard_ids[device].reshape(3, 2)
            np.testing.assert_array_equal(ids[:, :wanted], expected)
            assert (ids[:, wanted:] == -1).all()
            rows = batch.hard[device][batch.hard_ids[device] >= 0]
            np.testing.assert_array_equal(batch.node_ids[device][rows], expected[expected >= 0])
        assert info.hard_per_query == (expected >= 0).sum()


def test_a_node_with_dropped_edges_is_isolated_in_every_row():
    run = make_run(train={"edge_dropout": 0.5, "random_negatives": 30}, masked=False)
    builder = run.builder()
    shares = []
    for step in range(6):
        batch, info = builder.make(step)
        begin = 0
        for layer, used in enumerate(info.used):
            rows = np.arange(begin, begin + used)
            nodes = np.array([node_of(run, batch.features[0, row]) for row in rows], int)
            isolated = np.array([has_dropped_edges(run, step, int(node)) for node in nodes], bool)
            degree = run.graph.degree()[nodes]
            expected = np.where(isolated, 0.0, degree_value(degree))
            np.testing.assert_allclose(batch.features[0, rows, 1], expected, rtol=1e-6)
            if layer < run.model.num_layers:
                assert not batch.weights[0, rows[isolated]].any()
                assert (batch.weights[0, rows[~isolated & (degree > 0)]].sum(axis=1) > 0.5).all()
            begin = builder.budgets.rows[layer]
            shares += isolated.tolist()
        assert info.edge_dropout_share == np.mean(shares[-sum(info.used) :])
    assert 0.4 < np.mean(shares) < 0.6


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_strip_share_none_and_all(share):
    run = make_run(train={"edge_dropout": share}, masked=False)
    batch, info = run.builder().make(0)
    assert batch.weights.any() == (share == 0.0)
    assert batch.features[0, :, 1].any() == (share == 0.0)
    assert (info.edge_dropout_share == 0.0) == (share == 0.0)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("power", [None, 0.0, 0.5, 1.0])
def test_log_chances_equal_enumeration(in_batch, power):
    """Power None: listed pairs.  Power 1 draws edges, other powers collections."""
    listed = power is None
    pairs = np.array([[7, 9], [8, 9], [9, 10], [11, 7]], np.int32) if listed else None
    sampling = {} if listed else {"pair_power": power}
    run = make_run(train_pairs=pairs, train={"in_batch": in_batch}, sampling=sampling)
    items = run.graph.num_items
    chance = np.zeros(items)
    as_query = chance
    if listed:
        as_query = np.zeros(items)
        for query, target in pairs:
            chance[target] += 1 / len(pairs)
            as_query[query] += 1 / len(pairs)
    else:
        for collection in range(items, run.graph.num_nodes):
            members = run.graph.neighbors(collection)
            size = len(members)
            mass = size if power == 1.0 else (size - 1) ** power if size > 1 else 0.0
            for _, target in itertools.permutations(members, 2):
                chance[target] += mass / (size * (size - 1))
        chance /= chance.sum()
    pool = np.arange(6, items, dtype=np.int32)
    batch_size = 8 if in_batch else 0

    def log_share(chance):
        share = batch_size * chance
        share[pool] += 6 / len(pool)
        return np.log(np.maximum(share / (batch_size + 6), 1e-12))

    # A pair the other way round has its query for a target.
    expected, of_queries = log_share(chance), log_share(as_query)
    batch, _ = run.builder(pool=pool).make(12)
    for name in ("query", "target", "negative", "hard"):
        ids, logq = getattr(batch, f"{name}_ids")[0], getattr(batch, f"{name}_logq")[0]
        valid = ids >= 0
        wanted = of_queries if name == "query" else expected
        np.testing.assert_allclose(logq[valid], wanted[ids[valid]], rtol=1e-5)
        assert np.isfinite(logq).all()
    assert batch.negative_ids.min() >= 6


# Content links and their blend.


def brute_links(features, queries, candidates, size):
    unit = [row / np.linalg.norm(row) if np.linalg.norm(row) else row for row in features]
    ids, shares = [], []
    for query in queries:
        scored = [(-float(unit[query] @ unit[c]), int(c)) for c in candidates if c != query]
        best = sorted(pair for pair in scored if pair[0] < 0)[:size]
        total = sum(score**2 for score, _ in best)
        padding = size - len(best)
        ids.append([node for _, node in best] + [-1] * padding)
        shares.append([score**2 / total for score, _ in best] + [0.0] * padding)
    return np.array(ids), np.array(shares)


@pytest.mark.parametrize("blocks", [(1024, 65536), (7, 11), (1, 1)])
@pytest.mark.parametrize("kind", ["random", "ties", "words"])
def test_content_links_equal_brute_force(blocks, kind, monkeypatch, small_rng):
    monkeypatch.setattr(content, "_QUERY_ROWS", blocks[0])
    monkeypatch.setattr(content, "_CANDIDATE_ROWS", blocks[1])
    if kind in ("random", "words"):
        features = small_rng.normal(size=(60, 5)).astype(np.float32)
    else:
        # Rows with one or four ones: cosines are 0, 1/4, 1/2, 3/4 or 1, exactly.
        features = np.zeros((60, 8), np.float32)
        for row in range(60):
            ones = small_rng.permutation(8)[: 4 if row % 2 else 1]
            features[row, ones] = 1.0
    features[[4, 9]] = 0.0
    if kind == "words":
        features = np.maximum(features, 0.0)
    queries = np.flatnonzero(small_rng.random(60) < 0.7)
    candidates = np.flatnonzero(small_rng.random(60) < 0.6)
    rows = features
    if kind == "words":
        words = sparse.csr_matrix(features)
        rows = top_words(words.indptr, words.indices, words.data, 8)
    ids, shares = content.content_links(rows, queries, candidates, 6)
    expected_ids, expected_shares = brute_links(features, queries, candidates, 6)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(shares, expected_shares, rtol=1e-4, atol=1e-7)
    assert ids.dtype == np.int32 and shares.dtype == np.float32
    sums = shares.sum(axis=1)
    np.testing.assert_allclose(sums[ids[:, 0] >= 0], 1.0, rtol=1e-5)
    assert not sums[ids[:, 0] < 0].any()
    assert not (ids == queries[:, None]).any()
    assert np.isin(ids[ids >= 0], candidates).all()


def test_content_links_with_few_or_no_candidates():
    features = np.eye(4, dtype=np.float32) + 0.5
    ids, shares = content.content_links(features, np.arange(4), np.array([2]), 3)
    assert ids.tolist() == [[2, -1, -1], [2, -1, -1], [-1, -1, -1], [2, -1, -1]]
    assert shares.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
    ids, shares = content.content_links(features, np.arange(4), np.empty(0, np.int64), 2)
    assert (ids == -1).all() and not shares.any()


@pytest.mark.parametrize("kappa", [0.0, 0.5, 4.0])
def test_blend_weighs_walks_by_edges(kappa):
    visits = np.array([[0.75, 0.25], [0.5, 0.5], [0, 0], [1, 0], [0, 0]], np.float32)
    links = np.array([[1.0], [0.0], [1.0], [1.0], [0.0]], np.float32)
    edges = np.array([3, 5, 4, 1, 0], np.int32)
    weights = content.blend(visits, links, edges, kappa)
    expected = [
        [3 / (3 + kappa) * 0.75, 3 / (3 + kappa) * 0.25, kappa / (3 + kappa)],
        [0.5, 0.5, 0.0],
        [0.0, 0.0, 1.0],
        [1 / (1 + kappa), 0.0, kappa / (1 + kappa)],
        [0.0, 0.0, 0.0],
    ]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights.dtype == np.float32


@pytest.mark.parametrize("pooling", ["importance", "mean", "max"])
@pytest.mark.parametrize("links", [0, 3])
@pytest.mark.parametrize("neighborhood", ["items", "all"])
def test_lists_equal_the_slow_reference(pooling, links, neighborhood):
    run = make_run(links=links, model={"pooling": pooling}, sampling={"neighborhood": neighborhood})
    nodes = np.arange(run.lists.source.num_nodes, dtype=np.int32)
    ids, weights = run.lists.lookup(nodes)
    assert ids.shape == weights.shape == (len(nodes), 4 + links) == (len(nodes), run.lists.width)
    for node in nodes:
        wanted = slow_list(run, (int(node), -1, -1), 0, pooling)
        places = np.flatnonzero(weights[node])
        assert [int(other) for other in ids[node, places]] == [other for other, _ in wanted]
        np.testing.assert_allclose(weights[node, places], [w for _, w in wanted], rtol=1e-5)


# Inputs.


@pytest.mark.parametrize("isolated_feature", [True, False])
@pytest.mark.parametrize("node_type", [True, False])
@pytest.mark.parametrize("width,dtype", [(0, "float32"), (3, "float32"), (3, "float16")])
def test_input_vectors(isolated_feature, node_type, width, dtype):
    graph = nasty_graph()
    features = np.random.default_rng(1).normal(size=(graph.num_items, width)).astype(dtype)
    inputs = NodeInputs(
        features,
        graph.degree(),
        isolated_feature=isolated_feature,
        node_type=node_type,
    )
    scale = feature_scale(features, 0.0)
    nodes = np.array([0, 5, 41, 5, 39], np.int32)
    masked = np.array([-1, 42, -1, -1, 43], np.int32)
    isolated = np.array([False, False, False, True, False])
    out = inputs.gather(nodes, 7, masked_collection=masked, isolated=isolated)
    assert out.shape == (7, inputs.dim) and out.dtype == np.float32
    assert not out[5:].any()
    for row, node in enumerate(nodes):
        expected = list(features[node] * scale) if node < graph.num_items else [0.0] * width
        seen = 0 if isolated[row] else len(graph.neighbors(node)) - (masked[row] >= 0)
        expected.append(degree_value(seen))
        if isolated_feature:
            expected.append(DEGREE_SCALE * (seen == 0))
        if node_type:
            expected.append(float(node >= graph.num_items))
        np.testing.assert_allclose(out[row], expected, rtol=1e-6)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_feature_scale_balances_columns(whiten, small_rng):
    features = small_rng.normal(size=(300, 4)) * [1.0, 4.0, 0.5, 0.0]
    features[::7] = 0.0
    scale = feature_scale(features.astype(np.float32), whiten)
    scaled = (features * scale)[np.any(features != 0, axis=1)]
    np.testing.assert_allclose(np.mean(np.sum(scaled**2, axis=1)), 1.0, rtol=1e-4)
    rms = np.sqrt(np.mean(scaled**2, axis=0))[:3]
    before = np.sqrt(np.mean(features[np.any(features != 0, axis=1)] ** 2, axis=0))[:3]
    np.testing.assert_allclose(rms / rms[0], (before / before[0]) ** (1 - whiten), rtol=1e-4)
    assert np.isfinite(scale).all()


def test_feature_scale_of_nothing():
    assert feature_scale(np.zeros((5, 3), np.float32), 1.0).tolist() == [1.0, 1.0, 1.0]
    assert feature_scale(np.zeros((5, 0), np.float32), 1.0).shape == (0,)


def test_random_links_of_the_fixture_are_sound():
    graph = nasty_graph()
    links = random_links(graph, 3)
    assert not (links.ids == np.arange(graph.num_items)[:, None]).any()
    assert (graph.degree()[links.ids[links.ids >= 0]] > 0).all()
