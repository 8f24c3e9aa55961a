"""Runs the stages in order, from prepare to report, or trains and compares variants."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.ablation import ablation
from pinsage_jax.ablation.variants import chosen_variants
from pinsage_jax.batching.graph_view import spectral_bases
from pinsage_jax.catalog.encoders import require_encoders
from pinsage_jax.catalog.inputs import FOLDER, is_current
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import exchange, workdir
from pinsage_jax.core.costs import Costs
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.distributed import process_group
from pinsage_jax.evaluation.evaluate import EVAL_FILE
from pinsage_jax.evaluation.table_files import write_tables
from pinsage_jax.evaluation.tables import printed_tables, table_files
from pinsage_jax.explorer import explorer
from pinsage_jax.export import writer
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.model.init import init_model
from pinsage_jax.reporting import figures
from pinsage_jax.sampling.pairs import pairs_per_epoch
from pinsage_jax.stages.checkpoint import (
    check_init_from,
    chosen_checkpoint,
    fixed_cold_start_bias,
)
from pinsage_jax.stages.embed import embed, embed_over, embeddings_are_current
from pinsage_jax.stages.evaluate import (
    check_color_column,
    evaluate,
    report,
    saved_evaluation,
)
from pinsage_jax.stages.prepare import prepare
from pinsage_jax.stages.runs import validation_split_of
from pinsage_jax.stages.search import rank_if_worth_it
from pinsage_jax.stages.train import train
from pinsage_jax.training import compatibility


def pipeline(config: Config) -> dict[str, Any]:
    """Runs prepare, train, embed, rank, evaluate and report; skips what is made already.

    With --retrain or --refit: in WORKDIR/next (config.workdir), which then takes the place of
    what is in WORKDIR.
    """
    check_init_from(config)
    if not config.retraining.beside:
        return _stages(config)[0]
    folder = pathlib.Path(config.workdir).parent
    require_encoders(config, folder / FOLDER)
    if config.retraining.refit:
        config = _refit_settings(config, folder)
    if process_group.is_rank0() and not _goes_on(config):
        logging.info("%s is of other tables or settings; starting it anew", config.workdir)
        exchange.clear_next(folder, keep=(workdir.LOCK,))
    process_group.all_gather_object(None, "clearing WORKDIR/next")
    result, whole = _stages(config)
    if whole and process_group.is_rank0():
        raise_if_stopped()
        with workdir.locked(folder, wait=True):
            exchange.replace_by_next(folder)
        logging.info("%s holds the new model", folder)
        if (folder / exchange.PREVIOUS).is_dir():
            logging.info("%s holds the one before it", folder / exchange.PREVIOUS)
    return result


def _refit_settings(config: Config, workdir: pathlib.Path) -> Config:
    """Settings without a validation split, of the length that validation chose in `workdir`.

    The schedule is that of the first training: as many steps as its best checkpoint had taken,
    and epochs of as many pairs.

    Raises:
      UserError: nothing was trained there.
    """
    there = dataclasses.replace(config, workdir=str(workdir))
    try:
        checkpoints, step = chosen_checkpoint(there)
        prepared = open_prepared(workdir)
    except UserError as error:
        raise UserError(f"--refit needs a model that validation has judged: {error}") from None
    bias = fixed_cold_start_bias(config)
    if bias is None:
        bias = float(checkpoints.metrics(step).get("cold_start_bias") or 0.0)
    split = validation_split_of(there, prepared)
    per_epoch = pairs_per_epoch(
        split.train_graph, split.train_pairs, config.train.pairs_per_epoch,
        config.train.least_epoch_pairs,
    )  # fmt: skip
    logging.info("training %d steps on every edge, validation edges among them", step)
    return dataclasses.replace(
        config,
        split=dataclasses.replace(
            config.split, validation_collections=0.0, validation_cold_items=0.0
        ),
        train=dataclasses.replace(config.train, max_steps=step, pairs_per_epoch=per_epoch),
        embed=dataclasses.replace(config.embed, cold_start_bias=bias),
    )


def _goes_on(config: Config) -> bool:
    """Whether the unfinished model of config.workdir, if any, is just this one."""
    meta = compatibility.saved_meta(config.workdir)
    if meta is None:
        return True
    try:
        compatibility.check_same_settings(config, meta)
    except UserError:
        return False
    started = meta["config"].get("retraining")
    return started == dataclasses.asdict(config.retraining) and is_current(config)


def _stages(config: Config) -> tuple[dict[str, Any], bool]:
    """The stages; returns the scores, and whether all stages were done."""
    costs = Costs()
    if not figures.available():
        logging.warning(
            "There will be no report.html: it needs matplotlib (pip install 'pinsage-jax[report]')."
        )
    with costs.stage("prepare"):
        prepare(config)
    check_color_column(config)
    names_columns = config.explorer.show_columns or config.explorer.image_column
    if names_columns and figures.available() and process_group.is_rank0():
        # Before the training, not after it.
        explorer.check(config, open_prepared(config.workdir))
    raise_if_stopped()
    with costs.stage("train"):
        outcome = train(config)
    costs.pairs, costs.devices = outcome.pairs, outcome.devices
    costs.wait_share = outcome.wait_share
    if outcome.interrupted or not process_group.is_rank0():
        return {}, False
    raise_if_stopped()
    if embeddings_are_current(config):
        logging.info("embed: %s is up to date", pathlib.Path(config.workdir) / writer.FOLDER)
    else:
        with costs.stage("embed"):
            costs.items = embed(config)["count"]
    raise_if_stopped()
    with costs.stage("rank"):
        rank_if_worth_it(config)
    raise_if_stopped()
    result = saved_evaluation(config)
    if result is None:
        with costs.stage("evaluate"):
            result = evaluate(config)
    else:
        logging.info("evaluate: %s/%s is up to date", config.workdir, EVAL_FILE)
        print(printed_tables(result, config.workdir))
        write_tables(config.workdir, config.evaluate.table_formats, table_files(result))
    if outcome.pairs:
        # A run that found everything finished must not overwrite the costs of the real one.
        costs.save(config.workdir)
    if figures.available():
        raise_if_stopped()
        with costs.stage("report"):
            report(config)
    if outcome.pairs:
        # Again, with the seconds of the report, which shows the others.
        costs.save(config.workdir)
    logging.info("this run cost %s", costs.summary())
    return result, True


def ablate(config: Config) -> dict[str, Any]:
    """Trains and compares variants of the settings; writes WORKDIR/ablate.json, prints tables."""
    # An unknown name is reported before the data is prepared.
    chosen_variants(config.ablate.ablate_variants)
    prepared = prepare(config)
    split = validation_split_of(config, prepared)

    def embeddings(variant: Config, graph: Graph) -> tuple[np.ndarray, dict[str, Any]]:
        train(variant, split=split)
        raise_if_stopped()
        vectors, trained = embed_over(variant, prepared, graph, split)
        items = vectors[: prepared.graph.num_items]
        return items, {"checkpoint_step": trained.step, "cold_start_bias": trained.cold_start_bias}

    def untrained(variant: Config, graph: Graph) -> tuple[np.ndarray, dict[str, Any]]:
        encoder = Encoder.over(variant, prepared, graph, spectral_bases(variant, prepared, split))
        nodes = encoder.lists.source.num_nodes
        _, params = init_model(variant, encoder.inputs.dim, nodes)
        return encoder.embed(params)[: prepared.graph.num_items], {}

    return ablation.ablate(config, prepared, split, embeddings, untrained)
