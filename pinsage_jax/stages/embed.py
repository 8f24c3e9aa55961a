"""The stage that embeds the catalog, or new items, with a trained checkpoint."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.additions import read_additions
from pinsage_jax.catalog.encoders import load_transform
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.export import writer
from pinsage_jax.export.writer import Embeddings
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.inference import tables as layer_tables
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.inference.new_item_model import Trained
from pinsage_jax.inference.tables import PersistentTables, Tables
from pinsage_jax.retrieval.export_quality import choose_codec
from pinsage_jax.spark.catalog_tables import (
    NetworkOfTables,
    embed_tables,
    open_tables,
    write_tables,
)
from pinsage_jax.spark.embed import embed_on_spark
from pinsage_jax.spark.table_store import folder_of
from pinsage_jax.stages.checkpoint import (
    chosen_checkpoint,
    cold_start_adjustment,
    load_trained,
    load_trained_on,
    open_new_items,
    persistent_tables,
    run_metadata,
)
from pinsage_jax.stages.runs import data_identity, remember, validation_split_of
from pinsage_jax.stages.update import update
from pinsage_jax.training.compatibility import RESUMABLE_OVERRIDES


def embed(config: Config) -> dict[str, Any]:
    """Embeds the catalog, new items, or the nodes that changes of the catalog affect."""
    if config.spark.spark_tables:
        return _embed_tables(config)
    return update(config) if config.update.has_changes else embed_catalog(config)


def embed_catalog(config: Config) -> dict[str, Any]:
    """Embeds the whole catalog on the whole graph into WORKDIR/embeddings.

    With --new_items it embeds only those items, into WORKDIR/new_embeddings.
    """
    if config.new.new_items:
        return _embed_new(config)
    prepared = open_prepared(config.workdir)
    split, graph = validation_split_of(config, prepared), prepared.graph
    folder = pathlib.Path(config.workdir) / layer_tables.FOLDER
    keep = config.embed.keep_layers

    def tables_for(trained: Trained) -> PersistentTables:
        tables = persistent_tables(config, graph, trained, prepared.manifest["fingerprint"], keep)
        tables.remove_others()
        return tables

    on_spark = config.spark.on_spark
    vectors, trained = embed_over(config, prepared, graph, split, tables_for, on_spark)
    manifest = _export(config, prepared, vectors, trained)
    remember(config)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _embed_tables(config: Config) -> dict[str, Any]:
    """Embeds the tables of --spark_tables, which this machine does not read, on Spark."""
    settings = config.embed
    given = f"--spark_tables={folder_of(config.spark.spark_tables)}"
    if not config.spark.on_spark:
        raise UserError(f"{given} needs --engine=spark or --engine=spark_walks.")
    refused = {
        "--export_dim": settings.export_dim,
        "--align_to": settings.align_to,
        "--export_format=npy": settings.export_format == "npy",
    }
    for flag, value in refused.items():
        if value:
            raise UserError(f"{given} does not go together with {flag}; leave one of them out.")
    chosen_checkpoint(config)  # Without one the settings are not those of the tables either.
    folder, about = open_tables(config)
    trained = load_trained_on(config, about["data"], about["input_dim"], about["nodes"])
    network = NetworkOfTables(trained.params, trained.digest, trained.cold_start_bias)
    manifest = embed_tables(config, folder, about, network, run_metadata(config, trained))
    remember(config)
    return manifest


def write_spark_tables(config: Config) -> dict[str, Any]:
    """Writes the prepared catalog as the tables of --spark_tables."""
    prepared = open_prepared(config.workdir)
    bases = spectral_bases(config, prepared, validation_split_of(config, prepared))
    encoder = Encoder.over(config, prepared, prepared.graph, bases)
    return write_tables(config, prepared, encoder, data_identity(prepared))


def embed_over(
    config: Config,
    prepared: Prepared,
    graph: Graph,
    split: ValidationSplit,
    tables_for: Callable[[Trained], Tables] | None = None,
    on_spark: bool = False,
) -> tuple[np.ndarray, Trained]:
    """Embeds every node over the edges of `graph`.

    Args:
      split: the run's validation split, whose training graph the spectral features come from.
      tables_for: makes the tables of a pass for a trained network; None: no table is kept.
      on_spark: whether Spark computes the pass.

    Returns:
      Embeddings float32 [nodes, Z], and the network that made them.
    """
    encoder = Encoder.over(config, prepared, graph, spectral_bases(config, prepared, split))
    trained = load_trained(config, prepared, encoder.inputs.dim, encoder.lists.source.num_nodes)
    adjust = cold_start_adjustment(graph, trained.cold_start_bias)
    if on_spark:
        vectors = embed_on_spark(encoder, trained.params)
        adjust(0, len(vectors), vectors)
        return vectors, trained
    tables = tables_for(trained) if tables_for else None
    return encoder.embed(trained.params, tables=tables, adjust=adjust), trained


def _export(
    config: Config, prepared: Prepared, vectors: np.ndarray, trained: Trained
) -> dict[str, Any]:
    """Writes the vectors float32 [nodes, Z] of a catalog in the format that the flags name."""
    items = prepared.graph.num_items
    everything = config.sampling.neighborhood == "all"
    codec, quality = choose_codec(
        vectors[:items],
        prepared.item_ids,
        config.embed.export_dtype,
        config.embed.export_dim,
        config.model.popularity_bias,
        str(pathlib.Path(config.embed.align_to).expanduser()) if config.embed.align_to else "",
    )
    manifest = writer.write_embeddings(
        config.workdir,
        config.embed,
        Embeddings(prepared.item_ids, vectors[:items]),
        {
            **run_metadata(config, trained),
            **quality,
            "settings": _embed_fingerprint(config, trained.step),
            "ids": prepared.item_ids.digest(),
            "data": {**data_identity(prepared), "inputs": prepared.manifest["inputs"]},
        },
        Embeddings(prepared.collection_ids, vectors[items:]) if everything else None,
        codec=codec,
    )
    logging.info("embedded %d items into %s", items, pathlib.Path(config.workdir) / writer.FOLDER)
    return manifest


def _embed_new(config: Config) -> dict[str, Any]:
    """Embeds the items of --new_items into WORKDIR/new_embeddings."""
    workdir = pathlib.Path(config.workdir)
    prepared = open_prepared(workdir)
    chosen_checkpoint(config)  # Fails early, before the tables are read.
    additions = read_additions(
        prepared,
        load_transform(config),
        config.data,
        config.new.new_items,
        config.new.new_edges,
    )
    model, codec = open_new_items(config, prepared)
    vectors, isolated = model.embed(additions)
    manifest = writer.write_embeddings(
        workdir,
        config.embed,
        Embeddings(additions.item_ids, vectors),
        {
            **run_metadata(config, model.trained),
            "catalog": prepared.item_ids.digest(),
            "isolated": int(isolated.sum()),
        },
        folder_name=writer.NEW_FOLDER,
        codec=codec,
    )
    logging.info(
        "embedded %d new items, %d of them isolated, into %s",
        len(vectors), manifest["isolated"], workdir / writer.NEW_FOLDER,
    )  # fmt: skip
    return manifest


def _embed_fingerprint(config: Config, step: int) -> str:
    """Hash of everything that the export depends on."""
    manifest = files.read_json(pathlib.Path(config.workdir) / "prepared" / "manifest.json")
    named = ("split", "sampling", "model", "train")
    parts = {name: dataclasses.asdict(getattr(config, name)) for name in named}
    # The same step of a run with other training settings is another model.
    parts["train"] = {k: v for k, v in parts["train"].items() if k not in RESUMABLE_OVERRIDES}
    embed_settings = dataclasses.asdict(config.embed)
    return files.fingerprint([parts, embed_settings, config.seed, step, manifest["fingerprint"]])


def embeddings_are_current(config: Config) -> bool:
    """Whether WORKDIR/embeddings was made from this data with these settings."""
    path = pathlib.Path(config.workdir) / writer.FOLDER / writer.MANIFEST
    if not path.exists():
        return False
    _, step = chosen_checkpoint(config)
    return files.read_json(path).get("settings") == _embed_fingerprint(config, step)
