"""The prepare stage end to end on small tables, and every mistake it must name."""

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.catalog import prepare
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.data import DataConfig, SyntheticCatalog, SyntheticConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import features, tables
from pinsage_jax.data.pairs_table import read_pairs
from pinsage_jax.synthetic import generator

HOSTILE = ["a,b", 'q"x"', "two\nlines", "two\r\nends", "emoji \U0001f9f7", "007", "7", "x" * 10_240]


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows(rows)


def run(tmp_path, synthetic=None, **data):
    return prepare.prepare(
        Config(
            "prepare", str(tmp_path / "work"), 0, 1,
            data=DataConfig(data_dir=str(tmp_path), **data),
            synthetic=synthetic or SyntheticConfig(),
        )
    )  # fmt: skip


def edge_set(prepared):
    """{(item id, collection id): weight} read back through ids and CSR."""
    graph = prepared.graph
    items, collections = prepared.item_ids.ids.to_pylist(), prepared.collection_ids.ids.to_pylist()
    edges = {}
    for item in range(graph.num_items):
        span = slice(graph.indptr[item], graph.indptr[item + 1])
        for place, node in enumerate(graph.indices[span].tolist()):
            weight = None if graph.weights is None else float(graph.weights[span][place])
            edges[items[item], collections[node - graph.num_items]] = weight
    return edges


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_hostile_ids_come_back_unchanged(kind, tmp_path):
    rows = [(f"{c}#", i) for c in HOSTILE for i in HOSTILE if c != i]
    rows += rows[:5]
    item_rows = [(name, f"title of {name}", n) for n, name in enumerate([*HOSTILE[::-1], "lonely"])]
    pairs = [
        (HOSTILE[0], HOSTILE[2]),
        (HOSTILE[4], "lonely"),
        ("7", "007"),
        ("7", "7"),
        ("7", "no"),
    ]
    for name, header, content in (
        ("edges", ["collection_id", "item_id"], rows),
        ("items", ["item_id", "title", "n"], item_rows),
        ("pairs", ["query_id", "target_id"], pairs),
    ):
        if kind == "csv":
            write_csv(tmp_path / f"{name}.csv", header, content)
        else:
            columns = dict(zip(header, map(list, zip(*content, strict=True)), strict=True))
            pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    found = run(
        tmp_path, edges=f"edges.{kind}", items=f"items.{kind}", eval_pairs=f"pairs.{kind}",
        text_columns="",
    )  # fmt: skip
    assert found.item_ids.ids.to_pylist() == [row[0] for row in item_rows]
    assert edge_set(found) == {(item, collection): None for collection, item in rows}
    assert found.titles.to_pylist() == [row[1] for row in item_rows]
    names = found.item_ids.names(found.eval_pairs.ravel()).to_pylist()
    assert list(zip(names[::2], names[1::2], strict=True)) == pairs[:3]
    assert found.eval_kinds.tolist() == ["warm", "cold", "warm"]
    assert found.manifest["counts"]["duplicate_edges"] == 5
    assert found.manifest["counts"]["items_without_edges"] == 1
    assert found.manifest["pairs"]["eval_pairs"] == {
        "rows": 5, "unknown_query": 0, "unknown_target": 1, "self_pairs": 1, "kept": 3,
    }  # fmt: skip
    assert found.train_pairs is None and found.features.shape == (9, 1)


