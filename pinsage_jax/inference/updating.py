"""Embeds a catalog again after a change, recomputing only the rows that the change affects.

The result equals that of full inference over the changed catalog (current_catalog.py says
what training fitted and a change leaves alone).

These rows are affected, layer by layer (Ying et al. 2018, section 3.4, read backwards):

  inputs     of nodes whose degree, spectral feature or item features changed, and of new nodes
  lists      of nodes whose walks may have read a changed row of the graph (sampling/reach.py),
             and of items whose content links may have changed; most are the same afterwards
  layer k    rows whose list changed, whose row of layer k - 1 was recomputed, or whose list
             contains such a row

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
from pinsage_jax.inference.tables import PersistentTables
from pinsage_jax.sampling.reach import nodes_to_resample

_ROWS = 1 << 14
# Content links that are computed again in another block may differ in the last bit.
_SAME_WEIGHT = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """Recomputes the rows that a change affects.

    Attributes:
      before, after: the catalog without and with the change.
      old, new: their tables; `old` is complete, `new` is to be filled.
      cold_start_bias: added to the last coordinate of isolated items.
    """

    before: CurrentCatalog
    after: CurrentCatalog
    changes: Changes
    params: Any
    old: PersistentTables
    new: PersistentTables
    cold_start_bias: float

    def run(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The vectors float32 [M, Z] after the change, and counts of the recomputed rows."""
        after, model = self.after, self.after.config.model
        inputs = self._inputs_changed()
        resampled, relisted = self._nodes_to_sample(inputs)
        old_lists = self._old("lists", 2 * after.width, np.int32)
        table = self._filled("lists", old_lists, relisted, self._list_rows, np.int32)
        changed = self._lists_changed(old_lists, table, relisted)
        ids, weights = split_lists(table)
        dirty, projected, computed = inputs, [], []
        h: np.ndarray | None = None
        for layer in range(1, model.num_layers + 1):
            rows = dirty | changed | _lists_containing(ids, weights, dirty)
            computation = _Layer(self, layer, h, ids, weights, rows)
            name, width = f"layer{layer}", model.layer_dim
            if layer == model.num_layers:
                name, width = "vectors", model.output_dim
            h = self._filled(name, self._old(name, width), rows, computation.compute)
            dirty = rows
            projected.append(len(computation.needed))
            computed.append(int(rows.sum()))
        if not model.num_layers:
            h = self._filled(
                "vectors", self._old("vectors", model.output_dim), dirty, self._head_rows
            )
            computed = [int(dirty.sum())]
        assert h is not None
        total = after.num_nodes
        return h, {
            **self.changes.report,
            "nodes": total,
            "inputs_changed": int(inputs.sum()),
            "resampled": int(resampled.sum()),
            "lists_changed": int(changed.sum()),
            "projected": projected,
            "computed": computed,
            "share_resampled": float(resampled.sum() / max(total, 1)),
            "share_computed": float(computed[-1] / max(total, 1)),
        }

    @property
    def _nodes_renumbered(self) -> bool:
        """Whether ids of nodes changed: those of embedded collections follow those of the items."""
        same = self.before.graph.num_items == self.after.graph.num_items
        return self.after.num_nodes > self.after.graph.num_items and not same

    def _inputs_changed(self) -> np.ndarray:
        """bool [M]: nodes whose input vectors may have changed."""
        graph, known = self.after.graph, self.before.num_nodes
        changed = np.zeros(graph.num_nodes, np.bool_)
        members = self.changes.memberships
        changed[members[:, 0]] = True
        changed[self.changes.changed_items] = True
        changed[members[:, 1] + graph.num_items] = True
        # The spectral feature of a collection is the mean over its items with a base vector.
        based = members[members[:, 0] < self.after.num_based]
        for collection in np.unique(based[:, 1]) + graph.num_items:
            changed[graph.neighbors(collection)] = True
        changed = changed[: self.after.num_nodes]
        changed[known:] = True
        if self._nodes_renumbered:
            changed[:] = True
        return changed

    def _nodes_to_sample(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """bool [M]: nodes whose walks are sampled again, and nodes whose lists are made again."""
        after, sampling = self.after, self.after.config.sampling
        if not after.width or self._nodes_renumbered:
            return inputs & bool(after.width), inputs
        resampled = nodes_to_resample(after.graph, self.changes.touched, sampling.walk_length)
        resampled = resampled[: after.num_nodes]
        relisted = resampled.copy()
        relisted[self.before.num_nodes :] = True
        relisted[self.changes.changed_items] = True
        items = self.before.graph.num_items
        old = self._old("lists", 2 * after.width, np.int32)
        assert old is not None  # Nodes have the same ids.
        links = split_lists(old[:items])[0]
        known = self.changes.changed_items[self.changes.changed_items < items]
        relisted[:items] |= after.links_affected(known, links[:, sampling.num_neighbors :])
        return resampled, relisted

    def _old(self, name: str, width: int, dtype: Any = np.float32) -> np.ndarray | None:
        """A table before the change; None if no row of it can be used again."""
        if self._nodes_renumbered:
            return None

        def missing(begin: int, end: int, out: np.ndarray) -> None:
            raise ValueError(f"the table {name} is incomplete")

        return self.old.get_or_fill(name, (self.before.num_nodes, width), missing, dtype)

    def _filled(
        self,
        name: str,
        old: np.ndarray | None,
        rows: np.ndarray,
        compute: Callable[[np.ndarray], np.ndarray],
        dtype: Any = np.float32,
    ) -> np.ndarray:
        """The table after the change: `rows` bool [M] are computed, the others copied."""
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
                        isolated = nodes[self.after.isolated(nodes)]
                        out[isolated, -1] += np.float32(self.cold_start_bias)
                    progress.update(len(nodes))

        return self.new.get_or_fill(name, shape, fill, dtype)

    def _list_rows(self, nodes: np.ndarray) -> np.ndarray:
        return list_rows(*self.after.lookup(nodes))

    def _head_rows(self, nodes: np.ndarray) -> np.ndarray:
        config, features = self.after.config, self.after.inputs.gather(nodes)
        stages = Stages(config.model, self.after.params(self.params))
        return _blocks(stages.head, [features], config.embed.embed_block)

    def _lists_changed(
        self, old: np.ndarray | None, new: np.ndarray, relisted: np.ndarray
    ) -> np.ndarray:
        """bool [M]: nodes of `relisted` whose lists changed."""
        if old is None:
            return relisted.copy()
        changed = np.zeros(len(new), np.bool_)
        changed[len(old) :] = True
        some = np.flatnonzero(relisted[: len(old)])
        for first in range(0, len(some), _ROWS):
            rows = some[first : first + _ROWS]
            ids, weights = split_lists(old[rows])
            other_ids, other_weights = split_lists(new[rows])
            different = (ids != other_ids) | (np.abs(weights - other_weights) > _SAME_WEIGHT)
            changed[rows] = different.any(axis=1)
        return changed


class _Layer:
    """Computes one layer for some rows.

    Attributes:
      needed: int32 [n], ascending, nodes whose messages these rows read.
    """

    def __init__(self, update: Update, layer: int, h, ids, weights, rows: np.ndarray):
        self._after, self._layer, self._h = update.after, layer, h
        self._ids, self._weights = ids, weights
        self._stages = Stages(update.after.config.model, update.after.params(update.params))
        self._message_rows: np.ndarray | None = None
        wanted = np.zeros(len(rows) + 1, np.bool_)
        chosen = np.flatnonzero(rows)
        for first in range(0, len(chosen), _ROWS):
            some = chosen[first : first + _ROWS]
            # The id -1 of an empty slot marks the last entry, which is no node.
            wanted[ids[some][weights[some] > 0]] = True
        self.needed = np.flatnonzero(wanted[:-1]).astype(np.int32)

    def compute(self, nodes: np.ndarray) -> np.ndarray:
        """The layer's output for nodes int32 [n]; for the last layer, their embeddings."""
        config, after = self._after.config, self._after
        ids, weights = self._ids[nodes], np.ascontiguousarray(self._weights[nodes])
        used = (ids >= 0) & (weights > 0)
        rows = np.where(used, np.searchsorted(self.needed, np.where(used, ids, 0)), -1)
        pooled = np.empty((len(nodes), config.model.hidden_dim), np.float32)
        reduce_lists(config.model.pooling, self._messages(), rows.astype(np.int32), weights, pooled)
        h = self._input(nodes)
        if self._layer == config.model.num_layers:
            parts = [h, pooled, after.inputs.gather(nodes)]
            return _blocks(self._stages.finish, parts, config.embed.embed_block)

        def combine(*parts):
            return self._stages.combine(self._layer, *parts)

        return _blocks(combine, [h, pooled], config.embed.embed_block)

    def _input(self, nodes: np.ndarray) -> np.ndarray:
        return self._after.inputs.gather(nodes) if self._layer == 1 else self._h[nodes]

    def _messages(self) -> np.ndarray:
        """The messages of the needed nodes, float32 [n, M], computed in the first call."""
        if self._message_rows is None:
            config = self._after.config
            self._message_rows = np.empty((len(self.needed), config.model.hidden_dim), np.float32)

            def project(*parts):
                return self._stages.project(self._layer, *parts)

            for first in range(0, len(self.needed), _ROWS):
                some = self.needed[first : first + _ROWS]
                self._message_rows[first : first + len(some)] = _blocks(
                    project, [self._input(some), some], config.embed.embed_block
                )
        return self._message_rows


def _blocks(function: Callable, parts: list[np.ndarray], block: int) -> np.ndarray:
    """Computes function(*parts) in padded blocks of `block` rows."""
    starts = range(0, len(parts[0]), block)
    return np.concatenate(
        [padded(function, [part[first : first + block] for part in parts], block)
         for first in starts]
    )  # fmt: skip


def _lists_containing(ids: np.ndarray, weights: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """bool [M]: rows whose list contains a marked node with a positive weight."""
    found = np.zeros(len(ids), np.bool_)
    padded_marks = np.append(marked, False)
    for first in range(0, len(ids), _ROWS):
        span = slice(first, first + _ROWS)
        found[span] = (padded_marks[ids[span]] & (weights[span] > 0)).any(axis=1)
    return found
