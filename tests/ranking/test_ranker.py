"""ranking/: walks against exact probabilities, the regression against scikit-learn, whole lists."""

import dataclasses
import json

import numpy as np
import pytest
from ranked_world import make_world
from sklearn.linear_model import LogisticRegression
from small_catalog import make_config, make_prepared, random_graph

from pinsage_jax.config.data import SplitConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.search import SearchConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation.evaluate import POPULARITY_WEIGHTS, evaluate
from pinsage_jax.export import writer
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import validation_split
from pinsage_jax.ranking import candidates, levels
from pinsage_jax.ranking import fit as fit_module
from pinsage_jax.ranking.calibrated_model import CalibratedModel, fit
from pinsage_jax.ranking.candidates import FEATURES, METHODS, CandidateSource, best_columns
from pinsage_jax.ranking.fit import fit_ranker, ranking_pairs
from pinsage_jax.ranking.ranker import Ranker
from pinsage_jax.ranking.ranker_model import RankerModel
from pinsage_jax.ranking.saved_ranker import RANKER_FILE, open_ranker, write_ranker
from pinsage_jax.ranking.similar_items import SimilarItems
from pinsage_jax.sampling.steered_walks import visit_probabilities

# Walks.


def slow_visits(graph, query, cosines, sampling, steering):
    """The same by dense transition matrices."""
    items, nodes = graph.num_items, graph.num_nodes
    step = np.zeros((items, items))
    for item in range(items):
        collections = graph.neighbors(item)
        for collection in collections:
            members = graph.neighbors(collection)
            weight = np.exp(steering * cosines[members].astype(np.float64))
            np.add.at(step[item], members, weight / weight.sum() / len(collections))
    mass, visits = np.eye(items)[query], np.zeros(items)
    for number in range(sampling.walk_length):
        mass = mass @ step
        visits += (1 - sampling.restart) ** number * mass
    visits[query] = 0
    assert nodes > items
    return visits


@pytest.mark.parametrize("steering", [0.0, 4.0])
def test_visits_are_those_of_the_exact_probabilities(small_rng, steering):
    graph = random_graph(small_rng, num_items=40, num_collections=12, edges=120)
    cosines = small_rng.uniform(-0.2, 1, (40, 40)).astype(np.float32)
    sampling, queries = SamplingConfig(walk_length=3, restart=0.3), np.arange(40)
    found = visit_probabilities(graph, queries, cosines, sampling, 2, steering, least_mass=0.0)
    for query in queries:
        expected = slow_visits(graph, query, cosines[query], sampling, steering)
        np.testing.assert_allclose(found[query], expected, rtol=1e-5, atol=1e-9)
    assert not found[35:].any()  # isolated items
    # Neither threads nor the other queries change a bit; little mass left out changes little.
    alone = visit_probabilities(graph, queries[3:4], cosines[3:4], sampling, 1, steering, 0.0)
    np.testing.assert_array_equal(alone[0], found[3])
    pruned = visit_probabilities(graph, queries, cosines, sampling, 1, steering, 1e-3)
    assert (pruned <= found + 1e-6).all() and np.abs(pruned - found).max() < 0.02


# What similar items tell.


