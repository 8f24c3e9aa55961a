"""The benchmarks of scale, graph building and stores, at their smallest."""

import types

import pytest

from benchmarks import graph_build, neighborhood_store, processes, scale


def options(tmp_path, **more):
    return types.SimpleNamespace(
        quick=True, repeat=1, threads=1, out=tmp_path, scale_edges="1,2", scale_folder="",
        scale_steps=1, scale_keep=False, scale_flags="", scale_resume=False,
        scale_stages=",".join(scale._STAGES), build_edges="1", store_edges=1, **more,
    )  # fmt: skip


def test_a_process_is_measured_from_outside(tmp_path):
    own = bytearray(b"x") * (1200 << 20)  # A large parent must not count
    log = tmp_path / "log.txt"
    code = "import time; held = bytearray(300 << 20); time.sleep(0.7); print(len(held))"
    cost = processes.run(["-c", code], log)
    assert 0.7 < cost.seconds < 60
    assert 0.29 < cost.anon_gib <= cost.peak_gib < 1.0
    assert str(300 << 20) in log.read_text() and len(own) > 0
    with pytest.raises(RuntimeError, match=r"ended with 3(.|\n)*no luck"):
        processes.run(["-c", "print('no luck'); raise SystemExit(3)"], log)


def test_graph_build_and_stores_run(tmp_path):
    rows = graph_build.run(options(tmp_path))
    assert [row["storage"] for row in rows] == ["memory", "mapped"]
    assert rows[0]["distinct"] == rows[1]["distinct"] and rows[0]["seconds"] >= 0
    rows = neighborhood_store.run(options(tmp_path))
    assert [row["store"] for row in rows] == 2 * ["none", "memory", "disk"]
    assert {row["bytes_per_node"] for row in rows} == {0, 80, 400}


def test_ratios_are_costs():
    small = {
        "edges": 10, "generate_s": 1.0, "prepare_s": 2.0, "neighborhoods_per_s": 100,
        "pairs_per_s": 50, "embedded_items_per_s": 30, "embed_s": 1.0, "index_s": 1.0,
    }  # fmt: skip
    large = {**small, "edges": 100, "generate_s": 20.0, "prepare_s": 10.0, "pairs_per_s": 10}
    [ratio] = scale._ratios([small, large])
    assert ratio["generate_s_per_edge"] == 2.0 and ratio["prepare_s_per_edge"] == 0.5
    assert ratio["cost_pairs"] == 5.0 and ratio["cost_neighborhoods"] == 1.0
    assert scale._ratios([small]) == [] and scale._ratios([]) == []


def test_stages_that_are_done_are_not_run_again(tmp_path, monkeypatch):
    ran, failing = [], ["train"]

    def run(arguments, log):
        ran.append(arguments[2])
        if arguments[2] in failing:
            raise RuntimeError("killed")
        return processes.Cost(1.0, 0.5, 0.25)

    monkeypatch.setattr(processes, "run", run)
    workdir = tmp_path / "scale" / "edges-20000"
    (workdir / "inputs").mkdir(parents=True)
    chosen = options(tmp_path)
    chosen.scale_resume, chosen.scale_keep = True, True
    with pytest.raises(RuntimeError, match="killed"):
        scale.run(chosen)
    assert ran == ["generate", "prepare", "lists", "train"]
    failing.clear()
    (workdir / "lists.json").write_text('{"neighborhoods_per_second": 7.0}')
    (workdir / "metrics.jsonl").write_text('{"pairs_per_second": 9.0}\n')
    rows = scale.run(chosen)
    assert ran[4:] == ["train", "embed", "index", "related"]
    assert [row["stage"] for row in rows[:-1]] == list(scale._STAGES)
    assert rows[-1]["total_s"] == 7.0 and rows[-1]["neighborhoods_per_s"] == 7
    scale.run(chosen)
    assert len(ran) == 8
    chosen.scale_stages = "embedd"
    with pytest.raises(SystemExit, match="no stage 'embedd'"):
        scale.run(chosen)


@pytest.mark.long
def test_the_whole_pipeline_is_measured(tmp_path):
    rows = scale.run(options(tmp_path))
    assert [row["stage"] for row in rows[:-1]] == list(scale._STAGES)
    assert all(row["peak_gib"] > 0.1 and row["seconds"] > 0 for row in rows[:-1])
    assert rows[-1]["items"] == 1000 and rows[-1]["pairs_per_s"] > 0
    assert rows[-1]["neighborhoods_per_s"] > 0 and rows[-1]["disk_bytes_per_edge"] > 8
    assert not (tmp_path / "scale" / "edges-20000").exists()
