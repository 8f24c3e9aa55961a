"""Generated input: a right result, or one sentence and exit code 2; nothing in between.

Every test here runs the program in this process on tables, bytes and flags that
hypothesis makes up.  By default a few cases of each; the rest has a marker:

  pytest -m long tests/test_fuzzing.py

Bugs that were found this way have tests of their own at the end.
"""

import contextlib
import io
import pathlib
import re
import tempfile

import numpy as np
import pytest
from absl import logging
from fuzz_tables import (
    cells,
    edge_rows,
    expected_graph,
    forms,
    ids,
    rows_of,
    some_text,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinsage_jax import cli, main
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.stages import modes

PLAIN = {
    "kind": "csv", "quoting": 1, "line_end": "\n", "mark": False, "row_group": 5,
    "id_type": "string",
}  # fmt: skip
EDGES = [{"collection_id": c, "item_id": i} for c, i in ("Ax", "Ay", "Bx", "Bz", "Cz", "Cy")]


def cases(few: int, many: int):
    """Runs the test with few generated cases by default and with many in the long suite."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.long)])


def check(count: int, given_values, body) -> None:
    """Calls `body` with `count` generated examples; the few of the default suite are fixed."""
    decorate = settings(
        max_examples=count,
        derandomize=count < 100,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    decorate(given(**given_values)(body))()


@contextlib.contextmanager
def scratch():
    """A folder for one case: thousands of pytest's own would stay until the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def run(workdir, *arguments):
    """(exit code, the sentence if there is one); checks what must hold in any case."""
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
        code = main.main(["program", f"--workdir={workdir}", "--verbosity=error", *arguments])
    text = output.getvalue()
    if code == 0:
        assert text == ""
        return 0, ""
    assert code == 2, f"exit code {code}"
    assert re.fullmatch(r"error: [^\n]+[.?]\n", text), text
    assert text.strip().isprintable() and len(text) < 2000, text
    return 2, text.removeprefix("error: ").strip()


def contents(workdir):
    return sorted(path.name for path in pathlib.Path(workdir).iterdir())


def assert_prepared_is(workdir, expected):
    """The prepared folder holds just the expected ids and edges."""
    item_ids, collection_ids, edges = expected
    prepared = open_prepared(workdir)
    graph = prepared.graph
    assert prepared.item_ids.ids.to_pylist() == item_ids
    assert prepared.collection_ids.ids.to_pylist() == collection_ids
    found = {}
    for item in range(graph.num_items):
        for place in range(graph.indptr[item], graph.indptr[item + 1]):
            key = item_ids[item], collection_ids[graph.indices[place] - graph.num_items]
            assert key not in found
            found[key] = None if graph.weights is None else graph.weights[place]
    assert found.keys() == edges.keys()
    for key, weight in edges.items():
        if weight is not None:
            np.testing.assert_allclose(found[key], weight, rtol=1e-5)
    assert prepared.features.shape[0] == len(item_ids)
    assert np.isfinite(prepared.features).all()


def judge(folder, outcome, expected):
    """`expected`: the graph, None if it must be refused, or "either"."""
    code, sentence = outcome
    work = folder / "work"
    if code == 2:
        assert expected is None or expected == "either", sentence
        # Refused means as if it had never been started.
        assert not work.exists(), contents(work)
        return
    assert expected is not None, "this should have been refused"
    assert set(contents(work)) <= {".lock", "run.flags", "prepared", "split"}
    if expected != "either":
        assert_prepared_is(work, expected)


@cases(25, 600)
def test_edge_tables(count):
    def body(data):
        weighted = data.draw(st.booleans(), "weighted")
        rows = data.draw(edge_rows(weighted), "rows")
        form = data.draw(forms, "form")
        names = ["collection_id", "item_id"] + (["weight"] if weighted else [])
        names = data.draw(st.permutations([*names, "other"]), "order of columns")
        rows = [row | {"other": "x"} for row in rows]
        with scratch() as folder:
            path = write(folder, "edges", names, rows, form)
            flags = [f"--edges={path}", "--mode=prepare"]
            flags += ["--weight_column=weight"] if weighted else []
            outcome = run(folder / "work", *flags)
            judge(folder, outcome, expected_graph(rows, weighted=weighted))

    check(count, {"data": st.data()}, body)


@cases(15, 400)
def test_item_tables(count):
    columns = {
        "item_id": st.one_of(st.sampled_from("xyz"), ids),
        "title": cells,
        "n": st.one_of(st.none(), st.floats().map(str), st.integers(0, 9).map(str), some_text),
        "v": st.one_of(
            st.none(),
            st.sampled_from(["1 2", "[3, 4]", "1 2 3", "", "[]", "1 nan", "1e400 0", "0 0", "x y"]),
        ),
        "c": cells,
    }
    kinds = {"n": "numeric_columns", "v": "dense_columns", "c": "categorical_columns"}

    def body(items, form, used):
        flags = [f"--{kinds[name]}={name}" for name in used]
        with scratch() as folder:
            edges = write(folder, "edges", ["collection_id", "item_id"], EDGES, PLAIN)
            table = write(folder, "items", list(columns), items, form)
            outcome = run(
                folder / "work", f"--edges={edges}", f"--items={table}", "--mode=prepare", *flags
            )
            expected = expected_graph(EDGES, items)
            # Whether made-up numbers and vectors fit is what the readers' own tests say.
            if expected is not None and outcome[0] == 2:
                met = {row["item_id"] for row in items} & {edge["item_id"] for edge in EDGES}
                unmet = not met and "is one of --items" in outcome[1]
                assert unmet or any(f"'{name}'" in outcome[1] for name in columns), outcome[1]
                expected = "either"
            judge(folder, outcome, expected)

    values = {
        "items": rows_of(columns, most=6),
        "form": forms,
        "used": st.sets(st.sampled_from(sorted(kinds))),
    }
    check(count, values, body)


@cases(15, 300)
def test_pair_tables(count):
    some = st.one_of(st.sampled_from("xyz"), st.sampled_from("xyz"), ids, st.none())
    columns = {"query_id": some, "target_id": some, "kind": st.one_of(st.none(), some_text)}

    def body(pairs, form, flag, with_kind):
        names = list(columns)[: 3 if with_kind else 2]
        with scratch() as folder:
            edges = write(folder, "edges", ["collection_id", "item_id"], EDGES, PLAIN)
            table = write(folder, "pairs", names, pairs, form)
            outcome = run(
                folder / "work", f"--edges={edges}", f"--{flag}={table}", "--mode=prepare"
            )
            known = [
                (row["query_id"], row["target_id"])
                for row in pairs
                if row["query_id"] in set("xyz") and row["target_id"] in set("xyz")
            ]
            kept = [(query, target) for query, target in known if query != target]
            whole = all(row["query_id"] and row["target_id"] for row in pairs)
            judge(folder, outcome, expected_graph(EDGES) if kept and whole else None)
            if kept and whole:
                prepared = open_prepared(folder / "work")
                found = getattr(prepared, flag)
                ids_of = prepared.item_ids.ids.to_pylist()
                assert [(ids_of[q], ids_of[t]) for q, t in found.tolist()] == kept

    values = {
        "pairs": rows_of(columns, most=8),
        "form": forms,
        "flag": st.sampled_from(["train_pairs", "eval_pairs"]),
        "with_kind": st.booleans(),
    }
    check(count, values, body)


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file with some bytes cut, changed, put in or doubled; or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        way = draw(st.sampled_from(["flip", "cut", "insert", "double", "end"]))
        if way == "flip" and data:
            data[at] = draw(st.integers(0, 255))
        elif way == "cut":
            del data[at : at + draw(st.integers(1, 20))]
        elif way == "insert":
            data[at:at] = draw(
                st.one_of(
                    st.binary(max_size=8), st.sampled_from([b'"', b",", b"\n", b"\xff", b"\0"])
                )
            )
        elif way == "double":
            data += data[at:]
        else:
            del data[at:]
    return bytes(data)


@cases(25, 500)
def test_damaged_files(count):
    def body(data):
        form = data.draw(forms.filter(lambda form: form["kind"] != "folder"), "form")
        flag = data.draw(st.sampled_from(["edges", "items", "eval_pairs"]), "flag")
        tables = {
            "edges": (["collection_id", "item_id", "when"], [r | {"when": "5"} for r in EDGES]),
            "items": (["item_id", "title", "n"], [
                {"item_id": i, "title": f"title of {i}", "n": "1.5"} for i in "xyz"]),
            "eval_pairs": (["query_id", "target_id"], [
                {"query_id": "x", "target_id": "y"}, {"query_id": "y", "target_id": "z"}]),
        }  # fmt: skip
        with scratch() as folder:
            paths = {n: write(folder, n, *tables[n], form) for n in {"edges", flag}}
            spoilt = data.draw(damaged(paths[flag].read_bytes()), "bytes")
            paths[flag].write_bytes(spoilt)
            flags = [f"--{name}={path}" for name, path in paths.items()]
            flags += data.draw(st.sampled_from([[], ["--time_column=when"]]), "flags")
            mode = data.draw(st.sampled_from(["prepare", "split"]), "mode")
            outcome = run(folder / "work", f"--mode={mode}", *flags)
            judge(folder, outcome, "either")
            if outcome[0] == 0 and mode == "prepare":
                open_prepared(folder / "work")

    check(count, {"data": st.data()}, body)


@cases(10, 150)
def test_split_of_any_edge_table(count):
    def body(rows, form, by, pairs, time):
        rows = [row | {"when": time} for row in rows]
        with scratch() as folder:
            path = write(folder, "edges", ["collection_id", "item_id", "when"], rows, form)
            flags = [f"--edges={path}", "--mode=split", f"--split_by={by}"]
            flags += [f"--split_pairs={pairs}", "--time_column=when"]
            outcome = run(folder / "work", *flags)
            judge(folder, outcome, "either" if expected_graph(rows) else None)
            if outcome[0] == 0:
                # What was split can be prepared, its checks for leaks included.
                split = folder / "work" / "split"
                again = run(
                    folder / "again",
                    f"--edges={split / 'train_edges.parquet'}",
                    f"--eval_pairs={split / 'eval_pairs.parquet'}",
                    "--mode=prepare",
                )
                # Without a table of items one that lost all its edges is unknown.
                assert again == (0, "") or "names two known items" in again[1], again[1]

    values = {
        "rows": edge_rows(),
        "form": forms,
        "by": st.sampled_from(["collections", "items", "time", "leave_one_out"]),
        "pairs": st.integers(1, 20),
        "time": st.sampled_from(["5", "2024-05-31", "", "never", "1e300"]),
    }
    check(count, values, body)


def _setting_names():
    values = main.flags.FlagValues()
    cli.define_flags(values)
    # These two would write where they say; others only read.
    return sorted(set(values) - {"workdir", "flagfile"})


flag_values = st.one_of(
    st.sampled_from(["", "0", "1", "-1", "true", "nan", "inf", "-inf", "1e400", "9" * 40, "0.5"]),
    st.integers().map(str),
    st.floats().map(str),
    some_text,
    # What a command line that is not UTF-8 arrives as.
    st.binary(max_size=5).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)
arguments = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(_setting_names()), flag_values),
    st.builds("--{}".format, st.sampled_from(_setting_names())),
    st.builds("--no{}".format, st.sampled_from(_setting_names())),
    flag_values.filter(lambda text: not text.startswith(("--w", "-w", "--fl", "-fl"))),
)


