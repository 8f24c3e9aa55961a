"""What several stages read of a run: its split, the identity of its data, its embeddings."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from pinsage_jax.catalog.encoders import encoders_line
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config, constants, remembered_values
from pinsage_jax.core import files, flagfiles
from pinsage_jax.core.signals import stop_requested_anywhere
from pinsage_jax.core.version import __version__
from pinsage_jax.distributed import process_group
from pinsage_jax.export import writer
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.graph.validation_split import ValidationSplit, validation_split
from pinsage_jax.retrieval.online import weigh_popularity


def validation_split_of(config: Config, prepared: Prepared) -> ValidationSplit:
    """The validation split of this run; the same in every stage."""
    return validation_split(
        prepared.graph, config.split, config.seed, prepared.train_pairs, prepared.edge_times,
        config.workdir,
    )  # fmt: skip


def remember(config: Config, workdir: str | pathlib.Path | None = None) -> None:
    """Writes the settings of the run to WORKDIR/run.flags, for commands with --workdir alone.

    Args:
      workdir: another folder than that of the settings.
    """
    if not process_group.is_rank0():
        return
    text = flagfiles.run_flags_text(
        remembered_values(config), constants(), f"pinsage_jax {__version__}"
    )
    path = pathlib.Path(workdir or config.workdir) / flagfiles.RUN_FLAGS
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        with files.atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def data_identity(prepared: Prepared) -> dict[str, Any]:
    """Identifies the data; checkpoints and exports store it and refuse other data later."""
    encoders = encoders_line(prepared.manifest)
    return {
        "ids": prepared.item_ids.digest(),
        "num_items": prepared.graph.num_items,
        "num_collections": prepared.graph.num_collections,
        "num_edges": prepared.graph.num_edges,
        "feature_dim": prepared.features.shape[1],
        "graph": prepared.manifest["checksums"].get("graph/manifest.json"),
        **({"encoders": encoders} if encoders else {}),
    }


def embeddings(config: Config) -> tuple[list[str], np.ndarray]:
    """Ids of all items and their exported embeddings, float32 [num_items, Z]."""
    prepared = open_prepared(config.workdir)
    return prepared.item_ids.ids.to_pylist(), load_embeddings(config.workdir, prepared)


def first_item_id(folder: str) -> str:
    """The id of the item whose related items are worth a first look; its rule: first_query.py."""
    prepared = open_prepared(folder)
    # Most commands that list neighbors need none of what this imports.
    from pinsage_jax.reporting.first_query import first_query

    return prepared.item_ids.ids[first_query(prepared, load_embeddings(folder, prepared))].as_py()


def listed_vectors(config: Config, prepared: Prepared) -> np.ndarray:
    """The exported embeddings float32 [num_items, Z], weighted as --popularity_weight asks.

    Raises:
      UserError: there is no export of this catalog, or it has no popularity coordinate.
    """
    return weighted(config, load_embeddings(config.workdir, prepared))


def weighted(config: Config, vectors: np.ndarray) -> np.ndarray:
    """Exported embeddings float32 [n, Z], weighted as --popularity_weight asks."""
    return weigh_popularity(vectors, config.search.popularity_weight, has_popularity(config))


def has_popularity(config: Config) -> bool:
    """Whether the last coordinate of the exported embeddings is the items' popularity."""
    manifest = files.read_json(pathlib.Path(config.workdir) / writer.FOLDER / writer.MANIFEST)
    return manifest.get("normalized") is False


def stop_requested() -> bool:
    """Whether a signal has asked any process of this run to stop."""
    return stop_requested_anywhere(
        lambda number: process_group.all_gather_object(number, "stop request", interruptible=False)
    )
