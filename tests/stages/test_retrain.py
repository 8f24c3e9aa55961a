"""The nightly job: rewritten tables are refused, --retrain and --init_from train on them."""

import json
import os
import pathlib
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_shop
from command_line import run

import pinsage_jax
from pinsage_jax.config.data import catalog_of_size
from pinsage_jax.core import exchange, workdir
from pinsage_jax.core.costs import COSTS_FILE
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.flagfiles import RUN_FLAGS
from pinsage_jax.data.ids import IdTable
from pinsage_jax.evaluation.evaluate import EVAL_FILE
from pinsage_jax.export import writer
from pinsage_jax.ranking.saved_ranker import RANKER_FILE
from pinsage_jax.recommend import recommend
from pinsage_jax.retrieval import neighbors
from pinsage_jax.stages import modes, pipeline, update
from pinsage_jax.stages.checkpoint import SavedModel, carried_over, chosen_checkpoint
from pinsage_jax.stages.runs import validation_split_of
from pinsage_jax.training.compatibility import CHECKPOINTS


def contents(folder):
    """Every file of a workdir but its lock and the new model's, with its time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.name != workdir.LOCK and name.parts[0] != exchange.NEXT:
            found[str(name)] = (path.stat().st_mtime_ns, path.stat().st_size)
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The folder of tables, with a finished workdir `run`; its tests go on from one another."""
    with small_shop.finished(tmp_path_factory.mktemp("shop")) as folder:
        yield folder


def test_rewritten_tables_are_refused_and_replace_nothing(shop, capfd):
    before = contents(shop / "run")
    small_shop.write_tables(shop, items=130, edges=950)
    for flags in (small_shop.FLAGS, (), ("--mode=prepare",)):
        assert run(*flags, "--workdir=run") == 2
        message = capfd.readouterr().err.splitlines()[-1]
        assert message.startswith(
            "error: The model in run was trained on a catalog of 120 items but the tables have now "
            "130, "
        )
        assert "--retrain" in message and "nothing was replaced" in message
        assert contents(shop / "run") == before
    assert run("--workdir=run", "--mode=neighbors", "--query=p3") == 0


def test_other_edges_of_the_same_numbers_are_refused_too(shop, capfd):
    small_shop.write_tables(shop)
    edges = (shop / "edges.csv").read_text().splitlines()
    moved = [line for line in edges if line.startswith('"b0"')]
    text = "\n".join(edges).replace('"b0"', '"b_"').replace('"b1"', '"b0"').replace('"b_"', '"b1"')
    assert moved
    (shop / "edges.csv").write_text(text + "\n")
    before = contents(shop / "run")
    assert run("--workdir=run") == 2
    assert "was trained on other edges than the tables have now;" in capfd.readouterr().err
    assert contents(shop / "run") == before


def test_other_features_are_refused_too(shop, capfd):
    small_shop.write_tables(shop)
    text = (shop / "items.csv").read_text()
    (shop / "items.csv").write_text(text.replace("w3", "w4"))
    assert run("--workdir=run") == 2
    assert "was trained on other features than the tables have now;" in capfd.readouterr().err


def example_model(workdir, **synthetic):
    """A checkpoint, in name alone, of a model that was trained on an example or on tables."""
    step = workdir / CHECKPOINTS / "3"
    (step / "meta").mkdir(parents=True, exist_ok=True)
    (step / "checksums.json").write_text("{}")
    meta = {"config": {"synthetic": synthetic}, "data": {}}
    (step / "meta" / "metadata").write_text(json.dumps(meta))


