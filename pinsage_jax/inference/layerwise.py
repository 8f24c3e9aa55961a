"""Layer-wise inference over the arrays of one machine: each layer computes every node once.

The stages are those of map_reduce.py.  Dense layers run in JAX on blocks of fixed shape,
the join and the reduction in Numba on the host, so memory is bounded by two layers;
tables.py decides where the tables are stored and which of them outlive a killed run.  On
accelerators that have room for a layer's messages they stay there (on_devices.py).

Shapes: N nodes, T neighbors, D input features, M width of Q, d layer width, Z embedding
dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.core import files
from pinsage_jax.core.progress import Progress
from pinsage_jax.inference import on_devices, reduce_kernels
from pinsage_jax.inference.map_reduce import Stages, reduce_lists, unpacked, with_padding
from pinsage_jax.inference.tables import ScratchTables, Tables
from pinsage_jax.sampling.lists import ListColumn
from pinsage_jax.sampling.neighborhoods import run_blocks

_REDUCE_ROWS = 512
# Messages of a catalog that would take more as float32 are bytes with a scale for each row: a
# quarter, so that the rows that lists name at random stay in memory.
MOST_FLOAT_BYTES = 1 << 33

# (begin, end, rows): changes the rows [begin, end) of the result, in place.
Adjust = Callable[[int, int, np.ndarray], None]


def _in_blocks(
    function: Callable[..., jax.Array],
    inputs: list[Callable[[int, int], np.ndarray]],
    span: tuple[int, int],
    block: int,
    out: np.ndarray,
    progress: Progress,
) -> None:
    """out[begin:end] = function(*inputs(begin, end)) in blocks; the last one is padded.

    Rows of a table of uint8 are packed (reduce_kernels.pack_rows).

    JAX returns before it has computed, so the next inputs are read and the previous
    results are written meanwhile.
    """

    def write(begin: int, made: jax.Array) -> None:
        end = min(begin + block, span[1])
        rows = np.asarray(made)[: end - begin]
        if out.dtype == np.uint8:
            reduce_kernels.pack_rows(rows, out[begin:end])
        else:
            out[begin:end] = rows
        # Blocks are written in order and only read once all are complete.
        files.release(out)
        progress.update(end - begin)

    last: tuple[int, jax.Array] | None = None
    for begin in range(*span, block):
        end = min(begin + block, span[1])
        made = function(*with_padding([read(begin, end) for read in inputs], block))
        if last is not None:
            write(*last)
        last = begin, made
    if last is not None:
        write(*last)


class Inputs(Protocol):
    """Input vectors of nodes: NodeInputs, or another class with its method `gather`."""

    def gather(self, nodes: np.ndarray) -> np.ndarray:
        """Input vectors float32 [n, D] of nodes int32 [n]."""


@dataclasses.dataclass(frozen=True, eq=False)
class PassOptions:
    """How a pass over the nodes runs.

    Attributes:
      block: rows that the dense layers compute at once.
      threads: host threads of the reduction.
      quiet: no progress messages.
      tables: where tables are stored; None: in memory.  Tables that are complete already
        (messages1, layer1, messages2, ..., vectors) are not computed.
      adjust: changes rows of the result before they are stored.
    """

    block: int
    threads: int = 1
    quiet: bool = False
    tables: Tables | None = None
    adjust: Adjust | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class NeededRows:
    """The rows of a pass that does not compute all nodes.

    Attributes:
      node_ids: int32 [R0], the node of each row.
      sizes: R0 >= R1 >= ... >= RK; of the output of layer k the first Rk rows are needed.
    """

    node_ids: np.ndarray
    sizes: tuple[int, ...]


def embed_all(
    config: ModelConfig,
    params: Any,
    inputs: Inputs,
    lists: tuple[np.ndarray | ListColumn, np.ndarray | ListColumn],
    options: PassOptions,
    rows: NeededRows | None = None,
) -> np.ndarray:
    """Embeds every node that has a neighbor list, or only the nodes of some rows.

    Args:
      params: parameters of PinSage(config).
      lists: neighbors int32 [N, T], -1 where a list is short, and pooling weights float32
        [N, T].  With `rows` they are [R1, T] and name rows, not nodes.

    Returns:
      Embeddings float32 [N, Z], or [RK, Z].
    """
    if rows is None:
        count = len(lists[0])
        rows = NeededRows(np.arange(count, dtype=np.int32), (count,) * (config.num_layers + 1))
    sizes = rows.sizes
    total = sum(sizes[:-1]) + sum(sizes[1:]) or sizes[0]
    # Tables that are kept for updates hold every layer.
    kept = options.tables is not None and options.tables.keep
    if not kept and on_devices.holds_messages(config, sizes[0]):
        one = on_devices.DevicePass(config, params, inputs, lists, rows, options.block)
        return _vectors_of(one, (sizes[-1], config.output_dim), options)
    with Progress(total, "row", "embedding", quiet=options.quiet) as progress:
        whole = _Pass(Stages(config, params), inputs, lists, rows, options, progress)
        return whole.output(config.num_layers)


def _vectors_of(
    whole: on_devices.DevicePass, shape: tuple[int, int], options: PassOptions
) -> np.ndarray:
    """The table of embeddings of a pass on the devices."""

    def fill(begin: int, end: int, out: np.ndarray) -> None:
        for first, vectors in whole.vectors(begin, end):
            out[first : first + len(vectors)] = vectors
            files.release(out)
            progress.update(len(vectors))
        if options.adjust is not None:
            options.adjust(begin, end, out[begin:end])

    with Progress(shape[0], "row", "embedding", quiet=options.quiet) as progress:
        return (options.tables or ScratchTables()).get_or_fill("vectors", shape, fill)


def messages_of(
    config: ModelConfig,
    params: Any,
    inputs: Inputs,
    lists: tuple[np.ndarray | ListColumn, np.ndarray | ListColumn],
    options: PassOptions,
    nodes: np.ndarray,
) -> list[np.ndarray]:
    """What some nodes send in each layer, float32 [n, M] each.

    Args:
      params, inputs, lists: of every node, as in embed_all.
      nodes: int [n].
    """
    count, layers = len(lists[0]), config.num_layers
    rows = NeededRows(np.arange(count, dtype=np.int32), (count,) * (layers + 1))
    total = max(2 * layers - 1, 0) * count
    with Progress(total, "row", "messages", quiet=options.quiet) as progress:
        whole = _Pass(Stages(config, params), inputs, lists, rows, options, progress)
        tables = [whole.messages(layer)[nodes] for layer in range(1, layers + 1)]
    return [unpacked(rows) if rows.dtype == np.uint8 else rows for rows in tables]


def embed_some(
    config: ModelConfig,
    params: Any,
    inputs: Inputs,
    lists: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    nodes: np.ndarray,
    options: PassOptions,
) -> np.ndarray:
    """Embeds some nodes: of each layer, the rows that the next one reads.

    Args:
      params, inputs: as in embed_all.
      lists: neighbors int32 [n, T], -1 where a list is short, and pooling weights float32 [n, T]
        of nodes int32 [n].
      nodes: int32 [n], distinct.

    Returns:
      Embeddings float32 [n, Z].
    """
    sizes, done = [len(nodes)], 0
    found = [lists(nodes[:0])]
    for _ in range(config.num_layers):
        # The rows before `done` have their lists from the layers above.
        found.append(lists(nodes[done:]))
        done, ids = len(nodes), found[-1][0]
        fresh = np.setdiff1d(ids[ids >= 0], nodes)
        nodes = np.concatenate([nodes, fresh]).astype(np.int32)
        sizes.append(len(nodes))
    ids, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rows = NeededRows(nodes, tuple(reversed(sizes)))
    return embed_all(config, params, inputs, (_rows_of(ids, nodes), weights), options, rows)


def _rows_of(ids: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The row in `nodes` (distinct int32 [R]) of each id that is not -1; -1 for the others."""
    order = np.argsort(nodes)
    found = np.searchsorted(nodes, ids.ravel(), sorter=order).reshape(ids.shape)
    rows = order[np.minimum(found, max(len(nodes) - 1, 0))] if len(nodes) else found
    return np.where(ids >= 0, rows, -1).astype(np.int32)


