"""A small catalog from files, with a checkpoint of random parameters and its export."""

from __future__ import annotations

import csv
import dataclasses
import pathlib

import jax
import numpy as np

import pinsage_jax
from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.inference.new_items import Catalog
from pinsage_jax.model.init import init_model
from pinsage_jax.stages.prepare import prepare
from pinsage_jax.stages.runs import data_identity, validation_split_of
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.state import initial_state, make_optimizer


def settings(workdir="unused", *, sampling=None, **model) -> Config:
    return Config(
        mode="embed",
        workdir=str(workdir),
        seed=5,
        threads=1,
        sampling=SamplingConfig(
            **{"num_neighbors": 5, "num_walks": 9, "walk_length": 2, "content_neighbors": 3}
            | (sampling or {})
        ),
        model=ModelConfig(
            **{"hidden_dim": 12, "layer_dim": 10, "output_dim": 8, "spectral_dim": 4} | model
        ),
        # Blocks as small as the fewest rows have one shape, which is compiled once.
        embed=EmbedConfig(embed_block=4, embed_walks=20),
    )


def random_params(config: Config, input_dim: int, num_nodes: int):
    """Parameters of the network, all of them random, without compiling its initializer."""
    shapes = jax.eval_shape(lambda: init_model(config, input_dim, num_nodes)[1])
    rng = np.random.default_rng(0)

    def drawn(leaf):
        return rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(np.float32)

    return jax.tree.map(drawn, shapes)


def write_csv(path, header, rows):
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return str(path)


def vector_text(vector) -> str:
    return " ".join(f"{number:.6f}" for number in vector)


def embedded_catalog(root: pathlib.Path):
    """(config, vectors, features, edges): a prepared, embedded catalog, the network untrained.

    Items i0 to i79, of which i70 and on have no edge; features follow the collections.
    """
    rng = np.random.default_rng(4)
    edges = [(f"c{c}", f"i{i}") for i in range(70) for c in {i // 10, i // 10, rng.integers(0, 7)}]
    centers = rng.normal(size=(8, 5))
    features = [centers[i // 10] + 0.3 * rng.normal(size=5) for i in range(80)]
    data = DataConfig(
        edges=write_csv(root / "edges.csv", ["collection_id", "item_id"], edges),
        items=write_csv(
            root / "items.csv",
            ["item_id", "look", "year"],
            [(f"i{i}", vector_text(row), 2000 + i % 7) for i, row in enumerate(features)],
        ),
        dense_columns="look",
        numeric_columns="year",
    )
    config = dataclasses.replace(settings(root / "work", spectral_dim=6), data=data)
    config = dataclasses.replace(
        config, embed=EmbedConfig(embed_walks=500, cold_start_bias=0.25, shard_rows=50)
    )
    train_nothing(config)
    # Later runs take the offset of the export.
    config = dataclasses.replace(config, embed=EmbedConfig(embed_walks=500, shard_rows=50))
    vectors = load_embeddings(config.workdir, open_prepared(config.workdir))
    return config, vectors, features, edges


def train_nothing(config: Config) -> None:
    """Prepares the tables, saves a checkpoint of random parameters, and embeds with it."""
    prepared = prepare(config)
    bases = spectral_bases(config, prepared, validation_split_of(config, prepared))
    catalog = Catalog(config, prepared, bases)
    params = random_params(config, catalog.inputs.dim, catalog.num_nodes)
    state = initial_state(params, make_optimizer(config.train, 1.0))
    meta = {"data": data_identity(prepared), "config": dataclasses.asdict(config)}
    with Checkpoints(pathlib.Path(config.workdir) / "checkpoints") as checkpoints:
        checkpoints.save(3, state, meta, {"score": 1.0, "cold_start_bias": 0.1})
    pinsage_jax.embed(config)
