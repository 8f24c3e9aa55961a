"""Importance pooling (Ying et al. 2018, Algorithm 1, line 1) on accelerators and CPUs.

An accelerator gathers all neighbours as one [n, T, M] array whose weighting and
reduction XLA fuses.  On a CPU that array does not fit the caches, and XLA's derivative
of a gather, a scatter, is serial; there the kernels of pooling_kernels do both.

Shapes: n_k rows that pool over n_{k-1} rows; T neighbours; M width of Q.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.model import cpu_calls


def pool_neighbours(
    projected: jax.Array,
    bias: jax.Array,
    neighbours: jax.Array,
    weights: jax.Array,
    pooling: str,
) -> jax.Array:
    """Pools ReLU(Q h + q) of the neighbours into one vector a row (Algorithm 1, line 1).

    Args:
      projected: [n_{k-1}, M], Q h.
      bias: [M], q.
      neighbours: int32 [n_k, T] rows of `projected`.
      weights: float32 [n_k, T], 0 where masked.
      pooling: importance or mean (the weights decide which), or max.

    Returns:
      [n_k, M]; zeros for a row without neighbours.
    """
    if pooling != "max" and cpu_calls.callable_here():
        operands = projected.astype(jnp.float32), bias.astype(jnp.float32)
        return _weighted_sum(*operands, neighbours, weights).astype(projected.dtype)
    sent = jax.nn.relu(projected + bias[None, :])
    if pooling == "max":
        # All entries are >= 0, so a masked neighbour can count as zero.
        weights = (weights > 0).astype(sent.dtype)
        if jax.default_backend() == "cpu":
            return _highest_by_column(sent, neighbours, weights)
    gathered = sent[neighbours] * weights[..., None].astype(sent.dtype)
    return gathered.max(axis=1) if pooling == "max" else gathered.sum(axis=1)


def _highest_by_column(projected, neighbours, weights) -> jax.Array:
    """The maximum, one neighbour of every row at a time: [n, T, M] would not fit the caches."""

    def highest(best: jax.Array, column: tuple[jax.Array, jax.Array]):
        rows, mass = column
        return jnp.maximum(best, projected[rows] * mass[:, None]), None

    start = jnp.zeros((neighbours.shape[0], projected.shape[1]), projected.dtype)
    return jax.lax.scan(highest, start, (neighbours.T, weights.T))[0]


@jax.custom_vjp
def _weighted_sum(projected, bias, neighbours, weights) -> jax.Array:
    """sum over t of weights[:, t] * ReLU(projected[neighbours[:, t]] + bias), all float32."""
    shape = jax.ShapeDtypeStruct((len(neighbours), projected.shape[1]), jnp.float32)
    return cpu_calls.call("pinsage_weighted_rows", shape, projected, bias, neighbours, weights)


def _weighted_sum_forward(projected, bias, neighbours, weights):
    saved = (projected, bias, neighbours, weights)
    return _weighted_sum(*saved), saved


def _weighted_sum_backward(saved, cotangent):
    projected, bias, neighbours, weights = saved
    entries = neighbours.size
    turned = cpu_calls.call(
        "pinsage_turned_lists",
        (
            jax.ShapeDtypeStruct((len(projected) + 1,), jnp.int32),
            jax.ShapeDtypeStruct((entries,), jnp.int32),
            jax.ShapeDtypeStruct((entries,), jnp.float32),
        ),
        neighbours,
        weights,
    )
    shape = jax.ShapeDtypeStruct(projected.shape, jnp.float32)
    operands = (projected, bias, cotangent, *turned)
    to_projected = cpu_calls.call("pinsage_returned_rows", shape, *operands)

    def dot(_, named: jax.Array):
        sent = jax.nn.relu(projected[named] + bias[None, :])
        return None, jnp.sum(cotangent * sent, axis=1)

    # Weights are data in training: this part is then left out by the compiler.
    to_weights = jax.lax.scan(dot, None, neighbours.T)[1].T
    to_bias = jnp.sum(to_projected, axis=0)
    return to_projected, to_bias, np.zeros(neighbours.shape, jax.dtypes.float0), to_weights


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)