def test_items_weights_times_and_pairs(tmp_path, monkeypatch):
    # Two rows at a time, so that every loop over batches turns.
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    monkeypatch.setattr(features, "_BATCH_ROWS", 2)
    edges = {
        "board": ["B", "A", "B", "A", "B"],
        "pin": [3, 1, 3, 9, 1],
        "w": [1.5, 2.0, 0.25, 1.0, 4.0],
        "at": ["2024-01-02", "2024-01-05", "2024-01-01", "2024-01-03", "2024-01-04"],
    }
    pq.write_table(pa.table(edges), tmp_path / "edges.parquet")
    items = {
        "pin": ["1", "2", "3"],
        "name": ["one", None, "three"],
        "v": [[3.0, 4.0], None, [1.0, 0.0]],
    }
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    pairs = {"query_id": ["1", "3", "zz"], "target_id": ["3", "2", "1"], "kind": ["x", None, "y"]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    train = {"query_id": ["1", "zz"], "target_id": ["2", "1"]}
    pq.write_table(pa.table(train), tmp_path / "train.parquet")
    found = run(
        tmp_path, edges="edges.parquet", items="items.parquet", train_pairs="train.parquet",
        eval_pairs="pairs.parquet", collection_column="board", item_column="pin",
        item_id_column="pin", weight_column="w", time_column="at", feature_dtype="float16",
    )  # fmt: skip
    assert found.item_ids.ids.to_pylist() == ["1", "2", "3", "9"]
    assert found.collection_ids.ids.to_pylist() == ["A", "B"]
    assert edge_set(found) == {
        ("1", "A"): 2.0, ("1", "B"): 4.0, ("3", "B"): 1.75, ("9", "A"): 1.0,
    }  # fmt: skip
    days = np.load(tmp_path / "work" / "prepared" / "times.npy") // (86400 * 10**6) - 19722
    # Rows of items 1 (A, B), 3 (B, the earlier of two), 9 (A).
    assert days.tolist() == [5, 4, 1, 3]
    assert found.manifest["time_kind"] == "timestamp"
    np.testing.assert_allclose(found.features, [[0.6, 0.8], [0, 0], [1, 0], [0, 0]], atol=1e-3)
    assert found.features.dtype == np.float16
    assert found.titles.to_pylist() == ["one", "", "three", None]
    assert found.train_pairs.tolist() == [[0, 1]]
    assert found.eval_pairs.tolist() == [[0, 2], [2, 1]]
    assert found.eval_kinds.tolist() == ["x", "cold"]
    report = found.manifest["features"]
    assert report["missing"] == {"v": 1} and report["items_without_row"] == 1


@pytest.fixture
def inputs(tmp_path):
    write_csv(
        tmp_path / "e.csv", ["collection_id", "item_id"], [("A", "1"), ("A", "2"), ("B", "1")]
    )
    write_csv(tmp_path / "i.csv", ["item_id", "n"], [("1", 4), ("2", 5)])
    return tmp_path


def test_no_item_table(inputs):
    found = run(inputs, edges="e.csv")
    assert found.features.shape == (2, 0) and found.titles is None
    assert found.eval_pairs.shape == (0, 2) and len(found.eval_kinds) == 0


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
@pytest.mark.parametrize("with_items", [False, True])
def test_the_row_order_of_edges_changes_no_bit(with_items, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 50)
    rng = np.random.default_rng(4)
    boards, pins = rng.integers(-3, 9, 400), rng.integers(0, 30, 400)
    # Many duplicates, of weights whose float64 sum depends on the order.
    weights = (10.0 ** rng.uniform(-9, 9, 400)).astype(np.float32)
    times = rng.integers(0, 1000, 400)
    chosen = {"items": "items.csv", "text_columns": ""} if with_items else {}
    checksums, ids = set(), []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(400) if seed else np.arange(400)
        folder = tmp_path / str(seed)
        folder.mkdir()
        columns = {
            "collection_id": pa.array(boards[order]).cast(kind),
            "item_id": pa.array(pins[order]).cast(kind),
            "w": weights[order],
            "t": times[order],
        }
        pq.write_table(pa.table(columns), folder / "edges.parquet")
        # Numbered by the rows of --items where there are such.
        write_csv(folder / "items.csv", ["item_id", "n"], [(n, n / 7) for n in (20, 3, 11, 40)])
        found = run(folder, edges="edges.parquet", weight_column="w", time_column="t", **chosen)
        checksums.add(json.dumps(found.manifest["checksums"], sort_keys=True))
        ids.append((found.item_ids.ids.to_pylist(), found.collection_ids.ids.to_pylist()))
    assert len(checksums) == 1
    items, collections = ids[0]
    assert collections == sorted(str(board) for board in set(boards.tolist()))
    rows = ["20", "3", "11", "40"] if with_items else []
    assert items == rows + sorted({str(pin) for pin in pins.tolist()} - set(rows))


def test_unchanged_inputs_are_not_read_again(inputs, monkeypatch):
    first = run(inputs, edges="e.csv", items="i.csv")
    manifest = inputs / "work" / "prepared" / "manifest.json"
    written = manifest.stat().st_mtime_ns

    def again(**data):
        run(inputs, **{"edges": "e.csv", "items": "i.csv", **data})
        return manifest.stat().st_mtime_ns

    assert again() == written
    assert again(feature_dtype="float16") != written
    written = again()
    assert again() == written
    write_csv(inputs / "e.csv", ["collection_id", "item_id"], [("A", "1"), ("A", "2")])
    changed = again()
    assert changed != written
    assert open_prepared(inputs / "work").graph.num_edges == 2 and first.graph.num_edges == 3
    state = (inputs / "i.csv").stat()
    os.utime(inputs / "i.csv", ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert again() != changed


def test_a_failed_run_leaves_the_old_folder_and_no_litter(inputs):
    run(inputs, edges="e.csv")
    before = (inputs / "work" / "prepared" / "manifest.json").read_bytes()
    write_csv(inputs / "e.csv", ["collection_id", "item_id"], [("A", "1"), ("", "2")])
    with pytest.raises(UserError):
        run(inputs, edges="e.csv")
    assert (inputs / "work" / "prepared" / "manifest.json").read_bytes() == before
    assert [path.name for path in (inputs / "work").iterdir()] == ["prepared"]
    assert not list((inputs / "work" / "prepared").rglob("*codes*"))


def test_the_synthetic_catalog_is_written_once_per_setting(tmp_path, monkeypatch):
    calls = []

    def write_catalog(settings, folder):
        calls.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        edges = {"collection_id": ["b0", "b0"], "item_id": ["p0", "p1"]}
        pairs = {"query_id": ["p0"], "target_id": ["p1"]}
        other_pairs = {"query_id": ["p0"], "target_id": ["p2"]}
        items = {"item_id": ["p0", "p1", "p2"], "v": [[1.0], [2.0], [3.0]]}
        paths = {}
        for name, table in (
            ("edges", edges), ("items", items), ("train_pairs", pairs),
            ("eval_pairs", other_pairs),
        ):  # fmt: skip
            paths[name] = str(folder / f"{name}.parquet")
            pq.write_table(pa.table(table), paths[name])
        return paths

    monkeypatch.setattr(generator, "write_catalog", write_catalog)
    found = run(tmp_path, synthetic=SyntheticConfig(True), item_column="other")
    assert calls == [tmp_path / "work" / "inputs"]
    assert found.graph.num_edges == 2 and found.train_pairs.tolist() == [[0, 1]]
    run(tmp_path, synthetic=SyntheticConfig(True), item_column="other")
    assert len(calls) == 1
    run(
        tmp_path,
        synthetic=SyntheticConfig(True, synthetic_catalog=SyntheticCatalog(seed=1)),
        item_column="other",
    )
    assert len(calls) == 2


def fails(tmp_path, sentence, **data):
    with pytest.raises(UserError, match=sentence) as caught:
        run(tmp_path, **data)
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "?")) and len(text) < 1000


