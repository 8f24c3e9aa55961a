"""--kind_weights=auto: the weights of kinds of edges by which walks find most in validation.

The kinds are gone through in the order of their edges, most first.  Each is tried with a
quarter, half, twice and four times the weight that it has, and the best is taken if it finds
more than before by two standard errors of the paired difference, so that weights that say
nothing stay equal.

  E edges, K kinds, P pairs
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit

FACTORS = (0.25, 0.5, 2.0, 4.0)
_STANDARD_ERRORS = 2.0

# What a walk over a graph finds of each pair, float64 [P]; more is better.
Hits = Callable[[Graph], np.ndarray]


@dataclasses.dataclass(frozen=True)
class KindChoice:
    """The weights that were chosen.

    Attributes:
      weights: by name of the kind; 1 for a kind that keeps its weight.
      tried: "weights" and "hits", the mean over the pairs, of each trial, equal weights first.
      hits: the mean of the weights that were chosen.
    """

    weights: dict[str, float]
    tried: list[dict[str, Any]]
    hits: float

    @property
    def text(self) -> str:
        """The weights as of --kind_weights; "" if all are equal."""
        if all(weight == 1.0 for weight in self.weights.values()):
            return ""
        return ",".join(f"{name}={weight:g}" for name, weight in self.weights.items())


def choose_weights(
    graph: Graph, kinds: np.ndarray, names: list[str], split: ValidationSplit, hits: Hits
) -> KindChoice:
    """Chooses weights on the training graph of a split.

    Args:
      graph: the whole graph.
      kinds: uint16 [E], see `edge_weights.kinds_of_edges`.
      names: names of the K kinds.
      split: of `graph`.
      hits: measures a graph.
    """
    weights = np.ones(len(names))
    edges, kinds = _training_edges(graph, kinds, split)
    found = hits(_weighed(graph, edges, kinds, weights))
    tried = [_trial(names, weights, found)]
    if len(names) > 1:
        counts = [np.count_nonzero(kinds >> bit & 1) for bit in range(len(names))]
        for kind in np.argsort(-np.array(counts), kind="stable"):
            best = None
            for factor in FACTORS:
                trial = weights.copy()
                trial[kind] *= factor
                value = hits(_weighed(graph, edges, kinds, trial))
                tried.append(_trial(names, trial, value))
                if best is None or value.mean() > best[1].mean():
                    best = trial, value
            assert best is not None
            if _gains(best[1], found):
                weights, found = best
    return KindChoice(dict(zip(names, weights.tolist())), tried, float(found.mean()))


def _gains(better: np.ndarray, other: np.ndarray) -> bool:
    """Whether the mean of values [P] is higher by more than noise."""
    difference = better - other
    error = difference.std() / np.sqrt(max(len(difference), 1))
    return bool(difference.mean() > _STANDARD_ERRORS * error)


def _trial(names: list[str], weights: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    return {"weights": dict(zip(names, weights.tolist())), "hits": float(found.mean())}


def _training_edges(
    graph: Graph, kinds: np.ndarray, split: ValidationSplit
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]:
    """Items, collections and weights of the edges of the training graph, and their kinds."""
    count = graph.num_edges
    items = np.repeat(np.arange(graph.num_items), np.diff(graph.indptr[: graph.num_items + 1]))
    collections = np.asarray(graph.indices[:count], np.int64) - graph.num_items
    withheld = np.isin(items, split.items) | np.isin(collections, split.collections)
    kept = np.flatnonzero(~withheld)
    weights = None if graph.weights is None else np.asarray(graph.weights[:count])[kept]
    edges = items[kept].astype(np.int32), collections[kept].astype(np.int32), weights
    return edges, np.asarray(kinds)[kept]


def _weighed(
    graph: Graph,
    edges: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    kinds: np.ndarray,
    weights: np.ndarray,
) -> Graph:
    """The training graph with weights float64 [K] of the kinds.

    Rows of one edge add up, so that an edge of several kinds has the sum of their weights.
    Where rows have weights of their own, only their sum is known, and it counts for all kinds
    of the edge alike.
    """
    bits = (kinds[:, None] >> np.arange(len(weights), dtype=np.uint16) & 1).astype(np.float64)
    product = bits @ weights
    items, collections, own = edges
    if own is not None:
        product *= own / np.maximum(bits.sum(axis=1), 1)
    return Graph.from_edges(
        items, collections, graph.num_items, graph.num_collections, product.astype(np.float32)
    )
