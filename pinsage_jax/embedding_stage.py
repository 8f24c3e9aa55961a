"""Embedding the catalogue, or items it does not hold, with a trained checkpoint.

What the stages share lives here too: the validation split of a run, what its data is,
and which checkpoint and cold offset its embeddings are made with.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax import files
from pinsage_jax.config import Config
from pinsage_jax.errors import UserError
from pinsage_jax.graph.additions import Additions, additions_of, read_additions
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.features import FeatureTransform
from pinsage_jax.graph.ids import IdTable
from pinsage_jax.graph.prepare import Prepared, open_prepared
from pinsage_jax.graph.split import ValidationSplit, validation_split
from pinsage_jax.graph.tables import Table
from pinsage_jax.inference import export
from pinsage_jax.inference.encoder import Encoder, structure_bases
from pinsage_jax.inference.new_items import Catalogue, NewItemEncoder
from pinsage_jax.retrieval import calibration
from pinsage_jax.training import loop
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.state import TrainState, initial_state, make_optimiser


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
    return None if config.embed.cold_offset < 0 else config.embed.cold_offset


def _chosen_checkpoint(config: Config) -> tuple[Checkpoints, int]:
    """The checkpoint that --checkpoint names."""
    folder = pathlib.Path(config.workdir) / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True)
    best = config.embed.checkpoint == "best"
    step = checkpoints.best_step() if best else checkpoints.latest_step()
    if step is None:
        raise UserError(f"{folder} holds no checkpoint; run --mode=train first.")
    return checkpoints, step


def _trained(
    config: Config, prepared: Prepared, input_dim: int, num_nodes: int
) -> tuple[Any, int, float]:
    """Parameters of the chosen checkpoint, its step and its cold offset."""
    checkpoints, step = _chosen_checkpoint(config)
    meta = checkpoints.meta(step)
    checkpoints.check(meta, identity_of(prepared), dataclasses.asdict(config.model))

    def new_state() -> TrainState:
        _, params = loop.init_model(config, input_dim, num_nodes)
        return initial_state(params, make_optimiser(config.train, 1.0))

    # Only its shapes are asked for: making one compiles for seconds.
    state = jax.eval_shape(new_state)
    offset = fixed_offset(config)
    if offset is None:
        offset = float(checkpoints.metrics(step).get("cold_offset") or 0.0)
    return checkpoints.restore(step, state)[0].params, step, offset


def embed_over(
    config: Config, prepared: Prepared, graph: Graph, split: ValidationSplit
) -> tuple[np.ndarray, int, float]:
    """Embeddings of every node over `graph`, with the step and the cold offset they have."""
    encoder = Encoder.over(config, prepared, graph, structure_bases(config, prepared, split))
    params, step, offset = _trained(
        config, prepared, encoder.inputs.dim, encoder.lists.source.num_nodes
    )
    vectors = encoder.embed(params)
    edgeless = np.flatnonzero(graph.degree()[: prepared.graph.num_items] == 0)
    vectors[edgeless, -1] += offset
    return vectors, step, offset


def embed(config: Config) -> dict[str, Any]:
    """Embeds the whole catalogue on the whole graph into WORKDIR/embeddings.

    With --new_items: those items alone, into WORKDIR/new_embeddings.
    """
    if config.new.new_items:
        return _embed_new(config)
    prepared = open_prepared(config.workdir)
    split = split_of(config, prepared)
    vectors, step, offset = embed_over(config, prepared, prepared.graph, split)
    items = prepared.graph.num_items
    everything = config.sampling.neighbourhood == "all"
    manifest = export.write_embeddings(
        config.workdir,
        config.embed,
        prepared.item_ids,
        vectors[:items],
        {
            "step": step,
            "checkpoint": config.embed.checkpoint,
            "normalised": config.model.normalize_output and not config.model.popularity,
            "cold_offset": offset,
            "settings": _embed_fingerprint(config, step),
            "ids": prepared.item_ids.digest(),
            "seed": config.seed,
        },
        prepared.collection_ids if everything else None,
        vectors[items:] if everything else None,
    )
    logging.info("embedded %d items into %s", items, pathlib.Path(config.workdir) / export.FOLDER)
    return manifest


@dataclasses.dataclass(frozen=True, eq=False)
class NewItems:
    """Embeds items that the catalogue does not hold; see inference/new_items.py.

    Attributes:
      step, offset: the checkpoint that it embeds with, and its cold offset.
    """

    config: Config
    prepared: Prepared
    transform: FeatureTransform
    catalogue: Catalogue
    params: Any
    step: int
    offset: float

    @classmethod
    def opened(cls, config: Config, prepared: Prepared) -> NewItems:
        """With the checkpoint that --checkpoint names; UserError where there is none."""
        workdir = pathlib.Path(config.workdir)
        bases = structure_bases(config, prepared, split_of(config, prepared))
        catalogue = Catalogue(config, prepared, bases)
        params, step, offset = _trained(config, prepared, catalogue.inputs.dim, catalogue.num_nodes)
        exported = workdir / export.FOLDER / export.MANIFEST
        if exported.exists():
            about = files.read_json(exported)
            if about.get("step") != step:
                logging.warning(
                    "%s is of step %s, the checkpoint of step %d: run --mode=embed without "
                    "--new_items to have both in one space.",
                    exported.parent, about.get("step"), step,
                )  # fmt: skip
            elif fixed_offset(config) is None:
                # The export may have been given another one than the checkpoint's.
                offset = float(about.get("cold_offset") or 0.0)
        transform = FeatureTransform.load(workdir / "prepared" / "features")
        return cls(config, prepared, transform, catalogue, params, step, offset)

    def read(self, items: Table, edges: Table | None) -> Additions:
        """What two tables hold; UserError for whatever is wrong with them."""
        return additions_of(self.prepared, self.transform, self.config.data, items, edges)

    def warm_up(self) -> None:
        """Compiles what a single item takes, with edges and without, by embedding a known one."""
        graph = self.prepared.graph
        known = int(np.argmax(graph.degree()[: graph.num_items]))
        for held in (graph.neighbours(known)[:1] - graph.num_items, np.empty(0, np.int32)):
            held = held.astype(np.int32)
            weights = None if graph.weights is None else np.ones(len(held), np.float32)
            edges = Graph.from_edges(np.zeros_like(held), held, 1, graph.num_collections, weights)
            ids = IdTable(pa.array(["any"]))
            self.embed(Additions(ids, np.asarray(self.prepared.features[[known]]), edges))

    def embed(self, additions: Additions) -> tuple[np.ndarray, np.ndarray]:
        """float32 [n, Z], and which of them have no edge, bool [n]."""
        encoder = NewItemEncoder(self.catalogue, additions)
        vectors = encoder.embed(self.params)
        return calibration.with_offset(vectors, encoder.edgeless, self.offset), encoder.edgeless


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
    model = NewItems.opened(config, prepared)
    vectors, edgeless = model.embed(additions)
    manifest = export.write_embeddings(
        workdir,
        config.embed,
        additions.item_ids,
        vectors,
        {
            "step": model.step,
            "checkpoint": config.embed.checkpoint,
            "normalised": config.model.normalize_output and not config.model.popularity,
            "cold_offset": model.offset,
            "catalogue": prepared.item_ids.digest(),
            "seed": config.seed,
            "without_edges": int(edgeless.sum()),
        },
        folder_name=export.NEW_FOLDER,
    )
    logging.info(
        "embedded %d new items, %d of them without edges, into %s",
        len(vectors), manifest["without_edges"], workdir / export.NEW_FOLDER,
    )  # fmt: skip
    return manifest


def _embed_fingerprint(config: Config, step: int) -> str:
    manifest = files.read_json(pathlib.Path(config.workdir) / "prepared" / "manifest.json")
    named = ("split", "sampling", "model", "train")
    parts = {name: dataclasses.asdict(getattr(config, name)) for name in named}
    # The same step of a run trained otherwise is another model.
    parts["train"] = {k: v for k, v in parts["train"].items() if k not in loop.MAY_CHANGE}
    embed_settings = dataclasses.asdict(config.embed)
    return files.fingerprint([parts, embed_settings, config.seed, step, manifest["fingerprint"]])


def embeddings_are_current(config: Config) -> bool:
    path = pathlib.Path(config.workdir) / export.FOLDER / export.MANIFEST
    if not path.exists():
        return False
    _, step = _chosen_checkpoint(config)
    return files.read_json(path).get("settings") == _embed_fingerprint(config, step)
