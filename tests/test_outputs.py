"""What the program writes opens with the ordinary readers: pyarrow datasets, pandas, NumPy."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest

from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.data import SyntheticConfig
from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.export.writer import Embeddings, write_embeddings
from pinsage_jax.stages.prepare import split
from pinsage_jax.stages.search import neighbors

ITEMS = 300


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory):
    """A finished run with related items, a split, and the export as arrays as well."""
    folder = tmp_path_factory.mktemp("outputs") / "run"
    shutil.copytree(trained.workdir, folder)
    config = dataclasses.replace(trained, workdir=str(folder))
    neighbors(config)
    prepared = open_prepared(folder)
    vectors = load_embeddings(folder, prepared)
    export = EmbedConfig(export_format="npy")
    write_embeddings(
        folder, export, Embeddings(prepared.item_ids, vectors), {}, folder_name="arrays"
    )
    data = dataclasses.replace(config.data, edges=str(folder / "inputs" / "edges.parquet"))
    split(dataclasses.replace(config, data=data, synthetic=SyntheticConfig()))
    return folder


def test_the_folder_of_embeddings_is_a_table(workdir):
    """With its manifest beside the shards, which a reader of the folder must not stumble on."""
    for name in ("embeddings", "embeddings/part-00000.parquet"):
        frame = pd.read_parquet(workdir / name)
        assert list(frame.columns) == ["item_id", "embedding"] and len(frame) == ITEMS
        vectors = np.stack(frame["embedding"])
        assert vectors.dtype == np.float32 and np.isfinite(vectors).all()
        table = ds.dataset(workdir / name).to_table()
        assert table.column("item_id").to_pylist() == frame["item_id"].tolist()
    np.testing.assert_array_equal(np.load(workdir / "arrays" / "vectors.npy"), vectors)
    assert pd.read_parquet(workdir / "arrays" / "item_ids.parquet").shape == (ITEMS, 1)


def test_every_file_opens(workdir):
    found = {suffix: sorted(workdir.rglob(f"*.{suffix}")) for suffix in ("parquet", "npy", "arrow")}
    names = {path.name for paths in found.values() for path in paths}
    assert {"related_items.parquet", "train_edges.parquet", "features.npy"} <= names
    for path in found["parquet"]:
        frame = pd.read_parquet(path)
        assert len(frame) == ds.dataset(path).count_rows() > 0
        assert not frame.isna().to_numpy().any(), path
    for path in found["npy"]:
        assert np.load(path, allow_pickle=False).dtype.kind in "fiu"
    for path in found["arrow"]:
        assert len(pd.read_feather(path)) == ds.dataset(path, format="ipc").count_rows()
    related = pd.read_parquet(pathlib.Path(workdir) / "related_items.parquet")
    assert related["rank"].min() == 1 and related["item_id"].nunique() == ITEMS
