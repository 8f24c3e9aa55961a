"""The localised convolution (Ying et al. 2018, Algorithm 1) as Flax modules.

Shapes: n_k rows of frontier S(k), which is a prefix of the n_{k-1} rows of S(k-1);
T neighbours; M width of Q; d width of a layer.

The projection ReLU(Q h + q) is a module of its own because whole-catalogue
inference computes it once per node and then joins it with the neighbourhoods,
where training computes it once per row of a minibatch: same parameters, same
arithmetic.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

_EPSILON = 1e-12


def l2_normalise(vectors: jax.Array) -> jax.Array:
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


def self_and_neighbours_init(self_width: int) -> nn.initializers.Initializer:
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
    """Q h and q of ReLU(Q h + q), what a node sends to the nodes that it neighbours."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: jax.Array, messages: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """[n, in] (and [n, M] to add) -> Q h [n, M] and q [M], apart for pooling to join."""
        product, bias = _Affine(self.width, self.dtype, name="Q")(hidden)
        return product if messages is None else product + messages.astype(product.dtype), bias


class _Affine(nn.Module):
    """The product of a dense layer and its bias, with that layer's parameters."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = (hidden.shape[-1], self.width)
        kernel = self.param("kernel", unit_input_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        return hidden.astype(self.dtype) @ kernel, bias


class Combine(nn.Module):
    """L2(ReLU(W [h ; n] + w)): self first, then the pooled neighbours."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, pooled: jax.Array) -> jax.Array:
        """[n, in], [n, M] -> [n, d] of unit length (Algorithm 1, lines 2 and 3)."""
        dense = _JoinedDense(self.width, self.dtype, name="W")
        return l2_normalise(nn.relu(dense(hidden, pooled)))


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
        kernel = self.param("kernel", self_and_neighbours_init(own), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        from_self = hidden.astype(self.dtype) @ kernel[:own]
        return from_self + pooled.astype(self.dtype) @ kernel[own:] + bias[None, :]