@cases(40, 500)
def test_flags(count, monkeypatch):
    """Any command line: settings that hold, or a sentence; the stages are left out."""
    monkeypatch.setattr(modes, "stage", lambda mode: lambda config: config.validate())
    # Any --verbosity would hold for the tests that follow. The one warning of this part,
    # which --verbosity=error leaves out, is for test_cli.py.
    monkeypatch.setattr(main.logging_setup, "set_up", lambda verbosity: None)
    monkeypatch.setattr(logging, "warning", lambda *words: None)

    def body(typed, in_file, as_bytes):
        with scratch() as folder:
            file = folder / "some.flags"
            lines = [text.encode("utf-8", "surrogateescape") for text in in_file]
            file.write_bytes(as_bytes or b"\n".join(lines))
            code, _ = run(folder / "work", *typed, f"--flagfile={file}")
            if code == 0:
                assert not (folder / "work").exists() or contents(folder / "work") == [".lock"]

    values = {
        "typed": st.lists(arguments, max_size=4),
        "in_file": st.lists(arguments, max_size=3),
        "as_bytes": st.one_of(st.just(b""), st.just(b""), st.binary(max_size=40)),
    }
    body(["--synthetic"], ["--synthetic"], b"")
    check(count, values, body)


# Found by the tests above; a batch without a vector is in test_features.py.


def test_names_from_files_cannot_write_on_the_terminal(tmp_path):
    names = ["\x00collection\x1b[2J\nid", "item_id"]
    rows = [dict.fromkeys(names, "x")]
    edges = write(tmp_path, "edges", names, rows, PLAIN)
    code, sentence = run(tmp_path / "work", f"--edges={edges}", "--mode=prepare")
    assert code == 2 and r"its columns are: \x00collection\x1b[2J\nid, item_id" in sentence


@pytest.mark.parametrize("value", ["a\0b", "\udcff.csv"])
def test_paths_that_cannot_be_written_down(value, tmp_path):
    for flag in ("edges", "data_dir"):
        code, sentence = run(
            tmp_path / "work", "--synthetic", f"--{flag}={value}", "--mode=prepare"
        )
        assert code == 2 and "is not UTF-8 text or holds a NUL" in sentence
    assert not (tmp_path / "work").exists()
