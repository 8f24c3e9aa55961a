"""Embeddings that follow events, against the changed catalog embedded whole."""

import numpy as np
import pytest
from changing_graph import apply_slowly, built, edge_weights, random_events
from embedded_catalog import random_params, settings
from small_catalog import make_prepared, random_graph
from small_runs import unit_features

from pinsage_jax.following.follower import Follower
from pinsage_jax.following.overlay import EdgeEvents
from pinsage_jax.inference.current_catalog import CurrentCatalog, fill_tables
from pinsage_jax.inference.tables import ScratchTables

BIAS = 0.25


def catalog_of(graph, features, bases, config):
    trained = make_prepared(random_graph(np.random.default_rng(1), 60, 14, 150, 8), features)
    return CurrentCatalog(config, trained, make_prepared(graph, features), bases)


def embedded(catalog, params):
    def adjust(begin, end, rows):
        rows[catalog.isolated(np.arange(begin, end)), -1] += np.float32(BIAS)

    return np.array(fill_tables(catalog, params, ScratchTables(), adjust))


@pytest.fixture(scope="module", params=["plain", "no features", "links of isolated items"])
def started(request):
    rng = np.random.default_rng(1)
    features = unit_features(60, 0 if request.param == "no features" else 6)
    sampling = {"content_limit": 10} if request.param == "links of isolated items" else {}
    config = settings(spectral_dim=4, num_layers=1, sampling=sampling)
    graph = random_graph(rng, 60, 14, 150, 8)
    bases = rng.normal(size=(60, 4)).astype(np.float32)
    catalog = catalog_of(graph, features, bases, config)
    params = random_params(config, catalog.inputs.dim, 60)
    return graph, features, bases, config, params


def test_with_no_tolerance_vectors_are_those_of_the_changed_catalog(started):
    graph, features, bases, config, params = started
    rng, edges = np.random.default_rng(9), edge_weights(graph)
    follower = Follower(catalog_of(graph, features, bases, config), bases, params, BIAS, 1e-9)
    vectors = embedded(catalog_of(graph, features, bases, config), params)
    stays = Follower(catalog_of(graph, features, bases, config), bases, params, BIAS, 100.0)
    for new in (0, 1, 0, 2):
        count = follower.overlay.num_collections + new
        events = random_events(rng, graph, count, 12, False)
        apply_slowly(edges, events)
        assert follower.apply(events, new) and stays.apply(events, new)
        rows, fresh = follower.refreshed()
        vectors[rows] = fresh
        assert not len(stays.refreshed()[0])
    after = built(edges, 60, follower.overlay.num_collections, False)
    whole = catalog_of(after, features, bases, config)
    every = np.arange(60, dtype=np.int32)
    np.testing.assert_array_equal(
        follower._catalog.inputs.gather(every), whole.inputs.gather(every)
    )
    for one, other in zip(follower.lists(every), whole.lookup(every)):
        np.testing.assert_allclose(one, other, atol=1e-6)
    # What neighbors send follows when their own inputs change; all of them are embedded again.
    vectors[every] = follower._embed(every)
    np.testing.assert_allclose(vectors, embedded(whole, params), atol=1e-5)


def test_the_rows_that_a_change_reaches_are_embedded_again(started):
    graph, features, _, config, params = started
    none = np.zeros((60, 0), np.float32)
    params = random_params(config, catalog_of(graph, features, none, config).inputs.dim, 60)
    edges = edge_weights(graph)
    follower = Follower(catalog_of(graph, features, none, config), none, params, BIAS, 1e-9)
    vectors = embedded(catalog_of(graph, features, none, config), params)
    events = EdgeEvents(np.array([3, 55], np.int32), np.array([2, 4], np.int32), np.zeros(2, bool))
    apply_slowly(edges, events)
    assert follower.apply(events) == 2
    rows, fresh = follower.refreshed()
    vectors[rows] = fresh
    assert 3 in rows and 55 in rows
    after = catalog_of(built(edges, 60, 14, False), features, none, config)
    # Without spectral features, degrees are all that a neighbor sends anew.
    sends = {3, 55}
    expected = embedded(after, params)
    ids = after.lookup(np.arange(60, dtype=np.int32))[0]
    same = [i for i in range(60) if i in rows or not sends & set(ids[i].tolist())]
    assert len(same) > 30
    np.testing.assert_allclose(vectors[same], expected[same], atol=1e-5)


def test_small_changes_add_up(started):
    graph, features, bases, config, params = started
    follower = Follower(catalog_of(graph, features, bases, config), bases, params, BIAS, 1.2)
    rng, embedded_again = np.random.default_rng(2), 0
    for _ in range(25):
        follower.apply(random_events(rng, graph, 14, 2, False))
        embedded_again += len(follower.refreshed()[0])
    assert 0 < embedded_again < 25 * 60
