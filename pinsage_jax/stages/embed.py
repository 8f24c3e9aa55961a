"""Embedding the catalog, or items it does not hold, with a trained checkpoint.

What the stages share lives here too: the validation split of a run, what its data is,
and which checkpoint and cold offset its embeddings are made with.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pinsage_jax.catalog.additions import read_additions
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.version import __version__
from pinsage_jax.cpu.allocator import keep_freed_memory
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.export import writer
from pinsage_jax.export.codec import ExportForm
from pinsage_jax.export.quality import choose_form
from pinsage_jax.export.reader import open_export
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit, validation_split
from pinsage_jax.inference import tables as layer_tables
from pinsage_jax.inference.encoder import Encoder, spectral_bases
from pinsage_jax.inference.layerwise import Adjust
from pinsage_jax.inference.new_item_model import NewItemModel, Trained
from pinsage_jax.inference.new_items import Catalog
from pinsage_jax.inference.tables import KeptTables, Tables
from pinsage_jax.spark.embed import embed_on_spark
from pinsage_jax.training import loop
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.state import TrainState, initial_state, make_optimizer


def split_of(config: Config, prepared: Prepared) -> ValidationSplit:
    """The validation split of this run; the same in every stage."""
    return validation_split(prepared.graph, config.split, config.seed, prepared.train_pairs)


def identity_of(prepared: Prepared) -> dict[str, Any]:
    """What the data is, as checkpoints and exports remember it."""
    return {
        "ids": prepared.item_ids.digest(),
        "num_items": prepared.graph.num_items,
        "num_collections": prepared.graph.num_collections,
        "num_edges": prepared.graph.num_edges,
        "feature_dim": prepared.features.shape[1],
    }


def fixed_offset(config: Config) -> float | None:
    """The cold offset that is not to be chosen; None: choose it."""
    if not config.model.popularity:
        return 0.0
    return None if config.embed.cold_start_bias < 0 else config.embed.cold_start_bias


def _chosen_checkpoint(config: Config) -> tuple[Checkpoints, int]:
    """The checkpoint that --checkpoint names."""
    folder = pathlib.Path(config.workdir) / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True)
    best = config.embed.checkpoint == "best"
    step = checkpoints.best_step() if best else checkpoints.latest_step()
    if step is None:
        raise UserError(f"{folder} holds no checkpoint; run --mode=train first.")
    return checkpoints, step


def restored(config: Config, prepared: Prepared, input_dim: int, num_nodes: int) -> Trained:
    """The chosen checkpoint of a network of that size."""
    checkpoints, step = _chosen_checkpoint(config)
    meta = checkpoints.meta(step)
    checkpoints.check(meta, identity_of(prepared), dataclasses.asdict(config.model))

    def new_state() -> TrainState:
        _, params = loop.init_model(config, input_dim, num_nodes)
        return initial_state(params, make_optimizer(config.train, 1.0))

    # Only its shapes are asked for: making one compiles for seconds.
    state = jax.eval_shape(new_state)
    offset = fixed_offset(config)
    if offset is None:
        offset = float(checkpoints.metrics(step).get("cold_start_bias") or 0.0)
    return Trained(checkpoints.restore(step, state)[0].params, step, offset)


def embed_over(
    config: Config,
    prepared: Prepared,
    graph: Graph,
    split: ValidationSplit,
    tables_for: Callable[[Trained], Tables] | None = None,
    on_spark: bool = False,
) -> tuple[np.ndarray, Trained]:
    """Embeddings of every node over `graph`, and what they are made with.

    Args:
      tables_for: where tables lie, by what was trained; None: nothing is kept.
    """
    encoder = Encoder.over(config, prepared, graph, spectral_bases(config, prepared, split))
    trained = restored(config, prepared, encoder.inputs.dim, encoder.lists.source.num_nodes)
    adjust = cold_adjustment(graph, trained.offset)
    if on_spark:
        vectors = embed_on_spark(encoder, trained.params)
        adjust(0, len(vectors), vectors)
        return vectors, trained
    tables = tables_for(trained) if tables_for else None
    return encoder.embed(trained.params, tables=tables, adjust=adjust), trained


def cold_adjustment(graph: Graph, offset: float) -> Adjust:
    """Adds the cold offset to the last coordinate of items without edges."""
    edgeless = graph.degree()[: graph.num_items] == 0

    def adjust(begin: int, end: int, rows: np.ndarray) -> None:
        rows[np.flatnonzero(edgeless[begin:end]), -1] += np.float32(offset)

    return adjust


def kept_tables(
    config: Config, graph: Graph, trained: Trained, data: str, keep: bool
) -> KeptTables:
    """Tables that a killed run finds again, in WORKDIR/layers.

    Args:
      data: fingerprint of the items and their features.
    """
    settings = dataclasses.asdict(config.embed)
    named = {name: settings[name] for name in ("embed_walks", "shard_rows")}
    sections = (config.split, config.sampling, config.model)
    parts = [*(dataclasses.asdict(section) for section in sections), config.seed, keep]
    model = [trained.digest, trained.offset]
    key = files.fingerprint([named, parts, model, data, graph.digest()])
    return KeptTables(
        pathlib.Path(config.workdir) / layer_tables.FOLDER / key, config.embed.shard_rows, keep
    )


def embed_catalog(config: Config) -> dict[str, Any]:
    """Embeds the whole catalog on the whole graph into WORKDIR/embeddings.

    With --new_items: those items alone, into WORKDIR/new_embeddings.
    """
    if config.new.new_items:
        return _embed_new(config)
    keep_freed_memory()
    prepared = open_prepared(config.workdir)
    split, graph = split_of(config, prepared), prepared.graph
    folder = pathlib.Path(config.workdir) / layer_tables.FOLDER
    keep = config.embed.keep_layers

    def tables_for(trained: Trained) -> KeptTables:
        tables = kept_tables(config, graph, trained, prepared.manifest["fingerprint"], keep)
        tables.remove_others()
        return tables

    on_spark = config.cluster.engine == "spark"
    vectors, trained = embed_over(config, prepared, graph, split, tables_for, on_spark)
    manifest = _export(config, prepared, vectors, trained)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def _export(
    config: Config, prepared: Prepared, vectors: np.ndarray, trained: Trained
) -> dict[str, Any]:
    """Writes the vectors float32 [nodes, Z] of a catalog in the form that is asked for."""
    items = prepared.graph.num_items
    everything = config.sampling.neighborhood == "all"
    form, quality = choose_form(
        vectors[:items],
        prepared.item_ids,
        config.embed.export_dtype,
        config.embed.export_dim,
        config.model.popularity,
        str(pathlib.Path(config.embed.align_to).expanduser()) if config.embed.align_to else "",
    )
    manifest = writer.write_embeddings(
        config.workdir,
        config.embed,
        prepared.item_ids,
        vectors[:items],
        {
            **about_run(config, trained),
            **quality,
            "settings": _embed_fingerprint(config, trained.step),
            "ids": prepared.item_ids.digest(),
            "data": {**identity_of(prepared), "inputs": prepared.manifest["inputs"]},
        },
        prepared.collection_ids if everything else None,
        vectors[items:] if everything else None,
        form=form,
    )
    logging.info("embedded %d items into %s", items, pathlib.Path(config.workdir) / writer.FOLDER)
    return manifest


def about_run(config: Config, trained: Trained) -> dict[str, Any]:
    """Which run and which flags made an export."""
    made_by = ("data", "world", "split", "sampling", "model", "train", "embed")
    flags = {"seed": config.seed, "workdir": config.workdir}
    for name in made_by:
        flags |= dataclasses.asdict(getattr(config, name))
    return {
        "program": f"pinsage_jax {__version__}",
        "flags": flags,
        "step": trained.step,
        "parameters": trained.digest,
        "checkpoint": config.embed.checkpoint,
        "normalized": config.model.normalize_output and not config.model.popularity,
        "cold_start_bias": trained.offset,
        "seed": config.seed,
    }


def open_new_items(config: Config, prepared: Prepared) -> NewItemModel:
    """What embeds new items with the checkpoint that --checkpoint names.

    Raises:
      UserError: there is none.
    """
    workdir = pathlib.Path(config.workdir)
    bases = spectral_bases(config, prepared, split_of(config, prepared))
    catalog = Catalog(config, prepared, bases)
    trained = restored(config, prepared, catalog.inputs.dim, catalog.num_nodes)
    trained, form = as_exported(config, trained)
    transform = FeatureTransform.load(workdir / "prepared" / "features")
    return NewItemModel(catalog, transform, trained, form)


def _embed_new(config: Config) -> dict[str, Any]:
    """Embeds the items of --new_items into WORKDIR/new_embeddings."""
    workdir = pathlib.Path(config.workdir)
    prepared = open_prepared(workdir)
    _chosen_checkpoint(config)  # Without one there is no need to read the tables.
    additions = read_additions(
        prepared,
        workdir / "prepared" / "features",
        config.data,
        config.new.new_items,
        config.new.new_edges,
    )
    model = open_new_items(config, prepared)
    vectors, edgeless = model.embed(additions)
    manifest = writer.write_embeddings(
        workdir,
        config.embed,
        additions.item_ids,
        vectors,
        {
            **about_run(config, model.trained),
            "catalog": prepared.item_ids.digest(),
            "without_edges": int(edgeless.sum()),
        },
        folder_name=writer.NEW_FOLDER,
        form=model.form,
    )
    logging.info(
        "embedded %d new items, %d of them without edges, into %s",
        len(vectors), manifest["without_edges"], workdir / writer.NEW_FOLDER,
    )  # fmt: skip
    return manifest


def as_exported(config: Config, trained: Trained) -> tuple[Trained, ExportForm]:
    """The cold offset and the form that vectors need to lie beside WORKDIR/embeddings."""
    form = ExportForm(config.embed.export_dtype, config.model.popularity)
    exported = pathlib.Path(config.workdir) / writer.FOLDER
    if not (exported / writer.MANIFEST).exists():
        return trained, form
    about = files.read_json(exported / writer.MANIFEST)
    if writer.TRANSFORM in about.get("files", {}):
        form = dataclasses.replace(form, transform=open_export(exported).form.transform)
    if about.get("step") != trained.step:
        logging.warning(
            "%s is of step %s, the checkpoint of step %d: run --mode=embed alone to have both in "
            "one space.",
            exported, about.get("step"), trained.step,
        )  # fmt: skip
    elif fixed_offset(config) is None:
        # The export may have been given another one than the checkpoint's.
        offset = float(about.get("cold_start_bias") or 0.0)
        trained = dataclasses.replace(trained, offset=offset)
    return trained, form


def _embed_fingerprint(config: Config, step: int) -> str:
    manifest = files.read_json(pathlib.Path(config.workdir) / "prepared" / "manifest.json")
    named = ("split", "sampling", "model", "train")
    parts = {name: dataclasses.asdict(getattr(config, name)) for name in named}
    # The same step of a run trained otherwise is another model.
    parts["train"] = {k: v for k, v in parts["train"].items() if k not in loop.RESUMABLE_OVERRIDES}
    embed_settings = dataclasses.asdict(config.embed)
    return files.fingerprint([parts, embed_settings, config.seed, step, manifest["fingerprint"]])


def embeddings_are_current(config: Config) -> bool:
    path = pathlib.Path(config.workdir) / writer.FOLDER / writer.MANIFEST
    if not path.exists():
        return False
    _, step = _chosen_checkpoint(config)
    return files.read_json(path).get("settings") == _embed_fingerprint(config, step)
