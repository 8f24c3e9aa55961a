"""Encoders through the stages: who must name them, who refuses others, what no file decides."""

import dataclasses
import inspect
import json
import pathlib
import shutil
import sys
import zlib

import command_line
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pinsage_jax
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.fields import with_saved
from pinsage_jax.config.settings import code_settings, remembered_fields
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.stages.prepare import prepare
from pinsage_jax.stages.serve import load_service

SMALL = {
    "epochs": 1, "hidden_dim": 8, "layer_dim": 8, "output_dim": 8, "spectral_dim": 4,
    "batch_size": 16, "random_negatives": 16, "pairs_per_epoch": 32, "num_walks": 20,
    "hard_walks": 20, "num_neighbors": 5, "bootstrap": 10, "threads": 1, "devices": 1,
}  # fmt: skip
ITEMS = 40
HOSTILE = "module_of_a_stranger"


def words(texts):
    out = np.zeros((len(texts), 8), np.float32)
    for row, text in enumerate(texts):
        for word in text.split():
            out[row, zlib.crc32(word.encode()) % 8] += 1
    return out


def others(texts):
    return words(texts)[:, ::-1]


# The same two as a module that a command names.
MODULE = (
    "import zlib\nimport numpy as np\n\n" + inspect.getsource(words) + inspect.getsource(others)
)


def pictures(contents):
    return np.array([[len(content), content[0], 1] for content in contents], np.float32)


def tables():
    rng = np.random.default_rng(0)
    rows = [(f"b{b}", f"i{i}") for b in range(30) for i in rng.choice(ITEMS, 6, False)]
    edges = pa.table(dict(zip(("collection_id", "item_id"), map(list, zip(*rows)))))
    items = pa.table(
        {
            "item_id": [f"i{n}" for n in range(ITEMS)],
            "title": [f"thing number {n} of kind {n % 4}" for n in range(ITEMS)],
            "photo": [bytes([n % 5, n]) for n in range(ITEMS)],
        }
    )
    return edges, items


