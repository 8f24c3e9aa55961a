"""WORKDIR/run.flags: what a run remembers, and commands with --workdir alone."""

import dataclasses
import pathlib
import re

import pyarrow.parquet as pq
import pytest
import small_shop
from absl import logging as absl_logging
from command_line import parsed, run

import pinsage_jax
from pinsage_jax.config.data import SyntheticCatalog
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.flagfiles import RUN_FLAGS
from pinsage_jax.stages.runs import first_item_id, remember


def same(first, second, without=("mode", "threads")):
    empty = dict.fromkeys(without)
    return dataclasses.replace(first, **empty) == dataclasses.replace(second, **empty)


@pytest.fixture
def messages(monkeypatch):
    """What is logged, level info and above."""
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(absl_logging, level, lambda text, *a: lines.append(text % a))
    return lines


def test_all_settings_of_a_run_come_back(tmp_path):
    odd = pinsage_jax.settings(
        tmp_path,
        edges="a #1 b.csv",
        items=" spaced .csv",
        category_separator="\t",
        preset="paper",
        num_layers=1,
        popularity_bias=True,
        cold_start_bias=None,
        title_column="two\nlines",
        adam_b2=0.5,
        symmetric=True,
        seed=4,
        train_pairs="naïve.csv",
        embed_walks=None,
    )
    remember(odd)
    back = pinsage_jax.settings(tmp_path)
    data = {name: str(pathlib.Path(getattr(odd.data, name)).absolute())
            for name in ("edges", "items", "train_pairs")}  # fmt: skip
    assert same(back, dataclasses.replace(odd, data=dataclasses.replace(odd.data, **data)))
    assert same(parsed(f"--workdir={tmp_path}"), back)


def test_a_generated_catalog_comes_back(tmp_path):
    own = SyntheticCatalog(items=50, collections=9, edges=90)
    made = pinsage_jax.settings(tmp_path, synthetic=True, synthetic_catalog=own)
    remember(made)
    assert same(pinsage_jax.settings(tmp_path), made)
    assert same(parsed(f"--workdir={tmp_path}"), made)


def test_what_concerns_one_command_is_not_remembered(tmp_path):
    made = parsed(
        f"--workdir={tmp_path}", "--synthetic", "--mode=neighbors", "--query=a", "--k=3",
        "--devices=2", "--serve_port=9", "--min_degree=4", "--threads=3", "--data_dir=/x",
        "--engine=spark", "--target=b", "--recommend_by=mean", "--seed=2",
    )  # fmt: skip
    remember(made)
    lines = (tmp_path / RUN_FLAGS).read_text().splitlines()
    assert lines[0].startswith("# ") and lines[1:] == ["--seed=2", "--synthetic=true"]


def test_the_command_line_then_flagfiles_then_what_is_remembered(tmp_path):
    remember(
        parsed(f"--workdir={tmp_path}", "--synthetic", "--seed=3", "--epochs=9", "--margin=.3")
    )
    flagfile = tmp_path / "a.flags"
    flagfile.write_text("--epochs=5\n--margin=0.1\n")
    config = parsed(f"--workdir={tmp_path}", f"--flagfile={flagfile}", "--epochs=7")
    # The flagfile's margin is the default, and given all the same.
    assert (config.seed, config.train.epochs, config.train.margin) == (3, 7.0, 0.1)
    made = pinsage_jax.settings(tmp_path, epochs=7, margin=0.1)
    assert same(made, config)
    assert parsed(f"--workdir={tmp_path}", "--preset=paper").train.epochs == 13.0


def test_a_preset_of_the_command_line_gives_way_to_its_flags_only(tmp_path):
    remember(parsed(f"--workdir={tmp_path}", "--synthetic", "--preset=paper", "--num_layers=1"))
    config = parsed(f"--workdir={tmp_path}", "--epochs=2")
    assert (config.model.num_layers, config.train.epochs, config.preset) == (1, 2.0, "paper")
    assert config.model.hidden_dim == 2048


@pytest.mark.parametrize("own", ["--edges=other.csv", "--synthetic"])
def test_a_command_that_names_its_data_is_a_run_of_its_own(tmp_path, own):
    remember(parsed(f"--workdir={tmp_path}", "--edges=e.csv", "--epochs=9", "--item_column=pin"))
    config = parsed(f"--workdir={tmp_path}", own)
    assert (config.train.epochs, config.data.item_column) == (None, "item_id")


def test_run_flags_is_a_flagfile(tmp_path):
    made = parsed(f"--workdir={tmp_path}", "--synthetic", "--nopopularity_bias", "--text_dim=9")
    remember(made)
    elsewhere = parsed("--workdir=w", f"--flagfile={tmp_path / RUN_FLAGS}")
    assert dataclasses.replace(elsewhere, workdir=made.workdir) == made


