"""Embedding of unseen items against the full path over the extended catalog."""

import dataclasses
import pathlib
import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedded_catalog import (
    embedded_catalog,
    random_params,
    settings,
    vector_text,
    write_csv,
)
from small_catalog import make_prepared, random_graph
from small_runs import unit, unit_features
from small_texts import link_vectors, random_texts, text_transform

import pinsage_jax
from pinsage_jax.catalog.additions import Additions, read_additions, touched_graph
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.embed import NewItemsConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.ids import IdTable
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.inference.new_item_walks import NewItemWalks
from pinsage_jax.inference.new_items import Catalog, NewItemEncoder
from pinsage_jax.sampling.content_links import ContentLinks
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts
from pinsage_jax.sampling.store import NeighborhoodSource
from pinsage_jax.stages.prepare import prepare

ITEMS, COLLECTIONS = 60, 14
# New item 1 has no edge, 3 only a new collection, 4 and 5 share one; 0's edge is there twice.
NEW_EDGES = [(0, 2), (0, 2), (0, 5), (2, 1), (2, 3), (2, 7), (3, 14), (4, 15), (4, 4), (5, 15)]
NEW = 6


def additions_of(edges, width, weighted, dtype=np.float32, texts=None) -> Additions:
    items, collections = np.array(edges or np.empty((0, 2)), np.int32).reshape(-1, 2).T
    fresh = max([COLLECTIONS, *(collections + 1)]) - COLLECTIONS
    weights = np.linspace(0.5, 3.0, len(items)).astype(np.float32) if weighted else None
    graph, touched = touched_graph(items, collections, NEW, weights)
    features = unit_features(NEW, width, seed=9) if width else np.empty((NEW, 0), np.float32)
    words = None
    if texts:
        rows = pa.record_batch({"look": random_texts(NEW, seed=9)})
        features, words = texts.transform(rows), texts.words(rows)
    ids = IdTable(pa.array([f"new-{i}" for i in range(NEW)]))
    return Additions(ids, features.astype(dtype), graph, touched, fresh, words)


