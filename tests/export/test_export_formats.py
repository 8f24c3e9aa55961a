"""Export formats: round trips, recall lost to encoding, and alignment to an earlier export."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_catalog import make_prepared, random_graph

from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.ids import IdTable
from pinsage_jax.export import reader
from pinsage_jax.export.codec import (
    EncodedRows,
    StoredVectors,
    VectorCodec,
    principal_directions,
)
from pinsage_jax.export.reader import load_embeddings, load_rows, open_export
from pinsage_jax.export.writer import Embeddings, write_embeddings
from pinsage_jax.retrieval import export_quality
from pinsage_jax.retrieval.export_quality import choose_codec, recall_against_float32

WIDTH = 8


def like_embeddings(rng, count=30, width=WIDTH) -> np.ndarray:
    """Unit vectors with unequal variances, and a popularity bias of about 1."""
    vectors = rng.normal(size=(count, width)) * np.linspace(3, 0.2, width)
    vectors[:, :-1] /= np.linalg.norm(vectors[:, :-1], axis=1, keepdims=True)
    vectors[:, -1] = 1 + 0.1 * rng.normal(size=count)
    return vectors.astype(np.float32)


def slow_int8(vectors, separate_bias):
    out = np.empty_like(vectors)
    cuts = [slice(0, -1), slice(-1, None)] if separate_bias else [slice(None)]
    for row, vector in enumerate(vectors):
        for cut in cuts:
            step = max(abs(number) for number in vector[cut]) / 127
            out[row, cut] = [round(float(number / step)) * step for number in vector[cut]]
    return out


@pytest.fixture
def catalog(tmp_path, small_rng):
    prepared = make_prepared(random_graph(small_rng))
    vectors = like_embeddings(small_rng)

    def write(codec=None, **embed):
        config = EmbedConfig(**{"shard_rows": 12} | embed)
        return write_embeddings(
            tmp_path, config, Embeddings(prepared.item_ids, vectors), {"step": 1},
            Embeddings(prepared.collection_ids, np.full((9, WIDTH), 99, np.float32)), codec=codec,
        )  # fmt: skip

    return prepared, vectors, write


@pytest.mark.parametrize("layout", ["parquet", "npy"])
@pytest.mark.parametrize("separate_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_format_comes_back(catalog, tmp_path, layout, dtype, separate_bias):
    prepared, vectors, write = catalog
    manifest = write(VectorCodec(dtype, separate_bias), export_format=layout, export_dtype=dtype)
    found = load_embeddings(tmp_path, prepared)
    assert found.dtype == np.float32 and found.shape == vectors.shape
    if dtype == "int8":
        np.testing.assert_allclose(found, slow_int8(vectors, separate_bias), atol=1e-6)
        assert np.abs(found[:, :-1] - vectors[:, :-1]).max() > 1e-4
        assert np.allclose(found[:, -1], vectors[:, -1], atol=1e-6) == separate_bias
    else:
        np.testing.assert_array_equal(found, vectors.astype(dtype).astype(np.float32))
    expected = {"layout": layout, "dtype": dtype, "dimension": WIDTH, "full_dimension": WIDTH}
    assert expected.items() <= manifest.items()
    present = {path.name for path in (tmp_path / "embeddings").iterdir()} - {"_manifest.json"}
    assert present == set(manifest["files"])
    export = open_export(tmp_path / "embeddings")
    assert export.ids().ids.equals(prepared.item_ids.ids)
    np.testing.assert_array_equal(export.vectors(), found)


@pytest.mark.parametrize("layout", ["parquet", "npy"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_rows_of_a_large_export_are_decoded_when_read(
    catalog, tmp_path, layout, dtype, monkeypatch
):
    prepared, _, write = catalog
    write(VectorCodec(dtype, True), export_format=layout, export_dtype=dtype)
    whole = load_embeddings(tmp_path, prepared)
    assert isinstance(load_rows(tmp_path, prepared), np.ndarray)
    monkeypatch.setattr(reader, "MOST_DECODED_BYTES", 1)
    rows = load_rows(tmp_path, prepared)
    lazy = layout == "npy" and dtype != "float32"
    assert isinstance(rows, EncodedRows if lazy else np.ndarray)
    assert rows.shape == whole.shape and rows.dtype == np.float32 and len(rows) == len(whole)
    for part in (slice(3, 9), np.array([5, 0, 5]), 7, slice(0, 0)):
        np.testing.assert_array_equal(rows[part], whole[part])
    np.testing.assert_array_equal(np.asarray(rows), whole)
    other = dataclasses.replace(prepared, item_ids=IdTable(pa.array(["x"] * len(whole))))
    with pytest.raises(UserError, match="another catalog"):
        load_rows(tmp_path, other)


def test_layout_of_arrays_and_tables(catalog, tmp_path):
    _, vectors, write = catalog
    folder = tmp_path / "embeddings"
    write(VectorCodec("int8", True), export_format="npy")
    assert np.load(folder / "vectors.npy", mmap_mode="r").dtype == np.int8
    assert np.load(folder / "vectors.scales.npy").shape == (30, 2)
    assert np.load(folder / "collection_vectors.npy").shape == (9, WIDTH)
    assert pq.read_table(folder / "item_ids.parquet")["item_id"][7].as_py() == "item-7"
    write(VectorCodec("int8", True))
    table = pq.read_table(folder / "part-00001.parquet")
    assert table.column_names == ["item_id", "embedding", "scale", "bias_scale"]
    assert table.schema.field("embedding").type == pa.list_(pa.int8(), WIDTH)
    codes = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(
        codes[:, -1] * np.array(table["bias_scale"]), vectors[12:24, -1], rtol=1e-6
    )


def test_a_zero_vector_is_stored_as_zeros():
    codec = VectorCodec("int8", True)
    assert not codec.decode(*codec.encode(np.zeros((2, 4), np.float32))).any()


@pytest.mark.parametrize("name", ["vectors.npy", "vectors.scales.npy", "item_ids.parquet"])
def test_damage_is_named(catalog, tmp_path, name):
    prepared, _, write = catalog
    write(VectorCodec("int8", True), export_format="npy")
    path = tmp_path / "embeddings" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        load_embeddings(tmp_path, prepared)
    path.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_embeddings(tmp_path, prepared)


def test_arrays_that_do_not_fit_their_manifest(catalog, tmp_path):
    prepared, _, write = catalog
    write(export_format="npy")
    path = tmp_path / "embeddings" / "_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dimension": 5}))
    with pytest.raises(UserError, match="another length"):
        load_embeddings(tmp_path, prepared)


@pytest.mark.parametrize("layout", ["parquet", "npy"])
def test_nothing_to_export(tmp_path, layout):
    ids = IdTable(pa.array([], pa.string()))
    none = Embeddings(ids, np.ones((0, 3), np.float32))
    write_embeddings(tmp_path, EmbedConfig(export_format=layout), none, {})
    export = open_export(tmp_path / "embeddings")
    assert export.vectors().shape == (0, 3) and len(export.ids()) == 0


@pytest.mark.parametrize("separate_bias", [True, False])
def test_truncation_keeps_inner_products_as_well_as_can_be(small_rng, separate_bias):
    vectors = like_embeddings(small_rng, 200)
    free = vectors[:, :-1] if separate_bias else vectors
    kept = 4 - int(separate_bias)
    left, values, _ = np.linalg.svd(free.astype(np.float64), full_matrices=False)
    best = (left[:, :kept] * values[:kept] ** 2) @ left[:, :kept].T
    if separate_bias:
        best = best + np.outer(vectors[:, -1], vectors[:, -1])
    directions = principal_directions(vectors, 4, separate_bias)
    found = StoredVectors(vectors, VectorCodec("float32", separate_bias, directions))
    assert found.shape == (200, 4)
    np.testing.assert_allclose(found[:] @ found[:].T, best, atol=1e-4)
    if separate_bias:
        np.testing.assert_array_equal(found[:][:, -1], vectors[:, -1])
    rows = np.array([5, 3])
    np.testing.assert_allclose(found[rows], found[:][rows], atol=1e-6)
    with pytest.raises(ValueError):
        principal_directions(vectors, WIDTH + 1, separate_bias)


def naive_top(queries, catalog, excluded, k=10):
    scores = queries @ catalog.T
    scores[np.arange(len(excluded)), excluded] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def overlap(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), expected)])


def test_reported_recall_is_that_of_a_naive_search(small_rng):
    vectors = like_embeddings(small_rng, 300)
    rows = export_quality.evenly_spaced_rows(300)
    for codec in (
        VectorCodec("int8", False),
        VectorCodec("float16", True, principal_directions(vectors, 3, True)),
    ):
        stored = codec.decode(*codec.encode(vectors))
        expected = naive_top(vectors[rows], vectors, rows)
        wanted = overlap(naive_top(stored[rows], stored, rows), expected.tolist())
        report = recall_against_float32(codec, vectors)
        assert report["recall@10"] == pytest.approx(wanted, abs=0.01) and report["queries"] == 300
        assert report["loss@10"] == pytest.approx(1 - report["recall@10"])
        assert 0.2 < report["recall@10"] < 1
    assert recall_against_float32(VectorCodec(), vectors)["recall@10"] == 1.0


def rotated(rng, vectors):
    """The same vectors in a rotated space: the best case of another training run."""
    rotation, _ = np.linalg.qr(rng.normal(size=(WIDTH - 1, WIDTH - 1)))
    out = vectors.copy()
    out[:, :-1] = vectors[:, :-1] @ rotation
    return out


@pytest.mark.parametrize("layout,dtype", [("parquet", "float32"), ("npy", "int8")])
def test_alignment_finds_the_rotation(catalog, tmp_path, small_rng, layout, dtype):
    _, vectors, write = catalog
    write(VectorCodec(dtype, True), export_format=layout)
    # Another order, five items removed, four added, and the popularity bias shifted.
    order = small_rng.permutation(25)
    names = [f"item-{i}" for i in order] + [f"fresh-{i}" for i in range(4)]
    new = np.concatenate([vectors[order], like_embeddings(small_rng, 4)])
    new = rotated(small_rng, new)
    new[:, -1] += 0.01
    ids = IdTable(pa.array(names))
    folder = str(tmp_path / "embeddings")
    codec, about = choose_codec(new, ids, "float32", 0, True, folder)
    projected = codec.project(new)
    tolerance = 1e-5 if dtype == "float32" else 0.02
    np.testing.assert_allclose(projected[:25, :-1], vectors[order, :-1], atol=tolerance)
    np.testing.assert_array_equal(projected[:, -1], new[:, -1])
    np.testing.assert_allclose(projected @ projected.T, new @ new.T, atol=1e-5)
    report = about["aligned"]
    assert report["shared_items"] == 25
    assert report["residual"]["before"] > 0.5 > 20 * report["residual"]["after"]
    churn = report["neighbor_churn@10"]
    before, after = churn["old_queries_before"], churn["old_queries_after"]
    assert before > after + 0.1 and after <= 0.05 + churn["new_queries"]
    assert about["against_float32"]["recall@10"] == 1.0


def test_alignment_after_truncation(catalog, tmp_path, small_rng):
    prepared, vectors, write = catalog
    write(VectorCodec("float32", True, principal_directions(vectors, 4, True)))
    earlier = load_embeddings(tmp_path, prepared)
    new = rotated(small_rng, vectors)
    codec, about = choose_codec(new, prepared.item_ids, "float32", 4, True, tmp_path / "embeddings")
    np.testing.assert_allclose(codec.project(new), earlier, atol=1e-4)
    assert about["aligned"]["residual"]["after"] < 1e-3
    assert about["against_float32"]["recall@10"] < 1.0
    for dim, separate_bias in ((5, True), (4, False)):
        with pytest.raises(
            UserError, match=r"--align_to=.* has 4 dimensions with a popularity bias"
        ):
            choose_codec(
                new, prepared.item_ids, "float32", dim, separate_bias, str(tmp_path / "embeddings")
            )
    strangers = IdTable(pa.array([f"other-{i}" for i in range(30)]))
    with pytest.raises(UserError, match="shares no item"):
        choose_codec(new, strangers, "float32", 4, True, str(tmp_path / "embeddings"))
    with pytest.raises(UserError, match="holds no embeddings"):
        choose_codec(new, strangers, "float32", 4, True, str(tmp_path / "nowhere"))


def test_dimensions_that_cannot_be_are_refused(tmp_path):
    config = Config(
        mode="embed", workdir=str(tmp_path), seed=0, threads=1,
        model=ModelConfig(output_dim=8), embed=EmbedConfig(export_dim=9),
    )  # fmt: skip
    for dim in (9, 1):
        wrong = dataclasses.replace(config, embed=EmbedConfig(export_dim=dim))
        with pytest.raises(UserError, match=f"--export_dim={dim} must be at least 2 and at most"):
            wrong.validate()
    dataclasses.replace(config, embed=EmbedConfig(export_dim=2)).validate()


@pytest.mark.parametrize("layout", ["parquet", "npy"])
def test_nothing_that_is_not_finite_is_exported(catalog, layout, tmp_path):
    _, vectors, write = catalog
    write(export_format=layout)
    before = {path: path.read_bytes() for path in (tmp_path / "embeddings").iterdir()}
    vectors[17, 3] = np.nan
    with pytest.raises(UserError, match="The vector of item 'item-17' is not finite"):
        write(export_format=layout)
    assert before == {path: path.read_bytes() for path in (tmp_path / "embeddings").iterdir()}