class _Pass:
    """One pass over the nodes; a table is computed when it is first read.

    This is a class and not a set of nested functions: those would refer to each other, and
    tables of gigabytes would stay in memory until the garbage collector finds the cycle.
    """

    def __init__(
        self,
        stages: Stages,
        inputs: Inputs,
        lists: tuple[np.ndarray | ListColumn, np.ndarray | ListColumn],
        rows: NeededRows,
        options: PassOptions,
        progress: Progress,
    ):
        self._stages, self._inputs, self._lists = stages, inputs, lists
        self._nodes, self._sizes = rows.node_ids, rows.sizes
        self._options, self._progress = options, progress
        self._tables = options.tables or ScratchTables()
        self._made: set[int] = set()
        self._last_read: tuple[tuple[int, int], np.ndarray] | None = None

    def output(self, layer: int) -> np.ndarray:
        """Output of a layer, float32 [R_layer, d]; of the last layer the embeddings [RK, Z]."""
        config, tables = self._stages.config, self._tables
        rows, last = self._sizes[layer], layer == config.num_layers
        pooled = functools.partial(self._read_pooled, layer)
        reads = [self._reader(layer - 1), pooled, self._read_features]
        function: Callable[..., jax.Array]
        if layer == 0:
            function, reads = self._stages.head, [self._read_features]
        elif last:
            function = self._stages.finish
        else:
            function, reads = functools.partial(self._stages.combine, layer), reads[:2]

        def fill(begin: int, end: int, out: np.ndarray) -> None:
            self._run(function, reads, rows, begin, end, out)
            if last and self._options.adjust is not None:
                self._options.adjust(begin, end, out[begin:end])

        name, width = f"layer{layer}", config.layer_dim
        if last:
            name, width = "vectors", config.output_dim
        table = tables.get_or_fill(name, (rows, width), fill)
        if layer not in self._made:
            self._made.add(layer)
            tables.drop(f"messages{layer}")
            tables.drop(f"layer{layer - 1}")
        return table

    def messages(self, layer: int) -> np.ndarray:
        """Messages of all rows that a layer reads, float32 [R_(layer - 1), M] or packed."""
        rows = self._sizes[layer - 1]
        reads = [self._reader(layer - 1), self._read_ids]
        project = functools.partial(self._stages.project, layer)
        fill = functools.partial(self._run, project, reads, rows)
        width = self._stages.config.hidden_dim
        if 4 * rows * width > MOST_FLOAT_BYTES and not self._tables.keep:
            packed = rows, width + reduce_kernels.SCALE_BYTES
            return self._tables.get_or_fill(f"messages{layer}", packed, fill, np.uint8)
        return self._tables.get_or_fill(f"messages{layer}", (rows, width), fill)

    def _reader(self, layer: int) -> Callable[[int, int], np.ndarray]:
        """Reads rows of the output of a layer; layer 0 is the input."""
        if layer == 0:
            return self._read_features
        return lambda begin, end: self.output(layer)[begin:end]

    def _read_features(self, begin: int, end: int) -> np.ndarray:
        # The last layer reads a block twice.
        if self._last_read is None or self._last_read[0] != (begin, end):
            made = self._inputs.gather(self._nodes[begin:end])
            self._last_read = (begin, end), made
        return self._last_read[1]

    def _read_ids(self, begin: int, end: int) -> np.ndarray:
        return self._nodes[begin:end]

    def _read_pooled(self, layer: int, begin: int, end: int) -> np.ndarray:
        messages, pooling = self.messages(layer), self._stages.config.pooling
        pooled = np.empty((end - begin, self._stages.config.hidden_dim), np.float32)
        ids, weights = (column[begin:end] for column in self._lists)

        def work(first: int, last: int) -> None:
            some = slice(first, last)
            reduce_lists(pooling, messages, ids[some], weights[some], pooled[some])

        run_blocks(end - begin, self._options.threads, work, _REDUCE_ROWS)
        return pooled

    def _run(self, function, reads, rows: int, begin: int, end: int, out: np.ndarray) -> None:
        # Powers of two for few rows: any number of new items shares a few compiled shapes.
        size = min(self._options.block, 1 << max(rows - 1, 0).bit_length())
        _in_blocks(function, reads, (begin, end), size, out, self._progress)
        # Rows are read in order, so the pages behind them are not needed in memory.
        for source in (self._inputs, *self._lists):
            if release := getattr(source, "release", None):
                release()