@pytest.mark.parametrize("threads", [1, 3])
def test_means_are_those_of_the_items_most_like_a_cold_one(small_rng, threads):
    features = small_rng.normal(size=(60, 5)).astype(np.float32)
    cold, warm = np.arange(1, 60, 4), np.setdiff1d(np.arange(60), np.arange(1, 60, 4))
    values = np.maximum(small_rng.normal(size=(70, 60)), 0).astype(np.float32)
    values[0, 7] = -np.inf  # the query itself
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.zeros((70, len(cold)))
    for column, item in enumerate(cold):
        cosines = unit[warm] @ unit[item]
        best = np.argsort(-cosines)[:6]
        best = best[cosines[best] > 0]
        shares = cosines[best] ** 2 / (cosines[best] ** 2).sum()
        expected[:, column] = np.maximum(values[:, warm[best]], 0) @ shares
    similar = SimilarItems(features, cold, warm, threads, 6)
    np.testing.assert_allclose(similar.means_of(values), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(similar.mean_of(values[3]), similar.means_of(values)[3])


def test_walks_propose_cold_items_like_those_that_they_visit(monkeypatch):
    """A cold item that neither vectors nor the query's own content would propose."""
    monkeypatch.setattr(candidates, "_BY_VECTORS", 1)
    monkeypatch.setattr(candidates, "_BY_CONTENT", 1)
    graph = Graph.from_edges(
        np.array([0, 1, 2, 3], np.int32), np.array([0, 0, 1, 1], np.int32), 7, 2
    )
    # Item 4 is like item 1, which shares a collection with item 0; 5 is like 0 itself; 6 like 3.
    features = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1, 0, 3]]
    vectors = np.eye(2, dtype=np.float32)[[0, 1, 1, 1, 1, 1, 0]]
    source = CandidateSource(graph, features, vectors, SamplingConfig(), 1, False)
    (block,) = source.blocks(np.array([0]))
    assert set(block.ids[0].tolist()) - {-1} >= {1, 4, 5, 6}
    place = block.ids[0].tolist().index(4)
    visits = np.exp(block.features[0, :, FEATURES.index("log_walk")])
    assert visits[place] == pytest.approx(visits[block.ids[0].tolist().index(1)], rel=1e-4)


# The model.


def test_the_regression_is_that_of_scikit_learn(small_rng):
    features = small_rng.normal(size=(400, 4)) * [1, 100, 0.01, 1] + [0, 5, 0, 0]
    features[:, 3] = 7.0  # says nothing
    odds = features[:, 0] - 0.01 * features[:, 1] + 30 * features[:, 2] - 2
    labels = small_rng.random(400) < 1 / (1 + np.exp(-odds))
    weights = small_rng.choice([1.0, 6.0], 400)
    model = fit(features, labels, weights)
    center = np.average(features, axis=0, weights=weights)
    spread = np.sqrt(np.average((features - center) ** 2, axis=0, weights=weights))
    scaled = (features - center) / np.where(spread > 1e-9, spread, np.inf)
    # A column divided by the root of its penalty is one with penalty 1.
    cut = np.clip(scaled, -6, 6)
    products = [cut[:, i] * cut[:, j] for i in range(4) for j in range(i, 4)]
    columns = np.column_stack([scaled, np.column_stack(products) / np.sqrt(1000.0)])
    other = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(columns, labels, weights)
    expected = columns @ other.coef_[0] + other.intercept_[0]
    np.testing.assert_allclose(model.log_odds(features.astype(np.float32)), expected, atol=2e-3)
    assert model.weights[3] == 0.0 and not model.products[:, 3].any()
    again = CalibratedModel.from_json(json.loads(json.dumps(model.as_json())))
    for name in ("weights", "intercept", "products", "center", "scale"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    separable = fit(features[:, :1], features[:, 0] > 0, np.ones(400))
    assert np.isfinite(separable.weights).all() and separable.weights[0] > 0
    for same in (labels | True, labels & False):
        with pytest.raises(ValueError, match="both labels"):
            fit(features, same, weights)


def test_the_regression_finds_what_only_a_product_tells(small_rng):
    features = small_rng.normal(size=(30_000, 3))
    labels = features[:, 0] * features[:, 1] > 0.5
    odds = fit(features, labels, np.ones(30_000)).log_odds(features.astype(np.float32))
    assert labels.mean() < 0.25 and ((odds > 0) == labels).mean() > 0.9
    # Few rows leave products near 0, so that noise is not taken for them.
    few = fit(features[:40], labels[:40], np.ones(40))
    assert np.abs(few.products).max() < 0.1


# Candidates and lists.


def test_best_columns_equal_a_stable_sort(small_rng):
    scores = small_rng.integers(0, 6, (50, 300)).astype(np.float32)
    scores[:, 7] = -np.inf
    for k in (1, 20, 400):
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)
        expected = np.where(np.take_along_axis(scores, expected, 1) > -np.inf, expected, -1)
        np.testing.assert_array_equal(best_columns(scores, k, 2), expected)


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def fitted(world):
    graph, features, vectors = world
    split = validation_split(
        graph, SplitConfig(validation_collections=0.3, validation_cold_items=0.15), 0
    )
    source = CandidateSource(split.train_graph, features, vectors, SamplingConfig(), 2, True)
    model, report = fit_ranker(source, graph, split, 0)
    whole = CandidateSource(graph, features, vectors, SamplingConfig(), 2, True)
    return split, model, report, whole


