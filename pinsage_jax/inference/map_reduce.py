"""The stages of layer-wise inference as pure functions over columnar batches.

This is the paper's MapReduce inference (Ying et al. 2018, section 3.4).  Per layer:

  project  Algorithm 1, line 1, once per node: [n, in] -> messages [n, M]
  join     messages with neighbor lists: one weighted message per neighbor
  reduce   the messages to a node to its pooled vector; partial sums and maxima can be
           reduced again, so messages of one machine may travel as one
  combine  a node's own vector with its pooled one; `finish` does so in the last layer,
           with the head

Two executors call the stages: layerwise.py over (memory-mapped) arrays of one machine,
and spark/embed.py over Arrow batches of Spark.

Shapes: n rows of a batch, T neighbors, M width of Q, in/d width of a layer's input and
output, D input features, Z output width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.cpu import pooling_kernels
from pinsage_jax.inference import reduce_kernels
from pinsage_jax.model.pinsage import PinSage


@functools.lru_cache(maxsize=8)
def compiled_stages(config: ModelConfig, num_ids: int) -> dict[str, Callable]:
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
    """The dense stages of one trained model; each maps rows to rows.

    Attributes:
      params: parameters of PinSage(config), placed on the device once: arrays of the host
        would be sent with every block.
    """

    config: ModelConfig
    params: Any

    def __post_init__(self):
        object.__setattr__(self, "params", jax.tree.map(jnp.asarray, self.params))

    def _run(self, name: str, *args) -> jax.Array:
        messages = self.params["params"].get("neighbor_embeddings")
        stages = compiled_stages(self.config, 0 if messages is None else len(messages))
        return stages[name](self.params, *args)

    def project(self, layer: int, h: np.ndarray, node_ids: np.ndarray) -> jax.Array:
        """Messages of nodes in `layer` (from 1): [n, in], int32 [n] -> [n, M], >= 0."""
        return self._run("project", layer, h, node_ids)

    def combine(self, layer: int, h: np.ndarray, pooled: np.ndarray) -> jax.Array:
        """The output of a layer before the last: [n, in], [n, M] -> [n, d]."""
        return self._run("combine", layer, h, pooled)

    def finish(self, h: np.ndarray, pooled: np.ndarray, features: np.ndarray) -> jax.Array:
        """The last layer and the head: [n, in], [n, M], [n, D] -> [n, Z]."""
        return self._run("finish", h, pooled, features)

    def head(self, features: np.ndarray) -> jax.Array:
        """The head alone, of a network without layers: [n, D] -> [n, Z]."""
        return self._run("head", features, features)


def with_padding(parts: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    """Arrays of n <= `rows` rows, padded to `rows` with zeros.

    A stage that is compiled for `rows` rows serves batches of any smaller size.
    """
    count = len(parts[0])
    if count == rows:
        return list(parts)
    return [np.pad(part, [(0, rows - count)] + [(0, 0)] * (part.ndim - 1)) for part in parts]


def padded(
    function: Callable[..., jax.Array], parts: Sequence[np.ndarray], rows: int
) -> np.ndarray:
    """function(*parts) of arrays of n <= `rows` rows, computed with padding: [n, ...]."""
    return np.asarray(function(*with_padding(parts, rows)))[: len(parts[0])]


def rebatch(
    pieces: Iterable[tuple[np.ndarray, ...]], rows: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """Cuts a stream of columns in pieces of any size into pieces of `rows` and a shorter last."""
    waiting: list[tuple[np.ndarray, ...]] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece[0])
        if count < rows:
            continue
        whole = tuple(np.concatenate(columns) for columns in zip(*waiting, strict=True))
        for begin in range(0, count - rows + 1, rows):
            yield tuple(column[begin : begin + rows] for column in whole)
        rest = count % rows
        waiting = [tuple(column[count - rest :] for column in whole)] if rest else []
        count = rest
    if count:
        yield tuple(np.concatenate(columns) for columns in zip(*waiting, strict=True))


def reduce_lists(
    pooling: str, messages: np.ndarray, ids: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """Joins neighbor lists with messages by row number, and reduces them into out [n, M].

    Args:
      messages: float32 [N, M], of which only rows in `ids` are read; or uint8 [N, M + 4], see
        reduce_kernels.pack_rows.
      ids: int32 [n, T], -1 where a list is short; weights: float32 [n, T], 0 there.
    """
    ids, weights = np.ascontiguousarray(ids), np.ascontiguousarray(weights)
    if messages.dtype == np.uint8:
        reduce_kernels.reduce_packed(messages, ids, weights, pooling == "max", out)
    elif pooling == "max":
        pooling_kernels.max_rows(messages, ids, weights, out)
    else:
        # The kernel adds a bias and applies ReLU; messages >= 0 stay as they are.
        no_bias = np.zeros(messages.shape[1], np.float32)
        pooling_kernels.weighted_relu_sum(messages, no_bias, ids, weights, 0, out)


def unpacked(packed: np.ndarray) -> np.ndarray:
    """The rows float32 [n, M] of packed ones, uint8 [n, M + 4]; see reduce_kernels.pack_rows."""
    numbers, scales = np.split(packed, [packed.shape[1] - reduce_kernels.SCALE_BYTES], axis=1)
    return numbers.astype(np.float32) * np.ascontiguousarray(scales).view(np.float32)


def reduce_messages(
    pooling: str,
    vectors: np.ndarray,
    receivers: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Reduces messages into out float32 [n, M], in place.

    Args:
      vectors: float32 [E, M], one per message; receivers: int [E], rows of `out`; weights:
        float32 [E], 1 for a message that is a partial result.
    """
    reducer = reduce_kernels.max_messages if pooling == "max" else reduce_kernels.add_messages
    reducer(vectors, receivers, weights, out)
