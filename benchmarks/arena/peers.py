"""What a peer is, what it is given, and the table of all peers.

A peer is one function: it fits the training edges with given settings and returns vectors of
the items, or an object that scores the whole catalog for a query.  It knows nothing of pairs.

N items, C collections, D input features, Q queries, Z dimensions
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.evaluation.baselines_graph import incidence
from pinsage_jax.graph.csr import Graph


class Unavailable(Exception):
    """A peer cannot run on this machine or data; the message is one sentence."""


class Scorer(Protocol):
    """Scores the whole catalog for queries."""

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]; larger is better."""


@dataclasses.dataclass(frozen=True, eq=False)
class Train:
    """What a peer may learn from.

    Attributes:
      edges: float32 [N, C]; the weight of an edge, 1 without weights.
      content: float32 [N, D], TF-IDF of the text or the features; None without features.
      features: float [N, D], the features as the network reads them; D may be 0.
      seed: of the peer's random numbers.
      threads: number of threads.
      pythons: Python programs of other environments, by the name of a peer.
    """

    edges: sparse.csr_matrix
    content: sparse.csr_matrix | None
    features: np.ndarray
    seed: int
    threads: int
    pythons: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes:
      name: as the command line and the table call it.
      module: the Python module that it needs; "" for those written here.
      package: what the module is a part of, for people.
      grid: settings to choose from, on validation pairs; keyword arguments of `fit`.
      fit: maps (Train, **settings) to vectors float32 [N, Z] or a Scorer.
      elsewhere: whether the module does not go with this project's packages, so that the
        Python program of an environment of its own is named (--python=NAME=PATH).
    """

    name: str
    module: str
    package: str
    grid: tuple[dict[str, Any], ...]
    fit: Callable[..., np.ndarray | Scorer]

    elsewhere: bool = False

    def require(self, pythons: dict[str, str]) -> None:
        """Raises Unavailable if the package is not installed, or its environment not named."""
        if self.elsewhere:
            if self.name not in pythons:
                raise Unavailable(
                    f"it needs an environment with {self.package}; name its Python program with "
                    f"--python={self.name}=PATH"
                )
        elif self.module and importlib.util.find_spec(self.module) is None:
            raise Unavailable(f"{self.package} is not installed (pip install 'pinsage-jax[arena]')")


class Similarities:
    """Scores that are the rows of a matrix of items by items."""

    def __init__(self, rows: sparse.csr_matrix):
        """Takes float [N, N]."""
        self._rows = rows

    def scores(self, query_ids: np.ndarray) -> np.ndarray:
        """Scores float32 [Q, N] for queries int32 [Q]."""
        return self._rows[query_ids].toarray().astype(np.float32, copy=False)


def training_data(
    prepared: Prepared, graph: Graph, seed: int, threads: int, pythons: dict[str, str]
) -> Train:
    """What peers learn from, over `graph`, which has the items of the catalog."""
    edges = sparse.csr_matrix(incidence(graph))
    return Train(edges, _content(prepared), prepared.features, seed, threads, pythons)


def _content(prepared: Prepared) -> sparse.csr_matrix | None:
    """TF-IDF of the words where items are text alone, else the features."""
    if prepared.words is None:
        features = np.asarray(prepared.features, np.float32)
        return sparse.csr_matrix(features) if features.shape[1] else None
    terms, weights = np.split(np.asarray(prepared.words), 2, axis=1)
    weights = np.ascontiguousarray(weights).view(np.float32)
    starts = np.arange(0, terms.size + 1, terms.shape[1])
    shape = (len(terms), int(terms.max(initial=0)) + 1)
    words = sparse.csr_matrix((weights.ravel(), terms.ravel(), starts), shape)
    words.eliminate_zeros()  # the padding
    return words
