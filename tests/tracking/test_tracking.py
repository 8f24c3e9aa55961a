"""What a run leaves about itself: metrics.jsonl, TensorBoard events, costs."""

import datetime
import json
import os
import pathlib
import struct
import sys
import time
import types
from typing import ClassVar

import jax
import pytest
from command_line import parsed
from tensorboardX.proto.event_pb2 import Event

import pinsage_jax
from pinsage_jax.core import costs as costing
from pinsage_jax.core.costs import (
    COSTS_FILE,
    RUN_FILE,
    Costs,
    as_command,
    commanded,
    provenance,
)
from pinsage_jax.core.errors import UserError
from pinsage_jax.tracking import schema, trackers
from pinsage_jax.tracking.metrics_file import MetricsLog
from pinsage_jax.tracking.tensorboard_tracker import EVENTS_FOLDER
from pinsage_jax.tracking.trackers import open_trackers

ROOT = pathlib.Path(__file__).resolve().parents[2]


def scalars(folder):
    """(tag, step) -> value of every event file of a folder; records are framed as in TFRecord."""
    found = {}
    for path in sorted(pathlib.Path(folder).iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
            place += 12 + length + 4
    return found


def lines_of(workdir):
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_last_line_of_training_is_its_cost(trained):
    last = lines_of(trained.workdir)[-1]
    assert last["step"] == 30 and last["pairs"] == 30 * 64
    assert 0 < last["session_seconds"] == last["device_seconds"] < 600
    assert 0.0 <= last["wait_share"] <= 1.0
    assert 2**26 < last["peak_memory_bytes"] < 2**38


def test_costs_of_a_pipeline(trained):
    saved = json.loads((pathlib.Path(trained.workdir) / COSTS_FILE).read_text())
    assert {"prepare", "train", "embed", "evaluate"} <= set(saved["seconds"])
    assert saved["total_seconds"] == pytest.approx(sum(saved["seconds"].values()), abs=0.01)
    assert (saved["pairs"], saved["items"], saved["devices"]) == (1920, 300, 1)
    assert saved["device_seconds"] == saved["total_seconds"]


def test_costs_add_up_and_read_well(monkeypatch, tmp_path):
    now = iter([0.0, 2.0, 10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr(costing.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(costing, "peak_memory", lambda: 3 << 30)
    costs = Costs(devices=4, items=1234, pairs=5000, wait_share=0.25)
    for name in ("train", "embed", "train"):
        with costs.stage(name):
            pass
    assert costs.summary() == (
        "24 device-seconds (train 3 s, embed 3 s); 5,000 pairs; device waited 25% of training; "
        "1,234 items embedded; peak memory 3.00 GiB"
    )
    costs.save(tmp_path)
    saved = json.loads((tmp_path / COSTS_FILE).read_text())
    assert saved["seconds"] == {"train": 3.0, "embed": 3.0}
    assert saved["device_seconds"] == 24.0


def test_a_failed_stage_counts_too():
    costs = Costs()
    with pytest.raises(ValueError, match="x"), costs.stage("train"):
        raise ValueError("x")
    assert costs.seconds["train"] >= 0.0


def test_a_training_records_when_where_and_how_it_ran(trained):
    saved = json.loads((pathlib.Path(trained.workdir) / RUN_FILE).read_text())
    started = datetime.datetime.fromisoformat(saved["started"])
    assert started.utcoffset() == datetime.timedelta(0)
    assert datetime.timedelta(0) < datetime.datetime.now(datetime.UTC) - started < (
        datetime.timedelta(hours=2)
    )  # fmt: skip
    assert saved["versions"]["pinsage_jax"] == pinsage_jax.__version__
    assert saved["versions"]["jax"] == jax.__version__
    assert saved["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert saved["machine"]["device"] == "cpu" and saved["machine"]["cores"] >= 1
    # The fixture calls the stages from Python, without a command line.
    assert saved["command"] == ""


def test_a_command_is_recorded_as_it_was_typed():
    assert as_command(["/usr/bin/pinsage-jax", "--workdir=a b", "--where=x > 'y'"]) == (
        """pinsage-jax '--workdir=a b' '--where=x > '"'"'y'"'"''"""
    )
    assert as_command(["/x/main.py"]) == "python -m pinsage_jax.main"
    started = datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC)
    with commanded("a"), commanded("b"):
        assert provenance(started, "TPU v5e")["command"] == "b"
    found = provenance(started, "TPU v5e")
    assert found["command"] == "" and found["started"] == "2020-01-02T03:00:00+00:00"
    assert found["machine"]["device"] == "TPU v5e"


def test_events_hold_what_metrics_hold(trained):
    found = scalars(pathlib.Path(trained.workdir) / EVENTS_FOLDER)
    lines = lines_of(trained.workdir)
    losses = [line for line in lines if "loss" in line]
    assert len(losses) == 6
    for line in losses:
        assert found["step/loss", line["step"]] == pytest.approx(line["loss"], rel=1e-6)
    for line in lines:
        if "score" in line:
            assert found["validation/score", line["step"]] == pytest.approx(line["score"])
    assert found["run/pairs", 30] == 1920


def test_every_line_of_a_run_is_of_the_schema(trained):
    lines = lines_of(trained.workdir)
    assert [problem for line in lines for problem in schema.complaints(line)] == []
    assert {line["kind"] for line in lines} == set(schema.SCHEMA)
    assert all(line["kind"] == "step" for line in lines if "loss" in line)
    assert all(line["kind"] == "validation" for line in lines if "score" in line)
    # Steps never go back, and the run's own line is the last.
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and lines[-1]["kind"] == "run"


def test_what_is_not_of_the_schema_is_found(trained):
    step, validation = (
        next(line for line in lines_of(trained.workdir) if line["kind"] == kind)
        for kind in ("step", "validation")
    )
    assert schema.complaints({**step, "kind": "epoch"})[0].startswith("kind 'epoch' is not one of")
    assert schema.complaints({**step, "extra": 1}) == ["step has no field extra"]
    assert schema.complaints({**step, "loss": "low"}) == ["loss is 'low'"]
    assert schema.complaints({k: v for k, v in step.items() if k != "loss"}) == ["step lacks loss"]
    assert schema.complaints({**validation, "new_hit@50": 0.5}) == []
    assert schema.complaints({**validation, "hit": 0.5}) == ["validation has no field hit"]


def test_the_schema_is_documented():
    page = (ROOT / "docs" / "for_researchers.md").read_text(encoding="utf-8")
    assert schema.schema_table() in page


SETTINGS = {"epochs": 2.0, "preset": "paper"}


def log_with(tmp_path, names, resume_step=0):
    opened = open_trackers(names, tmp_path, SETTINGS, resume_step)
    return MetricsLog(tmp_path / "metrics.jsonl", resume_step, opened), opened


def test_a_log_passes_its_lines_on(tmp_path):
    log, opened = log_with(tmp_path, ["tensorboard"])
    log.write("step", {"step": 3, "loss": 0.5, "name": "x"})
    trackers.close_all(opened)
    assert scalars(tmp_path / EVENTS_FOLDER) == {("step/loss", 3): 0.5}
    assert lines_of(tmp_path) == [{"kind": "step", "step": 3, "loss": 0.5, "name": "x"}]
    assert not (tmp_path / trackers.IDS_FILE).exists()


@pytest.fixture
def no_environment(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)


# SQLAlchemy and others of MLflow's warn of their own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mlflow_has_settings_and_numbers_of_a_continued_run(tmp_path, no_environment):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    log, opened = log_with(tmp_path, ["mlflow"])
    log.write("step", {"step": 1, "loss": 0.5})
    trackers.close_all(opened)
    log, opened = log_with(tmp_path, ["mlflow"], resume_step=1)
    log.write("validation", {"step": 2, "epoch": 1.0, "warm_hit@10": 0.25})
    trackers.close_all(opened)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pinsage-jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"epochs": "2.0", "preset": "paper"}
    assert run.data.metrics == {
        "step/loss": 0.5, "validation/epoch": 1.0, "validation/warm_hit_at_10": 0.25,
    }  # fmt: skip
    (point,) = client.get_metric_history(run.info.run_id, "step/loss")
    assert point.step == 1 and run.info.status == "FINISHED"
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"mlflow": run.info.run_id}
    # A run without a step begins anew.
    log, opened = log_with(tmp_path, ["mlflow"])
    trackers.close_all(opened)
    assert len(client.search_runs([experiment.experiment_id])) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_and_biases_stays_offline(tmp_path, no_environment):
    pytest.importorskip("wandb")
    log, opened = log_with(tmp_path, ["wandb"])
    log.write("step", {"step": 1, "loss": 0.5})
    trackers.close_all(opened)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    # A process of its own writes it.
    until = time.monotonic() + 60
    while b"step/loss" not in file.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)
    assert b"step/loss" in file.read_bytes() and b"epochs" in file.read_bytes()
    assert folder.name.endswith(json.loads((tmp_path / "tracking.json").read_text())["wandb"])


class FakeRun:
    """Stands for a run of a tracker; fails from the second line on if it is told to."""

    def __init__(self, fails=False):
        self.id, self.lines, self.closed, self.fails = "the-id", [], False, fails

    def log(self, values):
        if self.fails and self.lines:
            raise ConnectionError("the server is gone\nfor good")
        self.lines.append(values)

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def finish(self):
        self.closed = True


@pytest.fixture
def stand_in(monkeypatch, no_environment):
    """A module in the place of wandb; returns the run and the arguments it was opened with."""
    run, given = FakeRun(), {}
    module = types.ModuleType("wandb")
    module.init = lambda **arguments: given.update(arguments) or run
    module.Settings = dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "pinsage_jax.tracking.wandb_tracker", raising=False)
    yield run, given
    sys.modules.pop("pinsage_jax.tracking.wandb_tracker", None)


