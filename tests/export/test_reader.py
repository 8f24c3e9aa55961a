"""Reading an export: a round trip, and one clear error for every export that cannot be read."""

import json

import numpy as np
import pytest
from small_catalog import make_prepared, random_graph

from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.export import reader
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.export.writer import Embeddings, write_embeddings


@pytest.fixture
def exported(tmp_path, small_rng):
    """30 items in shards of 12, and collections that must not be mixed in."""
    prepared = make_prepared(random_graph(small_rng))
    vectors = small_rng.normal(size=(30, 4)).astype(np.float32)

    def write(dtype="float32", rows=12, items=vectors):
        write_embeddings(
            tmp_path,
            EmbedConfig(shard_rows=rows, export_dtype=dtype),
            Embeddings(prepared.item_ids, items),
            {"step": 1},
            Embeddings(prepared.collection_ids, np.full((9, items.shape[1]), 99, np.float32)),
        )

    write()
    return prepared, vectors, write


@pytest.mark.parametrize("dtype,rows", [("float32", 12), ("float16", 7), ("float32", 100)])
def test_round_trip(exported, tmp_path, dtype, rows, monkeypatch):
    prepared, vectors, write = exported
    write(dtype, rows)
    monkeypatch.setattr(reader, "_ROWS", 5)
    found = load_embeddings(tmp_path, prepared)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors.astype(dtype).astype(np.float32))


def test_missing(tmp_path, exported):
    with pytest.raises(UserError, match="run --mode=embed first"):
        load_embeddings(tmp_path / "elsewhere", exported[0])
    (tmp_path / "embeddings" / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet is missing"):
        load_embeddings(tmp_path, exported[0])


def test_damaged(tmp_path, exported):
    path = tmp_path / "embeddings" / "part-00002.parquet"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-00002\.parquet is damaged"):
        load_embeddings(tmp_path, exported[0])


def test_a_file_that_is_no_parquet_though_its_checksum_fits(tmp_path, exported):
    folder = tmp_path / "embeddings"
    (folder / "part-00000.parquet").write_bytes(b"")
    manifest = json.loads((folder / "_manifest.json").read_text())
    manifest["files"]["part-00000.parquet"] = "00000000"
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged"):
        load_embeddings(tmp_path, exported[0])


def test_another_format_version_is_refused(tmp_path, exported):
    path = tmp_path / "embeddings" / "_manifest.json"
    manifest = json.loads(path.read_text())
    # Format 2 called the scale of the popularity bias last_scale and last_apart.
    manifest |= {"format": 2, "last_apart": manifest.pop("separate_bias_scale")}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"embeddings has format 2.*run --mode=embed again"):
        load_embeddings(tmp_path, exported[0])


@pytest.mark.parametrize("change", [{"files": None}, {"dimension": None}, {"dimension": 5}])
def test_a_manifest_that_does_not_fit(tmp_path, exported, change):
    path = tmp_path / "embeddings" / "_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="run --mode=embed again"):
        load_embeddings(tmp_path, exported[0])


def test_another_catalog(tmp_path, exported, small_rng):
    for items, how in ((29, "more than 29"), (31, "30 items, the prepared data 31")):
        other = make_prepared(random_graph(small_rng, num_items=items))
        with pytest.raises(UserError, match=f"another catalog .*{how}"):
            load_embeddings(tmp_path, other)
    swapped = make_prepared(random_graph(small_rng))
    ids = swapped.item_ids.names(np.r_[0:20, 21, 20, 22:30])
    object.__setattr__(swapped, "item_ids", type(swapped.item_ids)(ids))
    with pytest.raises(UserError, match=r"another catalog .*ids differ"):
        load_embeddings(tmp_path, swapped)
