"""Whole-catalogue embedding, layer by layer, every node computed once per layer.

The paper's MapReduce (Ying et al. 2018, section 3.4) as plain functions over
blocks of rows.  Per layer: *project* every node once (line 1's dense layer); *join*
the projected vectors with the neighbourhoods and *reduce* them to pooled vectors;
*finish* the layer.  Then the head.  Dense layers run in JAX on blocks of fixed
shape, the join in Numba on the host, so that memory is bounded by two layers; tables
above a size lie in nameless files, of which memory holds what is being read.

Shapes: N nodes, T neighbours, D input features, M width of Q, d layer width, Z
output width.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pinsage_jax import files
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.config import ModelConfig
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.model.pooling_kernels import max_rows, weighted_rows
from pinsage_jax.progress import Progress
from pinsage_jax.sampling.neighbourhoods import run_blocks

_REDUCE_ROWS = 512
# Tables that take more than this lie on disk, where there is a folder for them.
MOST_TABLE_BYTES = 1 << 30


@functools.lru_cache(maxsize=8)
def _stages(config: ModelConfig, num_ids: int) -> dict[str, Callable]:
    """Jitted stages of one model; compiled once per block shape."""
    model = PinSage(config, num_ids=num_ids)

    def apply(method: str) -> Callable:
        return lambda params, *args: model.apply(params, *args, method=method)

    return {
        "project": jax.jit(apply("project"), static_argnums=1),
        "combine": jax.jit(apply("combine"), static_argnums=1),
        "finish": jax.jit(apply("finish")),
        "head": jax.jit(apply("head")),
    }


def _in_blocks(
    function: Callable[..., jax.Array],
    inputs: list[Callable[[int, int], np.ndarray]],
    rows: int,
    block: int,
    out: np.ndarray,
    progress: Progress,
) -> None:
    """out[begin:end] = function(*inputs(begin, end)) in blocks; the last is padded and cut.

    JAX returns before it has computed: the next inputs are read and the last results
    written meanwhile.
    """
    block = min(block, max(rows, 1))

    def write(begin: int, made: jax.Array) -> None:
        end = min(begin + block, rows)
        out[begin:end] = np.asarray(made)[: end - begin]
        # Blocks are written in order and not read before the last is there.
        files.release(out)
        progress.update(end - begin)

    last: tuple[int, jax.Array] | None = None
    for begin in range(0, rows, block):
        end = min(begin + block, rows)
        parts = []
        for read in inputs:
            part = read(begin, end)
            if end - begin < block:
                part = np.pad(part, [(0, block - len(part))] + [(0, 0)] * (part.ndim - 1))
            parts.append(part)
        made = function(*parts)
        if last is not None:
            write(*last)
        last = begin, made
    if last is not None:
        write(*last)


def embed_all(
    config: ModelConfig,
    params: Any,
    inputs: NodeInputs,
    neighbours: np.ndarray,
    weights: np.ndarray,
    *,
    block: int,
    threads: int = 1,
    quiet: bool = False,
    node_ids: np.ndarray | None = None,
    sizes: tuple[int, ...] | None = None,
    folder: str | os.PathLike | None = None,
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
      folder: where tables above MOST_TABLE_BYTES lie; None: everything in memory.

    Returns:
      float32 [N, Z], or [RK, Z].
    """
    sizes = sizes or (len(neighbours),) * (config.num_layers + 1)
    messages = params["params"].get("id_messages")
    stages = _stages(config, 0 if messages is None else len(messages))
    every = np.arange(sizes[0], dtype=np.int32) if node_ids is None else node_ids
    hidden: np.ndarray | None = None

    def read_hidden(begin: int, end: int) -> np.ndarray:
        return read_features(begin, end) if hidden is None else hidden[begin:end]

    reduce = max_rows if config.pooling == "max" else weighted_rows

    @functools.lru_cache(maxsize=1)
    def read_features(begin: int, end: int) -> np.ndarray:
        return inputs.gather(every[begin:end])

    def read_ids(begin: int, end: int) -> np.ndarray:
        return every[begin:end]

    def table(rows: int, width: int) -> np.ndarray:
        return files.scratch_array((rows, width), folder, MOST_TABLE_BYTES)

    out = table(sizes[-1], config.output_dim)
    total = sum(sizes[:-1]) + sum(sizes[1:]) or sizes[0]
    with Progress(total, "row", "embedding", quiet=quiet) as progress:
        for layer in range(1, config.num_layers + 1):
            before, after = sizes[layer - 1], sizes[layer]
            projected = table(before, config.hidden_dim)
            project = functools.partial(stages["project"], params, layer)
            _in_blocks(project, [read_hidden, read_ids], before, block, projected, progress)

            def read_pooled(begin: int, end: int, sent: np.ndarray = projected) -> np.ndarray:
                pooled = np.empty((end - begin, sent.shape[1]), np.float32)
                ids, mass = neighbours[begin:end], weights[begin:end]

                def work(first: int, last: int) -> None:
                    reduce(sent, ids[first:last], mass[first:last], 0, pooled[first:last])

                run_blocks(end - begin, threads, work, _REDUCE_ROWS)
                return pooled

            if layer == config.num_layers:
                finish = functools.partial(stages["finish"], params)
                reads = [read_hidden, read_pooled, read_features]
                _in_blocks(finish, reads, after, block, out, progress)
            else:
                finished = table(after, config.layer_dim)
                combine = functools.partial(stages["combine"], params, layer)
                _in_blocks(combine, [read_hidden, read_pooled], after, block, finished, progress)
                hidden = finished
        if config.num_layers == 0:
            head = functools.partial(stages["head"], params)
            _in_blocks(head, [read_features, read_features], sizes[0], block, out, progress)
    return out
