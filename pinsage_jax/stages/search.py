"""The stages that search the embeddings: neighbors, index and recommend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from pinsage_jax.catalog.extended import with_additions
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.data.tables import open_table
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.listing.rules import read_ids
from pinsage_jax.retrieval import neighbors as related
from pinsage_jax.retrieval.neighbors import Related
from pinsage_jax.retrieval.popularity import weigh_popularity
from pinsage_jax.retrieval.saved_index import open_search
from pinsage_jax.stages.runs import has_popularity, listed_vectors, split_of

if TYPE_CHECKING:
    from pinsage_jax.recommend.choice import Validation


def neighbors(config: Config, items: Sequence[str] = ()) -> dict[str, list[Related]]:
    """Finds the --k nearest items of each of `items`, best first.

    Without `items` it prints the neighbors of --query.  Without --query too it writes those
    of all items to WORKDIR/related_items.parquet, of --queries to neighbors.parquet, or of
    --new_items to new_neighbors.parquet, and returns nothing.  With --new_items these may be
    listed and named too.
    """
    prepared = open_prepared(config.workdir)
    vectors = listed_vectors(config, prepared)
    search = open_search(config, vectors, config.host_threads)
    queries, file = None, related.RELATED_FILE
    if config.new.new_items:
        known = len(vectors)
        prepared, vectors = _with_new_items(config, prepared, vectors)
        queries, file = np.arange(known, len(vectors)), related.NEW_FILE
    if items:
        return related.nearest(config, items, prepared, vectors, search)
    if config.evaluate.query:
        return related.print_neighbors(config, prepared, vectors, search)
    if config.evaluate.queries:
        names = read_ids(config, config.evaluate.queries, "queries")
        queries, file = related.rows_of(names, prepared, "queries"), related.QUERIES_FILE
    related.write_related(config, prepared, vectors, search, queries, file)
    return {}


def _with_new_items(
    config: Config, prepared: Prepared, vectors: np.ndarray
) -> tuple[Prepared, np.ndarray]:
    """The catalog and its vectors with those of --new_items behind them."""
    # Embedding needs the network; the lists of known items do not.
    from pinsage_jax.stages.checkpoint import open_new_items

    model, codec = open_new_items(config, prepared)
    items = open_table(config.data.path(config.new.new_items), "new_items", config.data)
    edges = None
    if config.new.new_edges:
        edges = open_table(config.data.path(config.new.new_edges), "new_edges", config.data)
    additions = model.read(items, edges)
    new = codec.project(model.embed(additions)[0])
    new = weigh_popularity(new, config.search.popularity_weight, has_popularity(config))
    return with_additions(prepared, additions, items), np.concatenate([vectors, new])


def index(config: Config) -> dict[str, Any]:
    """Builds and measures approximate indexes of the embeddings, in WORKDIR/index."""
    from pinsage_jax.retrieval.index_table import build_indexes

    vectors = load_embeddings(config.workdir, open_prepared(config.workdir))
    return build_indexes(config, vectors, config.host_threads)


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

        split = split_of(config, prepared)
        if len(split.collections) == 0:
            return None
        logging.info("recommend: embedding without the withheld collections, to choose settings")
        vectors, _ = embed_over(config, prepared, split.train_graph, split)
        items = vectors[: prepared.graph.num_items]
        return validation_users(prepared.graph, split, items, config.seed)

    threads = config.host_threads
    search = open_search(config, vectors, threads)
    return recommending.recommend(config, prepared, vectors, threads, validation, search)
