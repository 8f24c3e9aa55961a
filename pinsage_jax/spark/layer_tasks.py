"""The tasks of Spark's Python workers: stages of map_reduce.py over streams of Arrow batches.

Each function here returns a task, a function from batches to batches for
`DataFrame.mapInArrow`.  The model is sent as the bytes of an .npz file in a Spark broadcast,
and a worker loads and compiles it once for all of its tasks.  A task has at most a few batches
in memory.

Columns: node (int64); vector (binary, columns.py); weight (float32); part (SELF or MESSAGE).
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
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.inference.map_reduce import Stages, padded, rebatch, reduce_messages
from pinsage_jax.sampling.lists import append_links
from pinsage_jax.sampling.neighborhoods import pooling_weights
from pinsage_jax.spark.columns import from_column, to_column
from pinsage_jax.training.leaf_paths import by_path, nested

Batches = Iterable[pa.RecordBatch]
Task = Callable[[Batches], Iterator[pa.RecordBatch]]

# Kinds of rows: a node's own vectors, which come first, and messages to it.
SELF, MESSAGE = 0, 1
# Memory of the sums of `combine_messages`, which are passed on when it is full.
_SUMS_BYTES = 1 << 27
_BLOCK_MESSAGES = 1 << 15


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model in the form that is sent to the workers.

    Attributes:
      digest: identifies the model; the other fields follow from it.
      data: Spark broadcast of the bytes that `pack` returns.
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

    def self_width(self, layer: int) -> int:
        """Width of a node's SELF row: the layer's input, followed by the network's input vector."""
        return self.width(layer) + (self.input_dim if layer > 1 else 0)


