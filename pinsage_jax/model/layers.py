"""The localized convolution (Ying et al. 2018, Algorithm 1) as Flax modules.

The projection Q h + q of line 1 is a module of its own, because whole-catalog inference
computes it once per node and then joins it with the neighborhoods, where training computes
it once per row of a minibatch: same parameters, same arithmetic.  Lines 2 and 3 are the
module Combine.

Axis letters: n rows (nodes), F width of the layer's input h, M width of Q, d width of the
layer's output.  Modules compute in their dtype (--compute_dtype); parameters are float32.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pinsage_jax.cpu.ops import add_bias
from pinsage_jax.model.input_rows import TableInputs, product

_EPSILON = 1e-12


def l2_normalize(vectors: jax.Array) -> jax.Array:
    """Rows of [n, d] scaled to unit length (Algorithm 1, line 3).

    A row of zeros stays zeros, and so does its gradient, which is a sum over d: in float32
    whatever the dtype.
    """
    wide = vectors.astype(jnp.float32)
    squared = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(squared, _EPSILON))).astype(vectors.dtype)


def unit_input_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Initial kernel for inputs of unit length: entries of N(0, 1).

    The usual 1/sqrt(fan-in) is meant for inputs whose entries are all about one.  Features
    and layer outputs have unit length instead, and N(0, 1) gives outputs with entries of
    about one.  With smaller weights an Adam step, whose size does not depend on that of
    the weights, would be far too large in proportion.
    """
    return jax.random.normal(key, shape, dtype)


def self_and_neighbors_init(self_width: int) -> nn.initializers.Initializer:
    """Initial kernel [self_width + M, d] of Combine, over [h ; n].

    h has unit length (unit_input_init); n has M entries of about one (1/sqrt(fan-in)).
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        self_key, pooled_key = jax.random.split(key)
        fan_in = shape[0] - self_width
        return jnp.concatenate(
            [
                jax.random.normal(self_key, (self_width, shape[1]), dtype),
                jax.random.normal(pooled_key, (fan_in, shape[1]), dtype) / jnp.sqrt(fan_in),
            ]
        )

    return init


class Project(nn.Module):
    """The dense layer of the message ReLU(Q h + q) that a node sends (Algorithm 1, line 1)."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, h: jax.Array | TableInputs, embeddings: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The message before its bias and ReLU, and the bias.

        Args:
          h: [n, F], or the inputs of a minibatch of n rows.
          embeddings: [n, M] to add to Q h, e; or None.

        Returns:
          (Q h + e, q): [n, M] and [M], both of the module's dtype.
        """
        width = (h.rows if isinstance(h, TableInputs) else h).shape[-1]
        kernel, bias = DenseParams(self.width, self.dtype, name="Q")(width)
        projected = product(h, kernel)
        if embeddings is not None:
            projected = projected + embeddings.astype(self.dtype)
        return projected, bias


class DenseParams(nn.Module):
    """The kernel [input_width, width] and the bias [width] of a dense layer, in `dtype`.

    For callers that multiply, and add the bias, themselves.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, input_width: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", unit_input_init, (input_width, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class Combine(nn.Module):
    """L2(ReLU(W [h ; n] + w)), of a node and its pooled neighbors (Algorithm 1, lines 2, 3)."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, pooled: jax.Array) -> jax.Array:
        """h [n, F] and pooled [n, M] -> [n, d], rows of unit length."""
        dense = _ConcatDense(self.width, self.dtype, name="W")
        return l2_normalize(nn.relu(dense(h, pooled)))


class _ConcatDense(nn.Module):
    """W [h ; n] + w, with the parameters of a dense layer over the concatenated vectors.

    The halves of W multiply h and n one by one.  So h and n are not copied into one array,
    and XLA drops the derivative with respect to h where it is not needed, as in the first
    layer, whose h are inputs.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, pooled: jax.Array) -> jax.Array:
        split = h.shape[-1]
        shape = (split + pooled.shape[-1], self.width)
        kernel = self.param("kernel", self_and_neighbors_init(split), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        from_self = h.astype(self.dtype) @ kernel[:split]
        return add_bias(from_self + pooled.astype(self.dtype) @ kernel[split:], bias)
