"""PinSage as a Flax module (Ying et al. 2018, Algorithms 1 and 2).

The same parameters serve two paths: `__call__` runs K convolutions over the compact
graph of a minibatch (training), and `project`, `combine`, `finish` and `head` run one stage
over any block of nodes (whole-catalog inference, section 3.4).

Shapes: n_k rows of frontier S(k), a prefix of S(k-1); T neighbors; D input
features; M width of Q; d width of a layer; Z width of the output.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.model.layers import Combine, Project, l2_normalize, unit_input_init
from pinsage_jax.model.pooling import pool_neighbors

# Keeps a step of the optimizer small beside the other coordinates, which make unit vectors.
_POPULARITY_SCALE = 0.1


# The random stream of the pooled neighbors' skip matrix, folded into the key of all parameters.
_SKIP_STREAM = 0xCB498BEF


class PinSage(nn.Module):
    """K localized convolutions and the head z = G2 ReLU(G1 h + g).

    Attributes:
      config: sizes and variants.
      rows: rows of every frontier, seeds first (n_K, ..., n_0); the sizes that one
        minibatch has.  Only `__call__` needs it.
      num_ids: nodes that have an id message; 0 for none.
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
        self.G1 = nn.Dense(width, dtype=dtype, kernel_init=unit_input_init)
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
        """Flax keys initial values by a module's name; these keep theirs under any name."""
        init = nn.initializers.lecun_normal()
        if self.scope is None or not self.is_initializing():
            return init
        root = self.scope.rngs["params"].rng
        return lambda _, shape, dtype: init(jax.random.fold_in(root, _SKIP_STREAM), shape, dtype)

    def project(self, layer: int, hidden: jax.Array, node_ids: jax.Array) -> jax.Array:
        """Line 1's dense layer, ReLU(Q h + q): [n, in] -> [n, M]; `layer` counts from 1.

        With id messages the first layer sends ReLU(Q h + q + e), e a vector of the
        sender's id: neighbors can then be told apart even without features, while
        an item that the training never saw is still embedded through neighbors
        that it did see.

        Args:
          node_ids: int32 [n]; ids outside [0, num_ids) have no vector.
        """
        projected, bias = self._before_relu(layer, hidden, node_ids)
        return nn.relu(projected + bias[None, :])

    def _before_relu(self, layer, hidden, node_ids) -> tuple[jax.Array, jax.Array]:
        """Q h (+ e) and q of `project`: [n, M], [M]."""
        embeddings = None
        if layer == 1 and self.num_ids:
            known = (node_ids >= 0) & (node_ids < self.num_ids)
            embeddings = self.neighbor_embeddings[jnp.clip(node_ids, 0, self.num_ids - 1)]
            embeddings = jnp.where(known[:, None], embeddings, 0.0)
        return self.projections[layer - 1](hidden, embeddings)

    def combine(self, layer: int, hidden: jax.Array, pooled: jax.Array) -> jax.Array:
        """Lines 2 and 3: [n, in], [n, M] -> [n, d]; `layer` counts from 1."""
        return self.combinations[layer - 1](hidden, pooled)

    def head(
        self, hidden: jax.Array, features: jax.Array, pooled: jax.Array | None = None
    ) -> jax.Array:
        """Algorithm 2, last line: G2 ReLU(G1 h + g).

        With `skip`, linear maps of the node's own input and of what the last layer
        pooled are added: a short way round the nonlinearities, not in the paper.
        With `popularity_bias` the last coordinate is 1 + b: an inner product then holds
        (1 + b_q)(1 + b_i), which ranks items by b_i in addition to their closeness,
        so that popularity need not bend the directions of the other coordinates.

        Args:
          hidden: [n, d] of the last layer (with K = 0: the input itself).
          features: [n, D] input vectors of the same nodes.
          pooled: [n, M] of the last layer; None with K = 0.

        Returns:
          float32 [n, Z].
        """
        active = nn.relu(self.G1(hidden))
        out = self.G2(active)
        if self.config.skip:
            out = out + self.skip_self(features)
            if pooled is not None:
                out = out + self.skip_neighbors(pooled)
        out = l2_normalize(out.astype(jnp.float32))
        if self.config.popularity_bias:
            likely = self.popularity(active) + self.popularity_self(features)
            likely = 1.0 + _POPULARITY_SCALE * likely.astype(jnp.float32)
            out = jnp.concatenate([out, likely], axis=-1)
        return out

    def finish(self, hidden: jax.Array, pooled: jax.Array, features: jax.Array) -> jax.Array:
        """The last layer's `combine` and the `head` in one: -> float32 [n, Z]."""
        combined = self.combine(self.config.num_layers, hidden, pooled)
        return self.head(combined, features, pooled)

    def __call__(
        self,
        features: jax.Array,
        node_ids: jax.Array,
        neighbors: jax.Array,
        weights: jax.Array,
    ) -> jax.Array:
        """Embeds the seeds of a minibatch.

        Args:
          features: float32 [n_0, D] input vectors.
          node_ids: int32 [n_0] nodes of the rows, -1 for padding.
          neighbors: int32 [n_1, T] rows of S(k-1), valid in every layer.
          weights: float32 [n_1, T], 0 where masked.

        Returns:
          float32 [n_K, Z].
        """
        hidden, pooled = features, None
        for layer in range(1, self.config.num_layers + 1):
            size = self.rows[self.config.num_layers - layer]
            pooled = pool_neighbors(
                *self._before_relu(layer, hidden, node_ids),
                neighbors[:size],
                weights[:size],
                self.config.pooling,
            )
            hidden = self.combine(layer, hidden[:size], pooled)
        return self.head(hidden, features[: hidden.shape[0]], pooled)