def test_a_tracker_gets_settings_numbers_and_its_id_again(stand_in, tmp_path):
    run, given = stand_in
    log, opened = log_with(tmp_path, ["wandb"])
    assert (given["id"], given["mode"], given["config"]) == (None, "offline", SETTINGS)
    assert given["dir"] == str(tmp_path)
    log.write("run", {"step": 4, "pairs": 9})
    trackers.close_all(opened)
    assert run.lines == [{"step": 4, "run/pairs": 9}] and run.closed
    log_with(tmp_path, ["wandb"], resume_step=4)
    assert given["id"] == "the-id"


class FakeClient:
    """Stands for MlflowClient; its calls are kept for all instances."""

    calls: ClassVar[list] = []

    def __init__(self, tracking_uri):
        self.calls.append(("open", tracking_uri))

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"number of {name}"

    def create_run(self, number, run_name):
        self.calls.append(("begin", number, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="the-run"))

    def update_run(self, run_id, status):
        self.calls.append(("continue", run_id, status))

    def log_batch(self, run_id, metrics=(), params=()):
        self.calls.append((run_id, [each[:2] for each in metrics], list(params)))

    def set_terminated(self, run_id):
        self.calls.append(("end", run_id))


def test_mlflow_is_asked_for_what_its_client_has(tmp_path, monkeypatch, no_environment):
    """Where MLflow is not installed too; test_mlflow_has... above is with the real one."""
    monkeypatch.setattr(FakeClient, "calls", [])
    modules = {name: types.ModuleType(name) for name in ("mlflow", "alembic")}
    modules["mlflow.entities"] = entities = types.ModuleType("mlflow.entities")
    modules["mlflow.tracking"] = tracking = types.ModuleType("mlflow.tracking")
    entities.Metric = lambda name, value, timestamp, step: (name, value, step)
    entities.Param = lambda name, value: (name, value)
    tracking.MlflowClient = FakeClient
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    name = "pinsage_jax.tracking.mlflow_tracker"
    monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        log, opened = log_with(tmp_path, ["mlflow"])
        log.write("validation", {"step": 2, "warm_hit@10": 0.25})
        trackers.close_all(opened)
        log_with(tmp_path, ["mlflow"], resume_step=2)
    finally:
        sys.modules.pop(name, None)
    store = ("open", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert FakeClient.calls == [
        store,
        ("begin", "number of pinsage-jax", f"{tmp_path.parent.name}/{tmp_path.name}"),
        ("the-run", [], [("epochs", "2.0"), ("preset", "paper")]),
        ("the-run", [("validation/warm_hit_at_10", 0.25)], []),
        ("end", "the-run"),
        store,
        ("continue", "the-run", "RUNNING"),
    ]


def test_a_tracker_that_fails_does_not_end_the_run(stand_in, tmp_path, caplog):
    run, _ = stand_in
    run.fails = True
    log, opened = log_with(tmp_path, ["wandb"])
    for step in (1, 2, 3):
        log.write("step", {"step": step, "loss": 0.5})
    assert len(run.lines) == 1 and len(lines_of(tmp_path)) == 3
    assert caplog.text.count("gets no more lines (the server is gone)") == 1
    trackers.close_all(opened)


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    # What a test above has imported is found by its full name.
    packages = {"tensorboard": "tensorboardX", "mlflow": "mlflow.entities", "wandb": "wandb"}
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"pinsage_jax.tracking.{name}_tracker", raising=False)
        with pytest.raises(UserError, match=rf"--tracker={name} .*\[{name}\]"):
            open_trackers([name], tmp_path, {}, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_cannot_be_opened_is_refused(stand_in, tmp_path, monkeypatch):
    def fail(**_):
        raise RuntimeError("no such project")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.raises(UserError, match=r"^--tracker=wandb cannot be opened \(no such project\)"):
        open_trackers(["wandb"], tmp_path, {}, 0)
    assert not (tmp_path / trackers.IDS_FILE).exists()


def test_names_of_trackers_are_checked():
    found = parsed("--workdir=w", "--synthetic", "--tracker=wandb, mlflow,wandb").train.trackers
    assert found == ["wandb", "mlflow"]
    with pytest.raises(UserError, match=r"^--tracker=tensorboardx: tensorboardx is not one of ten"):
        parsed("--workdir=w", "--synthetic", "--tracker=tensorboardx")
