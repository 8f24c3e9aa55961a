"""The localized convolution (Ying et al. 2018, Algorithm 1) as Flax modules.

Shapes: n_k rows of frontier S(k), which is a prefix of the n_{k-1} rows of S(k-1);
T neighbors; M width of Q; d width of a layer.

The projection ReLU(Q h + q) is a module of its own because whole-catalog
inference computes it once per node and then joins it with the neighborhoods,
where training computes it once per row of a minibatch: same parameters, same
arithmetic.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

_EPSILON = 1e-12


def l2_normalize(vectors: jax.Array) -> jax.Array:
    """Rows of [n, d] scaled to unit length; a zero row stays zero (and so does its gradient)."""
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, _EPSILON))


def unit_input_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Kernel for inputs of unit length: entries N(0, 1) keep the output's scale.

    The usual 1/sqrt(fan-in) is made for inputs whose every entry is about one.
    Features and layer outputs here have unit length instead; with small weights on
    them an Adam step, whose size does not depend on the weight's, would be far too
    large in proportion.
    """
    return jax.random.normal(key, shape, dtype)


def self_and_neighbors_init(self_width: int) -> nn.initializers.Initializer:
    """Kernel [self_width + M, d] over [h ; n]: h has unit length, n has M entries of about one."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        own, pooled = jax.random.split(key)
        fan_in = shape[0] - self_width
        return jnp.concatenate(
            [
                jax.random.normal(own, (self_width, shape[1]), dtype),
                jax.random.normal(pooled, (fan_in, shape[1]), dtype) / jnp.sqrt(fan_in),
            ]
        )

    return init


class Project(nn.Module):
    """The dense layer of ReLU(Q h + q), what a node sends to the nodes that it neighbors."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: jax.Array, embeddings: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The message before its bias and ReLU, and the bias: Q h (+ e) [n, M] and q [M].

        Args:
          hidden: [n, in], h; embeddings: [n, M] to add, e; or None.
        """
        kernel, bias = _Affine(self.width, self.dtype, name="Q")(hidden.shape[-1])
        product = hidden.astype(self.dtype) @ kernel
        return product if embeddings is None else product + embeddings.astype(self.dtype), bias


class _Affine(nn.Module):
    """The parameters of a dense layer."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, entries: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", unit_input_init, (entries, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class Combine(nn.Module):
    """L2(ReLU(W [h ; n] + w)): self first, then the pooled neighbors."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, pooled: jax.Array) -> jax.Array:
        """[n, in], [n, M] -> [n, d] of unit length (Algorithm 1, lines 2 and 3)."""
        dense = _JoinedDense(self.width, self.dtype, name="W")
        return l2_normalize(nn.relu(dense(hidden, pooled)))


class _JoinedDense(nn.Module):
    """W [h ; n] + w, with the parameters of a dense layer over the joined vectors.

    Multiplied apart: nothing is copied together, and the derivative towards h is left
    out where nobody asks for it, which in the first layer is all of it.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array, pooled: jax.Array) -> jax.Array:
        own = hidden.shape[-1]
        shape = (own + pooled.shape[-1], self.width)
        kernel = self.param("kernel", self_and_neighbors_init(own), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        from_self = hidden.astype(self.dtype) @ kernel[:own]
        return from_self + pooled.astype(self.dtype) @ kernel[own:] + bias[None, :]
