"""Positive pairs, random and hard negatives equal a slow reference and are keyed by number."""

import collections
import concurrent.futures

import numpy as np
import pytest
import reference_sampling as reference
from scipy import stats

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling import pair_kernels
from pinsage_jax.sampling import pairs as pairs_module
from pinsage_jax.sampling.neighborhoods import WalkTables
from pinsage_jax.sampling.pairs import (
    PairBatch,
    PairSource,
    Rankings,
    hard_band,
    random_negatives,
)
from pinsage_jax.sampling.pairs import hard_negatives as draw_hard_negatives

# Without compilation the hashes are products of NumPy scalars, which warn of overflow.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

UNLIKELY = 1e-4


def hard_negatives(tables, pairs, sampling, *, size, seed, first, threads=1):
    """Hard negatives, which must not depend on whether rankings are cached."""
    uncached = Rankings(tables, sampling, seed, threads, max_bytes=0)
    cached = Rankings(tables, sampling, seed, threads)
    half = PairBatch(pairs.queries[::2], pairs.targets[::2], pairs.source_collection[::2])
    draw_hard_negatives(cached, half, size=size, first=first)
    drawn = [
        draw_hard_negatives(rankings, pairs, size=size, first=first)
        for rankings in (uncached, cached, cached)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    return drawn[0]


def toy(weighted=False):
    """Collections of 4, 1, 0, 2 and 3 items; item 7 has no edge."""
    edges = [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (4, 3), (5, 3), (0, 4), (5, 4), (6, 4)]
    return reference.small_graph({edge: 1.0 for edge in edges}, 8, 5, weighted)


def scattered(seed, items=30, groups=12, edges=90):
    rng = np.random.default_rng(seed)
    pairs = zip(rng.integers(0, items, edges), rng.integers(0, groups, edges), strict=True)
    return reference.small_graph({(int(i), int(g)): 1.0 for i, g in pairs}, items, groups, False)


def rows_of(batch):
    return list(
        zip(batch.queries.tolist(), batch.targets.tolist(), batch.source_collection.tolist())
    )


# Permutations.


@pytest.mark.kernels
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 15, 16, 17, 63, 64, 65, 100])
def test_permutation_equals_the_reference(size):
    for key in (0, 12345, 2**63, 2**64 - 1):
        positions = [int(pair_kernels.permuted(np.uint64(key), i, size)) for i in range(size)]
        assert positions == [reference.permuted(key, i, size) for i in range(size)]
        assert sorted(positions) == list(range(size))


@pytest.mark.parametrize("size", [*range(1, 40), 255, 256, 257, 1000, 4095, 4097, 20_000])
def test_permutation_is_a_bijection(size):
    positions = [pair_kernels.permuted(np.uint64(size), i, size) for i in range(size)]
    assert sorted(positions) == list(range(size))


def test_permutations_look_random():
    """Over keys the positions of an index are uniform; different keys give different orders."""
    size, keys = 20, 4000
    table = np.array(
        [
            [pair_kernels.permuted(np.uint64(reference.mix(key)), i, size) for i in range(size)]
            for key in range(keys)
        ]
    )
    for index in (0, 1, 19):
        assert stats.chisquare(np.bincount(table[:, index], minlength=size)).pvalue > UNLIKELY
    follows = (table[:, 1] - table[:, 0]) % size
    assert stats.chisquare(np.bincount(follows, minlength=size)[1:]).pvalue > UNLIKELY
    assert len({tuple(row) for row in table[:200].tolist()}) == 200


@pytest.mark.kernels
def test_permutation_of_a_size_beyond_32_bits():
    size = 2**33 + 5
    for index in (0, 1, 2**32, size - 1):
        position = pair_kernels.permuted(np.uint64(3), index, size)
        assert position == reference.permuted(3, index, size) and 0 <= position < size


# Pairs that share a collection.


@pytest.mark.kernels
@pytest.mark.parametrize("graph", [toy(), scattered(0)], ids=["toy", "scattered"])
def test_collection_pairs_equal_the_reference(graph):
    source = PairSource(graph, seed=9)
    for first in (0, 3 * graph.num_edges - 4, 10**10):
        wanted = [reference.collection_pair(graph, 9, first + row) for row in range(25)]
        assert rows_of(source.batch(first, 25)) == wanted


