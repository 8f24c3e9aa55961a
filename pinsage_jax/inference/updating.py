"""Embedding a catalog again after a change: only the rows that the change reaches.

The result is that of whole inference over the changed catalog (current_catalog.py says what
stays as training fitted it).

What is reached, layer by layer (Ying et al. 2018, section 3.4, read backwards):

  inputs     of nodes whose degree, place or features differ, and of new nodes
  lists      walks are repeated where they may have read a changed row (sampling/reach.py),
             links where a changed item may have entered or left; most come out the same
  layer k    rows whose list differs, whose own row of layer k - 1 was recomputed, or
             whose list names such a row

Shapes: N nodes with lists before, M after the change; W width of a list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pinsage_jax.catalog.changes import Changes
from pinsage_jax.core.progress import Progress
from pinsage_jax.inference.current_catalog import CurrentCatalog
from pinsage_jax.inference.encoder import list_rows, split_lists
from pinsage_jax.inference.map_reduce import Stages, padded, reduce_lists
from pinsage_jax.inference.tables import KeptTables
from pinsage_jax.sampling.reach import nodes_to_resample

_ROWS = 1 << 14
# Links made again beside others may have shares that differ in the last bit.
_SAME_WEIGHT = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """Recomputes what a change reaches.

    Attributes:
      before, after: the catalog without and with the change.
      old, new: their tables; those of `old` are whole, those of `new` are to be filled.
      offset: cold offset.
    """

    before: CurrentCatalog
    after: CurrentCatalog
    changes: Changes
    params: Any
    old: KeptTables
    new: KeptTables
    offset: float

    def run(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Vectors float32 [M, Z] after the change, and how many rows of what it took."""
        after, model = self.after, self.after.config.model
        inputs = self._inputs_changed()
        walked, listed = self._relisted(inputs)
        old_lists = self._old("lists", 2 * after.width, np.int32)
        table = self._filled("lists", old_lists, listed, self._list_rows, np.int32)
        differs = self._differs(old_lists, table, listed)
        ids, weights = split_lists(table)
        dirty, projected, computed = inputs, [], []
        hidden: np.ndarray | None = None
        for layer in range(1, model.num_layers + 1):
            rows = dirty | differs | _naming(ids, weights, dirty)
            reads = _Layer(self, layer, hidden, ids, weights, rows)
            name, width = f"layer{layer}", model.layer_dim
            if layer == model.num_layers:
                name, width = "vectors", model.output_dim
            hidden = self._filled(name, self._old(name, width), rows, reads.rows_of)
            dirty = rows
            projected.append(len(reads.needed))
            computed.append(int(rows.sum()))
        if not model.num_layers:
            hidden = self._filled(
                "vectors", self._old("vectors", model.output_dim), dirty, self._headed
            )
            computed = [int(dirty.sum())]
        assert hidden is not None
        total = after.num_nodes
        return hidden, {
            **self.changes.report,
            "nodes": total,
            "inputs_changed": int(inputs.sum()),
            "walked_again": int(walked.sum()),
            "lists_changed": int(differs.sum()),
            "projected": projected,
            "computed": computed,
            "share_walked": float(walked.sum() / max(total, 1)),
            "share_computed": float(computed[-1] / max(total, 1)),
        }

    @property
    def _numbers_moved(self) -> bool:
        """Whether nodes have other numbers: collections as nodes, behind new items."""
        same = self.before.graph.num_items == self.after.graph.num_items
        return self.after.num_nodes > self.after.graph.num_items and not same

    def _inputs_changed(self) -> np.ndarray:
        """bool [M], nodes whose input vectors may differ."""
        graph, known = self.after.graph, self.before.num_nodes
        changed = np.zeros(graph.num_nodes, np.bool_)
        members = self.changes.memberships
        changed[members[:, 0]] = True
        changed[self.changes.changed_items] = True
        changed[members[:, 1] + graph.num_items] = True
        # A collection lies at the mean of its items that have a base.
        based = members[members[:, 0] < self.after.based]
        for collection in np.unique(based[:, 1]) + graph.num_items:
            changed[graph.neighbors(collection)] = True
        changed = changed[: self.after.num_nodes]
        changed[known:] = True
        if self._numbers_moved:
            changed[:] = True
        return changed

    def _relisted(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """bool [M]: nodes that are walked from again, and nodes whose lists are made again."""
        after, sampling = self.after, self.after.config.sampling
        if not after.width or self._numbers_moved:
            return inputs & bool(after.width), inputs
        walked = nodes_to_resample(after.graph, self.changes.touched, sampling.walk_length)
        walked = walked[: after.num_nodes]
        listed = walked.copy()
        listed[self.before.num_nodes :] = True
        listed[self.changes.changed_items] = True
        items = self.before.graph.num_items
        old = self._old("lists", 2 * after.width, np.int32)
        assert old is not None  # Numbers have not moved.
        links = split_lists(old[:items])[0]
        known = self.changes.changed_items[self.changes.changed_items < items]
        listed[:items] |= after.relinked(known, links[:, sampling.num_neighbors :])
        return walked, listed

    def _old(self, name: str, width: int, dtype: Any = np.float32) -> np.ndarray | None:
        """A table before the change; None where no row of it stays."""
        if self._numbers_moved:
            return None

        def missing(begin: int, end: int, out: np.ndarray) -> None:
            raise ValueError(f"{name} is not whole")

        return self.old.get_or_fill(name, (self.before.num_nodes, width), missing, dtype)

    def _filled(
        self,
        name: str,
        old: np.ndarray | None,
        rows: np.ndarray,
        compute: Callable[[np.ndarray], np.ndarray],
        dtype: Any = np.float32,
    ) -> np.ndarray:
        """The table after the change: `rows` bool [M] computed, the others as they were."""
        model = self.after.config.model
        widths = {"lists": 2 * self.after.width, "vectors": model.output_dim}
        shape = self.after.num_nodes, widths.get(name, model.layer_dim)

        def fill(begin: int, end: int, out: np.ndarray) -> None:
            if old is not None:
                out[begin : min(end, len(old))] = old[begin : min(end, len(old))]
            some = np.flatnonzero(rows[begin:end]) + begin
            with Progress(len(some), "row", f"updating {name}") as progress:
                for first in range(0, len(some), _ROWS):
                    nodes = some[first : first + _ROWS].astype(np.int32)
                    out[nodes] = compute(nodes)
                    if name == "vectors":
                        cold = nodes[self.after.edgeless(nodes)]
                        out[cold, -1] += np.float32(self.offset)
                    progress.update(len(nodes))

        return self.new.get_or_fill(name, shape, fill, dtype)

    def _list_rows(self, nodes: np.ndarray) -> np.ndarray:
        return list_rows(*self.after.lookup(nodes))

    def _headed(self, nodes: np.ndarray) -> np.ndarray:
        config, features = self.after.config, self.after.inputs.gather(nodes)
        stages = Stages(config.model, self.after.params(self.params))
        return _blocks(stages.head, [features], config.embed.embed_block)

    def _differs(self, old: np.ndarray | None, new: np.ndarray, listed: np.ndarray) -> np.ndarray:
        """bool [M], nodes whose lists came out otherwise."""
        if old is None:
            return listed.copy()
        differs = np.zeros(len(new), np.bool_)
        differs[len(old) :] = True
        some = np.flatnonzero(listed[: len(old)])
        for first in range(0, len(some), _ROWS):
            rows = some[first : first + _ROWS]
            (ids, weights), (other, share) = split_lists(old[rows]), split_lists(new[rows])
            apart = (ids != other) | (np.abs(weights - share) > _SAME_WEIGHT)
            differs[rows] = apart.any(axis=1)
        return differs


class _Layer:
    """One layer for chosen rows.

    Attributes:
      needed: int32 [n], ascending: nodes whose messages the rows read.
    """

    def __init__(self, update: Update, layer: int, hidden, ids, weights, rows: np.ndarray):
        self._after, self._layer, self._hidden = update.after, layer, hidden
        self._ids, self._weights = ids, weights
        self._stages = Stages(update.after.config.model, update.after.params(update.params))
        self._sent: np.ndarray | None = None
        wanted = np.zeros(len(rows) + 1, np.bool_)
        chosen = np.flatnonzero(rows)
        for first in range(0, len(chosen), _ROWS):
            some = chosen[first : first + _ROWS]
            # An empty place, -1, marks the last entry, which is no node.
            wanted[ids[some][weights[some] > 0]] = True
        self.needed = np.flatnonzero(wanted[:-1]).astype(np.int32)

    def rows_of(self, nodes: np.ndarray) -> np.ndarray:
        """The layer's output for nodes int32 [n]; of the last layer, the embeddings."""
        config, after = self._after.config, self._after
        ids, weights = self._ids[nodes], np.ascontiguousarray(self._weights[nodes])
        used = (ids >= 0) & (weights > 0)
        rows = np.where(used, np.searchsorted(self.needed, np.where(used, ids, 0)), -1)
        pooled = np.empty((len(nodes), config.model.hidden_dim), np.float32)
        reduce_lists(config.model.pooling, self._messages(), rows.astype(np.int32), weights, pooled)
        own = self._before(nodes)
        if self._layer == config.model.num_layers:
            parts = [own, pooled, after.inputs.gather(nodes)]
            return _blocks(self._stages.finish, parts, config.embed.embed_block)

        def combine(*parts):
            return self._stages.combine(self._layer, *parts)

        return _blocks(combine, [own, pooled], config.embed.embed_block)

    def _before(self, nodes: np.ndarray) -> np.ndarray:
        return self._after.inputs.gather(nodes) if self._layer == 1 else self._hidden[nodes]

    def _messages(self) -> np.ndarray:
        """What the needed nodes send, float32 [n, M]; made when first asked for."""
        if self._sent is None:
            config = self._after.config
            self._sent = np.empty((len(self.needed), config.model.hidden_dim), np.float32)

            def project(*parts):
                return self._stages.project(self._layer, *parts)

            for first in range(0, len(self.needed), _ROWS):
                some = self.needed[first : first + _ROWS]
                self._sent[first : first + len(some)] = _blocks(
                    project, [self._before(some), some], config.embed.embed_block
                )
        return self._sent


def _blocks(function: Callable, parts: list[np.ndarray], block: int) -> np.ndarray:
    """function(*parts) in blocks of one shape."""
    starts = range(0, len(parts[0]), block)
    return np.concatenate(
        [padded(function, [part[first : first + block] for part in parts], block)
         for first in starts]
    )  # fmt: skip


def _naming(ids: np.ndarray, weights: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """bool [M], rows whose list names a marked node with some weight."""
    found = np.zeros(len(ids), np.bool_)
    padded_marks = np.append(marked, False)
    for first in range(0, len(ids), _ROWS):
        span = slice(first, first + _ROWS)
        found[span] = (padded_marks[ids[span]] & (weights[span] > 0)).any(axis=1)
    return found
