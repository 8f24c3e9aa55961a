"""The same run on 1, 2, 4 and 8 devices, and a run killed at random moments, by the benchmarks."""

import argparse

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


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_runs_end_as_one_that_nobody_disturbed(tmp_path):
    parser = argparse.ArgumentParser()
    kill_and_resume.add_options(parser)
    asked = vars(parser.parse_args([])) | {"quick": False, "kills": 3, "out": str(tmp_path)}
    rows = kill_and_resume.run(options(**asked))
    assert [row["equal"] for row in rows if "equal" in row] == ["all"] * 5
