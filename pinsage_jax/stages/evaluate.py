"""The stages that measure and show the embeddings: evaluate, explain, compare and report."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from absl import logging

from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import evaluate as evaluation
from pinsage_jax.evaluation import explain as explaining
from pinsage_jax.evaluation.pair_ranks import RANKS_FILE
from pinsage_jax.explorer import explorer
from pinsage_jax.export import writer
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.ranking.saved_ranker import RANKER_FILE
from pinsage_jax.reporting import comparison
from pinsage_jax.reporting.report import write_report
from pinsage_jax.reporting.sections.coloring import check_column
from pinsage_jax.stages.runs import has_popularity, listed_vectors, validation_split_of
from pinsage_jax.stages.search import listed_by


def evaluate(config: Config) -> dict[str, Any]:
    """Ranks the catalog for every evaluation pair; writes WORKDIR/eval.json and prints tables.

    Without --eval_pairs it ranks for the validation pairs.  The exported embeddings and the
    whole graph know their answers, so all methods get the training graph then.
    """
    prepared = open_prepared(config.workdir)
    vectors = load_embeddings(config.workdir, prepared)
    split, graph = validation_split_of(config, prepared), prepared.graph
    if len(prepared.eval_pairs) == 0 and len(split.pairs):
        # Only here does an evaluation need the network.
        from pinsage_jax.stages.checkpoint import match_export
        from pinsage_jax.stages.embed import embed_over

        logging.info("evaluate: embedding without the edges withheld for validation")
        graph, on_spark = split.train_graph, config.spark.on_spark
        nodes, trained = embed_over(config, prepared, graph, split, on_spark=on_spark)
        # In as many dimensions as the export has.
        vectors = match_export(config, trained)[1].project(nodes[: graph.num_items])
    return evaluation.evaluate(
        config,
        prepared,
        vectors,
        split,
        graph,
        fingerprint=_eval_fingerprint(config),
        has_popularity=has_popularity(config),
        ranker=listed_by(
            config, dataclasses.replace(prepared, graph=graph), config.host_threads, vectors
        ),
    )


def saved_evaluation(config: Config) -> dict[str, Any] | None:
    """The content of eval.json if it is intact and of this export and these settings, else None.

    Also None without the ranks of its pairs, which earlier versions did not write.
    """
    workdir = pathlib.Path(config.workdir)
    if not all((workdir / name).exists() for name in (evaluation.EVAL_FILE, RANKS_FILE)):
        return None
    try:
        saved = evaluation.read_evaluation(config.workdir)
    except UserError as error:
        logging.warning("%s; evaluating again.", str(error).split(";")[0])
        return None
    return saved if saved.get("fingerprint") == _eval_fingerprint(config) else None


def _eval_fingerprint(config: Config) -> str:
    """Hash of what eval.json depends on: the export and the settings of the evaluation."""
    manifest = files.read_json(pathlib.Path(config.workdir) / writer.FOLDER / writer.MANIFEST)
    # Not the whole manifest: it names paths, and a workdir may be moved.
    export = {name: manifest.get(name) for name in ("files", "ids", "parameters", "settings")}
    settings = [config.evaluate.baselines, config.evaluate.bootstrap]
    search = config.search
    settings += [search.popularity_weight, search.related_by, search.new_item_price]
    ranker = pathlib.Path(config.workdir) / RANKER_FILE
    settings += [files.checksum(ranker) if ranker.exists() else "", "training graph"]
    return files.fingerprint([export, *settings])


def explain(config: Config) -> dict[str, Any]:
    """Explains the rank of --target for --query; prints tables and writes WORKDIR/explain/."""
    prepared = open_prepared(config.workdir)
    return explaining.explain(config, prepared, listed_vectors(config, prepared))


def compare(config: Config) -> dict[str, Any]:
    """Compares this run with that in --compare_with; writes WORKDIR/compare.json, prints tables."""
    return comparison.compare(config)


def report(config: Config) -> pathlib.Path:
    """Writes the run's report, WORKDIR/report.html, and the explorer, WORKDIR/explorer.html."""
    prepared = open_prepared(config.workdir)
    check_color_column(config)
    explorer.check(config, prepared)
    vectors = listed_vectors(config, prepared)
    exported = load_embeddings(config.workdir, prepared)
    ranker = listed_by(config, prepared, config.host_threads, exported)
    page = explorer.write_explorer(config, prepared, vectors, ranker)
    return write_report(config, prepared, vectors, page.name if page else "")


def check_color_column(config: Config) -> None:
    """Checks that the prepared catalog has --color_column.

    Raises:
      UserError: it has not.
    """
    if name := config.report.color_column:
        check_column(open_prepared(config.workdir).item_columns, name)