def test_kinds_of_candidates_share_a_model_only_where_pairs_are_few(world, fitted, monkeypatch):
    split, model = fitted[:2]
    for query in ("warm", "cold"):
        assert model.models[query]["warm"] is not model.models[query]["cold"]
    source = CandidateSource(split.train_graph, *world[1:], SamplingConfig(), 2, True)
    pairs = ranking_pairs(world[0], split, 0)
    cold = split.train_graph.degree()[:300] == 0
    both = int((cold[pairs[:, 0]] & cold[pairs[:, 1]]).sum())
    monkeypatch.setattr(fit_module, "_LEAST_PAIRS", both + 1)
    shared = fit_ranker(source, world[0], split, 0)[0].models["cold"]
    assert shared["warm"] is shared["cold"]


def test_given_pairs_are_fitted_on_where_validation_took_them(world):
    graph = world[0]
    rng = np.random.default_rng(1)
    given = np.unique(rng.integers(0, 270, (400, 2)).astype(np.int32), axis=0)
    given = rng.permutation(given[given[:, 0] != given[:, 1]])
    config = SplitConfig(validation_collections=0.3, validation_cold_items=0.15)
    split = validation_split(graph, config, 0, given)
    pairs = ranking_pairs(graph, split, 0)
    # Those that validation took, in order, and no other: training kept the rest, none is drawn.
    assert pairs.dtype == np.int32 and len(pairs) >= 100
    assert pairs.tolist() == sorted(split.pairs.tolist())
    rest = {tuple(pair) for pair in given.tolist()} - {tuple(pair) for pair in pairs.tolist()}
    assert rest >= {tuple(pair) for pair in split.train_pairs.tolist()} != set()
    # The queries have edges; targets without any are cold ones of the split.
    degree = split.train_graph.degree()
    assert (degree[pairs[:, 0]] > 0).all()
    cold = pairs[degree[pairs[:, 1]] == 0, 1]
    assert len(cold) and set(cold.tolist()) & set(split.items.tolist())
    # A pair that is there twice counts once, and the seed draws nothing.
    twice = dataclasses.replace(split, pairs=np.concatenate([split.pairs, split.pairs[:9]]))
    np.testing.assert_array_equal(ranking_pairs(graph, twice, 7), pairs)


def test_features_are_what_their_names_say(world, fitted):
    graph, features, vectors = world
    source, rows = fitted[3], np.array([4, 280, 11])
    (block,) = source.blocks(rows)
    degree = graph.degree()[:300]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    place = {name: number for number, name in enumerate(FEATURES)}
    for row, query in enumerate(rows):
        ids = block.ids[row][block.ids[row] >= 0]
        assert query not in ids and len(ids) == len(set(ids.tolist()))
        found = block.features[row][block.ids[row] >= 0]
        similarity = vectors[ids, :-1] @ vectors[query, :-1]
        np.testing.assert_allclose(found[:, place["similarity"]], similarity, atol=1e-5)
        popularity = vectors[ids, -1] * vectors[query, -1]
        np.testing.assert_allclose(found[:, place["popularity"]], popularity, atol=1e-5)
        np.testing.assert_allclose(found[:, place["content"]], unit[ids] @ unit[query], atol=1e-5)
        warm = degree[ids] > 0
        np.testing.assert_array_equal(block.isolated[row][block.ids[row] >= 0], ~warm)
        log_degree = found[:, place["log_degree"]]
        np.testing.assert_allclose(log_degree[warm], np.log1p(degree[ids[warm]]), rtol=1e-6)
        assert (log_degree[~warm] > 0).all()  # that of similar items
        for kind in (warm, ~warm):
            scores = (similarity + popularity)[kind]
            ranks = 1 + np.array([(scores > score + 1e-5).sum() for score in scores])
            close = np.abs(np.exp(found[kind, place["log_rank_by_vectors"]]) - ranks)
            assert (close < 1.5).all()
        best = np.sort(similarity[warm])[-10:].mean()
        np.testing.assert_allclose(found[:, place["best_vectors_warm"]], best, atol=1e-5)


