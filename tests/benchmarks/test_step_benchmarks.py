"""The benchmarks of steps, inference and accelerators, at their smallest."""

import pytest

from benchmarks import accelerator, inference, precision, run, train_step


def measured(name, *flags):
    module = {"accelerator": accelerator, "inference": inference, "train_step": train_step}[name]
    return module.run(run.parse([name, "--repeat", "1", *flags]))


def test_an_accelerators_script_runs_small_on_a_cpu():
    step, *gathers, embedding, note = measured("accelerator", "--small", "--hard", "1")
    assert step["step_ms"] > 0 and 0 < step["utilization"] < 2
    assert 0 <= step["wait_share"] <= 1 and step["producers_needed"] >= 1
    assert [row["gather"] for row in gathers] == [
        "copy of the table", "input vectors", "pooling", "its derivative",
    ]  # fmt: skip
    assert all(row["gb_per_s"] > 0 for row in gathers)
    assert embedding["embedded_items_per_s"] > 0 and "works" in note["note"]


def test_inference_and_top_k_count_their_products():
    flags = ("--inference_cases", "dgl_t10", "--ks", "3", "--queries", "32", "--block", "4096")
    embedding, search = measured("inference", *flags)
    # Q and W of two layers, G1 and G2, on 20,000 items in five blocks.
    per_row = 256 * 128 + 384 * 128 + 128 * 128 + 256 * 128 + 2 * 128 * 128
    # The first layer's Q and W read the degree beside 128 features.
    per_row += 2 * 128
    assert embedding["gflop"] == pytest.approx(2 * 5 * 4096 * per_row / 1e9)
    assert embedding["items"] == 20_000 and embedding["ratio"] > 0
    assert search["k"] == 3 and search["ratio"] > 0


def test_a_train_step_counts_its_products():
    [row] = measured("train_step", "--cases", "dgl_t10")
    seeds, first, second = (int(rows) for rows in row["rows"].split())
    # Forward, and twice backward except to the inputs, which have no derivative.
    layers = 2 * second * 256 * 128 + first * (2 * 384 + 128) * 128
    layers += 3 * first * 128 * 128 + 3 * seeds * (256 * 128 + 2 * 128 * 128)
    scores = 3 * 256 * 256 * 128
    assert row["gflop"] == pytest.approx(2 * (layers + scores) / 1e9, rel=0.01)
    assert row["step_ms"] > 0 and row["ratio"] > 0


def test_types_are_compared_seed_by_seed():
    exact = [{"score": 0.1}, {"score": 0.3}]
    [row] = precision.differences(exact, [{"score": 0.2}, {"score": 0.5}])
    assert row["float32"] == pytest.approx(0.2)
    assert row["bfloat16 less float32"] == pytest.approx(0.15)
    # Two differences of .1 and .2.
    assert row["standard error"] == pytest.approx(0.05)