def test_one_line_says_what_was_remembered_and_one_what_is_unknown(tmp_path, messages):
    (tmp_path / RUN_FLAGS).write_text(
        "--synthetic=true\n--seed=3\n--nokeep_layers\n--flux=2\n--nogone\n#: adam_c=3\n"
        "--mode=train\n"
    )
    config = parsed(f"--workdir={tmp_path}", "--seed=4")
    assert (config.seed, config.mode, config.synthetic.synthetic) == (4, "pipeline", True)
    path = tmp_path / RUN_FLAGS
    assert messages == [
        f"{path}: this version remembers no setting named adam_c or flux or mode or nogone, "
        "and ignores it; remove the line.",
        f"{path} sets --keep_layers, --synthetic",
    ]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("--seed=x\n", "--seed=x ({path}, line 1): a value of another type is expected; remove"),
        ("#\n#: adam_b2=x\n", "{path}, line 2: 'x' is not JSON."),
        ("seed=3\n", "{path}, line 1: 'seed=3' is not a flag;"),
        ("\x00\udcff", "{path} cannot be read (not UTF-8 text)."),
    ],
)
def test_a_damaged_line_is_named(tmp_path, text, sentence):
    path = tmp_path / RUN_FLAGS
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    for ask in (lambda: parsed(f"--workdir={tmp_path}"), lambda: pinsage_jax.settings(tmp_path)):
        with pytest.raises(UserError) as caught:
            ask()
        assert str(caught.value).startswith(sentence.format(path=path))


# A run of tables whose columns have other names, from a folder that later commands leave.


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A finished pipeline; the folder holds tables and `run`, and is the current one no longer."""
    with small_shop.finished(tmp_path_factory.mktemp("shop")) as folder:
        pass
    return folder


def test_every_mode_needs_the_workdir_alone(shop, capfd):
    workdir = f"--workdir={shop / 'run'}"
    written = (shop / "run" / RUN_FLAGS).read_text()
    assert f"--edges={shop / 'edges.csv'}" in written.splitlines()

    def ok(*arguments):
        code = run(workdir, *arguments)
        assert code == 0, capfd.readouterr().err

    manifest = (shop / "run" / "embeddings" / "_manifest.json").read_bytes()
    stamp = (shop / "run" / "prepared").stat().st_mtime_ns
    ok()
    # Nothing was made anew: the settings are the same, and the paths name the same files.
    assert (shop / "run" / "embeddings" / "_manifest.json").read_bytes() == manifest
    assert (shop / "run" / "prepared").stat().st_mtime_ns == stamp
    for mode in ("prepare", "train", "evaluate", "report", "neighbors", "recommend"):
        ok(f"--mode={mode}")
    ok("--mode=neighbors", "--query=p3")
    ok("--mode=explain", "--query=p3", "--target=p4")
    new = [f"--new_items={shop / 'new_items.csv'}", f"--new_edges={shop / 'new_edges.csv'}"]
    ok("--mode=embed", *new)
    assert pq.read_table(shop / "run" / "new_embeddings")["item_id"].to_pylist() == ["q1"]
    ok("--mode=embed", f"--changed_edges={shop / 'new.csv'}")
    assert run(f"--workdir={shop / 'run' / 'updated'}", "--mode=neighbors", "--query=p119") == 0
    assert (shop / "run" / RUN_FLAGS).read_text() == written


def test_what_is_said_is_for_a_person(shop, capfd):
    """No dictionary, object or shape of the inside; what to do next comes last."""
    for mode in ("prepare", "train", "embed", "evaluate", "neighbors", "recommend"):
        assert run(f"--workdir={shop / 'run'}", f"--mode={mode}") == 0
    other = shop / "another"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shop)
        assert run(*small_shop.FLAGS, f"--workdir={other}") == 0
    lines = capfd.readouterr().err.splitlines()
    odd = [line for line in lines if re.search(r"\{'|\w+\(\w+=|\(\d+, \d+|frontier", line)]
    assert odd == []
    last = re.sub("^[0-9:]+ ", "", lines[-1])
    assert last == (
        f"next: open {other}/report.html; list related items with --workdir={other} "
        f"--mode=neighbors --query={first_item_id(str(other))}; "
        f"the vectors are in {other}/embeddings"
    )
    assert any(line.endswith(f"next: --workdir={shop / 'run'} --mode=train") for line in lines)


def test_the_library_needs_the_workdir_alone(shop):
    config = pinsage_jax.settings(shop / "run")
    assert config.data.item_column == "sku" and config.model.hidden_dim == 16
    assert pinsage_jax.load_graph(config).graph.num_items == 120
    ids, vectors = pinsage_jax.embeddings(config)
    assert vectors.shape == (120, 16)
    assert len(pinsage_jax.neighbors(config, [ids[0]])[ids[0]]) == 10
    assert pinsage_jax.train(config).interrupted is False
    again = pinsage_jax.embed(config)
    assert again["count"] == 120


def test_a_command_of_other_settings_leaves_what_is_remembered_with_its_model(shop):
    """Loading the graph with other settings of the model is no new run."""
    written = (shop / "run" / RUN_FLAGS).read_text()
    other = pinsage_jax.settings(shop / "run", hidden_dim=24)
    pinsage_jax.load_graph(other)
    assert (shop / "run" / RUN_FLAGS).read_text() == written
    with pytest.raises(UserError, match="hidden_dim=16 but this run asks for 24"):
        pinsage_jax.train(other)
    assert (shop / "run" / RUN_FLAGS).read_text() == written
