"""Recommendations against slow references and against cases computed by hand."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.catalog.prepare import prepare
from pinsage_jax.config.data import DataConfig, SplitConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.search import RecommendConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph import csr
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import validation_split
from pinsage_jax.recommend import choice as recommend_choice
from pinsage_jax.recommend import graph_scores as gs
from pinsage_jax.recommend import metrics, multi_interest, walks
from pinsage_jax.recommend import scores as rs
from pinsage_jax.recommend.choice import Choice, Validation, choose, validation_users
from pinsage_jax.recommend.recommend import recommend
from pinsage_jax.recommend.recommender import Recommender
from pinsage_jax.sampling.neighborhoods import visit_scores

ITEMS, USERS = 50, 30


def random_graph(seed=0):
    """Item 0 is isolated, item 1 is in all histories; user 0 has none, user 1 all but five."""
    rng = np.random.default_rng(seed)
    edges = {(1, user) for user in range(2, USERS)} | {(item, 1) for item in range(1, ITEMS - 5)}
    edges |= {(int(rng.integers(2, ITEMS)), int(rng.integers(2, USERS))) for _ in range(150)}
    pairs = np.array(sorted(edges), np.int32)
    return Graph.from_edges(pairs[:, 0], pairs[:, 1], ITEMS, USERS)


def random_vectors(seed=0, items=ITEMS, width=6):
    rows = np.random.default_rng(seed).normal(size=(items, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow_best(score, history, k, seen):
    """The k best of one user by sorting all items: highest score first, then lowest id."""
    order = sorted(
        (item for item in range(len(score)) if item not in seen), key=lambda i: (-score[i], i)
    )
    return order[:k]


def slow_scores(vectors, history, by, value, degree, popularity, rarity):
    vectors = vectors.astype(np.float64)
    total = np.zeros(len(vectors))
    for held in history:
        similar = vectors @ vectors[held]
        sharp = np.maximum(similar, 0) ** value if by == "power" else np.exp(similar / value)
        total += sharp * (1.0 + degree[held]) ** -rarity
    return total * (1.0 + degree) ** popularity


SCORERS = ["mean", "popularity", "item_knn", "power:1", "power:3", "power:2.5", "attention:0.3"]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", SCORERS)
def test_best_items_are_those_of_sorting(name, small, monkeypatch):
    graph, vectors = random_graph(), random_vectors()
    histories, degree = rs.histories_of(graph), graph.degree()[:ITEMS]
    kind, _, value = name.partition(":")
    if value:
        scorer = rs.Sharpened(vectors, degree, rs.Shape(kind, float(value)), 0.3, 0.5, 2)
    elif name == "mean":
        scorer = rs.Mean(vectors)
    else:
        scorer = gs.Popularity(graph) if name == "popularity" else gs.HistoryKnn(graph)
    if small:
        # Many tiles, among them users with more items than a tile should hold.
        monkeypatch.setattr(rs, "_MAX_ROWS", 9)
        monkeypatch.setattr(type(scorer), "max_users", 4)
    ids, scores = rs.best_items(
        scorer, histories, ITEMS, 8, scan=rs.Scan(3 if small else 1, 7 if small else 512)
    )
    incidence = np.zeros((ITEMS, USERS))
    for user in range(USERS):
        history = histories.of(user)
        assert set(history) == set(graph.neighbors(ITEMS + user))
        incidence[history, user] = 1
    size = np.linalg.norm(incidence, axis=1)
    unit = incidence / np.where(size > 0, size, 1)[:, None]
    for user in range(USERS):
        history = histories.of(user)
        if value:
            score = slow_scores(vectors, history, kind, float(value), degree, 0.3, 0.5)
        elif name == "mean":
            score = vectors @ vectors[history].mean(axis=0) if len(history) else np.zeros(ITEMS)
        else:
            score = degree if name == "popularity" else (unit @ unit[history].T).sum(axis=1)
        expected = slow_best(np.round(score, 6), history, 8, set(history))
        padded = expected + [-1] * (8 - len(expected))
        if name == "attention:0.3":
            # Exponentials are scaled by a constant that changes no order.
            assert ids[user].tolist() == padded
        else:
            kept = ids[user] >= 0
            assert (ids[user] >= 0).tolist() == [item >= 0 for item in padded]
            np.testing.assert_allclose(scores[user][kept], score[expected], atol=2e-6, rtol=2e-5)
            assert set(ids[user][kept]).isdisjoint(history)
            if name == "popularity" or len(history) == 0:
                assert ids[user].tolist() == padded
    assert (ids[1] >= 0).sum() == 6


@pytest.mark.parametrize("small", [False, True])
def test_walks_from_a_history_add_up_with_the_multi_hit_boost(small, monkeypatch):
    graph = random_graph()
    histories = rs.histories_of(graph)
    sampling = SamplingConfig(num_walks=40, walk_length=3)
    if small:
        monkeypatch.setattr(walks, "_ITEM_BLOCK", 3)
        monkeypatch.setattr(walks.HistoryWalk, "max_users", 4)
    scorer = walks.HistoryWalk(graph, sampling, seed=5, threads=1)
    ids, scores = rs.best_items(
        scorer, histories, ITEMS, 8, scan=rs.Scan(columns=7 if small else 512)
    )
    visits = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        found, counts = visit_scores(graph, np.array([item], np.int32), sampling, 5, 40)
        for other, count in zip(found[0], counts[0]):
            if other >= 0:
                visits[item, other] = count
    boosted = 0
    for user in range(USERS):
        history = histories.of(user)
        score = np.sqrt(visits[history]).sum(axis=0)
        expected = slow_best(np.round(score, 5), history, 8, set(history))
        kept = ids[user] >= 0
        np.testing.assert_allclose(scores[user][kept], score[expected], rtol=2e-5, atol=2e-6)
        plain = slow_best(visits[history].sum(axis=0), history, 8, set(history))
        boosted += plain != expected
    # The boost is what makes the order: plain sums of visits give another.
    assert boosted > 0


def test_variants_are_the_same_scores_one_by_one():
    graph, vectors = random_graph(), random_vectors()
    histories, degree = rs.histories_of(graph), graph.degree()[:ITEMS]
    shape = rs.Shape("power", 2.0)
    exponents = (0.0, 0.25, 1.0)
    scorer = rs.Sharpened(vectors, degree, shape, exponents, 0.0, 1)
    ids, scores = rs.best_of_variants(scorer, histories, ITEMS, 5, 3, scan=rs.Scan(columns=20))
    for place, exponent in enumerate(exponents):
        alone = rs.Sharpened(vectors, degree, shape, exponent, 0.0, 1)
        found = rs.best_items(alone, histories, ITEMS, 5, scan=rs.Scan(columns=20))
        np.testing.assert_array_equal(ids[place], found[0])
        np.testing.assert_array_equal(scores[place], found[1])
    assert (ids[0] != ids[2]).any()


def test_histories_carry_the_times_of_their_edges():
    rng = np.random.default_rng(1)
    items, users = rng.integers(0, 20, 60, dtype=np.int32), rng.integers(0, 9, 60, dtype=np.int32)
    times = rng.integers(0, 1000, 60)
    graph, edge_times = csr.build(items, users, 20, 9, times=times)
    histories = rs.histories_of(graph, edge_times)
    earliest = {}
    for item, user, time in zip(items, users, times):
        earliest[user, item] = min(time, earliest.get((user, item), 10**9))
    picked = histories.select(np.array([4, 0, 4]))
    for found, order in ((histories, range(9)), (picked, [4, 0, 4])):
        for place, user in enumerate(order):
            span = slice(found.indptr[place], found.indptr[place + 1])
            assert found.times[span].tolist() == [earliest[user, i] for i in found.of(place)]
    assert len(earliest) == len(histories.items)


def slow_ward(points, limit):
    """Merges the two closest clusters by Ward's distance until none is within the limit."""
    clusters = [[place] for place in range(len(points))]

    def distance(one, other):
        apart = points[one].mean(axis=0) - points[other].mean(axis=0)
        a, b = len(one), len(other)
        return np.sqrt(2.0 * a * b / (a + b)) * np.linalg.norm(apart)

    while len(clusters) > 1:
        pairs = list(itertools.combinations(range(len(clusters)), 2))
        first, second = min(pairs, key=lambda p: distance(clusters[p[0]], clusters[p[1]]))
        if distance(clusters[first], clusters[second]) > limit:
            break
        clusters[first] = clusters[first] + clusters.pop(second)
    return clusters