def test_a_list_holds_the_whole_catalog_and_does_not_depend_on_the_others(fitted):
    ranker = Ranker(fitted[3], fitted[1])
    rows = np.arange(0, 300, 7)
    ids, scores = ranker.top_k(None, 299, rows)
    for row, query in enumerate(rows):
        assert set(ids[row].tolist()) == set(range(300)) - {int(query)}
    assert (np.diff(scores, axis=1) <= 1e-6).all() and np.isfinite(scores).all()
    shorter = ranker.top_k(None, 20, rows)[0]
    alone = np.concatenate([ranker.top_k(None, 20, rows[[i]])[0] for i in range(len(rows))])
    assert (alone == shorter).mean() > 0.999
    pairs = np.stack([np.repeat(rows, 300), np.tile(np.arange(300), len(rows))], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]].astype(np.int32)
    ranks = ranker.ranks(pairs).reshape(len(rows), 299)
    for row, query in enumerate(rows):
        others = np.delete(np.arange(300), query)
        assert (np.sort(ranks[row]) == np.arange(1, 300)).mean() > 0.98  # ties share a rank
        np.testing.assert_array_equal(others[np.argsort(ranks[row], kind="stable")[:20]],
                                      shorter[row])  # fmt: skip


@pytest.mark.parametrize("by", METHODS)
def test_a_method_alone_orders_by_its_scores(fitted, by):
    source, rows = fitted[3], np.array([3, 285])
    ids, scores = Ranker(source, None, by).top_k(None, 12, rows)
    (block,) = source.blocks(rows, 12)
    for row in range(2):
        values = block.scores[by][row]
        order = np.argsort(-values, kind="stable")[:12]
        order = order[values[order] > (-np.inf if by == "vectors" else 0)]
        np.testing.assert_array_equal(ids[row, : len(order)], order)
        assert (ids[row, len(order) :] == -1).all()
        np.testing.assert_array_equal(scores[row, : len(order)], values[order])


# Fitting.


def test_pairs_are_hidden_from_the_training_graph_and_of_every_kind(world, fitted):
    graph, split = world[0], fitted[0]
    pairs = ranking_pairs(graph, split, 0)
    warm = split.train_graph.degree()[:300] > 0
    withheld = set((300 + split.collections).tolist())
    kinds = set()
    for query, target in pairs.tolist():
        shared = set(graph.neighbors(query).tolist()) & set(graph.neighbors(target).tolist())
        assert query != target and shared
        assert shared & withheld or not (warm[query] and warm[target])
        kinds.add((bool(warm[query]), bool(warm[target])))
    assert len(kinds) == 4 and len(np.unique(pairs, axis=0)) == len(pairs)


def test_by_time_pairs_of_a_cold_item_are_of_the_latest_collections(world, monkeypatch):
    graph = world[0]
    times = np.random.default_rng(2).integers(0, 1000, graph.num_edges)
    settings = SplitConfig(validation_collections=0.3, validation_cold_items=0.15)
    split = validation_split(graph, settings, 0, times=times)
    withheld = set((300 + split.collections).tolist())

    def shared(pairs):
        both = [[set(graph.neighbors(item).tolist()) for item in pair] for pair in pairs.tolist()]
        return [withheld & of_query & of_target for of_query, of_target in both]

    monkeypatch.setattr(fit_module, "ENOUGH_COLD", 1)
    pairs = ranking_pairs(graph, split, 0)
    isolated = split.train_graph.degree()[:300] == 0
    assert all(shared(pairs)) and isolated[pairs[:, 0]].any() and isolated[pairs[:, 1]].any()
    # Collections that began earlier are taken where the latest have too few such pairs.
    monkeypatch.setattr(fit_module, "ENOUGH_COLD", 10**6)
    more = ranking_pairs(graph, split, 0)
    assert not all(shared(more)) and set(map(tuple, pairs.tolist())) < set(
        map(tuple, more.tolist())
    )


