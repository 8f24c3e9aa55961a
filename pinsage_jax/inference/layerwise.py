"""Whole-catalogue embedding, layer by layer, every node computed once per layer.

The stages of map_reduce.py over arrays of one machine.  Dense layers run in JAX on
blocks of fixed shape, the join and the reduction in Numba on the host, so that memory is
bounded by two layers; where tables lie, and what of them a killed run finds again, is for
layer_tables.py.

Shapes: N nodes, T neighbours, D input features, M width of Q, d layer width, Z
output width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from pinsage_jax import files
from pinsage_jax.config import ModelConfig
from pinsage_jax.inference.layer_tables import ScratchTables, Tables
from pinsage_jax.inference.map_reduce import Stages, reduce_lists, with_padding
from pinsage_jax.progress import Progress
from pinsage_jax.sampling.lists import ListColumn
from pinsage_jax.sampling.neighbourhoods import run_blocks

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
    neighbours: np.ndarray | ListColumn,
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
    """Embeds every node that has a neighbour list, or only what some nodes need.

    Args:
      params: parameters of PinSage(config).
      neighbours: int32 [N, T], -1 where a list is short.
      weights: float32 [N, T] pooling weights.
      block: rows computed at once.
      node_ids: int32 [R0] nodes of the rows; None: row r is node r.
      sizes: rows R0 >= R1 >= ... >= RK that are needed of the input and of each layer's
        output, every time the first ones; `neighbours` and `weights` then are [R1, T]
        and name rows.  None: all N.
      tables: where tables lie, by default in memory; those that it holds already are
        not computed: sent1, layer1, sent2, ..., vectors.
      adjust: changes rows of the result before they are kept.

    Returns:
      float32 [N, Z], or [RK, Z].
    """
    sizes = sizes or (len(neighbours),) * (config.num_layers + 1)
    tables = tables or ScratchTables()
    stages = Stages(config, params)
    every = np.arange(sizes[0], dtype=np.int32) if node_ids is None else node_ids

    @functools.lru_cache(maxsize=1)
    def read_features(begin: int, end: int) -> np.ndarray:
        return inputs.gather(every[begin:end])

    def read_ids(begin: int, end: int) -> np.ndarray:
        return every[begin:end]

    def read_hidden(layer: int) -> Callable[[int, int], np.ndarray]:
        """Rows of a layer's output, layer 0 being the input; made when first asked for."""
        return read_features if layer == 0 else lambda begin, end: output(layer)[begin:end]

    def run(function, reads, rows: int, begin: int, end: int, out: np.ndarray) -> None:
        # Of few rows a power of two: new items of any number share some compiled shapes.
        size = min(block, 1 << max(rows - 1, 0).bit_length())
        _in_blocks(function, reads, (begin, end), size, out, progress)

    def sent(layer: int) -> np.ndarray:
        rows = sizes[layer - 1]
        reads = [read_hidden(layer - 1), read_ids]
        fill = functools.partial(run, functools.partial(stages.project, layer), reads, rows)
        return tables.filled(f"sent{layer}", (rows, config.hidden_dim), fill)

    def read_pooled(layer: int, begin: int, end: int) -> np.ndarray:
        source = sent(layer)
        pooled = np.empty((end - begin, source.shape[1]), np.float32)
        ids, mass = neighbours[begin:end], weights[begin:end]

        def work(first: int, last: int) -> None:
            reduce_lists(
                config.pooling, source, ids[first:last], mass[first:last], pooled[first:last]
            )

        run_blocks(end - begin, threads, work, _REDUCE_ROWS)
        return pooled

    def output(layer: int) -> np.ndarray:
        rows, last = sizes[layer], layer == config.num_layers
        reads = [read_hidden(layer - 1), functools.partial(read_pooled, layer), read_features]
        function: Callable[..., jax.Array]
        if layer == 0:
            function, reads = stages.head, [read_features]
        elif last:
            function = stages.finish
        else:
            function, reads = functools.partial(stages.combine, layer), reads[:2]

        def fill(begin: int, end: int, out: np.ndarray) -> None:
            run(function, reads, rows, begin, end, out)
            if last and adjust is not None:
                adjust(begin, end, out[begin:end])

        name, width = f"layer{layer}", config.layer_dim
        if last:
            name, width = "vectors", config.output_dim
        table = tables.filled(name, (rows, width), fill)
        if layer not in made:
            made.add(layer)
            tables.drop(f"sent{layer}")
            tables.drop(f"layer{layer - 1}")
        return table

    made: set[int] = set()
    total = sum(sizes[:-1]) + sum(sizes[1:]) or sizes[0]
    with Progress(total, "row", "embedding", quiet=quiet) as progress:
        return output(config.num_layers)