def test_wrong_paths_and_columns(inputs):
    fails(inputs, r"^--edges=.*none\.csv does not exist", edges="none.csv")
    fails(inputs, r"^--items=.*none\.csv does not exist", edges="e.csv", items="none.csv")
    fails(inputs, r"^--eval_pairs=.*none\.csv does not exist", edges="e.csv", eval_pairs="none.csv")
    fails(inputs, r"^--edges is required", edges="")
    no_column = r"has no column 'pin' \(named by --{}\); its columns are: "
    for flag in ("item_column", "collection_column", "weight_column", "time_column"):
        fails(inputs, no_column.format(flag), edges="e.csv", **{flag: "pin"})
    fails(
        inputs,
        no_column.format("item_id_column"),
        edges="e.csv",
        items="i.csv",
        item_id_column="pin",
    )
    fails(
        inputs, no_column.format("title_column"), edges="e.csv", items="i.csv", title_column="pin"
    )
    fails(
        inputs,
        no_column.format("numeric_columns"),
        edges="e.csv",
        items="i.csv",
        numeric_columns="pin",
    )
    fails(inputs, "are both 'item_id'", edges="e.csv", collection_column="item_id")
    fails(inputs, r"has no column 'query_id'", edges="e.csv", eval_pairs="i.csv")