def test_the_ranker_is_not_below_its_methods_and_says_what_it_costs(fitted):
    _, model, report, _ = fitted
    warm = report["measured"]["warm"]
    assert model.by == {"warm": "ranker", "cold": "ranker"}
    at = {entry["level"]: entry for entry in warm["frontier"]}
    chosen = at[model.levels["warm"]]
    for method in METHODS:
        for metric in ("hit@10", "hit@100"):
            assert chosen["warm"][metric][0] >= warm["methods"][method]["warm"][metric][0] - 0.02
    rates = [entry["warm"]["hit@10"][0] for entry in warm["frontier"]]
    cold = [entry["cold"]["hit@10"][0] for entry in warm["frontier"]]
    assert (np.diff(rates) <= 0).all() and (np.diff(cold) >= 0).all() and cold[-1] > cold[0]
    table = levels.price_table(warm)
    assert [entry["price"] for entry in table] == [None, *levels.PRICES]
    for entry in table[1:]:
        assert entry["warm"]["hit@10"][0] >= (1 - entry["price"]) * max(rates) - 1e-9
    assert [entry["level"] for entry in table[1:]] == sorted(e["level"] for e in table[1:])


def test_the_same_bits_every_time(world, fitted):
    graph, features, vectors = world
    split, model, _, _ = fitted
    source = CandidateSource(split.train_graph, features, vectors, SamplingConfig(), 1, True)
    assert fit_ranker(source, graph, split, 0)[0].as_json() == model.as_json()


def test_what_is_worse_than_a_method_is_not_shipped(world, monkeypatch, caplog):
    """Content that is noise, walks that tell all, and a model that was fitted wrongly."""
    graph, features, vectors = world
    split = validation_split(graph, SplitConfig(validation_collections=0.3), 0)
    source = CandidateSource(split.train_graph, features, vectors, SamplingConfig(), 1, True)
    good = CalibratedModel.log_odds
    monkeypatch.setattr(CalibratedModel, "log_odds", lambda self, rows: -good(self, rows))
    with caplog.at_level("WARNING"):
        model, report = fit_ranker(source, graph, split, 0)
    alone = {
        name: found["warm"]["hit@10"][0] + found["warm"]["hit@100"][0]
        for name, found in report["measured"]["warm"]["methods"].items()
    }
    assert model.by["warm"] in METHODS and "their lists are ordered by" in caplog.text
    assert alone[model.by["warm"]] == max(alone.values())


def test_too_few_pairs_leave_the_vectors(world):
    graph, features, vectors = world
    few = SplitConfig(validation_collections=0.001, validation_cold_items=0.0)
    split = validation_split(graph, few, 0)
    source = CandidateSource(split.train_graph, features[:, :0], vectors, SamplingConfig(), 1, True)
    model, _ = fit_ranker(source, graph, split, 0)
    assert model.by["cold"] == "vectors"
    ids, _ = Ranker(source, model).top_k(None, 5, np.array([290]))
    scores = vectors @ vectors[290]
    scores[290] = -np.inf
    np.testing.assert_array_equal(ids[0], np.argsort(-scores, kind="stable")[:5])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_lower_popularity_weight_lists_fewer_popular_items(world, fitted, weight):
    graph, (_, model, _, source) = world[0], fitted
    steep = dataclasses.replace(model, popularity_slope=3.0)
    degree, rows = graph.degree()[:300], np.arange(0, 270, 9)
    usual = Ranker(source, steep).top_k(None, 10, rows)[0]
    lower = Ranker(source, steep, popularity_weight=weight).top_k(None, 10, rows)[0]
    assert degree[lower].mean() < degree[usual].mean()


