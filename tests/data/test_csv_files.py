"""Forms of input files: quotation marks, delimiters, compression, folders, other formats."""

import bz2
import logging
import lzma
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns, csv_files, edges_table
from pinsage_jax.data.tables import iter_batches, open_table

ROWS = [(f"c{i % 5}", f"é{i % 9}") for i in range(30)]
TEXT = "collection_id,item_id\n" + "".join(f"{a},{b}\n" for a, b in ROWS)


def read(path, names=("collection_id", "item_id"), config=None, ids=True):
    table = open_table(path, "edges", config)
    batches = list(iter_batches(table, names, ids=names if ids else ()))
    return list(
        zip(*([v for batch in batches for v in batch.column(n).to_pylist()] for n in names))
    )


def edges(tmp_path, changed):
    rows = [f"{i},c{i % 4}" for i in range(1, 21)]
    for row, text in changed.items():
        rows[row - 1] = text
    path = tmp_path / "e.csv"
    path.write_text("item_id,collection_id\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({6: '6,"c2'}, "quotation mark in row 6 that is never closed"),
        ({6: '"6,c2'}, "quotation mark in row 6 that is never closed"),
        ({20: '20,"'}, "quotation mark in row 20 that is never closed"),
        ({6: '6,"c2', 12: '12,"c0'}, "row 6 that is followed by text where it is closed"),
        ({6: '"6,c2', 12: '"12,c0'}, "row 6 that is followed by text where it is closed"),
        ({6: '6,"c2', 12: '12,c0"'}, "row 6 of .*, a quoted cell that holds whole rows"),
        ({6: '6,"c""2', 9: '9,""'}, "quotation mark in row 6 that is never closed"),
    ],
)
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_quotes_that_are_not_closed(changed, sentence, block, tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "_SCAN_BYTES", block)
    path = edges(tmp_path, changed)
    with pytest.raises(UserError, match=sentence):
        read(path, ("item_id", "collection_id"))


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_quotes_that_are_closed(block, tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "_SCAN_BYTES", block)
    changed = {2: '2,"a ""b"""', 3: '"3","x\ny"', 4: '4,12" disk"', 5: '5,"""",', 20: '20,"end"'}
    changed[5] = '5,""""'
    found = read(edges(tmp_path, changed), ("item_id", "collection_id"))
    assert [c for _, c in found][1:5] == ['a "b"', "x\ny", '12" disk"', '"'] and len(found) == 20


def test_titles_that_hold_rows_are_warned_of(tmp_path, caplog):
    path = edges(tmp_path, {6: '6,"c2', 12: '12,c0"'})
    with caplog.at_level(logging.WARNING):
        read(path, ("item_id", "collection_id"), ids=False)
    assert "holds whole rows of the table" in caplog.text


@pytest.mark.parametrize("mark", "\t;|")
def test_delimiters_are_found(mark, tmp_path):
    (tmp_path / "e.csv").write_text(TEXT.replace(",", mark))
    assert read(tmp_path / "e.csv") == ROWS
    with pytest.raises(UserError, match="has no column"):
        read(tmp_path / "e.csv", config=DataConfig(csv_delimiter="comma"))


def test_no_header(tmp_path):
    (tmp_path / "e.csv").write_text("c0,7\n" + TEXT.split("\n", 2)[2])
    with pytest.raises(UserError, match="no header but the first row, --csv_header=off"):
        read(tmp_path / "e.csv")
    config = DataConfig(csv_header="off")
    assert read(tmp_path / "e.csv", ("f0", "f1"), config) == [("c0", "7"), *ROWS[1:]]
    table = open_table(tmp_path / "e.csv", "eval_pairs", config)
    assert list(table.columns) == ["query_id", "target_id"]


def test_compressed_files_feather_and_folders(tmp_path):
    (tmp_path / "e.csv.bz2").write_bytes(bz2.compress(TEXT.encode()))
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("e.csv", TEXT)
    names = {"collection_id": [a for a, _ in ROWS], "item_id": [b for _, b in ROWS]}
    feather.write_feather(pa.table(names), tmp_path / "e.feather")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.csv").write_text(TEXT)
    for name in ("e.csv.bz2", "e.zip", "e.feather", "folder"):
        assert read(tmp_path / name) == ROWS
    with zipfile.ZipFile(tmp_path / "e.zip", "a") as archive:
        archive.writestr("[Content_Types].xml", "")
    with pytest.raises(UserError, match="is a spreadsheet of 2 files; save the table as CSV"):
        read(tmp_path / "e.zip")


def test_xz_is_read_alone_and_in_folders(tmp_path):
    packed = lzma.compress(TEXT.encode())
    # Two streams in one file, as xz appends them.
    header, rows = TEXT.split("\n", 1)
    (tmp_path / "e.csv").write_bytes(
        lzma.compress(f"{header}\n".encode()) + lzma.compress(rows.encode())
    )
    assert read(tmp_path / "e.csv") == ROWS
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.csv.xz").write_bytes(packed)
    (tmp_path / "folder" / "1.csv").write_text(TEXT)
    assert read(tmp_path / "folder") == ROWS * 2
    for damaged in (packed[:60], packed[:60] + b"x" + packed[61:]):
        (tmp_path / "e.csv").write_bytes(damaged)
        with pytest.raises(UserError, match=r"e\.csv cannot be read"):
            read(tmp_path / "e.csv")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"item_id": 1}\n', "is JSON; save the table as Parquet or CSV"),
        (b"SQLite format 3\x00", "is an SQLite database"),
        (TEXT.encode("latin-1"), "save it as UTF-8 .iconv"),
        ((TEXT + "c1,x,too,many\n").encode(), "every row needs as many cells as the header"),
    ],
)
def test_other_formats_are_refused(content, sentence, tmp_path):
    (tmp_path / "e.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "e.csv")


def test_remote_addresses_are_refused():
    with pytest.raises(UserError, match=r"s3://b/e\.csv is a remote address"):
        DataConfig().path("s3://b/e.csv")


def part(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"collection_id": items, "item_id": items}), path)


