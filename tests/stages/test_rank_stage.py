"""The ranker in a run: fitted where validation is large enough, skipped with a reason otherwise."""

import dataclasses
import json
import pathlib
import shutil

import pytest
from absl import logging
from ranked_world import simple_model

from pinsage_jax.config.search import SearchConfig
from pinsage_jax.config.training import RetrainConfig
from pinsage_jax.export import writer
from pinsage_jax.ranking.saved_ranker import (
    RANKER_FILE,
    ranker_is_current,
    read_ranker,
    write_ranker,
)
from pinsage_jax.stages import search


@pytest.fixture(scope="module")
def copied(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank") / "run"
    shutil.copytree(trained.workdir, folder)
    return dataclasses.replace(trained, workdir=str(folder))


@pytest.fixture(autouse=True)
def _informed():
    logging.set_verbosity(logging.INFO)


def test_a_run_fits_no_ranker_on_few_pairs_and_says_so(copied, trained, caplog):
    assert not (pathlib.Path(trained.workdir) / RANKER_FILE).exists()
    assert (
        "rank" in json.loads((pathlib.Path(trained.workdir) / "costs.json").read_text())["seconds"]
    )
    with caplog.at_level("INFO"):
        search.rank_if_worth_it(copied)
    assert "pairs to fit it on, and 200 are needed" in caplog.text
    assert not ranker_is_current(copied)


@pytest.mark.parametrize("limit, reason", [("_MOST_ITEMS", "a list takes"), (None, "related_by")])
def test_other_reasons_are_named(copied, caplog, monkeypatch, limit, reason):
    config = copied
    if limit:
        monkeypatch.setattr(search, limit, 10)
    else:
        config = dataclasses.replace(copied, search=SearchConfig(related_by="vectors"))
    with caplog.at_level("INFO"):
        search.rank_if_worth_it(config)
    assert "no ranker is fitted" in caplog.text and reason in caplog.text


def test_a_run_fits_the_ranker_of_its_embeddings_once(copied, caplog, monkeypatch):
    monkeypatch.setattr(search, "_LEAST_PAIRS", 5)
    search.rank_if_worth_it(copied)
    path = pathlib.Path(copied.workdir) / RANKER_FILE
    assert ranker_is_current(copied)
    before = path.stat().st_mtime_ns
    with caplog.at_level("INFO"):
        search.rank_if_worth_it(copied)
    assert "up to date" in caplog.text and path.stat().st_mtime_ns == before
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"format": saved["format"] - 1}))
    assert not ranker_is_current(copied)


def test_a_refit_keeps_the_ranker_of_the_model_that_validation_judged(trained, tmp_path, caplog):
    first = dataclasses.replace(trained, workdir=str(tmp_path / "run"))
    shutil.copytree(trained.workdir, first.workdir)
    following = dataclasses.replace(
        trained,
        workdir=f"{first.workdir}/next",
        retraining=RetrainConfig(refit=True),
        split=dataclasses.replace(trained.split, validation_collections=0.0),
    )
    shutil.copytree(trained.workdir, following.workdir)
    manifest = pathlib.Path(following.workdir) / writer.FOLDER / writer.MANIFEST
    saved = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(saved | {"files": saved["files"] | {"more": "1"}}))
    with caplog.at_level("INFO"):
        search.rank_if_worth_it(following)
    assert "no pair is left to fit it on" in caplog.text
    write_ranker(first, simple_model(), {"measured": {}})
    with caplog.at_level("INFO"):
        search.rank_if_worth_it(following)
    assert "validation fitted" in caplog.text and ranker_is_current(following)
    # Each is of its own embeddings, with the same model.
    both = [read_ranker(config) for config in (first, following)]
    assert both[0]["model"] == both[1]["model"]
    assert both[0]["embeddings"] != both[1]["embeddings"]
