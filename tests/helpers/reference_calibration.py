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


def choose_bias(vectors, isolated, split, baselines) -> tuple[float, dict[tuple[str, int], float]]:
    """The bias that calibration.validate chooses, and its hit-rates."""
    tried = {}

    def best_of(biases) -> float:
        for bias in biases:
            tried[bias] = hit_rates(with_cold_start_bias(vectors, isolated, bias), split)
        return max(
            tried,
            key=lambda bias: (
                min(
                    rate / baselines.rates[key]
                    for key, rate in tried[bias].items()
                    if baselines.rates[key] > 0
                ),
                -bias,
            ),
        )

    chosen = best_of(COARSE_BIASES)
    for step in calibration._FINER_STEPS:
        chosen = best_of(round(chosen + by, 4) for by in (-step, step) if chosen + by >= 0)
    return chosen, tried[chosen]
