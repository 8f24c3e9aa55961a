"""Nearest neighbors of an item by three methods side by side: PinSage, content and the walk.

The report and the explorer show them.  All three methods search the whole catalog exactly,
and none lists the item itself.

  Q queries, N items, D input features, Z embedding dimensions, k neighbors
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core.progress import Progress
from pinsage_jax.evaluation.baselines import WALK_FACTOR, Content, query_block_size
from pinsage_jax.evaluation.evaluate import OrderedLists
from pinsage_jax.retrieval.online import ExactSearch, best_of_scores
from pinsage_jax.retrieval.topk import top_k
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts

# The methods in display order, and the meaning of their scores.
METHODS = {
    "PinSage": "inner products of embeddings",
    "Content": "cosine similarities of the raw features",
    "Walk": "visit counts of random walks from the item",
}

# Up to this many queries are searched on the host, without compilation.
_MAX_HOST_QUERIES = 4
# What the scores of PinSage's lists are where another order than the vectors' was chosen.
RANKED_BY = {
    "ranker": "log-odds of the ranker, fitted on validation pairs, that two items belong together",
    "walk": "expected visits of random walks from the item",
    "steered": "expected visits of walks that prefer similar content",
    "content": "cosine similarities of the content",
}
_RANKED_QUERIES = 1024


class NeighborsByMethod:
    """Finds nearest neighbors in one catalog by each of METHODS for which it has the data."""

    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        embeddings: np.ndarray,
        threads: int,
        ranker: OrderedLists | None = None,
    ):
        """Takes the embeddings float32 [N, Z], and what orders PinSage's lists instead of them."""
        self._ranker = ranker
        self._config, self._prepared, self._embeddings = config, prepared, embeddings
        self._threads = threads
        self._content = Content(prepared.features) if prepared.features.shape[1] else None
        self._tables = WalkTables(prepared.graph) if prepared.graph.num_edges else None

    def neighbors(
        self, method: str, items: np.ndarray, k: int, quiet: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the k nearest neighbors of each item by one method.

        Args:
          method: one of METHODS.
          items: int [Q], rows of the query items.
          k: number of neighbors.
          quiet: whether to show no progress bar.

        Returns:
          ids int32 [Q, k], padded with -1, and scores float32 [Q, k].  Content and the walk
          list only items with a score above 0.
        """
        items = np.asarray(items, np.int32)
        if method == "PinSage" and self._ranker is not None:
            return self._by_ranker(self._ranker, items, k, quiet)
        if method == "PinSage":
            queries = self._embeddings[items]
            if len(items) <= _MAX_HOST_QUERIES:
                return ExactSearch(self._embeddings).top_k(queries, k, items)
            return top_k(queries, self._embeddings, k, items)
        if method == "Walk":
            return self._walk(items, k)
        ids = np.full((len(items), k), -1, np.int32)
        scores = np.full((len(items), k), -np.inf, np.float32)
        if self._content is None:
            return ids, scores
        size = query_block_size(self._prepared.graph.num_items)
        with Progress(len(items), "item", "content neighbors", quiet=quiet) as progress:
            for start in range(0, len(items), size):
                part = items[start : start + size]
                found = best_of_scores(self._content.scores(part), part, k)
                ids[start : start + size], scores[start : start + size] = found
                progress.update(len(part))
        ids[scores <= 0] = -1
        return ids, scores

    def _by_ranker(
        self, ranker: OrderedLists, items: np.ndarray, k: int, quiet: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        with Progress(len(items), "item", "related items", quiet=quiet) as progress:
            for start in range(0, len(items), _RANKED_QUERIES):
                part = items[start : start + _RANKED_QUERIES]
                parts.append(ranker.top_k(self._embeddings[part], k, part))
                progress.update(len(part))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def description(self, method: str) -> str:
        """What the scores of a method are."""
        if method == "PinSage" and self._ranker is not None:
            return RANKED_BY.get(self._ranker.by, f"scores by {self._ranker.by}")
        return METHODS[method]

    def _walk(self, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self._tables is None:
            return np.full((len(items), k), -1, np.int32), np.zeros((len(items), k), np.float32)
        # The baseline lists items, even where the model also pools over collections.
        sampling = dataclasses.replace(
            self._config.sampling,
            neighborhood="items",
            num_neighbors=k,
            num_walks=WALK_FACTOR * self._config.sampling.num_walks,
        )
        found = visit_counts(
            self._tables, items, sampling, seed=self._config.seed, threads=self._threads
        )
        return found.ids, found.counts.astype(np.float32)

    def reason_if_empty(self, method: str, degree: int) -> str:
        """Why a method lists no neighbor of an item in `degree` collections, as a sentence."""
        if method == "PinSage":
            return "The catalog has no other item."
        if method == "Content":
            if self._content is None:
                return "The items have no features."
            return "No other item has similar features."
        if degree == 0:
            return "The item has no edges, so no walk leaves it."
        return "Walks from the item reach no other item."
