"""Compares the ranks of variants, over queries and seeds.

A metric of a variant is its mean over the seeds.  Intervals are over queries and seeds at once:
every resample draws the queries, the same for all variants and seeds, and the seeds, the same
for all variants, so that differences between variants are paired in both.  Few drawn seeds vary
too little, by (S - 1) / S; their distance from the mean is widened to make up for it.

  V variants, S seeds, R resamples, P pairs, M metrics
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pinsage_jax.ablation.trials import Pairs
from pinsage_jax.ablation.variants import BASE
from pinsage_jax.evaluation import metrics

COMPARED = ("hit@10", "hit@100", "mrr", "scaled_mrr")
_COLUMNS = [metrics.METRICS.index(name) for name in COMPARED]
_ALL = "all"


def compare(
    ranks: dict[str, np.ndarray],
    references: dict[str, np.ndarray],
    pairs: Pairs,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Compares the variants on all pairs and on each kind of pairs.

    Args:
      ranks: int64 [S, P] by variant, the base among them.
      references: int64 [P] of methods without training.
      resamples: bootstrap resamples; 0: no intervals.
      seed: of the resamples.

    Returns:
      By kind: "pairs", "queries" and, in "variants" and "references" by name, "metrics" and
      "minus_base": value, and low and high with resamples; of variants with several seeds
      also the standard deviation over seeds and the value of each.  Of all pairs also
      "minus_reference" of each variant, by reference.
    """
    query = pairs.pairs[:, 0]
    masks = {_ALL: np.ones(len(query), np.bool_)}
    if len(names := np.unique(pairs.kinds)) > 1:
        masks |= {str(kind): pairs.kinds == kind for kind in names[::-1]}
    return {
        kind: _compare_on(kind, mask, ranks | references, query, (resamples, seed), [*references])
        for kind, mask in masks.items()
    }


def not_above(comparison: dict[str, Any]) -> list[str]:
    """The references that no variant is above, in any metric, by more than noise."""
    variants = comparison[_ALL]["variants"].values()
    return [
        reference
        for reference in comparison[_ALL]["references"]
        if not any(
            values.get("low", values["value"]) > 0
            for variant in variants
            for values in variant["minus_reference"][reference].values()
        )
    ]


def _compare_on(
    kind: str,
    mask: np.ndarray,
    ranks: dict[str, np.ndarray],
    query: np.ndarray,
    resampling: tuple[int, int],
    references: list[str],
) -> dict[str, Any]:
    """The comparison on the pairs of one kind, bool [P]; see `compare`."""
    seeds = max(rank.shape[0] for rank in ranks.values() if rank.ndim > 1)
    tables = {
        (name, row): metrics.query_table(rank[mask], query[mask])
        for name, found in ranks.items()
        for row, rank in enumerate(np.broadcast_to(found, (seeds, len(query))))
    }
    names = list(ranks)
    values = np.array([[list(tables[name, row].means().values()) for row in range(seeds)]
                       for name in names])  # fmt: skip
    samples = _samples(list(tables.values()), len(names), kind, *resampling)

    def minus(name: str, other: str) -> dict[str, dict[str, Any]]:
        first, second = names.index(name), names.index(other)
        difference = None if samples is None else samples[first] - samples[second]
        return _summary(values[first] - values[second], difference)

    scored: dict[str, dict[str, Any]] = {"variants": {}, "references": {}}
    for place, name in enumerate(names):
        # A reference has no seeds.
        by_seed = values[place, :1] if name in references else values[place]
        # Resamples of few seeds are widened, but no metric leaves its range.
        drawn = None if samples is None else np.clip(samples[place], 0.0, 1.0)
        entry = {"metrics": _summary(by_seed, drawn), "minus_base": minus(name, BASE)}
        if name not in references and kind == _ALL:
            entry["minus_reference"] = {other: minus(name, other) for other in references}
        scored["references" if name in references else "variants"][name] = entry
    size = {"pairs": int(mask.sum()), "queries": len(tables[BASE, 0].queries)}
    return {**size, **scored}


def _samples(
    tables: list[metrics.QueryTable], variants: int, kind: str, resamples: int, seed: int
) -> np.ndarray | None:
    """Means over seeds, float64 [V, R, M], on resamples of queries and seeds; None without any.

    Args:
      tables: V * S, all seeds of a variant beside each other.
    """
    if not resamples:
        return None
    generator = metrics.keyed_generator(seed, f"ablate {kind}")
    of_queries = metrics.bootstrap_means(tables, resamples, generator)
    seeds = len(tables) // variants
    of_queries = of_queries.reshape(variants, seeds, resamples, -1)
    weights = np.full((resamples, seeds), 1.0 / seeds)
    if seeds > 1:
        generator = metrics.keyed_generator(seed, f"ablate seeds {kind}")
        drawn = generator.multinomial(seeds, [1.0 / seeds] * seeds, resamples) / seeds
        weights += (drawn - weights) * np.sqrt(seeds / (seeds - 1))
    return np.einsum("vsrm,rs->vrm", of_queries, weights)


def _summary(by_seed: np.ndarray, samples: np.ndarray | None) -> dict[str, dict[str, Any]]:
    """The mean over seeds with its interval and its deviation, by metric.

    Args:
      by_seed: float64 [S, M].
      samples: float64 [R, M].
    """
    low_high = None if samples is None else metrics.interval(samples)
    result: dict[str, dict[str, Any]] = {}
    for metric, column in zip(COMPARED, _COLUMNS):
        found = by_seed[:, column]
        result[metric] = {"value": float(found.mean())}
        if low_high is not None:
            result[metric] |= {
                "low": float(low_high[0][column]), "high": float(low_high[1][column]),
            }  # fmt: skip
        if len(found) > 1:
            result[metric] |= {"deviation": float(found.std(ddof=1)), "by_seed": found.tolist()}
    return result
