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
    """Whether the flags leave a setting to be chosen."""
    if config.recommend_by == "auto":
        return True
    value = {"power": config.recommend_power, "attention": config.recommend_temperature}
    exponents = config.recommend_popularity, config.recommend_rarity
    return config.recommend_by in value and (value[config.recommend_by] == 0 or min(exponents) < 0)


def choose(
    config: RecommendConfig, validation: Validation | None, threads: int
) -> tuple[Choice, list[dict[str, Any]]]:
    """Chooses the scoring method among those that the flags allow.

    Settings that the flags fix are kept; the others are chosen on the validation users.
    Without validation users the defaults are rarity .5, popularity .25, power 1 and
    temperature .3.

    Returns:
      The choice, and every candidate with its validation metrics (empty if none was tried).
    """
    shapes = _shapes(config)
    popularities = _grid(config.recommend_popularity, POPULARITIES)
    rarities = _grid(config.recommend_rarity, RARITIES)
    if config.recommend_by in ("mean", "interests"):
        return Choice(config.recommend_by), []
    if validation is None or not needs_validation(config):
        return _default(shapes, popularities, rarities), []

    tried: list[tuple[Choice, np.ndarray]] = []

    def run(shape: Shape, rarity: float, exponents: tuple[float, ...]) -> None:
        scorer = Sharpened(validation.vectors, validation.degree, shape, exponents, rarity, threads)
        ids, _ = best_of_variants(
            scorer, validation.histories, len(validation.vectors), DEPTH, len(exponents),
            threads=threads, quiet=True,
        )  # fmt: skip
        for exponent, found in zip(exponents, ids):
            tried.append((Choice(shape.kind, shape.value, exponent, rarity), _means(found)))

    def _means(found: np.ndarray) -> np.ndarray:
        sizes = np.diff(validation.held_out.indptr)
        return per_user(found, validation.held_out, sizes).mean(axis=0)

    def best() -> Choice:
        return max(tried, key=lambda pair: pair[1][1])[0]

    first = _FIRST_RARITY if _FIRST_RARITY in rarities else rarities[0]
    for shape in shapes:
        run(shape, first, popularities)
    leader = best()
    for rarity in rarities:
        if rarity != first:
            run(Shape(leader.by, leader.value), rarity, popularities)
    if config.recommend_by == "auto":
        ids, _ = best_items(
            Mean(validation.vectors), validation.histories, len(validation.vectors), DEPTH,
            threads=threads, quiet=True,
        )  # fmt: skip
        tried.append((Choice("mean"), _means(ids)))
    table = [
        {**dataclasses.asdict(choice), **dict(zip(METRICS, values.tolist()))}
        for choice, values in tried
    ]
    return best(), table


def _shapes(config: RecommendConfig) -> list[Shape]:
    powers = (config.recommend_power,) if config.recommend_power > 0 else POWERS
    fixed = config.recommend_temperature
    temperatures = (fixed,) if fixed > 0 else TEMPERATURES
    shapes = [Shape("power", value) for value in powers]
    shapes += [Shape("attention", value) for value in temperatures]
    return [shape for shape in shapes if config.recommend_by in ("auto", shape.kind)]


def _grid(fixed: float, grid: tuple[float, ...]) -> tuple[float, ...]:
    return grid if fixed < 0 else (fixed,)


def _default(
    shapes: list[Shape], popularities: tuple[float, ...], rarities: tuple[float, ...]
) -> Choice:
    attention = [shape for shape in shapes if shape.value == 0.3]
    shape = attention[0] if shapes[0].kind == "attention" and attention else shapes[0]
    popularity = 0.25 if 0.25 in popularities else popularities[0]
    rarity = _FIRST_RARITY if _FIRST_RARITY in rarities else rarities[0]
    return Choice(shape.kind, shape.value, popularity, rarity)


def _concatenate(parts: list[np.ndarray]) -> Histories:
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Histories(indptr, np.concatenate(parts).astype(np.int32))
