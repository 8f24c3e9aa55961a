"""Whole-catalog embedding, layer by layer, every node computed once per layer.

The stages of map_reduce.py over arrays of one machine.  Dense layers run in JAX on
blocks of fixed shape, the join and the reduction in Numba on the host, so that memory is
bounded by two layers; where tables lie, and what of them a killed run finds again, is for
layer_tables.py.

Shapes: N nodes, T neighbors, D input features, M width of Q, d layer width, Z
output width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.core import files
from pinsage_jax.core.progress import Progress
from pinsage_jax.inference.map_reduce import Stages, reduce_lists, with_padding
from pinsage_jax.inference.tables import ScratchTables, Tables
from pinsage_jax.sampling.lists import ListColumn
from pinsage_jax.sampling.neighborhoods import run_blocks

_REDUCE_ROWS = 512

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
    """out[begin:end] = function(*inputs(begin, end)) in blocks; the last is padded and cut.

    JAX returns before it has computed: the next inputs are read and the last results
    written meanwhile.
    """

    def write(begin: int, made: jax.Array) -> None:
        end = min(begin + block, span[1])
        out[begin:end] = np.asarray(made)[: end - begin]
        # Blocks are written in order and not read before the last is there.
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
    """Input vectors of nodes: NodeInputs, or what stands in for it."""

    def gather(self, nodes: np.ndarray) -> np.ndarray:
        """float32 [n, D] of nodes int32 [n]."""


def embed_all(
    config: ModelConfig,
    params: Any,
    inputs: Inputs,
    neighbors: np.ndarray | ListColumn,
    weights: np.ndarray | ListColumn,
    *,
    block: int,
    threads: int = 1,
    quiet: bool = False,
    node_ids: np.ndarray | None = None,
    sizes: tuple[int, ...] | None = None,
    tables: Tables | None = None,
    adjust: Adjust | None = None,
) -> np.ndarray:
    """Embeds every node that has a neighbor list, or only what some nodes need.

    Args:
      params: parameters of PinSage(config).
      neighbors: int32 [N, T], -1 where a list is short.
      weights: float32 [N, T] pooling weights.
      block: rows computed at once.
      node_ids: int32 [R0] nodes of the rows; None: row r is node r.
      sizes: rows R0 >= R1 >= ... >= RK that are needed of the input and of each layer's
        output, every time the first ones; `neighbors` and `weights` then are [R1, T]
        and name rows.  None: all N.
      tables: where tables lie, by default in memory; those that it holds already are
        not computed: sent1, layer1, sent2, ..., vectors.
      adjust: changes rows of the result before they are kept.

    Returns:
      float32 [N, Z], or [RK, Z].
    """
    sizes = sizes or (len(neighbors),) * (config.num_layers + 1)
    total = sum(sizes[:-1]) + sum(sizes[1:]) or sizes[0]
    every = np.arange(sizes[0], dtype=np.int32) if node_ids is None else node_ids
    with Progress(total, "row", "embedding", quiet=quiet) as progress:
        whole = _Pass(
            Stages(config, params),
            inputs,
            every,
            (neighbors, weights),
            sizes,
            tables or ScratchTables(),
            _Work(block, threads, progress, adjust),
        )
        return whole.output(config.num_layers)


class _Work(NamedTuple):
    """How a pass is done; see embed_all."""

    block: int
    threads: int
    progress: Progress
    adjust: Adjust | None


class _Pass:
    """One pass over a catalog, each table made when first asked for.

    A class and no nest of functions: those would refer to each other, and tables of gigabytes
    would wait for the collector of cycles.
    """

    def __init__(self, stages: Stages, inputs: Inputs, nodes, lists, sizes, tables, work: _Work):
        """Takes what embed_all was given, `nodes` int32 [R0] for every row."""
        self._stages, self._inputs, self._nodes = stages, inputs, nodes
        self._lists, self._sizes, self._tables, self._work = lists, sizes, tables, work
        self._made: set[int] = set()
        self._last_read: tuple[tuple[int, int], np.ndarray] | None = None

    def output(self, layer: int) -> np.ndarray:
        """A layer's output, float32 [R_layer, d]; of the last one, the vectors."""
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
            if last and self._work.adjust is not None:
                self._work.adjust(begin, end, out[begin:end])

        name, width = f"layer{layer}", config.layer_dim
        if last:
            name, width = "vectors", config.output_dim
        table = tables.filled(name, (rows, width), fill)
        if layer not in self._made:
            self._made.add(layer)
            tables.drop(f"sent{layer}")
            tables.drop(f"layer{layer - 1}")
        return table

    def _sent(self, layer: int) -> np.ndarray:
        rows = self._sizes[layer - 1]
        reads = [self._reader(layer - 1), self._read_ids]
        project = functools.partial(self._stages.project, layer)
        fill = functools.partial(self._run, project, reads, rows)
        return self._tables.filled(f"sent{layer}", (rows, self._stages.config.hidden_dim), fill)

    def _reader(self, layer: int) -> Callable[[int, int], np.ndarray]:
        """Rows of a layer's output, layer 0 being the input; made when first asked for."""
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
        source, pooling = self._sent(layer), self._stages.config.pooling
        pooled = np.empty((end - begin, source.shape[1]), np.float32)
        ids, mass = (column[begin:end] for column in self._lists)

        def work(first: int, last: int) -> None:
            some = slice(first, last)
            reduce_lists(pooling, source, ids[some], mass[some], pooled[some])

        run_blocks(end - begin, self._work.threads, work, _REDUCE_ROWS)
        return pooled

    def _run(self, function, reads, rows: int, begin: int, end: int, out: np.ndarray) -> None:
        # Of few rows a power of two: new items of any number share some compiled shapes.
        size = min(self._work.block, 1 << max(rows - 1, 0).bit_length())
        _in_blocks(function, reads, (begin, end), size, out, self._work.progress)
