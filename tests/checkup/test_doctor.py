"""The doctor: inputs that cause each finding, slow references, and the forecast."""

import csv
import json
import pathlib
import sys

import numpy as np
import pyarrow as pa
import pytest
from small_catalog import random_graph

import pinsage_jax
from pinsage_jax import main
from pinsage_jax.checkup import clock, doctor, graph_checks
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.tools import DoctorConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import ids
from pinsage_jax.stages.prepare import split


def write(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def inputs(folder, edges, items=None, pairs=None, train=None):
    """Writes tables from rows and returns their flags."""
    write(folder / "edges.csv", "collection_id,item_id", edges)
    flags = {"edges": "edges.csv"}
    if items is not None:
        write(folder / "items.csv", "item_id,text,price", items)
        flags |= {"items": "items.csv", "numeric_columns": "price"}
    for name, rows in (("eval_pairs", pairs), ("train_pairs", train)):
        if rows is not None:
            write(folder / f"{name}.csv", "query_id,target_id", rows)
            flags[name] = f"{name}.csv"
    return flags


def config_for(folder, **data):
    return Config(
        "doctor", str(folder / "work"), 0, 1,
        data=DataConfig(data_dir=str(folder), **data), doctor=DoctorConfig(forecast=False),
    )  # fmt: skip


def examined(folder, **data):
    """Runs the doctor: its result, whether it found problems, and its messages by level."""
    config = config_for(folder, **data)
    pathlib.Path(config.workdir).mkdir()
    failed = False
    try:
        pinsage_jax.doctor(config)
    except UserError as error:
        failed = "listed above" in str(error)
        if not failed:
            raise
    result = json.loads((folder / "work" / "doctor.json").read_text())
    messages = {level: [] for level in ("problem", "warning")}
    for finding in result["findings"]:
        messages[finding["level"]].append(f"{finding['topic']}: {finding['sentence']}")
    assert sorted(path.name for path in (folder / "work").iterdir()) == ["doctor.json"]
    return result, failed, messages


def good_edges():
    return [(f"c{c}", f"i{i}") for c in range(20) for i in range(c, c + 5 + c % 3)]


def good_items():
    return [(f"i{i}", f"words number {i}", i) for i in range(27)]


def test_good_inputs_have_no_findings(tmp_path, capsys):
    pairs = [("i0", "i20"), ("i1", "i22")]
    result, failed, messages = examined(
        tmp_path, **inputs(tmp_path, good_edges(), good_items(), pairs, [("i3", "i4")])
    )
    assert not failed and messages == {"problem": [], "warning": []}
    counts = result["counts"]
    assert (counts["items"], counts["collections"], counts["eval_pairs"]) == (27, 20, 2)
    assert counts["items_per_collection"] == {"p50": 6, "p99": 7, "max": 7}
    assert [(c["column"], c["present"], c["width"]) for c in result["features"]] == [
        ("price", 27, 1), ("text", 27, 512),
    ]  # fmt: skip
    assert "No problems and no warnings." in capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 60, 80])
def test_on_a_terminal_the_tables_fit_it(width, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    result, *_ = examined(tmp_path, **inputs(tmp_path, good_edges(), good_items()))
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= width < max(map(len, doctor.doctor_text(result).splitlines()))
    assert any(line.startswith("sizes") and "maximum" in line for line in printed)
    assert all(any(line.startswith(f"{name} ") for line in printed) for name in ("price", "text"))


def test_edges_that_repeat_and_items_alone(tmp_path):
    items = good_items() + [(f"lonely{i}", "x y", 1) for i in range(20)]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, good_edges() * 2, items))
    assert not failed and len(messages["warning"]) == 3
    assert "119 of 238 (50.0%) rows of --edges repeat" in messages["warning"][0]
    assert "22 of 47 (46.8%) items are in no collection" in messages["warning"][1]
    assert "'i25', 'i26', 'lonely0'" in messages["warning"][1]
    assert "19 of 47 (40.4%) items have the same features" in messages["warning"][2]


