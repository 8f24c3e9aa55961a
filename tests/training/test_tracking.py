"""What a run leaves about itself: metrics.jsonl, TensorBoard events, costs."""

import datetime
import json
import pathlib
import struct
import sys

import jax
import pytest
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
from pinsage_jax.training.log import EVENTS_FOLDER, Events, MetricsLog


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
        assert found["training/loss", line["step"]] == pytest.approx(line["loss"], rel=1e-6)
    for line in lines:
        if "score" in line:
            assert found["validation/score", line["step"]] == pytest.approx(line["score"])
    assert found["run/pairs", 30] == 1920


def test_a_log_passes_its_lines_on(tmp_path):
    events = Events(tmp_path, 0)
    MetricsLog(tmp_path / "metrics.jsonl", 0, events).write({"step": 3, "loss": 0.5, "name": "x"})
    events.close()
    assert scalars(tmp_path / EVENTS_FOLDER) == {("training/loss", 3): 0.5}


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'pinsage-jax\[tensorboard\]'"):
        Events(tmp_path, 0)
    assert not (tmp_path / EVENTS_FOLDER).exists()
