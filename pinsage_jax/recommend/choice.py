"""Chooses how recommendations are scored, on collections that training never saw.

The collections that the validation split withholds act as users: a fifth of their items is
held out and the rest is the history.  The vectors must be computed over the graph without
these collections, so that neither the network nor its neighborhoods contain the held-out
items.  Test edges are never used.

First the shape (a power or a temperature) and the popularity exponent are chosen together,
then the rarity exponent.  Scores by the graph alone and mixtures follow, see
graph_choice.py.  The criterion is NDCG@20.

  U users, N items, Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from pinsage_jax.config.search import RecommendConfig
from pinsage_jax.evaluation.baselines_graph import incidence
from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.recommend.graph_choice import NETWORK_BOUND, GraphChoice, GraphSearch
from pinsage_jax.recommend.graph_scores import GRAPH_METHODS, Cooccurrence, Mixture, Spectral
from pinsage_jax.recommend.metrics import DEPTH, METRICS, per_user
from pinsage_jax.recommend.scores import (
    Histories,
    Mean,
    Scan,
    Scorer,
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
_MAX_USERS = 1000


@dataclasses.dataclass(frozen=True)
class Choice:
    """A scoring method and its hyperparameters.

    Attributes:
      by: mean, interests, power, attention, cooccurrence, spectral or mixed.
      value: the power, or the temperature of attention.
      popularity: exponent of an item's 1 + degree; for power and attention.
      rarity: exponent of a history item's 1 / (1 + degree); for power and attention.
      graph: scores by the graph; None where none were tried.  In a mixture `value`,
        `popularity` and `rarity` are those of the network's part.
    """

    by: str
    value: float = 1.0
    popularity: float = 0.25
    rarity: float = 0.5
    graph: GraphChoice | None = None

    def __str__(self) -> str:
        """The choice in words."""
        if self.by in ("mean", "interests"):
            return f"the history's {self.by}"
        network = (
            f"exponents of popularity {self.popularity:g} and of rarity {self.rarity:g}, "
            f"{'power' if self.by == 'power' else 'temperature'} {self.value:g}"
        )
        if self.by in ("power", "attention"):
            return f"{self.by} ({network})"
        assert self.graph is not None
        if self.by == "spectral":
            return f"spectral vectors of {self.graph.width} dimensions"
        lists = self.graph.exponents
        found = f"co-occurrence (exponents {lists.history:g}, {lists.collection:g}, {lists.item:g})"
        if self.by == "mixed" and self.graph.weights[1]:
            found += f" and spectral vectors of {self.graph.width} dimensions"
        if self.by == "mixed" and self.graph.weights[2]:
            found += f" and the network's {self.graph.network}"
        return found

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Choice:
        """The choice that dataclasses.asdict made `saved` of."""
        graph = saved.get("graph")
        return cls(**{**saved, "graph": graph and GraphChoice.from_json(graph)})


@dataclasses.dataclass(frozen=True, eq=False)
class Validation:
    """Validation users.

    Attributes:
      vectors: float32 [N, Z], computed without the edges of these users.
      degree: int [N], number of edges of each item without those of these users.
      histories: the items of each user by which recommendations are scored.
      held_out: the items of each user that should be recommended.
      graph: the graph without these users' other edges, but with their histories; None:
        scores by the graph are not tried.
      seed: of the spectral vectors.
    """

    vectors: np.ndarray
    degree: np.ndarray
    histories: Histories
    held_out: Histories
    graph: Graph | None = None
    seed: int = 0


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
    histories, held_out, users = list[np.ndarray](), list[np.ndarray](), list[int]()
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
        users.append(collection)
    if not histories:
        return None
    known = _concatenate(histories)
    return Validation(
        np.asarray(vectors, np.float32), degree, known, _concatenate(held_out),
        _with_histories(split.train_graph, graph, np.array(users), known), seed,
    )  # fmt: skip


def _with_histories(train: Graph, whole: Graph, users: np.ndarray, histories: Histories) -> Graph:
    """The training graph with the edges from collections `users` to their histories."""
    matrix, given = incidence(train), incidence(whole)
    owners = users[histories.owners()]
    mask = sparse.csr_array(
        (np.ones(len(owners), np.float32), (histories.items, owners)), shape=given.shape
    )
    edges = (matrix + given * mask).tocoo()
    items, collections = (axis.astype(np.int32) for axis in edges.coords)
    weights = None if whole.weights is None else edges.data
    return Graph.from_edges(items, collections, whole.num_items, whole.num_collections, weights)


def needs_validation(config: RecommendConfig) -> bool:
    """Whether --recommend_by leaves a setting to be chosen."""
    return config.recommend_by not in ("mean", "interests")


def choose(
    config: RecommendConfig, validation: Validation | None, threads: int
) -> tuple[Choice, list[dict[str, Any]]]:
    """Chooses the scoring method among those that --recommend_by allows.

    Without validation users it is power 1 or, if attention is asked for, temperature .3,
    with the default exponents of Choice.

    Returns:
      The choice, and every candidate with its validation metrics (empty if none was tried).
    """
    by = config.recommend_by
    if not needs_validation(config):
        return Choice(by), []
    if validation is None:
        if by in GRAPH_METHODS:
            # Without spectral vectors a mixture is its first part.
            return Choice("cooccurrence", graph=GraphChoice()), []
        return Choice("attention", 0.3) if by == "attention" else Choice("power"), []
    tried = _network_candidates(by, validation, threads)
    if validation.graph is not None and (by == "auto" or by in GRAPH_METHODS):
        tried += _graph_candidates(by, validation, max(tried, key=_ndcg, default=None), threads)
    table = [
        {**dataclasses.asdict(choice), **dict(zip(METRICS, values.mean(axis=0).tolist()))}
        for choice, values in tried
    ]
    allowed = [one for one in tried if by == "auto" or one[0].by == by] or tried
    # Of equal ones the simpler: max takes the first.
    allowed.sort(key=lambda one: one[0].by == "mixed")
    return max(allowed, key=_ndcg)[0], table


# A candidate and the metrics of each user, float64 [U, 2].
_Candidate = tuple[Choice, np.ndarray]


def _ndcg(candidate: _Candidate) -> float:
    return float(candidate[1][:, 1].mean())


def _measure(validation: Validation, found: np.ndarray) -> np.ndarray:
    return per_user(found, validation.held_out, np.diff(validation.held_out.indptr))


def _network_candidates(by: str, validation: Validation, threads: int) -> list[_Candidate]:
    """Powers, attention and the mean, by the network's vectors."""
    tried: list[_Candidate] = []

    def run(shape: Shape, rarity: float, exponents: tuple[float, ...]) -> None:
        scorer = Sharpened(validation.vectors, validation.degree, shape, exponents, rarity, threads)
        ids, _ = best_of_variants(
            scorer, validation.histories, len(validation.vectors), DEPTH, len(exponents),
            scan=Scan(threads, quiet=True),
        )  # fmt: skip
        for exponent, found in zip(exponents, ids):
            choice = Choice(shape.kind, shape.value, exponent, rarity)
            tried.append((choice, _measure(validation, found)))

    for shape in _shapes(by):
        run(shape, _FIRST_RARITY, POPULARITIES)
    if not tried:
        return tried
    leader = max(tried, key=_ndcg)[0]
    for rarity in RARITIES:
        if rarity != _FIRST_RARITY:
            run(Shape(leader.by, leader.value), rarity, POPULARITIES)
    if by in ("auto", "mixed"):
        ids, _ = best_items(
            Mean(validation.vectors), validation.histories, len(validation.vectors), DEPTH,
            scan=Scan(threads, quiet=True),
        )  # fmt: skip
        tried.append((Choice("mean"), _measure(validation, ids)))
    return tried


