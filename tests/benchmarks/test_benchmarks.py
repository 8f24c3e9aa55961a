"""The frame of the benchmarks: found by name, tables, JSON with machine and date."""

import json
import sys
import types

import pytest

from benchmarks import machine, paper_scale, run


@pytest.fixture
def example(monkeypatch):
    """A benchmark `example` with two tables and a note."""
    module = types.ModuleType("benchmarks.example", "Example title.\n\nMore.")
    module.add_options = lambda parser: parser.add_argument("--size", type=int, default=3)
    module.run = lambda options: [
        {"case": "one", "seconds": 0.123456, "items": 1234567},
        {"case": "other", "seconds": 12345.6, "items": options.size},
        {"note": "A sentence."},
        {"share": None},
    ]
    monkeypatch.setitem(sys.modules, "benchmarks.example", module)
    monkeypatch.setattr(run, "names", lambda: ["example"])
    return module


def test_only_modules_with_run_are_benchmarks():
    assert "sampler" in run.names()
    assert not {"run", "machine", "__init__"} & set(run.names())


def test_a_run_prints_a_table_and_writes_json(example, tmp_path, capsys):
    assert run.main(["example", "--out", str(tmp_path), "--size", "7"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "== example: Example title."
    assert printed[1:4] == [
        "case   seconds      items",
        "one      0.123  1,234,567",
        "other   12,346          7",
    ]
    assert "A sentence." in printed
    saved = json.loads((tmp_path / "example.json").read_text())
    assert saved["rows"][1]["items"] == 7 and saved["command"][0] == "example"
    facts = saved["machine"]
    assert facts["cores"] > 0 and facts["versions"]["numpy"] and facts["peak_memory_gib"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["example.json"]


def test_list_and_unknown_names(example, capsys):
    assert run.main(["--list"]) == 0
    assert "example      Example title." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run.main(["nothing"])
    assert "no benchmark 'nothing'; there are example" in capsys.readouterr().err


def test_the_options_of_all_benchmarks_parse_together():
    options = run.parse([])
    assert options.names == run.names() and len(options.names) >= 7
    for name in options.names:
        assert run.parse([name]).names == [name]


def test_sides_are_measured_in_turn():
    order = []

    def side(name, spent):
        return lambda: order.append(name) or spent

    found = machine.in_turn({"a": side("a", 1.0), "b": side("b", 2.0)}, repeat=3)
    assert order == ["a", "b"] * 4
    assert found["a"]["seconds"] == 1.0 and found["b"]["seconds"] == 2.0
    assert found["a"]["repeat"] == 3


def test_the_papers_graph_is_added_up():
    assert paper_scale.storage()["graph, mapped by every host"] == 3e9 * 8 + 18e9 * 2 * 4
    small, large = (paper_scale.step(rows) for rows in (1e6, 44e6))
    assert small["memory"] == 361e9 / 4.8e12 and large["products"] > small["products"]
    assert large["rows from their owners"] == pytest.approx(44e6 * 1024 * 63 / 64 / 50e9)
    rows = paper_scale.run(None)
    assert all(row["source"] for row in rows if "constant" in row)
    assert sum("dollars" in row for row in rows) == 4
