"""The exported encoder of new items without edges against the one of this package."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pytest
from embedded_catalog import random_params, settings
from small_catalog import make_prepared, random_graph
from small_runs import unit_features
from small_texts import random_texts, text_transform

from pinsage_jax.catalog.additions import Additions, touched_graph
from pinsage_jax.config.tools import VectorStoreConfig
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.ids import IdTable
from pinsage_jax.inference.exported_encoder import FOLDER, content_encoder, exported
from pinsage_jax.inference.new_item_model import NewItemModel, Trained
from pinsage_jax.inference.new_items import Catalog
from pinsage_jax.stages.checkpoint import open_new_items
from pinsage_jax.stages.search import export

ROOT = pathlib.Path(__file__).resolve().parents[2]
ITEMS, COLLECTIONS, NEW = 60, 14, 6
CASES = {
    "two layers": {"model": {"num_layers": 2}},
    "no layer": {"model": {"num_layers": 0}},
    "max": {"model": {"pooling": "max", "num_layers": 2}},
    "mean": {"model": {"pooling": "mean"}},
    "featureless": {"width": 0, "model": {"num_layers": 2}},
    "no links": {"sampling": {"content_neighbors": 0}},
    "more links than items": {"sampling": {"content_neighbors": 70}},
    "no spectral features, no messages": {
        "model": {"spectral_dim": 0, "neighbor_embeddings": "off"}
    },
    "collections too": {"sampling": {"neighborhood": "all"}, "model": {"num_layers": 2}},
    "half features": {"dtype": np.float16},
    "links by words": {"texts": text_transform(6, 5), "model": {"num_layers": 2}},
}


def isolated(features: np.ndarray, words: np.ndarray | None = None) -> Additions:
    """New items without edges."""
    graph, touched = touched_graph(
        np.empty(0, np.int32), np.empty(0, np.int32), len(features), None
    )
    ids = IdTable(pa.array([f"new-{i}" for i in range(len(features))]))
    return Additions(ids, features, graph, touched, 0, words)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_vectors_are_those_of_this_package(case, small_rng):
    width, dtype = case.get("width", 6), case.get("dtype", np.float32)
    config = settings(sampling=case.get("sampling"), **case.get("model", {}))
    graph = random_graph(small_rng, ITEMS, COLLECTIONS, 150, 8)
    features = unit_features(ITEMS, width) if width else np.empty((ITEMS, 0), np.float32)
    new = unit_features(NEW, width, seed=9) if width else np.empty((NEW, 0), np.float32)
    prepared, words = make_prepared(graph, features.astype(dtype)), None
    if texts := case.get("texts"):
        rows = pa.record_batch({"look": random_texts(ITEMS)})
        prepared = dataclasses.replace(
            prepared, features=texts.transform(rows), words=texts.words(rows)
        )
        rows = pa.record_batch({"look": random_texts(NEW, seed=9)})
        new, words = texts.transform(rows), texts.words(rows)
    # One item like nothing else.
    new[-1:] = -np.abs(features[:1]) if width and words is None else new[-1:]
    bases = small_rng.normal(size=(ITEMS, config.model.spectral_dim)).astype(np.float32)
    catalog = Catalog(config, prepared, bases)
    params = random_params(config, catalog.inputs.dim, catalog.num_nodes)
    model = NewItemModel(catalog, FeatureTransform([]), Trained(params, 1, 0.25))
    transform = small_rng.normal(size=(8, 3)).astype(np.float32)
    expected = model.embed(isolated(new.astype(dtype), words))[0] @ transform
    expected[:, -1] *= 0.5
    encoder = content_encoder(model, transform, popularity_weight=0.25)
    function = jax.export.deserialize(exported(encoder).serialize())
    for count in (NEW, 1):
        given = (new[:count],) if words is None else (new[:count], words[:count])
        found = np.asarray(function.call(*given, encoder.tables))
        assert found.dtype == np.float32 and found.shape == (count, encoder.dimension)
        np.testing.assert_allclose(found, expected[:count], atol=2e-5)
    assert set(function.platforms) == {"cpu", "cuda", "tpu"}


def consumer() -> str:
    """The program in docs/vector_stores.md that reads an encoder."""
    page = (ROOT / "docs" / "vector_stores.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n(# encode\.py.*?)```", page, re.DOTALL)
    return found


def test_a_program_without_this_package_gives_the_same_vectors(trained, tmp_path):
    assert len(consumer().strip().splitlines()) <= 10 and "pinsage" not in consumer()
    workdir = tmp_path / "run"
    workdir.mkdir()
    for path in pathlib.Path(trained.workdir).iterdir():
        (workdir / path.name).symlink_to(path)
    config = dataclasses.replace(
        trained,
        mode="export",
        workdir=str(workdir),
        vector_store=VectorStoreConfig(export_model=True),
    )
    config.validate()
    about = export(config)
    folder = workdir / FOLDER
    assert json.loads((folder / "encoder.json").read_text()) == about
    assert not (workdir / "stores").exists()
    prepared = open_new_items_of(config)
    features = np.asarray(prepared.catalog.prepared.features[:7], np.float32) * np.float32(0.5)
    np.save(tmp_path / "features.npy", features)
    script = (
        consumer() + "\nassert not any(name.startswith('pinsage_jax') for name in sys.modules)\n"
    )
    (tmp_path / "encode.py").write_text(script)
    arguments = [folder, tmp_path / "features.npy", tmp_path / "vectors.npy"]
    command = [sys.executable, "encode.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = prepared.embed(isolated(features))[0]
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=2e-5)
    assert about["inputs"] == {"features": ["items", features.shape[1]]}


def open_new_items_of(config):
    """The model of a run, whose export has no transform."""
    from pinsage_jax.catalog.prepare import open_prepared

    model, codec = open_new_items(config, open_prepared(config.workdir))
    assert codec.transform is None
    return model