@pytest.mark.parametrize("count", [1, 2, 15])
@pytest.mark.parametrize("ward", [0.0, 0.9, 1.5, 100.0])
def test_interests_are_wards_clusters(count, ward):
    points = random_vectors(seed=count, items=count)
    weights = np.random.default_rng(2).random(count) + 0.1
    expected = []
    for cluster in slow_ward(points.astype(np.float64), ward):
        spread = [sum(np.sum((points[m] - points[o]) ** 2) for o in cluster) for m in cluster]
        expected.append((weights[cluster].sum() / weights.sum(), cluster, spread))
    expected.sort(key=lambda one: -one[0])
    found = multi_interest.interests_of(points, 3, ward, weights)
    assert len(found.medoids) == min(3, len(expected))
    for medoid, importance, (share, cluster, spread) in zip(
        found.medoids, found.importance, expected
    ):
        assert importance == pytest.approx(share)
        assert spread[cluster.index(medoid)] == pytest.approx(min(spread), abs=1e-6)


def test_long_histories_keep_the_items_of_largest_weight(monkeypatch):
    monkeypatch.setattr(multi_interest, "_MAX_CLUSTERED_ITEMS", 4)
    points = np.eye(8, dtype=np.float32)
    weights = np.array([1.0, 5, 1, 6, 7, 1, 1, 2])
    found = multi_interest.interests_of(points, 10, 0.1, weights)
    assert found.medoids.tolist() == [4, 3, 1, 7]
    np.testing.assert_allclose(found.importance, np.array([7, 6, 5, 2]) / 20)