def test_collections_that_are_huge_single_or_copies(tmp_path):
    edges = [("everything", f"i{i}") for i in range(300)]
    edges += [(f"alone{i}", f"i{i}") for i in range(60)]
    edges += [(f"copy{c}", f"i{i}") for c in range(6) for i in range(20)]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, edges))
    assert not failed
    text = "\n".join(messages["warning"])
    assert "60 of 67 (89.6%) collections hold a single item" in text
    assert "1 collections hold more than 5% of all items with edges each, 300 of 480" in text
    assert "5 of 7 (71.4%) collections of two items or more hold exactly" in text
    assert "'copy1', 'copy2', 'copy3'" in text


def test_columns_the_wrong_way_round(tmp_path):
    edges = [(f"i{i}", "c") for i in range(5)]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, edges))
    assert failed and "None of the 5 collections holds two items" in messages["problem"][0]


def test_items_under_several_ids(tmp_path):
    edges = [(f"c{c}", f"i{i}{twin}") for c in range(9) for i in (c, c + 1, c + 2) for twin in "ab"]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, edges))
    assert not failed
    assert any(
        "in exactly the collections of an earlier item" in line for line in messages["warning"]
    )


@pytest.mark.parametrize("spelling", [lambda i: f"I{i}", lambda i: f"i{i} ", lambda i: f"00i{i}"])
def test_ids_that_differ_in_spelling_are_a_problem(spelling, tmp_path):
    items = [(spelling(i) if i % 2 else f"i{i}", "words here", 1) for i in range(27)]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, good_edges(), items))
    assert failed
    assert "12 of them differ in spelling only: 'i1' is" in messages["problem"][0]


def test_ids_that_never_meet(tmp_path):
    items = [(f"sku-{i}", "words here", 1) for i in range(5)]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, good_edges(), items))
    assert failed
    assert messages["problem"] == [
        "ids: No id of --edges (such as 'i0', 'i1', 'i10') is one of --items "
        "(such as 'sku-0', 'sku-1', 'sku-2')."
    ]


def test_unknown_ids_of_pairs(tmp_path):
    pairs = [("i0", "i20"), ("i1", "nowhere"), ("i1", "i1"), ("i0", "i20")]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, good_edges(), pairs=pairs))
    assert not failed
    assert "1 of 4 (25.0%) pairs of --eval_pairs name an item" in messages["warning"][0]
    assert "'nowhere'" in messages["warning"][0]
    assert (
        "1 pairs join an item with itself, which are left out, and 1 are repeated"
        in messages["warning"][1]
    )


def test_pairs_none_of_which_is_known(tmp_path):
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, good_edges(), pairs=[("x", "y")]))
    assert failed and "Unknown ids: 'x', 'y'." in messages["problem"][0]


def test_features_that_are_missing_or_wrong(tmp_path):
    items = [(f"i{i}", "" if i > 5 else f"words {i}", "many" if i == 3 else i) for i in range(27)]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, good_edges(), items))
    assert failed
    assert "row 4 of" in messages["problem"][0] and "'many'" in messages["problem"][0]
    assert "Column 'text' of --items is empty in 21 of 27 (77.8%) rows." in messages["warning"][0]


def test_leaks(tmp_path):
    pairs = [("i0", "i1"), ("i1", "i2"), ("i2", "i4")]
    _, failed, messages = examined(
        tmp_path, **inputs(tmp_path, good_edges(), None, pairs, [("i4", "i2")])
    )
    assert failed
    assert "both pair 'i2' with 'i4'" in messages["problem"][0]
    assert (
        "3 of 3 (100.0%) pairs of --eval_pairs whose two items have edges are"
        in messages["warning"][0]
    )
    assert "such as 'i0' with 'i1'" in messages["warning"][0]


def test_edges_of_another_split_are_a_leak(tmp_path):
    write(tmp_path / "all.csv", "collection_id,item_id", good_edges())
    made = Config("split", str(tmp_path / "made"), 0, 1,
                  data=DataConfig(data_dir=str(tmp_path), edges="all.csv"))  # fmt: skip
    split(made)
    held = str(tmp_path / "made" / "split" / "eval_pairs.parquet")
    assert pathlib.Path(held).exists()
    _, failed, messages = examined(tmp_path, edges="all.csv", eval_pairs=held)
    assert failed and any(line.startswith("leaks: --edges=") for line in messages["problem"])


