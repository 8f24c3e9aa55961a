"""What Spark's Python workers run: stages of map_reduce.py over streams of Arrow batches.

Each maker returns a function from batches to batches for `DataFrame.mapInArrow`.  The
model travels as the bytes of an .npz file in a Spark broadcast, and a worker loads and
compiles it once for all of its tasks.  No function holds more than a few batches.

Columns: node (int64); sender's or own `vector` (binary, columns.py); `weight` (float32).
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.inference.map_reduce import Stages, padded, rebatch, reduce_messages
from pinsage_jax.sampling.lists import NeighborLists, append_links
from pinsage_jax.sampling.neighborhoods import pooling_weights
from pinsage_jax.spark.columns import from_column, to_column
from pinsage_jax.training.leaf_paths import by_path, nested

Batches = Iterable[pa.RecordBatch]
Task = Callable[[Batches], Iterator[pa.RecordBatch]]

# A row of `finish`: the node's own vectors come before what it was sent.
OWN, MESSAGE = 0, 1
# Sums that `combine_messages` holds before it passes them on.
_HELD_BYTES = 1 << 27
_MESSAGES_AT_ONCE = 1 << 15


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model as the workers get it.

    Attributes:
      digest: tells models apart; the other fields follow from it.
      data: Spark broadcast of the bytes of `packed`.
      input_dim: D.
      block: rows that the dense stages compute at once.
    """

    digest: str
    config: ModelConfig = dataclasses.field(compare=False)
    data: Any = dataclasses.field(compare=False)
    input_dim: int = dataclasses.field(compare=False)
    block: int = dataclasses.field(compare=False)

    def width(self, layer: int) -> int:
        """Width of the vectors that `layer` (from 1) reads."""
        return self.input_dim if layer == 1 else self.config.layer_dim

    def own_width(self, layer: int) -> int:
        """Width of a node's OWN row: what the layer reads, and the input vector behind it."""
        return self.width(layer) + (self.input_dim if layer > 1 else 0)


