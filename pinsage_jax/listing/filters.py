"""Filters and diversity reranking of search results.

  Q queries, C candidates, k results

A filter fetches ever more candidates of a query until k pass or the catalog is exhausted,
so that with exact search the result equals that of filtering the whole ranking.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pinsage_jax.config.search import SearchConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.listing.rules import Rules

# (query rows int64 [q], number of candidates C) -> ids int32 [q, C] and scores float32
# [q, C], best first, padded with -1 and -inf.
Fetch = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

# Diversity chooses among the best POOL * k candidates.
_POOL = 5
_MIN_POOL = 50
_GROWTH = 4


class Filters:
    """Filters over one catalog.

    Attributes:
      rules: which candidates a search may return; None: all.  They are the search's to apply,
        except that each value of a column is listed once.
      active: whether any filter or diversity is on; otherwise the result is the plain top k.
    """

    def __init__(
        self,
        config: SearchConfig,
        graph: Graph,
        vectors: np.ndarray,
        exclude_seen: bool,
        rules: Rules | None = None,
    ):
        """Takes the items' vectors float32 [N, d] and whether items already seen are excluded."""
        self.rules = rules
        self._values = None if rules is None else rules.values
        self._config, self._graph, self._vectors = config, graph, vectors
        self._exclude_seen = exclude_seen
        self._degree = graph.degree()[: graph.num_items]
        self.active = bool(
            exclude_seen or config.one_per_collection or config.min_degree or config.diversity
        ) or (self._values is not None)

    def items_sharing_a_collection(self, item: int) -> np.ndarray:
        """Items that share a collection with `item`, int32, ascending."""
        graph = self._graph
        parts = [graph.neighbors(collection) for collection in graph.neighbors(item)]
        return np.unique(np.concatenate([np.empty(0, np.int32), *parts]))

    def top_k(
        self,
        fetch: Fetch,
        queries: int,
        k: int,
        seen_of: Callable[[int], np.ndarray],
        exact: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best candidates of every query that pass the filters.

        Args:
          fetch: returns a number of candidates for some of the queries.
          queries: Q, the number of queries.
          seen_of: items that a query has seen; only called where those are excluded.
          exact: whether `fetch` returns fewer candidates than requested only where there are
            no more.

        Returns:
          ids int32 [Q, k] and scores float32 [Q, k], padded with -1 and -inf; in order of
          score, or with diversity in the order in which they were chosen.
        """
        if not self.active:
            return fetch(np.arange(queries), k)
        ids = np.full((queries, k), -1, np.int32)
        scores = np.full((queries, k), -np.inf, np.float32)
        pending, count = np.arange(queries), len(self._degree)
        depth = max(_POOL * k, _MIN_POOL)
        while len(pending):
            depth = min(depth, count)
            found_ids, found_scores = fetch(pending, depth)
            incomplete = []
            for row, row_ids, row_scores in zip(pending, found_ids, found_scores):
                valid = row_ids >= 0
                seen = seen_of(int(row)) if self._exclude_seen else None
                chosen, chosen_scores, complete = self._select(
                    row_ids[valid], row_scores[valid], seen, k
                )
                ids[row], scores[row] = -1, -np.inf
                ids[row, : len(chosen)], scores[row, : len(chosen)] = chosen, chosen_scores
                # Not `len(found) < depth`: an approximate index may return fewer candidates
                # than requested and still find more at a greater depth.
                more = depth < count and not (exact and valid.sum() < depth)
                if not complete and more:
                    incomplete.append(row)
            pending, depth = np.array(incomplete, np.int64), _GROWTH * depth
        return ids, scores

    def _select(
        self, ids: np.ndarray, scores: np.ndarray, seen: np.ndarray | None, k: int
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Filters candidates that come best first.

        Returns:
          The chosen ids and their scores, and whether they would stay the same if more
          candidates were fetched.
        """
        kept = self._degree[ids] >= self._config.min_degree
        if seen is not None:
            kept &= ~np.isin(ids, seen)
        ids, scores = ids[kept], scores[kept]
        pool = max(_POOL * k, _MIN_POOL) if self._config.diversity else len(ids)
        pool_is_full = len(ids) >= pool
        chosen = self._diversify(ids[:pool], scores[:pool], k)
        return ids[chosen], scores[chosen], len(chosen) == k and pool_is_full

    def _diversify(self, ids: np.ndarray, scores: np.ndarray, k: int) -> list[int]:
        """Chooses positions by maximal marginal relevance (Carbonell and Goldstein 1998).

        A candidate's marginal relevance is (1 - diversity) times its score, scaled to [0, 1]
        over the candidates, minus diversity times its largest cosine similarity to a
        candidate already chosen.
        """
        weight, chosen = self._config.diversity, list[int]()
        free = np.ones(len(ids), np.bool_)
        relevance = -np.arange(len(ids), dtype=np.float64)  # by rank
        similarity = np.zeros(len(ids))
        if weight and len(ids):
            spread = float(scores[0] - scores[-1]) or 1.0
            relevance = (1.0 - weight) * (scores - scores[-1]).astype(np.float64) / spread
            rows = np.asarray(self._vectors[ids], np.float32)
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            similarity -= 1.0
        used_collections: set[int] = set()
        used_values: set[int] = set()
        while len(chosen) < k and free.any():
            marginal = relevance - weight * similarity if chosen else relevance
            best = int(np.argmax(np.where(free, marginal, -np.inf)))
            free[best] = False
            value = -1 if self._values is None else int(self._values[ids[best]])
            if value in used_values:
                continue
            if self._config.one_per_collection:
                collections = set(self._graph.neighbors(int(ids[best])).tolist())
                if collections & used_collections:
                    continue
                used_collections |= collections
            if value >= 0:
                used_values.add(value)
            chosen.append(best)
            if weight:
                # Not by a BLAS, whose kernels may raise NumPy's warning for values that they drop.
                products = np.einsum("ij,j->i", rows, rows[best])
                similarity = np.maximum(similarity, products)
        return chosen