def test_several_weights_at_once_are_what_each_gives_alone(world, fitted):
    rng, (_, model, _, source) = np.random.default_rng(3), fitted
    pairs = np.array([(q, t) for q, t in rng.integers(0, 300, (600, 2)) if q != t], np.int32)
    queries, weights = np.arange(0, 300, 11), (0.0, 0.5, 1.0)
    for by in ({"warm": "ranker", "cold": "ranker"}, {"warm": "vectors", "cold": "content"}):
        steep = dataclasses.replace(model, popularity_slope=3.0, by=by)
        found = Ranker(source, steep).at_weights(pairs, queries, 10, weights)
        for weight, (ranks, ids) in zip(weights, found):
            alone = Ranker(source, steep, popularity_weight=weight)
            np.testing.assert_array_equal(ids, alone.top_k(None, 10, queries)[0])
            listed = alone.top_k(None, 60, pairs[:, 0])[0] == pairs[:, 1:]
            shown, place = listed.any(axis=1), 1 + np.argmax(listed, axis=1)
            # Ties share a rank.
            assert shown.sum() > 20 and (ranks == place)[shown].mean() > 0.95
            assert (ranks[~shown] > 58).all()
        assert (found[0][0] != found[2][0]).any()


def test_a_list_that_all_share_is_named_for_the_ranker_too(tmp_path, world, fitted, caplog):
    graph, features, vectors = world
    weights = np.zeros(len(FEATURES))
    weights[FEATURES.index("popularity")] = 50.0
    one = CalibratedModel(weights, 0.0)
    models = {kind: {"warm": one, "cold": one} for kind in ("warm", "cold")}
    model = dataclasses.replace(fitted[1], models=models)
    popular = vectors.copy()
    popular[7, -1] = 9.0
    source = CandidateSource(graph, features, popular, SamplingConfig(), 1, True)
    prepared = make_prepared(graph, features, np.array([(1, 2), (5, 9)], np.int32))
    config = make_config(tmp_path, bootstrap=0, baselines="none")
    with caplog.at_level("WARNING"):
        evaluate(config, prepared, vectors, has_popularity=True, ranker=Ranker(source, model))
    assert "stands in 100% of the ranker's lists of 10" in caplog.text


# Files and flags.


def exported(tmp_path, world, **search):
    graph, features, vectors = world
    prepared = make_prepared(graph, features)
    config = dataclasses.replace(make_config(tmp_path), search=SearchConfig(**search))
    (tmp_path / writer.FOLDER).mkdir(exist_ok=True)
    manifest = tmp_path / writer.FOLDER / writer.MANIFEST
    manifest.write_text(json.dumps({"files": {"part": "1"}}))
    return config, prepared, vectors


def test_the_saved_ranker_orders_like_the_fitted_one(tmp_path, world, fitted):
    _, model, report, source = fitted
    config, prepared, vectors = exported(tmp_path, world)
    assert open_ranker(config, prepared, vectors, True, 1) is None
    write_ranker(config, model, report)
    opened = open_ranker(config, prepared, vectors, True, 1)
    rows = np.arange(50)
    config, *_ = exported(tmp_path, world)
    expected = Ranker(source, model).top_k(None, 10, rows)
    sampling = dataclasses.replace(config, sampling=SamplingConfig())
    opened = open_ranker(sampling, prepared, vectors, True, 1)
    np.testing.assert_array_equal(opened.top_k(None, 10, rows)[0], expected[0])
    assert opened.by == "ranker" and len(opened.prices) == 6
    # A price lists more new items; vectors, rules and indexes are asked for.
    dear, *_ = exported(tmp_path, world, new_item_price=0.9)
    assert open_ranker(dear, prepared, vectors, True, 1).model.levels["warm"] > model.levels["warm"]
    plain, *_ = exported(tmp_path, world, related_by="vectors")
    assert open_ranker(plain, prepared, vectors, True, 1) is None
    indexed, *_ = exported(tmp_path, world, search="hnsw16:32")
    assert open_ranker(indexed, prepared, vectors, True, 1) is None
    asked, *_ = exported(tmp_path, world, related_by="ranker", search="hnsw16:32")
    with pytest.raises(UserError, match="does not go with --search=hnsw16:32"):
        open_ranker(asked, prepared, vectors, True, 1)


