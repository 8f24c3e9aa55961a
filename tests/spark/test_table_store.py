"""Tables on a local path and on an S3-compatible server; without Spark."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import s3_server

from pinsage_jax.core.errors import UserError
from pinsage_jax.core.files import checksum
from pinsage_jax.spark import table_store
from pinsage_jax.spark.table_store import MANIFEST, Folder, folder_of

# Moto is a package of the tests of Spark.
pytestmark = [pytest.mark.spark, pytest.mark.timeout(300)]

SCHEMA = pa.schema([("node", pa.int64()), ("item_id", pa.string())])


@pytest.fixture(scope="module")
def server():
    with s3_server("catalog") as address:
        yield address


@pytest.fixture(params=["local", "s3", "s3 by its address"])
def folder(request, tmp_path, server) -> Folder:
    if request.param == "local":
        return folder_of(str(tmp_path / "tables"))
    name = f"s3://catalog/{tmp_path.name}"
    if request.param == "s3":
        return folder_of(name)
    host = server.removeprefix("http://")
    options = f"endpoint_override={host}&scheme=http"
    return folder_of(f"s3://tests:tests@catalog/{tmp_path.name}?{options}")


def block(begin: int, end: int) -> pa.RecordBatch:
    nodes = np.arange(begin, end)
    return pa.record_batch([nodes, [f"i{node}" for node in nodes]], schema=SCHEMA)


def test_parts_are_read_as_they_were_written(folder):
    table = folder / "layers" / "items"
    assert table.manifest() is None and table.names() == []
    parts = [table.write_part("part-00000", SCHEMA, [block(0, 3), block(3, 8)])]
    parts.append(table.write_part("part-00001", SCHEMA, [block(8, 9)]))
    table.write_part("part-00001", SCHEMA, [block(8, 9)])  # Another attempt, which is not listed.
    assert table.manifest() is None
    table.finish({"files": parts})
    manifest = table.manifest()
    assert [(part["rows"], part["groups"]) for part in manifest["files"]] == [(8, 2), (1, 1)]
    rows = [row for part in parts for b in table.read_part(part["name"]) for row in b["node"]]
    assert [row.as_py() for row in rows] == list(range(9))
    second = list(table.read_part(parts[0]["name"], [1], ["item_id"]))
    assert pa.Table.from_batches(second).to_pydict() == {"item_id": ["i3", "i4", "i5", "i6", "i7"]}
    assert len(table.names()) == 4
    table.remove_unlisted()
    assert table.names() == sorted([MANIFEST, *(part["name"] for part in parts)])
    (folder / "layers").remove()
    assert table.manifest() is None and folder.names() == []
    (folder / "layers").remove()


def test_a_part_is_an_ordinary_file_with_its_checksum(tmp_path):
    part = folder_of(str(tmp_path)).write_part("part-00000", SCHEMA, [block(0, 5), block(5, 7)])
    path = tmp_path / part["name"]
    assert pq.read_table(path)["node"].to_pylist() == list(range(7))
    assert checksum(path) == part["crc"]


def test_a_folder_survives_being_sent(folder):
    copy = dataclasses.replace(folder)
    (folder / "a").finish({"files": []})
    assert (copy / "a").manifest() == {"files": [], "format": 1}


def test_credentials_are_not_shown():
    url = "s3://KEY:SECRET@bucket/a/b/?endpoint_override=host:1&scheme=http"
    assert str(Folder(url) / "items") == "s3://bucket/a/b/items"


@pytest.mark.parametrize(
    "url,sentence",
    [
        ("s3://nobucket/x", r"^s3://nobucket/x cannot be read or written: there is no such bucket"),
        ("ftp://host/x", r"^--spark_tables=ftp://host/x cannot be opened \(Unrecognized"),
        ("s3://", r"^--spark_tables=s3:// names no bucket; give s3://BUCKET/FOLDER"),
        ("s3://b/x?color=red", r"^--spark_tables=s3://b/x cannot be opened \(Unexpected query"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(server, url, sentence):
    with pytest.raises(UserError, match=sentence):
        folder_of(url).manifest()
    with pytest.raises(UserError, match=sentence):
        folder_of(url).write_part("part", SCHEMA, [block(0, 1)])


def test_a_server_that_does_not_answer_is_one_sentence(server, monkeypatch):
    url = "s3://catalog/x?endpoint_override=127.0.0.1:1&scheme=http"
    with pytest.raises(UserError, match=r"^s3://catalog/x cannot be read or written: the server"):
        folder_of(url).manifest()


def test_no_permission_is_one_sentence(tmp_path, monkeypatch):
    class Denied:
        type_name = "s3"

        def open_input_stream(self, path):
            raise OSError("When reading x: AWS Error ACCESS_DENIED during HeadObject operation")

    monkeypatch.setattr(table_store, "_opened", lambda url, shown: (Denied(), "catalog/x"))
    with pytest.raises(UserError, match=r"catalog/x cannot be .*: access is denied; check the"):
        Folder("s3://catalog/x").manifest()


def test_missing_and_damaged_parts_are_named(folder):
    parts = [folder.write_part("part-00000", SCHEMA, [block(0, 200)])]
    with pytest.raises(UserError, match=r"/part-9\.parquet does not exist although"):
        list(folder.read_part("part-9.parquet"))
    fs, path = folder._place()
    name = f"{path}/{parts[0]['name']}"
    with fs.open_input_stream(name) as handle:
        data = bytearray(handle.read())
    for damage in ("bit", "end"):
        broken = bytearray(data)
        if damage == "bit":
            broken[60] ^= 16
        else:
            del broken[-40:]
        with fs.open_output_stream(name) as handle:
            handle.write(bytes(broken))
        with pytest.raises(UserError, match=r"is damaged \(.*\); write the tables again"):
            list(folder.read_part(parts[0]["name"]))
    with fs.open_output_stream(f"{path}/{MANIFEST}") as handle:
        handle.write(json.dumps({"files": []}).encode()[:-4])
    with pytest.raises(UserError, match=r"_manifest\.json is damaged; delete"):
        folder.manifest()
