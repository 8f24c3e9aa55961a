"""The stages that search the embeddings, or hand them to what does: neighbors, index, export."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from pinsage_jax.catalog.additions import Additions
from pinsage_jax.catalog.extended import with_additions
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.config.tools import HUB, NO_STORE
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.tables import Table, open_table
from pinsage_jax.export.reader import load_rows
from pinsage_jax.listing.rules import read_ids
from pinsage_jax.ranking.saved_ranker import (
    RANKER_FILE,
    carry_ranker,
    open_ranker,
    ranker_is_current,
    write_ranker,
)
from pinsage_jax.retrieval import neighbors as related
from pinsage_jax.retrieval.neighbors import Related
from pinsage_jax.retrieval.saved_index import open_search
from pinsage_jax.stages.runs import (
    has_popularity,
    listed_vectors,
    validation_split_of,
    weighted,
)

if TYPE_CHECKING:
    from pinsage_jax.graph.validation_split import ValidationSplit
    from pinsage_jax.ranking.ranker import Ranker
    from pinsage_jax.recommend.choice import Validation
    from pinsage_jax.stores.hub.card import Facts

# A run fits the ranker with at least so many pairs, about ten for each weight.
_LEAST_PAIRS = 200
# In larger catalogs a served list would take more than 20 ms.
_MOST_ITEMS = 150_000


def neighbors(config: Config, items: Sequence[str] = ()) -> dict[str, list[Related]]:
    """Finds the --k nearest items of each of `items`, best first.

    Without `items` it prints the neighbors of --query.  Without --query too it writes those
    of all items to WORKDIR/related_items.parquet, of --queries to neighbors.parquet, or of
    --new_items to new_neighbors.parquet, and returns nothing.  With --new_items these may be
    listed and named too.
    """
    prepared = open_prepared(config.workdir)
    exported = load_rows(config.workdir, prepared)
    queries, file = None, related.RELATED_FILE
    if config.new.new_items:
        known = len(exported)
        new_items = open_table(config.data.path(config.new.new_items), "new_items", config.data)
        new_edges = None
        if config.new.new_edges:
            new_edges = open_table(config.data.path(config.new.new_edges), "new_edges", config.data)
        prepared, exported = with_new_items(config, prepared, exported, new_items, new_edges)
        queries, file = np.arange(known, len(exported)), related.NEW_FILE
    ranker = listed_by(config, prepared, config.host_threads, exported)
    vectors = weighted(config, exported)
    search = ranker or open_search(config, vectors, config.host_threads)
    if items:
        return related.nearest(config, items, prepared, vectors, search)
    if config.evaluate.query:
        return related.print_neighbors(config, prepared, vectors, search)
    if config.evaluate.queries:
        names = read_ids(config, config.evaluate.queries, "queries")
        queries, file = related.rows_of(names, prepared, "queries"), related.QUERIES_FILE
    related.write_related(config, prepared, vectors, search, queries, file)
    return {}


def embed_new(
    config: Config, prepared: Prepared, items: Table, edges: Table | None = None
) -> tuple[Additions, np.ndarray]:
    """New items and their embeddings float32 [n, Z], as the export holds those of the catalog."""
    # Embedding needs the network; the lists of known items do not.
    from pinsage_jax.stages.checkpoint import open_new_items

    model, codec = open_new_items(config, prepared)
    additions = model.read(items, edges)
    return additions, codec.project(model.embed(additions)[0])


def with_new_items(
    config: Config,
    prepared: Prepared,
    vectors: np.ndarray,
    items: Table,
    edges: Table | None = None,
) -> tuple[Prepared, np.ndarray]:
    """The catalog and its exported vectors, with those of new items behind them."""
    additions, new = embed_new(config, prepared, items, edges)
    return with_additions(prepared, additions, items), np.concatenate([vectors, new])


def listed_by(
    config: Config, prepared: Prepared, threads: int, vectors: np.ndarray
) -> Ranker | None:
    """What orders related items by --related_by; None: a search of the vectors.

    Args:
      vectors: embeddings float32 [N, Z] over the graph of `prepared`, with their full popularity.
    """
    return open_ranker(config, prepared, vectors, has_popularity(config), threads)


def rank(config: Config) -> dict[str, Any]:
    """Fits the ranker of related items on validation pairs: WORKDIR/ranker.json."""
    prepared = open_prepared(config.workdir)
    # A workdir without an export is refused before anything is embedded.
    popularity = has_popularity(config)
    split = validation_split_of(config, prepared)
    if len(split.collections) == 0:
        raise UserError(
            "The validation split withholds no collection to fit the ranker on; set "
            "--validation_collections above 0 and train again."
        )
    return _fit_ranker(config, prepared, split, popularity)


def rank_if_worth_it(config: Config) -> None:
    """Fits the ranker after an embedding, or says in one line why not."""
    from pinsage_jax.ranking.fit import ranking_pairs

    if ranker_is_current(config):
        logging.info("rank: %s/%s is up to date", config.workdir, RANKER_FILE)
        return
    prepared = open_prepared(config.workdir)
    items, reason = prepared.graph.num_items, ""
    split = validation_split_of(config, prepared)
    if config.search.related_by not in ("auto", "ranker"):
        reason = f"--related_by={config.search.related_by} does not need it"
    elif config.retraining.beside and len(split.collections) == 0:
        # Of a refit all pairs are trained on.  With the same settings features mean the same.
        before = pathlib.Path(config.workdir).parent
        if carry_ranker(dataclasses.replace(config, workdir=str(before)), config.workdir):
            logging.info("rank: the ranker that validation fitted in %s is kept", before)
            return
        reason = f"no pair is left to fit it on, and {before} has none"
    elif items > _MOST_ITEMS:
        reason = (
            f"a list takes a comparison with each of {items} items (more than {_MOST_ITEMS}); "
            "--mode=rank fits it all the same"
        )
    elif (pairs := len(ranking_pairs(prepared.graph, split, config.seed))) < _LEAST_PAIRS:
        reason = f"validation has {pairs} pairs to fit it on, and {_LEAST_PAIRS} are needed"
    if reason:
        logging.info("rank: no ranker is fitted, so vectors order the lists: %s", reason)
        return
    _fit_ranker(config, prepared, split, has_popularity(config))


def _fit_ranker(
    config: Config, prepared: Prepared, split: ValidationSplit, popularity: bool
) -> dict[str, Any]:
    from pinsage_jax.ranking.candidates import CandidateSource
    from pinsage_jax.ranking.fit import fit_ranker
    from pinsage_jax.stages.checkpoint import match_export
    from pinsage_jax.stages.embed import embed_over

    logging.info("rank: embedding without the withheld collections")
    on_spark = config.spark.on_spark
    vectors, trained = embed_over(config, prepared, split.train_graph, split, on_spark=on_spark)
    vectors = match_export(config, trained)[1].project(vectors[: prepared.graph.num_items])
    source = CandidateSource(
        split.train_graph,
        prepared.link_rows,
        np.asarray(vectors, np.float32),
        config.sampling,
        config.host_threads,
        popularity,
    )
    model, report = fit_ranker(source, prepared.graph, split, config.seed)
    path = write_ranker(config, model, report)
    logging.info("rank: the ranker is in %s", path)
    return report


def index(config: Config) -> dict[str, Any]:
    """Builds and measures approximate indexes of the embeddings, in WORKDIR/index."""
    from pinsage_jax.retrieval.index_table import build_indexes

    vectors = load_rows(config.workdir, open_prepared(config.workdir))
    return build_indexes(config, vectors, config.host_threads)


def export(config: Config) -> dict[str, Any] | str:
    """Hands the run to others: --to, --export_model, --spark_tables, or --check of a store.

    Returns:
      What was noted of the export for a store, else of the encoder or of the tables for Spark, or
      the sentence of the check.
    """
    if config.spark.spark_tables:
        from pinsage_jax.stages.embed import write_spark_tables

        return write_spark_tables(config)
    from pinsage_jax.stores.hub.repository import upload
    from pinsage_jax.stores.writer import check_store, folder_of, version_of, write_store

    prepared = open_prepared(config.workdir)
    weight, settings = config.search.popularity_weight, config.vector_store
    vectors = listed_vectors(config, prepared)
    if settings.check:
        return check_store(config, prepared.item_columns, vectors)
    about: dict[str, Any] = {}
    if settings.export_model:
        from pinsage_jax.inference.exported_encoder import FOLDER, write_encoder
        from pinsage_jax.stages.checkpoint import open_new_items

        model, codec = open_new_items(config, prepared)
        version = version_of(config.workdir, weight)
        about = write_encoder(config.workdir, model, codec.transform, version, weight)
        logging.info("export: the encoder of new items is in %s/%s", config.workdir, FOLDER)
    if settings.to != NO_STORE:
        facts = _facts_for_card(config, prepared) if settings.to == HUB else None
        about = write_store(config, prepared.item_columns, vectors, facts)
        if settings.hub_repo:
            upload(folder_of(config), settings.hub_repo, about["model_version"])
    return about


def _facts_for_card(config: Config, prepared: Prepared) -> Facts:
    """What the model card of the hub says of the run."""
    from pinsage_jax.stages.evaluate import saved_evaluation
    from pinsage_jax.stores.hub.card import Facts
    from pinsage_jax.stores.hub.repository import model_name

    evaluation, settings = saved_evaluation(config), config.vector_store
    if evaluation is None:
        logging.warning(
            "export: the model card has no scores, for eval.json is not of these vectors and "
            "settings; run --mode=evaluate before."
        )
    if not settings.hub_license:
        logging.warning("export: the model card names no license; give --hub_license.")
    return Facts(
        model_name(settings.hub_repo, pathlib.Path(config.workdir)),
        settings.hub_license,
        prepared.manifest["counts"],
        prepared.manifest["features"]["blocks"],
        evaluation,
        settings.export_model,
    )


def recommend(config: Config) -> dict[str, Any] | None:
    """Prints, writes or evaluates recommendations; see recommend/recommend.py."""
    # Imported here so that --mode=neighbors loads neither SciPy nor the kernels.
    from pinsage_jax.recommend import recommend as recommending
    from pinsage_jax.recommend.choice import validation_users

    prepared = open_prepared(config.workdir)
    vectors = listed_vectors(config, prepared)

    def validation() -> Validation | None:
        # Only the choice of settings embeds anything; the rest needs no network.
        from pinsage_jax.stages.embed import embed_over

        split = validation_split_of(config, prepared)
        if len(split.collections) == 0:
            return None
        logging.info("recommend: embedding without the withheld collections, to choose settings")
        vectors, _ = embed_over(config, prepared, split.train_graph, split)
        items = vectors[: prepared.graph.num_items]
        return validation_users(prepared.graph, split, items, config.seed)

    threads = config.host_threads
    search = open_search(config, vectors, threads)
    return recommending.recommend(config, prepared, vectors, threads, validation, search)