def test_workdir_that_cannot_be_written(inputs):
    (inputs / "work").write_text("")
    fails(inputs, r"^--workdir=.*work is a file", edges="e.csv")
    (inputs / "file").write_text("")
    config = Config(
        "prepare",
        str(inputs / "file" / "below"),
        0,
        1,
        data=DataConfig(edges=str(inputs / "e.csv")),
    )
    with pytest.raises(UserError, match=r"^Cannot write .*choose another --workdir"):
        prepare.prepare(config)


@pytest.mark.parametrize(
    ("edges", "sentence"),
    [
        ([], r"^--edges=.*e\.csv has no rows"),
        ([("A", "1", 1, 1), ("", "2", 1, 1)], r"'collection_id' is empty in row 2 of .*e\.csv"),
        ([("A", "", 1, 1), ("B", "2", 1, 1)], r"'item_id' is empty in row 1 of .*e\.csv"),
        ([("A", "1", 1, 1), ("B", "2", -1, 1)], r"'w' is -1.0 in row 2 of .*e\.csv; weights must"),
        ([("A", "1", 1, 1), ("B", "2", 0, 1)], r"'w' is 0.0 in row 2 of .*e\.csv; weights must"),
        (
            [("A", "1", 1, 1), ("B", "2", "nan", 1)],
            r"'w' is nan in row 2 of .*e\.csv; weights must",
        ),
        (
            [("A", "1", "inf", 1), ("B", "2", 1, 1)],
            r"'w' is inf in row 1 of .*e\.csv; weights must",
        ),
        ([("A", "1", 1, 1), ("B", "2", "", 1)], r"'w' is empty in row 2 of .*needs a weight"),
        ([("A", "1", "heavy", 1)], r"'w' is 'heavy' in row 1 of .*not a number"),
        ([("A", "1", 1, 1), ("B", "2", 1, "soon")], r"'t' is 'soon' in row 2 of .*nor a date"),
        ([("A", "1", 1, "2024-01-01"), ("B", "2", 1, 3)], r"'t' is '3' in row 2 of .*nor a date"),
    ],
)
def test_bad_edges(edges, sentence, tmp_path):
    write_csv(tmp_path / "e.csv", ["collection_id", "item_id", "w", "t"], edges)
    fails(tmp_path, sentence, edges="e.csv", weight_column="w", time_column="t")


@pytest.mark.parametrize("batch_rows", [2, 1 << 20])
@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (["1", "2", "1"], r"^Item '1' is in --items more than once, again in row 3 of"),
        (["1", "2", "2", "1"], r"^Item '2' is in --items more than once, again in row 3 of"),
        (["1", "1"], r"^Item '1' is in --items more than once, again in row 2 of"),
        (["1", None], r"^Column 'item_id' is empty in row 2 of"),
        ([1.0, 2.0], r"^Column 'item_id' holds double values"),
        (["x\n" * 9000, "x\n" * 9000], r"more than once, again in row 2 of"),
    ],
)
def test_bad_item_ids(ids, sentence, batch_rows, inputs, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", batch_rows)
    pq.write_table(pa.table({"item_id": ids}), inputs / "i.parquet")
    fails(inputs, sentence, edges="e.csv", items="i.parquet")


def test_bad_feature_names_column_and_item(inputs):
    write_csv(inputs / "i.csv", ["item_id", "n"], [("1", 4), ("2", "inf")])
    fails(
        inputs, r"Column 'n' is inf in row 2 of .*i\.csv \(item '2'\)", edges="e.csv", items="i.csv"
    )


@pytest.mark.parametrize("flag", ["train_pairs", "eval_pairs"])
@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([("8", "9"), ("1", "9")], r"none of its 2 pairs names two known items"),
        ([("1", "1"), ("8", "9")], r"all 1 known pairs join an item with itself"),
        ([("1", "2"), ("", "2")], r"'query_id' is empty in row 2 of"),
        ([("1", "")], r"'target_id' is empty in row 1 of"),
        ([], r"has no rows"),
    ],
)
def test_bad_pairs(flag, pairs, sentence, inputs):
    write_csv(inputs / "p.csv", ["query_id", "target_id"], pairs)
    fails(inputs, sentence, edges="e.csv", **{flag: "p.csv"})


