"""Section of example queries in the report, with neighbors by PinSage, content and the walk.

N items, Q queries, k neighbors
"""

from __future__ import annotations

import urllib.parse

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.evaluation.evaluate import DEGREE_BUCKETS
from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.evaluation.side_by_side import METHODS, NeighborsByMethod
from pinsage_jax.reporting import page
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.sections.vectors import degree_bucket

_PER_BUCKET = 2
_MAX_NEIGHBORS = 10


def choose_queries(degree: np.ndarray, seed: int, each: int = _PER_BUCKET) -> np.ndarray:
    """Draws random items, up to `each` from every degree bucket in turn.

    Args:
      degree: int [N].
      seed: key of the draws.
      each: number of items per bucket.

    Returns:
      Rows int64 [Q].
    """
    bucket = degree_bucket(degree)
    chosen = []
    for number, (name, _) in enumerate(DEGREE_BUCKETS):
        members = np.flatnonzero(bucket == number)
        generator = keyed_generator(seed, f"report examples {name}")
        chosen.append(generator.choice(members, min(each, len(members)), replace=False))
    return np.concatenate(chosen).astype(np.int64)


def examples(
    config: Config, prepared: Prepared, embeddings: np.ndarray, threads: int, explorer: str = ""
) -> Html:
    """The section: per query its title, and a list of neighbors by each method.

    Args:
      embeddings: float32 [N, Z].
      threads: host threads.
      explorer: address of the explorer's page, which opens the item that follows #; "": none.
    """
    graph = prepared.graph
    degree = graph.degree()[: graph.num_items]
    queries = choose_queries(degree, config.seed)
    k = min(config.evaluate.neighbors_listed, _MAX_NEIGHBORS)
    if len(queries) == 0:
        return page.note("There are no items.")
    methods = NeighborsByMethod(config, prepared, embeddings, threads)
    found = {name: methods.neighbors(name, queries, k) for name in METHODS}
    blocks = []
    for row, query in enumerate(queries):
        lists = []
        for name, (ids, scores) in found.items():
            valid = ids[row] >= 0
            texts = [_format_score(name, score) for score in scores[row, valid]]
            reason = methods.reason_if_empty(name, degree[query])
            lists.append(_list(name, prepared, query, ids[row, valid], texts, reason))
        edges = "1 edge" if degree[query] == 1 else f"{degree[query]:,} edges"
        title, small = _format_item(prepared, query, edges)
        if explorer:
            name = prepared.item_ids.names(np.array([query]))[0].as_py()
            address = f"{explorer}#{urllib.parse.quote(name, safe='')}"
            title = page.element("a", title, href=address)
        heading = page.element("h3", title, small)
        blocks += [heading, page.element("div", *lists, class_="lists")]
    lead = page.note(
        f"Queries are drawn at random with the run's seed, up to {_PER_BUCKET} from each range of "
        "degrees. The scores are inner products of embeddings (PinSage: no probabilities; "
        "with --popularity_bias a cosine plus a popularity part around 1), cosine similarities of "
        "the raw features (Content) and visit counts of random walks from the query (Walk). Next "
        "to each score is the number of collections that the item shares with the query."
    )
    titles = []
    if prepared.titles is None:
        titles.append(page.note("The items have no titles, so their ids are shown."))
    return page.join((lead, *titles, *blocks))


def _format_score(method: str, score: float) -> str:
    return f"{score:,.0f} visits" if method == "Walk" else f"{score:.3f}"


def _list(
    method: str,
    prepared: Prepared,
    query: int,
    items: np.ndarray,
    scores: list[str],
    reason_if_empty: str,
) -> Html:
    if len(items) == 0:
        return page.element("div", page.element("h4", method), page.note(reason_if_empty))
    collections = prepared.graph.neighbors(query)
    entries = []
    for item, score in zip(items, scores):
        of_item = prepared.graph.neighbors(item)
        shared = len(np.intersect1d(collections, of_item, assume_unique=True))
        detail = f"{score}, {shared:,} shared" if shared else score
        entries.append(page.element("li", *_format_item(prepared, item, detail)))
    return page.element("div", page.element("h4", method), page.element("ol", *entries))


def _format_item(prepared: Prepared, item: int, detail: str) -> tuple[Html, Html]:
    """The title, and in small print the id and a detail; the id instead of a missing title."""
    name = prepared.item_ids.names(np.array([item]))[0].as_py()
    title = None
    if prepared.titles is not None:
        title = prepared.titles.take(pa.array([int(item)]))[0].as_py()
    if title is None or not title.strip():
        return page.user_text(name), page.element("small", detail)
    small = page.element("small", page.user_text(name), f" \u00b7 {detail}")
    return page.user_text(title), small
