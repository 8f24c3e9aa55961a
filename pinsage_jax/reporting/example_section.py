"""The report's examples: queries and their neighbors under PinSage, content and walk.

N items, Q queries, k neighbors
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.evaluation.evaluate import DEGREE_BUCKETS
from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.evaluation.side_by_side import METHODS, NeighborsByMethod
from pinsage_jax.reporting import page
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.space_sections import degree_bucket

_PER_BUCKET = 2
_MOST_NEIGHBORS = 10


def choose_queries(degree: np.ndarray, seed: int, each: int = _PER_BUCKET) -> np.ndarray:
    """Random items, int64, up to `each` from every degree bucket in turn.

    Args:
      degree: int [N].
    """
    bucket = degree_bucket(degree)
    chosen = []
    for place, (name, _) in enumerate(DEGREE_BUCKETS):
        members = np.flatnonzero(bucket == place)
        generator = keyed_generator(seed, f"report examples {name}")
        chosen.append(generator.choice(members, min(each, len(members)), replace=False))
    return np.concatenate(chosen).astype(np.int64)


def examples(config: Config, prepared: Prepared, embeddings: np.ndarray, threads: int) -> Html:
    """One block per query: who it is, and three lists."""
    graph = prepared.graph
    degree = graph.degree()[: graph.num_items]
    queries = choose_queries(degree, config.seed)
    k = min(config.evaluate.neighbors_listed, _MOST_NEIGHBORS)
    if len(queries) == 0:
        return page.note("There are no items.")
    methods = NeighborsByMethod(config, prepared, embeddings, threads)
    found = {name: methods.neighbors(name, queries, k) for name in METHODS}
    blocks = []
    for place, query in enumerate(queries):
        lists = []
        for name, (ids, scores) in found.items():
            kept = ids[place] >= 0
            told = [_shown_score(name, score) for score in scores[place, kept]]
            why = methods.reason_if_empty(name, degree[query])
            lists.append(_list(name, prepared, query, ids[place, kept], told, why))
        edges = "1 edge" if degree[query] == 1 else f"{degree[query]:,} edges"
        heading = page.element("h3", *_shown(prepared, query, edges))
        blocks += [heading, page.element("div", *lists, class_="lists")]
    lead = page.note(
        f"Queries are drawn at random with the run's seed, {_PER_BUCKET} from each range of "
        "degrees that has so many. PinSage lists inner products, content cosines of the raw "
        "features, walk how often random walks from the query visit an item. Below each item is "
        "the number of collections that it shares with the query."
    )
    titles = []
    if prepared.titles is None:
        titles.append(page.note("The items have no titles, so their ids are shown."))
    return page.join((lead, *titles, *blocks))


def _shown_score(method: str, score: float) -> str:
    """A score as the lists show it."""
    return f"{score:,.0f} visits" if method == "Walk" else f"{score:.3f}"


def _list(
    method: str,
    prepared: Prepared,
    query: int,
    items: np.ndarray,
    told: list[str],
    reason_if_empty: str,
) -> Html:
    if len(items) == 0:
        return page.element("div", page.element("h4", method), page.note(reason_if_empty))
    own = prepared.graph.neighbors(query)
    entries = []
    for item, score in zip(items, told):
        shared = len(np.intersect1d(own, prepared.graph.neighbors(item), assume_unique=True))
        about = f"{score}, {shared:,} shared" if shared else score
        entries.append(page.element("li", *_shown(prepared, item, about)))
    return page.element("div", page.element("h4", method), page.element("ol", *entries))


def _shown(prepared: Prepared, item: int, about: str) -> tuple[Html, Html]:
    """The title, and in small print the id and `about`; the id first where there is no title."""
    name = prepared.item_ids.names(np.array([item]))[0].as_py()
    title = None
    if prepared.titles is not None:
        title = prepared.titles.take(pa.array([int(item)]))[0].as_py()
    if title is None or not title.strip():
        return page.foreign(name), page.element("small", about)
    small = page.element("small", page.foreign(name), f" \u00b7 {about}")
    return page.foreign(title), small
