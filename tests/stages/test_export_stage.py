"""--mode=export: folders that are written whole, and stores that are compared with the model."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from pinsage_jax.config.search import SearchConfig
from pinsage_jax.config.tools import VectorStoreConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation.pair_ranks import RANKS_FILE
from pinsage_jax.export.reader import open_export
from pinsage_jax.ranking.saved_ranker import RANKER_FILE
from pinsage_jax.stages.search import export
from pinsage_jax.stores import dumps


@pytest.fixture
def run(trained, tmp_path):
    """Runs --mode=export with some settings over a workdir that tests may write to."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("prepared", "embeddings"):
        shutil.copytree(pathlib.Path(trained.workdir) / name, workdir / name)

    def call(weight=1.0, **settings):
        config = dataclasses.replace(
            trained,
            mode="export",
            workdir=str(workdir),
            search=SearchConfig(popularity_weight=weight),
            vector_store=VectorStoreConfig(**settings),
        )
        config.validate()
        return export(config)

    call.workdir = workdir
    return call


def test_an_export_holds_the_vectors_and_the_version(run, capsys):
    about = run(to="qdrant", export_columns="all")
    folder = run.workdir / "stores" / "qdrant"
    exported = open_export(run.workdir / "embeddings")
    held = dumps.read(folder, "")
    assert held.ids.to_pylist() == exported.ids().ids.to_pylist()
    np.testing.assert_array_equal(held.vectors, exported.vectors())
    assert about["model_version"].startswith(exported.manifest["parameters"])
    assert set(held.versions.to_pylist()) == {about["model_version"]}
    assert about["columns"] and about["items"] == exported.count
    files.verify_checksums(folder, about["files"])
    assert json.loads((folder / "canary.json").read_text())["model_version"] in about.values()
    sentence = run(check=str(folder))
    assert sentence in capsys.readouterr().out
    assert f"holds {exported.count} of {exported.count} items" in sentence
    # Written again, it takes the place of the first.
    run(to="qdrant")
    payload = json.loads((folder / "points-00000.json").read_text())["points"][0]["payload"]
    assert set(payload) == {"item_id", "model_version"}


def test_a_weight_of_popularity_is_another_version(run):
    run(to="redis")
    folder = str(run.workdir / "stores" / "redis")
    with pytest.raises(UserError, match=r"300 of its 300 rows .*popularity0\.25"):
        run(check=folder, weight=0.25)
    run(to="redis", weight=0.25)
    assert "every vector" in run(check=folder, weight=0.25)


def test_a_store_of_unit_length_is_recognized(run):
    about = run(to="milvus", unit_length=True)
    assert about["metric"] == "cosine" and about["radius"] > 1
    assert "every vector" in run(check=str(run.workdir / "stores" / "milvus"))


def test_what_others_wrote_stays(run, tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    run(to="pgvector", export_folder=str(folder), export_table="shop")
    assert 'CREATE TABLE "shop"' in (folder / "load.sql").read_text()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which --mode=export did not write"):
        run(to="pgvector", export_folder=str(folder))
    (folder / "notes.txt").unlink()
    (folder / "export.json").unlink()
    with pytest.raises(UserError, match=r"holds canary\.json, which"):
        run(to="pgvector", export_folder=str(folder))
    with pytest.raises(UserError, match=r"load\.sql is a file; name a folder"):
        run(to="pgvector", export_folder=str(folder / "load.sql"))


def test_a_mistake_leaves_the_last_export(run):
    run(to="opensearch")
    path = run.workdir / "stores" / "opensearch" / "export.json"
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"--items has no column 'nme'; did you mean 'name'\?"):
        run(to="opensearch", export_columns="nme")
    assert path.read_bytes() == before and len(list(path.parent.parent.iterdir())) == 1


@pytest.mark.parametrize(
    "settings, sentence",
    [
        (
            {},
            r"--mode=export needs --to, one of lancedb, .*huggingface, --export_model, "
            r"--spark_tables or --check",
        ),
        ({"to": "qdrant", "check": "a"}, r"--check compares a store; give it alone"),
        ({"to": "qdrant", "export_table": "My items"}, r"--export_table=My items: small letters"),
        ({"to": "chroma"}, r"--to"),
    ],
)
def test_settings_that_do_not_fit(run, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        run(**settings)


def test_a_folder_for_the_hub_has_the_scores_of_these_vectors(run, trained):
    about = run(to="huggingface", export_columns="all", hub_license="mit")
    folder = run.workdir / "stores" / "huggingface"
    text = (folder / "README.md").read_text()
    # Only a current evaluation is shown.
    assert "were not evaluated" in text and 'license: "mit"' in text
    for name in ("eval.json", RANKS_FILE, RANKER_FILE):
        if (pathlib.Path(trained.workdir) / name).exists():
            shutil.copy(pathlib.Path(trained.workdir) / name, run.workdir / name)
    again = run(to="huggingface")
    text = (folder / "README.md").read_text()
    value = json.loads((run.workdir / "eval.json").read_text())["methods"]["pinsage"]["overall"]
    assert f"| pinsage | {value['all']['metrics']['hit@10']['value']:.3f} " in text
    assert about["model_version"] == again["model_version"] and "README.md" in again["files"]
    assert "every vector" in run(check=str(folder))
    with pytest.raises(UserError, match=r"300 of its 300 rows"):
        run(check=str(folder), weight=0.25)