def test_weights_halve_with_each_half_life():
    weights = multi_interest.decayed_weights(np.array([10, 0, 5]), 5.0)
    np.testing.assert_allclose(weights, [1.0, 0.25, 0.5])
    assert multi_interest.decayed_weights(np.array([1, 2]), 0.0) is None


def test_ranks_are_shared_by_importance():
    ids = np.array([[1, 2, 3, 4, 5, 6], [2, 7, 1, -1, -1, -1]], np.int32)
    scores = -np.arange(12, dtype=np.float32).reshape(2, 6)
    # Quotients .72 and .28: 1 | .24 and .28: 2 | .24 and .093: the next unused of the first,
    # 3 | .144: 4 | .103: 5 | .08 and .093: 7.
    found, values = multi_interest.blend(np.array([0.72, 0.28]), ids, scores, 6)
    assert found.tolist() == [1, 2, 3, 4, 5, 7]
    assert values.tolist() == [0, -6, -2, -3, -4, -7]
    # The second has only used candidates left: the first contributes the rest, then none.
    found, values = multi_interest.blend(np.array([0.1, 0.9]), ids[:, :3], scores[:, :3], 6)
    assert found.tolist() == [2, 7, 1, 3, -1, -1] and np.isneginf(values[4:]).all()


def lightgcn_metrics(ids, test_items):
    """Recall and NDCG as LightGCN's own code has them, for one user."""
    hit = np.array([item in test_items for item in ids], float)
    gains = 1.0 / np.log2(np.arange(2, 22))
    ideal = np.zeros(20)
    ideal[: min(20, len(test_items))] = 1
    return hit.sum() / len(test_items), (hit * gains).sum() / (ideal * gains).sum()


def test_metrics_are_the_published_ones():
    rng = np.random.default_rng(3)
    ids, sets = [], []
    for size in (1, 2, 19, 20, 21, 40, 3):
        ids.append(rng.choice(100, 20, replace=False))
        sets.append(np.sort(rng.choice(100, size, replace=False)))
    indptr = np.concatenate([[0], np.cumsum([len(s) for s in sets])])
    targets = rs.Histories(indptr, np.concatenate(sets).astype(np.int32))
    found = metrics.per_user(np.array(ids, np.int32), targets, np.diff(indptr))
    expected = [lightgcn_metrics(row, set(items)) for row, items in zip(ids, sets)]
    np.testing.assert_allclose(found, expected)
    # Two test items, found in places 1 and 3; a third is in no catalog.
    targets = rs.Histories(np.array([0, 2]), np.array([4, 9], np.int32))
    ids = np.full((1, 25), -1, np.int32)
    ids[0, :3] = 9, 7, 4
    found = metrics.per_user(ids, targets, np.array([3]))
    best = 1 + 1 / np.log2(3) + 0.5
    np.testing.assert_allclose(found, [[2 / 3, 1.5 / best]])
    none = rs.Histories(np.array([0, 0]), np.empty(0, np.int32))
    assert metrics.per_user(ids, none, np.array([1])).tolist() == [[0, 0]]


