"""Weights of edges by kind and age, and kinds of edges, against plain loops and probabilities."""

import collections
import csv
import datetime

import numpy as np
import pytest
from scipy import stats

from pinsage_jax.catalog.changes import read_changes
from pinsage_jax.catalog.prepare import prepare
from pinsage_jax.config.data import DataConfig, PruneConfig
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.graph.edge_weights import kinds_between
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts

UNLIKELY = 1e-4
KINDS = {"bought": 1.0, "viewed": 0.25, "saved": 3.0}
HEADER = ["collection_id", "item_id", "w", "kind", "day"]


def write(path, rows, header=HEADER):
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return str(path)


def config_of(folder, prune=None, **data):
    return Config(
        "prepare", str(folder / "work"), 0, 1, data=DataConfig(**data), prune=prune or PruneConfig()
    )


def random_rows(seed, rows=120, items=15, groups=8):
    """Rows with duplicates, some of them of another kind."""
    rng = np.random.default_rng(seed)
    return [
        (f"c{rng.integers(groups):02}", f"i{rng.integers(items):02}", rng.integers(1, 9) / 2,
         str(rng.choice(list(KINDS))), int(rng.integers(0, 40)))
        for _ in range(rows)
    ]  # fmt: skip


def weights_text():
    return ",".join(f"{kind}={weight}" for kind, weight in KINDS.items())


def edges_of(prepared):
    """{(collection, item): (weight, kinds)} by two loops."""
    graph, found = prepared.graph, {}
    masks, names = prepared.edge_kinds or (None, [])
    for item in range(graph.num_items):
        for place in range(graph.indptr[item], graph.indptr[item + 1]):
            collection = graph.indices[place] - graph.num_items
            key = (prepared.collection_ids.ids[collection].as_py(),
                   prepared.item_ids.ids[item].as_py())  # fmt: skip
            weight = 1.0 if graph.weights is None else float(graph.weights[place])
            kinds = {name for bit, name in enumerate(names) if masks[place] >> bit & 1}
            found[key] = weight, kinds
    return found


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("by", ["kind", "age", "kind and age", "kind, age and weight"])
def test_weights_and_kinds_follow_the_definition(tmp_path, by, pruned):
    rows = random_rows(3)
    data = {"edges": write(tmp_path / "e.csv", rows), "kind_column": "kind"}
    if "kind" in by:
        data["kind_weights"] = weights_text()
    if "age" in by:
        data |= {"time_column": "day", "half_life": 7.0}
    if "weight" in by:
        data["weight_column"] = "w"
    prune = PruneConfig(prune_collection_items=9) if pruned else None
    found = edges_of(prepare(config_of(tmp_path, prune, **data)))
    newest = max(row[4] for row in rows)
    wanted = collections.defaultdict(lambda: [0.0, set()])
    for group, item, weight, kind, day in rows:
        product = weight if "weight" in by else 1.0
        product *= KINDS[kind] if "kind" in by else 1.0
        product *= 0.5 ** ((newest - day) / 7) if "age" in by else 1.0
        wanted[group, item][0] += product
        wanted[group, item][1].add(kind)
    if pruned:
        sizes = collections.Counter(group for group, _ in wanted)
        assert max(sizes.values()) > 9
        wanted = {key: value for key, value in wanted.items() if sizes[key[0]] <= 9}
    assert found.keys() == wanted.keys()
    for key, (weight, kinds) in found.items():
        assert weight == pytest.approx(wanted[key][0], rel=1e-6) and kinds == wanted[key][1]


def test_days_of_dates_are_days(tmp_path):
    day = datetime.date(2024, 3, 1)
    rows = [("c", f"i{age}", 1, "a", day - datetime.timedelta(age)) for age in (0, 10, 20, 10**4)]
    data = {"edges": write(tmp_path / "e.csv", rows), "time_column": "day", "half_life": 10.0}
    found = edges_of(prepare(config_of(tmp_path, **data)))
    weights = [found["c", f"i{age}"][0] for age in (0, 10, 20, 10**4)]
    # However old, an edge keeps a millionth.
    np.testing.assert_allclose(weights, [1, 0.5, 0.25, 1e-6], rtol=1e-6)


def test_kinds_alone_change_no_weight(tmp_path):
    rows = random_rows(5)
    edges = write(tmp_path / "e.csv", rows)
    folders = [tmp_path / name for name in ("plain", "kinds")]
    plain = prepare(config_of(folders[0], edges=edges))
    kinds = prepare(config_of(folders[1], edges=edges, kind_column="kind"))
    assert kinds.graph.weights is None and kinds.graph.digest() == plain.graph.digest()
    assert plain.edge_kinds is None and kinds.edge_kinds[1] == sorted(KINDS)