def pack(params: Any) -> bytes:
    """Serializes parameters as the bytes of an .npz file, with leaves by path."""
    buffer = io.BytesIO()
    leaves: dict[str, Any] = {path: np.asarray(leaf) for path, leaf in by_path(params).items()}
    np.savez(buffer, **leaves)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """Parameters from the bytes that `pack` returns."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return nested({path: arrays[path] for path in arrays.files})


@functools.lru_cache(maxsize=1)
def _stages(model: Model) -> Stages:
    return Stages(model.config, jax.device_put(unpack(model.data.value)))


def project(model: Model, layer: int) -> Task:
    """Task: node, vector (a SELF row of the layer) -> node, vector (the node's message, [M])."""

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        stages = _stages(model)
        pieces = (
            (_ints(batch, "node"), _self_rows(batch, model, layer)[:, : model.width(layer)])
            for batch in batches
        )
        for nodes, h in rebatch(pieces, model.block):
            work = functools.partial(stages.project, layer)
            messages = _padded(work, [h, nodes.astype(np.int32)], model)
            yield _batch(node=nodes, vector=to_column(messages))

    return run


def combine_messages(model: Model) -> Task:
    """Task: node (the receiver), weight, vector -> the same columns with fewer rows.

    Several messages of a partition to the same node are reduced to one, of weight 1.  The sums
    are passed on when they take too much memory.
    """
    pooling, width = model.config.pooling, model.config.hidden_dim

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        sums = _Sums(width)
        for receivers, weights, vectors in rebatch(_messages(batches, width), _BLOCK_MESSAGES):
            rows = sums.rows_of(receivers)
            if rows is None:
                yield from sums.take(model.block)
                rows = sums.rows_of(receivers)
                assert rows is not None, "an empty table has room for one block"
            reduce_messages(pooling, vectors, rows, weights, sums.rows)
        yield from sums.take(model.block)

    return run


class _Sums:
    """Running sums of messages for a bounded number of nodes.

    Attributes:
      rows: float32 [rows, M]; `rows_of` says which row is a node's.
    """

    def __init__(self, width: int):
        self._max_nodes = max(_SUMS_BYTES // (4 * width), _BLOCK_MESSAGES)
        self.rows = np.zeros((0, width), np.float32)
        self._nodes, self._row_numbers = np.empty(0, np.int64), np.empty(0, np.int64)

    def rows_of(self, nodes: np.ndarray) -> np.ndarray | None:
        """Rows int64 [n] of nodes int64 [n], zero for new nodes; None if these do not fit."""
        fresh, count = np.setdiff1d(nodes, self._nodes), len(self._nodes)
        if count and count + len(fresh) > self._max_nodes:
            return None
        if len(fresh):
            missing = count + len(fresh) - len(self.rows)
            if missing > 0:
                more = np.zeros((max(missing, len(self.rows)), self.rows.shape[1]), np.float32)
                self.rows = np.concatenate([self.rows, more])
            all_nodes = np.concatenate([self._nodes, fresh])
            order = np.argsort(all_nodes)
            self._nodes = all_nodes[order]
            self._row_numbers = np.concatenate([self._row_numbers, count + np.arange(len(fresh))])[
                order
            ]
        return self._row_numbers[np.searchsorted(self._nodes, nodes)]

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yields all sums in batches of `rows` rows, and forgets them."""
        for begin in range(0, len(self._nodes), rows):
            some = slice(begin, begin + rows)
            yield _batch(
                node=self._nodes[some],
                weight=np.ones(len(self._nodes[some]), np.float32),
                vector=to_column(self.rows[self._row_numbers[some]]),
            )
        self.rows = self.rows[:0]
        self._nodes, self._row_numbers = self._nodes[:0], self._row_numbers[:0]


def finish(model: Model, layer: int) -> Task:
    """Task: sorted rows of node, part, weight, vector -> node, vector (the layer's output).

    The first row of a node is its SELF row: the layer's input, followed after the first layer
    by the network's input vector.  Its MESSAGE rows follow.  The output is the embedding [Z]
    after the last layer, and before it [d + D], the SELF row of the next layer.
    """

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        stages = _stages(model)
        config, width = model.config, model.width(layer)
        last = layer == config.num_layers
        for nodes, self_rows, pooled in rebatch(_pooled(batches, model, layer), model.block):
            h, features = self_rows[:, :width], self_rows[:, -model.input_dim :]
            if last:
                out = _padded(stages.finish, [h, pooled, features], model)
            else:
                combine = functools.partial(stages.combine, layer)
                made = _padded(combine, [h, pooled], model)
                out = np.concatenate([made, features], axis=1)
            yield _batch(node=nodes, vector=to_column(out))

    return run


def name_neighbors() -> Task:
    """Task: node, ids, weights (lists) -> receiver, sender, weight, a row for each neighbor."""

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            lengths = pc.list_value_length(batch.column("ids")).to_numpy(zero_copy_only=False)
            senders = batch.column("ids").flatten().to_numpy(zero_copy_only=False)
            weights = batch.column("weights").flatten().to_numpy(zero_copy_only=False)
            there = (senders >= 0) & (weights > 0)
            receivers = np.repeat(_ints(batch, "node"), lengths)[there]
            yield _batch(
                receiver=receivers, sender=senders[there].astype(np.int64), weight=weights[there]
            )

    return run


def blend_lists(sampling: SamplingConfig, pooling: str) -> Task:
    """Task: node, ids, weights (content links), edges, walked, counts -> node, ids, weights.

    The output are the lists that NeighborLists makes of the walk neighbors in `walked` (null for
    none) and `counts`, which were sampled on Spark.
    """
    size, kappa = sampling.num_neighbors, sampling.content_kappa

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
    """Task of a network without layers: node, vector (input [D]) -> node, vector ([Z])."""

    def run(batches: Batches) -> Iterator[pa.RecordBatch]:
        stages = _stages(model)
        pieces = ((_ints(batch, "node"), _self_rows(batch, model, 1)) for batch in batches)
        for nodes, features in rebatch(pieces, model.block):
            out = _padded(stages.head, [features], model)
            yield _batch(node=nodes, vector=to_column(out))

    return run


def _pooled(
    batches: Batches, model: Model, layer: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields nodes int64 [n], SELF rows [n, w] and pooled messages [n, M] from sorted rows."""
    self_width = model.self_width(layer)
    message_width, pooling = model.config.hidden_dim, model.config.pooling
    # The last node of a batch, whose messages may continue in the next batch.
    nodes = np.empty(0, np.int64)
    self_rows = np.empty((0, self_width), np.float32)
    pooled = np.empty((0, message_width), np.float32)
    for batch in batches:
        part = batch.column("part").to_numpy(zero_copy_only=False)
        is_self = part == SELF
        vector = batch.column("vector")
        nodes = np.concatenate([nodes, _ints(batch, "node")[is_self]])
        self_rows = np.concatenate(
            [self_rows, from_column(vector.filter(pa.array(is_self)), self_width)]
        )
        pooled = np.concatenate([pooled, np.zeros((int(is_self.sum()), message_width), np.float32)])
        if len(nodes) == 0:
            raise ValueError("a message comes before the row of its node")
        slot = np.cumsum(is_self) - 1 + (len(nodes) - int(is_self.sum()))
        messages = ~is_self
        receivers = slot[messages]
        if np.any(nodes[receivers] != _ints(batch, "node")[messages]):
            raise ValueError("a message is for a node without a row")
        reduce_messages(
            pooling,
            from_column(vector.filter(pa.array(messages)), message_width),
            receivers,
            batch.column("weight").to_numpy(zero_copy_only=False)[messages],
            pooled,
        )
        yield nodes[:-1], self_rows[:-1], pooled[:-1]
        nodes, self_rows, pooled = nodes[-1:], self_rows[-1:], pooled[-1:]
    if len(nodes):
        yield nodes, self_rows, pooled


def _messages(batches: Batches, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for batch in batches:
        weights = batch.column("weight").to_numpy(zero_copy_only=False)
        yield _ints(batch, "node"), weights, from_column(batch.column("vector"), width)


def _padded(function: Callable[..., Any], parts: list[np.ndarray], model: Model) -> np.ndarray:
    """`padded` to the model's block, or to the next power of two for the last rows of a task."""
    return padded(function, parts, min(model.block, 1 << (len(parts[0]) - 1).bit_length()))


def _filled(column: pa.ListArray, size: int | None, empty: np.generic) -> np.ndarray:
    """Lists as an array [n, size] of the type of `empty`; `size` None is the longest length."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    size = int(lengths.max(initial=0)) if size is None else size
    out = np.full((len(column), size), empty)
    out[np.arange(size) < lengths[:, None]] = column.flatten().to_numpy(zero_copy_only=False)
    return out


def _self_rows(batch: pa.RecordBatch, model: Model, layer: int) -> np.ndarray:
    return from_column(batch.column("vector"), model.self_width(layer))


def _ints(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False)


def _batch(**columns: Any) -> pa.RecordBatch:
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column) for column in columns.values()
    ]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))
