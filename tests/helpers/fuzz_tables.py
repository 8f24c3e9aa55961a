"""Hypothesis strategies for hostile tables, and their graph computed in plain Python.

A table is a list of rows of text or None by column name; `write` puts it on disk in any
of the forms that are read.  `expected_graph` is the slow reference of the prepare stage.
"""

from __future__ import annotations

import csv
import gzip
import io
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

HOSTILE = (
    "7", "007", "a,b", 'q"x"', '"', "'", "two\nlines", "two\r\nends", "\r", "\n", " pad ", "\t",
    "emoji \U0001f9f7", "é", "e\u0301", "\ufeff", "\u202egnp", "NA", "null", "nan", "None", "-1",
    "1e5", "1.0", "#", "=1+1", "../../escape", "/", "a/b", "..", "%00", "\x00", "\x1b[2J",
    "<script>alert(1)</script>", "x" * 10_240,
)  # fmt: skip
# How a weight may be written, and what it is; None: refused.
WEIGHTS = {
    "1": 1.0, "0.5": 0.5, "1e3": 1000.0, " 2 ": 2.0, "true": 1.0, "3e38": 3e38, "1e-30": 1e-30,
    "0": None, "-1": None, "nan": None, "inf": None, "": None, "abc": None, "1e39": None,
    "1e-60": None, "1,5": None, "0x10": None, "NA": None,
}  # fmt: skip

# Lone surrogates cannot be written as UTF-8.
some_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ids = st.one_of(st.sampled_from(HOSTILE), some_text.filter(bool), st.integers(0, 30).map(str))
whole_numbers = st.integers(-(2**63), 2**63 - 1).map(str)
cells = st.one_of(
    st.none(), st.sampled_from(HOSTILE), some_text, st.floats().map(str), st.integers().map(str)
)
forms = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["csv", "csv.gz", "parquet", "folder"]),
        "quoting": st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
        "line_end": st.sampled_from(["\n", "\r\n"]),
        "mark": st.booleans(),
        "row_group": st.integers(1, 5),
        "id_type": st.sampled_from(["string", "large_string", "dictionary"]),
    }
)


def rows_of(columns: dict[str, Any], most: int = 12, least: int = 0):
    """Strategy of lists of rows whose cells come from a strategy a column."""
    return st.lists(st.fixed_dictionaries(columns), min_size=least, max_size=most)


@st.composite
def edge_rows(draw, weighted: bool = False) -> list[dict[str, str | None]]:
    """Edges over few ids, so that duplicates, hubs and shared names are common."""
    kind = draw(st.sampled_from([ids, ids, whole_numbers]))
    pool = draw(st.lists(kind, min_size=1, max_size=6, unique=True))
    rare = st.sampled_from([*pool] * 20 + ["", None])
    columns = {"collection_id": rare, "item_id": rare}
    if weighted:
        good = [text for text, value in WEIGHTS.items() if value is not None]
        columns["weight"] = st.sampled_from(good * 8 + sorted(WEIGHTS))
    return draw(rows_of(columns))


def as_csv(names: list[str], rows: list[dict[str, str | None]], form: dict[str, Any]) -> bytes:
    """The table as CSV; None is an empty cell."""
    text = io.StringIO()
    quoting = form["quoting"]
    # Python leaves a lone carriage return unquoted where lines end otherwise.
    if any("\r" in cell for row in rows for cell in row.values() if cell):
        quoting = csv.QUOTE_ALL
    writer = csv.writer(text, quoting=quoting, lineterminator=form["line_end"])
    writer.writerow(names)
    writer.writerows([["" if row[n] is None else row[n] for n in names] for row in rows])
    return text.getvalue().encode("utf-8-sig" if form["mark"] else "utf-8")


def as_arrow(names: list[str], rows: list[dict[str, str | None]], form: dict[str, Any]) -> pa.Table:
    """The table with typed columns: integers where every cell is one of 64 bits."""
    columns = {}
    for name in names:
        values = [row[name] for row in rows]
        if values and all(_is_int64(value) for value in values):
            columns[name] = pa.array([int(value) for value in values], pa.int64())
            continue
        text = pa.array(values, pa.large_string())
        if form["id_type"] == "dictionary":
            columns[name] = text.dictionary_encode()
        else:
            columns[name] = text.cast(getattr(pa, form["id_type"])())
    return pa.table(columns)


def _is_int64(text: str | None) -> bool:
    try:
        number = int(text)
    except (TypeError, ValueError):
        return False
    return str(number) == text and -(2**63) <= number < 2**63


def write(
    folder: pathlib.Path, name: str, names: list[str], rows: list[dict], form: dict[str, Any]
) -> pathlib.Path:
    """Writes the table in the form; returns its path."""
    kind = form["kind"]
    path = folder / f"{name}.{kind}"
    if kind == "csv":
        path.write_bytes(as_csv(names, rows, form))
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(as_csv(names, rows, form), mtime=0))
    elif kind == "parquet":
        pq.write_table(as_arrow(names, rows, form), path, row_group_size=form["row_group"])
    else:
        path.mkdir()
        half = len(rows) // 2
        table = as_arrow(names, rows, form)
        for number, part in enumerate((table.slice(0, half), table.slice(half))):
            pq.write_table(part, path / f"part-{number}.parquet", row_group_size=form["row_group"])
    return path


def expected_graph(
    edges: list[dict], items: list[dict] | None = None, weighted: bool = False
) -> tuple[list[str], list[str], dict] | None:
    """(item ids in order, collection ids in order, {(item, collection): weight}); None: refused."""
    needed = [row[name] for row in edges for name in ("item_id", "collection_id")]
    needed += [row["item_id"] for row in items or []]
    if not edges or not all(needed) or (items is not None and not items):
        return None
    first = [row["item_id"] for row in items or []]
    if len(set(first)) < len(first):
        return None
    graph: dict[tuple[str, str], np.float32 | None] = {}
    for row in edges:
        key, weight = (row["item_id"], row["collection_id"]), None
        if weighted:
            if not row["weight"] or (value := WEIGHTS[row["weight"]]) is None:
                return None
            with np.errstate(over="ignore"):
                weight = np.float32(graph.get(key, np.float32(0)) + np.float32(value))
            if not np.isfinite(weight):
                return None
        graph[key] = weight
    # By bytes, as UTF-8 orders them, which is also the order of code points.
    rest = sorted({row["item_id"] for row in edges} - set(first))
    return [*first, *rest], sorted({row["collection_id"] for row in edges}), graph