def _graph_candidates(
    by: str, validation: Validation, network: _Candidate | None, threads: int
) -> list[_Candidate]:
    """Co-occurrence, spectral vectors and mixtures of both, and then with the network's best."""
    assert validation.graph is not None
    search = GraphSearch(
        validation.graph, validation.histories, lambda found: _measure(validation, found),
        validation.seed, threads,
    )  # fmt: skip
    degree = validation.graph.degree()[: validation.graph.num_items]
    best = search.cooccurrence()
    parts: list[tuple[Scorer, float]] = [(Cooccurrence(validation.graph, best.choice.exponents), 1)]
    found = None if by == "cooccurrence" else search.spectral(best.choice.exponents)
    if found is not None:
        spectral, bases = found
        scorer = Spectral(bases, degree)
        mixed = search.mixed(parts, spectral.choice, 1, scorer)
        if mixed.ndcg > max(best.ndcg, spectral.ndcg):
            best = mixed
            parts.append((scorer, mixed.choice.weights[1]))
    shape = {}
    if network is not None:
        choice = network[0]
        shape = {"value": choice.value, "popularity": choice.popularity, "rarity": choice.rarity}
        start = dataclasses.replace(best.choice, network=choice.by)
        search.mixed(parts, start, 2, network_part(choice, validation.vectors, degree, threads))
    return [
        (Choice(one.by, **shape if one.choice.weights[2] else {}, graph=one.choice), one.values)
        for one in search.tried
    ]


def network_part(choice: Choice, vectors: np.ndarray, degree: np.ndarray, threads: int) -> Scorer:
    """The network's part of a mixture, of choice.by: mean, power or attention."""
    if choice.by == "mean":
        return Mean(vectors)
    return Sharpened(
        vectors, degree, Shape(choice.by, choice.value), choice.popularity, choice.rarity, threads,
        NETWORK_BOUND,
    )  # fmt: skip


def graph_scorer(
    choice: Choice, graph: Graph, bases: np.ndarray, vectors: np.ndarray, threads: int
) -> Scorer:
    """The scorer of a choice among GRAPH_METHODS.

    Args:
      choice: the choice.
      graph: the training graph.
      bases: float32 [N, choice.graph.width], its item_bases.
      vectors: float32 [N, Z], the network's.
      threads: number of threads.
    """
    by_graph = choice.graph
    assert by_graph is not None
    degree = graph.degree()[: graph.num_items]
    if choice.by == "spectral":
        return Spectral(bases, degree)
    first = Cooccurrence(graph, by_graph.exponents)
    if choice.by == "cooccurrence":
        return first
    parts: list[tuple[Scorer, float]] = [(first, by_graph.weights[0])]
    if by_graph.weights[1]:
        parts.append((Spectral(bases, degree), by_graph.weights[1]))
    if by_graph.weights[2]:
        network = dataclasses.replace(choice, by=by_graph.network)
        parts.append((network_part(network, vectors, degree, threads), by_graph.weights[2]))
    return Mixture(parts)


def _shapes(by: str) -> list[Shape]:
    """The shapes to try for --recommend_by."""
    shapes = [Shape("power", value) for value in POWERS]
    shapes += [Shape("attention", value) for value in TEMPERATURES]
    return [shape for shape in shapes if by in ("auto", "mixed", shape.kind)]


def _concatenate(parts: list[np.ndarray]) -> Histories:
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Histories(indptr, np.concatenate(parts).astype(np.int32))
