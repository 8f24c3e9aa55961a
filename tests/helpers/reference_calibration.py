"""Slow reference of the choice of cold-start bias: ranks the whole catalog for every bias."""

from __future__ import annotations

import numpy as np

from pinsage_jax.evaluation import calibration
from pinsage_jax.evaluation.calibration import COARSE_BIASES, CUTOFFS, with_cold_start_bias
from pinsage_jax.retrieval.topk import target_ranks


def hit_rates(vectors, split) -> dict[tuple[str, int], float]:
    """Hit-rates of embeddings float32 [N, Z] by (kind, k), warm pairs first."""
    query, target = split.pairs.T
    ranks = target_ranks(vectors[query], vectors, query, target)
    return {
        (kind, k): float(np.mean(ranks[split.kinds == kind] <= k))
        for kind in sorted(set(split.kinds.tolist()), reverse=True)
        for k in CUTOFFS
    }


def hits(vectors, split, key) -> np.ndarray:
    """Whether each pair of a (kind, k) is hit, bool [pairs of the kind]."""
    query, target = split.pairs.T
    ranks = target_ranks(vectors[query], vectors, query, target)
    return ranks[split.kinds == key[0]] <= key[1]


def hits_apart(vectors, isolated, split, key) -> np.ndarray:
    """The same among the items of the target's own kind."""
    query, target = split.pairs[split.kinds == key[0]].T
    scores = vectors[query] @ vectors.T
    scores[:, isolated != (key[0] == "cold")] = -np.inf
    scores[np.arange(len(query)), query] = -np.inf
    return (scores > scores[np.arange(len(query)), target][:, None]).sum(axis=1) < key[1]


def choose_bias(vectors, isolated, split, baselines) -> tuple[float, dict[tuple[str, int], float]]:
    """The bias that calibration.validate chooses, and its hit-rates."""
    tried = {}

    def smallest(bias) -> tuple[float, tuple[str, int]]:
        return min(
            (rate / baselines.rates[key], -place, key)
            for place, (key, rate) in enumerate(tried[bias].items())
            if baselines.rates[key] > 0
        )[::2]

    def best_of(biases) -> float:
        for bias in biases:
            tried[bias] = hit_rates(with_cold_start_bias(vectors, isolated, bias), split)
        count = (split.kinds == "warm").sum()
        warm = {
            bias: np.sqrt(np.prod([max(rates["warm", k], 0.5 / count) for k in CUTOFFS]))
            for bias, rates in tried.items()
        }
        least = 0.98 * max(warm.values())
        return max(
            (bias for bias in tried if warm[bias] >= least),
            key=lambda bias: (smallest(bias)[0], -bias),
        )

    chosen = best_of(COARSE_BIASES)
    for step in calibration._FINER_STEPS:
        chosen = best_of(round(chosen + by, 4) for by in (-step, step) if chosen + by >= 0)
    for bias in sorted(tried):
        if bias >= chosen:
            break
        value, key = smallest(bias)
        difference = hits(with_cold_start_bias(vectors, isolated, chosen), split, key).astype(float)
        difference -= hits(with_cold_start_bias(vectors, isolated, bias), split, key)
        query = split.pairs[split.kinds == key[0], 0]
        centered = difference - difference.mean()
        by_query = [centered[query == each].sum() for each in np.unique(query)]
        error = np.sqrt(np.square(by_query).sum()) / len(difference)
        if smallest(chosen)[0] - value <= error / baselines.rates[key]:
            return bias, tried[bias]
    return chosen, tried[chosen]
