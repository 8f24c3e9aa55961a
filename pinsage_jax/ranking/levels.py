"""Chooses the level of new items: a trade of hits on items with edges for hits on new ones.

The level is added to the log-odds of candidates without edges (cold).  A higher level lists more
of them, at the cost of hits on items with edges (warm).  The default comes from the levels whose
warm hit-rates are at least the best single method's and whose cold hit-rates are not below the
best single method's by more than noise; if there is none, from those that are below by noise
alone for both kinds; if there is none either, from those of the first condition.  Of these it is
the lowest whose geometric mean of warm and cold hit-rates is within a standard error of the best,
as in the one-standard-error rule (Breiman et al. 1984).  So what few pairs cannot decide is decided
for the items with edges.  With a price p it is the highest level whose warm hit-rates are at most
the share p below the best of any level.

P pairs
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pinsage_jax.evaluation import metrics

KINDS = ("warm", "cold")
CUTOFFS = (10, 100)
LEVELS = tuple(np.round(np.arange(-5.0, 4.01, 0.25), 2).tolist())
# Values of --new_item_price that eval.json and the report compare.
PRICES = (0.0, 0.02, 0.05, 0.1, 0.2)
_RESAMPLES = 300
_LEAST_RATE = 1e-4


def level_of_price(rates: np.ndarray, kinds: list[str], price: float) -> float:
    """The highest level that costs at most a share of the warm hits.

    Args:
      rates: float [levels, kinds, cutoffs], hit-rates at each of LEVELS.
      kinds: what the second axis is: warm, cold.
      price: the share.
    """
    warm = rates[:, kinds.index("warm")]
    allowed = (warm >= (1.0 - price) * warm.max(axis=0)).all(axis=1)
    return LEVELS[int(np.flatnonzero(allowed)[-1])] if allowed.any() else LEVELS[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Hit-rates at CUTOFFS for one kind of target: of the ranker by level, and of each method.

    Attributes:
      rates: float64 [levels, cutoffs], the ranker's at each of LEVELS.
      methods: float64 [cutoffs] by method.
      samples, method_samples: the same on resamples of the queries, float64 [levels, resamples,
        cutoffs] and [resamples, cutoffs] by method.
    """

    rates: np.ndarray
    methods: dict[str, np.ndarray]
    samples: np.ndarray
    method_samples: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        by_level: list[np.ndarray],
        by_method: dict[str, np.ndarray],
        owner: np.ndarray,
        seed: int,
        kind: str,
    ) -> Comparison:
        """Compares ranks int64 [P] at each of LEVELS, and by each method.

        Args:
          owner: int [P], the query of each pair; whole queries are drawn.
          kind: key of the draws.
        """
        ranks = [*by_level, *by_method.values()]
        tables = [metrics.query_table(each, owner) for each in ranks]
        columns = [metrics.METRICS.index(f"hit@{k}") for k in CUTOFFS]
        generator = metrics.keyed_generator(seed, f"ranker level {kind}")
        samples = metrics.bootstrap_means(tables, _RESAMPLES, generator)[..., columns]
        rates, count = np.array([hits(each) for each in ranks]), len(by_level)
        return cls(
            rates[:count],
            dict(zip(by_method, rates[count:])),
            samples[:count],
            dict(zip(by_method, samples[count:])),
        )

    @property
    def best(self) -> str:
        """The method with the highest hit-rates."""
        return max(self.methods, key=lambda name: (float(self.methods[name].mean()), name))

    def below(self, number: int) -> dict[str, str]:
        """Hit-rates in which the ranker is below a method by more than noise, and that method.

        Args:
          number: of the level.
        """
        return self._below(self.samples[number])

    def method_below(self, name: str) -> dict[str, str]:
        """The same of a method that orders all lists."""
        return self._below(self.method_samples[name])

    def _below(self, samples: np.ndarray) -> dict[str, str]:
        found = {}
        for column, k in enumerate(CUTOFFS):
            name = max(self.methods, key=lambda each: (self.methods[each][column], each))
            _, high = metrics.interval(samples[:, column] - self.method_samples[name][:, column])
            if high < 0:
                found[f"hit@{k}"] = name
        return found