def packed(params: Any) -> bytes:
    """Parameters as the bytes of an .npz file, leaves by path."""
    buffer = io.BytesIO()
    leaves: dict[str, Any] = {path: np.asarray(leaf) for path, leaf in by_path(params).items()}
    np.savez(buffer, **leaves)
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, Any]:
    """What `packed` packed."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return nested({path: arrays[path] for path in arrays.files})


@functools.lru_cache(maxsize=1)
def _stages(model: Model) -> Stages:
    return Stages(model.config, jax.device_put(unpacked(model.data.value)))


def project(model: Model, layer: int) -> Task:
    """node, vector (an OWN row of the layer) -> node, vector (what the node sends, [M])."""

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        stages = _stages(model)
        pieces = (
            (_ints(batch, "node"), _own(batch, model, layer)[:, : model.width(layer)])
            for batch in batches
        )
        for nodes, hidden in rebatch(pieces, model.block):
            work = functools.partial(stages.project, layer)
            sent = _padded(work, [hidden, nodes.astype(np.int32)], model)
            yield _batch(node=nodes, vector=to_column(sent))

    return run


def combine_messages(model: Model) -> Task:
    """node (the receiver), weight, vector -> the same, fewer: messages to a node reduced.

    What is left has weight 1.  Where a partition has several messages to a node, they go
    on as one; sums are passed on when there are too many to hold.
    """
    pooling, width = model.config.pooling, model.config.hidden_dim

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        held = _Sums(width)
        for receivers, weights, vectors in rebatch(_messages(batches, width), _MESSAGES_AT_ONCE):
            slots = held.slots_of(receivers)
            if slots is None:
                yield from held.taken(model.block)
                slots = held.slots_of(receivers)
                assert slots is not None, "there is room where nothing is held"
            reduce_messages(pooling, vectors, slots, weights, held.sums)
        yield from held.taken(model.block)

    return run


class _Sums:
    """Running sums [M] of as many nodes as fit.

    Attributes:
      sums: float32 [rows, M]; `slots_of` names rows.
    """

    def __init__(self, width: int):
        self._most = max(_HELD_BYTES // (4 * width), _MESSAGES_AT_ONCE)
        self.sums = np.zeros((0, width), np.float32)
        self._nodes, self._slots = np.empty(0, np.int64), np.empty(0, np.int64)

    def slots_of(self, nodes: np.ndarray) -> np.ndarray | None:
        """Rows int64 [n] of nodes int64 [n], new ones zero; None: too many for those held."""
        fresh, count = np.setdiff1d(nodes, self._nodes), len(self._nodes)
        if count and count + len(fresh) > self._most:
            return None
        if len(fresh):
            short = count + len(fresh) - len(self.sums)
            if short > 0:
                more = np.zeros((max(short, len(self.sums)), self.sums.shape[1]), np.float32)
                self.sums = np.concatenate([self.sums, more])
            nodes_held = np.concatenate([self._nodes, fresh])
            order = np.argsort(nodes_held)
            self._nodes = nodes_held[order]
            self._slots = np.concatenate([self._slots, count + np.arange(len(fresh))])[order]
        return self._slots[np.searchsorted(self._nodes, nodes)]

    def taken(self, rows: int) -> Iterator[pa.RecordBatch]:
        """What is held, in batches of `rows`; nothing is held any more."""
        for begin in range(0, len(self._nodes), rows):
            some = slice(begin, begin + rows)
            yield _batch(
                node=self._nodes[some],
                weight=np.ones(len(self._nodes[some]), np.float32),
                vector=to_column(self.sums[self._slots[some]]),
            )
        self.sums = self.sums[:0]
        self._nodes, self._slots = self._nodes[:0], self._slots[:0]


def finish(model: Model, layer: int) -> Task:
    """Sorted rows of node, part, weight, vector -> the layer's output.

    A node's first row is its OWN: the layer's input, and behind it the input vector of
    the network where that is another; MESSAGE rows follow.  Out come node, vector: the
    embedding [Z] after the last layer, before it [d + D] for the next layer's OWN row.
    """

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        stages = _stages(model)
        config, width = model.config, model.width(layer)
        last = layer == config.num_layers
        for nodes, own, pooled in rebatch(_pooled(batches, model, layer), model.block):
            hidden, features = own[:, :width], own[:, -model.input_dim :]
            if last:
                out = _padded(stages.finish, [hidden, pooled, features], model)
            else:
                combine = functools.partial(stages.combine, layer)
                made = _padded(combine, [hidden, pooled], model)
                out = np.concatenate([made, features], axis=1)
            yield _batch(node=nodes, vector=to_column(out))

    return run


def blend_lists(lists: NeighborLists) -> Task:
    """node, ids, weights (content links), edges, walked, counts -> node, ids, weights.

    What `lists` makes of walks that were made elsewhere (`walked`, null for none).
    """
    size, pooling, kappa = lists.source.sampling.num_neighbors, lists.pooling, lists.kappa

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            walked = _filled(batch.column("walked"), size, np.int32(-1))
            shares = pooling_weights(_filled(batch.column("counts"), size, np.int32(0)), pooling)
            links = _filled(batch.column("ids"), None, np.int32(-1))
            if links.shape[1]:
                link_shares = _filled(batch.column("weights"), None, np.float32(0.0))
                walked, shares = append_links(
                    (walked, shares), (links, link_shares), _ints(batch, "edges"), pooling, kappa
                )
            offsets = np.arange(len(batch) + 1, dtype=np.int32) * np.int32(walked.shape[1])
            parts = [
                pa.ListArray.from_arrays(offsets, pa.array(part.reshape(-1)))
                for part in (walked, shares)
            ]
            yield _batch(node=batch.column("node"), ids=parts[0], weights=parts[1])

    return run


def head(model: Model) -> Task:
    """node, vector (input [D]) -> node, vector (embedding [Z]) of a network without layers."""

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        stages = _stages(model)
        pieces = ((_ints(batch, "node"), _own(batch, model, 1)) for batch in batches)
        for nodes, features in rebatch(pieces, model.block):
            out = _padded(stages.head, [features], model)
            yield _batch(node=nodes, vector=to_column(out))

    return run


def _pooled(
    batches: Batches, model: Model, layer: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Sorted rows as pieces: nodes int64 [n], own rows [n, w], pooled messages [n, M]."""
    own_width = model.own_width(layer)
    sent_width, pooling = model.config.hidden_dim, model.config.pooling
    # The last node of a batch, whose messages may go on in the next one.
    nodes = np.empty(0, np.int64)
    own = np.empty((0, own_width), np.float32)
    pooled = np.empty((0, sent_width), np.float32)
    for batch in batches:
        part = batch.column("part").to_numpy(zero_copy_only=False)
        is_own = part == OWN
        vector = batch.column("vector")
        nodes = np.concatenate([nodes, _ints(batch, "node")[is_own]])
        own = np.concatenate([own, from_column(vector.filter(pa.array(is_own)), own_width)])
        pooled = np.concatenate([pooled, np.zeros((int(is_own.sum()), sent_width), np.float32)])
        if len(nodes) == 0:
            raise ValueError("a message came before any node's own row")
        slot = np.cumsum(is_own) - 1 + (len(nodes) - int(is_own.sum()))
        messages = ~is_own
        receivers = slot[messages]
        if np.any(nodes[receivers] != _ints(batch, "node")[messages]):
            raise ValueError("a message is for a node that has no row of its own")
        reduce_messages(
            pooling,
            from_column(vector.filter(pa.array(messages)), sent_width),
            receivers,
            batch.column("weight").to_numpy(zero_copy_only=False)[messages],
            pooled,
        )
        yield nodes[:-1], own[:-1], pooled[:-1]
        nodes, own, pooled = nodes[-1:], own[-1:], pooled[-1:]
    if len(nodes):
        yield nodes, own, pooled


def _messages(batches: Batches, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for batch in batches:
        weights = batch.column("weight").to_numpy(zero_copy_only=False)
        yield _ints(batch, "node"), weights, from_column(batch.column("vector"), width)


def _padded(function: Callable[..., Any], parts: list[np.ndarray], model: Model) -> np.ndarray:
    """`padded` to the model's block, or to a power of two that holds a task's last rows."""
    return padded(function, parts, min(model.block, 1 << (len(parts[0]) - 1).bit_length()))


def _filled(column: pa.ListArray, size: int | None, empty: np.generic) -> np.ndarray:
    """Lists of at most `size` (None: the longest) as an array [n, size] of empty's type."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    size = int(lengths.max(initial=0)) if size is None else size
    out = np.full((len(column), size), empty)
    out[np.arange(size) < lengths[:, None]] = column.flatten().to_numpy(zero_copy_only=False)
    return out


def _own(batch: pa.RecordBatch, model: Model, layer: int) -> np.ndarray:
    return from_column(batch.column("vector"), model.own_width(layer))


def _ints(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False)


def _batch(**columns: Any) -> pa.RecordBatch:
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column) for column in columns.values()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))
