"""Lists of the ranker under rules and for queries that the catalog does not contain."""

import dataclasses

import numpy as np
import pytest
from ranked_world import make_world, simple_model

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.ranking.candidates import CandidateSource, NewQueries
from pinsage_jax.ranking.ranker import Ranker


@pytest.fixture(scope="module")
def ranker():
    graph, features, vectors = make_world()
    source = CandidateSource(graph, features, vectors, SamplingConfig(), 1, True)
    return Ranker(source, simple_model()), (graph, features, vectors)


class SomeRules:
    """Allows other items for odd queries than for even ones."""

    def __init__(self, boost=None):
        self.boost = boost

    def groups(self, rows):
        return np.asarray(rows) % 2, np.array([0, 1])

    def allowed(self, row):
        return np.arange(row, 300, 3)

    def factors(self, row):
        return self.boost


def test_rules_choose_from_the_whole_list(ranker):
    lists, rows = ranker[0], np.array([3, 4, 285])
    whole, scores = lists.top_k(None, 299, rows)
    found, values = lists.top_k(None, 40, rows, SomeRules())
    for row, query in enumerate(rows):
        allowed = np.isin(whole[row], np.arange(query % 2, 300, 3))
        np.testing.assert_array_equal(found[row], whole[row][allowed][:40])
        np.testing.assert_allclose(values[row], scores[row][allowed][:40], rtol=1e-6)
    # Fewer items than places.
    short = lists.top_k(None, 150, rows, SomeRules())[0]
    assert ((short >= 0).sum(axis=1) <= 100).all()


def test_boosts_multiply_the_odds(ranker):
    lists, rows = ranker[0], np.array([4])
    factors = np.ones(300, np.float32)
    factors[30] = 8.0
    plain, boosted = (lists.top_k(None, 300, rows, SomeRules(boost)) for boost in (None, factors))
    before = plain[1][0][plain[0][0] == 30]
    after = boosted[1][0][boosted[0][0] == 30]
    np.testing.assert_allclose(after - before, np.log(8.0), rtol=1e-5)
    others = plain[0][0][plain[0][0] != 30]
    np.testing.assert_array_equal(boosted[0][0][boosted[0][0] != 30], others)


@pytest.mark.parametrize("item", [280, 11])
def test_a_new_item_is_listed_for_like_a_known_one(ranker, item):
    """The same content, vector and collections; only the item itself is listed, too."""
    lists, (graph, features, vectors) = ranker
    new = NewQueries.of(vectors[[item]], features[[item]], [graph.neighbors(item)])
    found, scores = lists.top_k_of_new(new, 20)
    known, known_scores = lists.top_k(None, 20, np.array([item]))
    assert item in found[0][:3]
    same = np.isin(known[0], found[0])
    assert same.mean() >= 0.9 and (np.diff(scores[0]) <= 0).all()
    shared = [scores[0][found[0] == other][0] for other in known[0][same]]
    assert np.corrcoef(shared, known_scores[0][same])[0, 1] > 0.9
    ruled = lists.top_k_of_new(new, 20, SomeRules())[0][0]
    assert (ruled % 3 == 0).all()


def test_new_items_without_content_or_edges_have_lists(ranker):
    graph, _, vectors = ranker[1]
    none = np.empty((300, 0), np.float32)
    source = CandidateSource(graph, none, vectors, SamplingConfig(), 1, True)
    nothing = NewQueries.of(vectors[:2], none[:2], [np.empty(0, np.int32)] * 2)
    ids, scores = Ranker(source, ranker[0].model).top_k_of_new(nothing, 5)
    assert (ids >= 0).all() and np.isfinite(scores).all()
    # Methods alone list what they reach: walks nothing.
    assert (Ranker(source, None, "walk").top_k_of_new(nothing, 5)[0] == -1).all()


def test_the_weight_of_popularity_counts_in_lists_by_vectors(ranker):
    _, (_, _, vectors) = ranker
    model = dataclasses.replace(ranker[0].model, by={"warm": "vectors", "cold": "vectors"})
    source = ranker[0]._source
    ids = Ranker(source, model, popularity_weight=0.25).top_k(None, 10, np.array([4]))[0][0]
    weighted = vectors * np.array([1.0] * 10 + [0.5], np.float32)
    scores = weighted @ weighted[4]
    scores[4] = -np.inf
    np.testing.assert_array_equal(ids, np.argsort(-scores, kind="stable")[:10])
