"""Chooses the level of new items: a trade of hits on items with edges for hits on new ones.

The level is added to the log-odds of candidates without edges (cold).  A higher level lists more
of them, at the cost of hits on items with edges (warm).  The default is the level with the best
geometric mean of warm and cold hit-rates, among those whose warm hit-rates are at least the best
single method's.  With a price p it is the highest level whose warm hit-rates are at most the share
p below the best of any level.

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


def choose_level(
    rates: np.ndarray, kinds: list[str], best: dict[str, np.ndarray], price: float | None = None
) -> float:
    """Chooses the level of candidates without edges by their hit-rates.

    Args:
      rates: float [levels, kinds, cutoffs], hit-rates at each of LEVELS.
      kinds: what the second axis is: warm, cold.
      best: float [cutoffs] by kind, hit-rates of the best single method.
      price: share of the warm hits that may be lost; None: the default.
    """
    if "warm" not in kinds or "cold" not in kinds:
        return 0.0
    warm, cold = rates[:, kinds.index("warm")], rates[:, kinds.index("cold")]
    if price is not None:
        allowed = (warm >= (1.0 - price) * warm.max(axis=0)).all(axis=1)
        return LEVELS[int(np.flatnonzero(allowed)[-1])] if allowed.any() else LEVELS[0]
    allowed = (warm >= best["warm"]).all(axis=1)
    if not allowed.any():
        allowed = (warm >= 0.99 * warm.max(axis=0)).all(axis=1)
    gain = np.log(np.maximum(np.concatenate([warm, cold], axis=1), 1e-4)).mean(axis=1)
    gain = np.where(allowed if allowed.any() else np.arange(len(rates)) == 0, gain, -np.inf)
    return LEVELS[int(np.argmax(gain))]


def level_at(measured: dict[str, Any], price: float | None) -> float:
    """The level of one kind of query for a --new_item_price, by its entry in ranker.json."""
    kinds = [name for name in KINDS if name in measured["pairs"]]
    if price is None or len(kinds) < len(KINDS):
        return float(measured["level"])
    rates = [
        [[entry[name][f"hit@{k}"][0] for k in CUTOFFS] for name in kinds]
        for entry in measured["frontier"]
    ]
    return choose_level(np.array(rates), kinds, {}, price)


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
