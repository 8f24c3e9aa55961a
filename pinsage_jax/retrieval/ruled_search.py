"""Top-k among the items that rules allow, with scores that they boost.

Only allowed items are searched, so a list has k items if so many are allowed.  If the rules
depend on the query and the catalog is large, the best items of the whole catalog are filtered
first, and only queries that are then left with fewer than k items are searched one by one; the
result is the same.  An index proposes candidates if enough items are allowed; it may miss some
items, which `log_recall` measures.

  N items, Q queries, d dimensions, k results
"""

from __future__ import annotations

import numpy as np
from absl import logging

from pinsage_jax.listing.rules import Rules
from pinsage_jax.retrieval.ann import AnnSearch
from pinsage_jax.retrieval.online import ExactSearch, RowSubset, best_of_scores

# Evaluations of rules, of one item for one group of queries, that are done beforehand.
_MOST_EVALUATIONS = 1 << 26
# Candidates of each query are this many times those asked for.
_OVERFETCH, _MIN_CANDIDATES = 4, 50
# Below this share of allowed items, and below as many, they are searched exactly.
_INDEX_SHARE, _INDEX_ITEMS = 0.2, 10_000
# Products (queries times items) from which blocks of a compiled search are faster.
_LARGE_PRODUCT = 1 << 26
_COMPARED_QUERIES = 100


class RuledSearch:
    """Searches the vectors of a catalog under rules."""

    def __init__(self, rules: Rules, vectors: np.ndarray, search: AnnSearch | None = None):
        """Takes vectors float32 [N, d] and an index over them; None searches exactly."""
        self._rules, self._vectors, self._search = rules, vectors, search

    def top_k(
        self, queries: np.ndarray, k: int, rows: np.ndarray, exclude: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best allowed items of every query.

        Args:
          queries: float32 [Q, d].
          rows: int [Q], rows of the queries in the columns of the rules' queries.
          exclude: int [Q], an item that is no candidate of the query; -1: none.

        Returns:
          ids int32 [Q, k] and scores float32 [Q, k], best first and of equal scores the lower
          id first; padded with -1 and -inf.
        """
        ids = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if len(queries) == 0:
            return ids, scores
        groups, firsts = self._rules.groups(rows)
        costly = len(firsts) * len(self._vectors) > _MOST_EVALUATIONS
        if costly and not self._rules.boosts:
            return self._of_candidates(queries, k, rows, exclude)
        order = np.argsort(groups, kind="stable")
        ends = np.searchsorted(groups[order], np.arange(len(firsts)), side="right")
        for members, first in zip(np.split(order, ends[:-1]), firsts):
            allowed, factors = self._rules.allowed(first), self._rules.factors(first)
            part = queries[members], k, rows[members], exclude[members]
            if self._search is not None and enough_for_index(
                self._rules, len(self._vectors), first
            ):
                found = self._of_candidates(*part)
            else:
                found = self._exact(part[0], k, part[3], allowed, factors)
            ids[members], scores[members] = found
        return ids, scores

    def log_recall(self, rows: np.ndarray, k: int) -> None:
        """Logs the recall of the index under the rules, for some of the items `rows`."""
        if self._search is None or not len(rows):
            return
        size = min(len(rows), _COMPARED_QUERIES)
        sample = np.asarray(rows)[np.arange(size) * len(rows) // size]
        exact = RuledSearch(self._rules, self._vectors)
        asked = np.asarray(self._vectors[sample], np.float32), k, sample, sample
        found, wanted = self.top_k(*asked)[0], exact.top_k(*asked)[0]
        hits = ((wanted[:, :, None] == found[:, None, :]).any(axis=2) & (wanted >= 0)).sum()
        logging.info(
            "recall@%d of %s under these rules against exact search is %.4f (%d items)",
            k, self._search.setting.name, hits / max(int((wanted >= 0).sum()), 1), size,
        )  # fmt: skip

    def _of_candidates(
        self, queries: np.ndarray, k: int, rows: np.ndarray, exclude: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Filters the best of the whole catalog; searches exactly where too few are left."""
        count = len(self._vectors)
        depth = min(max(_OVERFETCH * k, _MIN_CANDIDATES), count)
        if self._search is not None:
            found, values = self._search.top_k(queries, depth, exclude)
        else:
            from pinsage_jax.retrieval.topk import top_k

            found, values = top_k(queries, self._vectors, depth, exclude)
        query, place = np.nonzero(found >= 0)
        passed = np.zeros(found.shape, np.bool_)
        passed[query, place] = self._rules.hold_for(rows[query], found[query, place])
        order = np.argsort(~passed, axis=1, kind="stable")[:, :k]
        passed = np.take_along_axis(passed, order, axis=1)
        ids = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        width = order.shape[1]
        ids[:, :width] = np.where(passed, np.take_along_axis(found, order, axis=1), -1)
        scores[:, :width] = np.where(passed, np.take_along_axis(values, order, axis=1), -np.inf)
        for row in np.flatnonzero(ids[:, k - 1] < 0):
            one = slice(row, row + 1)
            allowed = self._rules.allowed(rows[row])
            ids[one], scores[one] = self._exact(queries[one], k, exclude[one], allowed, None)
        return ids, scores

    def _exact(
        self,
        queries: np.ndarray,
        k: int,
        exclude: np.ndarray,
        allowed: np.ndarray,
        factors: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the allowed items for queries under the same rules."""
        if len(allowed) == 0:
            shape = (len(queries), k)
            return np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)
        place = np.searchsorted(allowed, exclude)
        place = np.minimum(place, len(allowed) - 1)
        place = np.where(allowed[place] == exclude, place, -1)
        if factors is None and len(queries) * len(allowed) >= _LARGE_PRODUCT:
            from pinsage_jax.retrieval.topk import top_k

            found, values = top_k(queries, RowSubset(self._vectors, allowed), k, place)
        else:
            found, values = self._on_host(queries, k, place, allowed, factors)
        return np.where(found >= 0, allowed[found], -1).astype(np.int32), values

    def _on_host(
        self,
        queries: np.ndarray,
        k: int,
        place: np.ndarray,
        allowed: np.ndarray,
        factors: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like topk.top_k over the allowed items, without compilation, and with boosts."""
        everything = len(allowed) == len(self._vectors)
        vectors = self._vectors if everything else self._vectors[allowed]
        vectors = np.asarray(vectors, np.float32)
        found = np.empty((len(queries), k), np.int32)
        values = np.empty((len(queries), k), np.float32)
        chosen = None if factors is None else factors[allowed]
        exact = ExactSearch(vectors)
        for row, query in enumerate(queries):
            one = slice(row, row + 1)
            if chosen is None:
                found[one], values[one] = exact.top_k(queries[one], k, place[one])
                continue
            # One product per query: its scores must not depend on the other queries.
            scores = boosted(vectors @ np.asarray(query, np.float32), chosen)
            found[one], values[one] = best_of_scores(scores[None], place[one], k)
        return found, values


def enough_for_index(rules: Rules | None, count: int, row: int = 0) -> bool:
    """Whether enough of `count` items are allowed for a search by an index."""
    if rules is None:
        return True
    least = max(_INDEX_SHARE * count, min(_INDEX_ITEMS, count))
    return not rules.boosts and len(rules.allowed(row)) >= least


def boosted(scores: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Scores times factors; a score below 0 is divided, so that a larger factor never lowers it."""
    return np.where(scores < 0, scores / factors, scores * factors).astype(np.float32)