@pytest.mark.parametrize("graph", [toy(), scattered(1)], ids=["toy", "scattered"])
def test_an_epoch_visits_every_edge_once(graph):
    source = PairSource(graph, seed=2)
    edges = reference.collection_edges(graph)
    sizes = collections.Counter(source_collection for source_collection, _ in edges)
    orders = []
    for epoch in range(4):
        rows = rows_of(source.batch(epoch * len(edges), len(edges)))
        assert sorted((source_collection, query) for query, _, source_collection in rows) == edges
        for query, target, source_collection in rows:
            assert source.epoch_of(epoch * len(edges)) == epoch
            if sizes[source_collection] == 1:
                assert target == -1
            else:
                assert target != query and (source_collection, target) in edges
        orders.append([(source_collection, query) for query, _, source_collection in rows])
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.kernels
@pytest.mark.parametrize("graph", [toy(), scattered(3)], ids=["toy", "scattered"])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_weighted_pairs_equal_the_reference(graph, power):
    source = PairSource(graph, seed=9, power=power)
    assert source.per_epoch == graph.num_edges
    for first in (0, 10**10):
        wanted = [reference.weighted_pair(graph, 9, first + row, power) for row in range(40)]
        assert rows_of(source.batch(first, 40)) == wanted


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_weighted_pairs_have_the_exact_distribution(power):
    """A chi-square test over all outcomes (query, target, source_collection)."""
    graph, number = toy(), 100_000
    edges = reference.collection_edges(graph)
    members = {
        source_collection: [item for node, item in edges if node == source_collection]
        for source_collection, _ in edges
    }
    exact = {
        (query, target, source_collection): (len(items) - 1.0) ** power
        / (len(items) * (len(items) - 1))
        for source_collection, items in members.items()
        for query in items
        for target in items
        if query != target
    }
    source = PairSource(graph, seed=1, power=power)
    counts = collections.Counter(rows_of(source.batch(0, number)))
    assert set(counts) <= set(exact)
    wanted = np.array(list(exact.values()))
    observed = [counts[outcome] for outcome in exact]
    assert stats.chisquare(observed, number * wanted / wanted.sum()).pvalue > UNLIKELY
    mass = np.zeros(graph.num_items)
    for (_, target, _), chance in exact.items():
        mass[target] += chance
    np.testing.assert_allclose(source.target_probability(), mass / mass.sum(), rtol=1e-6)


def weighted_outcomes(graph, power):
    """{(query, target, collection): chance} of pairs by weight, with nested loops."""
    exact = {}
    for node, row in reference.adjacency(graph).items():
        if node < graph.num_items or len(row) < 2:
            continue
        total = sum(weight for _, weight in row)
        drawn = (len(row) - 1.0) ** power * total / len(row)
        for query, first in row:
            for target, second in row:
                if query != target:
                    chance = first / total * second / (total - first)
                    exact[query, target, node] = drawn * chance
    mass = sum(exact.values())
    return {outcome: chance / mass for outcome, chance in exact.items()}


@pytest.mark.parametrize("power", [0.2, 1.0])
def test_pairs_by_weight_have_the_exact_distribution(power):
    weights = np.random.default_rng(4).uniform(0.05, 4, 10)
    edges = [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (4, 3), (5, 3), (0, 4), (5, 4), (6, 4)]
    graph = reference.small_graph(dict(zip(edges, weights.tolist())), 8, 5, True)
    exact, number = weighted_outcomes(graph, power), 100_000
    source = PairSource(graph, seed=1, power=power, by_weight=True)
    counts = collections.Counter(rows_of(source.batch(0, number)))
    assert set(counts) <= set(exact)
    wanted = np.array(list(exact.values()))
    observed = [counts[outcome] for outcome in exact]
    assert stats.chisquare(observed, number * wanted).pvalue > UNLIKELY
    for end, found in enumerate((source.query_probability(), source.target_probability())):
        mass = np.zeros(graph.num_items)
        for outcome, chance in exact.items():
            mass[outcome[end]] += chance
        np.testing.assert_allclose(found, mass, rtol=1e-5)
    # Weights of a --weight_column alone, and equal ones, leave pairs as they were.
    plain = rows_of(PairSource(graph, seed=1, power=0.2).batch(0, 50))
    assert plain == rows_of(PairSource(toy(), seed=1, power=0.2).batch(0, 50))


