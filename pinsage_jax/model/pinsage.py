"""PinSage as a Flax module (Ying et al. 2018, Algorithms 1 and 2).

The same parameters are used in two ways: `__call__` runs K convolutions over the compact
graph of a minibatch (training), and `project`, `combine`, `finish` and `head` each run one
stage over any block of nodes (whole-catalog inference, section 3.4).

Axis letters: n_k rows of frontier S(k), a prefix of S(k-1); n rows of a block; K layers;
T neighbors; D input features; F width of a layer's input; M width of Q; d width of a
layer's output; Z width of the embedding.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pinsage_jax.batching.transposed import Layout, layouts
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.cpu.ops import add_bias
from pinsage_jax.model.input_rows import TableInputs
from pinsage_jax.model.layers import Combine, DenseParams, Project, l2_normalize, unit_input_init
from pinsage_jax.model.pooling import pool_neighbors

# Factor of the popularity bias: a step of the optimizer moves it no more than it moves the
# other coordinates, which form a unit vector.
_POPULARITY_SCALE = 0.1

# Folded into the key of all parameters for the initial skip matrix of the pooled neighbors.
_SKIP_STREAM = 0xCB498BEF


class PinSage(nn.Module):
    """K localized convolutions and the head z = G2 ReLU(G1 h + g).

    Attributes:
      config: sizes and variants.
      rows: rows of every frontier of a minibatch, seeds first: (n_K, ..., n_0).  Only
        `__call__` needs it.
      num_ids: nodes that have a neighbor embedding, [0, num_ids); 0 for none.
    """

    config: ModelConfig
    rows: tuple[int, ...] = ()
    num_ids: int = 0

    def setup(self):
        config = self.config
        dtype = jnp.dtype(config.compute_dtype)
        self.projections = [Project(config.hidden_dim, dtype) for _ in range(config.num_layers)]
        self.combinations = [Combine(config.layer_dim, dtype) for _ in range(config.num_layers)]
        width = config.layer_dim if config.num_layers else config.output_dim
        size = config.output_dim - int(config.popularity_bias)
        self.G1 = DenseParams(width, dtype)
        self.G2 = nn.Dense(size, use_bias=False, dtype=dtype)
        if config.skip:
            self.skip_self = nn.Dense(
                size, use_bias=False, dtype=dtype, kernel_init=unit_input_init
            )
            if config.num_layers:
                self.skip_neighbors = nn.Dense(
                    size, use_bias=False, dtype=dtype, kernel_init=self._skip_init()
                )
        if config.popularity_bias:
            zeros = nn.initializers.zeros
            self.popularity = nn.Dense(1, use_bias=False, kernel_init=zeros)
            self.popularity_self = nn.Dense(1, use_bias=False, kernel_init=zeros)
        if self.num_ids and config.num_layers:
            self.neighbor_embeddings = self.param(
                "neighbor_embeddings",
                nn.initializers.normal(0.1),
                (self.num_ids, config.hidden_dim),
            )

    def _skip_init(self) -> nn.initializers.Initializer:
        """Initial values that do not depend on the module's name, as Flax's own would."""
        init = nn.initializers.lecun_normal()
        if self.scope is None or not self.is_initializing():
            return init
        root = self.scope.rngs["params"].rng
        return lambda _, shape, dtype: init(jax.random.fold_in(root, _SKIP_STREAM), shape, dtype)

    def project(self, layer: int, h: jax.Array, node_ids: jax.Array | None) -> jax.Array:
        """Messages ReLU(Q h + q) of a block of nodes (Algorithm 1, line 1).

        With neighbor embeddings the messages of the first layer are ReLU(Q h + q + e), e
        a learned vector of the sender's id.  Neighbors then differ even without features,
        and an item that training never saw still has neighbors that training saw.

        Args:
          layer: from 1.
          h: [n, F].
          node_ids: int32 [n]; ids outside [0, num_ids) have no vector.  None: the parameter has the
            vectors of the n nodes instead of those of all ids.

        Returns:
          [n, M], not negative.
        """
        projected, bias = self._before_relu(layer, h, node_ids)
        return nn.relu(projected + bias[None, :])

    def _before_relu(self, layer, h, node_ids) -> tuple[jax.Array, jax.Array]:
        """Q h (+ e) and q of `project`: [n, M], [M]."""
        embeddings = None
        if layer == 1 and self.num_ids and node_ids is None:
            embeddings = self.neighbor_embeddings
        elif layer == 1 and self.num_ids:
            known = (node_ids >= 0) & (node_ids < self.num_ids)
            embeddings = self.neighbor_embeddings[jnp.clip(node_ids, 0, self.num_ids - 1)]
            embeddings = jnp.where(known[:, None], embeddings, 0.0)
        return self.projections[layer - 1](h, embeddings)

    def combine(self, layer: int, h: jax.Array, pooled: jax.Array) -> jax.Array:
        """h [n, F] and pooled [n, M] -> [n, d] of `layer`, from 1 (Algorithm 1, lines 2, 3)."""
        return self.combinations[layer - 1](h, pooled)

    def head(self, h: jax.Array, features: jax.Array, pooled: jax.Array | None = None) -> jax.Array:
        """Embeddings G2 ReLU(G1 h + g), scaled to unit length (Algorithm 2, line 16).

        Additions that are not in the paper:

        * `skip`: linear maps of the node's input and of its pooled neighbors are added, so
          that both reach the output without a nonlinearity between.
        * `popularity_bias`: the last coordinate is 1 + b with b learned.  An inner product
          then contains (1 + b_q)(1 + b_i), which ranks items by b_i in addition to their
          similarity, so that the directions of the other coordinates need not encode
          popularity.

        Args:
          h: [n, d] of the last layer (with K = 0: the input itself).
          features: [n, D] input vectors of the same nodes.
          pooled: [n, M] of the last layer; None with K = 0.

        Returns:
          float32 [n, Z].
        """
        kernel, bias = self.G1(h.shape[-1])
        active = nn.relu(add_bias(h.astype(kernel.dtype) @ kernel, bias))
        out = self.G2(active)
        if self.config.skip:
            out = out + self.skip_self(features)
            if pooled is not None:
                out = out + self.skip_neighbors(pooled)
        out = l2_normalize(out.astype(jnp.float32))
        if self.config.popularity_bias:
            popularity = self.popularity(active.astype(jnp.float32))
            popularity = popularity + self.popularity_self(features)
            last = 1.0 + _POPULARITY_SCALE * popularity.astype(jnp.float32)
            out = jnp.concatenate([out, last], axis=-1)
        return out

    def finish(self, h: jax.Array, pooled: jax.Array, features: jax.Array) -> jax.Array:
        """`combine` of the last layer and `head`: h [n, F], [n, M], [n, D] -> float32 [n, Z]."""
        return self.head(self.combine(self.config.num_layers, h, pooled), features, pooled)

    def __call__(
        self,
        features: jax.Array | TableInputs,
        node_ids: jax.Array | None,
        neighbors: jax.Array,
        weights: jax.Array,
        transposed: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds the seeds of a minibatch (Algorithm 2, lines 8-17).

        Args:
          features: float32 [n_0, D] input vectors, or what they are made from.
          node_ids: int32 [n_0] nodes of the rows, -1 for padding; None as in `project`.
          neighbors: int32 [n_1, T] rows of S(k-1), valid in every layer.
          weights: float32 [n_1, T], 0 where masked.
          transposed: int32 [X] of batching/transposed.py, or None.

        Returns:
          float32 [n_K, Z].
        """
        first = features.rows if isinstance(features, TableInputs) else features
        h, pooled, parts = first, None, self._transposed_layers(transposed, neighbors.shape[1])
        for layer in range(1, self.config.num_layers + 1):
            size = self.rows[self.config.num_layers - layer]
            pooled = pool_neighbors(
                *self._before_relu(layer, features if layer == 1 else h, node_ids),
                neighbors[:size],
                weights[:size],
                self.config.pooling,
                parts[layer - 1],
            )
            h = self.combine(layer, h[:size], pooled)
        return self.head(h, first[: h.shape[0]], pooled)

    def _transposed_layers(
        self, transposed: jax.Array | None, length: int
    ) -> list[tuple[jax.Array, Layout] | None]:
        """Transposed lists of every layer, with their layouts; None where there are none."""
        if transposed is None or not transposed.size:
            return [None] * self.config.num_layers
        found: list[tuple[jax.Array, Layout] | None] = []
        begin = 0
        for layout in layouts(self.rows, length):
            found.append((transposed[begin : begin + layout.size], layout))
            begin += layout.size
        return found
