"""Fusions of two baselines, and the choice of a baseline's hyperparameter.

A hyperparameter is chosen on validation pairs, which come from training edges alone, over
the graph from which those edges were withheld; evaluation pairs are never used.

  Q queries, N items, P pairs
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pinsage_jax.evaluation.baselines import Baseline, query_blocks
from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.retrieval.ranks import ranks_from_scores

# Candidate weights of content in the late fusion; the first is the default.
WEIGHTS = (0.5, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)
# The usual constant of reciprocal-rank fusion (Cormack, Clarke and Buettcher 2009).
_RECIPROCAL_OFFSET = 60.0
_TUNING_PAIRS = 2000
_TUNING_CUTOFFS = (10, 100)


def blend(content: np.ndarray, graph: np.ndarray, weight: float) -> np.ndarray:
    """weight * content + (1 - weight) * graph, of scores float32 [Q, N]."""
    return np.float32(weight) * content + np.float32(1.0 - weight) * graph


class LateFusion:
    """Late fusion: a weighted sum of the scores of content and of item-kNN."""

    name = "fusion"

    def __init__(self, content: Baseline, graph: Baseline, weight: float = WEIGHTS[0]):
        self.settings: dict[str, Any] = {"content_weight": weight}
        self._content, self._graph, self._weight = content, graph, weight

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        return blend(self._content.scores(query_ids), self._graph.scores(query_ids), self._weight)


class RankFusion:
    """Reciprocal-rank fusion: the sum of 1 / (60 + rank) over two baselines."""

    name = "fusion_pagerank"

    def __init__(self, first: Baseline, second: Baseline):
        self.settings: dict[str, Any] = {"offset": _RECIPROCAL_OFFSET, **second.settings}
        self._baselines = (first, second)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        total = np.zeros(())
        for baseline in self._baselines:
            scores = np.array(baseline.scores(query_ids), np.float32)
            # The query is no candidate, so it must not take a rank from the others.
            scores[np.arange(len(query_ids)), query_ids] = -np.inf
            total = total + 1.0 / (_RECIPROCAL_OFFSET + row_ranks(scores))
        return total.astype(np.float32)


def row_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks of all columns within their row under TIE_RULE, float32 [Q, N]."""
    ranks = np.empty(scores.shape, np.float32)
    for row, row_scores in enumerate(scores):
        order = np.argsort(-row_scores)
        ordered = row_scores[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        sizes = np.diff(np.append(starts, len(ordered)))
        # In each run of ties, `starts` candidates are greater and `sizes - 1` others equal.
        ranks[row, order] = np.repeat(1 + starts + sizes // 2, sizes)
    return ranks


@dataclasses.dataclass(frozen=True)
class Choice:
    """The chosen value of a hyperparameter.

    Attributes:
      value: the chosen value.
      objective: hit@10 + hit@100 on the validation pairs, by candidate value.
    """

    value: float
    objective: dict[str, float]


def choose(
    values: Sequence[float],
    scored: Callable[[np.ndarray], Iterable[np.ndarray]],
    pairs: np.ndarray,
    num_items: int,
    seed: int,
) -> Choice:
    """Chooses the value with the best hit@10 + hit@100 on validation pairs.

    Of equally good values the earlier is chosen.

    Args:
      values: the candidates.
      scored: maps queries int32 [Q] to scores float32 [Q, N] of each value, in order.
      pairs: int32 [P, 2] validation pairs; of more than 2000, a sample of 2000 is used.
      num_items: N.
      seed: key of the sample.
    """
    if len(pairs) > _TUNING_PAIRS:
        generator = keyed_generator(seed, "tuning pairs")
        pairs = pairs[np.sort(generator.choice(len(pairs), _TUNING_PAIRS, replace=False))]
    hits = np.zeros(len(values))
    for queries in query_blocks(pairs[:, 0], num_items):
        chosen = pairs[(pairs[:, 0] >= queries[0]) & (pairs[:, 0] <= queries[-1])]
        rows = np.searchsorted(queries, chosen[:, 0])
        for number, scores in enumerate(scored(queries)):
            ranks = ranks_from_scores(scores, rows, chosen[:, 0], chosen[:, 1])
            hits[number] += sum(np.count_nonzero(ranks <= k) for k in _TUNING_CUTOFFS)
    objective = {f"{value:g}": float(count) / len(pairs) for value, count in zip(values, hits)}
    return Choice(values[int(np.argmax(hits))], objective)
