"""Importance pooling (Ying et al. 2018, Algorithm 1, line 1) on accelerators and CPUs.

An accelerator gathers all neighbours as one [n, T, M] array whose weighting and
reduction XLA fuses.  On a CPU that array does not fit the caches, and XLA's derivative
of a gather, a scatter, is serial; there the kernels of pooling_kernels do both.

Shapes: n_k rows that pool over n_{k-1} rows; T neighbours; M width of Q.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numba
import numpy as np

from pinsage_jax.model import pooling_kernels

# Below this many neighbours one call is quicker than several side by side.
_SMALL = 1 << 14
# With fewer calls than this XLA leaves all of them to one thread.
_FEWEST_PARTS = 16
# Of XLA's foreign function interface, (major, minor): what the kernels were tried with.
_VERSION_PARTS = ("MAJOR", "MINOR")
_OLDEST_INTERFACE, _NEWEST_INTERFACE = (0, 1), (0, 3)


def interface_version(header: str) -> tuple[int, ...]:
    """(major, minor) of XLA's foreign function interface, from the text of its header."""
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in _VERSION_PARTS]
    return tuple(int(match[1]) for match in found if match)


@functools.cache
def _known_interface() -> bool:
    """Whether XLA's call frames are those that pooling_kernels reads; else XLA pools itself."""
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        version = interface_version(header.read_text(encoding="utf-8"))
    except OSError:
        return False
    return len(version) == 2 and (_OLDEST_INTERFACE <= version <= _NEWEST_INTERFACE)


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
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and pooling != "max" and not numba.config.DISABLE_JIT and _known_interface():
        operands = projected.astype(jnp.float32), bias.astype(jnp.float32)
        return _weighted_sum(*operands, neighbours, weights).astype(projected.dtype)
    sent = jax.nn.relu(projected + bias[None, :])
    if pooling == "max":
        # All entries are >= 0, so a masked neighbour can count as zero.
        weights = (weights > 0).astype(sent.dtype)
        if on_cpu:
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


@functools.cache
def _register() -> None:
    """Makes the kernels known to XLA, once a process."""
    for name, address in pooling_kernels.handlers().items():
        capsule = jax.ffi.pycapsule(ctypes.c_void_p(address))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def _call(name: str, results, *operands: jax.Array):
    _register()
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")(*operands)


def _by_rows(
    name: str, rows: int, entries: int, *operands: jax.Array, width: int, first_heavy: bool = False
) -> jax.Array:
    """float32 [rows, width] of a kernel that makes any range of rows.

    XLA runs calls that do not need each other side by side, and gives a second thread the
    later half of them.  There are more than cores, because neighbours are not spread
    evenly over the rows.

    Args:
      entries: list entries behind all rows.
      first_heavy: whether the first rows are most work, and parts to grow from there.
    """
    parts = 1 if entries < _SMALL else max(_FEWEST_PARTS, 2 * len(os.sched_getaffinity(0)))
    shares = [(number / parts) ** (2 if first_heavy else 1) for number in range(parts + 1)]
    ends = [int(rows * share) for share in shares]
    made: dict[int, jax.Array] = {}
    # Every other one first, so that both halves are as much work.
    for number in (*range(0, parts, 2), *range(1, parts, 2)):
        begin, end = ends[number : number + 2]
        shape = jax.ShapeDtypeStruct((end - begin, width), jnp.float32)
        made[number] = _call(name, shape, *operands, jnp.full(1, begin, jnp.int32))
    return jnp.concatenate([made[number] for number in range(parts)])


@jax.custom_vjp
def _weighted_sum(projected, bias, neighbours, weights) -> jax.Array:
    """sum over t of weights[:, t] * ReLU(projected[neighbours[:, t]] + bias), all float32."""
    rows, width = len(neighbours), projected.shape[1]
    operands = (projected, bias, neighbours, weights)
    return _by_rows("pinsage_weighted_rows", rows, neighbours.size, *operands, width=width)


def _weighted_sum_forward(projected, bias, neighbours, weights):
    saved = (projected, bias, neighbours, weights)
    return _weighted_sum(*saved), saved


def _weighted_sum_backward(saved, cotangent):
    projected, bias, neighbours, weights = saved
    rows, width = projected.shape
    entries = neighbours.size
    turned = _call(
        "pinsage_turned_lists",
        (
            jax.ShapeDtypeStruct((rows + 1,), jnp.int32),
            jax.ShapeDtypeStruct((entries,), jnp.int32),
            jax.ShapeDtypeStruct((entries,), jnp.float32),
        ),
        neighbours,
        weights,
    )
    operands = (projected, bias, cotangent, *turned)
    # Rows come in the order in which they were first named, the much named ones early.
    to_projected = _by_rows(
        "pinsage_returned_rows", rows, entries, *operands, width=width, first_heavy=True
    )

    def dot(_, named: jax.Array):
        sent = jax.nn.relu(projected[named] + bias[None, :])
        return None, jnp.sum(cotangent * sent, axis=1)

    # Weights are data in training: this part is then left out by the compiler.
    to_weights = jax.lax.scan(dot, None, neighbours.T)[1].T
    to_bias = jnp.sum(to_projected, axis=0)
    return to_projected, to_bias, np.zeros(neighbours.shape, jax.dtypes.float0), to_weights


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)
