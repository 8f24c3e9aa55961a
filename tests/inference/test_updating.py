"""Recomputing what a change reaches, against whole inference over the changed catalog."""

import csv
import dataclasses
import pathlib

import numpy as np
import pyarrow as pa
import pytest
from embedded_catalog import random_params, settings, vector_text
from small_catalog import make_prepared, random_graph
from small_runs import unit, unit_features
from small_texts import link_vectors, random_texts, text_transform

from pinsage_jax.catalog import prepare
from pinsage_jax.catalog.changes import read_changes, write_changed
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.feature_blocks import DenseBlock
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.current_catalog import CurrentCatalog, fill_tables
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.inference.tables import PersistentTables
from pinsage_jax.inference.updating import Update
from pinsage_jax.sampling.content_links import ContentLinks
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.reach import nodes_to_resample
from pinsage_jax.sampling.store import NeighborhoodSource

ITEMS, COLLECTIONS, WIDTH = 60, 14, 6
COLD_START_BIAS = 0.25

# Of the graph below: what each change is about.
ADDED = [("c-2", "item-7"), ("c-new", "item-7"), ("c-new", "item-55"), ("c-2", "item-57")]
NEW = {"fresh-0": 3, "fresh-1": 4}


def table(path, header, rows):
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return str(path)


