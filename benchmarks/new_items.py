"""New items in requests: seconds and memory to embed one item that the catalog lacks.

A catalog of 1 million edges (--quick: 20,000) is prepared from random tables, and a network
with random parameters embeds one new item after another, as POST /neighbors/new does without
the HTTP.  Memory is the peak of what NumPy allocates in a request.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from pinsage_jax.catalog.prepare import prepare
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.tables import table_in_memory
from pinsage_jax.inference.new_item_model import NewItemModel, Trained
from pinsage_jax.inference.new_items import Catalog
from pinsage_jax.model.init import init_model

_ITEMS, _COLLECTIONS, _EDGES, _FEATURES = 300_000, 100_000, 1_000_000, 16


def run(options) -> list[dict]:
    """One row for requests with, and one for requests without weights of edges."""
    scale = 50 if options.quick else 1
    rows = []
    for weighted in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            model = _model(pathlib.Path(folder), scale, weighted, options.threads)
            model.warm_up()
            # Shapes of a request are compiled once.
            for number in range(3):
                _request(model, -1 - number)
            requests = iter(range(1_000_000))
            wall, spent = [], []
            for _ in range(options.repeat):
                before = time.process_time()
                wall.append(machine.seconds(lambda: _request(model, next(requests))))  # noqa: B023
                spent.append(time.process_time() - before)
            tracemalloc.start()
            _request(model, next(requests))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            graph = model.catalog.prepared.graph
            row = {"edges": graph.num_edges, "items": graph.num_items, "weighted": str(weighted)}
            row |= {"ms": 1e3 * statistics.median(wall), "CPU ms": 1e3 * statistics.median(spent)}
            rows.append(row | {"peak MB": peak / 1e6})
    return rows


def _model(folder: pathlib.Path, scale: int, weighted: bool, threads: int) -> NewItemModel:
    rng = np.random.default_rng(0)
    items, collections, edges = (size // scale for size in (_ITEMS, _COLLECTIONS, _EDGES))
    columns = {
        "collection_id": rng.integers(collections, size=edges),
        "item_id": (items * rng.random(edges) ** 2).astype(np.int64),
    }
    if weighted:
        columns["strength"] = rng.random(edges, np.float32) + 0.1
    pq.write_table(pa.table(columns), folder / "edges.parquet")
    look = rng.normal(size=(items, _FEATURES)).astype(np.float32)
    look = pa.FixedSizeListArray.from_arrays(pa.array(look.reshape(-1)), _FEATURES)
    pq.write_table(pa.table({"item_id": np.arange(items), "look": look}), folder / "items.parquet")
    config = Config(
        mode="serve",
        workdir=str(folder / "work"),
        threads=threads,
        data=DataConfig(
            edges=str(folder / "edges.parquet"),
            items=str(folder / "items.parquet"),
            dense_columns="look",
            weight_column="strength" if weighted else "",
        ),
        model=ModelConfig(hidden_dim=64, layer_dim=64, output_dim=32, spectral_dim=0),
        sampling=SamplingConfig(num_neighbors=10, num_walks=50),
    )
    prepared = prepare(config)
    catalog = Catalog(config, prepared, np.zeros((prepared.graph.num_items, 0), np.float32))
    params = init_model(config, catalog.inputs.dim, catalog.num_nodes)[1]
    transform = FeatureTransform.load(folder / "work" / "prepared" / "features")
    return NewItemModel(catalog, transform, Trained(params, 1, 0.0))


def _request(model: NewItemModel, number: int) -> None:
    """Embeds one new item in three collections, one of them new."""
    rng = np.random.default_rng(abs(number))
    known = rng.choice(model.catalog.prepared.graph.num_collections, 2, replace=False)
    held = [*(str(collection) for collection in known), "a new one"]
    items = pa.table({"item_id": ["new"], "look": [rng.normal(size=_FEATURES).tolist()]})
    edges = {"collection_id": held, "item_id": ["new"] * 3, "strength": [0.5, 1.0, 2.0]}
    tables = table_in_memory(items, "items"), table_in_memory(pa.table(edges), "edges")
    model.embed(model.read(*tables))
