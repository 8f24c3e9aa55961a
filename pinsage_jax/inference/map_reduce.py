"""The stages of whole-catalog embedding as pure functions over columnar batches.

The paper's MapReduce (Ying et al. 2018, section 3.4), written once.  Per layer:

  project  every node once: line 1's dense layer, [n, in] -> what it sends, [n, M]
  join     what was sent with the neighbor lists: one weighted message per neighbor
  reduce   the messages to a node to its pooled vector; sums and maxima of parts can be
           reduced again, so that a message need not travel alone
  finish   the node's own vector and its pooled one: `combine`, and `finish` with the
           head in the last layer

Two executors call them: layerwise.py over (memory-mapped) arrays of one machine, and
spark/embed.py over Spark's Arrow batches.  Nothing here knows of either.

Shapes: n rows of a batch, T neighbors, M width of Q, in/d width of a layer's input and
output, D input features, Z output width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.cpu import pooling_kernels
from pinsage_jax.inference import reduce_kernels
from pinsage_jax.model.pinsage import PinSage


@functools.lru_cache(maxsize=8)
def _compiled(config: ModelConfig, num_ids: int) -> dict[str, Callable]:
    """Jitted stages of one model; compiled once per number of rows."""
    model = PinSage(config, num_ids=num_ids)

    def apply(method: str) -> Callable:
        return lambda params, *args: model.apply(params, *args, method=method)

    return {
        "project": jax.jit(apply("project"), static_argnums=1),
        "combine": jax.jit(apply("combine"), static_argnums=1),
        "finish": jax.jit(apply("finish")),
        "head": jax.jit(apply("head")),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Stages:
    """The dense stages of one trained model; every one maps rows to rows.

    Attributes:
      params: parameters of PinSage(config).
    """

    config: ModelConfig
    params: Any

    def _run(self, name: str, *args) -> jax.Array:
        messages = self.params["params"].get("neighbor_embeddings")
        stages = _compiled(self.config, 0 if messages is None else len(messages))
        return stages[name](self.params, *args)

    def project(self, layer: int, hidden: np.ndarray, node_ids: np.ndarray) -> jax.Array:
        """What nodes send in `layer` (from 1): [n, in], int32 [n] -> [n, M], >= 0."""
        return self._run("project", layer, hidden, node_ids)

    def combine(self, layer: int, hidden: np.ndarray, pooled: np.ndarray) -> jax.Array:
        """The output of a layer before the last: [n, in], [n, M] -> [n, d]."""
        return self._run("combine", layer, hidden, pooled)

    def finish(self, hidden: np.ndarray, pooled: np.ndarray, features: np.ndarray) -> jax.Array:
        """The last layer and the head: [n, in], [n, M], [n, D] -> [n, Z]."""
        return self._run("finish", hidden, pooled, features)

    def head(self, features: np.ndarray) -> jax.Array:
        """The head alone, of a network without layers: [n, D] -> [n, Z]."""
        return self._run("head", features, features)


def with_padding(parts: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    """Arrays of n <= `rows` rows with rows of zeros after them, so that a stage that is
    compiled for `rows` serves batches of any size."""
    used = len(parts[0])
    if used == rows:
        return list(parts)
    return [np.pad(part, [(0, rows - used)] + [(0, 0)] * (part.ndim - 1)) for part in parts]


def padded(
    function: Callable[..., jax.Array], parts: Sequence[np.ndarray], rows: int
) -> np.ndarray:
    """function(*parts) of arrays of n <= `rows` rows, as [n, ...]; see `with_padding`."""
    return np.asarray(function(*with_padding(parts, rows)))[: len(parts[0])]


def regrouped(
    pieces: Iterable[tuple[np.ndarray, ...]], rows: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Pieces of columns, each of any number of rows, as pieces of `rows` and a shorter last."""
    held: list[tuple[np.ndarray, ...]] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece[0])
        if count < rows:
            continue
        whole = tuple(np.concatenate(columns) for columns in zip(*held, strict=True))
        for begin in range(0, count - rows + 1, rows):
            yield tuple(column[begin : begin + rows] for column in whole)
        rest = count % rows
        held = [tuple(column[count - rest :] for column in whole)] if rest else []
        count = rest
    if count:
        yield tuple(np.concatenate(columns) for columns in zip(*held, strict=True))


def reduce_lists(
    pooling: str, sent: np.ndarray, ids: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """Joins lists with what all nodes sent, by row number, and reduces: into out [n, M].

    Args:
      sent: float32 [N, M], of which only rows in `ids` are read.
      ids: int32 [n, T], -1 where a list is short; weights: float32 [n, T], 0 there.
    """
    ids, weights = np.ascontiguousarray(ids), np.ascontiguousarray(weights)
    if pooling == "max":
        pooling_kernels.max_rows(sent, ids, weights, out)
    else:
        # Sent already with its bias and ReLU, which is itself again after another.
        no_bias = np.zeros(sent.shape[1], np.float32)
        pooling_kernels.weighted_relu_sum(sent, no_bias, ids, weights, 0, out)


def reduce_messages(
    pooling: str,
    vectors: np.ndarray,
    receivers: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Reduces messages that are joined already into out float32 [n, M], in place.

    Args:
      vectors: float32 [E, M], one a message; receivers: int [E] rows of `out`; weights:
        float32 [E]; what was reduced before comes in again with weight 1.
    """
    reducer = reduce_kernels.keep_largest if pooling == "max" else reduce_kernels.add_messages
    reducer(vectors, receivers, weights, out)
