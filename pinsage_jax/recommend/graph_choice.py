"""Chooses scores by the graph alone, and how they are mixed with the network's.

They are scored on the same users as the network's scores, but over a graph that also has
the users' histories, as in use: only the held-out edges are missing.  The network has never
seen these users, so this comparison favors the graph's scores a little.

Exponents of co-occurrence are searched one after another, then the width of spectral
vectors, then the weights of a mixture, whose parts are first divided by the mean of their
best scores.  A mixture, or a further part of it, is taken if its mean NDCG@20 is the highest:
its parts err on different users, so that a small gain in validation holds more often than not.
Of widths within a standard error of the difference over the users the narrowest is taken.

  U users, N items, D dimensions
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pinsage_jax.graph.csr import Graph
from pinsage_jax.recommend.graph_scores import Cooccurrence, Exponents, Mixture, Spectral
from pinsage_jax.recommend.metrics import DEPTH
from pinsage_jax.recommend.scores import Histories, Scan, Scorer, best_of_variants
from pinsage_jax.sampling.spectral import item_bases

HISTORY_EXPONENTS = (0.0, -0.25, -0.5, -0.75, -1.0)
COLLECTION_EXPONENTS = (0.0, -0.4, -0.6, -0.8, -1.0)
ITEM_EXPONENTS = (0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.6)
# The last steps of the search go this far to both sides.
_FINE_STEP = 0.1
WIDTHS = (64, 128, 256, 512, 1024)
# Numbers of all items' vectors; wider ones would take more memory than the graph.
_MAX_NUMBERS = 100_000_000
SHARES = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)
# Similarities of the network are bounded near this in a mixture, for any vectors.
NETWORK_BOUND = 1.0

# Metrics of each user, float64 [U, 2], of the ids int32 [U, k].
Measure = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class GraphChoice:
    """Scores by the graph.

    Attributes:
      exponents: of the degrees in co-occurrence.
      width: D of the spectral vectors; 0: there are none.
      weights: of co-occurrence, the spectral and the network's score in a mixture.
      network: the network's part of the mixture: mean, power or attention.
    """

    exponents: Exponents = Exponents()
    width: int = 0
    weights: tuple[float, float, float] = (1.0, 0.0, 0.0)
    network: str = "mean"

    @classmethod
    def from_json(cls, saved: dict) -> GraphChoice:
        """The choice that dataclasses.asdict made `saved` of."""
        return cls(
            Exponents(**saved["exponents"]), saved["width"], tuple(saved["weights"]),
            saved["network"],
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate and the metrics of each user, float64 [U, 2]."""

    by: str
    choice: GraphChoice
    values: np.ndarray

    @property
    def ndcg(self) -> float:
        """Mean NDCG@20."""
        return float(self.values[:, 1].mean())


class GraphSearch:
    """The candidates on one set of validation users.

    Attributes:
      tried: every candidate, in the order of trial.
    """

    def __init__(
        self, graph: Graph, histories: Histories, measure: Measure, seed: int, threads: int
    ):
        """Takes the graph with the histories, and what measures lists for them."""
        self._graph, self._histories, self._measure = graph, histories, measure
        self._seed, self._scan = seed, Scan(threads, quiet=True)
        self._degree = graph.degree()[: graph.num_items]
        self.tried: list[Tried] = []

    def cooccurrence(self) -> Tried:
        """The best exponents, one after another."""
        best = self._of_exponents(Exponents(history, item=0.0) for history in HISTORY_EXPONENTS)
        found = best.choice.exponents
        best = self._of_exponents(
            dataclasses.replace(found, collection=value) for value in COLLECTION_EXPONENTS
        )
        for name in ("history", "collection"):
            found = best.choice.exponents
            middle = getattr(found, name)
            near = (middle - _FINE_STEP, middle + _FINE_STEP)
            self._of_exponents(dataclasses.replace(found, **{name: value}) for value in near)
            best = max(self.tried, key=lambda one: one.ndcg)
        return best

    def _of_exponents(self, candidates: Iterable[Exponents]) -> Tried:
        """Tries the candidates with every exponent of the listed item; the best so far."""
        for exponents in candidates:
            scorer = Cooccurrence(self._graph, exponents, ITEM_EXPONENTS)
            ids, _ = self._lists(scorer, len(ITEM_EXPONENTS))
            for value, found in zip(ITEM_EXPONENTS, ids):
                exact = dataclasses.replace(exponents, item=value)
                self._add("cooccurrence", GraphChoice(exact), found)
        return max(self.tried, key=lambda one: one.ndcg)

    def spectral(self, exponents: Exponents) -> tuple[Tried, np.ndarray] | None:
        """The narrowest width within a standard error of the best, and its vectors [N, D].

        None where the graph is too small or too large for any of WIDTHS.
        """
        items, collections = self._graph.num_items, self._graph.num_collections
        widths = [
            width
            for width in WIDTHS
            if width < min(items, collections) and width * items <= _MAX_NUMBERS
        ]
        if not widths:
            return None
        bases = item_bases(self._graph, widths[-1], self._seed)
        found = []
        for width in widths:
            # The first vectors of a wide decomposition are those of a narrow one.
            ids, _ = self._lists(Spectral(bases[:, :width], self._degree))
            found.append(self._add("spectral", GraphChoice(exponents, width), ids[0]))
        best = max(found, key=lambda one: one.ndcg)
        for one in found:
            if not gains(best.values, one.values):
                return one, bases[:, : one.choice.width]
        raise AssertionError("the best is within an error of itself")

    def mixed(
        self, parts: Sequence[tuple[Scorer, float]], choice: GraphChoice, part: int, scorer: Scorer
    ) -> Tried:
        """The best share of a further scorer beside the scorers and weights of `parts`.

        Args:
          parts: scorers and weights that stay as they are.
          choice: their choice.
          part: index of the further scorer in GraphChoice.weights.
          scorer: the further scorer.
        """
        size = self._mean_score(Mixture(parts)) / self._mean_score(scorer)
        found = []
        for share in SHARES:
            weight = share * size
            ids, _ = self._lists(Mixture([*parts, (scorer, weight)]))
            weights = list(choice.weights)
            weights[part] = weight
            mixed = dataclasses.replace(choice, weights=(weights[0], weights[1], weights[2]))
            found.append(self._add("mixed", mixed, ids[0]))
        return max(found, key=lambda one: one.ndcg)

    def _mean_score(self, scorer: Scorer) -> float:
        _, scores = self._lists(scorer)
        return float(np.abs(scores[np.isfinite(scores)]).mean()) or 1.0

    def _lists(self, scorer: Scorer, variants: int = 1) -> tuple[np.ndarray, np.ndarray]:
        return best_of_variants(
            scorer, self._histories, self._graph.num_items, DEPTH, variants, scan=self._scan
        )

    def _add(self, by: str, choice: GraphChoice, ids: np.ndarray) -> Tried:
        self.tried.append(Tried(by, choice, self._measure(ids)))
        return self.tried[-1]


def gains(better: np.ndarray, other: np.ndarray) -> bool:
    """Whether NDCG@20 [U, 2] is higher by more than a standard error of the difference."""
    difference = better[:, 1] - other[:, 1]
    return bool(difference.mean() > difference.std() / np.sqrt(len(difference)))
