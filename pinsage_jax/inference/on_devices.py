"""A pass over all nodes whose messages stay in the memory of the local devices.

layerwise.py joins messages on the host.  Where every device has room for the messages of a
layer, they need not come back: the blocks of nodes are dealt out to the devices in turn, each
device projects its blocks, gets the messages of the others from them, and pools and combines
its own blocks.  Only the embeddings are fetched.

Products and sums are float32 (no TF32), so that the results are those of layerwise.py up to
the order of sums.

Shapes: N nodes, R rows of a layer, n rows of a block, T neighbors, M width of Q, d layer
width, Z embedding dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.distributed.devices import make_devices, max_table_bytes
from pinsage_jax.inference.map_reduce import compiled_stages, with_padding


def holds_messages(config: ModelConfig, rows: int) -> bool:
    """Whether the pass runs on the devices: on accelerators with room for what stays there.

    Args:
      rows: rows of the input layer.
    """
    if jax.default_backend() == "cpu":
        return False
    # A layer's messages, once more while those of the devices are joined, and a layer's output.
    numbers = rows * (2 * config.hidden_dim + config.layer_dim)
    return 4 * numbers <= max_table_bytes(make_devices())


@functools.partial(jax.jit, static_argnames="pooling")
def pool(messages, ids, weights, *, pooling):
    """Pooled vectors float32 [n, M] of lists of messages.

    Args:
      messages: float32 [N, M], >= 0.
      ids: int32 [n, T], -1 where a list is short.
      weights: float32 [n, T], 0 there.
    """

    def add(total, column):
        named, weight = column
        sent = messages[jnp.maximum(named, 0)].astype(jnp.float32)
        if pooling == "max":
            return jnp.maximum(total, jnp.where(weight[:, None] > 0, sent, 0.0)), None
        return total + weight[:, None] * sent, None

    none = jnp.zeros((len(ids), messages.shape[1]), jnp.float32)
    # One column after the other: the array [n, T, M] would not fit.
    return jax.lax.scan(add, none, (ids.T, weights.T))[0]


class DevicePass:
    """One pass over the nodes on all local devices."""

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        inputs: Any,
        lists: tuple[Any, Any],
        rows: Any,
        block: int,
    ):
        """Takes what layerwise.embed_all takes; computes nothing yet.

        Args:
          inputs: reads input vectors of nodes, layerwise.Inputs.
          rows: the nodes, layerwise.NeededRows.
          block: rows that a device computes at once.
        """
        self._config, self._inputs, self._lists = config, inputs, lists
        self._nodes, self._sizes = rows.node_ids, rows.sizes
        # Powers of two for few rows, as in layerwise.py.
        self._block = min(block, 1 << max(self._sizes[0] - 1, 0).bit_length())
        self._devices = make_devices()
        self._params = [jax.device_put(params, device) for device in self._devices]
        embeddings = params["params"].get("neighbor_embeddings")
        self._stages = compiled_stages(config, 0 if embeddings is None else len(embeddings))
        self._messages: list[jax.Array] = []  # of all rows, for each device
        # The output of the layer before the last, by block; None: the input.
        self._outputs: list[jax.Array] | None = None

    def vectors(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, embeddings float32 [n, Z]) of the rows [begin, end), block by block."""
        waiting: list[tuple[int, jax.Array]] = []
        with jax.default_matmul_precision("highest"):
            if self._config.num_layers and not self._messages:
                self._run_layers()
            first = begin // self._block
            for number in range(first, -(-end // self._block)):
                waiting.append((number * self._block, self._embedded(number)))
                # The other devices compute meanwhile.
                if len(waiting) > len(self._devices):
                    yield self._fetched(*waiting.pop(0), begin, end)
        for start, made in waiting:
            yield self._fetched(start, made, begin, end)

    def _fetched(self, start: int, made: jax.Array, begin: int, end: int) -> tuple[int, np.ndarray]:
        first, last = max(start, begin), min(start + self._block, end)
        return first, np.asarray(made)[first - start : last - start]

    def _run_layers(self) -> None:
        """Computes every layer but the last, and the messages of the last."""
        for layer in range(1, self._config.num_layers + 1):
            parts = self._by_block(layer - 1, functools.partial(self._projected, layer))
            self._messages = [
                jnp.concatenate([jax.device_put(part, device) for part in parts])
                for device in self._devices
            ]
            del parts
            if layer < self._config.num_layers:
                self._outputs = self._by_block(layer, functools.partial(self._combined, layer))

    def _by_block(self, layer: int, function: Callable[[int], jax.Array]) -> list[jax.Array]:
        """function(number) of all blocks of a layer; a few are on their way at a time."""
        made: list[jax.Array] = []
        ahead = 2 * len(self._devices)
        for number in self._blocks(layer):
            if number >= ahead:
                # The inputs of blocks that wait would fill the memory.
                made[number - ahead].block_until_ready()
            made.append(function(number))
        return made

    def _projected(self, layer: int, number: int) -> jax.Array:
        params, ids = self._params[self._owner(number)], self._sent(number, self._nodes)
        return self._stages["project"](params, layer, self._below(number), ids)

    def _combined(self, layer: int, number: int) -> jax.Array:
        params, pooled = self._params[self._owner(number)], self._pooled(number)
        return self._stages["combine"](params, layer, self._below(number), pooled)

    def _owner(self, number: int) -> int:
        """The position of the device of a block."""
        return number % len(self._devices)

    def _blocks(self, layer: int) -> range:
        return range(-(-self._sizes[layer] // self._block))

    def _below(self, number: int) -> jax.Array:
        """The output of the layer below of a block, on the block's device."""
        return self._features(number) if self._outputs is None else self._outputs[number]

    def _features(self, number: int) -> jax.Array:
        nodes = self._nodes[number * self._block : (number + 1) * self._block]
        return self._placed(number, self._inputs.gather(nodes))

    def _sent(self, number: int, column: Any) -> jax.Array:
        """Rows of a block of some column, on the block's device."""
        rows = column[number * self._block : (number + 1) * self._block]
        return self._placed(number, np.asarray(rows))

    def _placed(self, number: int, rows: np.ndarray) -> jax.Array:
        padded = with_padding([rows], self._block)[0]
        return jax.device_put(padded, self._devices[self._owner(number)])

    def _pooled(self, number: int) -> jax.Array:
        messages = self._messages[self._owner(number)]
        ids, weights = (self._sent(number, column) for column in self._lists)
        return pool(messages, ids, weights, pooling=self._config.pooling)

    def _embedded(self, number: int) -> jax.Array:
        """Embeddings [n, Z] of a block."""
        params, features = self._params[self._owner(number)], self._features(number)
        if not self._config.num_layers:
            return self._stages["head"](params, features, features)
        h = features if self._outputs is None else self._outputs[number]
        return self._stages["finish"](params, h, self._pooled(number), features)
