"""The same run on 1, 2, 4 and 8 devices, and a run killed at random moments, by the benchmarks."""

import argparse
import random
import signal

import pytest

from benchmarks import devices, kill_and_resume


def options(**given) -> argparse.Namespace:
    return argparse.Namespace(**{"quick": True, "repeat": 1, "graph_file": ""} | given)


@pytest.mark.timeout(300)
def test_parameters_after_50_steps_are_the_same_on_1_2_4_and_8_devices():
    rows = devices.run(options(device_steps=50))
    gathered = [row for row in rows if row.get("in_batch") == "of all devices"]
    assert [row["devices"] for row in gathered] == [1, 2, 4, 8]
    assert all(row["steps"] >= 50 for row in gathered)
    # float32 rounds to 6e-8, and sums over devices are added up in another order.
    assert all(float(row["difference"]) < 1e-5 for row in gathered)
    [apart] = [row for row in rows if row.get("in_batch") == "of its own"]
    assert float(apart["difference"]) > 1e-4


class Pretended:
    """kill_within of a run whose parts begin one after the other and end after `truly` seconds."""

    def __init__(self, truly: float, never: bool = False, missed: str = "later"):
        self.truly, self.never, self.missed, self.asked = truly, never, missed, []

    def __call__(self, part, workdir, flags, seconds, draws, sent):
        delay = draws.random() * seconds
        self.asked.append((seconds, delay, sent))
        hit = self.missed if self.never or delay >= self.truly else part
        return kill_and_resume.Moment(hit, 60, (), 1.0, -9, not self.never, delay)


def test_a_kill_that_came_late_is_aimed_again_within_the_time_that_it_had(monkeypatch, tmp_path):
    pretended = Pretended(truly=0.1)
    monkeypatch.setattr(kill_and_resume, "kill_within", pretended)
    seconds, draws = {"train": 9.0, "embed": 20.0}, random.Random(1)
    for _ in range(6):
        aimed = kill_and_resume.aimed("embed", tmp_path, [], seconds, draws, signal.SIGTERM)
        assert aimed[0].part == "embed"
    # Each late delay is the most of the next one, also of the next run.
    bounds = [bound for bound, _, _ in pretended.asked]
    assert bounds[0] == 20.0 and bounds == sorted(bounds, reverse=True)
    late = [delay for _, delay, _ in pretended.asked if delay >= 0.1]
    assert late and seconds == {"train": 9.0, "embed": min(late)}
    assert {sent for _, _, sent in pretended.asked} == {signal.SIGTERM}
    assert len(pretended.asked) <= 14


def test_a_checkpoint_met_in_training_does_not_shorten_the_training(monkeypatch, tmp_path):
    monkeypatch.setattr(kill_and_resume, "kill_within", Pretended(0.1, missed="checkpoint"))
    seconds = {"train": 9.0}
    kill_and_resume.aimed("train", tmp_path, [], seconds, random.Random(1))
    assert seconds == {"train": 9.0}


def test_a_part_that_never_comes_is_given_up_and_told(monkeypatch, tmp_path):
    pretended = Pretended(truly=0.1, never=True)
    monkeypatch.setattr(kill_and_resume, "kill_within", pretended)
    seconds = {"embed": 20.0}
    moment, tries = kill_and_resume.aimed("embed", tmp_path, [], seconds, random.Random(1))
    assert (moment.part, tries, len(pretended.asked)) == ("later", 8, 8)
    # It says nothing about how long the part takes.
    assert seconds == {"embed": 20.0}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_runs_end_as_one_that_nobody_disturbed(tmp_path):
    parser = argparse.ArgumentParser()
    kill_and_resume.add_options(parser)
    asked = vars(parser.parse_args([])) | {"quick": False, "kills": 3, "out": str(tmp_path)}
    rows = kill_and_resume.run(options(**asked))
    assert [row["equal"] for row in rows if "equal" in row] == ["all"] * 5
    assert all(row["hit"] == row["meant for"] for row in rows if "hit" in row)