@pytest.mark.parametrize("mode", ["prepare", "doctor", "pipeline"])
def test_another_example_is_refused_before_its_tables_are_written(mode, tmp_path, capfd):
    of_a_size = {"synthetic": True, "synthetic_size": "60x300", "synthetic_catalog": None}
    own = {**of_a_size, "synthetic_catalog": dict(vars(catalog_of_size("80x301")))}
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "edges.parquet").write_text("as it was")
    for saved, size, sentence in (
        (of_a_size, "80x300", "on a catalog of 60 items but the tables have now 80, "),
        (of_a_size, "60x400", "with edges=300 but the tables have now 400; nothing"),
        (own, "80x300", "with edges=301 but the tables have now 300; nothing"),
        ({"synthetic": False}, "60x300", "on other tables than the example of --synthetic; "),
    ):
        example_model(tmp_path, **saved)
        before = contents(tmp_path)
        flags = (f"--workdir={tmp_path}", "--synthetic", f"--synthetic_size={size}")
        assert run(*flags, f"--mode={mode}") == 2
        message = capfd.readouterr().err.splitlines()[-1]
        assert message.startswith(f"error: The model in {tmp_path} was trained {sentence}")
        assert contents(tmp_path) == before


def test_tables_that_were_written_again_alike_go_on(shop):
    small_shop.write_tables(shop)
    assert run("--workdir=run") == 0


def test_a_new_model_takes_the_place_of_the_old_one(shop, monkeypatch, capfd):
    small_shop.write_tables(shop, items=130, edges=950)
    folder = shop / "run"
    before, config = contents(folder), pinsage_jax.settings("run")
    old_ids, _ = pinsage_jax.embeddings(config)

    def killed(config):
        raise SystemExit("killed")

    seen = []

    def evaluate_beside_a_command_on_the_old_model(config, stage=pipeline.evaluate):
        # The old one is not locked meanwhile.
        seen.append(run("--workdir=run", "--mode=neighbors", "--query=p3"))
        with workdir.locked("run"):
            seen.append(contents(folder) == before)
        return stage(config)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "embed", killed)
        with pytest.raises(SystemExit):
            run("--workdir=run", "--retrain", "--init_from=run")
    assert contents(folder) == before
    step = max(int(p.name) for p in (folder / "next" / "checkpoints").iterdir())
    assert step == 10
    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", evaluate_beside_a_command_on_the_old_model)
        assert run("--workdir=run", "--retrain", "--init_from=run") == 0
    assert "next/checkpoints holds the finished run" in capfd.readouterr().err
    assert seen == [0, True]
    assert not (folder / "next").exists() and not (folder / "replacing").exists()
    ids, vectors = pinsage_jax.embeddings(pinsage_jax.settings("run"))
    assert len(ids) == 130 and vectors.shape == (130, 16)
    assert "--epochs=2.0" in (folder / "run.flags").read_text()
    # The one before is whole as well.
    assert pinsage_jax.embeddings(pinsage_jax.settings(folder / "previous"))[0] == old_ids
    assert run("--workdir=run", "--mode=embed", f"--changed_edges={shop / 'new.csv'}") == 0
    assert run("--workdir=run") == 0


def test_a_missing_model_is_reported_before_any_work(shop, capfd):
    assert run("--workdir=other", *small_shop.FLAGS, "--init_from=nowhere") == 2
    assert "--init_from=nowhere: nowhere/checkpoints holds no" in capfd.readouterr().err
    assert not (shop / "other" / "prepared").exists()


def test_flags_that_do_not_go_together():
    for values in ({"retrain": True}, {"init_from": "x"}):
        with pytest.raises(UserError, match="needs --mode=pipeline"):
            pinsage_jax.settings("w", mode="embed", **values)


# The exchange.


def made(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "file").write_text(text)


