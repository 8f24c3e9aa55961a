"""The stages in order, each a function of the settings, from prepare to report.

This is where the packages meet.  A stage leaves its results in the workdir and
returns them; a stage whose results are there already, for the same settings, is
skipped by `pipeline`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from threadpoolctl import threadpool_limits

from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.catalog.prepare import prepare as prepare_tables
from pinsage_jax.checkup.doctor import examine
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.costs import Costs
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.signals import raise_if_stopped, stop_requested_anywhere
from pinsage_jax.data import split_tables
from pinsage_jax.distributed import process_group
from pinsage_jax.distributed.devices import connect, make_devices
from pinsage_jax.evaluation import ablation, calibration
from pinsage_jax.evaluation import evaluate as evaluation
from pinsage_jax.evaluation import explain as explaining
from pinsage_jax.evaluation.tables import evaluation_tables
from pinsage_jax.export import writer
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.inference.encoder import Encoder, spectral_bases, threads_of
from pinsage_jax.recommend import recommend as recommending
from pinsage_jax.recommend.choice import Validation, validation_users
from pinsage_jax.reporting import comparison, figures
from pinsage_jax.reporting.explorer import write_explorer
from pinsage_jax.reporting.report import write_report
from pinsage_jax.reporting.sources import exported_source
from pinsage_jax.retrieval import neighbors as related
from pinsage_jax.retrieval.index_table import build_indexes, open_search
from pinsage_jax.retrieval.neighbors import Related
from pinsage_jax.sampling.pairs import PairSource, hard_band
from pinsage_jax.serving import server
from pinsage_jax.spark.graph_tables import write_graph_tables
from pinsage_jax.stages.embed import (
    embed_catalog,
    embed_over,
    embeddings_are_current,
    fixed_offset,
    identity_of,
    open_new_items,
    split_of,
)
from pinsage_jax.stages.update import update
from pinsage_jax.training import loop
from pinsage_jax.training.curriculum import hard_negatives_in, hard_slots
from pinsage_jax.training.loop import Outcome


def load_graph(config: Config) -> Prepared:
    """Graph, features, ids and pairs; input tables are read into WORKDIR/prepared first.

    What is there already, of the same tables and settings, is only opened.  Of several
    processes only the writer reads the tables.
    """
    if process_group.is_rank0():
        prepare_tables(config)
    process_group.all_gather_object(None)
    return open_prepared(config.workdir)


def prepare(config: Config) -> Prepared:
    """Input tables to the graph, features and pairs in WORKDIR/prepared."""
    return load_graph(config)


def train(config: Config, should_stop: Callable[[], bool] | None = None) -> Outcome:
    """Trains the network, or continues, into WORKDIR/checkpoints.

    `should_stop` is asked after every step; without one a signal stops it.
    """
    prepared = open_prepared(config.workdir)
    identity = identity_of(prepared)
    # Opening a checkpoint is a use of JAX already.
    connect()
    if process_group.broadcast_from_rank0(lambda: loop.is_finished(config, identity)):
        logging.info("train: %s/checkpoints holds the finished run", config.workdir)
        return Outcome(0, 0, {}, interrupted=False)
    split = split_of(config, prepared)
    bases = process_group.rank0_first(lambda: spectral_bases(config, prepared, split))
    encoder = Encoder.over(config, prepared, split.train_graph, bases)
    if not config.sampling.resample:
        source = encoder.lists.source
        if source.store == "disk":
            process_group.rank0_first(source.materialize)
        else:
            source.materialize()
    pairs = PairSource(
        split.train_graph,
        config.seed,
        split.train_pairs,
        config.train.pairs_per_epoch,
        config.sampling.pair_power,
    )
    if hard_slots(config.train, pairs.per_epoch):
        logging.info(
            "hard negatives come from ranks %d to %d",
            *hard_band(config.sampling, prepared.graph.num_items),
        )
    own = len(make_devices(config.train.devices))
    counts = process_group.all_gather_object(own)
    if len({*counts}) > 1:
        raise UserError(
            f"The processes have {counts} devices; set --devices to have as many in each."
        )
    devices = sum(counts)
    if config.train.batch_size % devices:
        raise UserError(
            f"--batch_size={config.train.batch_size} is not a multiple of the {devices} devices; "
            "change it or set --devices."
        )
    first = own * process_group.current().index
    builder = MinibatchBuilder(
        encoder.lists,
        encoder.inputs,
        pairs,
        config.train,
        config.model,
        seed=config.seed,
        num_devices=devices,
        hard_in_epoch=lambda epoch: hard_negatives_in(epoch, config.train),
        hard_slots=hard_slots(config.train, pairs.per_epoch),
        negative_pool=np.arange(prepared.graph.num_items, dtype=np.int32),
        table_on_device=loop.keeps_table(config.train, encoder.inputs),
        own_devices=range(first, first + own),
    )

    validate = _validator(config, prepared, encoder, split) if process_group.is_rank0() else None
    outcome = loop.train(
        config,
        builder,
        pairs,
        encoder.inputs,
        identity,
        validate,
        should_stop or stop_requested,
    )
    if not outcome.interrupted:
        logging.info("trained %d steps; best validation: %s", outcome.step, outcome.best)
    spent = Costs(
        seconds={"train": outcome.seconds},
        devices=outcome.devices,
        pairs=outcome.pairs,
        wait_share=outcome.wait_share,
    )
    logging.info("training cost %s", spent.summary())
    return outcome


def stop_requested() -> bool:
    """Whether a signal has asked this run, in whichever of its processes, to stop."""
    return stop_requested_anywhere(process_group.all_gather_object)


def _validator(
    config: Config, prepared: Prepared, encoder: Encoder, split: ValidationSplit
) -> loop.Validate:
    """Scores parameters on the validation pairs, over the training graph."""
    items = prepared.graph.num_items
    graph = split.train_graph
    rivals = calibration.Baselines.of(
        graph, prepared.features, split, config.sampling, config.seed, threads_of(config)
    )
    for (kind, k), rate in rivals.rates.items():
        logging.info("validation, %s pairs: hit@%d of the plain rival is %.4f", kind, k, rate)
    edgeless = graph.degree()[:items] == 0

    def validate(params: Any) -> dict[str, float]:
        vectors = encoder.embed(params, quiet=True)[:items]
        return calibration.validate(vectors, edgeless, split, rivals, fixed_offset(config))

    return validate


def embed(config: Config) -> dict[str, Any]:
    """Embeds the catalog, items that it does not hold, or what changes of it affect."""
    return update(config) if config.update.asked else embed_catalog(config)


def evaluate(config: Config) -> dict[str, Any]:
    """Ranks the catalog for every evaluation pair; WORKDIR/eval.json and a table."""
    prepared = open_prepared(config.workdir)
    vectors = load_embeddings(config.workdir, prepared)
    split, fingerprint = split_of(config, prepared), _eval_fingerprint(config)
    return evaluation.evaluate(config, prepared, vectors, split, fingerprint=fingerprint)


def _eval_fingerprint(config: Config) -> str:
    """What eval.json depends on: the export and the settings of the evaluation."""
    manifest = files.read_json(pathlib.Path(config.workdir) / writer.FOLDER / writer.MANIFEST)
    # Not all of it: it names places, and a workdir may be moved.
    made = {name: manifest.get(name) for name in ("files", "ids", "parameters", "settings")}
    asked = [config.evaluate.baselines, config.evaluate.bootstrap]
    return files.fingerprint([made, *asked])


def _saved_evaluation(config: Config) -> dict[str, Any] | None:
    """What eval.json holds, if it is intact and of just this export and these settings."""
    if not (pathlib.Path(config.workdir) / evaluation.EVAL_FILE).exists():
        return None
    try:
        saved = evaluation.read_evaluation(config.workdir)
    except UserError as error:
        logging.warning("%s; evaluating again.", str(error).split(";")[0])
        return None
    return saved if saved.get("fingerprint") == _eval_fingerprint(config) else None


def embeddings(config: Config) -> tuple[list[str], np.ndarray]:
    """Ids of all items and their exported embeddings, float32 [num_items, Z]."""
    prepared = open_prepared(config.workdir)
    return prepared.item_ids.ids.to_pylist(), load_embeddings(config.workdir, prepared)


def neighbors(config: Config, items: Sequence[str] = ()) -> dict[str, list[Related]]:
    """The --k nearest items of each of `items`, best first.

    Without `items`: those of --query, which are printed; without that too, those of all
    items go to WORKDIR/related_items.parquet, and nothing is returned.
    """
    prepared = open_prepared(config.workdir)
    vectors = load_embeddings(config.workdir, prepared)
    search = open_search(config, vectors, threads_of(config))
    if items:
        return related.nearest(config, items, prepared, vectors, search)
    if config.evaluate.query:
        return related.print_neighbors(config, prepared, vectors, search)
    related.write_related(config, prepared, vectors, search)
    return {}


def index(config: Config) -> dict[str, Any]:
    """Builds and measures approximate indexes of the embeddings: WORKDIR/index."""
    vectors = load_embeddings(config.workdir, open_prepared(config.workdir))
    return build_indexes(config, vectors, threads_of(config))


def recommend(config: Config) -> dict[str, Any] | None:
    """Shows, writes or scores items for collections; see recommend/recommend.py."""
    prepared = open_prepared(config.workdir)
    vectors = load_embeddings(config.workdir, prepared)

    def validation() -> Validation | None:
        held = split_of(config, prepared)
        if len(held.collections) == 0:
            return None
        logging.info("recommend: embedding without the withheld collections, to choose settings")
        clean, _ = embed_over(config, prepared, held.train_graph, held)
        items = clean[: prepared.graph.num_items]
        return validation_users(prepared.graph, held, items, config.seed)

    threads = threads_of(config)
    search = open_search(config, vectors, threads)
    return recommending.recommend(config, prepared, vectors, threads, validation, search)


def graph_tables(config: Config) -> dict[str, Any]:
    """Clean, pruned, numbered edges and neighbor lists by Spark: WORKDIR/graph_tables."""
    return write_graph_tables(config)


def split(config: Config) -> dict[str, Any]:
    """Train and eval tables from one edge table, into WORKDIR/split."""
    return split_tables.split(config)


def ablate(config: Config) -> dict[str, Any]:
    """Variants of the settings trained and compared: WORKDIR/ablate.json and tables."""
    # A wrong name is told before the data is prepared.
    ablation.chosen_variants(config.ablate.ablate_variants)
    prepared = prepare(config)
    held = split_of(config, prepared)

    def embeddings(variant: Config, graph: Graph) -> tuple[np.ndarray, dict[str, Any]]:
        train(variant)
        raise_if_stopped()
        vectors, trained = embed_over(variant, prepared, graph, held)
        items = vectors[: prepared.graph.num_items]
        return items, {"checkpoint_step": trained.step, "cold_start_bias": trained.offset}

    return ablation.ablate(config, prepared, held, embeddings)


def doctor(config: Config) -> dict[str, Any]:
    """What is odd about the inputs, and what a run of them costs: WORKDIR/doctor.json."""
    return examine(config)


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


def serve(config: Config) -> None:
    """Neighbors over HTTP, and the explorer, until a signal stops it."""
    server.require()
    # The framework takes a while to load, and is an extra.
    from pinsage_jax.serving.app import make_app
    from pinsage_jax.serving.service import Service

    prepared = open_prepared(config.workdir)
    vectors = load_embeddings(config.workdir, prepared)
    index = open_search(config, vectors, threads=1)
    # A taken port is told before the model is loaded.
    listener = server.bound(config.serve.serve_host, config.serve.serve_port)
    source = exported_source(config, prepared.graph.num_items)
    new_items = open_new_items(source.config, prepared) if source.trained else None
    if new_items is not None:
        new_items.warm_up()
    service = Service(source, prepared, vectors, index, new_items)
    # Requests run beside each other; products of several threads each would be in their way.
    with threadpool_limits(1, "blas"):
        server.run(make_app(service, threads_of(config)), listener, stop_requested)


def pipeline(config: Config) -> dict[str, Any]:
    """prepare, train, embed, evaluate, report; skips what is there for the same settings."""
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
    result = _saved_evaluation(config)
    if result is None:
        with costs.stage("evaluate"):
            result = evaluate(config)
    else:
        logging.info("evaluate: %s/%s is up to date", config.workdir, evaluation.EVAL_FILE)
        print(evaluation_tables(result))
    if figures.available():
        raise_if_stopped()
        with costs.stage("report"):
            report(config)
    else:
        logging.info("no report: it needs matplotlib (pip install 'pinsage-jax[report]')")
    if outcome.pairs:
        # A run that found everything done would overwrite what it had cost.
        costs.save(config.workdir)
    logging.info("this run cost %s", costs.summary())
    return result
