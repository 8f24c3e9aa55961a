"""Operations for compiled steps that have hand-written kernels for CPUs.

Each operation has a twin of plain JAX, which every other device runs, and every CPU where the
kernels cannot be called or are turned off (`choose_kernels`).  Results differ by rounding.

What the kernels need: JAX's default backend is a CPU, Numba compiles (no NUMBA_DISABLE_JIT),
and jaxlib has an interface for foreign functions that they were tried with, whose structures
are those of ffi_structs.py.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib

import jax
import jax.numpy as jnp
import jaxlib
import numba
import numpy as np
from absl import logging

from pinsage_jax.core.errors import UserError
from pinsage_jax.cpu import ffi_handlers, ffi_structs, pooling_kernels

CHOICES = ("auto", "on", "off")
# Rows read in one chunk, enough to outweigh the cost of a thread, and the most chunks of a call.
_READS_PER_CHUNK, _MAX_CHUNKS = 1 << 13, 256
# The process-wide choice, and the number of every task by its name.
_settings = {"choice": "auto"}
_tasks: dict[str, int] = {}


def choose_kernels(choice: str) -> None:
    """Chooses between kernels and their twins for what this process compiles from now on.

    Args:
      choice: auto takes the kernels where they can be called, and is the choice of a process
        that makes none; on takes them; off takes the twins.

    Raises:
      UserError: on, but the kernels cannot be called.
    """
    assert choice in CHOICES
    reason = _obstacle()
    if choice == "on" and reason:
        raise UserError(
            f"--cpu_kernels=on needs kernels that cannot be called here: {reason}; "
            "--cpu_kernels=auto uses XLA's own operations instead."
        )
    _settings["choice"] = choice
    kernels_are_used()


def kernels_are_used() -> bool:
    """Whether operations that are compiled now call the kernels; the log says why, once."""
    if _settings["choice"] == "off":
        _log_once("pooling: XLA; --cpu_kernels=off")
        return False
    if reason := _obstacle():
        _log_once(f"pooling: XLA; {reason}", warn=jax.default_backend() == "cpu")
        return False
    _log_once(f"pooling: compiled CPU kernels (XLA FFI {_interface()[0]})")
    return True


def needs_transposed_lists(pooling: str) -> bool:
    """Whether minibatches bring their lists transposed (batching/transposed.py): not on CPUs."""
    return jax.default_backend() != "cpu" and pooling != "max"


def _obstacle() -> str:
    """Why the kernels cannot be called here; "" where they can."""
    if (backend := jax.default_backend()) != "cpu":
        return f"the devices are of kind {backend}, not CPUs"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set"
    return _interface()[1]


@functools.cache
def _interface() -> tuple[str, str]:
    """The version of the interface of the installed jaxlib, and why it cannot be called or ""."""
    name = f"jaxlib {jaxlib.__version__}"
    path = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        header = path.read_text(encoding="utf-8")
    except OSError:
        return "", f"{name} has no header xla/ffi/api/c_api.h"
    oldest, newest = ffi_structs.TRIED_VERSIONS
    version = ffi_structs.interface_version(header)
    version_text = "of unknown version" if version is None else "{}.{}".format(*version)
    if version is None or not oldest <= version <= newest:
        return (
            version_text,
            f"{name} (XLA FFI {version_text}) was not tried with the compiled CPU kernels",
        )
    difference = ffi_structs.check_header(header)
    return version_text, f"{name} has other structures: {difference}" if difference else ""


@functools.cache
def _log_once(message: str, warn: bool = False) -> None:
    logging.log(logging.WARNING if warn else logging.INFO, "%s", message)


@functools.cache
def _handler() -> int:
    return ffi_handlers.compile_handler()


@functools.cache
def _register_kernels() -> None:
    for name, function in pooling_kernels.tasks().items():
        register_task(name, function)


def register_task(name: str, function: int) -> None:
    """Makes a task known to XLA, under its name with "cpu_kernels_" before it.

    Args:
      function: address of a C function ffi_handlers.TASK.
    """
    _tasks[name] = ffi_handlers.add_task(name, function)
    capsule = jax.ffi.pycapsule(ctypes.c_void_p(_handler()))
    jax.ffi.register_ffi_target(f"cpu_kernels_{name}", capsule, platform="cpu")


def chunks_of(reads: int) -> int:
    """The number of chunks for so many row reads: several times the number of threads."""
    return max(1, min(reads // _READS_PER_CHUNK, _MAX_CHUNKS))


def call(name: str, results, *operands: jax.Array, chunks: int = 1):
    """Runs a task in chunks, which threads share.

    Args:
      name: a key of pooling_kernels.tasks, or of `register_task`.
      results: shapes and dtypes of the results.

    Returns:
      arrays like `results`.  A task that fails raises jax.errors.JaxRuntimeError once its
      results are waited for.
    """
    _register_kernels()
    function = jax.ffi.ffi_call(f"cpu_kernels_{name}", results, vmap_method="sequential")
    return function(*operands, chunks=np.int64(chunks), task=np.int64(_tasks[name]))


def read_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """table[max(rows, 0)]; the kernel has no derivative.  The twin is `plain_read_rows`.

    Args:
      table: [n, D]; the kernel is for float32.
      rows: int32 [S].

    Returns:
      [S, D], with the same bits from both.
    """
    if not kernels_are_used() or table.dtype != jnp.float32:
        return plain_read_rows(table, rows)
    shape = jax.ShapeDtypeStruct((len(rows), table.shape[1]), jnp.float32)
    return call("read_rows", shape, table, rows, chunks=chunks_of(len(rows)))


def plain_read_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """`read_rows` in plain JAX."""
    return table[jnp.maximum(rows, 0)]


def weighted_relu_sum(
    projected: jax.Array, bias: jax.Array, neighbors: jax.Array, weights: jax.Array
) -> jax.Array:
    """sum over t of weights[:, t] * ReLU(projected[neighbors[:, t]] + bias).

    The twin is `plain_weighted_relu_sum`.  The kernels compute in float32, whatever the dtype
    of the operands.  XLA's gather and, as its derivative, scatter would make an array [S, T, M],
    which does not fit a CPU's caches, and the scatter is serial.

    Args:
      projected: [n, M], finite; bias: [M].
      neighbors: int32 [S, T] rows of `projected`; weights: float32 [S, T], 0 where masked.

    Returns:
      [S, M] of the dtype of `projected`.
    """
    if not kernels_are_used():
        return plain_weighted_relu_sum(projected, bias, neighbors, weights)
    operands = projected.astype(jnp.float32), bias.astype(jnp.float32)
    return _weighted_sum(*operands, neighbors, weights).astype(projected.dtype)


def plain_weighted_relu_sum(
    projected: jax.Array, bias: jax.Array, neighbors: jax.Array, weights: jax.Array
) -> jax.Array:
    """`weighted_relu_sum` in plain JAX."""
    messages = jax.nn.relu(add_bias(projected, bias))
    return (gather_rows(messages, neighbors) * weights[..., None].astype(messages.dtype)).sum(
        axis=1
    )


def gather_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """table[rows], whose derivative is a sum in float32 whatever the dtype of the table.

    A sum in bfloat16, of 8 significant bits, stops growing after some hundred terms, and a
    popular node is read by thousands of rows of a batch.

    Args:
      table: [n, M], of floats.
      rows: int32 [...].

    Returns:
      [..., M] of the dtype of the table.
    """
    return table[rows] if table.dtype == jnp.float32 else _gather_rows(table, rows)


@jax.custom_vjp
def _gather_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    return table[rows]


def _gather_rows_forward(table, rows):
    return table[rows], (table, rows)


def _gather_rows_backward(saved, cotangents):
    table, rows = saved
    sums = jnp.zeros(table.shape, jnp.float32).at[rows].add(cotangents.astype(jnp.float32))
    return sums.astype(table.dtype), np.zeros(rows.shape, jax.dtypes.float0)


_gather_rows.defvjp(_gather_rows_forward, _gather_rows_backward)


def add_bias(rows: jax.Array, bias: jax.Array) -> jax.Array:
    """rows [n, M] plus bias [M]; the derivative of the bias is a sum in float32 as above."""
    return rows + bias[None, :] if rows.dtype == jnp.float32 else _add_bias(rows, bias)


@jax.custom_vjp
def _add_bias(rows: jax.Array, bias: jax.Array) -> jax.Array:
    return rows + bias[None, :]


def _add_bias_forward(rows, bias):
    return rows + bias[None, :], bias


def _add_bias_backward(bias, cotangents):
    return cotangents, jnp.sum(cotangents, axis=0, dtype=jnp.float32).astype(bias.dtype)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def _weighted_sum(projected, bias, neighbors, weights) -> jax.Array:
    """`weighted_relu_sum` by the kernel; all operands but the neighbors are float32."""
    shape = jax.ShapeDtypeStruct((len(neighbors), projected.shape[1]), jnp.float32)
    operands = (projected, bias, neighbors, weights)
    return call("weighted_relu_sum", shape, *operands, chunks=chunks_of(neighbors.size))


def _weighted_sum_forward(projected, bias, neighbors, weights):
    saved = (projected, bias, neighbors, weights)
    return _weighted_sum(*saved), saved


def _weighted_sum_backward(saved, cotangents):
    projected, bias, neighbors, weights = saved
    rows, entries = len(projected), neighbors.size
    transposed = call(
        "transpose_lists",
        (
            jax.ShapeDtypeStruct((rows + 1,), jnp.int32),
            jax.ShapeDtypeStruct((entries,), jnp.int32),
            jax.ShapeDtypeStruct((entries,), jnp.float32),
        ),
        neighbors,
        weights,
    )
    to_projected = call(
        "weighted_sum_vjp",
        jax.ShapeDtypeStruct(projected.shape, jnp.float32),
        *(projected, bias, cotangents, *transposed),
        chunks=chunks_of(entries),
    )

    def dot(_, neighbor: jax.Array):
        messages = jax.nn.relu(projected[neighbor] + bias[None, :])
        return None, jnp.sum(cotangents * messages, axis=1)

    # In training the weights are data: XLA leaves this out, since nobody reads it.
    to_weights = jax.lax.scan(dot, None, neighbors.T)[1].T
    to_bias = jnp.sum(to_projected, axis=0)
    return to_projected, to_bias, np.zeros(neighbors.shape, jax.dtypes.float0), to_weights


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)
