"""The stages that search the embeddings: neighbors, index and recommend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.retrieval import neighbors as related
from pinsage_jax.retrieval.neighbors import Related
from pinsage_jax.retrieval.saved_index import open_search
from pinsage_jax.stages.runs import listed_vectors, split_of

if TYPE_CHECKING:
    from pinsage_jax.recommend.choice import Validation


def neighbors(config: Config, items: Sequence[str] = ()) -> dict[str, list[Related]]:
    """Finds the --k nearest items of each of `items`, best first.

    Without `items` it prints the neighbors of --query.  Without --query too it writes those
    of all items to WORKDIR/related_items.parquet and returns nothing.
    """
    prepared = open_prepared(config.workdir)
    vectors = listed_vectors(config, prepared)
    search = open_search(config, vectors, config.host_threads)
    if items:
        return related.nearest(config, items, prepared, vectors, search)
    if config.evaluate.query:
        return related.print_neighbors(config, prepared, vectors, search)
    related.write_related(config, prepared, vectors, search)
    return {}


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
