"""Columns of --items as prepare keeps them: types, missing rows, and changes."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pinsage_jax
from pinsage_jax.catalog import item_columns
from pinsage_jax.catalog.changes import read_changes, write_changed
from pinsage_jax.catalog.prepare import open_prepared, prepare
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.ids import IdTable

EDGES = "collection_id,item_id\n" + "".join(f"c{i % 3},i{i}\n" for i in range(6)) + "c0,extra\n"


def prepared_of(folder, items, **flags):
    (folder / "edges.csv").write_text(EDGES)
    config = pinsage_jax.settings(
        folder / "run", edges=folder / "edges.csv", items=items, mode="prepare", **flags
    )
    prepare(config)
    return open_prepared(config.workdir)


def test_cells_of_a_csv_get_types(tmp_path):
    (tmp_path / "items.csv").write_text(
        "item_id,price,stock,sale,day,code,note\n"
        "i0, 2.5,3,true,2024-01-31,A1,x\n"
        "i1,NA,,false,,B2,\n"
        "i2,7,0,,2024-02-01,C3,y\n"
        'i3,1,1,true,2024-02-01,D4,"two, words"\n'
        "i4,1,1,true,2024-02-01,E5,z\n"
        "i5,1,1,true,2024-02-01,F6,z\n"
    )
    columns = prepared_of(tmp_path, tmp_path / "items.csv").item_columns
    kinds = {name: str(kind) for name, kind in columns.types.items()}
    assert kinds["price"] == "double" and kinds["stock"] == "int64" and kinds["sale"] == "bool"
    assert kinds["code"] == kinds["note"] == "large_string"
    assert columns.column("price").to_pylist() == [2.5, None, 7.0, 1.0, 1.0, 1.0, None]
    assert columns.column("sale").to_pylist()[:3] == [True, False, None]
    assert columns.column("day").to_pylist()[:2] == [datetime.date(2024, 1, 31), None]
    assert columns.column("item_id").to_pylist() == [f"i{i}" for i in range(6)] + ["extra"]
    assert columns.codes("stock").tolist() == [0, -1, 1, 2, 2, 2, -1]


def test_a_cell_that_does_not_fit_widens_its_column(tmp_path):
    # The first rows say whole number; a later block has a fraction, and a word.
    rows = {
        "item_id": [f"i{i}" for i in range(6)],
        "a": ["1"] * 5 + ["2.5"],
        "b": ["1"] * 5 + ["?"],
    }
    table = pa.table({name: pa.array(cells, pa.large_string()) for name, cells in rows.items()})
    from pinsage_jax.data.tables import table_in_memory

    items = table_in_memory(table, "items")
    items.columns.update(a=pa.int64(), b=pa.int64())
    kept = item_columns.write_item_columns(items, "item_id", tmp_path)
    assert kept == {"ids": "item_id", "kept": ["a", "b"]}
    found = pq.read_table(tmp_path / item_columns.FILE)
    assert found["a"].to_pylist() == [1, 1, 1, 1, 1, 2.5]
    assert found["b"].to_pylist() == ["1"] * 5 + ["?"]


def test_types_of_parquet_are_kept_and_vectors_left_out(tmp_path):
    now = datetime.datetime(2024, 5, 31, 12, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "item_id": [f"i{i}" for i in range(6)],
            "n": pa.array([1, 2, None, 4, 5, 6], pa.int16()),
            "brand": pa.array(["a", "b", None, "a", "a", "b"]).dictionary_encode(),
            "tags": pa.array([["x", "y"], [], None, ["y"], [], []], pa.list_(pa.string())),
            "vector": pa.array([[1.0, 2.0]] * 6, pa.list_(pa.float32())),
            "when": pa.array([now] * 6, pa.timestamp("ms", "UTC")),
            "big": pa.array([2**53 + 1] * 6, pa.int64()),
        }
    )
    pq.write_table(table, tmp_path / "items.parquet", row_group_size=4)
    prepared = prepared_of(tmp_path, tmp_path / "items.parquet")
    columns = prepared.item_columns
    assert set(columns.types) == {"item_id", "n", "brand", "tags", "when", "big"}
    assert columns.column("brand").to_pylist() == ["a", "b", None, "a", "a", "b", None]
    assert columns.column("tags").to_pylist()[:4] == [["x", "y"], [], None, ["y"]]
    assert columns.column("big").to_pylist()[0] == 2**53 + 1
    assert columns.column("when").to_pylist()[0] == now
    assert item_columns.FILE in prepared.manifest["checksums"]


def test_without_items_there_are_ids_alone(tmp_path):
    (tmp_path / "edges.csv").write_text(EDGES)
    config = pinsage_jax.settings(tmp_path / "run", edges=tmp_path / "edges.csv", mode="prepare")
    prepare(config)
    columns = open_prepared(config.workdir).item_columns
    assert list(columns.types) == ["item_id"] and len(columns.column("item_id")) == 7


def test_a_folder_of_an_older_version_says_so(tmp_path):
    ids = IdTable(pa.array(["a"]))
    with pytest.raises(UserError, match="delete WORKDIR/prepared and run --mode=prepare again"):
        item_columns.open_columns(None, ids, {"inputs": {"items": "items.csv"}})
    assert len(item_columns.open_columns(None, ids, {"inputs": {}})) == 1


def test_changes_replace_rows_and_keep_the_rest(tmp_path):
    (tmp_path / "items.csv").write_text(
        "item_id,size,price,tag\n" + "".join(f"i{i},{i},{i}.5,t{i}\n" for i in range(6))
    )
    before = prepared_of(tmp_path, tmp_path / "items.csv", categorical_columns="", text_columns="",
                         numeric_columns="size")  # fmt: skip
    (tmp_path / "changed.csv").write_text("item_id,size,price\ni2,20,9\nnew,70,\n")
    source = tmp_path / "run" / "prepared"
    config = pinsage_jax.settings(tmp_path / "run")

    def changed_by(text):
        (tmp_path / "changed.csv").write_text(text)
        update = UpdateConfig(changed_items=str(tmp_path / "changed.csv"))
        return read_changes(before, FeatureTransform.load(source / "features"), config.data, update)

    changes = changed_by("item_id,size,price\ni2,20,9\nnew,70,\n")
    # A price is no feature here, but another price is another change.
    other = changed_by("item_id,size,price\ni2,20,8\nnew,70,\n")
    assert changes.digest() != other.digest()
    write_changed(before, changes, source, tmp_path / "after" / "prepared")
    columns = open_prepared(tmp_path / "after").item_columns
    assert columns.column("size").to_pylist() == [0, 1, 20, 3, 4, 5, None, 70]
    assert columns.column("price").to_pylist() == [0.5, 1.5, 9.0, 3.5, 4.5, 5.5, None, None]
    assert columns.column("tag").to_pylist() == [f"t{i}" for i in range(6)] + [None, None]
    # Edges alone: everything stays.
    (tmp_path / "edge.csv").write_text("collection_id,item_id\nc9,i1\n")
    update = UpdateConfig(changed_edges=str(tmp_path / "edge.csv"))
    changes = read_changes(before, FeatureTransform.load(source / "features"), config.data, update)
    write_changed(before, changes, source, tmp_path / "edges" / "prepared")
    columns = open_prepared(tmp_path / "edges").item_columns
    assert columns.column("size").to_pylist() == [0, 1, 2, 3, 4, 5, None]


def test_new_items_follow_the_catalog(tmp_path):
    from pinsage_jax.data.tables import table_in_memory

    ids = IdTable(pa.array(["a", "b"]))
    table = pa.table({"price": [1.0, 2.0], "tag": pa.array(["x", None], pa.large_string())})
    types = {field.name: field.type for field in table.schema}
    columns = item_columns.ItemColumns(ids, "item_id", types, table.column)
    new = table_in_memory(pa.table({"item_id": ["c"], "price": pa.array(["3"])}), "the new items")
    others = columns.of_table(new, IdTable(pa.array(["c"])))
    both = columns.followed_by(others, IdTable(pa.array(["a", "b", "c"])))
    assert both.column("price").to_pylist() == [1.0, 2.0, 3.0]
    assert both.column("tag").to_pylist() == ["x", None, None]
    wrong = table_in_memory(pa.table({"price": pa.array(["dear"])}), "the new items")
    with pytest.raises(UserError, match="Column 'price' of the new items has values of another"):
        columns.of_table(wrong, IdTable(pa.array(["c"]))).column("price")