def test_one_bad_table_does_not_hide_the_others(tmp_path):
    flags = inputs(tmp_path, good_edges(), [("i0", "x", 1), ("i0", "y", 2)], [("x", "y")])
    _, failed, messages = examined(tmp_path, **flags, train_pairs="missing.csv")
    assert failed
    text = "\n".join(messages["problem"])
    assert "missing.csv does not exist" in text and "more than once" in text
    assert "none of its 1 pairs" in text


def test_bad_edges_are_reported_once(tmp_path):
    flags = inputs(tmp_path, [("c", "i"), ("", "i")], good_items())
    _, failed, messages = examined(tmp_path, **flags)
    assert (
        failed and len(messages["problem"]) == 1 and "is empty in row 2" in messages["problem"][0]
    )


@pytest.mark.parametrize("single, code", [(False, 0), (True, 2)])
def test_the_exit_code_distinguishes_problems_from_warnings(single, code, tmp_path, capsys):
    edges = [(f"c{i}", f"i{i}") for i in range(9)] if single else good_edges() * 2
    flags = inputs(tmp_path, edges)
    arguments = [f"--{name}={tmp_path / value}" for name, value in flags.items()]
    ran = main.main(
        ["program", *arguments, f"--workdir={tmp_path / 'w'}", "--mode=doctor", "--noforecast"]
    )
    captured = capsys.readouterr()
    assert ran == code
    assert ("Problems:" in captured.out) == single and ("Warnings:" in captured.out) != single
    if single:
        assert captured.err.endswith(
            "error: The inputs have 1 problem, listed above; correct it and run --mode=doctor "
            "again.\n"
        )


def test_repeated_rows_are_those_of_equal_sets(small_rng):
    for trial in range(20):
        graph = random_graph(small_rng, num_items=12, num_collections=25, edges=60)
        for first, last in ((0, graph.num_items), (graph.num_items, graph.num_nodes)):
            hashes = graph_checks.row_hashes(graph, first, last)
            degree = graph.degree()[first:last]
            seen, expected = set(), []
            for node in range(first, last):
                members = frozenset(graph.neighbors(node).tolist())
                if len(members) >= 2 and members in seen:
                    expected.append(node - first)
                seen.add(members)
            assert graph_checks.duplicate_nodes(hashes, degree, 2).tolist() == expected, trial


def test_hashes_do_not_depend_on_blocks(monkeypatch, small_rng):
    graph = random_graph(small_rng)
    whole = graph_checks.row_hashes(graph, 0, graph.num_nodes)
    monkeypatch.setattr(graph_checks, "_BLOCK_NODES", 7)
    np.testing.assert_array_equal(graph_checks.row_hashes(graph, 0, graph.num_nodes), whole)


def test_quantiles_are_sizes_that_occur():
    assert graph_checks.quantiles(np.array([1, 2, 3, 50])) == {"p50": 3, "p99": 50, "max": 50}
    assert graph_checks.quantiles(np.array([], int)) == {"p50": 0, "p99": 0, "max": 0}


def test_ids_that_look_like_missing_values_or_one_another(tmp_path):
    edges = [*good_edges(), ("c0", "NaN"), ("c1", "NaN"), ("C1", "i1"), ("C1", "i2"), ("c2", "I5 ")]
    _, failed, messages = examined(tmp_path, **inputs(tmp_path, edges))
    assert not failed
    assert [line for line in messages["warning"] if line.startswith("ids")] == [
        "ids: 1 of 27 (3.7%) items have ids that look like a missing value (such as 'NaN'): rows "
        "without an id would all be one of the items.",
        "ids: 1 of 27 (3.7%) items have an id that looks like another one, such as 'i5' like "
        "'I5 ': is one thing listed under several ids?",
        "ids: 1 of 21 (4.8%) collections have an id that looks like another one, such as 'c1' "
        "like 'C1': is one thing listed under several ids?",
    ]
    table = ids.IdTable(pa.array(["007", "e\u0301", "7", "8.0", "\u00e9", "8", "x"]))
    assert ids.look_alikes(table) == [("7", "007"), ("\u00e9", "e\u0301"), ("8", "8.0")]


