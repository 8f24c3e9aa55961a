"""Baselines made of rivals, and how any rival's setting is chosen.

A setting is chosen on validation pairs, which come from training edges alone, with
the graph that those edges were withheld from; evaluation pairs are never looked at.

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

# Weights of content beside item-kNN; the first is the default.
WEIGHTS = (0.5, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)
# The usual constant of reciprocal-rank fusion (Cormack, Clarke and Buettcher, 2009).
_RECIPROCAL_OFFSET = 60.0
_TUNING_PAIRS = 2000
_TUNING_CUTOFFS = (10, 100)


def blend(content: np.ndarray, graph: np.ndarray, weight: float) -> np.ndarray:
    """weight * content + (1 - weight) * graph, float32 [Q, N]."""
    return np.float32(weight) * content + np.float32(1.0 - weight) * graph


class LateFusion:
    """A weighted sum of the cosines of content and of collections."""

    name = "fusion"

    def __init__(self, content: Baseline, graph: Baseline, weight: float = WEIGHTS[0]):
        self.settings: dict[str, Any] = {"content_weight": weight}
        self._content, self._graph, self._weight = content, graph, weight

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """float32 [Q, N]."""
        return blend(self._content.scores(query_ids), self._graph.scores(query_ids), self._weight)


class RankFusion:
    """Reciprocal-rank fusion: the sum of 1 / (60 + rank) over two baselines."""

    name = "fusion_pagerank"

    def __init__(self, first: Baseline, second: Baseline):
        self.settings: dict[str, Any] = {"offset": _RECIPROCAL_OFFSET, **second.settings}
        self._parts = (first, second)

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """float32 [Q, N]."""
        total = np.zeros(())
        for part in self._parts:
            scores = np.array(part.scores(query_ids), np.float32)
            # The query is no candidate, so it must not push the others down.
            scores[np.arange(len(query_ids)), query_ids] = -np.inf
            share = 1.0 / (_RECIPROCAL_OFFSET + row_ranks(scores))
            total = total + share
        return total.astype(np.float32)


def row_ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of every column in its row under TIE_RULE, float32 [Q, N]."""
    ranks = np.empty(scores.shape, np.float32)
    places = np.arange(scores.shape[1])
    for row, line in enumerate(scores):
        order = np.argsort(-line)
        ordered = line[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        sizes = np.diff(np.append(starts, len(places)))
        # `starts` candidates are greater; sizes - 1 others are equal.
        ranks[row, order] = np.repeat(1 + starts + sizes // 2, sizes)
    return ranks


@dataclasses.dataclass(frozen=True)
class Choice:
    """A chosen setting, and what each candidate reached."""

    value: float
    objective: dict[str, float]  # candidate -> hit@10 + hit@100 on the validation pairs


def choose(
    values: Sequence[float],
    scored: Callable[[np.ndarray], Iterable[np.ndarray]],
    pairs: np.ndarray,
    num_items: int,
    seed: int,
) -> Choice:
    """The value with the best hit@10 + hit@100 on validation pairs; ties: the earlier.

    Args:
      scored: queries int32 [Q] -> one float32 [Q, N] for each value, in order.
      pairs: int32 [P, 2] validation pairs; a keyed sample of 2000 is used.
    """
    if len(pairs) > _TUNING_PAIRS:
        generator = keyed_generator(seed, "tuning pairs")
        pairs = pairs[np.sort(generator.choice(len(pairs), _TUNING_PAIRS, replace=False))]
    hits = np.zeros(len(values))
    for queries in query_blocks(pairs[:, 0], num_items):
        chosen = pairs[(pairs[:, 0] >= queries[0]) & (pairs[:, 0] <= queries[-1])]
        rows = np.searchsorted(queries, chosen[:, 0])
        for place, scores in enumerate(scored(queries)):
            ranks = ranks_from_scores(scores, rows, chosen[:, 0], chosen[:, 1])
            hits[place] += sum(np.count_nonzero(ranks <= k) for k in _TUNING_CUTOFFS)
    objective = {f"{value:g}": float(hit) / len(pairs) for value, hit in zip(values, hits)}
    return Choice(values[int(np.argmax(hits))], objective)
