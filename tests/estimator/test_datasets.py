"""Tables of Hugging Face `datasets`: saved folders, and objects in memory."""

import json

import numpy as np
import pyarrow as pa
import pytest

from pinsage_jax.core.errors import UserError
from pinsage_jax.data.tables import iter_batches, open_table
from pinsage_jax.estimator import frames

ROWS = {
    "item_id": [f"i{n}" for n in range(7)],
    "title": ["a", None, *"cdefg"],
    "vector": [[float(n), 1.0] for n in range(7)],
}


def write_stream(path, rows):
    table = pa.table(rows)
    with pa.ipc.new_stream(path, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=3):
            writer.write_batch(batch)


def rows_of(path):
    table = open_table(path, "items")
    batches = list(iter_batches(table, list(ROWS), ids=["item_id"], batch_rows=2))
    assert sum(map(len, batches)) == table.num_rows and max(map(len, batches)) <= 2
    return {name: [v for b in batches for v in b.column(name).to_pylist()] for name in ROWS}


def test_a_stream_is_a_table(tmp_path):
    write_stream(tmp_path / "items.arrow", ROWS)
    assert rows_of(tmp_path / "items.arrow") == ROWS
    content = (tmp_path / "items.arrow").read_bytes()
    (tmp_path / "items.arrow").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"items\.arrow cannot be read \(.*; is it damaged\?"):
        rows_of(tmp_path / "items.arrow")


def test_a_saved_folder_consists_of_what_its_state_lists(tmp_path):
    halves = [{k: v[:4] for k, v in ROWS.items()}, {k: v[4:] for k, v in ROWS.items()}]
    for number, half in enumerate(halves):
        write_stream(tmp_path / f"data-0000{number}-of-00002.arrow", half)
    # Of a dataset that was saved to the same folder before.
    write_stream(tmp_path / "data-00000-of-00001.arrow", ROWS)
    listed = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": listed}))
    (tmp_path / "dataset_info.json").write_text("{}")
    assert rows_of(tmp_path) == ROWS
    # A folder without a state is read whole.
    (tmp_path / "state.json").write_text("{}")
    assert len(rows_of(tmp_path)["item_id"]) == 14


def test_a_folder_of_splits_is_refused(tmp_path):
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        write_stream(tmp_path / split / "data-00000-of-00001.arrow", ROWS)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"holds several splits .* \(test, train\); name the"):
        open_table(tmp_path, "items")
    assert rows_of(tmp_path / "train") == ROWS


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="needs datasets (extra test-stores)")


def test_what_datasets_itself_saves(datasets, tmp_path):
    made = datasets.Dataset.from_dict(ROWS)
    made.save_to_disk(tmp_path / "all", num_shards=3)
    assert rows_of(tmp_path / "all") == ROWS
    made.select([5, 2]).save_to_disk(tmp_path / "all")
    assert rows_of(tmp_path / "all")["item_id"] == ["i5", "i2"]
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"several splits of a dataset \(test, train\)"):
        open_table(tmp_path / "two", "items")


def test_a_dataset_in_memory(datasets):
    made = datasets.Dataset.from_dict(ROWS)
    assert frames.is_frame(made)
    assert frames.as_table(made, "items").to_pydict() == ROWS
    chosen = made.filter(lambda row: row["title"] != "c").select([4, 0]).with_format("numpy")
    found = frames.as_table(chosen, "items")
    assert found["item_id"].to_pylist() == ["i5", "i0"] and found.schema.metadata is None
    np.testing.assert_array_equal(found["vector"].to_pylist(), [[5, 1], [0, 1]])
    edges = datasets.Dataset.from_dict({"collection_id": ["b"], "item_id": ["i1"]})
    table = frames.edges_table(edges, "item_id", "collection_id")
    assert table.to_pydict() == {"collection_id": ["b"], "item_id": ["i1"]}
    splits = datasets.DatasetDict({"train": made, "test": made})
    for read in (frames.as_table, lambda value, _: frames.edges_table(value, "i", "c")):
        with pytest.raises(UserError, match=r"give one split of the dataset \(train, test\)"):
            read(splits, "items")