def test_collections_without_pairs_are_never_drawn():
    """Single-item collections at both ends of the running sums have weight 0."""
    edges = [(0, 0), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2), (2, 3)]
    graph = reference.small_graph({edge: 1.0 for edge in edges}, 3, 5, False)
    batch = PairSource(graph, seed=0, power=0.5).batch(0, 20_000)
    assert set(batch.source_collection.tolist()) == {4, 5}
    assert (batch.targets != batch.queries).all() and (batch.targets >= 0).all()


@pytest.mark.kernels
@pytest.mark.parametrize("kind", ["every edge", "weighted", "listed"])
def test_pairs_do_not_depend_on_the_batch(kind):
    graph = toy()
    given = np.array([[0, 1], [2, 3], [4, 5]], np.int32) if kind == "listed" else None
    power = 0.5 if kind == "weighted" else 1.0
    source = PairSource(graph, seed=5, pairs=given, power=power)
    whole = rows_of(source.batch(0, 20))
    assert rows_of(source.batch(0, 10)) + rows_of(source.batch(10, 10)) == whole
    assert [rows_of(source.batch(number, 1))[0] for number in reversed(range(20))] == whole[::-1]
    assert rows_of(PairSource(graph, seed=5, pairs=given, power=power).batch(13, 4)) == whole[13:17]
    assert rows_of(PairSource(graph, seed=6, pairs=given, power=power).batch(0, 20)) != whole
    assert rows_of(source.batch(0, 0)) == []


def test_targets_are_uniform_over_the_rest_of_the_collection():
    graph = toy()
    epochs = 3000
    batch = PairSource(graph, seed=1).batch(0, epochs * graph.num_edges)
    for query, source_collection, others in ((1, 8, [0, 2, 3]), (3, 8, [0, 1, 2]), (5, 12, [0, 6])):
        chosen = batch.targets[
            (batch.queries == query) & (batch.source_collection == source_collection)
        ]
        counts = np.bincount(chosen, minlength=8)
        assert len(chosen) == epochs and counts[others].sum() == epochs
        assert stats.chisquare(counts[others]).pvalue > UNLIKELY


def exact_target_probability(graph):
    """Adds up every (edge, other item) outcome that gives a pair."""
    edges = reference.collection_edges(graph)
    mass = np.zeros(graph.num_items)
    for source_collection, query in edges:
        others = [item for node, item in edges if node == source_collection and item != query]
        for item in others:
            mass[item] += 1 / len(others)
    return mass / mass.sum()


@pytest.mark.parametrize("graph", [toy(), toy(weighted=True), scattered(2)])
def test_target_probability_is_exact(graph):
    got = PairSource(graph, seed=0).target_probability()
    assert got.dtype == np.float32 and got.shape == (graph.num_items,)
    np.testing.assert_allclose(got, exact_target_probability(graph), rtol=1e-6)


def test_target_probability_is_that_of_drawn_pairs():
    graph = toy()
    targets = PairSource(graph, seed=3).batch(0, 4000 * graph.num_edges).targets
    counts = np.bincount(targets[targets >= 0], minlength=graph.num_items)
    np.testing.assert_allclose(
        counts / counts.sum(), PairSource(graph, seed=3).target_probability(), atol=0.006
    )


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_items_of_a_collection_are_as_often_query_as_target(power):
    source = PairSource(toy(), seed=3, power=power)
    np.testing.assert_array_equal(source.query_probability(), source.target_probability())
    drawn = source.batch(0, 4000 * toy().num_edges)
    counts = np.bincount(drawn.queries[drawn.targets >= 0], minlength=toy().num_items)
    np.testing.assert_allclose(counts / counts.sum(), source.query_probability(), atol=0.006)


def test_pairs_of_a_mapped_graph(tmp_path):
    graph = scattered(4)
    graph.save(tmp_path)
    mapped = PairSource(Graph.load(tmp_path), seed=1)
    assert rows_of(mapped.batch(7, 50)) == rows_of(PairSource(graph, seed=1).batch(7, 50))
    np.testing.assert_array_equal(
        mapped.target_probability(), PairSource(graph, seed=1).target_probability()
    )


# Pairs of a table.