def choose_level(by_kind: dict[str, Comparison]) -> float:
    """Chooses the default level from comparisons by kind of target."""
    if set(by_kind) != set(KINDS):
        return 0.0
    warm, cold = (by_kind[kind] for kind in KINDS)
    best = np.max(list(warm.methods.values()), axis=0)
    first = (warm.rates >= best).all(axis=1)
    if not first.any():
        first = (warm.rates >= 0.99 * warm.rates.max(axis=0)).all(axis=1)
    enough = {
        kind: np.array([not found.below(number) for number in range(len(LEVELS))])
        for kind, found in by_kind.items()
    }
    wishes = (first & enough["cold"], enough["warm"] & enough["cold"], first)
    chosen = next((np.flatnonzero(wish) for wish in wishes if wish.any()), np.zeros(1, np.int64))
    gain, resampled = (
        sum(np.log(np.maximum(values, _LEAST_RATE)).sum(axis=-1) for values in both)
        for both in ((warm.rates, cold.rates), (warm.samples, cold.samples))
    )
    highest = chosen[int(np.argmax(gain[chosen]))]
    error = (resampled[highest] - resampled).std(axis=1)
    return LEVELS[int(chosen[gain[chosen] >= gain[highest] - error[chosen]][0])]


def choose_method(by_kind: dict[str, Comparison], number: int) -> str | None:
    """The single method that should order the lists instead of the ranker, if any.

    That is one that is below no other for any kind of target, if the ranker is for one; and if
    the ranker is for warm targets, at least the best method for these.

    Args:
      number: of the ranker's level.
    """
    below = {kind for kind, found in by_kind.items() if found.below(number)}
    if not below:
        return None
    whole = [
        name
        for name in next(iter(by_kind.values())).methods
        if not any(found.method_below(name) for found in by_kind.values())
    ]
    first = by_kind[KINDS[0]] if KINDS[0] in by_kind else next(iter(by_kind.values()))
    if whole:
        return max(whole, key=lambda name: (float(first.methods[name].mean()), name))
    return first.best if KINDS[0] in below else None


def level_at(measured: dict[str, Any], price: float | None) -> float:
    """The level of one kind of query for a --new_item_price, by its entry in ranker.json."""
    kinds = [name for name in KINDS if name in measured["pairs"]]
    if price is None or len(kinds) < len(KINDS):
        return float(measured["level"])
    rates = [
        [[entry[name][f"hit@{k}"][0] for k in CUTOFFS] for name in kinds]
        for entry in measured["frontier"]
    ]
    return level_of_price(np.array(rates), kinds, price)


def price_table(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Cross-validated warm and cold hit-rates at several prices, for queries with edges.

    Args:
      measured: the entry of warm queries in ranker.json.

    Returns:
      One entry for the default (price None) and each of PRICES: price, level, and by kind of
      target the hit-rates as [value, low, high].
    """
    table = []
    for price in (None, *PRICES):
        level = level_at(measured, price)
        at = next(entry for entry in measured["frontier"] if entry["level"] == level)
        table.append({"price": price, **at})
    return table


def hits(ranks: np.ndarray) -> list[float]:
    """Hit-rate at each of CUTOFFS."""
    return [float(np.mean(ranks <= k)) for k in CUTOFFS]


def with_intervals(ranks: np.ndarray, owner: np.ndarray, seed: int) -> dict[str, list[float]]:
    """[value, low, high] of each hit-rate, resampled by query."""
    table = metrics.query_table(ranks, owner)
    generator = metrics.keyed_generator(seed, "ranker interval")
    low, high = metrics.interval(metrics.bootstrap_means([table], _RESAMPLES, generator)[0])
    result = {}
    for k, value in zip(CUTOFFS, hits(ranks)):
        column = metrics.METRICS.index(f"hit@{k}")
        result[f"hit@{k}"] = [value, float(low[column]), float(high[column])]
    return result