def exact_step(edges, query):
    """{(item, kind): probability} of one step by nested loops; an edge's kinds share it."""
    of_item = {key: value for key, value in edges.items() if key[1] == query}
    total = sum(weight for weight, _ in of_item.values())
    found = collections.Counter()
    for (group, _), (weight, kinds) in of_item.items():
        members = {key[1]: value[0] for key, value in edges.items() if key[0] == group}
        for item, back in members.items():
            chance = weight / total * back / sum(members.values())
            found.update(dict.fromkeys(((item, kind) for kind in kinds), chance / len(kinds)))
    return found


@pytest.fixture(scope="module")
def weighed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighed")
    edges = write(folder / "e.csv", random_rows(7))
    return prepare(config_of(
        folder, edges=edges, kind_column="kind", kind_weights=weights_text(), time_column="day",
        half_life=5.0,
    ))  # fmt: skip


def test_a_step_of_a_walk_has_the_exact_probabilities(weighed):
    names = weighed.item_ids.ids.to_pylist()
    edges, walks = edges_of(weighed), 60_000
    sampling = SamplingConfig(num_neighbors=15, num_walks=walks, walk_length=1)
    for query in (0, 4):
        exact = collections.Counter()
        for (item, _), chance in exact_step(edges, names[query]).items():
            exact[item] += chance
        found = visit_counts(WalkTables(weighed.graph), np.array([query], np.int32), sampling,
                             seed=1, threads=1)  # fmt: skip
        counts = {
            names[i]: n for i, n in zip(found.ids[0].tolist(), found.counts[0].tolist()) if i >= 0
        }
        # A visit of the start does not count.
        counts[names[query]] = walks - sum(counts.values())
        assert set(counts) <= set(exact)
        wanted = np.array([walks * chance for chance in exact.values()])
        observed = np.array([counts.get(item, 0) for item in exact], np.float64)
        # Rare outcomes count as one with the most frequent.
        rare = wanted < 5
        most = wanted.argmax()
        for values in (observed, wanted):
            values[most] += values[rare].sum()
        assert (~rare).sum() > 5
        observed, wanted = observed[~rare], wanted[~rare]
        assert stats.chisquare(observed, wanted).pvalue > UNLIKELY


def test_kinds_of_a_step_have_the_exact_probabilities(weighed):
    masks, kinds = weighed.edge_kinds
    names, edges = weighed.item_ids.ids.to_pylist(), edges_of(weighed)
    everyone = np.arange(len(names))
    for query in (0, 4, 9):
        found = kinds_between(weighed.graph, masks, query, everyone)
        exact = exact_step(edges, names[query])
        wanted = [[exact[item, kind] for kind in kinds] for item in names]
        np.testing.assert_allclose(found[:, : len(kinds)], wanted, atol=1e-7)
        assert found.sum() == pytest.approx(1) and not found[:, len(kinds) :].any()


def test_changed_edges_weigh_as_if_they_had_been_there(weighed, tmp_path):
    rows = random_rows(7)
    newest = max(row[4] for row in rows)
    given = {}
    for row in rows:
        given.setdefault(row[:2], []).append(row)
    again = next(value for value in given.values() if len(value) > 1)
    later = ("c00", "new", 1, "saved", newest + 5)
    changes = read_changes(
        weighed,
        FeatureTransform.load(weighed.folder / "features"),
        DataConfig(kind_column="kind", kind_weights=weights_text(), time_column="day", half_life=5),
        UpdateConfig(
            changed_edges=write(tmp_path / "changed.csv", [*again, later]),
            changed_items=write(tmp_path / "items.csv", [("new",)], ["item_id"]),
        ),
    )
    # The same rows again change nothing, and an edge of the future weighs more than the newest.
    assert changes.report["edges_reweighted"] == 0 and changes.report["edges_added"] == 1
    np.testing.assert_allclose(changes.weights, [2 * KINDS["saved"]], rtol=1e-6)


@pytest.mark.parametrize(
    "data, said",
    [
        ({"kind_weights": "bought=1"}, "needs --kind_column"),
        ({"half_life": 3.0}, "needs --time_column"),
        ({"kind_column": "kind", "kind_weights": "bought"}, "must be KIND=WEIGHT"),
        ({"kind_column": "kind", "kind_weights": "bought=0"}, "must be KIND=WEIGHT"),
        ({"kind_column": "kind", "kind_weights": "bought=1,bought=2"}, "each kind once"),
        ({"kind_column": "kind", "kind_weights": "sold=1"}, "sold, which no edge has"),
        ({"kind_column": "sort"}, "has no column 'sort'"),
        ({"kind_column": "none"}, "every edge needs a kind"),
        ({"kind_column": "many"}, "more than 16 kinds"),
    ],
)
def test_mistakes_give_one_sentence(tmp_path, data, said):
    rows = [(f"c{n % 3}", f"i{n}", 1, "bought", n, "", f"k{n}") for n in range(20)]
    edges = write(tmp_path / "e.csv", rows, [*HEADER, "none", "many"])
    with pytest.raises(UserError, match=said) as caught:
        config = config_of(tmp_path, edges=edges, **data)
        config.validate()
        prepare(config)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
