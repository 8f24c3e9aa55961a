"""Importance pooling (Ying et al. 2018, Algorithm 1, line 1) on accelerators and CPUs.

An accelerator gathers all neighbors as one [n, T, M] array whose weighting and
reduction XLA fuses.  On a CPU that array does not fit the caches, and XLA's derivative
of a gather, a scatter, is serial; there the kernels of pooling_kernels do both.

Shapes: n_k rows that pool over n_{k-1} rows; T neighbors; M width of Q.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.cpu import ops
from pinsage_jax.model.layers import Messages

# Shares of the rows whose products are summed apart: so many threads can take part, and
# their number has no part in the result.  Fewer where a share would have few rows.
_SHARES, _ROWS_A_SHARE = 32, 2048


def pool_sent(
    sent: Messages, neighbors: jax.Array, weights: jax.Array, pooling: str, *, of_inputs: bool
) -> jax.Array:
    """Pools ReLU(Q h + q) of the neighbors, as `pool_neighbors` does.

    Args:
      sent: of n_{k-1} rows.
      of_inputs: nobody asks for the derivative towards h (it is still right, but slow).
    """
    fused = of_inputs and sent.messages is None and sent.hidden.dtype == jnp.float32
    if fused and pooling != "max" and ops.callable_here():
        return _product_sum(sent.hidden, sent.kernel, sent.bias, neighbors, weights)
    return pool_neighbors(sent.product(), sent.bias, neighbors, weights, pooling)


def pool_neighbors(
    projected: jax.Array,
    bias: jax.Array,
    neighbors: jax.Array,
    weights: jax.Array,
    pooling: str,
) -> jax.Array:
    """Pools ReLU(Q h + q) of the neighbors into one vector a row (Algorithm 1, line 1).

    Args:
      projected: [n_{k-1}, M], Q h.
      bias: [M], q.
      neighbors: int32 [n_k, T] rows of `projected`.
      weights: float32 [n_k, T], 0 where masked.
      pooling: importance or mean (the weights decide which), or max.

    Returns:
      [n_k, M]; zeros for a row without neighbors.
    """
    if pooling != "max" and ops.callable_here():
        operands = projected.astype(jnp.float32), bias.astype(jnp.float32)
        return _weighted_sum(*operands, neighbors, weights).astype(projected.dtype)
    sent = jax.nn.relu(projected + bias[None, :])
    if pooling == "max":
        # All entries are >= 0, so a masked neighbor can count as zero.
        weights = (weights > 0).astype(sent.dtype)
        if jax.default_backend() == "cpu":
            return _highest_by_column(sent, neighbors, weights)
    gathered = sent[neighbors] * weights[..., None].astype(sent.dtype)
    return gathered.max(axis=1) if pooling == "max" else gathered.sum(axis=1)


def _highest_by_column(projected, neighbors, weights) -> jax.Array:
    """The maximum, one neighbor of every row at a time: [n, T, M] would not fit the caches."""

    def highest(best: jax.Array, column: tuple[jax.Array, jax.Array]):
        rows, mass = column
        return jnp.maximum(best, projected[rows] * mass[:, None]), None

    start = jnp.zeros((neighbors.shape[0], projected.shape[1]), projected.dtype)
    return jax.lax.scan(highest, start, (neighbors.T, weights.T))[0]


@jax.custom_vjp
def _weighted_sum(projected, bias, neighbors, weights) -> jax.Array:
    """sum over t of weights[:, t] * ReLU(projected[neighbors[:, t]] + bias), all float32."""
    shape = jax.ShapeDtypeStruct((len(neighbors), projected.shape[1]), jnp.float32)
    operands, parts = (projected, bias, neighbors, weights), ops.parts_of(neighbors.size)
    return ops.call("pinsage_weighted_rows", shape, *operands, parts=parts)


def _weighted_sum_forward(projected, bias, neighbors, weights):
    saved = (projected, bias, neighbors, weights)
    return _weighted_sum(*saved), saved


def _turned(rows: int, neighbors, weights) -> list[jax.Array]:
    """The lists by the row that is named: see pooling_kernels.transpose_neighbor_lists."""
    entries = neighbors.size
    shapes = (
        jax.ShapeDtypeStruct((rows + 1,), jnp.int32),
        jax.ShapeDtypeStruct((entries,), jnp.int32),
        jax.ShapeDtypeStruct((entries,), jnp.float32),
    )
    return ops.call("pinsage_turned_lists", shapes, neighbors, weights)


def _weighted_sum_backward(saved, cotangent):
    projected, bias, neighbors, weights = saved
    transpose = _turned(len(projected), neighbors, weights)
    shape = jax.ShapeDtypeStruct(projected.shape, jnp.float32)
    operands = (projected, bias, cotangent, *transpose)
    parts = ops.parts_of(neighbors.size)
    to_projected = ops.call("pinsage_returned_rows", shape, *operands, parts=parts)

    def dot(_, named: jax.Array):
        sent = jax.nn.relu(projected[named] + bias[None, :])
        return None, jnp.sum(cotangent * sent, axis=1)

    # Weights are data in training: this part is then left out by the compiler.
    to_weights = jax.lax.scan(dot, None, neighbors.T)[1].T
    to_bias = jnp.sum(to_projected, axis=0)
    return to_projected, to_bias, np.zeros(neighbors.shape, jax.dtypes.float0), to_weights


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


@jax.custom_vjp
def _product_sum(inputs, kernel, bias, neighbors, weights) -> jax.Array:
    """`_weighted_sum` of inputs @ kernel, all float32.

    Its derivative towards the kernel never writes that towards the product, which would be
    as large as the inputs.
    """
    return _weighted_sum(inputs @ kernel, bias, neighbors, weights)


def _product_sum_forward(inputs, kernel, bias, neighbors, weights):
    projected = inputs @ kernel
    saved = (inputs, kernel, projected, bias, neighbors, weights)
    return _weighted_sum(projected, bias, neighbors, weights), saved


def _product_sum_backward(saved, cotangent):
    inputs, kernel, projected, bias, neighbors, weights = saved
    rows, depth = inputs.shape
    transpose = _turned(rows, neighbors, weights)
    shares = max(1, min(_SHARES, rows // _ROWS_A_SHARE))
    shape = jax.ShapeDtypeStruct((shares * (depth + 1), projected.shape[1]), jnp.float32)
    operands = (projected, bias, cotangent, *transpose, inputs)
    made = ops.call("pinsage_returned_products", shape, *operands, parts=shares)
    to_both = made.reshape(shares, depth + 1, -1).sum(axis=0)
    # Inputs and weights are data in training: the rest is then left out by the compiler.
    to_projected, _, nothing, to_weights = _weighted_sum_backward(
        (projected, bias, neighbors, weights), cotangent
    )
    return to_projected @ kernel.T, to_both[:depth], to_both[depth], nothing, to_weights


_product_sum.defvjp(_product_sum_forward, _product_sum_backward)
