"""The checkpoint that a stage embeds with, and how its vectors are exported."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.version import __version__
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.export import writer
from pinsage_jax.export.codec import VectorCodec
from pinsage_jax.export.reader import open_export
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference import tables as layer_tables
from pinsage_jax.inference.layerwise import Adjust
from pinsage_jax.inference.new_item_model import NewItemModel, Trained
from pinsage_jax.inference.new_items import Catalog
from pinsage_jax.inference.tables import KeptTables
from pinsage_jax.model.init import init_model
from pinsage_jax.reporting.sources import Source, read_source
from pinsage_jax.stages.runs import identity_of, split_of
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.state import TrainState, initial_state, make_optimizer


def fixed_offset(config: Config) -> float | None:
    """The cold offset that is not to be chosen; None: choose it."""
    if not config.model.popularity_bias:
        return 0.0
    return config.embed.cold_start_bias


def chosen_checkpoint(config: Config) -> tuple[Checkpoints, int]:
    """The checkpoint that `config.embed.checkpoint` names."""
    folder = pathlib.Path(config.workdir) / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True)
    best = config.embed.checkpoint == "best"
    step = checkpoints.best_step() if best else checkpoints.latest_step()
    if step is None:
        raise UserError(f"{folder} holds no checkpoint; run --mode=train first.")
    return checkpoints, step


def restored(config: Config, prepared: Prepared, input_dim: int, num_nodes: int) -> Trained:
    """The chosen checkpoint of a network of that size."""
    checkpoints, step = chosen_checkpoint(config)
    meta = checkpoints.meta(step)
    checkpoints.check(meta, identity_of(prepared), dataclasses.asdict(config.model))

    def new_state() -> TrainState:
        _, params = init_model(config, input_dim, num_nodes)
        return initial_state(params, make_optimizer(config.train, 1.0))

    # Only its shapes are asked for: making one compiles for seconds.
    state = jax.eval_shape(new_state)
    offset = fixed_offset(config)
    if offset is None:
        offset = float(checkpoints.metrics(step).get("cold_start_bias") or 0.0)
    return Trained(checkpoints.restore(step, state)[0].params, step, offset)


def as_exported(config: Config, trained: Trained) -> tuple[Trained, VectorCodec]:
    """Cold-start bias and codec that put vectors into the space of WORKDIR/embeddings."""
    codec = VectorCodec(config.embed.export_dtype, config.model.popularity_bias)
    exported = pathlib.Path(config.workdir) / writer.FOLDER
    if not (exported / writer.MANIFEST).exists():
        return trained, codec
    about = files.read_json(exported / writer.MANIFEST)
    if writer.TRANSFORM in about.get("files", {}):
        codec = dataclasses.replace(codec, transform=open_export(exported).codec.transform)
    if about.get("step") != trained.step:
        logging.warning(
            "%s is of step %s, the checkpoint of step %d: run --mode=embed alone to have both in "
            "one space.",
            exported, about.get("step"), trained.step,
        )  # fmt: skip
    elif fixed_offset(config) is None:
        # The export may have been given another one than the checkpoint's.
        bias = float(about.get("cold_start_bias") or 0.0)
        trained = dataclasses.replace(trained, cold_start_bias=bias)
    return trained, codec


def open_new_items(config: Config, prepared: Prepared) -> tuple[NewItemModel, VectorCodec]:
    """The chosen checkpoint, for new items, and the codec of their vectors.

    Raises:
      UserError: there is none.
    """
    workdir = pathlib.Path(config.workdir)
    bases = spectral_bases(config, prepared, split_of(config, prepared))
    catalog = Catalog(config, prepared, bases)
    trained = restored(config, prepared, catalog.inputs.dim, catalog.num_nodes)
    trained, codec = as_exported(config, trained)
    transform = FeatureTransform.load(workdir / "prepared" / "features")
    return NewItemModel(catalog, transform, trained), codec


def exported_source(config: Config, num_items: int) -> Source:
    """read_source with the settings that embed another item as the export's were embedded."""
    source = read_source(config, num_items)
    which = source.embeddings.get("checkpoint")
    if which not in ("best", "last"):
        return source
    embed = dataclasses.replace(source.config.embed, checkpoint=which)
    return dataclasses.replace(source, config=dataclasses.replace(source.config, embed=embed))


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
    model = [trained.digest, trained.cold_start_bias]
    key = files.fingerprint([named, parts, model, data, graph.digest()])
    return KeptTables(
        pathlib.Path(config.workdir) / layer_tables.FOLDER / key, config.embed.shard_rows, keep
    )


def about_run(config: Config, trained: Trained) -> dict[str, Any]:
    """Which run and which flags made an export."""
    made_by = ("data", "synthetic", "split", "sampling", "model", "train", "embed")
    flags = {"seed": config.seed, "workdir": config.workdir}
    for name in made_by:
        flags |= dataclasses.asdict(getattr(config, name))
    return {
        "program": f"pinsage_jax {__version__}",
        "flags": flags,
        "step": trained.step,
        "parameters": trained.digest,
        "checkpoint": config.embed.checkpoint,
        "normalized": not config.model.popularity_bias,
        "cold_start_bias": trained.cold_start_bias,
        "seed": config.seed,
    }