def planted(tmp_path, edges, **data):
    """A prepared workdir over (user, item[, time]) edges, with titles."""
    names = ("collection_id", "item_id", "at")
    table = dict(zip(names, map(list, zip(*edges))))
    pq.write_table(pa.table(table), tmp_path / "edges.parquet")
    items = sorted({edge[1] for edge in edges} | {"lonely"})
    titles = [f"Title of {item}" for item in items]
    pq.write_table(pa.table({"item_id": items, "title": titles}), tmp_path / "items.parquet")
    given = DataConfig(data_dir=str(tmp_path), edges="edges.parquet", items="items.parquet", **data)
    config = Config(mode="prepare", workdir=str(tmp_path / "run"), seed=0, threads=1, data=given)
    return config, prepare(config)


# Two tastes: a* and b* items.  Ann holds two of a, Bob one of b and one of a.
EDGES = [
    ("ann", "a1"), ("ann", "a2"), ("bob", "b1"), ("bob", "a1"),
    ("eve", "a3"), ("eve", "a4"), ("eve", "b2"), ("max", "a3"),
]  # fmt: skip
# Angles: a items around 0, b items around 90 degrees; the lonely item opposite.
ANGLES = {"a1": 0, "a2": 10, "a3": 4, "a4": -30, "b1": 90, "b2": 80, "lonely": 200}


def angle_vectors(prepared):
    angles = np.radians([ANGLES[name] for name in prepared.item_ids.ids.to_pylist()])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def run(config, prepared, validation=None, query="", k=None, **settings):
    evaluate = replace(config.evaluate, query=query, k=k)
    config = replace(config, recommend=RecommendConfig(**settings), evaluate=evaluate)
    config.validate()
    vectors = angle_vectors(prepared)
    return recommend(config, prepared, vectors, 1, lambda: validation)


def test_the_planted_table_is_shown(tmp_path, capsys):
    config, prepared = planted(tmp_path, EDGES)
    run(config, prepared, query="ann, bob", k=2, recommend_by="mean")
    blocks = capsys.readouterr().out.strip().split("\n\n")
    # Ann's mean points to 5 degrees: a3 is 1 away, a4 is 35.
    assert [line.split() for line in blocks[0].splitlines()] == [
        ["for", "ann"],
        ["item_id", "score", "title"],
        ["a3", f"{np.cos(np.radians(5)) * np.cos(np.radians(1)):.4g}", "Title", "of", "a3"],
        ["a4", f"{np.cos(np.radians(5)) * np.cos(np.radians(35)):.4g}", "Title", "of", "a4"],
    ]
    # Bob's points between his tastes, to 45 degrees: b2 is 35 away, a2 is too.
    assert "for  bob" in blocks[1] and "b2" in blocks[1] and "a2" in blocks[1]
    assert not (tmp_path / "run" / "recommendations.parquet").exists()
    with pytest.raises(UserError, match="there is no collection anne; did you mean ann"):
        run(config, prepared, query="anne", recommend_by="mean")


def test_interests_serve_both_tastes(tmp_path):
    config, prepared = planted(tmp_path, EDGES)
    run(config, prepared, recommend_by="interests", k=3)
    rows = pq.read_table(tmp_path / "run" / "recommendations.parquet").to_pylist()
    found = {}
    for row in rows:
        found.setdefault(row["collection_id"], []).append(row["item_id"])
        assert row["rank"] == len(found[row["collection_id"]])
    # One taste each: a1 (nearest a3) and b1 (nearest b2) have equal importance; the
    # earlier item, a1, goes first, and again after each has had one.
    assert found["bob"] == ["a3", "b2", "a2"]
    assert found["ann"][0] == "a3" and "a1" not in found["ann"]
    assert list(found) == ["ann", "bob", "eve", "max"]
    # Of seven items max holds one.
    assert len(found["max"]) == 3


