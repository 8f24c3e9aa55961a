"""The ranker of related items: candidates of four methods, ordered by calibrated log-odds.

One model for each kind of query and of candidate (with edges: warm, without: cold) gives the
log-odds that a collection holds both.  The log-odds merge a query's warm and cold candidates into
one list, after a level is added to those of the cold ones (`levels.py`).

WORKDIR/ranker.json holds the models and how they were chosen, as plain numbers.

Q queries, N items, K candidates of a query
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pinsage_jax.ranking.candidates import (
    METHODS,
    Candidates,
    CandidateSource,
    NewQueries,
)
from pinsage_jax.ranking.levels import KINDS
from pinsage_jax.ranking.ranker_model import RANKER, RankerModel
from pinsage_jax.retrieval.ranks import tie_rank

if TYPE_CHECKING:
    from pinsage_jax.listing.rules import Rules

# Groups of queries with the same rules whose rules are kept.
_RULE_GROUPS = 256


class Ranker:
    """Lists related items of one catalog, behind the same interface as a search of vectors.

    Attributes:
      by: `ranker`, or the method that orders all lists.
      model: how the ranker orders lists; None for a method.
      prices: what new items cost, in validation.
    """

    def __init__(
        self,
        source: CandidateSource,
        model: RankerModel | None,
        by: str = RANKER,
        popularity_weight: float = 1.0,
        prices: Sequence[dict[str, Any]] = (),
    ):
        """Prepares lists.

        Args:
          source: proposes candidates.
          model: needed where `by` is `ranker`.
          by: `ranker`, or one of METHODS that orders all lists.
          popularity_weight: --popularity_weight.
          prices: levels.price_table of the model.
        """
        self._source, self._weight = source, popularity_weight
        self.by, self.model, self.prices = by, model, list(prices)

    def _method_of(self, isolated: bool) -> str:
        if self.by != RANKER or self.model is None:
            return self.by
        return self.model.by[KINDS[int(isolated)]]

    def top_k(
        self,
        queries: np.ndarray,
        k: int,
        exclude_self: np.ndarray | None = None,
        rules: Rules | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first k related items of catalog items.

        Args:
          queries: ignored; a search of vectors takes them here.
          k: places in a list.
          exclude_self: int [Q], the items whose lists are made.
          rules: which items may be listed; their factors multiply the odds of the ranker, or
            the scores of a method.

        Returns:
          ids int32 [Q, k], padded with -1, and scores float32 [Q, k], padded with -inf: the
          log-odds of the ranker, or the scores of the method.  Lists of the ranker go on with
          items that are no candidates by their vectors; other methods list items with a
          score above 0 only.

        Raises:
          ValueError: `exclude_self` is missing.
        """
        if exclude_self is None:
            raise ValueError("the ranker lists neighbors of items of the catalog")
        rows = np.asarray(exclude_self, np.int64)
        return self._lists(self._source.blocks(rows, k), rows, k, rules)

    def top_k_of_new(
        self, queries: NewQueries, k: int, rules: Rules | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first k related items of items that the catalog does not contain; see top_k.

        Args:
          rules: row i of their queries is query i.
        """
        rows = np.arange(len(queries.vectors))
        return self._lists(self._source.blocks_of_new(queries, k), rows, k, rules)

    def _lists(
        self, blocks: Iterator[Candidates], rows: np.ndarray, k: int, rules: Rules | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lists for queries at `rows` (int [Q]) of the rules' queries."""
        ids = np.full((len(rows), k), -1, np.int32)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        groups, firsts = (rows, rows) if rules is None else rules.groups(rows)

        @functools.lru_cache(maxsize=_RULE_GROUPS)
        def rules_of(group: int) -> tuple[np.ndarray, np.ndarray | None]:
            assert rules is not None, "lists have rules"
            return rules.allowed(firsts[group]), rules.factors(firsts[group])

        start = 0
        for candidates in blocks:
            odds, count = self._log_odds(candidates), len(candidates.rows)
            for row in range(count):
                out = ids[start + row], scores[start + row]
                if rules is None:
                    self._list(candidates, odds[row], row, *out)
                    continue
                allowed, factors = rules_of(int(groups[start + row]))
                values = self._all_scores(candidates, odds[row], row, factors)[allowed]
                order = _best(values, k)
                order = order[values[order] > -np.inf]
                out[0][: len(order)], out[1][: len(order)] = allowed[order], values[order]
            start += count
        return ids, scores

    def ranks(self, pairs: np.ndarray) -> np.ndarray:
        """Ranks int64 [P] of the targets of pairs int [P, 2] among all items of the catalog."""
        return self.at_weights(pairs, np.empty(0, np.int64), 0, (self._weight,))[0][0]

    def at_weights(
        self, pairs: np.ndarray, queries: np.ndarray, k: int, weights: Sequence[float]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ranks and lists for each of several --popularity_weight, with one search of candidates.

        Args:
          pairs: int [P, 2].
          queries: int [Q], distinct items whose lists are made.
          k: places in a list.

        Returns:
          For each weight, ranks int64 [P] as in `ranks` and ids int32 [Q, k] as in `top_k`.
        """
        rankers = [
            Ranker(self._source, self.model, self.by, weight, self.prices) for weight in weights
        ]
        results = [(np.empty(len(pairs), np.int64), np.full((len(queries), k), -1, np.int32))
                   for _ in weights]  # fmt: skip
        rows = np.union1d(pairs[:, 0], queries).astype(np.int64)
        by_query = np.argsort(pairs[:, 0], kind="stable")
        bounds = (
            np.searchsorted(pairs[by_query, 0], rows),
            np.searchsorted(pairs[by_query, 0], rows, "right"),
        )
        place = dict(zip(np.asarray(queries).tolist(), range(len(queries))))
        unread, start = np.empty(k, np.float32), 0
        for candidates in self._source.blocks(rows, k):
            for ranker, (ranks, ids) in zip(rankers, results):
                odds = ranker._log_odds(candidates)
                for row, query in enumerate(candidates.rows.tolist()):
                    of_query = by_query[bounds[0][start + row] : bounds[1][start + row]]
                    if len(of_query):
                        targets = pairs[of_query, 1]
                        ranks[of_query] = ranker._ranks_of(candidates, odds, row, targets)
                    if query in place:
                        ranker._list(candidates, odds[row], row, ids[place[query]], unread)
            start += len(candidates.rows)
        return results

    def _ranks_of(
        self, candidates: Candidates, odds: np.ndarray, row: int, targets: np.ndarray
    ) -> np.ndarray:
        """Ranks int64 [T] of targets int [T] for the query at `row` of the candidates."""
        method = self._method_of(candidates.cold[row])
        if method == RANKER:
            return ranks_in_list(candidates, row, odds[row], targets)
        return ranks_by_score(self._scores_by(method, candidates, row), targets)

    def _log_odds(self, candidates: Candidates) -> np.ndarray:
        """Log-odds float32 [Q, K] by the model of each query's kind."""
        odds = np.full(candidates.ids.shape, -np.inf, np.float32)
        # The scores of the whole catalog are not read here, and large.
        candidates = dataclasses.replace(candidates, scores={})
        for number, kind in enumerate(KINDS):
            chosen = np.flatnonzero(candidates.cold == bool(number))
            if self.model is None or self._method_of(bool(number)) != RANKER or not len(chosen):
                continue
            part = select(candidates, chosen)
            odds[chosen] = self.model.log_odds(part, kind, self._weight)
        return odds

    def _list(
        self,
        candidates: Candidates,
        odds: np.ndarray,
        row: int,
        ids: np.ndarray,
        scores: np.ndarray,
    ) -> None:
        """Writes the list of one query, at `row` of the candidates, into ids and scores [k]."""
        if self._method_of(candidates.cold[row]) == RANKER:
            order = np.argsort(-odds, kind="stable")[: len(ids)]
            if len(order) == len(ids) and odds[order[-1]] > -np.inf:
                ids[:], scores[:] = candidates.ids[row, order], odds[order]
                return
        values = self._all_scores(candidates, odds, row)
        order = _best(values, len(ids))
        order = order[values[order] > -np.inf]
        ids[: len(order)], scores[: len(order)] = order, values[order]

    def _all_scores(
        self,
        candidates: Candidates,
        odds: np.ndarray,
        row: int,
        factors: np.ndarray | None = None,
    ) -> np.ndarray:
        """Scores float32 [N] of the catalog for one query; -inf: not in its list.

        Items that are no candidates are in the order of the vectors, below every candidate.

        Args:
          odds: float32 [K], the log-odds of the candidates.
          factors: float32 [N], by which odds, or the scores of a method, are multiplied.
        """
        method = self._method_of(candidates.cold[row])
        if method != RANKER:
            values = self._scores_by(method, candidates, row)
            values = np.where(values > (-np.inf if method == METHODS[0] else 0.0), values, -np.inf)
            if factors is not None:
                values = np.where(values < 0, values / factors, values * factors)
            return values.astype(np.float32)
        listed = odds > -np.inf
        values = np.array(candidates.scores["vectors"][row])
        values[candidates.ids[row, listed]] = -np.inf
        lowest = odds[listed].min() if listed.any() else np.float32(0.0)
        highest = values.max()
        if highest > -np.inf:
            values += lowest - np.float32(1.0) - highest
        values[candidates.ids[row, listed]] = odds[listed]
        if factors is not None:
            values += np.log(factors)
        return values

    def _scores_by(self, method: str, candidates: Candidates, row: int) -> np.ndarray:
        """Scores float32 [N] of one query by a method, with the popularity weighted."""
        values = candidates.scores[method][row]
        if method == METHODS[0] and self._weight != 1.0:
            less = np.float32(1.0 - self._weight) * candidates.popularity[row]
            values = values - less * self._source.popularity
        return values


def select(candidates: Candidates, chosen: np.ndarray) -> Candidates:
    """The candidates of some of the queries, int [q]."""
    return Candidates(
        candidates.rows[chosen],
        candidates.cold[chosen],
        candidates.ids[chosen],
        candidates.isolated[chosen],
        candidates.features[chosen],
        candidates.popularity[chosen],
        {name: values[chosen] for name, values in candidates.scores.items()},
    )


def ranks_by_score(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ranks int64 [T] of targets int [T] by the scores float32 [N] of one query.

    Items with a score of -inf are no candidates.
    """
    limits = values[targets][:, None]
    greater = (values[None, :] > limits).sum(axis=1)
    equal = (values[None, :] == limits).sum(axis=1) - 1
    return tie_rank(greater, equal)


def ranks_in_list(
    candidates: Candidates, row: int, odds: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Ranks int64 [T] of targets in a list: candidates by log-odds, then other items by vectors.

    Args:
      candidates: a block of queries with their candidates.
      row: row of the query in the block.
      odds: float32 [K], the log-odds of its candidates.
      targets: int [T].
    """
    ids, vectors = candidates.ids[row], candidates.scores["vectors"][row]
    valid = ids >= 0
    position = np.searchsorted(ids, targets)
    position = np.minimum(position, len(ids) - 1)
    found = ids[position] == targets
    limits = odds[position][:, None]
    greater = (odds[None, :] > limits).sum(axis=1)
    equal = (odds[None, :] == limits).sum(axis=1) - 1
    inside = tie_rank(greater, equal)
    better = (vectors[ids[valid]][None, :] > vectors[targets][:, None]).sum(axis=1)
    outside = valid.sum() + ranks_by_score(vectors, targets) - better
    return np.where(found, inside, outside)


def _best(values: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest values float32 [N], best first, of equal ones the lower first."""
    k = min(k, len(values))
    if k == 0:
        return np.empty(0, np.int64)
    limit = np.partition(values, len(values) - k)[len(values) - k]
    places = np.flatnonzero(values >= limit)
    return places[np.argsort(-values[places], kind="stable")][:k]
