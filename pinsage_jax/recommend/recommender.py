"""The recommender: top items for histories by one scoring method, over the catalog or an index.

U users, N items, Z embedding dimensions, k recommendations
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools

import numpy as np

from pinsage_jax.config.search import RecommendConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.listing.filters import Filters
from pinsage_jax.listing.rules import Rules
from pinsage_jax.recommend import multi_interest
from pinsage_jax.recommend.ann import best_of_candidates
from pinsage_jax.recommend.choice import Choice, graph_scorer
from pinsage_jax.recommend.graph_scores import GRAPH_METHODS
from pinsage_jax.recommend.scores import (
    Histories,
    Mean,
    Scan,
    Scorer,
    Shape,
    Sharpened,
    Tile,
    best_items,
)
from pinsage_jax.retrieval.ann import AnnSearch
from pinsage_jax.retrieval.ruled_search import boosted, enough_for_index

# Users whose histories are clustered before their interests are searched for together.
_CLUSTERED_USERS = 4096


class Boosted:
    """Another scorer, whose scores of an item are multiplied by a factor of that item."""

    def __init__(self, scorer: Scorer, factors: np.ndarray):
        """Takes factors above 0, float32 [N]."""
        self.name, self.max_users = scorer.name, scorer.max_users
        self._scorer, self._factors = scorer, factors

    def tile(self, histories: Histories) -> Tile:
        """Prepares a tile of the scorer; similarities below 0 are divided."""
        tile = self._scorer.tile(histories)

        def block(columns: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            similarities, scales = tile.block(columns)
            # Either there is one row for each user, or no similarity is below 0: the factor
            # of each row is that of the sum.
            return boosted(similarities, self._factors[columns]), scales

        return dataclasses.replace(tile, block=block)


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
    """Recommends items by one scoring method.

    Attributes:
      config: settings of the recommendations.
      choice: the scoring method and its hyperparameters.
      vectors: float32 [N, Z].
      degree: int [N], number of training edges of each item.
      threads: number of threads.
      half_life: in the unit of the histories' times; 0: recency does not count.
      search: an index over the vectors; None scores the whole catalog.
      filters: rules for the recommended items; None: no rules.
      exclude_history: whether items of the history are excluded.
      quiet: whether to show no progress bar.
      rules: which items may be recommended, and boosts of their scores; None: all, and none.
      graph: the training graph, and
      bases: float32 [N, D], its spectral vectors, for the choices that score by them.
      made: the scorer of another recommender that differs in its rules alone; None: a new one.
    """

    config: RecommendConfig
    choice: Choice
    vectors: np.ndarray
    degree: np.ndarray
    threads: int
    half_life: float = 0.0
    search: AnnSearch | None = None
    filters: Filters | None = None
    exclude_history: bool = True
    quiet: bool = False
    rules: Rules | None = None
    graph: Graph | None = None
    bases: np.ndarray | None = None
    made: Scorer | None = None

    def top_k(self, histories: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Recommends k items to each user.

        Returns:
          ids int32 [U, k] and scores float32 [U, k], best first, padded with -1 and -inf.
        """
        if self.filters is None:
            return self._unfiltered(histories, k)
        return self.filters.top_k(
            lambda users, depth: self._unfiltered(histories.select(users), depth),
            len(histories), k, histories.of, self.search is None or self._by_graph,
        )  # fmt: skip

    @property
    def _by_graph(self) -> bool:
        return self.choice.by in GRAPH_METHODS

    @functools.cached_property
    def scorer(self) -> Scorer:
        """What scores histories, or single items of them for interests."""
        choice = self.choice
        if self.made is not None:
            return self.made
        if self._by_graph:
            assert self.graph is not None and self.bases is not None
            return graph_scorer(choice, self.graph, self.bases, self.vectors, self.threads)
        if choice.by in ("mean", "interests"):
            return Mean(self.vectors)
        return Sharpened(
            self.vectors, self.degree, Shape(choice.by, choice.value), choice.popularity,
            choice.rarity, self.threads,
        )  # fmt: skip

    def _unfiltered(self, histories: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self.choice.by == "interests":
            return self._by_interests(histories, k)
        return self._best(self.scorer, histories, k, self._excluded(histories), quiet=self.quiet)

    def _excluded(self, histories: Histories) -> Histories:
        """The items that must not be recommended to each user."""
        if self.exclude_history:
            return histories
        return Histories(np.zeros_like(histories.indptr), np.empty(0, np.int32))

    def _best(
        self, scorer: Scorer, histories: Histories, k: int, exclude: Histories, quiet: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items by a scorer, of the whole catalog or of the index's candidates."""
        allowed = None
        if self.rules is not None:
            if (factors := self.rules.factors(0)) is not None:
                scorer = Boosted(scorer, factors)
            allowed = self.rules.allowed(0)

        def exact(some: Histories, not_listed: Histories) -> tuple[np.ndarray, np.ndarray]:
            return best_items(
                scorer, some, len(self.vectors), k,
                exclude=not_listed, items=allowed, scan=Scan(self.threads, quiet=quiet),
            )  # fmt: skip

        # An index over the vectors does not know what the graph's scores would find.
        if (
            self.search is None
            or self._by_graph
            or not enough_for_index(self.rules, len(self.vectors))
        ):
            return exact(histories, exclude)
        mask = None if self.rules is None else self.rules.mask
        ids, scores = best_of_candidates(
            self.search, self.vectors, scorer, histories, k, exclude, mask
        )
        if allowed is not None:
            # The candidates may hold too few items that are allowed.
            short = np.flatnonzero((ids[:, k - 1] < 0) & (np.diff(histories.indptr) > 0))
            ids[short], scores[short] = exact(histories.select(short), exclude.select(short))
        return ids, scores

    def _by_interests(self, histories: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full((len(histories), k), -1, np.int32)
        scores = np.full((len(histories), k), -np.inf, np.float32)
        for start in range(0, len(histories), _CLUSTERED_USERS):
            users = np.arange(start, min(start + _CLUSTERED_USERS, len(histories)))
            ids[users], scores[users] = self._block_by_interests(histories.select(users), k)
        return ids, scores

    def _block_by_interests(self, histories: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        def cluster(user: int) -> multi_interest.Interests | None:
            span = slice(histories.indptr[user], histories.indptr[user + 1])
            if span.start == span.stop:
                return None
            weights = None
            if histories.times is not None:
                weights = multi_interest.decayed_weights(histories.times[span], self.half_life)
            return multi_interest.interests_of(
                self.vectors[histories.items[span]],
                self.config.recommend_interests,
                self.config.recommend_ward,
                weights,
            )

        users = range(len(histories))
        with concurrent.futures.ThreadPoolExecutor(max(self.threads, 1)) as pool:
            clustered = list(pool.map(cluster, users))
        counts = [0 if interests is None else len(interests.medoids) for interests in clustered]
        owners = np.repeat(users, counts)
        medoids = [
            histories.of(user)[interests.medoids]
            for user, interests in zip(users, clustered)
            if interests
        ]
        queries = np.concatenate([np.empty(0, np.int32), *medoids]).astype(np.int32)
        # Each medoid is searched for as a history of one item, with its user's exclusions.
        single = Histories(np.arange(len(queries) + 1, dtype=np.int64), queries)
        exclude = self._excluded(histories).select(owners.astype(np.int64))
        candidates, values = self._best(self.scorer, single, k, exclude, quiet=True)
        ids = np.full((len(histories), k), -1, np.int32)
        scores = np.full((len(histories), k), -np.inf, np.float32)
        starts = np.searchsorted(owners, np.arange(len(histories) + 1))
        for user, interests in zip(users, clustered):
            if interests is not None:
                span = slice(starts[user], starts[user + 1])
                ids[user], scores[user] = multi_interest.blend(
                    interests.importance, candidates[span], values[span], k
                )
        return ids, scores
