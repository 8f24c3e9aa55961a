"""The benchmarks of device counts and collectives, and of runs killed at random moments."""

import argparse
import dataclasses
import random
import signal

import jax
import pytest

from benchmarks import collectives, devices, kill_and_resume
from benchmarks.aot import programs
from pinsage_jax.cpu import ops


def options(**given) -> argparse.Namespace:
    return argparse.Namespace(**{"quick": True, "repeat": 1, "graph_file": ""} | given)


@pytest.mark.timeout(300)
def test_parameters_after_50_steps_are_the_same_on_1_2_4_and_8_devices():
    rows = devices.run(options(device_steps=50))
    counted = [row for row in rows if "devices" in row]
    assert [row["devices"] for row in counted] == [1, 2, 4, 8]
    assert all(row["steps"] >= 50 for row in counted)
    # float32 has a rounding error of 6e-8, and the order of sums over devices differs.
    assert all(float(row["difference"]) < 1e-5 for row in counted)


def test_a_step_reduces_its_gradients_and_gathers_the_targets(monkeypatch):
    """Bytes of the compiled step against those of the parameters and the loss's candidates."""
    monkeypatch.setattr(ops, "kernels_are_used", lambda: False)
    smallest = programs.SIZES["smallest"]
    whole = smallest.config()
    train = dataclasses.replace(whole.train, loss="softmax")
    size = dataclasses.replace(smallest, config=lambda: dataclasses.replace(whole, train=train))
    monkeypatch.setitem(programs.SIZES, "softmax", size)
    row = collectives.measured("softmax", 2, split=True)
    params = jax.tree.leaves(programs.step_program(size, 1).state.params)
    entries = sum(leaf.size for leaf in params)
    # The loss's sum and count too, and the derivative of the targets' gathering where it is summed.
    assert row["pairs_a_device"] == 16 and row["devices"] == 2
    assert 4 * entries / 1e6 <= row["all-reduce MB"] <= 4 * entries / 1e6 + 0.01
    candidates = 32 * (whole.model.output_dim * 4 + 4 + 4 + 1) / 1e6
    assert row["all-gather MB"] == pytest.approx(candidates, abs=0.0006)
    assert "f32" in row["types"] and "bf16" not in row["types"]


class FakeKill:
    """Replaces kill_within: every part of the simulated run lasts `duration` seconds."""

    def __init__(self, duration: float, never: bool = False, missed: str = "later"):
        self.duration, self.never, self.missed, self.calls = duration, never, missed, []

    def __call__(self, part, workdir, flags, seconds, draws, sent):
        delay = draws.random() * seconds
        self.calls.append((seconds, delay, sent))
        hit = self.missed if self.never or delay >= self.duration else part
        return kill_and_resume.Moment(hit, 60, (), 1.0, -9, not self.never, delay)


def test_a_kill_after_the_end_of_a_part_is_repeated_with_a_shorter_delay(monkeypatch, tmp_path):
    fake = FakeKill(duration=0.1)
    monkeypatch.setattr(kill_and_resume, "kill_within", fake)
    seconds, draws = {"train": 9.0, "embed": 20.0}, random.Random(1)
    for _ in range(6):
        killed = kill_and_resume.kill_in_part("embed", tmp_path, [], seconds, draws, signal.SIGTERM)
        assert killed[0].part == "embed"
    # A delay that was too long bounds all later delays, also those of the next run.
    bounds = [bound for bound, _, _ in fake.calls]
    assert bounds[0] == 20.0 and bounds == sorted(bounds, reverse=True)
    late = [delay for _, delay, _ in fake.calls if delay >= 0.1]
    assert late and seconds == {"train": 9.0, "embed": min(late)}
    assert {sent for _, _, sent in fake.calls} == {signal.SIGTERM}
    assert len(fake.calls) <= 14


def test_a_kill_during_a_checkpoint_does_not_shorten_the_delay_in_training(monkeypatch, tmp_path):
    monkeypatch.setattr(kill_and_resume, "kill_within", FakeKill(0.1, missed="checkpoint"))
    seconds = {"train": 9.0}
    kill_and_resume.kill_in_part("train", tmp_path, [], seconds, random.Random(1))
    assert seconds == {"train": 9.0}


def test_a_part_that_never_begins_is_reported_after_eight_tries(monkeypatch, tmp_path):
    fake = FakeKill(duration=0.1, never=True)
    monkeypatch.setattr(kill_and_resume, "kill_within", fake)
    seconds = {"embed": 20.0}
    moment, tries = kill_and_resume.kill_in_part("embed", tmp_path, [], seconds, random.Random(1))
    assert (moment.part, tries, len(fake.calls)) == ("later", 8, 8)
    # The failed tries are no evidence of how long the part takes.
    assert seconds == {"embed": 20.0}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_and_resumed_runs_equal_an_uninterrupted_run(tmp_path):
    parser = argparse.ArgumentParser()
    kill_and_resume.add_options(parser)
    given = vars(parser.parse_args([])) | {"quick": False, "kills": 3, "out": str(tmp_path)}
    rows = kill_and_resume.run(options(**given))
    assert [row["equal"] for row in rows if "equal" in row] == ["all"] * 5
    assert all(row["killed in"] == row["intended part"] for row in rows if "killed in" in row)
