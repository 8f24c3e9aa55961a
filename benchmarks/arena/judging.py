"""Ranks, metrics and choice of settings: the code by which the project evaluates itself.

P pairs, N items, Q queries, Z dimensions
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.arena.peers import Peer, Scorer, Train, Unavailable
from pinsage_jax.data.pairs_table import derived_kinds
from pinsage_jax.evaluation import metrics
from pinsage_jax.evaluation.baselines import rank_pairs
from pinsage_jax.retrieval.topk import target_ranks

METRICS = ("hit@10", "hit@100", "ndcg@10")
# Vectors are compared by both, and the better one in validation is taken.
_SIMILARITIES = ("inner product", "cosine")


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted peer: how its scores are made, under the name that progress shows."""

    name: str
    settings: dict[str, Any]
    model: np.ndarray | Scorer

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q], of a Scorer."""
        return self.model.scores(query_ids)

    def ranks(self, pairs: np.ndarray, num_items: int) -> np.ndarray:
        """Ranks int64 [P] of the targets of pairs int32 [P, 2] in the whole catalog.

        Raises:
          ValueError: a vector is not finite.
        """
        if not isinstance(self.model, np.ndarray):
            return rank_pairs(self, pairs, num_items)
        query, target = pairs.T
        return target_ranks(self.model[query], self.model, query, target)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The settings that validation chose.

    Attributes:
      settings: of the peer's grid, and for vectors the similarity.
      values: hit@10 + hit@100 in validation, the mean of warm and cold pairs, by settings as text.
      seconds: time of all fits and rankings.
    """

    settings: dict[str, Any]
    values: dict[str, float]
    seconds: float


def choose_settings(peer: Peer, train: Train, pairs: np.ndarray) -> Chosen:
    """The settings of the peer's grid with the best hit@10 + hit@100; the earlier of equal ones.

    Warm and cold pairs count the same, so that few cold ones are not given up for warm ones.
    Settings that need what the data lack, such as features, are left out.

    Args:
      train: the edges without those withheld for validation.
      pairs: int32 [P, 2], validation pairs; without any the first settings are taken.

    Raises:
      Unavailable: the peer cannot run here with any settings.
    """
    begin = time.perf_counter()
    values, best, lacking = {}, (-1.0, dict[str, Any]()), []
    kinds = derived_kinds(pairs, train.edges.getnnz(axis=1))
    masks = [kinds == kind for kind in np.unique(kinds)]
    for settings in peer.grid:
        try:
            fits = list(_fits(peer, train, settings))
        except Unavailable as reason:
            lacking.append(reason)
            continue
        for fitted in fits:
            if len(pairs) == 0:
                return Chosen(fitted.settings, {}, time.perf_counter() - begin)
            ranks = fitted.ranks(pairs, train.edges.shape[0])
            found = [_means(ranks[mask], pairs[mask]) for mask in masks]
            value = sum(rates["hit@10"] + rates["hit@100"] for rates in found) / len(found)
            values[as_text(fitted.settings)] = value
            if value > best[0]:
                best = (value, fitted.settings)
    if len(lacking) == len(peer.grid):
        raise lacking[0]
    return Chosen(best[1], values, time.perf_counter() - begin)


def fit_chosen(peer: Peer, train: Train, settings: dict[str, Any]) -> Fitted:
    """Fits the peer with settings that were chosen."""
    settings = dict(settings)
    similarity = settings.pop("similarity", None)
    return next(
        fitted
        for fitted in _fits(peer, train, settings)
        if fitted.settings.get("similarity") == similarity
    )


def _fits(peer: Peer, train: Train, settings: dict[str, Any]) -> Iterator[Fitted]:
    """One fit of the peer; vectors come once for each similarity."""
    model = peer.fit(train, **settings)
    if not isinstance(model, np.ndarray):
        yield Fitted(peer.name, settings, model)
        return
    for similarity in _SIMILARITIES:
        vectors = model
        if similarity == "cosine":
            length = np.linalg.norm(model, axis=1, keepdims=True)
            vectors = np.divide(model, length, out=np.zeros_like(model), where=length > 0)
        yield Fitted(peer.name, {**settings, "similarity": similarity}, vectors)


def judge(ranks: np.ndarray, pairs: np.ndarray, kinds: np.ndarray) -> dict[str, dict[str, float]]:
    """Metrics of ranks int64 [P] over all pairs int32 [P, 2] and by kind, kinds str [P]."""
    masks = {"all": np.ones(len(pairs), np.bool_)}
    masks |= {str(kind): kinds == kind for kind in np.unique(kinds)}
    return {
        name: {"pairs": int(mask.sum()), **_means(ranks[mask], pairs[mask])}
        for name, mask in masks.items()
    }


def _means(ranks: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    return metrics.query_table(ranks, pairs[:, 0]).means()


def as_text(settings: dict[str, Any]) -> str:
    """Settings as the table shows them."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())
