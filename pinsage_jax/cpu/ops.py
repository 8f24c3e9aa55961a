"""Calls of the kernels in pooling_kernels.py from inside compiled steps on CPUs.

Where they cannot be called (no compiler, or an interface of XLA that they were not tried
with) XLA does the same work itself, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numba

from pinsage_jax.cpu import ffi_handlers, pooling_kernels

# Of XLA's foreign function interface, (major, minor): what the kernels were tried with.
_VERSION_PARTS = ("MAJOR", "MINOR")
_OLDEST_INTERFACE, _NEWEST_INTERFACE = (0, 1), (0, 3)
_POOL_FUNCTIONS = ("ThreadPool_Schedule", "ThreadPool_NumThreads")
_READS_A_PART, _MOST_PARTS = 1 << 13, 256


def interface_version(header: str) -> tuple[int, ...]:
    """(major, minor) of XLA's foreign function interface, from the text of its header."""
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in _VERSION_PARTS]
    return tuple(int(match[1]) for match in found if match)


def _pool_places(header: str) -> list[int]:
    """Places of the thread pool's functions among those of the interface."""
    functions = re.findall(r"_XLA_FFI_API_STRUCT_FIELD\(XLA_FFI_(\w+)\)", header)
    return [functions.index(name) for name in _POOL_FUNCTIONS if name in functions]


@functools.cache
def _known_interface() -> bool:
    """Whether XLA's structures are those that xla_handlers reads."""
    path = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        header = path.read_text(encoding="utf-8")
    except OSError:
        return False
    version = interface_version(header)
    tried = len(version) == 2 and (_OLDEST_INTERFACE <= version <= _NEWEST_INTERFACE)
    return tried and _pool_places(header) == ffi_handlers.POOL_FUNCTIONS


def callable_here() -> bool:
    """Whether compiled steps can call the kernels: on CPUs, with Numba's compiler."""
    on_cpu = jax.default_backend() == "cpu"
    return on_cpu and not numba.config.DISABLE_JIT and _known_interface()


@functools.cache
def _register() -> None:
    """Makes the kernels known to XLA, once a process."""
    for name, address in ffi_handlers.handlers(pooling_kernels.tasks()).items():
        capsule = jax.ffi.pycapsule(ctypes.c_void_p(address))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def parts_of(reads: int) -> int:
    """In how many parts to read so many rows: several times as many as there are threads."""
    return max(1, min(reads // _READS_A_PART, _MOST_PARTS))


def call(name: str, results, *operands: jax.Array, parts: int = 1):
    """What a kernel makes of its operands, in parts that threads share.

    Args:
      name: of pooling_kernels.works.
      results: shapes and types of what is made.
    """
    _register()
    cut = jnp.full(1, parts, jnp.int32)
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")(cut, *operands)


def read_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """table[max(rows, 0)]: float32 [n, D], int32 [S] -> [S, D].  Has no derivative."""
    if not callable_here() or table.dtype != jnp.float32:
        return table[jnp.maximum(rows, 0)]
    shape = jax.ShapeDtypeStruct((len(rows), table.shape[1]), jnp.float32)
    return call("pinsage_read_rows", shape, table, rows, parts=parts_of(len(rows)))