@pytest.mark.kernels
def test_listed_pairs_equal_the_reference():
    given = [(0, 1), (1, 0), (2, 3), (2, 3), (7, 6), (5, 4), (3, 3)]
    # A table reader may return an int64 array in Fortran order.
    array = np.asfortranarray(np.array(given, np.int64))
    for seed in (0, 1, 2, 3):
        source = PairSource(toy(), seed=seed, pairs=array)
        batch = source.batch(4, 3 * len(given))
        assert list(zip(batch.queries.tolist(), batch.targets.tolist())) == [
            reference.listed_pair(given, seed, 4 + row) for row in range(3 * len(given))
        ]
        assert set(batch.source_collection.tolist()) == {-1}
        for epoch in range(3):
            once = source.batch(epoch * len(given), len(given))
            assert sorted(zip(once.queries.tolist(), once.targets.tolist())) == sorted(given)


def test_target_probability_and_epochs_of_listed_pairs():
    given = np.array([[0, 1], [2, 3], [4, 3], [5, 1], [6, 3]], np.int32)
    source = PairSource(toy(), seed=0, pairs=given)
    np.testing.assert_allclose(
        source.target_probability(), np.array([0, 0.4, 0, 0.6, 0, 0, 0, 0], np.float32)
    )
    np.testing.assert_allclose(
        source.query_probability(), np.array([0.2, 0, 0.2, 0, 0.2, 0.2, 0.2, 0], np.float32)
    )
    assert source.per_epoch == 5 and [source.epoch_of(n) for n in (0, 4, 5, 14)] == [0, 0, 1, 2]
    shorter = PairSource(toy(), seed=0, pairs=given, per_epoch=2)
    assert shorter.per_epoch == 2 and [shorter.epoch_of(n) for n in (0, 1, 2, 5)] == [0, 0, 1, 2]
    # The length of an epoch does not change the sequence of pairs.
    assert rows_of(shorter.batch(0, 12)) == rows_of(source.batch(0, 12))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_source_without_any_pair_raises(power):
    """Otherwise a run would train on pairs that do not count, without a warning."""
    empty = reference.small_graph({}, 3, 2, False)
    alone = reference.small_graph({(0, 0): 1.0, (1, 1): 1.0}, 2, 3, False)
    for graph in (empty, alone):
        with pytest.raises(UserError, match="No collection holds two items"):
            PairSource(graph, seed=0, power=power)
        PairSource(graph, seed=0, pairs=np.array([[0, 1]], np.int32), power=power)
    with pytest.raises(UserError, match="no training pair"):
        PairSource(toy(), seed=0, pairs=np.empty((0, 2), np.int32), power=power)


# Random negatives.


def test_random_negatives_are_keyed_by_seed_and_step():
    pool = np.array([3, 5, 8, 13, 21], np.int32)
    first = random_negatives(pool, 50, seed=1, step=4)
    assert first.dtype == np.int32 and first.shape == (50,) and set(first.tolist()) == set(pool)
    np.testing.assert_array_equal(first, random_negatives(pool, 50, seed=1, step=4))
    assert not np.array_equal(first, random_negatives(pool, 50, seed=1, step=5))
    assert not np.array_equal(first, random_negatives(pool, 50, seed=2, step=4))
    many = random_negatives(np.arange(9, dtype=np.int32), 90_000, seed=0, step=0)
    assert stats.chisquare(np.bincount(many, minlength=9)).pvalue > UNLIKELY


# Hard negatives.


def hard_sampling(**changes):
    return SamplingConfig(
        **{"walk_length": 3, "hard_walks": 40, "hard_scale": False, "hard_low": 3, "hard_high": 9}
        | changes
    )


@pytest.mark.kernels
@pytest.mark.parametrize("neighborhood", ["items", "all"])
def test_hard_negatives_equal_the_reference(neighborhood):
    graph = scattered(5, items=25, groups=14, edges=45)
    sampling = hard_sampling(neighborhood=neighborhood)
    pairs = PairSource(graph, seed=4).batch(30, 16)
    got = hard_negatives(WalkTables(graph), pairs, sampling, size=5, seed=4, first=30)
    wanted = reference.hard_negatives(
        graph, pairs.queries, pairs.targets, sampling, (3, 9), size=5, seed=4, first=30
    )
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, wanted)
    assert (got >= 0).mean() > 0.5


