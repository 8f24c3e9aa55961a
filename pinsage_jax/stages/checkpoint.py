"""Loads the checkpoint that a stage embeds with, and describes how its vectors are exported."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.encoders import load_transform
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.version import __version__
from pinsage_jax.export import writer
from pinsage_jax.export.codec import VectorCodec
from pinsage_jax.export.reader import open_export
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference import tables as layer_tables
from pinsage_jax.inference.layerwise import Adjust
from pinsage_jax.inference.new_item_model import NewItemModel, Trained
from pinsage_jax.inference.new_items import Catalog
from pinsage_jax.inference.tables import PersistentTables
from pinsage_jax.model.init import init_model
from pinsage_jax.reporting.sources import Source, read_source
from pinsage_jax.stages.runs import data_identity, validation_split_of
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.leaf_paths import by_path
from pinsage_jax.training.state import TrainState, initial_state, make_optimizer


def fixed_cold_start_bias(config: Config) -> float | None:
    """The cold-start bias that the settings fix; None if validation chooses it."""
    if not config.model.popularity_bias:
        return 0.0
    return config.embed.cold_start_bias


def chosen_checkpoint(config: Config) -> tuple[Checkpoints, int]:
    """The checkpoint that `config.embed.checkpoint` names, and its step.

    Raises:
      UserError: nothing was trained yet.
    """
    folder = pathlib.Path(config.workdir) / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True)
    best = config.embed.checkpoint == "best"
    step = checkpoints.best_step() if best else checkpoints.latest_step()
    if step is None:
        raise UserError(f"{folder} holds no checkpoint; run --mode=train first.")
    return checkpoints, step


def load_trained(config: Config, prepared: Prepared, input_dim: int, num_nodes: int) -> Trained:
    """Loads the chosen checkpoint into a network for the given inputs; see load_trained_on."""
    return load_trained_on(config, data_identity(prepared), input_dim, num_nodes)


def load_trained_on(
    config: Config, data: dict[str, Any], input_dim: int, num_nodes: int
) -> Trained:
    """Loads the chosen checkpoint into a network for the given inputs.

    Args:
      data: identity of the data, which must be that of the checkpoint.
      input_dim: D, width of a node's input vector.
      num_nodes: number of nodes that the network embeds.

    Raises:
      UserError: there is no checkpoint, or it is of other data or another network.
    """
    checkpoints, step = chosen_checkpoint(config)
    meta = checkpoints.meta(step)
    checkpoints.check(meta, data, dataclasses.asdict(config.model))

    def new_state() -> TrainState:
        _, params = init_model(config, input_dim, num_nodes)
        return initial_state(params, make_optimizer(config.train, 1.0))

    # Only the shapes are needed, and making a real state compiles for seconds.
    state = jax.eval_shape(new_state)
    bias = fixed_cold_start_bias(config)
    if bias is None:
        bias = float(checkpoints.metrics(step).get("cold_start_bias") or 0.0)
    # Placed once: a server embeds new items with them again and again.
    params = jax.tree.map(jnp.asarray, checkpoints.restore(step, state)[0].params)
    return Trained(params, step, bias)


@dataclasses.dataclass(frozen=True, eq=False)
class SavedModel:
    """The model that --init_from names: its arrays by path, and the catalog of its nodes."""

    workdir: str
    step: int
    arrays: dict[str, np.ndarray]
    prepared: Prepared


def check_init_from(config: Config) -> None:
    """Raises UserError if --init_from names a folder without a checkpoint, before any work."""
    if config.retraining.init_from:
        try:
            _named_checkpoint(config)
        except UserError as error:
            raise UserError(f"--init_from={config.retraining.init_from}: {error}") from None


def _named_checkpoint(config: Config) -> tuple[Checkpoints, int]:
    return chosen_checkpoint(dataclasses.replace(config, workdir=config.retraining.init_from))


def saved_model(config: Config) -> SavedModel:
    """The chosen checkpoint of --init_from.

    Raises:
      UserError: there is none, or its catalog is not there or another one.
    """
    workdir = config.retraining.init_from
    try:
        checkpoints, step = _named_checkpoint(config)
        prepared = open_prepared(workdir)
        meta = checkpoints.meta(step)
        checkpoints.check(meta, data_identity(prepared), meta["config"]["model"])
    except UserError as error:
        raise UserError(f"--init_from={workdir} cannot be used: {error}") from None
    return SavedModel(workdir, step, checkpoints.arrays(step), prepared)


def carried_over(saved: SavedModel, prepared: Prepared, params: Any) -> Any:
    """`params`, with the values of a saved model where both have an array of the same shape.

    Neighbor embeddings are carried over by the ids of items and collections; nodes that the
    saved model does not know keep their random values.

    Args:
      prepared: the catalog of `params`.

    Raises:
      UserError: not one array is of the same shape.
    """
    leaves, unmatched = [], []
    for path, leaf in by_path({"params": params}).items():
        old, new = saved.arrays.get(path), np.asarray(leaf)
        if old is None or old.shape[1:] != new.shape[1:]:
            unmatched.append(path)
        elif path.endswith("/neighbor_embeddings"):
            rows = _rows_of(saved.prepared, prepared, len(old), len(new))
            new = np.where(rows[:, None] >= 0, old[rows], new)
            logging.info(
                "--init_from: neighbor embeddings of %d of %d nodes", (rows >= 0).sum(), len(new)
            )
        elif old.shape == new.shape:
            new = old
        else:
            unmatched.append(path)
        leaves.append(new)
    if len(unmatched) == len(leaves):
        raise UserError(
            f"--init_from={saved.workdir}: no array of its model has the shape of one of this "
            "model; give both the same --num_layers, --hidden_dim, --layer_dim and --output_dim."
        )
    logging.info("starting from the model of step %d in %s", saved.step, saved.workdir)
    if unmatched:
        logging.warning("--init_from: of another shape, and random: %s.", ", ".join(unmatched))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _rows_of(old: Prepared, new: Prepared, old_rows: int, new_rows: int) -> np.ndarray:
    """Row in the old table of every node of the new one, int64 [new_rows]; -1: it has none."""
    rows = old.item_ids.lookup(new.item_ids.ids).astype(np.int64)
    if new_rows > len(rows):
        collections = old.collection_ids.lookup(new.collection_ids.ids).astype(np.int64)
        found = np.where(collections < 0, -1, collections + len(old.item_ids))
        rows = np.concatenate([rows, found])
    # The old table may hold items alone.
    return np.where(rows < old_rows, rows, -1)


def match_export(config: Config, trained: Trained) -> tuple[Trained, VectorCodec]:
    """The network with the cold-start bias of WORKDIR/embeddings, and the codec of that export.

    New vectors that are made with both can be compared with the exported ones.
    """
    codec = VectorCodec(config.embed.export_dtype, config.model.popularity_bias)
    exported = pathlib.Path(config.workdir) / writer.FOLDER
    if not (exported / writer.MANIFEST).exists():
        return trained, codec
    manifest = files.read_json(exported / writer.MANIFEST)
    if writer.TRANSFORM in manifest.get("files", {}):
        codec = dataclasses.replace(codec, transform=open_export(exported).codec.transform)
    if manifest.get("step") != trained.step:
        logging.warning(
            "%s is of step %s, the checkpoint of step %d: run --mode=embed alone to have both in "
            "one space.",
            exported, manifest.get("step"), trained.step,
        )  # fmt: skip
    elif fixed_cold_start_bias(config) is None:
        # The export may have used another bias than the checkpoint's.
        bias = float(manifest.get("cold_start_bias") or 0.0)
        trained = dataclasses.replace(trained, cold_start_bias=bias)
    return trained, codec


def open_new_items(config: Config, prepared: Prepared) -> tuple[NewItemModel, VectorCodec]:
    """The chosen checkpoint as a model for new items, and the codec of their vectors.

    Raises:
      UserError: there is no checkpoint.
    """
    # First, because another encoder than the catalog's is refused here.
    transform = load_transform(config)
    bases = spectral_bases(config, prepared, validation_split_of(config, prepared))
    catalog = Catalog(config, prepared, bases)
    trained = load_trained(config, prepared, catalog.inputs.dim, catalog.num_nodes)
    trained, codec = match_export(config, trained)
    return NewItemModel(catalog, transform, trained), codec


def exported_source(config: Config, num_items: int) -> Source:
    """read_source, with `checkpoint` set to the one that the export was embedded with."""
    source = read_source(config, num_items)
    checkpoint = source.embeddings.get("checkpoint")
    if checkpoint not in ("best", "last"):
        return source
    embed = dataclasses.replace(source.config.embed, checkpoint=checkpoint)
    return dataclasses.replace(source, config=dataclasses.replace(source.config, embed=embed))


def cold_start_adjustment(graph: Graph, bias: float) -> Adjust:
    """A function that adds the cold-start bias to the last coordinate of isolated items."""
    isolated = graph.degree()[: graph.num_items] == 0

    def adjust(begin: int, end: int, rows: np.ndarray) -> None:
        rows[np.flatnonzero(isolated[begin:end]), -1] += np.float32(bias)

    return adjust


def persistent_tables(
    config: Config, graph: Graph, trained: Trained, data: str, keep: bool
) -> PersistentTables:
    """Tables in WORKDIR/layers, with which a run continues after it was killed.

    Args:
      data: fingerprint of the items and their features.
      keep: whether the tables of layers stay when they have been read.
    """
    settings = dataclasses.asdict(config.embed)
    named = {name: settings[name] for name in ("embed_walks", "shard_rows")}
    sections = (config.split, config.sampling, config.model)
    parts = [*(dataclasses.asdict(section) for section in sections), config.seed, keep]
    model = [trained.digest, trained.cold_start_bias]
    key = files.fingerprint([named, parts, model, data, graph.digest()])
    return PersistentTables(
        pathlib.Path(config.workdir) / layer_tables.FOLDER / key, config.embed.shard_rows, keep
    )


def run_metadata(config: Config, trained: Trained) -> dict[str, Any]:
    """Entries of an export's manifest that name the program, the flags and the checkpoint."""
    sections = ("data", "synthetic", "split", "sampling", "model", "train", "embed")
    flags = {"seed": config.seed, "workdir": config.workdir}
    for name in sections:
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
