"""Reading the log of edges: what counts, and what is left out and named."""

import io
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.following.event_log import FolderLog, Names, StreamLog
from pinsage_jax.graph.edge_weights import EdgeWeights

DATA = DataConfig()


def rows_of(found):
    return [
        (item, collection, bool(removed))
        for raw in found
        for item, collection, removed in zip(raw.items, raw.collections, raw.removed)
    ]


def write_parquet(path, items, collections, **more):
    columns = {"item_id": items, "collection_id": collections, **more}
    pq.write_table(pa.table(columns), path)


def test_files_are_read_once_and_in_order(tmp_path, caplog):
    log = FolderLog(tmp_path, DATA, None)
    assert rows_of(log.read()) == []
    write_parquet(tmp_path / "b.parquet", ["i2"], ["c"], removed=[True])
    (tmp_path / "a.csv").write_text("item_id,collection_id,removed,note\ni1,c,,x\ni3,c,true,y\n")
    lines = '{"item_id": "i4", "collection_id": 7}\n\n{"item_id": 5, "collection_id": "c"}\n'
    (tmp_path / "c.jsonl").write_text(lines)
    (tmp_path / ".d.parquet").write_text("being written")
    (tmp_path / "d.parquet.tmp").write_text("being written")
    (tmp_path / "notes.txt").write_text("hello")
    expected = [
        ("i1", "c", False), ("i3", "c", True), ("i2", "c", True),
        ("i4", "7", False), ("5", "c", False),
    ]  # fmt: skip
    assert rows_of(log.read()) == expected
    assert rows_of(log.read()) == []
    assert caplog.text.count("notes.txt is left out") == 1
    log.rewind()
    assert rows_of(log.read()) == expected


def test_a_damaged_file_changes_nothing_and_is_named(tmp_path, caplog):
    log = FolderLog(tmp_path, DATA, None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "b.csv").write_text("item_id,other\ni1,c\n")
    (tmp_path / "c.csv").write_text("item_id,collection_id,removed\ni1,c,\ni2,c,perhaps\n")
    write_parquet(tmp_path / "d.parquet", ["i9"], ["c"])
    assert rows_of(log.read()) == [("i9", "c", False)]
    for name in ("a.parquet", "b.csv", "c.csv"):
        assert f"{name} is left out" in caplog.text
    assert "'perhaps'" in caplog.text and "row 2" in caplog.text
    # Mended, it is read.
    time.sleep(0.01)
    write_parquet(tmp_path / "a.parquet", ["i8"], ["c"])
    assert rows_of(log.read()) == [("i8", "c", False)]


def test_lines_that_are_no_events_are_named(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text(
        'nonsense\n[1]\n{"item_id": "i1"}\n{"item_id": true, "collection_id": "c"}\n'
        '{"item_id": "i1", "collection_id": "c"}\n'
    )
    assert rows_of(FolderLog(tmp_path, DATA, None).read()) == [("i1", "c", False)]
    assert "line 1 is no JSON object" in caplog.text and "and 1 more" in caplog.text
    assert "line 3 has no 'collection_id'" in caplog.text


def test_what_is_not_read_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO", "absl")
    line = '{"item_id": "i%d", "collection_id": "c", "note": 1}\n'
    log = FolderLog(tmp_path, DATA, None)
    for number in range(2):
        (tmp_path / f"{number}.jsonl").write_text(line % number)
        write_parquet(tmp_path / f"{number}.parquet", ["i"], ["c"], shop=["x"])
    assert len(rows_of(log.read())) == 4
    assert caplog.text.count("not read: note") == caplog.text.count("not read: shop") == 1


def test_ids_are_text_that_tables_can_hold(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"item_id": "\\ud800", "collection_id": "c"}\n{"item_id": "\xff", "collection_id": "c"}\n'
    )
    assert rows_of(FolderLog(tmp_path, DATA, None).read()) == [("\ufffd", "c", False)]
    assert "line 1 has no 'item_id'" in caplog.text


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(UserError, match=r"--follow=.* is no folder"):
        FolderLog(tmp_path / "none", DATA, None)


def test_weights_follow_the_settings_of_the_catalog(tmp_path, caplog):
    data = DataConfig(weight_column="w")
    log = FolderLog(tmp_path, data, EdgeWeights(data))
    write_parquet(tmp_path / "a.parquet", ["i1", "i2"], ["c", "c"], w=[0.5, 2.0])
    write_parquet(tmp_path / "b.parquet", ["i1"], ["c"])
    [raw] = log.read()
    assert raw.weights.tolist() == [0.5, 2.0]
    assert "b.parquet is left out" in caplog.text and "'w'" in caplog.text
    # An edge that is removed needs no weight; any other does.
    write_parquet(
        tmp_path / "c.parquet", ["i1", "i2"], ["c", "c"], w=[None, 3.0], removed=[True, None]
    )
    write_parquet(tmp_path / "d.parquet", ["i1", "i2"], ["c", "c"], w=[None, 3.0])
    (tmp_path / "e.jsonl").write_text('{"item_id": "i1", "collection_id": "c", "removed": true}\n')
    third, fifth = log.read()
    assert third.removed.tolist() == [True, False] and third.weights[1] == 3.0
    assert fifth.removed.tolist() == [True]
    assert "d.parquet is left out" in caplog.text and "row 1" in caplog.text


def test_a_stream_is_read_as_it_comes():
    log = StreamLog(
        io.StringIO('{"item_id": "i1", "collection_id": "c"}\nbad\n'
                    '{"item_id": "i2", "collection_id": "c", "removed": true}\n'),
        DATA, None,
    )  # fmt: skip
    assert log.ended.wait(5)
    expected = [("i1", "c", False), ("i2", "c", True)]
    assert rows_of(log.read()) == expected and rows_of(log.read()) == []
    log.rewind()
    assert rows_of(log.read()) == expected


def test_ids_become_rows_and_new_collections_are_numbered(tmp_path, caplog):
    write_parquet(
        tmp_path / "a.parquet", ["i0", "i1", "nobody", "i1"], ["new", "c", "c", "gone"],
        removed=[False, False, False, True],
    )  # fmt: skip
    [raw] = FolderLog(tmp_path, DATA, None).read()
    names = Names({"i0": 0, "i1": 1}, ["b", "c"])
    events, new = names.resolve(raw)
    assert new == 1
    np.testing.assert_array_equal(events.items, [0, 1])
    np.testing.assert_array_equal(events.collections, [2, 1])
    assert "1 edges of items that the catalog lacks" in caplog.text and "nobody" in caplog.text
    assert "1 removals that name no edge" in caplog.text
    assert names.resolve(raw)[1] == 0
