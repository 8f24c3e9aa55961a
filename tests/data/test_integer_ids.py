"""Integer ids are read without conversion to text, with the same result as text ids."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.catalog import prepare
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import ids as id_tables
from pinsage_jax.data import tables
from pinsage_jax.data.ids import IdTable, UniqueIds

UNUSUAL_IDS = [0, -1, 7, 2**62, -(2**62), 10, 100]


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_tables(folder, kind, rng_seed=0, items_kind=None):
    """Writes tables with ids of an Arrow type, and pairs with text ids."""
    rng = np.random.default_rng(rng_seed)
    items = (
        [*UNUSUAL_IDS, *range(1000, 1030)] if kind in (pa.int64(), pa.string()) else range(1, 38)
    )
    items = list(items)
    edge_items = [items[i] for i in rng.integers(0, len(items), 300)]
    boards = rng.integers(-5 if kind != pa.uint32() else 0, 20, 300).tolist()

    def column(values, as_kind):
        text = as_kind == pa.string()
        return pa.array([str(value) for value in values] if text else values, as_kind)

    write(
        folder / "e.parquet", item_id=column(edge_items, kind), collection_id=column(boards, kind),
        w=rng.uniform(1, 2, 300),
    )  # fmt: skip
    some = items[::-2]
    write(folder / "i.parquet", item_id=column(some, items_kind or kind), n=list(range(len(some))))
    write(folder / "p.parquet", query_id=[str(items[0])], target_id=[str(items[1])])


def run(folder):
    data = DataConfig(
        data_dir=str(folder), edges="e.parquet", items="i.parquet", eval_pairs="p.parquet",
        weight_column="w",
    )  # fmt: skip
    return prepare.prepare(Config("prepare", str(folder / "work"), 0, 1, data=data))


def assert_same(one, other):
    assert one.item_ids.ids.to_pylist() == other.item_ids.ids.to_pylist()
    assert one.collection_ids.ids.to_pylist() == other.collection_ids.ids.to_pylist()
    for name in ("indptr", "indices", "weights"):
        np.testing.assert_array_equal(getattr(one.graph, name), getattr(other.graph, name))
    np.testing.assert_array_equal(one.features, other.features)
    np.testing.assert_array_equal(one.eval_pairs, other.eval_pairs)
    assert one.manifest["item_digest"] == other.manifest["item_digest"]


@pytest.mark.parametrize("batch_rows", [7, 1 << 20])
def test_integer_and_text_ids_prepare_the_same_catalog(batch_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", batch_rows)
    for name, kind, items_kind in (
        ("text", pa.string(), None),
        ("integer", pa.int64(), None),
        ("mixed", pa.int64(), pa.string()),
    ):
        write_tables(tmp_path / name, kind, items_kind=items_kind)
    text = run(tmp_path / "text")
    assert_same(run(tmp_path / "integer"), text)
    assert_same(run(tmp_path / "mixed"), text)


@pytest.mark.parametrize("kind", [pa.int16(), pa.uint32(), pa.uint64(), pa.int32()])
def test_other_integer_types(kind, tmp_path):
    rows = {"item_id": [3, 1, 3, 2], "collection_id": [9, 9, 8, 8]}
    for name, some in (("number", kind), ("text", pa.string())):
        columns = {
            column: pa.array([str(v) for v in values] if some == pa.string() else values, some)
            for column, values in rows.items()
        }
        write(tmp_path / name / "e.parquet", **columns, w=[1.0] * 4)
        write(tmp_path / name / "i.parquet", item_id=columns["item_id"][:2], n=[1, 2])
        write(tmp_path / name / "p.parquet", query_id=["1"], target_id=["2"])
    assert_same(run(tmp_path / "number"), run(tmp_path / "text"))


def test_largest_unsigned_id(tmp_path):
    large = pa.array([2**64 - 1, 1], pa.uint64())
    write(tmp_path / "e.parquet", item_id=large, collection_id=large, w=[1.0, 1.0])
    write(tmp_path / "i.parquet", item_id=large, n=[1, 2])
    write(tmp_path / "p.parquet", query_id=[str(2**64 - 1)], target_id=["1"])
    assert run(tmp_path).item_ids.ids.to_pylist() == [str(2**64 - 1), "1"]


def test_a_folder_with_integer_ids_in_one_file_and_text_in_another(tmp_path):
    write(tmp_path / "e.parquet" / "a.parquet", item_id=[7, 8], collection_id=[1, 1], w=[1.0, 1.0])
    write(
        tmp_path / "e.parquet" / "b.parquet", item_id=["007", "8"], collection_id=[1, 2],
        w=[1.0, 1.0],
    )  # fmt: skip
    write(tmp_path / "i.parquet", item_id=[7, 8], n=[1, 2])
    write(tmp_path / "p.parquet", query_id=["7"], target_id=["8"])
    found = run(tmp_path)
    assert found.item_ids.ids.to_pylist() == ["7", "8", "007"]
    assert found.collection_ids.ids.to_pylist() == ["1", "2"]


@pytest.mark.parametrize(
    ("table", "columns", "sentence"),
    [
        ("i", {"item_id": [5, 6, 5], "n": [1, 2, 3]}, "Item '5' is in --items more than once"),
        ("i", {"item_id": [5, None], "n": [1, 2]}, r"^Column 'item_id' is empty in row 2 of"),
        (
            "e",
            {"item_id": [5, 6], "collection_id": [None, 3], "w": [1.0, 1.0]},
            r"^Column 'collection_id' is empty in row 1 of",
        ),
    ],
)
def test_errors_are_those_of_text_ids(table, columns, sentence, tmp_path):
    write_tables(tmp_path, pa.int64())
    write(tmp_path / f"{table}.parquet", **columns)
    with pytest.raises(UserError, match=sentence):
        run(tmp_path)


def test_an_id_table_of_integers():
    unique = UniqueIds(pa.int64())
    unique.add(pa.array([5, 3, 5], pa.int64()))
    unique.add(pa.array([3, -2], pa.int64()))
    table = unique.finish("items")
    assert table.ids.to_pylist() == ["5", "3", "-2"]
    assert table.lookup(pa.array([-2, 4, 5], pa.int64())).tolist() == [2, -1, 0]
    assert table.lookup(pa.array(["-2", "4", "05"])).tolist() == [2, -1, -1]
    assert table.lookup(pa.chunked_array([pa.array([3], pa.int64())])).tolist() == [1]
    text = IdTable(pa.array(["5", "3"]))
    assert text.lookup(pa.array([3, 5], pa.int64())).tolist() == [1, 0]
    assert json.dumps(table.digest()) == json.dumps(IdTable(pa.array(["5", "3", "-2"])).digest())


@pytest.mark.parametrize("most_places", [1, 60, 1 << 24])
@pytest.mark.parametrize("base", [0, -100, 2**63 - 300, -(2**63)])
def test_numbered_ids_are_those_of_a_dictionary(base, most_places, monkeypatch):
    monkeypatch.setattr(id_tables, "_MOST_PLACES", most_places)
    rng = np.random.default_rng(most_places)
    for trial in range(30):
        unique, index = UniqueIds(pa.int64()), {}
        for batch in range(6):
            ids = base + rng.integers(0, (5, 50, 290)[batch % 3], rng.integers(0, 40))
            if trial % 5 == 0 and len(ids):
                ids[0] = rng.integers(-(2**62), 2**62)
            unique.add(pa.array(ids, pa.int64()))
            for number in ids.tolist():
                index.setdefault(number, len(index))
            if batch == 2:
                assert unique.finish("items").ids.to_pylist() == [str(one) for one in index]
        table = unique.finish("items")
        assert table.ids.to_pylist() == [str(number) for number in index]
        asked = [*rng.choice(np.array([*index]), 100).tolist(), 2**63 - 1, -(2**63), 0, base]
        found = table.lookup(pa.array(asked, pa.int64()))
        assert found.tolist() == [index.get(number, -1) for number in asked]
        assert found.dtype == np.int32
