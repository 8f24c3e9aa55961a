"""Chooses the level of new items: a trade of hits on items with edges for hits on new ones.

The level is added to the log-odds of candidates without edges (cold).  A higher level lists more
of them, at the cost of hits on items with edges (warm).  The default comes from the levels whose
warm hit-rates are at least the best single method's, and of these from the ones whose cold
hit-rates are not below the best single method's by more than noise, if there are any: it is the
lowest whose geometric mean of warm and cold hit-rates is within a standard error of the best, as
in the one-standard-error rule (Breiman et al. 1984).  So what few pairs cannot decide is decided
for the items with edges.  With a price p it is the highest level whose warm hit-rates are at most
the share p below the best of any level.

P pairs
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pinsage_jax.evaluation import metrics

KINDS = ("warm", "cold")
CUTOFFS = (10, 100)
LEVELS = tuple(np.round(np.arange(-2.0, 4.01, 0.25), 2).tolist())
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


def choose_level(
    by_level: list[np.ndarray],
    by_method: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
    owner: np.ndarray,
    seed: int,
) -> float:
    """Chooses the default level.

    Args:
      by_level: int64 [P], ranks at each of LEVELS.
      by_method: int64 [P], ranks by each single method.
      masks: bool [P], the pairs of each kind of target.
      owner: int [P], the query of each pair; whole queries are drawn for the standard error.
    """
    if set(masks) != set(KINDS):
        return 0.0
    rates = {kind: np.array([hits(ranks[mask]) for ranks in by_level])
             for kind, mask in masks.items()}  # fmt: skip
    warm = rates["warm"]
    best = np.max([hits(ranks[masks["warm"]]) for ranks in by_method.values()], axis=0)
    allowed = (warm >= best).all(axis=1)
    if not allowed.any():
        allowed = (warm >= 0.99 * warm.max(axis=0)).all(axis=1)
    if not allowed.any():
        return LEVELS[0]
    cold = masks["cold"]
    rival = by_method[best_method(by_method, cold)][cold]
    enough = [ok and not worse(ranks[cold], rival, owner[cold], seed)
              for ok, ranks in zip(allowed, by_level)]  # fmt: skip
    chosen = np.flatnonzero(enough if any(enough) else allowed)
    gain = sum(np.log(np.maximum(rates[kind], _LEAST_RATE)).sum(axis=1) for kind in KINDS)
    highest = chosen[int(np.argmax(gain[chosen]))]
    resampled = np.zeros((len(LEVELS), _RESAMPLES))
    columns = [metrics.METRICS.index(f"hit@{k}") for k in CUTOFFS]
    for kind, mask in masks.items():
        tables = [metrics.query_table(ranks[mask], owner[mask]) for ranks in by_level]
        generator = metrics.keyed_generator(seed, f"ranker level {kind}")
        samples = metrics.bootstrap_means(tables, _RESAMPLES, generator)[..., columns]
        resampled += np.log(np.maximum(samples, _LEAST_RATE)).sum(axis=2)
    error = (resampled[highest] - resampled).std(axis=1)
    return LEVELS[int(chosen[gain[chosen] >= gain[highest] - error[chosen]][0])]


def best_method(by_method: dict[str, np.ndarray], mask: np.ndarray) -> str:
    """The method with the highest hit-rates for some of the pairs, bool [P]."""
    return max(by_method, key=lambda name: (float(np.mean(hits(by_method[name][mask]))), name))


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


def worse(ranks: np.ndarray, others: np.ndarray, owner: np.ndarray, seed: int) -> str:
    """Names of the hit-rates that are lower for `ranks` than for `others` by more than noise."""
    tables = [metrics.query_table(values, owner) for values in (ranks, others)]
    generator = metrics.keyed_generator(seed, "ranker guard")
    first, second = metrics.bootstrap_means(tables, _RESAMPLES, generator)
    _, high = metrics.interval(first - second)
    below = [f"hit@{k}" for k in CUTOFFS if high[metrics.METRICS.index(f"hit@{k}")] < 0]
    return ", ".join(below)
