"""The files that are written for each store, read as the store reads them."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_rows import COLUMNS, IDS, catalog

from pinsage_jax.core.errors import UserError
from pinsage_jax.stores import dumps, pgvector_copy, writer
from pinsage_jax.stores.canary import canary, compare, digest
from pinsage_jax.stores.rows import StoreRows

# A table of LanceDB is written by LanceDB: test_real_stores.py.
WRITERS = {store: write for store, write in writer.WRITERS.items() if store != "lancedb"}


def rows(unit_length: bool = False, wanted: str = "all") -> StoreRows:
    return StoreRows.of(*catalog(), wanted, "v1", unit_length)


@pytest.mark.parametrize("unit_length", [False, True])
@pytest.mark.parametrize("store", WRITERS)
def test_what_is_written_is_read_again(store, unit_length, tmp_path):
    made = rows(unit_length)
    WRITERS[store](made, "items", tmp_path)
    about = {"program": "pinsage_jax 0", "store": store, "table": "items", "files": {}}
    (tmp_path / dumps.MANIFEST).write_text(json.dumps(about))
    held = dumps.read(tmp_path, "items")
    assert held.ids.to_pylist() == IDS and held.versions.to_pylist() == ["v1"] * len(IDS)
    # Every digit of float32 is there.
    np.testing.assert_array_equal(held.vectors, made.items(slice(None)))
    assert "12 of 12 items" in compare(made, held)


def test_names_of_columns(tmp_path):
    assert list(rows().columns) == [
        "Unit_price", "stock", "sold", "title", "tags", "day", "seen",
    ]  # fmt: skip
    assert list(rows(wanted="sku, title,stock").columns) == ["title", "stock"]
    assert not rows(wanted="").columns
    with pytest.raises(UserError, match=r"no column 'titel'; did you mean 'title'\?"):
        rows(wanted="titel")
    items, vectors = catalog()
    for name in ("model_version", "Unit_price"):
        items.types[name] = pa.int64()
    with pytest.raises(UserError, match=r"written as model_version, which is the export's own"):
        StoreRows.of(items, vectors, "model_version", "v1", False)
    with pytest.raises(UserError, match=r"as Unit_price, which is that of column 'Unit price'"):
        StoreRows.of(items, vectors, "Unit price,Unit_price", "v1", False)


def test_an_empty_text_is_not_a_missing_one(tmp_path):
    pgvector_copy.write(rows(), "items", tmp_path)
    text = (tmp_path / "items.csv").read_text()
    first, second = (line for line in text.splitlines()[1:] if line.startswith(('"pl', '"quo')))
    assert first.endswith('"v1",,,,,,,') and ',"","{}",' in second
    with open(tmp_path / "items.csv", newline="") as lines:
        found = list(csv.DictReader(lines))
    assert [row["item_id"] for row in found] == IDS
    assert found[2]["tags"] == r'{"a\"b","c\\d","e,f"}'
    assert found[1]["seen"].startswith("2024-02-29 12:30:01.00025")


def test_bulk_requests(tmp_path):
    for write in (WRITERS["opensearch"], WRITERS["elasticsearch"]):
        write(rows(), "items", tmp_path)
        lines = (tmp_path / "bulk-00000.ndjson").read_bytes().split(b"\n")
        assert lines.pop() == b"" and len(lines) == 2 * len(IDS)
        actions, sources = ([json.loads(line) for line in lines[i::2]] for i in (0, 1))
        assert [action["index"]["_id"] for action in actions] == IDS
        assert "title" not in sources[0] and sources[1]["title"] == ""
        assert sources[2]["tags"] == ['a"b', "c\\d", "e,f"] and sources[1]["day"] == "2024-02-29"
        body = json.loads((tmp_path / "index.json").read_text())
        # The mapping is strict: what it does not name is refused.
        named = body["mappings"]["properties"]
        assert set().union(*sources) == set(named)
    assert named["embedding"]["similarity"] == "max_inner_product"
    assert named["stock"] == {"type": "long"} and named["seen"] == {"type": "date"}


def test_milvus_fields_are_those_of_the_files(tmp_path):
    WRITERS["milvus"](rows(), "items", tmp_path)
    body = json.loads((tmp_path / "collection.json").read_text())
    found = pq.read_table(tmp_path / "part-00000.parquet")
    fields = {field["fieldName"]: field for field in body["schema"]["fields"]}
    assert list(fields) == found.column_names
    assert fields["item_id"]["isPrimary"] and not fields["item_id"].get("nullable")
    assert fields["embedding"]["elementTypeParams"] == {"dim": "5"}
    # Types of columns as pymilvus's own writer of such files has them (bulk_writer/constants.py).
    kinds = {
        "Bool": pa.bool_(), "Int64": pa.int64(), "Double": pa.float64(), "VarChar": pa.string(),
        "FloatVector": pa.list_(pa.float32()), "Array": pa.list_(pa.string()),
    }  # fmt: skip
    assert {field["dataType"] for field in fields.values()} == kinds.keys()
    for name, field in fields.items():
        assert found.schema.field(name).type == kinds[field["dataType"]], name
    assert fields["tags"]["elementDataType"] == "VarChar"
    assert body["indexParams"][0]["metricType"] == "IP"
    assert json.loads((tmp_path / "import.json").read_text())["files"] == [["part-00000.parquet"]]
    items, vectors = catalog()
    items.types["Größe"] = pa.float64()
    COLUMNS["Größe"] = COLUMNS["Unit price"]
    try:
        made = StoreRows.of(items, vectors, "Größe", "v1", False)
    finally:
        del COLUMNS["Größe"]
    with pytest.raises(UserError, match=r"--to=milvus: .* column 'Größe'"):
        WRITERS["milvus"](made, "items", tmp_path)


def test_redis_commands(tmp_path):
    made = rows()
    WRITERS["redis"](made, "shop", tmp_path)
    data = (tmp_path / "items.resp").read_bytes()
    key = b"shop:plain"
    assert data.startswith(b"*8\r\n$4\r\nHSET\r\n$%d\r\n%b\r\n" % (len(key), key))
    assert made.vectors[0].tobytes() in data and b"$5\r\nfalse\r\n" in data
    create = (tmp_path / "index.redis").read_text()
    assert create.startswith("FT.CREATE shop ON HASH PREFIX 1 shop: SCHEMA embedding VECTOR HNSW 6")
    assert "DISTANCE_METRIC IP" in create and 'tags TAG SEPARATOR "|"' in create
    WRITERS["redis"](rows(unit_length=True), "shop", tmp_path)
    assert "DIM 6 DISTANCE_METRIC COSINE" in (tmp_path / "index.redis").read_text()


def test_a_parser_of_redis_reads_the_commands(tmp_path):
    hiredis = pytest.importorskip("hiredis", reason="needs hiredis (extra test)")
    made = rows()
    WRITERS["redis"](made, "shop", tmp_path)
    reader = hiredis.Reader()
    reader.feed((tmp_path / "items.resp").read_bytes())
    commands = [reader.gets() for _ in IDS]
    assert reader.gets() is False and not reader.has_data()
    for command, item, vector in zip(commands, IDS, made.vectors, strict=True):
        assert command[:2] == [b"HSET", f"shop:{item}".encode()]
        fields = dict(zip(command[2::2], command[3::2], strict=True))
        assert fields[b"item_id"].decode() == item and fields[b"embedding"] == vector.tobytes()


def test_the_canary_has_exact_neighbors():
    made = rows()
    found = canary(made)
    assert [entry["item_id"] for entry in found["vectors"]] == IDS
    for entry in found["vectors"]:
        assert digest(np.array(entry["embedding"])) == entry["sha256"]
    for query in found["queries"]:
        scores = made.vectors @ np.array(query["embedding"], np.float32)
        best = np.argsort(-scores)[:10]
        assert [near["item_id"] for near in query["neighbors"]] == [IDS[i] for i in best]
    unit = canary(rows(unit_length=True))
    for query, plain in zip(unit["queries"], found["queries"], strict=True):
        names = [near["item_id"] for near in query["neighbors"]]
        assert names == [near["item_id"] for near in plain["neighbors"]]
        stored = rows(unit_length=True).items(slice(None)) @ np.array(query["embedding"])
        np.testing.assert_allclose(
            [near["score"] for near in query["neighbors"]], np.sort(stored)[::-1][:10], rtol=1e-4
        )


def test_dumps_of_stores(tmp_path):
    made = rows()
    vectors = [vector.tolist() for vector in made.vectors]
    plain = [{"item_id": n, "embedding": v} for n, v in zip(IDS, vectors, strict=True)]
    points = [
        {"id": i, "payload": {"item_id": n, "model_version": "v1"}, "vector": v}
        for i, (n, v) in enumerate(zip(IDS, vectors, strict=True))
    ]
    answers = {
        "list.json": plain,
        "qdrant.json": {"result": {"points": points}, "status": "ok"},
        "search.json": {"hits": {"hits": [{"_id": p["item_id"], "_source": p} for p in plain]}},
        "milvus.json": {"code": 0, "data": plain},
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(json.dumps(answer))
        assert "every vector is this model's" in compare(made, dumps.read(tmp_path / name, ""))
    (tmp_path / "rows.ndjson").write_text("\n".join(json.dumps(row) for row in plain))
    pq.write_table(pa.table({"item_id": IDS, "embedding": vectors}), tmp_path / "rows.parquet")
    for name in ("rows.ndjson", "rows.parquet"):
        assert "12 of 12" in compare(made, dumps.read(tmp_path / name, ""))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda p: p[3]["embedding"].__setitem__(0, 9.0), r"1 of its 12 rows .* is .* away"),
        (lambda p: p[3].update(embedding=[float("nan")] * 5), r"1 of its 12 rows .* nan away"),
        (lambda p: p[3].update(model_version="v0"), r"is of version v0"),
        (lambda p: p[3].update(item_id="else"), r"'else' is no item of this catalog"),
        (lambda p: p.pop(), r"1 of the 12 items that are checked .* not among them: '3'"),
        (lambda p: [row["embedding"].append(0.0) for row in p], r"6 dimensions, .* have 5"),
        (lambda p: p[3]["embedding"].append(0.0), r"holds vectors of different lengths"),
        (lambda p: p[3].pop("embedding"), r"cannot be read"),
        (lambda p: p.clear(), r"holds no row"),
    ],
)
def test_a_store_that_differs_is_named(change, sentence, tmp_path):
    made = rows()
    plain = [
        {"item_id": n, "embedding": v.tolist(), "model_version": "v1"}
        for n, v in zip(IDS, made.vectors, strict=True)
    ]
    change(plain)
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=sentence) as caught:
        compare(made, dumps.read(path, ""))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"a": 1}', "cannot be read"),
        ("a.csv", "item_id,embedding\na,[1;2]\n", "cannot be read"),
        ("a.csv", "id,vector\na,[1]\n", "has no column 'item_id'"),
        ("a.parquet", "PAR1", "cannot be read"),
        ("a.resp", "SET a b\r\n", "something else than HSET"),
        ("a.txt", "", "a dump ends in .parquet, .csv"),
        ("b/a.json", "[]", "neither an export nor a LanceDB database"),
    ],
)
def test_dumps_that_cannot_be_read(name, text, sentence, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        dumps.read(path if path.parent == tmp_path else path.parent, "items")
    with pytest.raises(UserError, match="does not exist"):
        dumps.read(tmp_path / "nothing", "items")
