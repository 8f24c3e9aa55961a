"""Chooses the cold-start bias on validation pairs.

A network that learns the popularity of items learns, correctly, that an isolated item (one
without edges) is unpopular, and ranks it below every popular item: isolated items would
never be recommended.  The cold-start bias is a single number that is added to the last
coordinate of every isolated item (the popularity bias 1 + b of --popularity_bias).  It shifts
all isolated items against the others and leaves the order among them unchanged.

The chosen bias maximizes the smallest relative hit-rate, that is, a hit-rate divided by
that of the baseline of the same kind of pairs (the random walk for warm pairs, content for
cold pairs), among the biases that cost at most the share WARM_LOSS of the warm hits.  As the
bias grows, the relative hit-rates of warm pairs fall and those of cold pairs rise, so the
smallest has a single peak; it is searched on a coarse grid and then in halved steps.  Of the
biases tried that are within a standard error of the best, the lowest is taken: what the pairs
cannot decide is decided for the items with edges.

  N items, P pairs, Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.evaluation.baselines import Baseline, Content, Walk, rank_pairs
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.online import RowSubset
from pinsage_jax.retrieval.ranks import tie_rank
from pinsage_jax.retrieval.topk import top_k

CUTOFFS = (10, 100)
COARSE_BIASES = tuple(np.round(np.arange(0.0, 0.61, 0.1), 1).tolist())
_FINER_STEPS = (0.05, 0.025, 0.0125)
# The share of the warm hits (geometric mean over CUTOFFS) that a bias may cost.
WARM_LOSS = 0.02
# Of two items of equal score one counts (ranks.TIE_RULE): behind twice as many items as a
# cutoff that score no less, a target is beyond the cutoff whatever the ties.
_DEPTH = 2 * max(CUTOFFS)


@dataclasses.dataclass(frozen=True)
class BaselineHitRates:
    """Hit-rates of one baseline per kind of validation pairs.

    Attributes:
      rates: hit-rate by (kind, k); a kind without pairs or without a baseline is absent.
      pairs: number of pairs of each kind.
    """

    rates: dict[tuple[str, int], float]
    pairs: dict[str, int] = dataclasses.field(default_factory=dict)

    def noise(self, kind: str, k: int) -> float:
        """Twice the standard error of the difference of two such hit-rates.

        As if the pairs were independent and not the same for both; the two errors of this
        point in opposite directions.
        """
        rate = self.rates[kind, k]
        return 2.0 * math.sqrt(2.0 * rate * (1.0 - rate) / max(self.pairs.get(kind, 0), 1))

    @classmethod
    def measure(
        cls,
        graph: Graph,
        features: np.ndarray,
        split: ValidationSplit,
        sampling: SamplingConfig,
        seed: int,
        threads: int,
    ) -> BaselineHitRates:
        """Ranks the warm validation pairs by the walk over `graph`, the cold ones by content.

        Args:
          graph: the training graph.
          features: float [N, D].
          split: the validation pairs and their kinds.
          sampling: settings of the walks.
          seed: seed of the walks.
          threads: number of threads.
        """
        rates: dict[tuple[str, int], float] = {}
        counts: dict[str, int] = {}
        baselines: dict[str, Baseline] = {"warm": Walk(graph, sampling, seed, threads)}
        if features.shape[1]:
            baselines["cold"] = Content(features)
        for kind, baseline in baselines.items():
            pairs = split.pairs[split.kinds == kind]
            if len(pairs):
                ranks = rank_pairs(baseline, pairs, graph.num_items)
                counts[kind] = len(pairs)
                rates |= {(kind, k): float(np.mean(ranks <= k)) for k in CUTOFFS}
        return cls(rates, counts)


def with_cold_start_bias(vectors: np.ndarray, isolated: np.ndarray, bias: float) -> np.ndarray:
    """A copy of embeddings [N, Z] with `bias` added to the last coordinate of isolated items.

    Args:
      vectors: float32 [N, Z].
      isolated: bool [N], items without edges.
      bias: the cold-start bias.
    """
    shifted = np.array(vectors)
    shifted[isolated, -1] += bias
    return shifted


def validate(
    vectors: np.ndarray,
    isolated: np.ndarray,
    split: ValidationSplit,
    baselines: BaselineHitRates,
    bias: float | None,
) -> dict[str, float]:
    """Scores embeddings on the validation pairs.

    Args:
      vectors: float32 [N, Z].
      isolated: bool [N], items without edges.
      split: the validation pairs and their kinds.
      baselines: hit-rates that the embeddings' are divided by to choose the bias.
      bias: the cold-start bias to use; None chooses it.

    Returns:
      {"score", "score_error", "cold_start_bias", "warm_hit@10", ...}.  The score is the
      geometric mean of the hit-rates that have a baseline, so that a gain in one kind of pairs
      cannot hide a large loss in the other.  For the score a target is ranked among the items
      of its own kind: how the two kinds are merged is decided after training, by the bias or
      the ranker.  score_error is its standard error over queries.  Empty if no hit-rate has a
      baseline.

    Raises:
      UserError: a value is NaN or infinite.
      ValueError: the query of a pair is isolated.
    """
    if not baselines.rates:
        return {}
    choose_bias = bias is None and (split.kinds == "cold").any()
    top_lists = _TopLists(vectors, isolated, split)
    tried: dict[float, Rates] = {}

    def best_of(biases: Iterable[float]) -> float:
        tried.update({value: top_lists.rates(value) for value in biases})
        return max(
            _affordable(tried), key=lambda value: (_worst(tried[value], baselines)[1], -value)
        )

    chosen = best_of(COARSE_BIASES if choose_bias else (bias or 0.0,))
    for step in _FINER_STEPS if choose_bias else ():
        chosen = best_of(round(chosen + by, 4) for by in (-step, step) if chosen + by >= 0)
    if choose_bias:
        chosen = _lowest_within_error(chosen, tried, baselines)
    rates = tried[chosen]
    # Without features nothing distinguishes isolated items, so cold pairs are not scored.
    apart = top_lists.rates(None)
    score, error = _geometric_mean([rate for key, rate in apart.items() if key in baselines.rates])
    named = {f"{kind}_hit@{k}": rate.value for (kind, k), rate in rates.items()}
    return {"score": score, "score_error": error, "cold_start_bias": chosen, **named}


@dataclasses.dataclass(frozen=True, eq=False)
class _Rate:
    """A hit-rate, with what each query adds to it.

    Attributes:
      hits, pairs: float64 [Q], of each query.
    """

    hits: np.ndarray
    pairs: np.ndarray

    @property
    def value(self) -> float:
        """The hit-rate."""
        return float(self.hits.sum() / self.pairs.sum())

    @property
    def positive(self) -> float:
        """The hit-rate, or that of half a hit if it is 0, whose logarithm would be infinite."""
        return max(self.value, 0.5 / float(self.pairs.sum()))

    @property
    def influence(self) -> np.ndarray:
        """Derivative of the rate by the weight of each query, float64 [Q].

        The root of the sum of its squares is the standard error of the rate, since queries,
        not pairs, are drawn independently.
        """
        return (self.hits - self.value * self.pairs) / self.pairs.sum()


# Hit-rates by (kind, k), warm pairs first.
Rates = dict[tuple[str, int], _Rate]


def _geometric_mean(rates: Sequence[_Rate]) -> tuple[float, float]:
    """The geometric mean of rates over the same queries, and its standard error."""
    mean = float(np.exp(np.mean([np.log(rate.positive) for rate in rates])))
    relative = np.mean([rate.influence / rate.positive for rate in rates], axis=0)
    return mean, mean * float(np.sqrt(np.square(relative).sum()))


def _affordable(tried: dict[float, Rates]) -> list[float]:
    """The biases that cost at most WARM_LOSS of the warm hits, ascending."""
    warm = {}
    for bias, rates in tried.items():
        found = [rate for (kind, _), rate in rates.items() if kind == "warm"]
        warm[bias] = _geometric_mean(found)[0] if found else 1.0
    least = (1.0 - WARM_LOSS) * max(warm.values())
    return sorted(bias for bias, value in warm.items() if value >= least)


def _worst(rates: Rates, baselines: BaselineHitRates) -> tuple[tuple[str, int] | None, float]:
    """The (kind, k) whose rate is the smallest relative to its baseline, and that quotient."""
    relative = {
        key: rate.value / baselines.rates[key]
        for key, rate in rates.items()
        if baselines.rates.get(key, 0.0) > 0
    }
    key = min(relative, key=lambda each: relative[each], default=None)
    return key, 0.0 if key is None else relative[key]


def _lowest_within_error(
    best: float, tried: dict[float, Rates], baselines: BaselineHitRates
) -> float:
    """The lowest bias whose smallest relative hit-rate is within an error of that of `best`.

    The error is the standard error of the difference, on the same pairs, in the hit-rate that
    is the smallest at the lower bias.
    """
    _, most = _worst(tried[best], baselines)
    for bias in sorted(value for value in tried if value < best):
        key, value = _worst(tried[bias], baselines)
        if key is None:
            break
        difference = tried[best][key].influence - tried[bias][key].influence
        if most - value <= np.sqrt(np.square(difference).sum()) / baselines.rates[key]:
            return bias
    return best


class _TopLists:
    """Hit-rates of the pairs for any cold-start bias, from one ranking of the catalog.

    A bias adds the same number to the scores of all isolated items for a query that is not
    isolated: its last coordinate times the bias.  So the best isolated items, and the best
    others, are found once, and a rank counts those of both lists above the target.
    """

    def __init__(self, vectors: np.ndarray, isolated: np.ndarray, split: ValidationSplit):
        """Ranks both kinds of items; the arguments are those of `validate`."""
        query, target = split.pairs.T
        if isolated[query].any():
            raise ValueError("the query of a validation pair is isolated")
        self._split = split
        queries, rows = np.unique(query, return_inverse=True)
        self._rows = rows
        self._last = vectors[query, -1].astype(np.float64)
        sides = (np.flatnonzero(~isolated), np.flatnonzero(isolated))
        tops = [_top_of(vectors, items, queries) for items in sides]
        # For each pair: the list that the target may be in, and the list of the other items.
        self._cold = isolated[target]
        own, other = (
            tuple(
                np.where(self._cold[:, None], *(tops[side][part][rows] for side in order))
                for part in (0, 1)
            )
            for order in ((1, 0), (0, 1))
        )
        self._other = other[1]
        found = own[0] == target[:, None]
        # A target that its own list lacks has too many items above it for any cutoff.
        self._found = found.any(axis=1)
        self._target = np.where(found, own[1], -np.inf).max(axis=1)
        self._greater = (own[1] > self._target[:, None]).sum(axis=1)
        self._equal = (own[1] == self._target[:, None]).sum(axis=1) - 1

    def rates(self, bias: float | None) -> Rates:
        """Hit-rates with a cold-start bias; None: among the items of the target's own kind."""
        greater, equal = self._greater, self._equal
        if bias is not None:
            # What the bias adds to the other items' scores, relative to the target's.
            shift = float(np.float32(bias)) * np.where(self._cold, -self._last, self._last)
            scores = self._other + shift[:, None]
            greater = greater + (scores > self._target[:, None]).sum(axis=1)
            equal = equal + (scores == self._target[:, None]).sum(axis=1)
        ranks = np.where(self._found, tie_rank(greater, equal), np.iinfo(np.int64).max)

        def by_query(mask: np.ndarray) -> np.ndarray:
            return np.bincount(self._rows[mask], minlength=self._rows.max() + 1).astype(np.float64)

        kinds = self._split.kinds
        return {
            (kind, k): _Rate(by_query((kinds == kind) & (ranks <= k)), by_query(kinds == kind))
            for kind in sorted(set(kinds.tolist()), reverse=True)
            for k in CUTOFFS
        }


def _top_of(
    vectors: np.ndarray, items: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best of `items` (ascending) for each query but itself, int [Q, _DEPTH], and scores.

    Returns:
      Items, -1 where there are too few; scores float64, -inf there.
    """
    place = np.searchsorted(items, queries)
    excluded = np.full(len(queries), -1, np.int64)
    among = np.isin(queries, items)
    excluded[among] = place[among]
    ids, scores = top_k(vectors[queries], RowSubset(vectors, items), _DEPTH, excluded)
    if not len(items):
        return ids, scores.astype(np.float64)
    return np.where(ids >= 0, items[ids], -1), scores.astype(np.float64)