def edges_of(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    items = np.repeat(np.arange(graph.num_items), np.diff(graph.indptr[: graph.num_items + 1]))
    collections = graph.indices[: graph.num_edges] - graph.num_items
    weights = None if graph.weights is None else graph.weights[: graph.num_edges]
    return items.astype(np.int32), collections.astype(np.int32), weights


def slow_extended(graph: Graph, additions: Additions) -> Graph:
    """A copy of the catalog's graph that has the new edges as well."""
    new = additions.graph
    (items, collections, weights), (more, local, other) = edges_of(graph), edges_of(new)
    held = additions.collections[local]
    both = None if weights is None else np.concatenate([weights, other])
    return Graph.from_edges(
        np.concatenate([items, more + np.int32(graph.num_items)]),
        np.concatenate([collections, held]),
        graph.num_items + new.num_items,
        graph.num_collections + additions.num_new_collections,
        both,
    )


def slow_links(config, features, added, degree, isolated) -> ContentLinks:
    """Links of new items only, item by item; the rows of old items are not read."""
    size = config.sampling.content_neighbors if features.shape[1] else 0
    ids = np.full((len(features) + len(added), size), -1, np.int32)
    shares = np.zeros(ids.shape, np.float32)
    for new, row in enumerate(added) if size else ():
        if len(features) > config.sampling.content_limit and not isolated[new]:
            continue
        scored = [
            (float(unit(row) @ unit(features[i])), -i)
            for i in range(len(features))
            if degree[i] > 0
        ]
        best = [pair for pair in sorted(scored, reverse=True)[:size] if pair[0] > 0]
        place = len(features) + new
        ids[place, : len(best)] = [-i for _, i in best]
        mass = np.square([score for score, _ in best])
        shares[place, : len(best)] = mass / mass.sum() if len(best) else 0
    return ContentLinks(ids, shares)


def full_path(config, prepared, additions, bases, params) -> np.ndarray:
    """embed_all of every node of the extended graph; the rows of the new items.

    Catalog nodes have the inputs and lists that they have without the new ones.
    """
    graph, new = prepared.graph, additions.graph
    items, count, old_collections = graph.num_items, new.num_items, graph.num_collections
    whole = slow_extended(graph, additions)
    encoder = Encoder.over(config, prepared, graph, bases)
    everything = config.sampling.neighborhood == "all"
    nodes = whole.num_nodes if everything else whole.num_items
    old_items, behind = np.arange(items), items + count
    old_place = np.arange(behind, behind + old_collections)
    old_nodes = np.concatenate([old_items, old_place]) if everything else old_items

    degree = whole.degree()
    added = additions.features.astype(np.float32)
    links = slow_links(
        config, link_vectors(prepared), link_vectors(additions),
        graph.degree(), degree[items:behind] == 0,
    )  # fmt: skip
    source = NeighborhoodSource(whole, config.sampling, config.seed, 1)
    lists = NeighborLists.from_config(source, links, config).with_num_walks(
        config.embed.embed_walks
    )
    ids, weights = lists.lookup(np.arange(nodes, dtype=np.int32))
    old_ids, old_weights = encoder.all_inference_lists
    ids[old_nodes] = np.where(old_ids >= items, old_ids + count, old_ids)
    weights[old_nodes] = old_weights

    inputs = np.zeros((nodes, encoder.inputs.dim), np.float32)
    inputs[old_nodes] = encoder.inputs.gather(np.arange(len(old_nodes), dtype=np.int32))
    places = np.array([bases[graph.neighbors(items + c)].sum(axis=0) for c in range(COLLECTIONS)])
    sizes = np.maximum(graph.degree()[items:], 1)
    for node in range(items, nodes):
        if node in old_place:
            continue
        row = [np.zeros(added.shape[1])]
        place = np.zeros(bases.shape[1])
        if node < behind:
            row = [added[node - items] * encoder.inputs.scale]
            for held in whole.neighbors(node) - behind:
                if held < COLLECTIONS:
                    place = place + places[held] / sizes[held]
            place = unit(place)
        extra = [0.1 * np.log1p(degree[node]), 0.1 * (degree[node] == 0)]
        if everything:
            extra.append(float(node >= behind))
        inputs[node] = np.concatenate([*row, place, extra])

    class Inputs:
        def gather(self, wanted):
            return inputs[wanted]

    messages = params["params"].get("neighbor_embeddings")
    if messages is not None and everything:
        table = np.zeros((nodes, messages.shape[1]), np.float32)
        table[old_nodes] = messages
        params = {"params": params["params"] | {"neighbor_embeddings": table}}
    out = embed_all(
        config.model, params, Inputs(), (ids, weights), PassOptions(block=4, quiet=True)
    )
    return out[items:behind]


CASES = {
    "one layer": {},
    "two layers": {"model": {"num_layers": 2}},
    "no layer": {"model": {"num_layers": 0}},
    "no edges": {"edges": [], "model": {"num_layers": 2}},
    "featureless": {"width": 0, "model": {"num_layers": 2}},
    "featureless without edges": {"width": 0, "edges": []},
    "weighted, max": {"weighted": True, "model": {"pooling": "max", "num_layers": 2}},
    "no spectral features, no messages": {
        "model": {"spectral_dim": 0, "neighbor_embeddings": "off"}
    },
    "links for the isolated": {"sampling": {"content_limit": 10}, "model": {"num_layers": 2}},
    "collections too": {"sampling": {"neighborhood": "all"}, "model": {"num_layers": 2}},
    "half features": {"dtype": np.float16},
    "links by words": {"texts": text_transform(6, 5), "model": {"num_layers": 2}},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_if_they_had_been_in_the_catalog(case, small_rng):
    model, width, dtype = case.get("model", {}), case.get("width", 6), case.get("dtype", np.float32)
    weighted = case.get("weighted", False)
    config = settings(sampling=case.get("sampling"), **model)
    graph = random_graph(small_rng, ITEMS, COLLECTIONS, 150, 8, weighted)
    features = unit_features(ITEMS, width) if width else np.empty((ITEMS, 0), np.float32)
    prepared = make_prepared(graph, features.astype(dtype))
    if texts := case.get("texts"):
        rows = pa.record_batch({"look": random_texts(ITEMS)})
        prepared = dataclasses.replace(
            prepared, features=texts.transform(rows), words=texts.words(rows)
        )
    added = additions_of(case.get("edges", NEW_EDGES), width, weighted, dtype, texts)
    bases = small_rng.normal(size=(ITEMS, config.model.spectral_dim)).astype(np.float32)
    catalog = Catalog(config, prepared, bases)
    encoder = NewItemEncoder(catalog, added)
    params = random_params(config, catalog.inputs.dim, catalog.num_nodes)
    vectors = encoder.embed(params)
    assert vectors.shape == (NEW, 8) and vectors.dtype == np.float32
    expected = full_path(config, prepared, added, bases, params)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert encoder.isolated.tolist() == [d == 0 for d in added.graph.degree()[:NEW]]
    told_apart = width > 0 or bool(case.get("edges", True))
    assert (np.ptp(vectors, axis=0).max() > 1e-3) == told_apart


@pytest.mark.kernels
# Without compilation, hashes overflow as they are meant to.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("neighborhood", ["items", "all"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("edges", [[], NEW_EDGES, [(5, 0), (0, 13)], "many"])
def test_walks_are_those_over_a_copy_of_the_graph(edges, weighted, neighborhood, small_rng):
    if edges == "many":
        edges = list(zip(small_rng.integers(0, NEW, 60), small_rng.integers(0, 30, 60)))
    graph = random_graph(small_rng, ITEMS, COLLECTIONS, 150, 8, weighted)
    added = additions_of(edges, 2, weighted)
    sampling = settings(sampling={"num_walks": 40, "walk_length": 3, "num_neighbors": 7}).sampling
    sampling = dataclasses.replace(sampling, neighborhood=neighborhood)
    copied = WalkTables(slow_extended(graph, added))
    nodes = np.arange(ITEMS, ITEMS + NEW, dtype=np.int32)
    if neighborhood == "all":
        first = ITEMS + NEW + COLLECTIONS
        new_collections = np.arange(first, first + added.num_new_collections, dtype=np.int32)
        nodes = np.concatenate([nodes, new_collections])
    expected = visit_counts(copied, nodes, sampling, seed=11)
    walks = NewItemWalks(WalkTables(graph), added)
    for threads in (1, 3):
        ids, counts = walks.visit_counts(nodes, sampling, 11, threads)
        np.testing.assert_array_equal(ids, expected.ids)
        np.testing.assert_array_equal(counts, expected.counts)
    assert bool(len(edges)) == bool((counts > 0).any())


def test_a_request_copies_nothing_of_the_catalog(small_rng):
    """What a request allocates does not grow with the catalog, features of candidates aside."""
    peaks = []
    for scale in (1, 8):
        items, collections = 4000 * scale, 1000 * scale
        graph = random_graph(small_rng, items, collections, 30_000 * scale, 0, True)
        prepared = make_prepared(graph, np.zeros((items, 0), np.float32))
        config = settings(num_layers=2, neighbor_embeddings="off", spectral_dim=0)
        catalog = Catalog(config, prepared, np.zeros((items, 0), np.float32))
        params = random_params(config, catalog.inputs.dim, catalog.num_nodes)
        weights = np.ones(2, np.float32)
        edges, touched = touched_graph(
            np.zeros(2, np.int32), np.array([3, collections - 1], np.int32), 1, weights
        )
        one = Additions(IdTable(pa.array(["new"])), np.zeros((1, 0), np.float32), edges, touched, 0)
        for _ in range(2):
            NewItemEncoder(catalog, one).embed(params)
        tracemalloc.start()
        NewItemEncoder(catalog, one).embed(params)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] and peaks[1] < 500_000


# From files, through the stage.


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """What embedded_catalog makes, for all tests."""
    return embedded_catalog(tmp_path_factory.mktemp("catalog"))


def with_new(catalog, tmp_path, items, edges=None, columns=("item_id", "look", "year")):
    """Settings that name new tables; items are rows (id, vector, year)."""
    rows = [(name, vector_text(look), *rest) for name, look, *rest in items]
    new = NewItemsConfig(
        new_items=write_csv(tmp_path / "new.csv", columns, rows),
        new_edges=""
        if edges is None
        else write_csv(tmp_path / "more.csv", ["collection_id", "item_id"], edges),
    )
    return dataclasses.replace(catalog[0], new=new)


def exported(config):
    folder = pathlib.Path(config.workdir) / "new_embeddings"
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    return table, vectors, files.read_json(folder / "_manifest.json")


def test_twins_of_catalog_items(catalog, tmp_path):
    config, vectors, features, edges = catalog
    rows = [(f"twin{i}", features[i], 2000 + i % 7) for i in (3, 75, 41)]
    more = [(c, i.replace("i", "twin")) for c, i in edges if i in ("i3", "i41")]
    run = with_new(catalog, tmp_path, rows, more)
    before = files.checksum(pathlib.Path(config.workdir) / "embeddings/part-00000.parquet")
    manifest = pinsage_jax.embed(run)
    table, found, saved = exported(run)
    assert table["item_id"].to_pylist() == ["twin3", "twin75", "twin41"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert saved == manifest
    expected = {"count": 3, "dimension": 8, "step": 3, "cold_start_bias": 0.25, "isolated": 1}
    assert expected.items() <= manifest.items()
    after = files.checksum(pathlib.Path(config.workdir) / "embeddings/part-00000.parquet")
    assert before == after
    # Without edges nothing depends on chance: the very same vector, cold offset included.
    np.testing.assert_allclose(found[1], vectors[75], atol=1e-5)
    for row, item in ((0, 3), (2, 41)):
        # The other way round i3 and i41 see their twins' walks, which are other walks.
        scores = vectors @ np.stack([vectors[item], found[row]], axis=1)
        scores[item] = -np.inf
        own, twin = (set(np.argsort(-scores[:, side])[:10].tolist()) for side in (0, 1))
        assert len(own & twin) >= 8
        assert vectors[item, :-1] @ found[row, :-1] > 0.97


def test_a_second_export_replaces_the_first(catalog, tmp_path):
    row = ("alone", catalog[2][0], 2001)
    for name in ("a", "b"):
        run = with_new(catalog, tmp_path, [(name, *row[1:])], [("unheard of", name)])
        pinsage_jax.embed(run)
        table, vectors, manifest = exported(run)
        assert table["item_id"].to_pylist() == [name]
        assert manifest["isolated"] == 0 and np.isfinite(vectors).all()


GOOD = [("x", np.ones(5), 2001), ("y", np.zeros(5), 2002)]
REFUSALS = {
    "known item": ([*GOOD, ("i7", np.ones(5), 1)], None, r"Item 'i7' in row 3 .* already; leave"),
    "twice": (
        [*GOOD, ("x", np.ones(5), 1)],
        None,
        r"Item 'x' is in --new_items=.* more .* row 3",
    ),
    "edge of a known item": (GOOD, [("c1", "x"), ("c1", "i7")], r"Item 'i7' in row 2 .* already"),
    "edge of no item": (GOOD, [("c1", "z")], r"Item 'z' in row 1 .* not among the new items"),
    "other length": ([("x", np.ones(4), 1)], None, r"'look'.*4.*5"),
}


def refusal(config):
    with pytest.raises(UserError) as caught:
        pinsage_jax.embed(config)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("items,edges,message", REFUSALS.values(), ids=REFUSALS)
def test_refusals(items, edges, message, catalog, tmp_path):
    run = with_new(catalog, tmp_path, items, edges)
    text = refusal(run)
    assert re.search(message, text), text


def test_refusals_of_columns(catalog, tmp_path):
    rows = [("x", np.ones(5))]
    run = with_new(catalog, tmp_path, rows, columns=("item_id", "look"))
    assert "has no column 'year', which the catalog's features" in refusal(run)
    run = with_new(catalog, tmp_path, [(*GOOD[0], 1)], columns=("id", "look", "year", "size"))
    assert "has no column 'item_id' (named by --item_id_column)" in refusal(run)
    run = with_new(catalog, tmp_path, [(*GOOD[0], 1)], columns=("item_id", "look", "year", "size"))
    data = dataclasses.replace(run.data, numeric_columns="year,size")
    assert "'size' is named as a feature, but" in refusal(dataclasses.replace(run, data=data))
    # Not asked for by name it is only left out.
    pinsage_jax.embed(run)
    run = with_new(catalog, tmp_path, GOOD, [("c1", "x")])
    data = dataclasses.replace(run.data, collection_column="board")
    assert "has no column 'board'" in refusal(dataclasses.replace(run, data=data))


def test_weights_are_needed_where_the_catalog_has_them(small_rng, tmp_path):
    prepared = make_prepared(random_graph(small_rng, weighted=True))
    none = FeatureTransform([])
    items = write_csv(tmp_path / "new.csv", ["item_id"], [("x",), ("y",)])
    edges = write_csv(
        tmp_path / "more.csv",
        ["collection_id", "item_id", "w"],
        [("c-3", "y", 2), ("new", "x", 0.5), ("c-3", "y", 1)],
    )
    with pytest.raises(UserError, match="with --weight_column"):
        read_additions(prepared, none, DataConfig(), items, edges)
    found = read_additions(prepared, none, DataConfig(weight_column="w"), items, edges)
    assert found.item_ids.ids.to_pylist() == ["x", "y"]
    graph = found.graph
    known = prepared.graph.num_collections
    held = found.collections[graph.indices[: graph.num_edges] - 2]
    assert held.tolist() == [known, 3]
    assert graph.weights[: graph.num_edges].tolist() == [0.5, 3.0]
    assert found.num_new_collections == 1 and found.features.shape == (2, 0)


def test_refusal_without_a_checkpoint_and_of_flags(catalog, tmp_path):
    run = with_new(catalog, tmp_path, GOOD)
    elsewhere = tmp_path / "untrained"
    prepare(dataclasses.replace(catalog[0], workdir=str(elsewhere)))
    text = refusal(dataclasses.replace(run, workdir=str(elsewhere)))
    assert "holds no checkpoint; run --mode=train first" in text
    assert not (elsewhere / "new_embeddings").exists()
    with pytest.raises(UserError, match="--mode=embed"):
        dataclasses.replace(run, mode="pipeline").validate()
    alone = dataclasses.replace(run, new=NewItemsConfig(new_edges="edges.csv"))
    with pytest.raises(UserError, match="needs --new_items"):
        alone.validate()
