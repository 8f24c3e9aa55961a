"""The report's examples: queries and their neighbours under PinSage, content and walk.

N items, Q queries, k neighbours
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pinsage_jax.config import Config
from pinsage_jax.graph.prepare import Prepared
from pinsage_jax.reporting import page
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.space_sections import degree_bucket
from pinsage_jax.retrieval.baselines import Content, Walk
from pinsage_jax.retrieval.evaluate import DEGREE_BUCKETS
from pinsage_jax.retrieval.metrics import keyed_generator
from pinsage_jax.retrieval.topk import top_k

_PER_BUCKET = 2
_MOST_NEIGHBOURS = 10


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


def best_scored(scores: np.ndarray, query: int, k: int) -> np.ndarray:
    """The k best items with a score above 0, int64, equal scores by lower id.

    Args:
      scores: float [N]; the query itself is no candidate.
    """
    candidates = np.flatnonzero(scores > 0)
    candidates = candidates[candidates != query]
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def examples(config: Config, prepared: Prepared, embeddings: np.ndarray, threads: int) -> Html:
    """One block per query: who it is, and three lists."""
    graph = prepared.graph
    degree = graph.degree()[: graph.num_items]
    queries = choose_queries(degree, config.seed)
    k = min(config.evaluate.k, _MOST_NEIGHBOURS)
    if len(queries) == 0:
        return page.note("There are no items.")
    near, near_scores = top_k(embeddings[queries], embeddings, k, queries)
    content = walk = None
    if prepared.features.shape[1]:
        content = Content(prepared.features).scores(queries)
    if graph.num_edges:
        walk = Walk(graph, config.sampling, config.seed, threads).scores(queries)
    blocks = []
    for place, query in enumerate(queries):
        found = near[place] >= 0
        lists = [_list("PinSage", prepared, query, near[place, found],
                       [f"{score:.3f}" for score in near_scores[place, found]])]  # fmt: skip
        if content is None:
            lists.append(_nothing("Content", "The items have no features."))
        else:
            best = best_scored(content[place], query, k)
            told = [f"{score:.3f}" for score in content[place, best]]
            empty = "Its features are like those of no other item."
            lists.append(_list("Content", prepared, query, best, told, empty))
        best = np.empty(0, np.int64) if walk is None else best_scored(walk[place], query, k)
        told = [] if walk is None else [f"{score:,.0f} visits" for score in walk[place, best]]
        empty = (
            "It has no edges, so no walk leaves it."
            if degree[query] == 0
            else "Walks from it reach no other item."
        )
        lists.append(_list("Walk", prepared, query, best, told, empty))
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


def _list(
    method: str,
    prepared: Prepared,
    query: int,
    items: np.ndarray,
    told: list[str],
    empty: str = "There is no other item.",
) -> Html:
    if len(items) == 0:
        return _nothing(method, empty)
    own = prepared.graph.neighbours(query)
    entries = []
    for item, score in zip(items, told):
        shared = len(np.intersect1d(own, prepared.graph.neighbours(item), assume_unique=True))
        about = f"{score}, {shared:,} shared" if shared else score
        entries.append(page.element("li", *_shown(prepared, item, about)))
    return page.element("div", page.element("h4", method), page.element("ol", *entries))


def _nothing(method: str, why: str) -> Html:
    return page.element("div", page.element("h4", method), page.note(why))


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
