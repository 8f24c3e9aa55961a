"""The stages that read input tables: prepare, the doctor, split and Spark's graph tables."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.catalog.encoders import refuse_other_encoders
from pinsage_jax.catalog.graph_files import BuiltGraph
from pinsage_jax.catalog.inputs import FOLDER
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.catalog.prepare import prepare as prepare_tables
from pinsage_jax.config.data import catalog_of_size
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed import process_group
from pinsage_jax.evaluation.baselines import WALK_FACTOR
from pinsage_jax.graph import split_tables
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.kind_weights import choose_weights
from pinsage_jax.graph.validation_split import validation_split
from pinsage_jax.retrieval.export_quality import evenly_spaced_rows
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts
from pinsage_jax.spark.graph_tables import write_graph_tables
from pinsage_jax.stages.runs import data_identity, remember
from pinsage_jax.training import compatibility

# Validation pairs, and lengths of lists, by which kind weights are chosen.
_MOST_KIND_PAIRS = 2000
_CUTOFFS = (10, 100)


def load_graph(config: Config) -> Prepared:
    """Reads the input tables into WORKDIR/prepared, unless it is up to date, and opens it.

    Of several processes only that of rank 0 reads the tables.
    """
    if process_group.is_rank0():
        _check_example(config)
        if compatibility.saved_meta(config.workdir) is not None:
            # Before anything is encoded, which may take long.
            refuse_other_encoders(config, pathlib.Path(config.workdir) / FOLDER)
        prepare_tables(
            config,
            lambda prepared: _check_replaces(config, prepared),
            lambda built: _kind_weights(config, built),
        )
        if _fits_checkpoint(config):
            remember(config)
    process_group.all_gather_object(None, "prepared data")
    return open_prepared(config.workdir)


def _kind_weights(config: Config, built: BuiltGraph) -> str:
    """--kind_weights=auto: weights by which plain walks find most on validation pairs."""
    graph, names = built.graph, list(built.kind_names)
    split = validation_split(graph, config.split, config.seed, None, built.times)
    pairs = split.pairs[split.kinds == "warm"]
    pairs = pairs[evenly_spaced_rows(len(pairs), _MOST_KIND_PAIRS)]
    if built.kinds is None or not len(pairs):
        logging.warning(
            "prepare: --kind_weights=auto: no validation pair to choose by; kinds are equal."
        )
        return ""
    sampling = dataclasses.replace(
        config.sampling,
        neighborhood="items",
        num_neighbors=_CUTOFFS[-1],
        num_walks=WALK_FACTOR * config.sampling.num_walks,
    )

    def hits(graph: Graph) -> np.ndarray:
        found = visit_counts(
            WalkTables(graph), pairs[:, 0], sampling, seed=config.seed, threads=config.host_threads
        )
        at_target = found.ids == pairs[:, 1:]
        return np.stack([at_target[:, :k].any(axis=1) for k in _CUTOFFS]).sum(axis=0, dtype=float)

    choice = choose_weights(graph, built.kinds, names, split, hits)
    weights = ", ".join(f"{name} {weight:g}" for name, weight in choice.weights.items())
    logging.info(
        "prepare: kind weights chosen on %d validation pairs: %s (hit@10 + hit@100 of walks %.3f, "
        "with equal weights %.3f).",
        len(pairs), weights, choice.hits, choice.tried[0]["hits"],
    )  # fmt: skip
    return choice.text


def _check_replaces(config: Config, new: Prepared) -> None:
    """Refuses other tables than those that the workdir's model was trained on.

    Without this a command with rewritten tables would leave old vectors beside new tables.

    Raises:
      UserError: the tables are other ones than those of the workdir's checkpoint.
    """
    meta = compatibility.saved_meta(config.workdir)
    if meta is None:
        return
    differences = compatibility.data_differences(meta["data"], data_identity(new))
    if not differences and _has_other_features(config, new):
        differences = ["on other features than the workdir holds"]
    if differences:
        raise _refused(config, differences)


def _check_example(config: Config) -> None:
    """Refuses to generate another example than that of the workdir's model.

    Before its tables take the place of those in WORKDIR/inputs.

    Raises:
      UserError: the model was trained on another example, or on tables that were given.
    """
    meta = compatibility.saved_meta(config.workdir) if config.synthetic.synthetic else None
    saved = (meta or {}).get("config", {}).get("synthetic")
    if saved is None:
        return
    if not saved["synthetic"]:
        raise _refused(config, ["on other tables than the example of --synthetic"])
    before = saved["synthetic_catalog"] or dataclasses.asdict(
        catalog_of_size(saved["synthetic_size"])
    )
    catalogs = before, dataclasses.asdict(config.synthetic.chosen)
    # Counts are named as those of tables, for the same sentences.
    names = {"items": "num_items", "collections": "num_collections"}
    data = [{names.get(name, name): value for name, value in each.items()} for each in catalogs]
    if differences := compatibility.data_differences(*data):
        raise _refused(config, differences)


def _refused(config: Config, differences: list[str]) -> UserError:
    """The error for tables that are not those of the workdir's model."""
    found = compatibility.format_differences(differences)
    for now in ("the workdir holds", "the workdir has"):
        found = found.replace(now, "the tables have now")
    return UserError(
        f"The model in {config.workdir} was trained {found}; nothing was replaced. Train a new "
        "model in its place with --retrain, or choose another --workdir."
    )


def _has_other_features(config: Config, new: Prepared) -> bool:
    """Whether changed tables or settings give other features than WORKDIR/prepared holds."""
    try:
        before = open_prepared(config.workdir).manifest
    except UserError:
        return False
    # A folder that is made again from the same tables may differ by rounding.
    changed = before["fingerprint"] != new.manifest["fingerprint"]
    name = "features/features.npy"
    return changed and before["checksums"].get(name) != new.manifest["checksums"].get(name)


def _fits_checkpoint(config: Config) -> bool:
    """Whether a checkpoint of the workdir, if there is one, has these settings."""
    meta = compatibility.saved_meta(config.workdir)
    try:
        if meta is not None:
            compatibility.check_same_settings(config, meta)
    except UserError:
        return False
    return True


def prepare(config: Config) -> Prepared:
    """Turns the input tables into the graph, features and pairs in WORKDIR/prepared."""
    return load_graph(config)


def doctor(config: Config) -> dict[str, Any]:
    """Checks the inputs and forecasts the costs of a run; writes WORKDIR/doctor.json."""
    # Its forecast trains for some steps; the other stages of this module need no JAX.
    from pinsage_jax.checkup.doctor import examine

    _check_example(config)
    return examine(config)


def split(config: Config) -> dict[str, Any]:
    """Splits one edge table into train and eval tables, in WORKDIR/split."""
    return split_tables.split(config)


def graph_tables(config: Config) -> dict[str, Any]:
    """Cleans, prunes and numbers the edges and samples neighbor lists on Spark.

    The tables go to WORKDIR/graph_tables.
    """
    return write_graph_tables(config)
