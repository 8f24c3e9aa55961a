"""The stage that serves a finished run over HTTP."""

from __future__ import annotations

from threadpoolctl import threadpool_limits

from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.retrieval.popularity import weigh_popularity
from pinsage_jax.retrieval.saved_index import open_search
from pinsage_jax.serving import server
from pinsage_jax.stages.checkpoint import exported_source, open_new_items
from pinsage_jax.stages.runs import has_popularity, stop_requested
from pinsage_jax.stages.search import listed_by


def serve(config: Config) -> None:
    """Serves neighbors and the explorer over HTTP until a signal stops it."""
    server.require()
    # The framework takes a while to load, and is an extra.
    from pinsage_jax.serving.app import make_app
    from pinsage_jax.serving.service import Service

    prepared = open_prepared(config.workdir)
    exported = load_embeddings(config.workdir, prepared)
    vectors = weigh_popularity(exported, config.search.popularity_weight, has_popularity(config))
    index = open_search(config, vectors, threads=1)
    ranker = listed_by(config, prepared, 1, exported)
    # A port that is in use is reported before the model is loaded.
    listener = server.listen(config.serve.serve_host, config.serve.serve_port)
    source = exported_source(config, prepared.graph.num_items)
    new_items = open_new_items(source.config, prepared) if source.trained else None
    if new_items is not None:
        new_items[0].warm_up()
    service = Service(source, prepared, vectors, index, new_items, ranker)
    # Requests run in parallel, so the matrix products of each use a single thread.
    with threadpool_limits(1, "blas"):
        server.run(make_app(service, config.host_threads), listener, stop_requested)