def test_numbers_that_are_names_are_warned_of(tmp_path):
    flags = inputs(tmp_path, good_edges())
    write(tmp_path / "items.csv", "item_id,isbn", [(f"i{i}", f"0{7 * i}") for i in range(27)])
    _, failed, messages = examined(tmp_path, **flags, items="items.csv")
    assert not failed
    assert (
        "features: Column 'isbn' of --items holds numbers that are names" in messages["warning"][0]
    )


def test_spelled_alike():
    assert ids.spelled_alike(["A", "x", "12.0", "007"], ["a", "7", "12", "y"]) == [
        ("A", "a"), ("12.0", "12"), ("007", "7"),
    ]  # fmt: skip
    assert ids.spelled_alike(["00000", "1.0"], ["0", "1"]) == [("00000", "0"), ("1.0", "1")]
    assert ids.spelled_alike(["a", "0"], ["a", "0"]) == []


@pytest.mark.parametrize(
    "one, other",
    [
        ("A", "a"), (" a\u00a0", "a"), ("12.0", "12"), ("007", "7"), ("000", "0"), ("00i3", "i3"),
        ("e\u0301", "\u00e9"), ("\uff21b", "ab"), ("\u00b2", "2"),
    ],
)  # fmt: skip
def test_one_table_and_two_tables_know_the_same_spellings(one, other):
    assert ids.look_alikes(ids.IdTable(pa.array([one, other]))) == [(other, one)]
    assert ids.spelled_alike([one], [other]) == [(one, other)]
    apart = ["1.5", "15", "10", "1", "x.0", "x"]
    assert ids.look_alikes(ids.IdTable(pa.array(apart))) == []
    assert [ids.spelled_alike([name], apart) for name in apart] == [[]] * len(apart)


def test_operations_of_the_decomposition_grow_as_its_parts_do():
    base = clock.svd_operations(4000, 2000, 40_000, 100, 4)
    assert clock.svd_operations(8000, 4000, 80_000, 100, 4) == pytest.approx(2 * base)
    assert 3 < clock.svd_operations(4000, 2000, 40_000, 200, 4) / base < 4


def test_the_forecast_of_a_small_run_is_of_its_size(trained, tmp_path, capsys):
    import dataclasses

    config = dataclasses.replace(trained, mode="doctor", workdir=str(tmp_path))
    result = pinsage_jax.doctor(config)
    forecast = result["forecast"]
    spent = json.loads((pathlib.Path(trained.workdir) / "costs.json").read_text())
    assert set(spent["seconds"]) <= set(forecast["seconds"])
    assert forecast["steps"] * config.train.batch_size == spent["pairs"]
    # At this size most of the time is start-up, so only the order of magnitude is checked.
    assert 0.1 < 60 * forecast["minutes"] / spent["total_seconds"] < 10
    assert 0.3 < forecast["memory_bytes"] / spent["peak_memory_bytes"] < 3
    parts = {"prepared", "spectral", "checkpoints", "embeddings"}
    left = sum(
        path.stat().st_size
        for part in parts
        for path in (pathlib.Path(trained.workdir) / part).rglob("*")
        if path.is_file()
    )
    assert 0.5 < forecast["disk_bytes"] / left < 2
    assert "forecast of --mode=pipeline" in capsys.readouterr().out


def test_a_run_that_does_not_fit_is_warned_of():
    findings = doctor.Findings()
    gib = 1 << 30
    forecast = {"memory_bytes": 15 * gib, "disk_bytes": gib}
    forecast["machine"] = {"memory_available_bytes": 16 * gib, "disk_free_bytes": 99 * gib}
    doctor._check_machine(forecast, findings)
    assert [finding.level for finding in findings] == ["warning"]
    assert "15.0 GiB of memory, and 16.0 GiB are free" in findings[0].sentence
