"""--mode=embed that resumes, keeps its layers and applies changes, through the stages."""

import dataclasses
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedded_catalog import embedded_catalog, vector_text, write_csv
from ranked_world import simple_model

import pinsage_jax
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.embed import EmbedConfig, UpdateConfig
from pinsage_jax.config.search import SearchConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.inference import layerwise, updating
from pinsage_jax.ranking.saved_ranker import ranker_is_current, write_ranker


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """What embedded_catalog makes, for all tests."""
    return embedded_catalog(tmp_path_factory.mktemp("catalog"))


@pytest.fixture
def nothing_computed(monkeypatch):
    """After `nothing_computed()`, computing a row fails."""

    def refuse():
        def computed(*args, **kwargs):
            raise AssertionError("rows are computed")

        monkeypatch.setattr(layerwise, "_in_blocks", computed)
        monkeypatch.setattr(updating, "_blocks", computed)

    return refuse


def edges_table(tmp_path, name, rows):
    return write_csv(tmp_path / name, ["collection_id", "item_id"], rows)


def test_layers_are_found_again_or_deleted(catalog, nothing_computed):
    config, vectors, _, _ = catalog
    layers = pathlib.Path(config.workdir) / "layers"
    assert not layers.exists()
    config = dataclasses.replace(
        config, embed=dataclasses.replace(config.embed, keep_layers=True, cold_start_bias=0.25)
    )
    pinsage_jax.embed(config)
    assert {path.name.split(".")[0] for path in layers.glob("*/*")} == {"lists", "vectors"}
    nothing_computed()
    quantized = dataclasses.replace(
        config.embed, export_dtype="int8", export_format="npy", export_dim=6
    )
    manifest = pinsage_jax.embed(dataclasses.replace(config, embed=quantized))
    assert manifest["against_float32"]["recall@10"] < 1.0
    assert manifest["flags"]["export_dim"] == 6 and manifest["parameters"]
    folder = pathlib.Path(config.workdir) / "embeddings"
    assert np.load(folder / "vectors.npy").shape == (80, 6)
    pinsage_jax.embed(config)
    found = load_embeddings(config.workdir, open_prepared(config.workdir))
    np.testing.assert_allclose(found, vectors, atol=1e-5)


def test_changes_one_after_the_other(catalog, tmp_path, capsys, nothing_computed):
    config, _, features, edges = catalog
    items = write_csv(
        tmp_path / "items.csv",
        ["item_id", "look", "year"],
        [("fresh", vector_text(features[3]), 2003), ("i75", vector_text(features[4]), 2004)],
    )
    first = dataclasses.replace(
        config,
        update=UpdateConfig(
            changed_edges=edges_table(tmp_path, "a.csv", [("c0", "fresh"), ("c0", "i71")]),
            removed_edges=edges_table(tmp_path, "r.csv", [edges[0]]),
            changed_items=items,
        ),
    )
    write_ranker(config, simple_model(), {"measured": {}})
    manifest = pinsage_jax.embed(first)
    output = capsys.readouterr().out
    assert "2 edges added, 0 reweighted, 1 removed; 1 items added, 1 changed" in output
    assert "recomputed in layer 1: " in output and "neighborhoods sampled again for " in output
    updated = pathlib.Path(config.workdir) / "updated"
    prepared = open_prepared(updated)
    found = load_embeddings(updated, prepared)
    assert found.shape == (81, 8) and prepared.item_ids.ids[80].as_py() == "fresh"
    report = manifest["update"]
    assert 0 < report["computed"][0] <= report["nodes"] == 81
    # The new item lies where its twin does.
    near = np.argsort(-(found @ found[80]))[:20]
    assert 3 in near
    base = load_embeddings(config.workdir, open_prepared(config.workdir))
    assert base.shape == (80, 8)

    second = dataclasses.replace(
        config,
        update=UpdateConfig(changed_edges=edges_table(tmp_path, "b.csv", [("c1", "fresh")])),
    )
    manifest = pinsage_jax.embed(second)
    after = load_embeddings(updated, open_prepared(updated))
    assert np.abs(after[80] - found[80]).max() > 1e-5
    nothing_computed()
    # The very same change again is not applied twice.
    assert pinsage_jax.embed(second) == manifest
    listing = dataclasses.replace(
        config, workdir=str(updated), mode="neighbors", search=SearchConfig(min_degree=1)
    )
    pinsage_jax.neighbors(listing)
    assert "fresh" in pq.read_table(updated / "related_items.parquet")["item_id"].to_pylist()
    # The ranker orders the lists of the changed catalog too, the new item's among them.
    assert ranker_is_current(listing)
    ranked = dataclasses.replace(listing, search=SearchConfig(related_by="ranker"))
    assert len(pinsage_jax.neighbors(ranked, ["fresh"])["fresh"]) == 10


def test_an_update_of_another_catalog_is_refused(catalog, tmp_path):
    config, *_ = catalog
    run = dataclasses.replace(
        config,
        update=UpdateConfig(changed_edges=edges_table(tmp_path, "c.csv", [("c2", "i3")])),
        embed=EmbedConfig(embed_walks=500, shard_rows=50),
    )
    pinsage_jax.embed(run)
    path = pathlib.Path(config.workdir) / "updated" / "prepared" / "manifest.json"
    saved = files.read_checked_json(path)
    files.write_checked_json(path, saved | {"base": "another"})
    other = dataclasses.replace(
        run, update=UpdateConfig(changed_edges=edges_table(tmp_path, "d.csv", [("c2", "i4")]))
    )
    try:
        with pytest.raises(UserError, match="is of another catalog than"):
            pinsage_jax.embed(other)
    finally:
        files.write_checked_json(path, saved)


def test_the_same_changes_with_another_model_or_export_are_embedded_anew(catalog, tmp_path):
    config, *_ = catalog
    run = dataclasses.replace(
        config,
        update=UpdateConfig(
            changed_edges=edges_table(tmp_path, "e.csv", [("c3", "i5")]),
            removed_edges=edges_table(tmp_path, "g.csv", [("c0", "i71")]),
        ),
    )
    first = pinsage_jax.embed(run)
    coarse = dataclasses.replace(run, embed=dataclasses.replace(run.embed, export_dtype="int8"))
    second = pinsage_jax.embed(coarse)
    assert second["settings_key"] != first["settings_key"] and second["changes"] == first["changes"]
    assert second["flags"]["export_dtype"] == "int8"
    # Nothing is applied twice: a removed edge would be refused as unknown.
    assert second["update"]["edges_added"] == second["update"]["edges_removed"] == 0
    walked = dataclasses.replace(run.embed, embed_walks=700)
    assert pinsage_jax.embed(dataclasses.replace(run, embed=walked))["flags"]["embed_walks"] == 700


def test_missing_tables_of_changes_are_reported_in_one_sentence(catalog, tmp_path):
    config, *_ = catalog
    missing = UpdateConfig(changed_edges=str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"--changed_edges=\S+none.csv does not exist"):
        pinsage_jax.embed(dataclasses.replace(config, update=missing))
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    empty = UpdateConfig(removed_edges=str(tmp_path / "outer"))
    with pytest.raises(UserError, match=r"is a folder without any \.parquet file"):
        pinsage_jax.embed(dataclasses.replace(config, update=empty))
