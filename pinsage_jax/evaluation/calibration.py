"""Where items without edges stand beside the others, chosen on validation pairs.

A network that learns how likely an item is learns rightly that an item nobody has
collected yet is unlikely, and ranks it below every popular one: such items would
never be shown.  One number, the cold offset, is added to the last coordinate of
every item without edges (1 + b of --popularity_bias), which moves them all against the
rest and changes no order among them.

It is chosen so that both kinds of pairs gain: the offset whose smallest lift is largest,
a lift being a hit-rate over that of the plain rival of the kind (the random walk for warm
pairs, raw content for cold ones).  Warm lifts fall with the offset and cold ones rise, so
the smallest has one peak: it is looked for on a coarse grid and then in halved steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.evaluation.baselines import Baseline, Content, Walk, rank_pairs
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.topk import target_ranks

CUTS = (10, 100)
COARSE_OFFSETS = tuple(np.round(np.arange(0.0, 0.61, 0.1), 1).tolist())
_FINER_STEPS = (0.05, 0.025, 0.0125)
OFFSETS_TRIED = len(COARSE_OFFSETS) + 2 * len(_FINER_STEPS)  # at most


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Hit-rates on the validation pairs of the plain rival of each kind.

    Attributes:
      rates: {(kind, k): hit-rate}; a kind without pairs or without a rival is left out.
    """

    rates: dict[tuple[str, int], float]

    @classmethod
    def of(
        cls,
        graph: Graph,
        features: np.ndarray,
        split: ValidationSplit,
        sampling: SamplingConfig,
        seed: int,
        threads: int,
    ) -> Baselines:
        """Ranks the validation pairs by the walk over `graph` and by raw content."""
        rates: dict[tuple[str, int], float] = {}
        rivals: dict[str, Baseline] = {"warm": Walk(graph, sampling, seed, threads)}
        if features.shape[1]:
            rivals["cold"] = Content(features)
        for kind, rival in rivals.items():
            pairs = split.pairs[split.kinds == kind]
            if len(pairs):
                ranks = rank_pairs(rival, pairs, graph.num_items)
                rates |= {(kind, k): float(np.mean(ranks <= k)) for k in CUTS}
        return cls(rates)


def with_offset(vectors: np.ndarray, edgeless: np.ndarray, offset: float) -> np.ndarray:
    """A copy of embeddings [N, Z] with `offset` added to the last coordinate of the edgeless."""
    moved = np.array(vectors)
    moved[edgeless, -1] += offset
    return moved


def validate(
    vectors: np.ndarray,
    edgeless: np.ndarray,
    split: ValidationSplit,
    rivals: Baselines,
    offset: float | None,
) -> dict[str, float]:
    """Scores embeddings on the validation pairs.

    Args:
      vectors: float32 [num_items, Z]; written to meanwhile and left as they were.
      edgeless: bool [num_items].
      offset: the cold offset to use; None chooses it.

    Returns:
      {"score", "cold_start_bias", "warm_hit@10", ...}.  The score is the geometric mean
      of the hit-rates that have a rival, so that neither kind can be traded for
      nothing; empty without such pairs.
    """
    if not rivals.rates:
        return {}
    open_choice = offset is None and (split.kinds == "cold").any()
    last = vectors[edgeless, -1]
    tried: dict[float, dict[tuple[str, int], float]] = {}

    def best_of(offsets: Iterable[float]) -> float:
        for value in offsets:
            # In place: a copy of a large catalog may not fit.
            vectors[edgeless, -1] = last + np.float32(value)
            tried[value] = _rates(vectors, split)
        return max(tried, key=lambda value: (_least_lift(tried[value], rivals), -value))

    try:
        chosen = best_of(COARSE_OFFSETS if open_choice else (offset or 0.0,))
        for step in _FINER_STEPS if open_choice else ():
            chosen = best_of(round(chosen + by, 4) for by in (-step, step) if chosen + by >= 0)
    finally:
        vectors[edgeless, -1] = last
    rates = tried[chosen]
    # A rate of zero would hide all the others; half a hit stands in for it.
    floor = 0.5 / len(split.pairs)
    # Without content there is nothing to know of an item without edges: not scored.
    counted = [rate for key, rate in rates.items() if key in rivals.rates]
    score = float(np.exp(np.mean([np.log(max(rate, floor)) for rate in counted])))
    named = {f"{kind}_hit@{k}": rate for (kind, k), rate in rates.items()}
    return {"score": score, "cold_start_bias": chosen, **named}


def _rates(vectors: np.ndarray, split: ValidationSplit) -> dict[tuple[str, int], float]:
    query, target = split.pairs.T
    ranks = target_ranks(vectors[query], vectors, query, target)
    return {
        (kind, k): float(np.mean(ranks[split.kinds == kind] <= k))
        for kind in sorted(set(split.kinds.tolist()), reverse=True)
        for k in CUTS
    }


def _least_lift(rates: dict[tuple[str, int], float], rivals: Baselines) -> float:
    lifts = [
        rate / rivals.rates[key] for key, rate in rates.items() if rivals.rates.get(key, 0.0) > 0
    ]
    return min(lifts, default=0.0)
