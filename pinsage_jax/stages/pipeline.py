"""Runs the stages in order, from prepare to report, and skips those that are up to date."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import logging

from pinsage_jax.config.settings import Config
from pinsage_jax.core.costs import Costs
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.distributed import process_group
from pinsage_jax.evaluation.evaluate import EVAL_FILE
from pinsage_jax.evaluation.tables import evaluation_tables
from pinsage_jax.export import writer
from pinsage_jax.reporting import figures
from pinsage_jax.stages.embed import embed, embeddings_are_current
from pinsage_jax.stages.evaluate import evaluate, report, saved_evaluation
from pinsage_jax.stages.prepare import prepare
from pinsage_jax.stages.train import train


def pipeline(config: Config) -> dict[str, Any]:
    """Runs prepare, train, embed, evaluate and report; skips what these settings made already."""
    costs = Costs()
    with costs.stage("prepare"):
        prepare(config)
    raise_if_stopped()
    with costs.stage("train"):
        outcome = train(config)
    costs.pairs, costs.devices = outcome.pairs, outcome.devices
    costs.wait_share = outcome.wait_share
    if outcome.interrupted or not process_group.is_rank0():
        return {}
    raise_if_stopped()
    if embeddings_are_current(config):
        logging.info("embed: %s is up to date", pathlib.Path(config.workdir) / writer.FOLDER)
    else:
        with costs.stage("embed"):
            costs.items = embed(config)["count"]
    raise_if_stopped()
    result = saved_evaluation(config)
    if result is None:
        with costs.stage("evaluate"):
            result = evaluate(config)
    else:
        logging.info("evaluate: %s/%s is up to date", config.workdir, EVAL_FILE)
        print(evaluation_tables(result))
    if figures.available():
        raise_if_stopped()
        with costs.stage("report"):
            report(config)
    else:
        logging.info("no report: it needs matplotlib (pip install 'pinsage-jax[report]')")
    if outcome.pairs:
        # A run that found everything finished must not overwrite the costs of the real one.
        costs.save(config.workdir)
    logging.info("this run cost %s", costs.summary())
    return result
