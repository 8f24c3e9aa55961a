"""The stages that judge a run by its embeddings: evaluate, explain, compare and report."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import logging

from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import evaluate as evaluation
from pinsage_jax.evaluation import explain as explaining
from pinsage_jax.export import writer
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.reporting import comparison
from pinsage_jax.reporting.explorer import write_explorer
from pinsage_jax.reporting.report import write_report
from pinsage_jax.stages.runs import split_of


def evaluate(config: Config) -> dict[str, Any]:
    """Ranks the catalog for every evaluation pair; WORKDIR/eval.json and a table."""
    prepared = open_prepared(config.workdir)
    vectors = load_embeddings(config.workdir, prepared)
    split, fingerprint = split_of(config, prepared), _eval_fingerprint(config)
    return evaluation.evaluate(config, prepared, vectors, split, fingerprint=fingerprint)


def saved_evaluation(config: Config) -> dict[str, Any] | None:
    """What eval.json holds, if it is intact and of just this export and these settings."""
    if not (pathlib.Path(config.workdir) / evaluation.EVAL_FILE).exists():
        return None
    try:
        saved = evaluation.read_evaluation(config.workdir)
    except UserError as error:
        logging.warning("%s; evaluating again.", str(error).split(";")[0])
        return None
    return saved if saved.get("fingerprint") == _eval_fingerprint(config) else None


def _eval_fingerprint(config: Config) -> str:
    """What eval.json depends on: the export and the settings of the evaluation."""
    manifest = files.read_json(pathlib.Path(config.workdir) / writer.FOLDER / writer.MANIFEST)
    # Not all of it: it names places, and a workdir may be moved.
    made = {name: manifest.get(name) for name in ("files", "ids", "parameters", "settings")}
    asked = [config.evaluate.baselines, config.evaluate.bootstrap]
    return files.fingerprint([made, *asked])


def explain(config: Config) -> dict[str, Any]:
    """Why --target stands where it does for --query: tables and WORKDIR/explain/."""
    prepared = open_prepared(config.workdir)
    return explaining.explain(config, prepared, load_embeddings(config.workdir, prepared))


def compare(config: Config) -> dict[str, Any]:
    """This run beside that in --compare_with: tables and WORKDIR/compare.json."""
    return comparison.compare(config)


def report(config: Config) -> pathlib.Path:
    """The run on one page, WORKDIR/report.html, and its catalog, WORKDIR/explorer.html."""
    prepared = open_prepared(config.workdir)
    vectors = load_embeddings(config.workdir, prepared)
    path = write_report(config, prepared, vectors)
    write_explorer(config, prepared, vectors)
    return path
