"""Where lists are made: rules, new items, the server and the explorer follow the ranker."""

import dataclasses

import numpy as np
import pytest
from embedded_catalog import embedded_catalog, vector_text, write_csv
from ranked_world import simple_model

import pinsage_jax
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.embed import NewItemsConfig
from pinsage_jax.config.search import EvalConfig, SearchConfig
from pinsage_jax.evaluation.side_by_side import NeighborsByMethod
from pinsage_jax.listing.rules import Listing
from pinsage_jax.ranking.ranker import Ranker
from pinsage_jax.ranking.saved_ranker import write_ranker
from pinsage_jax.serving.service import Service, listing_of_request
from pinsage_jax.stages.checkpoint import exported_source, open_new_items
from pinsage_jax.stages.search import listed_by


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    config, vectors, features, _ = embedded_catalog(tmp_path_factory.mktemp("ranked"))
    write_ranker(config, simple_model(), {"measured": {}})
    ranker = listed_by(config, open_prepared(config.workdir), 1, vectors)
    assert isinstance(ranker, Ranker) and ranker.by == "ranker"
    return config, vectors, features, ranker


def asked(config, item, k=80, search=None, new=None):
    config = dataclasses.replace(
        config, mode="neighbors", evaluate=EvalConfig(k=k), search=search or SearchConfig(),
        new=new or NewItemsConfig(),
    )  # fmt: skip
    return [(entry.item_id, entry.score) for entry in pinsage_jax.neighbors(config, [item])[item]]


def test_rules_filter_the_list_of_the_ranker(catalog):
    config, _, _, ranker = catalog
    whole = asked(config, "i5")
    ids, scores = ranker.top_k(None, 79, np.array([5]))
    assert whole == [(f"i{row}", score) for row, score in zip(ids[0], scores[0].tolist())]
    ruled = asked(config, "i5", 8, SearchConfig(where="year == query.year"))
    assert ruled == [entry for entry in whole if int(entry[0][1:]) % 7 == 5][:8]
    boosted = dict(asked(config, "i5", 80, SearchConfig(boost="1 + 3 * (year == 2003)")))
    for name, score in whole:
        more = np.log(4.0) if int(name[1:]) % 7 == 3 else 0.0
        assert boosted[name] == pytest.approx(score + more, abs=1e-5)
    seen = asked(config, "i5", 20, SearchConfig(exclude_seen="on"))
    assert seen == [entry for entry in whole if entry in seen][:20] and seen != whole[:20]


def test_new_items_are_queries_and_candidates_of_the_ranker(catalog, tmp_path):
    config, _, features, _ = catalog
    rows = [("twin", vector_text(features[5]), 2005), ("lone", vector_text(features[41]), 2041)]
    edges = [("c0", "twin"), ("new", "twin")]
    new = NewItemsConfig(
        new_items=write_csv(tmp_path / "new.csv", ["item_id", "look", "year"], rows),
        new_edges=write_csv(tmp_path / "edges.csv", ["collection_id", "item_id"], edges),
    )
    by_ranker = asked(config, "twin", 9, new=new)
    by_vectors = asked(config, "twin", 9, SearchConfig(related_by="vectors"), new)
    assert by_ranker != by_vectors and all(int(name[1:]) < 70 for name, _ in by_ranker[:3])
    assert {"twin", "lone"} <= {name for name, _ in asked(config, "i5", 81, new=new)}


def test_the_server_and_the_explorer_list_by_the_ranker(catalog):
    config, vectors, features, ranker = catalog
    prepared = open_prepared(config.workdir)
    source = exported_source(config, len(vectors))
    new_items = open_new_items(source.config, prepared)
    service = Service(source, prepared, vectors, None, new_items, ranker)

    def named(found):
        return [entry["item_id"] for entry in found["neighbors"]]

    everything = Listing(prefix="", warns=False)
    whole = [f"i{row}" for row in ranker.top_k(None, 79, np.array([5]))[0][0]]
    assert named(service.neighbors("i5", 20, everything)) == whole[:20]
    where = listing_of_request("year == query.year", "", "", [], None)
    same = [name for name in whole if int(name[1:]) % 7 == 5]
    assert named(service.neighbors("i5", 8, where)) == same[:8]
    one = listing_of_request("", "", "year", [], None)
    found = named(service.neighbors("i5", 7, one))
    assert len({int(name[1:]) % 7 for name in found}) == 7 and found[0] == whole[0]
    # A new item: twice the content of i5, in its collection.
    row = {"item_id": "twin", "look": features[5].tolist(), "year": 2005}
    held = [{"collection_id": "c0", "item_id": "twin"}, {"collection_id": "x", "item_id": "twin"}]
    (answer,) = service.neighbors_of_new_items([row], held, 10, everything)["items"]
    by_vectors = Service(source, prepared, vectors, None, new_items)
    (other,) = by_vectors.neighbors_of_new_items([row], held, 10, everything)["items"]
    assert named(answer) != named(other) and "i5" in named(answer)
    (answer,) = service.neighbors_of_new_items([row], [], 5, where)["items"]
    assert all(int(name[1:]) % 7 == 5 for name in named(answer))
    # The explorer.
    (pinsage, *_) = service.explorer.item("i5")["neighbors"]
    assert [entry["id"] for entry in pinsage] == whole[: len(pinsage)]
    methods = NeighborsByMethod(config, prepared, vectors, 1, ranker)
    assert "log-odds" in methods.description("PinSage")
    np.testing.assert_array_equal(
        methods.neighbors("PinSage", np.arange(80), 5)[0], ranker.top_k(None, 5, np.arange(80))[0]
    )