def test_a_ranker_of_other_embeddings_is_refused_or_named(tmp_path, world, fitted, caplog):
    config, prepared, vectors = exported(tmp_path, world)
    asked, *_ = exported(tmp_path, world, related_by="ranker")
    with pytest.raises(UserError, match=r"holds no ranker\.json; run --mode=rank first"):
        open_ranker(asked, prepared, vectors, True, 1)
    write_ranker(config, *fitted[1:3])
    manifest = tmp_path / writer.FOLDER / writer.MANIFEST
    manifest.write_text(json.dumps({"files": {"part": "2"}}))
    with pytest.raises(UserError, match="fitted for other embeddings"):
        open_ranker(asked, prepared, vectors, True, 1)
    with caplog.at_level("WARNING"):
        assert open_ranker(config, prepared, vectors, True, 1) is None
    assert "fitted for other embeddings" in caplog.text
    manifest.write_text(json.dumps({"files": {"part": "1"}}))
    path = tmp_path / RANKER_FILE
    path.write_text(path.read_text().replace("similarity", "similarly"))
    with pytest.raises(UserError, match=RANKER_FILE):
        open_ranker(asked, prepared, vectors, True, 1)


def test_the_evaluation_scores_the_ranker_beside_the_vectors(tmp_path, world, fitted):
    graph, features, vectors = world
    rng = np.random.default_rng(1)
    pairs = np.array([(q, t) for q, t in rng.integers(0, 300, (200, 2)) if q != t], np.int32)
    pairs = np.unique(pairs, axis=0)
    ranker = Ranker(fitted[3], fitted[1], prices=levels.price_table(fitted[2]["measured"]["warm"]))
    prepared = make_prepared(graph, features, pairs)
    config = make_config(tmp_path, bootstrap=20, baselines="content")
    result = evaluate(config, prepared, vectors, has_popularity=True, ranker=ranker)
    assert list(result["methods"]) == ["pinsage", "content", "ranker"]
    found = result["methods"]["ranker"]
    expected = float(np.mean(ranker.ranks(pairs) <= 10))
    assert found["overall"]["all"]["metrics"]["hit@10"]["value"] == pytest.approx(expected)
    assert found["lists"]["coverage"] > 0.5 and found["settings"] == {"related_by": "ranker"}
    weights = {entry["weight"]: entry for entry in result["ranker_popularity_weights"]}
    assert tuple(weights) == POPULARITY_WEIGHTS and weights[1.0]["lists"] == found["lists"]
    assert weights[1.0]["hit@10"]["all"] == pytest.approx(expected)
    assert [entry["price"] for entry in result["new_item_prices"]] == [None, *levels.PRICES]


def test_embeddings_below_their_content_are_named(tmp_path, world, caplog):
    graph, features, _ = world
    same = features / np.linalg.norm(features, axis=1, keepdims=True)
    topic = np.argmax(features, axis=1)
    pairs = np.array([(q, t) for q in range(0, 300, 5) for t in range(0, 300, 7)], np.int32)
    pairs = pairs[(topic[pairs[:, 0]] == topic[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1])]
    prepared = make_prepared(graph, features, pairs)
    config = make_config(tmp_path, bootstrap=100, baselines="content")
    noise = np.random.default_rng(2).normal(size=same.shape).astype(np.float32)
    for vectors, named in ((same, False), (noise, True)):
        caplog.clear()
        with caplog.at_level("WARNING"):
            evaluate(config, prepared, vectors)
        assert ("below what they are made from: content for warm pairs" in caplog.text) == named


def test_a_model_of_other_features_is_refused(fitted):
    saved = fitted[1].as_json()
    assert RankerModel.from_json(saved).as_json() == saved
    with pytest.raises(ValueError, match="features are others"):
        RankerModel.from_json({**saved, "features": ["x"]})
