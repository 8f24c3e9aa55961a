"""An item's neighbors by three methods side by side: PinSage, content and the walk.

For pages that people read.  All three are exact over the whole catalog, and none
lists the item itself.

  Q queries, N items, D input features, Z embedding dimensions, k neighbors
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core.progress import Progress
from pinsage_jax.evaluation.baselines import WALK_FACTOR, Content, queries_at_once
from pinsage_jax.retrieval.online import ExactSearch, best_of_scores
from pinsage_jax.retrieval.topk import top_k
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts

# In the order in which they are shown, with what their scores are.
METHODS = {
    "PinSage": "inner products of embeddings",
    "Content": "cosines of the raw features",
    "Walk": "visits of random walks from the item",
}

# Up to so many queries are searched for one by one.
_FEW = 4


class SideBySide:
    """Finds neighbors of items of one catalog by every method it has the data for."""

    def __init__(self, config: Config, prepared: Prepared, embeddings: np.ndarray, threads: int):
        """Takes embeddings float32 [N, Z]; nothing is copied."""
        self._config, self._prepared, self._embeddings = config, prepared, embeddings
        self._threads = threads
        self._content = Content(prepared.features) if prepared.features.shape[1] else None
        self._tables = WalkTables(prepared.graph) if prepared.graph.num_edges else None

    def lists(
        self, method: str, items: np.ndarray, k: int, quiet: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best neighbors of each item by one of METHODS.

        Args:
          items: int [Q].

        Returns:
          ids int32 [Q, k], padded with -1, and scores float32 [Q, k].  Content and the
          walk list only items with a score above 0.
        """
        items = np.asarray(items, np.int32)
        if method == "PinSage":
            queries = self._embeddings[items]
            if len(items) <= _FEW:
                return ExactSearch(self._embeddings).top_k(queries, k, items)
            return top_k(queries, self._embeddings, k, items)
        if method == "Walk":
            return self._walk(items, k)
        ids = np.full((len(items), k), -1, np.int32)
        scores = np.full((len(items), k), -np.inf, np.float32)
        if self._content is None:
            return ids, scores
        size = queries_at_once(self._prepared.graph.num_items)
        with Progress(len(items), "item", "content neighbors", quiet=quiet) as progress:
            for start in range(0, len(items), size):
                part = items[start : start + size]
                found = best_of_scores(self._content.scores(part), part, k)
                ids[start : start + size], scores[start : start + size] = found
                progress.update(len(part))
        ids[scores <= 0] = -1
        return ids, scores

    def _walk(self, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self._tables is None:
            return np.full((len(items), k), -1, np.int32), np.zeros((len(items), k), np.float32)
        sampling = self._config.sampling
        found = visit_counts(
            self._tables,
            items,
            # The walk as a recommender lists items, whatever the model pools over.
            dataclasses.replace(sampling, neighborhood="items"),
            seed=self._config.seed,
            threads=self._threads,
            num_neighbors=k,
            num_walks=WALK_FACTOR * sampling.num_walks,
        )
        return found.ids, found.counts.astype(np.float32)

    def why_empty(self, method: str, degree: int) -> str:
        """A sentence for the empty list of an item in `degree` collections."""
        if method == "PinSage":
            return "There is no other item."
        if method == "Content":
            if self._content is None:
                return "The items have no features."
            return "Its features are like those of no other item."
        if degree == 0:
            return "It has no edges, so no walk leaves it."
        return "Walks from it reach no other item."