def test_recency_decides_between_interests(tmp_path):
    days = [0, 0, 0, 40, 0, 0, 0, 0]
    edges = [(*edge, day) for edge, day in zip(EDGES, days)]
    config, prepared = planted(tmp_path, edges, time_column="at")
    settings = {"recommend_by": "interests", "k": 1}
    path = tmp_path / "run" / "recommendations.parquet"

    def first_of_bob(half_life):
        run(config, prepared, recommend_half_life=half_life, **settings)
        rows = pq.read_table(path).to_pylist()
        return next(row["item_id"] for row in rows if row["collection_id"] == "bob")

    assert first_of_bob(10.0) == "a3"
    edges = [(*edge, 40 - day) for edge, day in zip(EDGES, days)]
    config, prepared = planted(tmp_path, edges, time_column="at")
    assert first_of_bob(10.0) == "b2"
    config, prepared = planted(tmp_path, EDGES)
    with pytest.raises(UserError, match="recommend_half_life needs times"):
        first_of_bob(10.0)


def write_tests(tmp_path, edges):
    columns = dict(zip(("collection_id", "item_id"), map(list, zip(*edges))))
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")


def test_test_edges_are_scored_as_computed_by_hand(tmp_path, capsys):
    config, prepared = planted(tmp_path, EDGES)
    # Max holds a3 (4 degrees): a1 (4 away), a2 (6), a4 (34), b2, b1, lonely.  Only six
    # can be ranked, so recall is 1 unless the item is in no catalog.
    write_tests(
        tmp_path,
        [
            ("max", "a2"),
            ("max", "a4"),
            ("max", "nowhere"),
            ("ann", "b1"),
            ("stranger", "a1"),
            ("ann", "b1"),
        ],
    )
    report = run(config, prepared, recommend_by="mean", test_edges="test.parquet")
    assert report["test"] == {
        "file": str(tmp_path / "test.parquet"), "test_edges": 4, "users": 2,
        "skipped_users": 1, "test_edges_of_unknown_items": 1,
    }  # fmt: skip
    log = np.log2
    # Ann's order: a3, a4, b2 (75 away), b1, lonely.
    ann, most = 1 / log(5), 1 + 1 / log(3) + 1 / 2
    best = (1 / log(3) + 1 / 2) / most
    scores = report["methods"]["pinsage, mean"]
    assert scores["recall@20"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["ndcg@20"] == pytest.approx((ann + best) / 2)
    low, high = scores["ndcg@20_interval"]
    assert low < scores["ndcg@20"] < high
    # Degrees: a1 2, a3 2, a2 1, a4 1, b1 1, b2 1, lonely 0.  Popularity for ann: a3, a4,
    # b1; for max: a1, a2, a4.
    scores = report["methods"]["popularity"]
    assert scores["ndcg@20"] == pytest.approx((1 / 2 + best) / 2)
    assert set(report["methods"]) == {
        "pinsage, mean", "pinsage, interests", "popularity", "item_knn", "walk",
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "recommend.json").read_text()) == report
    assert "pinsage, mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (
            [("ann", "a1"), ("ann", "b1")],
            "contains 1 edges that are also training edges.*'ann' with",
        ),
        ([("stranger", "a1")], "none of its collections has a training edge"),
    ],
)
def test_test_edges_that_cannot_be_used_are_refused(tmp_path, edges, message):
    config, prepared = planted(tmp_path, EDGES)
    write_tests(tmp_path, edges)
    with pytest.raises(UserError, match=message):
        run(config, prepared, recommend_by="mean", test_edges="test.parquet")
    with pytest.raises(UserError, match=r"--test_edges=.* does not exist"):
        run(config, prepared, recommend_by="mean", test_edges="missing.parquet")


