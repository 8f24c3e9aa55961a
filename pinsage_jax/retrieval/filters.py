"""What may be listed: filters and diversity over candidates that come best first.

  Q queries, C candidates, k listed

Filters ask for more candidates until k are left or the catalog has no more, so that
over exact search the result is that of filtering the whole ranking.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pinsage_jax.config.search import SearchConfig
from pinsage_jax.graph.csr import Graph

# rows int64 [q] of the queries, candidates wanted -> ids int32 [q, C] and scores, best
# first, -1 and -inf padded.
Fetch = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

# Candidates among which diversity chooses, in units of k.
_POOL = 5
_FEWEST_POOLED = 50
_GROWTH = 4


class Filters:
    """Filters over one catalog.

    Attributes:
      active: whether anything is asked for beside the best k.
    """

    def __init__(self, config: SearchConfig, graph: Graph, vectors: np.ndarray, seen: bool):
        """Takes vectors float32 [N, d] of the items, and whether `seen` is to be left out."""
        self._config, self._graph, self._vectors, self._seen = config, graph, vectors, seen
        self._degree = graph.degree()[: graph.num_items]
        self.active = bool(
            seen or config.one_per_collection or config.min_degree or config.diversity
        )

    def neighbors_seen(self, item: int) -> np.ndarray:
        """Items that share a collection with `item`, int32, ascending."""
        graph = self._graph
        parts = [graph.neighbors(collection) for collection in graph.neighbors(item)]
        return np.unique(np.concatenate([np.empty(0, np.int32), *parts]))

    def best(
        self, fetch: Fetch, queries: int, k: int, seen_of: Callable[[int], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of every query that may be listed.

        Args:
          fetch: gives candidates of some queries.
          queries: Q.
          seen_of: items that a query has seen, if those are left out.

        Returns:
          ids int32 [Q, k] and scores float32 [Q, k], -1 and -inf padded; by score, or in
          the order of choosing with diversity.
        """
        if not self.active:
            return fetch(np.arange(queries), k)
        ids = np.full((queries, k), -1, np.int32)
        scores = np.full((queries, k), -np.inf, np.float32)
        pending, count = np.arange(queries), len(self._degree)
        depth = max(_POOL * k, _FEWEST_POOLED)
        while len(pending):
            depth = min(depth, count)
            found_ids, found_scores = fetch(pending, depth)
            short = []
            for row, near, values in zip(pending, found_ids, found_scores):
                held = near >= 0
                seen = seen_of(int(row)) if self._seen else None
                chosen, worth, enough = self._pick(near[held], values[held], seen, k)
                ids[row], scores[row] = -1, -np.inf
                ids[row, : len(chosen)], scores[row, : len(chosen)] = chosen, worth
                # An index may return fewer than it was asked for and more when asked again.
                if not enough and depth < count:
                    short.append(row)
            pending, depth = np.array(short, np.int64), _GROWTH * depth
        return ids, scores

    def _pick(
        self, ids: np.ndarray, scores: np.ndarray, seen: np.ndarray | None, k: int
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Of candidates best first: the chosen, their scores, whether more would change nothing."""
        kept = self._degree[ids] >= self._config.min_degree
        if seen is not None:
            kept &= ~np.isin(ids, seen)
        ids, scores = ids[kept], scores[kept]
        pool = max(_POOL * k, _FEWEST_POOLED) if self._config.diversity else len(ids)
        whole = len(ids) >= pool
        places = self._diverse(ids[:pool], scores[:pool], k)
        return ids[places], scores[places], len(places) == k and whole

    def _diverse(self, ids: np.ndarray, scores: np.ndarray, k: int) -> list[int]:
        """Places of the chosen, by maximal marginal relevance (Carbonell and Goldstein 1998).

        A candidate is worth (1 - diversity) times its score, scaled to [0, 1] over the
        candidates, less diversity times its greatest cosine to those chosen.
        """
        weight, chosen = self._config.diversity, list[int]()
        free = np.ones(len(ids), np.bool_)
        worth = -np.arange(len(ids), dtype=np.float64)  # by rank
        closest = np.zeros(len(ids))
        if weight and len(ids):
            spread = float(scores[0] - scores[-1]) or 1.0
            worth = (1.0 - weight) * (scores - scores[-1]).astype(np.float64) / spread
            rows = np.asarray(self._vectors[ids], np.float32)
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            closest -= 1.0
        taken: set[int] = set()
        while len(chosen) < k and free.any():
            value = worth - weight * closest if chosen else worth
            place = int(np.argmax(np.where(free, value, -np.inf)))
            free[place] = False
            if self._config.one_per_collection:
                held = set(self._graph.neighbors(int(ids[place])).tolist())
                if held & taken:
                    continue
                taken |= held
            chosen.append(place)
            if weight:
                closest = np.maximum(closest, rows @ rows[place])
        return chosen