def names(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("older", [False, True])
def test_killed_at_any_step_the_exchange_is_whole_or_not_begun(tmp_path, monkeypatch, older):
    """Every system call that changes names fails once; what is found next is old or new."""

    class Killed(BaseException):
        pass

    def start(folder):
        made(folder, prepared="old", embeddings="old", index="old", layers="old", notes="mine")
        made(folder / "next", prepared="new", embeddings="new", checkpoints="new")
        if older:
            made(folder / "previous", prepared="older", explain="older")

    def counted(call, left):
        def wrapped(*arguments, **named):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return call(*arguments, **named)

        return wrapped

    start(tmp_path / "undisturbed")
    exchange.replace_by_next(tmp_path / "undisturbed")
    after = names(tmp_path / "undisturbed")
    assert after == {
        "prepared/file": "new", "embeddings/file": "new", "checkpoints/file": "new",
        "notes/file": "mine", "previous/prepared/file": "old", "previous/embeddings/file": "old",
        "previous/index/file": "old",
    }  # fmt: skip
    decided = []
    for count in range(100):
        folder = tmp_path / f"killed{count}"
        start(folder)
        left = [count]
        with monkeypatch.context() as patch:
            for name in ("rename", "rmdir", "unlink", "fsync"):
                patch.setattr(os, name, counted(getattr(os, name), left))
            patch.setattr(pathlib.Path, "mkdir", counted(pathlib.Path.mkdir, left))
            try:
                exchange.replace_by_next(folder)
            except Killed:
                done = False
            else:
                done = True
        with workdir.opened(folder):
            found = names(folder)
        found.pop(".lock", None)
        decided.append(found["prepared/file"] == "new")
        if decided[-1]:
            assert found == after, count
        else:
            assert found["embeddings/file"] == found["index/file"] == "old"
            assert found["next/prepared/file"] == found["next/checkpoints/file"] == "new"
        if done:
            break
    assert decided[0] is False and decided[-1] and decided == sorted(decided)
    assert len(decided) > 10


def test_everything_that_is_made_from_a_model_leaves_with_it():
    made = (
        writer.FOLDER, writer.NEW_FOLDER, neighbors.RELATED_FILE, neighbors.QUERIES_FILE,
        neighbors.NEW_FILE, RANKER_FILE, recommend.RECOMMENDATIONS_FILE, recommend.SCORES_FILE,
        recommend.CHOICE_FILE, EVAL_FILE, update.FOLDER, CHECKPOINTS, COSTS_FILE, RUN_FLAGS,
    )  # fmt: skip
    assert set(made) <= set(exchange._OF_A_MODEL)


def test_a_first_model_leaves_nothing_before_it(tmp_path):
    made(tmp_path / "next", prepared="new")
    exchange.replace_by_next(tmp_path)
    assert names(tmp_path) == {"prepared/file": "new"}
    assert not (tmp_path / "previous").exists()


def test_an_exchange_that_was_decided_is_completed(tmp_path):
    made(tmp_path / "replacing", prepared="new")
    (tmp_path / "replacing" / "exchange.json").write_text(json.dumps(["prepared"]))
    exchange.complete(tmp_path)
    assert names(tmp_path) == {"prepared/file": "new"}


def test_only_modes_that_read_go_without_the_lock():
    free = [
        mode for mode in modes.MODULES
        if modes.only_reads(pinsage_jax.settings(
            "w", mode=mode, synthetic=True, query="a", target="b", compare_with="c", edges="e",
            **({"to": "qdrant"} if mode == "export" else {}),
            **({"follow": "folder"} if mode == "follow" else {}),
        ))
    ]  # fmt: skip
    assert free == ["neighbors", "serve", "follow"]


# The start from another model.


def catalog(items, collections):
    return types.SimpleNamespace(
        item_ids=IdTable(pa.array(items, pa.large_string())),
        collection_ids=IdTable(pa.array(collections, pa.large_string())),
    )


@pytest.mark.parametrize("with_collections", [False, True])
def test_neighbor_embeddings_follow_their_ids(with_collections):
    old = catalog(["a", "b", "c"], ["x", "y"])
    new = catalog(["b", "d", "a"], ["y", "z"])
    rows = (5, 5) if with_collections else (3, 3)
    table = np.arange(5.0 * 2, dtype=np.float32).reshape(5, 2)[: rows[0]]
    path = "params/params/neighbor_embeddings"
    saved = SavedModel(
        "w", 7, {path: table, "params/params/q/kernel": np.ones((4, 2), np.float32),
                 "params/params/out/kernel": np.ones((3, 3), np.float32)}, old,
    )  # fmt: skip
    params = {
        "params": {
            "neighbor_embeddings": np.full((rows[1], 2), -1, np.float32),
            "q": {"kernel": np.zeros((4, 2), np.float32)},
            "out": {"kernel": np.zeros((9, 3), np.float32)},
        }
    }
    found = carried_over(saved, new, params)["params"]
    assert found["neighbor_embeddings"][:3].tolist() == [[2, 3], [-1, -1], [0, 1]]
    if with_collections:
        assert found["neighbor_embeddings"][3:].tolist() == [[8, 9], [-1, -1]]
    assert (found["q"]["kernel"] == 1).all() and (found["out"]["kernel"] == 0).all()


def test_a_model_of_other_shapes_is_refused():
    saved = SavedModel("w", 7, {"params/kernel": np.ones((4, 2))}, catalog(["a"], ["x"]))
    with pytest.raises(UserError, match="--init_from=w: no array of its model has the shape"):
        carried_over(saved, catalog(["a"], ["x"]), {"kernel": np.zeros((4, 3))})


# The last training, on everything.


def test_refit_trains_on_every_edge_for_as_long_as_validation_chose(shop, capfd):
    small_shop.write_tables(shop)
    split = ["--edges=edges.csv", "--collection_column=basket", "--item_column=sku"]
    assert run(*split, "--mode=split", "--split_share=0.3", "--workdir=parts") == 0
    parts = shop / "parts" / "split"
    tables = [parts / f"{name}_edges.parquet" for name in ("train", "withheld")]
    rows = [pq.read_table(path).num_rows for path in tables]
    assert sum(rows) == 900 and min(rows) > 0
    first = [flag for flag in small_shop.FLAGS if not flag.startswith("--edges=")]
    first += [f"--edges={tables[0]}", f"--eval_pairs={parts / 'eval_pairs.parquet'}"]
    assert run(*first, "--epochs=4", "--validate_every=4", "--workdir=shipped") == 0
    config = pinsage_jax.settings("shipped")
    checkpoints, step = chosen_checkpoint(config)
    saved = checkpoints.metrics(step)
    before = pinsage_jax.load_graph(config).graph
    assert run("--workdir=shipped", "--refit", "--edges=edges.csv") == 0
    config = pinsage_jax.settings("shipped")
    data = pinsage_jax.load_graph(config)
    assert data.graph.num_edges > before.num_edges and len(data.eval_pairs) == 0
    assert data.graph.num_items == 120
    held = validation_split_of(config, data)
    assert held.train_graph.num_edges == data.graph.num_edges and len(held.pairs) == 0
    _, last = chosen_checkpoint(config)
    assert (last, config.train.max_steps) == (step, step)
    assert config.train.pairs_per_epoch == 320 and config.train.epochs == 4.0
    assert config.embed.cold_start_bias == pytest.approx(saved["cold_start_bias"])
    assert config.data.item_column == "sku" and config.data.eval_pairs == ""
    assert run("--workdir=shipped", "--mode=neighbors", "--query=p3") == 0
    # The one that was measured stays beside it.
    assert (shop / "shipped" / "previous" / "eval.json").exists()


def test_refit_needs_a_model(shop, capfd):
    assert run("--workdir=none", "--refit", *small_shop.FLAGS) == 2
    assert "--refit needs a model that validation has judged: " in capfd.readouterr().err
    assert not (shop / "none").exists()


def test_time_splits_write_what_they_withhold(tmp_path):
    times = np.arange(60)
    table = {
        "collection_id": [f"c{n % 7}" for n in times], "item_id": [f"i{n % 20}" for n in times],
        "when": times, "note": [f"n{n}" for n in times],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "edges.parquet")
    code = run(
        "--mode=split", f"--edges={tmp_path / 'edges.parquet'}", "--time_column=when",
        "--split_by=time", "--split_cut=45", f"--workdir={tmp_path / 'w'}",
    )  # fmt: skip
    assert code == 0
    folder = tmp_path / "w" / "split"
    assert pq.read_table(folder / "train_edges.parquet")["when"].to_pylist() == list(range(46))
    withheld = pq.read_table(folder / "withheld_edges.parquet")
    assert withheld["when"].to_pylist() == list(range(46, 60))
    assert withheld["note"].to_pylist() == [f"n{n}" for n in range(46, 60)]
    assert "withheld_edges.parquet" in json.loads((folder / "manifest.json").read_text())["files"]
