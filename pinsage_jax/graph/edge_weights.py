"""Weights of edges by their kind and age, and which kinds each edge of the graph is of.

The weight of an edge is that of --weight_column, or 1, times the weight of its kind
(--kind_weights) times 2**(-age / half-life), where the newest edge has age 0.  The graph
holds the product, so that walks and baselines follow it as they follow any weight: from a
node an edge is taken with probability weight / sum of the weights of the node's edges.

  R rows of a table of edges, E distinct edges, K kinds
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from pinsage_jax.config.data import MIN_WEIGHT, DataConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.edges_table import EdgeIndices
from pinsage_jax.data.tables import Batch, Table
from pinsage_jax.graph.csr import Graph

_MICROSECONDS_PER_DAY = 86_400_000_000
_ROWS = 1 << 22


@dataclasses.dataclass(frozen=True)
class EdgeWeights:
    """How weights follow from the columns of a table of edges.

    Attributes:
      data: names of the columns, weights of the kinds, half-life.
      newest: time of the newest edge of --edges, in the unit of `columns.times`; edges that
        came later weigh more than 1.
      time_kind: 'number' or 'timestamp'.
    """

    data: DataConfig
    newest: int | None = None
    time_kind: str | None = None

    @property
    def any(self) -> bool:
        """Whether edges have weights at all."""
        return bool(self.data.weight_column or self.data.weighs_edges)

    def require(self, table: Table) -> list[str]:
        """The columns that weights follow from.

        Raises:
          UserError: the settings name none, or the table lacks one.
        """
        if not self.any:
            raise UserError(
                f"The catalog's edges have weights; name the column of {table.label} that holds "
                "them with --weight_column."
            )
        flags = ["weight_column"] if self.data.weight_column else []
        flags += ["kind_column"] if self.data.kind_weights else []
        flags += ["time_column"] if self.data.half_life else []
        for flag in flags:
            table.require(getattr(self.data, flag), flag)
        return [getattr(self.data, flag) for flag in flags]

    def of_batch(self, batch: Batch) -> np.ndarray:
        """Weights float32 [R] of the rows of a table.

        Raises:
          UserError: a weight, kind or time is missing or unreadable.
        """
        data, weights = self.data, np.ones(len(batch), np.float32)
        if name := data.weight_column:
            weights = column_values.weights(batch.column(name), name, batch.where)
        kinds = times = None
        if data.kind_weights:
            name = data.kind_column
            kinds = column_values.texts(batch.column(name), name, batch.where)
            values = data.weight_by_kind()
            kinds = np.array([values.get(kind, 1.0) for kind in kinds.to_pylist()])
        if data.half_life:
            name = data.time_column
            times, _ = column_values.times(batch.column(name), name, batch.where, self.time_kind)
        return self._product(weights, kinds, times)

    def of_indices(self, codes: EdgeIndices, folder: pathlib.Path) -> np.ndarray:
        """Weights float32 [R] of all rows of --edges, in a memory-mapped file of the folder."""
        values = self.data.weight_by_kind()
        by_kind = np.array([values.get(name, 1.0) for name in codes.kind_names])
        found = files.new_array(folder / "products.npy", np.float32, codes.items.shape)
        for begin in range(0, len(found), _ROWS):
            part = slice(begin, begin + _ROWS)
            weights = np.ones(len(found[part]), np.float32)
            if codes.weights is not None:
                weights = codes.weights[part]
            kinds = None if codes.kinds is None else by_kind[codes.kinds[part]]
            times = None if codes.times is None else codes.times[part]
            found[part] = self._product(weights, kinds, times)
        return found

    def _product(
        self, weights: np.ndarray, by_kind: np.ndarray | None, times: np.ndarray | None
    ) -> np.ndarray:
        """The product float32 [R]; `by_kind` float64 [R], times int64 [R]."""
        factor = np.ones(len(weights)) if by_kind is None else by_kind
        if self.data.half_life and times is not None and len(times):
            newest = int(times.max()) if self.newest is None else self.newest
            unit = _MICROSECONDS_PER_DAY if self.time_kind == "timestamp" else 1
            # In floating point, where differences of int64 could overflow.
            age = (newest - times.astype(np.float64)) / (self.data.half_life * unit)
            factor = factor * np.clip(np.exp2(-age), MIN_WEIGHT, 1 / MIN_WEIGHT)
        return np.clip(weights * factor, np.finfo(np.float32).tiny, None).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """What a manifest remembers."""
        return {
            "newest": self.newest,
            "time_kind": self.time_kind,
            "kind_weights": self.data.kind_weights,
        }

    @classmethod
    def from_json(cls, data: DataConfig, saved: dict[str, Any]) -> EdgeWeights:
        """What a manifest remembers; the weights of kinds are those that were chosen."""
        chosen = saved.get("kind_weights", data.kind_weights)
        data = dataclasses.replace(data, kind_weights=chosen)
        return cls(data, saved.get("newest"), saved.get("time_kind"))


def weighed(
    codes: EdgeIndices, data: DataConfig, folder: pathlib.Path
) -> tuple[EdgeIndices, EdgeWeights]:
    """The rows of --edges with their weights by kind and age, and how these follow.

    Raises:
      UserError: --kind_weights names a kind that no edge has.
    """
    for name in data.weight_by_kind():
        if name not in codes.kind_names:
            raise UserError(
                f"--kind_weights={data.kind_weights} names the kind {name}, which no edge has; "
                f"the kinds of '{data.kind_column}' are {', '.join(codes.kind_names)}."
            )
    newest = None
    if codes.times is not None and len(codes.times):
        newest = int(codes.times.max())
    how = EdgeWeights(data, newest, codes.time_kind)
    if not data.weighs_edges:
        return codes, how
    return dataclasses.replace(codes, weights=how.of_indices(codes, folder)), how


def kinds_of_edges(graph: Graph, codes: EdgeIndices) -> np.ndarray | None:
    """The kinds of each edge, uint16 [E] in the order of the items' rows; None without kinds.

    Bit k says that a row of the edge is of kind k; rows of edges that were pruned are passed
    over.
    """
    if codes.kinds is None:
        return None
    from pinsage_jax.graph import build_kernels

    found = np.zeros(graph.num_edges, np.uint16)
    build_kernels.mark_kinds(
        graph.indptr, graph.indices, np.int32(graph.num_items), codes.items, codes.collections,
        codes.kinds, found,
    )  # fmt: skip
    return found


def kinds_between(graph: Graph, kinds: np.ndarray, query: int, others: np.ndarray) -> np.ndarray:
    """By which kinds a step of a walk from an item reaches others.

    A step goes from the query to a collection and on to an item.

    Args:
      kinds: uint16 [E], see `kinds_of_edges`.
      query: an item.
      others: items, int [n].

    Returns:
      float64 [n, 16]: the probability that a step from the query ends at the item and left the
      query by an edge of kind k; an edge of several kinds counts for each in equal parts.
    """
    row = slice(graph.indptr[query], graph.indptr[query + 1])
    bits = (kinds[row, None] >> np.arange(16, dtype=np.uint16) & 1).astype(np.float64)
    bits /= np.maximum(bits.sum(axis=1, keepdims=True), 1)
    out = np.ones(len(bits)) if graph.weights is None else graph.weights[row].astype(np.float64)
    found = np.zeros((len(others), 16))
    for collection, weight, share in zip(graph.indices[row], out / out.sum(), bits, strict=True):
        members = graph.neighbors(collection)
        on = slice(graph.indptr[collection], graph.indptr[collection + 1])
        back = np.ones(len(members)) if graph.weights is None else graph.weights[on]
        place = np.minimum(np.searchsorted(members, others), len(members) - 1)
        reached = np.where(members[place] == others, back[place], 0.0)
        found += weight * (reached / back.sum(dtype=np.float64))[:, None] * share
    return found