def test_hidden_parts_of_a_folder_are_left_out_and_logged(tmp_path, caplog):
    folder = tmp_path / "_data"
    part(folder / "day=1" / "part-0.parquet", ["x", "y"])
    (folder / "_SUCCESS").write_text("")
    with caplog.at_level(logging.INFO, "absl"):
        assert len(read(folder)) == 2
    assert "1 hidden file (0 bytes) left out" in caplog.text
    assert "not read as columns (day)" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    part(folder / "_temporary" / "0" / "part-9.parquet", ["ghost"])
    part(folder / ".ipynb_checkpoints" / "part-0.parquet", ["ghost2"])
    (folder / "more.csv").write_text(TEXT)
    caplog.clear()
    assert len(read(folder)) == 2
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "3 hidden files" in record.getMessage() and "such as more.csv" in record.getMessage()


def test_two_clocks(tmp_path):
    def where(row):
        return f"row {row + 1}"

    for column, kind in ((pa.array([7]), "timestamp"), (pa.array(["2024-01-01"]), "number")):
        with pytest.raises(UserError, match="'t' "):
            columns.times(column, "t", where, kind)
    stamp = pa.array([7], pa.timestamp("us"))
    with pytest.raises(UserError, match="'t' holds a timestamp in row 1 but a number before"):
        columns.times(stamp, "t", where, "number")


SECONDS = 1_700_000_000


@pytest.mark.parametrize(
    "first,second,sentence",
    [
        ([SECONDS, SECONDS + 9], [1000 * SECONDS], "seconds since 1970 in row 1 of .*a.parquet, "
         "but milliseconds in row 1 of .*b.parquet; write all times of a table in one unit"),
        ([1000 * SECONDS], [10**6 * SECONDS, 10**6 * SECONDS], "milliseconds since 1970 in row 1"),
        ([SECONDS], [10.0**9 * SECONDS], "seconds since 1970 in .*, but nanoseconds in"),
        ([SECONDS, 1000 * SECONDS], [SECONDS], "seconds since 1970 in row 1 of .*a.parquet, but "
         "milliseconds in row 2 of .*a.parquet"),
        # 1% are unknown.
        ([SECONDS] * 200, [1000 * SECONDS, 0], "milliseconds in row 1 of .*b.parquet"),
        # Counters, years and times of one unit.
        ([SECONDS, 5], [1000 * SECONDS], None),
        ([1, 2], [2024, 2025], None),
        ([SECONDS], [SECONDS - 86400], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_numbers_of_different_units_are_refused(first, second, sentence, suffix, tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    for name, times in (("a", first), ("b", second)):
        table = pa.table({"collection_id": ["c"] * len(times), "item_id": ["i"] * len(times),
                          "at": times})  # fmt: skip
        write = pq.write_table if suffix == "parquet" else pa_csv.write_csv
        write(table, folder / f"{name}.{suffix}")
    config = DataConfig(time_column="at")
    table = open_table(folder, "edges", config)
    ids = edges_table.collect_ids(table, None, config, None)
    if sentence is None:
        found = edges_table.write_edge_indices(table, ids, config, tmp_path / "out")
        assert found.times.tolist() == [*first, *second]
    else:
        with pytest.raises(UserError, match=sentence.replace(".parquet", rf"\.{suffix}")):
            edges_table.write_edge_indices(table, ids, config, tmp_path / "out")


def test_types_are_those_of_all_files(tmp_path):
    for number, values in enumerate(([1], [0.5], ["many"])):
        pq.write_table(pa.table({"x": values}), tmp_path / f"{number}.parquet")
        kind = open_table(tmp_path, "items").columns["x"]
        assert kind == [pa.int64(), pa.float64(), pa.large_string()][number]


def test_the_scanner_agrees_with_a_simple_one(small_rng):
    """Against a slow state machine, on random bytes in which marks are common."""

    def plain(text):
        inside, row, opened, before, i = False, 1, 0, ",", 0
        while i < len(text):
            byte = text[i]
            if inside and byte == '"':
                if text[i + 1 : i + 2] == '"':
                    i += 1
                else:
                    inside = False
                    if text[i + 1 : i + 2] not in ("", ",", "\n"):
                        return opened
                before = '"'
            elif not inside and byte == '"' and before in ",\n":
                inside, opened = True, row
            else:
                row += byte == "\n" and not inside
                before = byte
            i += 1
        return opened if inside else None

    for _ in range(3000):
        text = "".join(small_rng.choice(list('"",\nab'), small_rng.integers(1, 12)))
        scanner = csv_files._QuoteScanner(csv_files.CsvFormat(header=False))
        for block in np.array_split(np.frombuffer(text.encode(), np.uint8), 3):
            if scanner.wrong is None and len(block):
                scanner.add(block.tobytes())
        assert scanner.finish()[0] == plain(text), repr(text)