def test_dropped_pairs_are_logged(inputs, caplog):
    write_csv(
        inputs / "p.csv",
        ["query_id", "target_id"],
        [("1", "2"), ("1", "x"), ("y", "z"), ("2", "2")],
    )
    prepared = run(inputs, edges="e.csv")
    with caplog.at_level("WARNING"):
        found = read_pairs(
            tables.open_table(inputs / "p.csv", "eval_pairs"),
            prepared.item_ids,
            prepared.graph.degree(),
        )
    assert found.report == {
        "rows": 4, "unknown_query": 1, "unknown_target": 2, "self_pairs": 1, "kept": 1,
    }  # fmt: skip
    assert "--eval_pairs: 2 of 4 pairs dropped" in caplog.text
    assert "--eval_pairs: 1 pairs of an item with itself" in caplog.text


def test_open_prepared_names_what_is_wrong(inputs):
    with pytest.raises(UserError, match="holds no prepared data; run --mode=prepare first"):
        open_prepared(inputs)
    run(inputs, edges="e.csv", items="i.csv")
    work = inputs / "work"
    prepared = work / "prepared"
    open_prepared(work)
    listed = json.loads((prepared / "manifest.json").read_text())["checksums"]
    assert "features/features.npy" in listed and "item_ids.arrow" in listed
    whole = (prepared / "features" / "features.npy").read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    (prepared / "features" / "features.npy").write_bytes(bytes(flipped))
    with pytest.raises(UserError, match=r"features\.npy is damaged"):
        open_prepared(work)
    (prepared / "features" / "features.npy").write_bytes(whole[:-4])
    with pytest.raises(UserError, match=r"features\.npy is damaged"):
        open_prepared(work)
    np.save(prepared / "features" / "features.npy", np.zeros((7, 1), np.float32))
    with pytest.raises(UserError, match="has 7 entries but the manifest says 2"):
        open_prepared(work)
    (prepared / "features" / "features.npy").write_bytes(whole)
    (prepared / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_prepared(work)
    # A damaged manifest counts as absent: the stage simply runs again.
    assert run(inputs, edges="e.csv", items="i.csv").graph.num_edges == 3


def test_ids_that_never_meet_are_refused(tmp_path, caplog):
    write_csv(
        tmp_path / "e.csv",
        ["collection_id", "item_id"],
        [(f"c{i % 9}", f"{i:05d}") for i in range(60)],
    )
    items = pa.table({"item_id": list(range(60)), "price": [float(i % 7) for i in range(60)]})
    pq.write_table(items, tmp_path / "i.parquet")
    with pytest.raises(UserError, match="60 of them differ in spelling only: '00000' is '0'"):
        run(tmp_path, edges="e.csv", items="i.parquet")
    ids = [f"{i:05d}" if i % 5 else str(i) for i in range(60)]
    pq.write_table(items.set_column(0, "item_id", [ids]), tmp_path / "i.parquet")
    run(tmp_path, edges="e.csv", items="i.parquet")
    assert "12 of 72 (16.7%) items are in --edges but not in --items" in caplog.text
