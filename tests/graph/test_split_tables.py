"""Split tables against their definitions, recomputed with sets and loops."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.catalog.prepare import prepare
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.tools import SplitToolConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import leaks
from pinsage_jax.data.ids import IdTable
from pinsage_jax.graph import split_tables
from pinsage_jax.graph.pair_draws import pairs_per_group


def edge_rows(seed=0, rows=400, items=60, collections=25):
    """(collection, item, weight, time) rows with duplicates; collection c0 has one item."""
    rng = np.random.default_rng(seed)
    found = [("c0", "i3", 1.0, 50)]
    for _ in range(rows):
        item, collection = rng.integers(items), rng.integers(1, collections)
        found.append((f"c{collection}", f"i{item}", float(rng.random() + 0.1), rng.integers(100)))
    found += found[:10]
    return found


def write_edges(path, rows, **more):
    names = ("collection_id", "item_id", "weight", "at")
    table = pa.table(dict(zip(names, map(list, zip(*rows)))) | more)
    pq.write_table(table, path, row_group_size=37)
    return str(path)


def run_split(tmp_path, rows=None, *, path=None, seed=5, data=None, **tool):
    edges = path or write_edges(tmp_path / "edges.parquet", rows or edge_rows())
    config = Config(
        mode="split", workdir=str(tmp_path / "run"), seed=seed, threads=1,
        data=DataConfig(edges=edges, **(data or {})), split_tool=SplitToolConfig(**tool),
    )  # fmt: skip
    config.validate()
    manifest = split_tables.split(config)
    folder = tmp_path / "run" / "split"
    assert manifest == files.read_json(folder / "manifest.json")
    files.verify_checksums(folder, manifest["files"])
    train = pq.read_table(folder / "train_edges.parquet").to_pylist()
    pairs = pq.read_table(folder / "eval_pairs.parquet").to_pylist()
    return manifest, train, pairs, folder


def allowed_pairs(rows, train, by, held):
    """{collection: every pair it may give}, from the definition in the docstring."""
    known = {row["item_id"] for row in train}
    before = {}
    for row in train:
        before.setdefault(row["collection_id"], set()).add(row["item_id"])
    members = {}
    for collection, item, *_ in rows:
        members.setdefault(collection, set()).add(item)
    allowed = {}
    for collection, items in members.items():
        kept = before.get(collection, set())
        if by == "collections":
            queries, targets = (items & known, items) if collection in held else ((), ())
        elif by == "items":
            queries, targets = items - held, items & held
        else:
            queries, targets = kept or items & known, items - kept
        pairs = {(q, t) for q in queries for t in targets if q != t}
        if pairs:
            allowed[collection] = pairs
    return allowed


@pytest.mark.parametrize("limit", [3, 40, 10**6])
@pytest.mark.parametrize("by", ["collections", "items", "time"])
def test_tables_follow_the_definition(tmp_path, by, limit):
    rows = edge_rows()
    data = {"time_column": "at"} if by == "time" else {}
    manifest, train, pairs, folder = run_split(
        tmp_path, rows, data=data, split_by=by, split_share=0.25, split_pairs=limit
    )
    held = set()
    if by == "time":
        cut = np.sort([row[3] for row in rows])[int(np.ceil(0.75 * len(rows))) - 1]
        assert manifest["cut"] == cut
        expected = [row for row in rows if row[3] <= cut]
        assert not (folder / "withheld.parquet").exists()
    else:
        held = set(pq.read_table(folder / "withheld.parquet").column(0).to_pylist())
        place = 0 if by == "collections" else 1
        expected = [row for row in rows if row[place] not in held]
        everything = {row[place] for row in rows if by == "items" or row[0] != "c0"}
        assert len(held) == round(0.25 * len(everything)) and held < everything
    assert [tuple(row.values()) for row in train] == expected

    allowed = allowed_pairs(rows, train, by, held)
    drawn = [(pair["query_id"], pair["target_id"]) for pair in pairs]
    assert len(set(drawn)) == len(drawn) > 0
    assert set(drawn) <= set().union(*allowed.values())
    if limit == 10**6:
        assert set(drawn) == set().union(*allowed.values())
    assert len(drawn) <= limit
    known = {row["item_id"] for row in train}
    assert all(q in known for q, _ in drawn)
    for pair in pairs:
        assert pair["kind"] == ("warm" if pair["target_id"] in known else "cold")
    if by == "items":
        assert {pair["kind"] for pair in pairs} == {"cold"}
    counts = manifest["counts"]
    assert counts["edge_rows"] == len(rows) and counts["train_edge_rows"] == len(train)
    assert counts["train_edges"] == len({(r["collection_id"], r["item_id"]) for r in train})
    assert counts["collections_with_pairs"] == len(allowed)
    together = {}
    for row in train:
        together.setdefault(row["item_id"], set()).add(row["collection_id"])
    assert counts["pairs_sharing_a_training_collection"] == sum(
        bool(together.get(q, set()) & together.get(t, set())) for q, t in drawn
    )
    again = run_split(tmp_path, rows, data=data, split_by=by, split_share=0.25, split_pairs=limit)
    assert (again[0], again[2]) == (manifest, pairs)


@pytest.mark.parametrize("last", [True, False])
def test_one_edge_of_every_collection_is_left_out(tmp_path, last):
    rows = edge_rows(rows=150)
    data = {"time_column": "at"} if last else {}
    manifest, train, pairs, folder = run_split(
        tmp_path, rows, data=data, split_by="leave_one_out", split_pairs=10**6
    )
    members = {}
    for collection, item, _, at in rows:
        times = members.setdefault(collection, {})
        times[item] = min(at, times.get(item, at))
    held = {
        row["collection_id"]: row["item_id"]
        for row in pq.read_table(folder / "withheld.parquet").to_pylist()
    }
    # A collection of one item, as c0, keeps it.
    assert set(held) == {c for c, times in members.items() if len(times) > 1} < {*members}
    latest = [members[c][item] == max(members[c].values()) for c, item in held.items()]
    assert all(latest) == last and manifest["edge"] == ("last" if last else "random")
    # Every row of an edge goes, duplicates too.
    expected = [row for row in rows if held.get(row[0]) != row[1]]
    assert [tuple(row.values()) for row in train] == expected
    assert manifest["counts"]["withheld_edges"] == len(held)
    assert {(p["query_id"], p["target_id"]) for p in pairs} == {
        (query, item) for c, item in held.items() for query in members[c] if query != item
    }
    known = {row["item_id"] for row in train}
    assert all((p["kind"] == "warm") == (p["target_id"] in known) for p in pairs)
    other = run_split(
        tmp_path, rows, seed=6, data=data, split_by="leave_one_out", split_pairs=10**6
    )[2]
    assert last or other != pairs


def test_of_the_latest_edges_a_random_one_is_left_out(tmp_path):
    rows = [(f"c{c}", f"i{i}", 1.0, 9 if i < 3 else 1) for c in range(30) for i in range(6)]
    _, _, pairs, _ = run_split(
        tmp_path, rows, data={"time_column": "at"}, split_by="leave_one_out", split_pairs=30
    )
    assert {pair["target_id"] for pair in pairs} == {"i0", "i1", "i2"}


def test_seeds_differ(tmp_path):
    first, other = (run_split(tmp_path, seed=seed)[2] for seed in (1, 2))
    assert first != other


def test_csv_edges_keep_leading_zeros(tmp_path):
    path = tmp_path / "edges.csv"
    lines = [f"{c:03},{i:02}" for c in range(20) for i in range(c % 3, 9)]
    path.write_text("collection_id,item_id\n" + "\n".join(lines) + "\n")
    _, train, pairs, _ = run_split(tmp_path, path=str(path), split_share=0.3)
    written = [f"{row['collection_id']},{row['item_id']}" for row in train]
    assert 0 < len(written) < len(lines) and set(written) <= set(lines)
    assert all(len(pair["target_id"]) == 2 for pair in pairs)


def test_a_given_cut_and_dates(tmp_path):
    start = datetime.datetime(2024, 1, 1)
    rows = [
        (c, i, 1.0, start + datetime.timedelta(days=day))
        for c, i, day in [
            ("a", "x", 0), ("a", "y", 1), ("a", "z", 5), ("b", "x", 6), ("b", "y", 7),
            ("b", "new", 8), ("c", "z", 2), ("a", "y", 9),
        ]
    ]  # fmt: skip
    manifest, train, pairs, _ = run_split(
        tmp_path, rows, data={"time_column": "at"}, split_by="time", split_cut="2024-01-03"
    )
    assert manifest["cut_text"] == "2024-01-03 00:00:00"
    assert [(row["collection_id"], row["item_id"]) for row in train] == [
        ("a", "x"), ("a", "y"), ("c", "z"),
    ]  # fmt: skip
    # y was in a before the cut, so its second row is no new entry; b was empty before.
    assert {(p["query_id"], p["target_id"], p["kind"]) for p in pairs} == {
        ("x", "z", "warm"), ("y", "z", "warm"),
        ("x", "y", "warm"), ("y", "x", "warm"), ("x", "new", "cold"), ("y", "new", "cold"),
    }  # fmt: skip
    # An edge exactly at the cut trains.
    train = run_split(
        tmp_path, rows, data={"time_column": "at"}, split_by="time", split_cut="2024-01-06"
    )[1]
    assert ("a", "z") in {(row["collection_id"], row["item_id"]) for row in train}


@pytest.mark.parametrize(
    ("tool", "data", "message"),
    [
        ({"split_by": "time"}, {}, "--split_by=time needs --time_column"),
        ({"split_by": "time", "split_cut": "soon"}, {"time_column": "at"}, "must be a number"),
        ({"split_by": "time", "split_cut": "-1"}, {"time_column": "at"}, "set a later --split_cut"),
        ({"split_by": "time", "split_cut": "999"}, {"time_column": "at"}, "finds no eval pair"),
        ({"split_by": "time"}, {"time_column": "when"}, "has no column 'when'"),
        ({"split_by": "leave_one_out", "split_share": 0.3}, {}, "leave out --split_share and"),
        ({"split_by": "leave_one_out", "split_cut": "5"}, {}, "leave out --split_share and"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, tool, data, message):
    with pytest.raises(UserError, match=message):
        run_split(tmp_path, data=data, **tool)
    assert not (tmp_path / "run" / "split").exists()


def test_pairs_per_group_is_the_largest():
    rng = np.random.default_rng(0)
    assert pairs_per_group(np.empty(0, np.int64), 5) == 0
    for _ in range(200):
        possible = rng.integers(0, 9, rng.integers(1, 8))
        limit = int(rng.integers(1, 30))
        fits = [m for m in range(10) if np.minimum(possible, m).sum() <= limit]
        assert pairs_per_group(possible, limit) == min(max(fits), possible.max())


def prepared(tmp_path, folder, edges="train_edges.parquet", **more):
    config = Config(
        mode="prepare", workdir=str(tmp_path / "next"), seed=0, threads=1,
        data=DataConfig(
            data_dir=str(folder), edges=edges, eval_pairs="eval_pairs.parquet",
            items=str(tmp_path / "items.parquet"), **more,
        ),
    )  # fmt: skip
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in range(60)]}), tmp_path / "items.parquet")
    return prepare(config)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("collections", "of the . collections that --eval_pairs withhold"),
        ("items", "of the 12 items that --eval_pairs withhold"),
        ("time", "holds an edge later than"),
        ("leave_one_out", r"holds the edge of item '\w+' in collection '\w+' \(.*row"),
    ],
)
def test_prepare_takes_the_split_and_refuses_the_whole_table(tmp_path, by, message):
    *_, folder = run_split(tmp_path, data={"time_column": "at"}, split_by=by)
    done = prepared(tmp_path, folder)
    assert done.manifest["leak_checks"] == ["pairs", by]
    assert len(done.eval_pairs) == files.read_json(folder / "manifest.json")["counts"]["eval_pairs"]
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, folder, edges=str(tmp_path / "edges.parquet"))


def test_a_single_edge_that_was_left_out_is_found(tmp_path):
    *_, folder = run_split(tmp_path, split_by="leave_one_out")
    train = pq.read_table(folder / "train_edges.parquet")
    lost = pq.read_table(folder / "withheld.parquet").to_pylist()[7]
    leak = pa.concat_tables(
        [train, pa.Table.from_pylist([{**lost, "weight": 1.0, "at": 0}], train.schema)]
    )
    pq.write_table(leak, tmp_path / "leak.parquet")
    sentence = f"item '{lost['item_id']}' in collection '{lost['collection_id']}'"
    with pytest.raises(UserError, match=sentence):
        prepared(tmp_path, folder, edges=str(tmp_path / "leak.parquet"))


def test_collections_of_one_item_leave_nothing_out(tmp_path):
    rows = [(f"c{n}", f"i{n}", 1.0, n) for n in range(5)]
    with pytest.raises(UserError, match="no collection holds two items"):
        run_split(tmp_path, rows, split_by="leave_one_out")


def test_a_single_leaking_edge_is_found(tmp_path):
    *_, folder = run_split(tmp_path, split_by="collections")
    train = pq.read_table(folder / "train_edges.parquet")
    lost = pq.read_table(folder / "withheld.parquet").column(0)[0].as_py()
    row = {"collection_id": lost, "item_id": "i1", "weight": 1.0, "at": 0}
    leak = pa.concat_tables([train, pa.Table.from_pylist([row], train.schema)])
    pq.write_table(leak, tmp_path / "leak.parquet")
    with pytest.raises(UserError, match=f"holds 1 of .* the first being '{lost}'"):
        prepared(tmp_path, folder, edges=str(tmp_path / "leak.parquet"))


def test_shared_pairs_are_refused_in_either_order(tmp_path):
    ids = IdTable(pa.array(["a", "b", "c"], pa.large_string()))
    some = np.array([[0, 1], [1, 2]], np.int32)
    leaks.check_disjoint_pairs(some, np.array([[0, 2]], np.int32), ids)
    leaks.check_disjoint_pairs(np.empty((0, 2), np.int32), some, ids)
    leaks.check_disjoint_pairs(some, np.empty((0, 2), np.int32), ids)
    with pytest.raises(UserError, match=r"both pair 'c' with 'b' \(1 such"):
        leaks.check_disjoint_pairs(some, np.array([[0, 2], [2, 1]], np.int32), ids)
    *_, folder = run_split(tmp_path)
    pair = pq.read_table(folder / "eval_pairs.parquet").to_pylist()[0]
    path = tmp_path / "train_pairs.parquet"
    pq.write_table(
        pa.table({"query_id": [pair["target_id"]], "target_id": [pair["query_id"]]}), path
    )
    with pytest.raises(UserError, match="--train_pairs and --eval_pairs both pair"):
        prepared(tmp_path, folder, train_pairs=str(path))


def test_a_split_without_its_withheld_table_is_refused(tmp_path):
    *_, folder = run_split(tmp_path)
    (folder / "withheld.parquet").unlink()
    with pytest.raises(UserError, match=r"withheld.parquet is missing or damaged"):
        prepared(tmp_path, folder)
