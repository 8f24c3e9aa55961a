"""--mode=neighbors through the stage: files of queries, and new items beside known ones."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedded_catalog import embedded_catalog, vector_text, write_csv

import pinsage_jax
from pinsage_jax.catalog.encoders import load_transform
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.embed import NewItemsConfig
from pinsage_jax.config.search import EvalConfig, SearchConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.stages.checkpoint import open_new_items


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return embedded_catalog(tmp_path_factory.mktemp("catalog"))


def asking(config, k=5, new=None, search=None, **evaluate):
    return dataclasses.replace(
        config,
        mode="neighbors",
        evaluate=EvalConfig(k=k, **evaluate),
        new=new or NewItemsConfig(),
        search=search or SearchConfig(),
    )


def lists(path):
    found = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["item_id"], []).append(row["neighbor_id"])
    return found


def test_a_file_of_queries(catalog, tmp_path):
    config, vectors, *_ = catalog
    queries = write_csv(tmp_path / "asked.csv", ["item_id"], [("i41",), ("i3",), ("i75",)])
    pinsage_jax.neighbors(asking(config, queries=queries))
    found = lists(f"{config.workdir}/neighbors.parquet")
    assert list(found) == ["i41", "i3", "i75"]
    for name, listed in found.items():
        scores = vectors @ vectors[int(name[1:])]
        scores[int(name[1:])] = -np.inf
        assert listed == [f"i{row}" for row in np.argsort(-scores, kind="stable")[:5]]
    wrong = write_csv(tmp_path / "wrong.csv", ["item_id"], [("i3",), ("j7",)])
    with pytest.raises(UserError, match=r"--queries: there is no item j7\. Ids are"):
        pinsage_jax.neighbors(asking(config, queries=wrong))
    with pytest.raises(UserError, match="--queries cannot go with --query"):
        asking(config, queries=queries, query="i3").validate()


def test_new_items_are_listed_and_list(catalog, tmp_path, capsys):
    config, vectors, features, _ = catalog
    rows = [("twin", vector_text(features[5]), 2005), ("lone", vector_text(features[40]), 1999)]
    new = NewItemsConfig(
        new_items=write_csv(tmp_path / "new.csv", ["item_id", "look", "year"], rows),
        new_edges=write_csv(
            tmp_path / "edges.csv", ["collection_id", "item_id"], [("c0", "twin"), ("new", "twin")]
        ),
    )
    prepared = open_prepared(config.workdir)
    model, codec = open_new_items(config, prepared)
    asked = asking(config, k=6, new=new)
    pinsage_jax.neighbors(asked)
    found = lists(f"{config.workdir}/new_neighbors.parquet")
    from pinsage_jax.catalog.additions import read_additions

    transform = load_transform(config)
    additions = read_additions(prepared, transform, config.data, new.new_items, new.new_edges)
    both = np.concatenate([vectors, codec.project(model.embed(additions)[0])])
    names = [f"i{row}" for row in range(80)] + ["twin", "lone"]
    for row, name in ((80, "twin"), (81, "lone")):
        scores = both @ both[row]
        scores[row] = -np.inf
        assert found[name] == [names[i] for i in np.argsort(-scores, kind="stable")[:6]]
    # Known items may be asked for too, and their lists may hold new ones.
    scores = both @ both[5]
    scores[5] = -np.inf
    listed = pinsage_jax.neighbors(asked, ["i5"])["i5"]
    assert [entry.item_id for entry in listed] == [names[i] for i in np.argsort(-scores)[:6]]
    # Rules read the columns of new items, and collections that new items are in.
    rules = SearchConfig(where="year == 1999 or year == 2005")
    years = prepared.item_ids.ids.to_pylist()
    listed = pinsage_jax.neighbors(asking(config, k=80, new=new, search=rules), ["i5"])["i5"]
    held = {entry.item_id for entry in listed}
    assert {"twin", "lone"} <= held and len(held) < len(years)
    seen = SearchConfig(exclude_seen="on")
    listed = pinsage_jax.neighbors(asking(config, k=81, new=new, search=seen), ["twin"])["twin"]
    in_c0 = {names[i] for i in prepared.graph.neighbors(prepared.graph.num_items)}
    assert in_c0 and not in_c0 & {entry.item_id for entry in listed}


def test_an_index_does_not_hold_new_items(catalog):
    config = catalog[0]
    new = NewItemsConfig(new_items="new.csv")
    with pytest.raises(UserError, match="--search=hnsw32:64: the index does not hold --new_items"):
        asking(config, new=new, search=SearchConfig(search="hnsw32:64")).validate()
    with pytest.raises(UserError, match="needs --mode=embed or --mode=neighbors"):
        dataclasses.replace(config, mode="recommend", new=new).validate()
