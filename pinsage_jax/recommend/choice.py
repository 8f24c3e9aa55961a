"""Chooses how recommendations are scored, on collections that training never saw.

The collections that the validation split withholds act as users: a fifth of their items is
held out and the rest is the history.  The vectors must be computed over the graph without
these collections, so that neither the network nor its neighborhoods contain the held-out
items.  Test edges are never used.

First the shape (a power or a temperature) and the popularity exponent are chosen together,
then the rarity exponent.  The criterion is NDCG@20.

  U users, N items, Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pinsage_jax.config.search import RecommendConfig
from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.recommend.metrics import DEPTH, METRICS, per_user
from pinsage_jax.recommend.scores import (
    Histories,
    Mean,
    Scan,
    Shape,
    Sharpened,
    best_items,
    best_of_variants,
)

POWERS = (1.0, 2.0, 4.0, 8.0)
TEMPERATURES = (0.08, 0.15, 0.3, 0.6)
POPULARITIES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
RARITIES = (0.0, 0.25, 0.5, 0.75)
_FIRST_RARITY = 0.5
_HELD_OUT_SHARE = 0.2
_MIN_ITEMS = 5
_MAX_USERS = 500


@dataclasses.dataclass(frozen=True)
class Choice:
    """A scoring method and its hyperparameters.

    Attributes:
      by: mean, interests, power or attention.
      value: the power, or the temperature of attention.
      popularity: exponent of an item's 1 + degree; for power and attention.
      rarity: exponent of a history item's 1 / (1 + degree); for power and attention.
    """

    by: str
    value: float = 1.0
    popularity: float = 0.25
    rarity: float = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Validation:
    """Validation users.

    Attributes:
      vectors: float32 [N, Z], computed without the edges of these users.
      degree: int [N], number of edges of each item without those of these users.
      histories: the items of each user by which recommendations are scored.
      held_out: the items of each user that should be recommended.
    """

    vectors: np.ndarray
    degree: np.ndarray
    histories: Histories
    held_out: Histories


def validation_users(
    graph: Graph, split: ValidationSplit, vectors: np.ndarray, seed: int
) -> Validation | None:
    """Builds the validation users from the collections that the split withholds.

    Args:
      graph: the whole graph.
      split: the validation split.
      vectors: float32 [N, Z], computed over split.train_graph.
      seed: key of the held-out items.

    Returns:
      The users; None if no withheld collection has enough items.
    """
    degree = split.train_graph.degree()[: graph.num_items]
    rng = keyed_generator(seed, "recommend")
    histories, held_out = list[np.ndarray](), list[np.ndarray]()
    for collection in rng.permutation(split.collections).tolist():
        items = graph.neighbors(graph.num_items + collection)
        items = items[degree[items] > 0]
        if len(items) < _MIN_ITEMS or len(histories) == _MAX_USERS:
            continue
        mask = np.zeros(len(items), np.bool_)
        count = max(1, round(_HELD_OUT_SHARE * len(items)))
        mask[rng.choice(len(items), count, replace=False)] = True
        histories.append(items[~mask])
        held_out.append(items[mask])
    if not histories:
        return None
    return Validation(
        np.asarray(vectors, np.float32), degree, _concatenate(histories), _concatenate(held_out)
    )


def needs_validation(config: RecommendConfig) -> bool:
    """Whether --recommend_by leaves a setting to be chosen."""
    return config.recommend_by in ("auto", "power", "attention")


def choose(
    config: RecommendConfig, validation: Validation | None, threads: int
) -> tuple[Choice, list[dict[str, Any]]]:
    """Chooses the scoring method among those that --recommend_by allows.

    Without validation users it is power 1 or, if attention is asked for, temperature .3,
    with the default exponents of Choice.

    Returns:
      The choice, and every candidate with its validation metrics (empty if none was tried).
    """
    if not needs_validation(config):
        return Choice(config.recommend_by), []
    if validation is None:
        attention = config.recommend_by == "attention"
        return Choice("attention", 0.3) if attention else Choice("power"), []

    tried: list[tuple[Choice, np.ndarray]] = []

    def run(shape: Shape, rarity: float, exponents: tuple[float, ...]) -> None:
        scorer = Sharpened(validation.vectors, validation.degree, shape, exponents, rarity, threads)
        ids, _ = best_of_variants(
            scorer, validation.histories, len(validation.vectors), DEPTH, len(exponents),
            scan=Scan(threads, quiet=True),
        )  # fmt: skip
        for exponent, found in zip(exponents, ids):
            tried.append((Choice(shape.kind, shape.value, exponent, rarity), _means(found)))

    def _means(found: np.ndarray) -> np.ndarray:
        sizes = np.diff(validation.held_out.indptr)
        return per_user(found, validation.held_out, sizes).mean(axis=0)

    def best() -> Choice:
        return max(tried, key=lambda pair: pair[1][1])[0]

    for shape in _shapes(config.recommend_by):
        run(shape, _FIRST_RARITY, POPULARITIES)
    leader = best()
    for rarity in RARITIES:
        if rarity != _FIRST_RARITY:
            run(Shape(leader.by, leader.value), rarity, POPULARITIES)
    if config.recommend_by == "auto":
        ids, _ = best_items(
            Mean(validation.vectors), validation.histories, len(validation.vectors), DEPTH,
            scan=Scan(threads, quiet=True),
        )  # fmt: skip
        tried.append((Choice("mean"), _means(ids)))
    table = [
        {**dataclasses.asdict(choice), **dict(zip(METRICS, values.tolist()))}
        for choice, values in tried
    ]
    return best(), table


def _shapes(by: str) -> list[Shape]:
    """The shapes to try for --recommend_by."""
    shapes = [Shape("power", value) for value in POWERS]
    shapes += [Shape("attention", value) for value in TEMPERATURES]
    return [shape for shape in shapes if by in ("auto", shape.kind)]


def _concatenate(parts: list[np.ndarray]) -> Histories:
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Histories(indptr, np.concatenate(parts).astype(np.int32))
