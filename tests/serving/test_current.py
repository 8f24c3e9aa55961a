"""The service that answers is replaced by that of other files, and only by a whole one."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest
from embedded_catalog import write_csv

import pinsage_jax
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.serving import current
from pinsage_jax.serving.current import Current, stamp_of
from pinsage_jax.stages import serve


class Named:
    """A service that knows its name alone."""

    config = Config(mode="serve", workdir="w")

    def __init__(self, name):
        self.name = name

    def health(self):
        return {"step": self.name, "items": 1}


class Files:
    """The files of a workdir, a clock, and a Current that looks at both."""

    def __init__(self, monkeypatch):
        self.state, self.seconds, self.loads, self.outcomes = (0,), 0.0, [], []
        self.next = lambda: Named(f"of {self.state[0]}")
        monkeypatch.setattr(current.time, "monotonic", lambda: self.seconds)
        self.current = Current(
            Named("first"), self.load, lambda: self.state, self.state, self.outcomes.append
        )

    def load(self):
        self.loads.append(self.state)
        return self.next()

    def look(self, times=1):
        for _ in range(times):
            self.current.check()
        return self.current.service.name


@pytest.fixture
def files(monkeypatch):
    return Files(monkeypatch)


def test_nothing_is_loaded_while_nothing_changes(files):
    assert files.look(5) == "first" and files.loads == []


def test_a_change_is_loaded_when_the_files_are_quiet(files):
    seen = []
    for state in (1, 2, 3, 3, 3, 3):
        files.state = (state,)
        seen.append(files.look())
    assert seen == ["first", "first", "first", "of 3", "of 3", "of 3"]
    assert files.loads == [(3,)] and files.outcomes == ["done"]


def test_what_changes_while_it_is_loaded_is_loaded_again(files):
    def torn():
        files.state = (files.state[0] + 1,)
        files.next = lambda: Named("whole")
        return Named("torn")

    files.next, files.state = torn, (1,)
    assert files.look(2) == "first"
    assert files.look(2) == "whole" and files.outcomes == ["done"]


@pytest.mark.parametrize(
    "error, sentence",
    [
        (UserError("It is damaged; make it again."), "It is damaged; make it again."),
        (KeyError("format"), "The new model could not be loaded (KeyError)."),
    ],
)
def test_a_bad_model_leaves_the_old_one(files, caplog, error, sentence):
    def fails():
        raise error

    files.next, files.state = fails, (1,)
    assert files.look(2) == "first"
    assert files.current.health()["reload_error"] == sentence
    assert f"The model before it is still served: {sentence}" in caplog.text
    # The same files are tried again after a while, which is logged once.
    assert files.look(3) == "first" and len(files.loads) == 1
    files.seconds = 61.0
    assert files.look(3) == "first" and len(files.loads) == 2
    assert files.outcomes == ["failed"]
    files.next, files.state = (lambda: Named("good")), (2,)
    assert files.look(2) == "good"
    assert files.current.health()["reload_error"] is None


def test_a_file_that_is_replaced_is_another_one(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_text("1")
    before = stamp_of(paths)
    assert before[1] is None and stamp_of(paths) == before
    (tmp_path / "c").write_text("2")
    (tmp_path / "c").rename(paths[0])
    assert stamp_of(paths) != before
    paths[0].unlink()
    assert stamp_of(paths) == (None, None)


def test_the_catalog_with_its_changes_is_served(catalog, tmp_path, caplog):
    config, vectors, features, _ = catalog
    workdir = tmp_path / "work"
    shutil.copytree(config.workdir, workdir)
    plain = Config(mode="serve", workdir=str(workdir), threads=1)
    before = serve.load_service(plain)
    assert before.health()["items"] == 80 and not before.health()["updated"]
    edges = write_csv(tmp_path / "edges.csv", ["collection_id", "item_id"], [("c0", "new")])
    row = ("new", " ".join(f"{value:.6f}" for value in features[3]), 1950)
    items = write_csv(tmp_path / "items.csv", ["item_id", "look", "year"], [row])
    changes = UpdateConfig(changed_edges=edges, changed_items=items)
    pinsage_jax.embed(dataclasses.replace(config, workdir=str(workdir), update=changes))
    with caplog.at_level("INFO", "absl"):
        after = serve.load_service(plain)
    assert after.health()["items"] == 81 and after.health()["updated"]
    assert "with its changes, from" in caplog.text
    near = after.neighbors("new", 5, columns=["year"])["neighbors"]
    assert len(near) == 5 and all(2000 <= entry["columns"]["year"] < 2007 for entry in near)
    # The trained network embeds items that no table holds.
    posted = after.neighbors_of_new_items([{"look": [1.0] * 5, "year": 2001}], [], 80)
    assert "new" in {entry["item_id"] for entry in posted["items"][0]["neighbors"]}
    # The old service answers as before, also when its files are gone, columns among them.
    shutil.rmtree(workdir)
    found = before.neighbors("i3", 5, columns=["year"])["neighbors"]
    scores = vectors @ vectors[3]
    scores[3] = -np.inf
    assert [entry["item_id"] for entry in found] == [f"i{row}" for row in np.argsort(-scores)[:5]]
    assert [entry["columns"]["year"] for entry in found] == [
        2000 + int(entry["item_id"][1:]) % 7 for entry in found
    ]
    with pytest.raises(UserError, match="does not exist"), contextlib.chdir(tmp_path):
        serve.load_service(plain)