NEW = {"item_id": ["n1", "n2"], "title": ["a new thing", None], "photo": [b"\1\2", None]}
BOTH = {"text_encoder": words, "image_encoder": pictures}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A saved model of text and pictures; for reading only."""
    folder = tmp_path_factory.mktemp("encoders")
    pq.write_table(pa.table(NEW), folder / "new.parquet")
    pq.write_table(pa.table(NEW).slice(1), folder / "empty.parquet")
    model = pinsage_jax.PinSage(workdir=folder / "run", **BOTH, **SMALL)
    return model.fit(*tables(), image=["photo"])


def test_the_object_uses_its_encoders_and_does_not_store_them(fitted):
    features = open_prepared(fitted.workdir_).features
    titles = tables()[1].column("title").to_pylist()
    vectors = words(titles)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert features.shape == (ITEMS, 11)
    order = [int(name[1:]) for name in fitted.item_ids_]
    np.testing.assert_allclose(features[:, :8], vectors[order], rtol=1e-6)
    assert repr(fitted).startswith("PinSage(batch_size=16, bootstrap=10, devices=1")
    assert f"text_encoder={__name__}:words" in repr(fitted)
    new = fitted.embed(pa.table(NEW))
    loaded = pinsage_jax.PinSage.load(fitted.workdir_, **BOTH)
    np.testing.assert_array_equal(loaded.embed(pa.table(NEW)), new)
    without = pinsage_jax.PinSage.load(fitted.workdir_)
    assert without.similar_items("i3", n=3).num_rows == 3
    assert without.embed(pa.table(NEW).slice(1)).shape == (1, 8)
    with pytest.raises(UserError, match=r"encoded by '.*:words': give text_encoder in this"):
        without.embed(pa.table(NEW))
    with pytest.raises(UserError, match=r"^text_encoder=.*:others is not the encoder of the"):
        pinsage_jax.PinSage.load(fitted.workdir_, text_encoder=others).embed(pa.table(NEW))


@pytest.fixture
def copied(fitted, tmp_path, monkeypatch):
    """A copy of the model's workdir in the current folder, beside a module with encoders."""
    shutil.copytree(fitted.workdir_.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / f"{HOSTILE}.py").write_text(
        "import pathlib\npathlib.Path('marker').touch()\ndef encode(values): return [[1.0]] * 8\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("mine", HOSTILE):
        sys.modules.pop(name, None)


def failure(capsys, *arguments):
    assert command_line.run("--workdir=run", *arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_new_items_on_the_command_line(copied, capsys):
    # Pictures of n1 need their encoder too, which is not given first.
    said = failure(capsys, "--mode=embed", "--new_items=new.parquet")
    assert "There is text in row 1 of new.parquet (item 'n1')" in said and "give --text" in said
    said = failure(capsys, "--mode=embed", "--new_items=new.parquet", "--text_encoder=mine:words")
    assert "There is a picture in row 1 of" in said and "give --image_encoder in" in said
    said = failure(capsys, "--mode=embed", "--new_items=new.parquet", "--text_encoder=mine:others")
    assert "--text_encoder=mine:others is not the encoder of the catalog's text" in said
    assert command_line.run("--workdir=run", "--mode=embed", "--new_items=empty.parquet") == 0


def test_the_server_needs_the_encoder_for_items_with_text(copied):
    from pinsage_jax.serving.service import RequestError

    bare = load_service(pinsage_jax.settings("run", mode="serve"))
    assert bare.neighbors_of_new_items([{"title": "", "photo": None}], [], 2)["items"]
    with pytest.raises(RequestError, match="give --text_encoder in this command too"):
        bare.neighbors_of_new_items([{"title": "new thing", "photo": None}], [], 2)
    service = load_service(pinsage_jax.settings("run", mode="serve", text_encoder="mine:words"))
    rows = [{"title": "a thing", "photo": None}]
    assert len(service.neighbors_of_new_items(rows, [], 2)["items"]) == 1
    with pytest.raises(UserError, match="mine:others is not the encoder"):
        load_service(pinsage_jax.settings("run", mode="serve", text_encoder="mine:others"))


def name_everywhere(run, name):
    """Writes a name to every place of a workdir that could name a callable."""
    with (run / "run.flags").open("a") as lines:
        for flag in code_settings():
            lines.write(f'--{flag}={name}\n#: {flag}="{name}"\n')
    saved = json.loads((run / "object.json").read_text())
    (run / "object.json").write_text(json.dumps({**saved, "text_encoder": name}))
    path = run / "prepared" / "features" / "transform.json"
    transform = json.loads(path.read_text())
    for block in transform["blocks"]:
        block["name"] = name
    files.write_json(path, transform)
    manifest = files.read_checked_json(run / "prepared" / "manifest.json")
    for about in manifest["features"]["encoders"].values():
        about["name"] = name
    manifest["checksums"]["features/transform.json"] = files.checksum(path)
    files.write_checked_json(run / "prepared" / "manifest.json", manifest)
    for step in (run / "checkpoints").glob("[0-9]*"):
        meta = json.loads((step / "meta" / "metadata").read_text())
        meta["config"]["encoders"] = dict.fromkeys(code_settings(), name)
        (step / "meta" / "metadata").write_text(json.dumps(meta))
        sums = files.read_json(step / "checksums.json")
        del sums["fingerprint"]
        sums["files"]["meta/metadata"] = files.checksum(step / "meta" / "metadata")
        files.write_json(step / "checksums.json", sums | {"fingerprint": files.fingerprint(sums)})


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["--mode=neighbors", "--query=i3"], 0),
        (["--mode=prepare"], 0),
        (["--mode=train"], 0),
        (["--mode=embed"], 0),
        (["--mode=evaluate"], 0),
        (["--mode=embed", "--new_items=empty.parquet"], 0),
        (["--mode=embed", "--new_items=new.parquet"], 2),
        (["--mode=neighbors", "--new_items=new.parquet"], 2),
        (["--mode=embed", "--changed_items=new.parquet"], 2),
        (["--retrain"], 2),
    ],
)
def test_nothing_in_a_workdir_names_what_is_run(copied, capsys, arguments, code):
    name = f"{HOSTILE}:encode"
    name_everywhere(copied / "run", name)
    assert command_line.run("--workdir=run", *arguments) == code
    if code:
        assert f"encoded by '{name}': give --" in capsys.readouterr().err
    assert not (copied / "marker").exists() and HOSTILE not in sys.modules