class ChangingCatalog:
    """A catalog in files, and a change of it."""

    def __init__(
        self, root, rng, *, width=WIDTH, weighted=False, dtype=np.float32, graph=None, texts=None
    ):
        self.root, self.width, self.weighted, self.texts = root, width, weighted, texts
        self.graph = graph or random_graph(rng, ITEMS, COLLECTIONS, 150, 8, weighted)
        features = unit_features(self.graph.num_items, width) if width else None
        prepared = make_prepared(self.graph, None if features is None else features.astype(dtype))
        manifest = {
            **prepared.manifest, "format": prepare.FORMAT, "fingerprint": "base",
            "has_titles": False, "has_train_pairs": False, "counts": {"eval_pairs": 0},
        }  # fmt: skip
        self.before = dataclasses.replace(prepared, manifest=manifest)
        transform = texts or FeatureTransform([DenseBlock("look", width)] if width else [])
        if texts:
            rows = pa.record_batch({"look": random_texts(ITEMS)})
            self.before = dataclasses.replace(
                self.before, features=texts.transform(rows), words=texts.words(rows)
            )
        self.source = root / "prepared"
        (self.source / "features").mkdir(parents=True)
        transform.save(self.source / "features")
        files.write_array(self.source / "eval_pairs.npy", prepared.eval_pairs)
        files.write_json(self.source / "eval_kinds.json", [])

    def change(self, added=(), removed=(), items=None, step="step"):
        """(changes, the prepared catalog with them)."""
        folder = self.root / step
        folder.mkdir()
        extra = ["w"] if self.weighted else []
        named = {}
        if added:
            rows = [(*edge, 2.5)[: 2 + len(extra)] for edge in added]
            named["changed_edges"] = table(
                folder / "a.csv", ["collection_id", "item_id", *extra], rows
            )
        if removed:
            named["removed_edges"] = table(folder / "r.csv", ["collection_id", "item_id"], removed)
        if items:
            looks = unit_features(40, self.width, seed=9) if self.width else np.empty((40, 0))
            shown = random_texts(40, seed=9) if self.texts else [vector_text(v) for v in looks]
            rows = [(name, shown[row]) for name, row in items.items()]
            named["changed_items"] = table(folder / "i.csv", ["item_id", "look"], rows)
        data = DataConfig(weight_column="w" if self.weighted else "")
        transform = FeatureTransform.load(self.source / "features")
        changes = read_changes(self.before, transform, data, UpdateConfig(**named))
        write_changed(self.before, changes, self.source, folder / "prepared")
        return changes, open_prepared(folder)

    def some_edges(self, count):
        pairs = edges_of(self.graph)[:: len(edges_of(self.graph)) // count][:count]
        return [(f"c-{c}", f"item-{i}") for i, c in pairs]


def edges_of(graph):
    return [
        (item, int(node) - graph.num_items)
        for item in range(graph.num_items)
        for node in graph.neighbors(item)
    ]


def slow_links(config, features, candidates, degree, large):
    size = config.sampling.content_neighbors if features.shape[1] else 0
    ids = np.full((len(features), size), -1, np.int32)
    shares = np.zeros(ids.shape, np.float32)
    for item in range(len(features) if size else 0):
        if large and degree[item]:
            continue
        scored = [
            (float(unit(features[item]) @ unit(features[i])), -i) for i in candidates if i != item
        ]
        best = [pair for pair in sorted(scored, reverse=True)[:size] if pair[0] > 0]
        ids[item, : len(best)] = [-i for _, i in best]
        mass = np.square([score for score, _ in best])
        shares[item, : len(best)] = mass / mass.sum() if len(best) else 0
    return ContentLinks(ids, shares)


def whole(config, trained, after, bases, params):
    """embed_all of every node of the changed catalog, its parts made one by one."""
    graph, items = after.graph, after.graph.num_items
    known = trained.graph.num_items
    everything = config.sampling.neighborhood == "all"
    nodes = graph.num_nodes if everything else items
    degree = graph.degree()
    features = after.features.astype(np.float32)
    candidates = np.flatnonzero(trained.graph.degree()[:known])
    links = slow_links(
        config, link_vectors(after), candidates, degree, known > config.sampling.content_limit
    )
    source = NeighborhoodSource(graph, config.sampling, config.seed, 1)
    lists = NeighborLists.from_config(source, links, config).with_num_walks(
        config.embed.embed_walks
    )
    ids, weights = lists.lookup(np.arange(nodes, dtype=np.int32))
    fitted = Encoder.over(config, trained, trained.graph, bases).inputs
    place = np.zeros((graph.num_nodes, bases.shape[1]))
    for collection in range(items, graph.num_nodes):
        based = [i for i in graph.neighbors(collection) if i < known]
        place[collection] = bases[based].mean(axis=0) if based else 0
    for item in range(items):
        place[item] = place[graph.neighbors(item)].sum(axis=0)
    rows = []
    for node in range(nodes):
        row = features[node] * fitted.scale if node < items else np.zeros(features.shape[1])
        extra = [0.1 * np.log1p(degree[node]), 0.1 * (degree[node] == 0)]
        extra += [float(node >= items)] if everything else []
        rows.append(np.concatenate([row, unit(place[node]), extra]))
    inputs = np.array(rows, np.float32)

    class Inputs:
        def gather(self, wanted):
            return inputs[wanted]

    messages = params["params"].get("neighbor_embeddings")
    if messages is not None and everything:
        moved = np.zeros((nodes, messages.shape[1]), np.float32)
        moved[:known] = messages[:known]
        moved[items : items + COLLECTIONS] = messages[known:]
        params = {"params": params["params"] | {"neighbor_embeddings": moved}}
    out = embed_all(
        config.model, params, Inputs(), (ids, weights), PassOptions(block=4, quiet=True)
    )
    out[np.flatnonzero(degree[:items] == 0), -1] += COLD_START_BIAS
    return out


def adjustment(catalog):
    def adjust(begin, end, rows):
        cold = catalog.isolated(np.arange(begin, end))
        rows[cold, -1] += np.float32(COLD_START_BIAS)

    return adjust


def updated(config, catalog, before, after, changes, bases, params, name="0", old=None):
    """(vectors, report, tables) by Update."""
    first = CurrentCatalog(config, catalog.before, before, bases)
    second = CurrentCatalog(config, catalog.before, after, bases)
    if old is None:
        old = PersistentTables(catalog.root / "layers" / "old", 16, keep=True)
        fill_tables(first, params, old, adjustment(first))
    new = PersistentTables(catalog.root / "layers" / name, 16, keep=True)
    vectors, report = Update(first, second, changes, params, old, new, COLD_START_BIAS).run()
    return vectors, report, new


CASES = {
    "edges come": {"added": ADDED},
    "edges go, two layers": {"removed": 5, "model": {"num_layers": 2}},
    "items come": {"added": [("c-3", "fresh-0"), ("c-3", "item-2")], "items": NEW},
    "items change, two layers": {"items": {"item-4": 7, "item-58": 8}, "model": {"num_layers": 2}},
    "no layer": {"added": ADDED, "items": {"item-9": 1}, "model": {"num_layers": 0}},
    "weights, max": {
        "added": 4, "catalog": {"weighted": True}, "model": {"pooling": "max", "num_layers": 2},
    },
    "collections too": {
        "added": ADDED, "removed": 2, "sampling": {"neighborhood": "all"},
        "model": {"num_layers": 2},
    },
    "collections too, items come": {
        "added": [("c-3", "fresh-0")], "items": NEW, "sampling": {"neighborhood": "all"},
    },
    "links for the isolated": {
        "added": ADDED, "removed": 3, "items": {"item-3": 2} | NEW,
        "sampling": {"content_limit": 10}, "model": {"num_layers": 2},
    },
    "links by words": {
        "added": [("c-3", "fresh-0")], "items": NEW | {"item-4": 7, "item-9": 3},
        "catalog": {"texts": text_transform(WIDTH, 5)}, "model": {"num_layers": 2},
    },
    "featureless, without places": {
        "added": ADDED, "catalog": {"width": 0}, "model": {"spectral_dim": 0},
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equal_to_whole_inference(case, tmp_path, small_rng):
    config = settings(sampling=case.get("sampling"), **case.get("model", {}))
    catalog = ChangingCatalog(tmp_path, small_rng, **case.get("catalog", {}))
    added, removed = case.get("added", ()), case.get("removed", 0)
    # A number stands for so many edges that are there.
    added = catalog.some_edges(added) if isinstance(added, int) else added
    removed = catalog.some_edges(removed) if removed else ()
    changes, after = catalog.change(added, removed, case.get("items"))
    bases = small_rng.normal(size=(ITEMS, config.model.spectral_dim)).astype(np.float32)
    first = CurrentCatalog(config, catalog.before, catalog.before, bases)
    params = random_params(config, first.inputs.dim, first.num_nodes)
    vectors, report, _ = updated(config, catalog, catalog.before, after, changes, bases, params)
    expected = whole(config, catalog.before, after, bases, params)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.ptp(vectors, axis=0).max() > 1e-3
    # Without the change the vectors are others, so that something was to be done.
    old = np.load(catalog.root / "layers" / "old" / "vectors.npy")
    assert np.abs(old[:ITEMS] - expected[:ITEMS]).max() > 1e-4
    assert 0 < report["computed"][-1] <= report["nodes"] == len(vectors)
    encoder = Encoder.over(config, catalog.before, catalog.graph, bases)
    before = encoder.embed(params, quiet=True)
    before[np.flatnonzero(catalog.graph.degree()[:ITEMS] == 0), -1] += COLD_START_BIAS
    np.testing.assert_allclose(old, before, atol=1e-5)


def two_halves() -> Graph:
    """Two halves without a path between them; item 59 has no edge."""
    rng = np.random.default_rng(3)
    edges = {(i, int(c) + 7 * (i >= 30)) for i in range(59) for c in rng.integers(0, 7, 2)}
    pairs = np.array(sorted(edges), np.int32)
    return Graph.from_edges(pairs[:, 0], pairs[:, 1], ITEMS, COLLECTIONS)


def test_what_is_out_of_reach_stays_bit_for_bit(tmp_path, small_rng):
    config = settings(sampling={"content_neighbors": 0}, num_layers=2)
    catalog = ChangingCatalog(tmp_path, small_rng, graph=two_halves())
    bases = small_rng.normal(size=(ITEMS, 4)).astype(np.float32)
    changes, after = catalog.change([("c-8", "item-40"), ("c-8", "fresh-0")], (), NEW)
    first = CurrentCatalog(config, catalog.before, catalog.before, bases)
    params = random_params(config, first.inputs.dim, first.num_nodes)
    vectors, report, tables = updated(
        config, catalog, catalog.before, after, changes, bases, params
    )
    np.testing.assert_allclose(
        vectors, whole(config, catalog.before, after, bases, params), atol=1e-5
    )
    old = np.load(catalog.root / "layers" / "old" / "vectors.npy")
    np.testing.assert_array_equal(vectors[:30], old[:30])
    assert report["computed"][0] <= report["computed"][1] <= 32
    assert 0 < report["resampled"] <= 30 and report["lists_changed"] <= 32
    assert max(report["projected"]) <= 32
    # The next change starts from these tables.
    trained, middle, catalog.before = catalog.before, after, after
    more, last = catalog.change([("c-0", "item-2")], [("c-8", "item-40")], step="more")
    catalog.before = trained
    vectors, _, _ = updated(
        config, catalog, middle, last, more, bases, params, name="1", old=tables
    )
    np.testing.assert_allclose(vectors, whole(config, trained, last, bases, params), atol=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_walks_that_may_meet_a_change(length):
    graph = two_halves()
    for changed in ([], [3], [62, 70], [59]):
        expected = set(changed)
        for _ in range(2 * length - 1):
            expected |= {int(n) for node in expected for n in graph.neighbors(node)}
        found = nodes_to_resample(graph, np.array(changed, np.int32), length)
        assert set(np.flatnonzero(found).tolist()) == expected


def test_the_changed_graph_is_the_one_built_from_all_edges(tmp_path, small_rng):
    catalog = ChangingCatalog(tmp_path, small_rng, weighted=True)
    there = catalog.some_edges(6)
    added, removed = [*ADDED, *ADDED[:1], *there[:2]], there[2:]
    changes, after = catalog.change(added, removed)
    graph = catalog.graph
    weights = {}
    for (item, collection), weight in zip(edges_of(graph), graph.weights[: graph.num_edges]):
        weights[f"c-{collection}", f"item-{item}"] = weight
    known = len(set(added) & set(weights))
    for edge in removed:
        del weights[edge]
    for edge in dict.fromkeys(added):
        weights[edge] = 2.5 * added.count(edge)
    names = [f"c-{i}" for i in range(COLLECTIONS)] + ["c-new"]
    assert after.collection_ids.ids.to_pylist() == names
    found = {
        (names[c], f"item-{i}"): weight
        for (i, c), weight in zip(edges_of(after.graph), after.graph.weights)
    }
    assert found == pytest.approx(weights)
    counts = {
        "edges_added": len(set(added)) - known, "edges_reweighted": known, "edges_removed": 4
    }  # fmt: skip
    assert known >= 2 and counts.items() <= changes.report.items()


def test_refusals(tmp_path, small_rng):
    catalog = ChangingCatalog(tmp_path, small_rng)
    there = catalog.some_edges(1)
    for number, (message, change) in enumerate(
        {
            "'item-99' in row 1 .* neither in the catalog nor in --changed_items": {
                "added": [("c-1", "item-99")]
            },
            "edge of item 'item-55' and collection 'c-1' in row 1 .* is not in the catalog": {
                "removed": [("c-1", "item-55")]
            },
            "is not in the catalog; leave it out": {"removed": [("c-none", "item-1")]},
            "is also in --changed_edges": {"added": there, "removed": there},
        }.items()
    ):
        with pytest.raises(UserError, match=message):
            catalog.change(**change, step=str(number))
    run = dataclasses.replace(settings(), update=UpdateConfig(changed_edges="x"), mode="train")
    with pytest.raises(UserError, match="need --mode=embed"):
        run.validate()
    assert not (pathlib.Path(tmp_path) / "0" / "prepared").exists()
