"""Streaming readers, column parsing and id tables, with every error message."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns, ids, tables
from pinsage_jax.data.ids import IdTable, UniqueIds
from pinsage_jax.data.tables import iter_batches, open_table

UNUSUAL_IDS = [
    "a,b",
    'say "x"',
    "two\nlines",
    "emoji \U0001f9f7",
    "007",
    "7",
    "x" * 10_240,
    " pad ",
    "NA",
]


def write_csv(path, header, rows, compress=False):
    quoted = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in rows]
    data = ("\n".join([",".join(header), *quoted]) + "\n").encode()
    path.write_bytes(gzip.compress(data) if compress else data)
    return path


def read_all(path, names, id_names=(), **options):
    table = open_table(path, "edges")
    out = {name: [] for name in names}
    for batch in iter_batches(table, names, ids=id_names, **options):
        for name in names:
            out[name].extend(batch.column(name).to_pylist())
    return out


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "folder", "dictionary"])
def test_ids_are_read_unchanged(kind, tmp_path):
    path = tmp_path / f"t.{kind}"
    if kind.startswith("csv"):
        write_csv(path, ["id", "n"], [(name, 1) for name in UNUSUAL_IDS], kind == "csv.gz")
    elif kind == "folder":
        path.mkdir()
        pq.write_table(pa.table({"id": UNUSUAL_IDS[:4]}), path / "part-0.parquet")
        pq.write_table(pa.table({"id": UNUSUAL_IDS[4:]}), path / "part-1.parquet")
        (path / "_SUCCESS").write_text("")
        (path / "_unfinished.parquet").write_text("not Parquet")
    else:
        column = pa.array(UNUSUAL_IDS)
        column = column.dictionary_encode() if kind == "dictionary" else column
        pq.write_table(pa.table({"id": column}), path)
    assert read_all(path, ["id"], ["id"])["id"] == UNUSUAL_IDS
    assert read_all(path, ["id"], ["id"], batch_rows=2)["id"] == UNUSUAL_IDS


@pytest.mark.parametrize("block", [64, 97, 1000])
def test_quoted_newlines_across_csv_blocks(block, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_CSV_BLOCK", block)
    names = [f"{n}\n, {n}\n\n{n}" for n in range(200)]
    path = write_csv(tmp_path / "t.csv", ["id", "n"], [(name, 1) for name in names])
    assert read_all(path, ["id"], ["id"])["id"] == names


def test_the_kind_of_a_file_depends_on_its_content_only(tmp_path):
    path = write_csv(tmp_path / "plain.txt", ["id"], [("1",)], compress=True)
    assert open_table(path, "edges").kind == "csv"
    assert read_all(path, ["id"]) == {"id": ["1"]}
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "x.data")
    table = open_table(tmp_path / "x.data", "edges")
    assert (table.kind, table.num_rows) == ("parquet", 1)


def test_integer_ids_become_text_and_rows_are_counted_per_file(tmp_path):
    pq.write_table(pa.table({"id": pa.array([5, -7], pa.int64())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": pa.array([9], pa.uint8())}), tmp_path / "b.parquet")
    assert read_all(tmp_path, ["id"], ["id"])["id"] == ["5", "-7", "9"]
    batches = list(iter_batches(open_table(tmp_path, "edges"), ["id"], batch_rows=1))
    assert [batch.first_row for batch in batches] == [1, 2, 1]
    assert batches[1].where(0) == f"row 2 of {tmp_path / 'a.parquet'}"


def assert_fails(path, sentence, names=("id",), id_names=("id",), flag="edges"):
    with pytest.raises(UserError, match=sentence) as caught:
        list(iter_batches(open_table(path, flag), names, ids=id_names))
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "?"))


def test_missing_file_and_empty_folder(tmp_path):
    assert_fails(tmp_path / "none.csv", r"^--items=.*none\.csv does not exist", flag="items")
    assert_fails(tmp_path, r"^--edges=.* is a folder without any \.parquet file")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has no rows"),
        (b"\n\n", "has no rows"),
        (b"id,x\n", "has no rows"),
        (b"id,x", "has no rows"),
        (b"other,x\n1,2\n", "has no column 'id'; its columns are: other, x"),
        (b"id,id\n1,2\n", "more than one column 'id'"),
        (b"id,x\n1,2,3\n", "cannot be read .*Expected 2 columns, got 3"),
        (b"id,x\nM\xfcller,2\n", "is not UTF-8 text"),
        (b"id,M\xfcller\n1,2\n", "is not UTF-8 text"),
        ("id,x\n1,2\n".encode("utf-16"), "is not UTF-8 text"),
        (b"id,x\na,1\n,2\n", "Column 'id' is empty in row 2 of"),
        (b'id,x\na,1\nb,1\n"",2\n', "Column 'id' is empty in row 3 of"),
    ],
)
def test_bad_csv(content, sentence, tmp_path):
    for name, data in (("t.csv", content), ("t.csv.gz", gzip.compress(content))):
        path = tmp_path / name
        if sentence == "is not UTF-8 text" and content[:1] in b"\xff\xfe" and name.endswith("gz"):
            continue  # inside gzip a UTF-16 byte-order mark is reported as a bad header
        path.write_bytes(data)
        assert_fails(path, sentence)


def test_invalid_bytes_late_in_a_file_and_truncated_files(tmp_path):
    path = tmp_path / "late.csv"
    path.write_bytes(b"id\n" + b"0123456789\n" * 1_700_000 + b"\xff\n")
    assert_fails(path, "is not UTF-8 text")
    whole = gzip.compress(b"id\n" + np.random.default_rng(0).bytes(9000).hex().encode() + b"\n")
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(whole[:-100])
    assert_fails(path, r"cut\.csv\.gz cannot be read")
    path = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"id": [str(n) for n in range(5000)]}), path)
    path.write_bytes(path.read_bytes()[:-50])
    assert_fails(path, r"cut\.parquet cannot be read")
    path.write_text("id\n1\n")
    assert_fails(path, r"cut\.parquet cannot be read")
    path = tmp_path / "long.csv"
    path.write_bytes(b'id,x\n1,2\n"' + b"y" * (40 << 20) + b"\n")
    assert_fails(path, "a quotation mark in row 2 that is never closed")


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array([1.0, 2.0]), "'id' holds double values .row 1 of .*must be text or integers"),
        (pa.array([True]), "'id' holds bool values"),
        (pa.array([[1]]), "'id' holds list"),
        (pa.array(["a", None, "b"]), "'id' is empty in row 2 of"),
        (pa.array([3, None]), "'id' is empty in row 2 of"),
        (pa.array([None, None]), "'id' is empty in row 1 of"),
        (pa.array([], pa.string()), "has no rows"),
        (pa.array([b"ok", b"\xff"]), "not UTF-8"),
    ],
)
def test_bad_parquet_ids(column, sentence, tmp_path):
    pq.write_table(pa.table({"id": column}), tmp_path / "t.parquet")
    assert_fails(tmp_path / "t.parquet", sentence)


def test_files_of_a_table_must_have_the_same_unique_columns(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "b.parquet")
    assert_fails(tmp_path, r"b\.parquet has no column 'x' although .*a\.parquet has it")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])
    pq.write_table(twice, tmp_path / "b.parquet")
    assert_fails(tmp_path / "b.parquet", "more than one column 'id'")


@pytest.mark.parametrize(
    "first,second,flag,sentence",
    [
        ({"collection_id": ["c"], "name": ["C"]}, {"collection_id": ["c"], "item_id": ["i"]},
         "edges", "part-0.parquet has no column 'name' although"),
        ({"collection_id": ["c"]}, {"collection_id": ["c"], "item_id": ["i"]},
         "edges", "collections-0.parquet has no column 'item_id' although"),
        ({"collection_id": ["c"]}, {"item_id": ["i"], "collection_id": ["c"]},
         "items", "collections-0.parquet has no column 'item_id' although"),
    ],
)  # fmt: skip
def test_two_tables_in_one_folder_are_refused(first, second, flag, sentence, tmp_path):
    pq.write_table(pa.table(first), tmp_path / "collections-0.parquet")
    for number in (0, 1):
        pq.write_table(pa.table(second), tmp_path / f"part-{number}.parquet")
    with pytest.raises(UserError) as caught:
        tables.open_table(tmp_path, flag, DataConfig())
    assert sentence in str(caught.value)
    assert "two tables, collections* and part*; keep each in a folder of its own." in str(
        caught.value
    )


def test_a_further_column_of_one_month_is_left_out(tmp_path):
    pq.write_table(pa.table({"item_id": ["a"], "x": [1]}), tmp_path / "april.parquet")
    pq.write_table(pa.table({"item_id": ["b"], "x": [1], "y": [2]}), tmp_path / "may.parquet")
    assert list(tables.open_table(tmp_path, "items", DataConfig()).columns) == ["item_id", "x"]


def where(index):
    return f"row {index + 1}"


def test_numbers():
    text = pa.array([" 1.5", "", "NA", "true", "FALSE", "-2e3", None])
    assert columns.numbers(text, "c", where).to_pylist() == [
        1.5,
        None,
        None,
        1.0,
        0.0,
        -2000.0,
        None,
    ]
    for typed in (pa.array([1, None, 3]), pa.array([1.0, None, 3.0], pa.float16())):
        assert columns.numbers(typed, "c", where).to_pylist() == [1.0, None, 3.0]
    assert columns.numbers(pa.array([True, None]), "c", where).to_pylist() == [1.0, None]
    with pytest.raises(UserError, match=r"Column 'c' is 'abc' in row 3, which is not a number\."):
        columns.numbers(pa.array(["1", "2", "abc", "x"]), "c", where)
    with pytest.raises(UserError, match="not numbers"):
        columns.numbers(pa.array([[1]]), "c", where)


def test_weights():
    assert columns.weights(pa.array(["1", "0.5"]), "w", where).tolist() == [1.0, 0.5]
    for bad in ([1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")], [1.0, 1e-60]):
        with pytest.raises(UserError, match=r"Column 'w' is .* in row 2; weights must be finite"):
            columns.weights(pa.array(bad), "w", where)
    with pytest.raises(UserError, match="Column 'w' is empty in row 2; every edge needs a weight"):
        columns.weights(pa.array([1.0, None]), "w", where)


VECTORS = [[1.0, 2.0], None, [3.0, -4.0]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(VECTORS),
        pa.array(VECTORS, pa.large_list(pa.float32())),
        pa.array(VECTORS, pa.list_(pa.float16(), 2)),
        pa.array([[9, 9], *[v and [int(x) for x in v] for v in VECTORS]]).slice(1),
        pa.array([[9.0, 9.0], *VECTORS], pa.list_(pa.float64(), 2)).slice(1),
        pa.array(["1 2", None, "3,-4"]),
        pa.array(["[1.0, 2.0]", "", "( 3;  -4.0 )"]),
        pa.array(["[1.0\n 2.0]", "[]", "3\t-4"], pa.large_string()),
    ],
)
def test_vectors(column):
    values, rows, width = columns.vectors(column, "v", where)
    assert values.tolist() == [[1.0, 2.0], [3.0, -4.0]]
    assert (rows.tolist(), width) == ([0, 2], 2)


def test_bad_vectors():
    for column in (pa.array([[1.0], None, [1.0, 2.0]]), pa.array(["1", "", "1 2"])):
        with pytest.raises(UserError, match="holds 2 numbers in row 3 but 1 in row 1"):
            columns.vectors(column, "v", where)
    with pytest.raises(UserError, match="missing number inside the vector of row 2"):
        columns.vectors(pa.array([[1.0, 2.0], [3.0, None]]), "v", where)
    with pytest.raises(UserError, match="is 'x' in row 2, which is not a number"):
        columns.vectors(pa.array(["1 2", "3 x"]), "v", where)
    with pytest.raises(UserError, match="not vectors of numbers"):
        columns.vectors(pa.array([1.0]), "v", where)
    assert columns.vectors(pa.array([None, None]), "v", where)[2] == 0
    assert columns.vectors(pa.array(["", None]), "v", where)[2] == 0


def test_times():
    second = 1_000_000
    stamps = ["1970-01-01 00:00:01", "1969-12-31 23:59:59"]
    for column in (pa.array(stamps), pa.array(stamps).cast(pa.timestamp("ns"))):
        values, kind = columns.times(column, "t", where, None)
        assert (values.tolist(), kind) == ([second, -second], "timestamp")
    zoned = pa.array(["1970-01-01T00:00:01Z", "1970-01-01T01:00:01+01:00"])
    assert columns.times(zoned, "t", where, None)[0].tolist() == [second, second]
    days = pa.array([1, 2], pa.int32()).cast(pa.date32())
    assert columns.times(days, "t", where, None)[0].tolist() == [86400 * second, 172800 * second]
    for column in (pa.array(["7", "-9"]), pa.array([7, -9]), pa.array([7.9, -8.5])):
        assert columns.times(column, "t", where, None)[0].tolist() == [7, -9]
    assert columns.times(pa.array([str(2**62 + 1)]), "t", where, None)[0][0] == 2**62 + 1
    assert columns.times(pa.array(["2024-01-01"]), "t", where, "timestamp")[1] == "timestamp"


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array(["2024-01-01", "soon"]), "'t' is 'soon' in row 2, which is neither"),
        (pa.array(["12", "soon"]), "'t' is 'soon' in row 2, which is neither"),
        (pa.array(["soon"]), "'t' is 'soon' in row 1, which is neither"),
        (pa.array([1, None]), "'t' is empty in row 2; every edge needs a time"),
        (pa.array([1.0, float("nan")]), "'t' is nan in row 2, which is not a time"),
        (pa.array([[1]]), "not times"),
    ],
)
def test_bad_times(column, sentence):
    with pytest.raises(UserError, match=sentence):
        columns.times(column, "t", where, None)


def test_unique_ids_and_lookup_match_a_dictionary(monkeypatch):
    # With this limit every batch triggers a merge.
    monkeypatch.setattr(ids, "_PENDING_ROWS", 3)
    rng = np.random.default_rng(1)
    stream = [[str(n) for n in rng.integers(0, 50, size)] for size in (0, 1, 30, 200, 7)]
    unique, reference = UniqueIds(), {}
    for batch in stream:
        unique.add(pa.array(batch, pa.large_string()))
        for name in batch:
            reference.setdefault(name, len(reference))
    table = unique.finish("items")
    assert table.ids.to_pylist() == list(reference)
    queries = [*stream[3], "unknown", "", "50"]
    found = table.lookup(pa.array(queries))
    assert found.dtype == np.int32
    assert found.tolist() == [reference.get(name, -1) for name in queries]
    chunks = pa.chunked_array([pa.array(queries[:5]), pa.array(queries[5:])])
    assert table.lookup(chunks).tolist() == found.tolist()
    order = rng.permutation(len(table))
    assert table.lookup(table.names(order)).tolist() == order.tolist()


def test_id_table_round_trip_and_digest(tmp_path, monkeypatch):
    table = IdTable(pa.array(UNUSUAL_IDS))
    table.save(tmp_path / "ids.arrow")
    loaded = IdTable.load(tmp_path / "ids.arrow")
    assert loaded.ids.to_pylist() == UNUSUAL_IDS and len(loaded) == len(UNUSUAL_IDS)
    digest = table.digest()
    assert loaded.digest() == digest
    sliced = IdTable(pa.array(["first", *UNUSUAL_IDS]).slice(1))
    assert sliced.digest() == digest
    monkeypatch.setattr(ids, "_DIGEST_ROWS", len(UNUSUAL_IDS) // 2 * 2)
    others = [
        UNUSUAL_IDS[::-1],
        UNUSUAL_IDS[:-1],
        ["a,bsay", *UNUSUAL_IDS[2:]],
        ["a", ",b", *UNUSUAL_IDS[2:]],
    ]
    digests = {digest, *(IdTable(pa.array(other)).digest() for other in others)}
    assert len(digests) == 5
    empty = IdTable(pa.array([], pa.string()))
    assert empty.lookup(pa.array(["a"])).tolist() == [-1]
    empty.save(tmp_path / "none.arrow")
    assert len(IdTable.load(tmp_path / "none.arrow")) == 0 and empty.digest()


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_few_ids_are_looked_up_without_a_hash_table_of_all(kind, monkeypatch, small_rng):
    names = small_rng.permutation(1000)[:300].tolist()
    table = IdTable(pa.array(names).cast(kind))
    place = {name: row for row, name in enumerate(names)}
    hashed, index_in = [], ids.pc.index_in

    def counted(values, value_set):
        hashed.append(len(value_set))
        return index_in(values, value_set=value_set)

    monkeypatch.setattr(ids.pc, "index_in", counted)
    for size in (0, 1, 5, 37):
        wanted = small_rng.choice(1200, size=size).tolist()
        given = pa.array(wanted, pa.int64()).cast(kind)
        expected = [place.get(name, -1) for name in wanted]
        for form in (given, pa.chunked_array([given[:2], given[2:]], given.type)):
            found = table.lookup(form)
            assert found.tolist() == expected and found.dtype == np.int32
        repeated = pa.concat_arrays([given, given])[: 2 * size]
        assert table.lookup(repeated).tolist() == (expected * 2)
    assert max(hashed[:9]) <= 5
    many = pa.array(names * 2).cast(kind)
    assert table.lookup(many).tolist() == [*range(300)] * 2


def test_damaged_id_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        IdTable.load(tmp_path / "ids.arrow")
    IdTable(pa.array(UNUSUAL_IDS)).save(tmp_path / "ids.arrow")
    whole = (tmp_path / "ids.arrow").read_bytes()
    (tmp_path / "ids.arrow").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="is damaged"):
        IdTable.load(tmp_path / "ids.arrow")
    (tmp_path / "ids.arrow").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        IdTable.load(tmp_path / "ids.arrow")


def test_group_batches_keeps_all_rows_in_order(tmp_path):
    from pinsage_jax.data.edges_table import group_batches

    pq.write_table(pa.table({"id": [str(n) for n in range(10)]}), tmp_path / "t.parquet")
    table = tables.open_table(tmp_path / "t.parquet", "edges")
    for rows, sizes in ((1, [3, 3, 3, 1]), (4, [6, 4]), (100, [10])):
        groups = list(group_batches(iter_batches(table, ["id"], batch_rows=3), rows))
        assert [sum(len(batch) for batch in group) for group in groups] == sizes


def test_batches_of_a_large_table_are_let_go(tmp_path):
    path = tmp_path / "e.parquet"
    values = pa.array(np.random.default_rng(0).normal(size=1 << 20))
    pq.write_table(pa.table({"v": values}), path, row_group_size=1 << 15)
    del values
    table, most = tables.open_table(path, "edges", DataConfig()), 0
    before = pa.total_allocated_bytes()
    for batch in tables.iter_batches(table, ["v"], batch_rows=1 << 15):
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    assert most < path.stat().st_size / 2