def test_nothing_in_a_workdir_names_what_a_server_or_python_runs(copied):
    run, name = copied / "run", f"{HOSTILE}:encode"
    name_everywhere(run, name)
    assert pinsage_jax.PinSage.load(run).config_.encoders.text_encoder == ""
    load_service(pinsage_jax.settings("run", mode="serve"))
    assert not (copied / "marker").exists() and HOSTILE not in sys.modules
    # The module is a loaded gun: named in a command, it is imported.
    command_line.run("--workdir=run", "--mode=prepare", f"--text_encoder={name}")
    assert (copied / "marker").exists()


def test_settings_that_name_code_come_from_no_file():
    assert code_settings() == {"text_encoder", "image_encoder"}
    assert not code_settings() & remembered_fields().keys()
    config = pinsage_jax.settings("w")
    for saved in ({"encoders": {"text_encoder": "a:b"}}, {"text_encoder": "a:b"}):
        assert with_saved(config, saved) == config


def test_a_run_flags_that_is_given_as_a_flagfile_names_no_code_either(tmp_path):
    stranger, own = tmp_path / "run.flags", tmp_path / "night.flags"
    stranger.write_text("--seed=3\n-text_encoder=a:b\n")
    own.write_text("--text_encoder=a:b\n")
    first = ("--workdir=w", "--synthetic")
    assert command_line.parsed(*first, f"--flagfile={own}").encoders.text_encoder == "a:b"
    own.write_text(f"--flagfile={stranger}\n")
    for path in (stranger, own):
        with pytest.raises(UserError, match=r"run\.flags, line 2: '-text_encoder=a:b' names code"):
            command_line.parsed(*first, f"--flagfile={path}")


def prepared_with(folder, **settings):
    config = pinsage_jax.settings(folder, **{"spectral_dim": 0, **settings})
    return prepare(config).manifest["fingerprint"]


def test_prepared_tables_and_their_encoders(tmp_path):
    edges, items = tables()
    paths = {"edges": tmp_path / "edges.parquet", "items": tmp_path / "items.parquet"}
    pq.write_table(edges, paths["edges"])
    pq.write_table(items, paths["items"])
    folder, calls = tmp_path / "run", []

    def counted(texts):
        calls.append(len(texts))
        return words(texts)

    first = prepared_with(folder, **paths, text_encoder=counted)
    # The other calls are of the fixed text.
    assert [count for count in calls if count > 1] == [ITEMS]
    # Up to date with the same encoder by another name, and without one.
    calls.clear()
    assert prepared_with(folder, **paths, text_encoder=lambda texts: counted(texts)) == first
    assert max(calls) == 1 and prepared_with(folder, **paths) == first
    # Without a model another encoder prepares anew.
    second = prepared_with(folder, **paths, text_encoder=others)
    assert second != first and open_prepared(folder).features.shape == (ITEMS, 8)
    # Other tables need it again.
    pq.write_table(items.slice(1), paths["items"])
    with pytest.raises(UserError, match=r"tables of .*prepared are read again.*give --text_enc"):
        prepared_with(folder, **paths)
    assert open_prepared(folder).manifest["fingerprint"] == second
    assert prepared_with(folder, **paths, text_encoder=others) != second


def test_another_encoder_is_refused_before_anything_is_encoded(copied):
    calls = []

    def recorded(texts):
        calls.append(len(texts))
        return others(texts)

    config = pinsage_jax.settings("run", text_encoder=recorded)
    with pytest.raises(UserError, match="recorded is not the encoder of the catalog's text"):
        prepare(config)
    assert calls == [1]
    shutil.rmtree(pathlib.Path("run/prepared"))
    # Not even a folder that is gone lets the model go on with other features.
    with pytest.raises(UserError, match="needs --image_encoder"):
        prepare(dataclasses.replace(config, encoders=type(config.encoders)()))
