"""Importance pooling (Ying et al. 2018, Algorithm 1, line 1).

The weighted sum over neighbors is computed by cpu/ops.py on CPUs (compiled kernels) and by
grouped_pooling.py on other devices, whose batches hold the transposed neighbor lists as well.

Shapes: n_k rows that pool over n_{k-1} rows; T neighbors; M width of Q.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pinsage_jax.batching.transposed import Layout
from pinsage_jax.cpu import ops
from pinsage_jax.model import grouped_pooling


def pool_neighbors(
    projected: jax.Array,
    bias: jax.Array,
    neighbors: jax.Array,
    weights: jax.Array,
    pooling: str,
    transposed: tuple[jax.Array, Layout] | None = None,
) -> jax.Array:
    """Pools ReLU(Q h + q) of the neighbors into one vector a row (Algorithm 1, line 1).

    Args:
      projected: [n_{k-1}, M], Q h.
      bias: [M], q.
      neighbors: int32 [n_k, T] rows of `projected`.
      weights: float32 [n_k, T], 0 where masked.
      pooling: importance or mean (the weights decide which), or max.
      transposed: int32 [layout.size], the transposed lists, and their layout; for devices other
        than CPUs (model/grouped_pooling.py).

    Returns:
      [n_k, M]; zeros for a row without neighbors.
    """
    if pooling != "max" and transposed is not None:
        return grouped_pooling.weighted_relu_sum(projected, bias, neighbors, weights, *transposed)
    if pooling != "max":
        return ops.weighted_relu_sum(projected, bias, neighbors, weights)
    messages = jax.nn.relu(ops.add_bias(projected, bias))
    # All entries are >= 0, so a masked neighbor can count as zero.
    unmasked = (weights > 0).astype(messages.dtype)
    if jax.default_backend() == "cpu":
        return _largest_by_column(messages, neighbors, unmasked)
    # In float32, because the derivative counts the neighbors that share the maximum.
    unmasked_messages = ops.gather_rows(messages, neighbors) * unmasked[..., None]
    return unmasked_messages.astype(jnp.float32).max(axis=1).astype(messages.dtype)


def _largest_by_column(messages: jax.Array, neighbors: jax.Array, unmasked: jax.Array) -> jax.Array:
    """The maximum, one neighbor of every row at a time: [n, T, M] would not fit the caches."""

    def larger(largest: jax.Array, column: tuple[jax.Array, jax.Array]):
        rows, is_unmasked = column
        return jnp.maximum(largest, messages[rows] * is_unmasked[:, None]), None

    # The derivative adds up all columns, in the dtype that the loop reads: see gather_rows.
    dtype, messages = messages.dtype, messages.astype(jnp.float32)
    start = jnp.zeros((neighbors.shape[0], messages.shape[1]), jnp.float32)
    largest = jax.lax.scan(larger, start, (neighbors.T, unmasked.T.astype(jnp.float32)))[0]
    return largest.astype(dtype)