def test_validation_users_hold_out_items_of_withheld_collections():
    rng = np.random.default_rng(4)
    items, users = rng.integers(0, 80, 900), rng.integers(0, 60, 900)
    graph = Graph.from_edges(items.astype(np.int32), users.astype(np.int32), 80, 60)
    split = validation_split(graph, SplitConfig(0.3, 0.05, 100), 7)
    found = validation_users(graph, split, random_vectors(items=80), 7)
    degree = split.train_graph.degree()[:80]
    np.testing.assert_array_equal(found.degree, degree)
    whole = []
    for user in range(len(found.histories)):
        kept, held_out = set(found.histories.of(user)), set(found.held_out.of(user))
        assert kept and held_out and not kept & held_out
        assert len(held_out) == max(1, round(0.2 * len(kept | held_out)))
        whole.append(sorted(kept | held_out))
    expected = []
    for collection in split.collections:
        members = sorted(i for i in graph.neighbors(80 + collection) if degree[i] > 0)
        if len(members) >= 5:
            expected.append(members)
    assert sorted(whole) == sorted(expected)
    empty = validation_split(graph, SplitConfig(0.0, 0.0, 100), 7)
    assert validation_users(graph, empty, random_vectors(items=80), 7) is None


def sharp_validation():
    """Users with two distant interests, whose held-out items only a sharp similarity finds."""
    rng = np.random.default_rng(5)
    angles = np.sort(rng.random(60)) * np.pi
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    kept, hidden = [], []
    for _ in range(20):
        one, other = rng.integers(0, 12), rng.integers(48, 59)
        kept.append(np.array([one, other], np.int32))
        hidden.append(np.setdiff1d([one + 1, other + 1], kept[-1]).astype(np.int32))
    return Validation(
        vectors,
        np.ones(60, np.int32),
        recommend_choice._concatenate(kept),
        recommend_choice._concatenate(hidden),
    )


def test_the_choice_is_the_best_in_validation(monkeypatch):
    monkeypatch.setattr(recommend_choice, "DEPTH", 5)
    validation = sharp_validation()
    choice, tried = choose(RecommendConfig(), validation, 1)
    assert max(row["ndcg@20"] for row in tried) == next(
        row["ndcg@20"]
        for row in tried
        if all(row[name] == value for name, value in vars(choice).items())
    )
    scores = {(r["by"], r["value"], r["popularity"], r["rarity"]): r["ndcg@20"] for r in tried}
    assert scores["power", 8.0, 0.0, 0.5] > scores["power", 1.0, 0.0, 0.5]
    assert scores["power", 8.0, 0.0, 0.5] > scores["mean", 1.0, 0.25, 0.5]
    # Each row has the metrics of a recommender with that choice.
    for row in (tried[0], tried[-1]):
        kept = Choice(**{name: row[name] for name in vars(choice)})
        recommender = Recommender(RecommendConfig(), kept, validation.vectors, validation.degree, 1)
        ids = recommender.top_k(validation.histories, 5)[0]
        padded = np.pad(ids, ((0, 0), (0, 15)), constant_values=-1)
        values = metrics.per_user(padded, validation.held_out, np.diff(validation.held_out.indptr))
        assert values.mean(axis=0)[1] == pytest.approx(row["ndcg@20"])


def test_the_choice_keeps_settings_that_flags_fix():
    validation = sharp_validation()
    assert choose(RecommendConfig(recommend_by="interests"), None, 1) == (Choice("interests"), [])
    part = RecommendConfig(recommend_by="attention")
    choice, tried = choose(part, validation, 1)
    assert {row["by"] for row in tried} == {"attention"} == {choice.by}
    assert choose(part, None, 1) == (Choice("attention", 0.3, 0.25, 0.5), [])
    power = RecommendConfig(recommend_by="power")
    assert choose(power, None, 1) == (Choice("power", 1.0, 0.25, 0.5), [])


def test_the_choice_is_saved_for_the_same_settings(tmp_path):
    config, prepared = planted(tmp_path, EDGES)
    calls = []

    def validation():
        calls.append(1)
        return None

    for by in ("auto", "auto", "power"):
        settings = RecommendConfig(recommend_by=by)
        recommend(
            replace(config, recommend=settings), prepared, angle_vectors(prepared), 1, validation
        )
    assert len(calls) == 2