def ranking(graph, query, sampling, size, seed):
    ids, _ = reference.neighborhoods(
        graph,
        [query],
        sampling,
        seed=seed ^ reference.HARD,
        size=size,
        num_walks=sampling.hard_walks,
    )
    return [item for item in ids[0].tolist() if item >= 0]


def test_hard_negatives_are_in_the_band():
    graph = scattered(6, items=60, groups=10, edges=200)
    sampling = hard_sampling()
    pairs = PairSource(graph, seed=0).batch(0, 64)
    got = hard_negatives(WalkTables(graph), pairs, sampling, size=40, seed=0, first=0)
    for row, (query, target, _) in enumerate(rows_of(pairs)):
        ranked = ranking(graph, query, sampling, 9, 0)
        assert len(ranked) == 9
        drawn = set(got[row].tolist())
        assert target not in drawn and query not in drawn
        # The probability that 40 draws of 6 ranks miss one is below 1 in 1000.
        assert drawn - {-1} <= set(ranked[3:]) - {target}
        assert (-1 in drawn) <= (target in ranked[3:])
    seen = np.concatenate([got[row] for row in range(64)])
    assert (seen >= 0).mean() > 0.7


def test_short_rankings_shrink_the_band():
    """In a star of n items a query reaches n - 1, and an isolated query none."""
    for others, expected in ((0, 0), (1, 1), (2, 2), (5, 4), (6, 4), (9, 6)):
        edges = {(item, 0): 1.0 for item in range(others + 1)}
        graph = reference.small_graph(edges, others + 2, 1, False)
        sampling = hard_sampling(hard_walks=400)
        pairs = PairBatch(
            np.zeros(1, np.int32), np.full(1, others + 1, np.int32), np.full(1, -1, np.int32)
        )
        got = hard_negatives(WalkTables(graph), pairs, sampling, size=200, seed=3, first=0)
        ranked = ranking(graph, 0, sampling, 9, 3)
        assert len(ranked) == others
        # The band omits the best third of nine ranks, and so a third of a shorter list.
        assert set(got[0].tolist()) == (set(ranked[others * 3 // 9 :]) or {-1})
        assert len(set(got[0].tolist()) - {-1}) == expected


def test_draws_from_the_band_are_uniform():
    graph = reference.small_graph({(item, 0): 1.0 for item in range(30)}, 30, 1, False)
    sampling = hard_sampling(hard_walks=300)
    pairs = PairBatch(
        np.full(400, 7, np.int32), np.full(400, -1, np.int32), np.full(400, -1, np.int32)
    )
    got = hard_negatives(WalkTables(graph), pairs, sampling, size=20, seed=1, first=0)
    counts = np.bincount(got.ravel(), minlength=30)
    ranked = ranking(graph, 7, sampling, 9, 1)
    assert counts.sum() == counts[ranked[3:]].sum()
    assert stats.chisquare(counts[ranked[3:]]).pvalue > UNLIKELY


@pytest.mark.kernels
def test_hard_negatives_do_not_depend_on_the_batch_or_the_threads():
    """Each device requests its own part of a batch, and threads walk from any part of it."""
    graph = scattered(7, items=25, groups=8, edges=70)
    tables, sampling = WalkTables(graph), hard_sampling()
    source = PairSource(graph, seed=2)

    def drawn(first, size, threads=1, width=4):
        pairs = source.batch(first, size)
        return hard_negatives(
            tables, pairs, sampling, size=width, seed=2, first=first, threads=threads
        )

    whole = drawn(0, 16)
    np.testing.assert_array_equal(np.concatenate([drawn(0, 8), drawn(8, 8)]), whole)
    np.testing.assert_array_equal(drawn(0, 16, threads=3), whole)
    # With more hard negatives later in the curriculum the first columns stay the same.
    np.testing.assert_array_equal(drawn(0, 16, width=7)[:, :4], whole)
    assert not np.array_equal(drawn(8, 8), whole[:8])


def test_many_threads_look_up_the_same_rankings(monkeypatch):
    graph = scattered(9, items=60, groups=12, edges=200)
    tables, sampling = WalkTables(graph), hard_sampling(hard_walks=400)
    alone = Rankings(tables, sampling, 3, max_bytes=0)
    shared = Rankings(tables, sampling, 3)
    find, guarded = pair_kernels.find_unranked, []

    def recorded(*arguments):
        # Marks are read and made under one lock: what it shows as ranked can be read.
        guarded.append(shared._lock.locked())
        return find(*arguments)

    rng = np.random.default_rng(1)
    queries = [rng.integers(0, 60, size=8).astype(np.int32) for _ in range(200)]
    expected = [rankings[rows] for rankings, rows in map(alone.lookup, queries)]
    monkeypatch.setattr(pair_kernels, "find_unranked", recorded)

    def look_up(some):
        rankings, rows = shared.lookup(some)
        return rankings[rows]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(look_up, queries))
    np.testing.assert_array_equal(found, expected)
    assert guarded == [True] * len(queries)


@pytest.mark.kernels
@pytest.mark.parametrize("others", [None, 0, 5])
def test_rankings_too_large_to_keep_leave_a_fixed_sample_of_the_band(monkeypatch, others):
    """Draws of the sample against Python's, for long rankings, short ones and none."""
    monkeypatch.setattr(pairs_module, "_BAND_SAMPLE", 4)
    graph = scattered(5, items=25, groups=14, edges=45)
    if others is not None:
        star = {(item, 0): 1.0 for item in range(others + 1)}
        graph = reference.small_graph(star, 25, 1, False)
    sampling, tables = hard_sampling(), WalkTables(graph)
    kept = Rankings(tables, sampling, 3, max_bytes=4 * 25 * 4)
    whole = Rankings(tables, sampling, 3)
    assert kept.band == (0, 4) and whole.band == (3, 9)
    queries = np.array([0, 7, 0, 3], np.int32)
    key = reference.stream(3 ^ reference.SAMPLE, 0, 0)
    for some in (queries, queries[::-1].copy(), queries[:1]):
        found, rows = kept.lookup(some)
        for query, sample in zip(some.tolist(), found[rows].tolist()):
            ranked = [item for item in whole.lookup(some)[0][query].tolist() if item >= 0]
            band = ranked[3:] if len(ranked) == 9 else ranked[len(ranked) * 3 // 9 :]
            draws = [reference.high(reference.draw(key, query, place)) for place in range(4)]
            assert sample == [band[reference.bounded(d, len(band))] if band else -1 for d in draws]
    pairs = PairBatch(queries, np.full(4, -1, np.int32), np.full(4, -1, np.int32))
    drawn = draw_hard_negatives(kept, pairs, size=50, first=9)
    for query, items in zip(queries, drawn):
        assert set(items.tolist()) == set(found[query].tolist())


def test_what_is_kept_of_rankings_goes_by_memory():
    assert pairs_module.kept_ranks(50_000, 5000) == 5000
    assert pairs_module.kept_ranks(1_000_000, 5000) == 64
    assert pairs_module.kept_ranks(1_000_000, 30) == 30
    assert pairs_module.kept_ranks(10_000_000, 5000) == 0


def test_pairs_without_a_target_have_negatives_and_repeated_queries_differ():
    graph = scattered(8, items=40, groups=6, edges=120)
    pairs = PairBatch(np.full(6, 4, np.int32), np.full(6, -1, np.int32), np.full(6, -1, np.int32))
    got = hard_negatives(WalkTables(graph), pairs, hard_sampling(), size=8, seed=0, first=5)
    assert (got >= 0).all() and len({tuple(row) for row in got.tolist()}) == 6


def test_band_scales_with_the_catalog():
    paper = SamplingConfig()
    assert hard_band(paper, 3_000_000_000) == (2000, 5000)
    assert hard_band(paper, 500_000) == (2000, 5000)
    assert hard_band(paper, 250_000) == (1000, 2500)
    assert hard_band(paper, 499_999) == (2000, 5000)
    assert hard_band(paper, 10_000) == (40, 100)
    assert hard_band(SamplingConfig(hard_scale=False), 10) == (2000, 5000)
    for items in (1, 2, 10, 99, 500, 1234):
        low, high = hard_band(paper, items)
        assert 1 <= low < high
    # If both ends are rounded to the same rank, the band still has one rank.
    assert hard_band(SamplingConfig(hard_low=4998, hard_high=5000), 40_000) == (400, 401)
