"""Operations of compiled steps: kernels against their twins in plain JAX, the choice, failures."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
from absl import logging

from pinsage_jax.core.errors import UserError
from pinsage_jax.cpu import ffi_handlers, ops
from pinsage_jax.cpu.kernel_cache import cfunc


@pytest.fixture
def choice():
    """The choice of kernels is that of a new process afterwards."""
    ops._log_once.cache_clear()
    yield
    ops.choose_kernels("auto")


def problem(rng, rows=300, lists=700, length=26, columns=9):
    """Vectors, a bias and lists with gaps, one row that all lists name and empty lists."""
    vectors = rng.normal(size=(rows, columns)).astype(np.float32)
    bias = rng.normal(size=columns).astype(np.float32)
    indices = rng.integers(0, rows, (lists, length)).astype(np.int32)
    indices[:, 0] = rows - 1
    weights = rng.random((lists, length), np.float32) * (rng.random((lists, length)) < 0.7)
    weights[[0, lists // 2, lists - 1]] = 0.0
    indices = np.where(weights > 0, indices, 0)
    return tuple(jnp.asarray(array) for array in (vectors, bias, indices, weights))


def sums_and_derivatives(operation, vectors, bias, indices, weights):
    """An operation's output and its derivatives with respect to all but the indices."""
    out, back = jax.vjp(lambda v, b, w: operation(v, b, indices, w), vectors, bias, weights)
    return out, *back(jnp.cos(out))


def assert_close(mine, others):
    for one, other in zip(mine, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_weighted_sums_are_those_of_the_twin(small_rng, choice):
    operands = problem(small_rng)
    assert ops.kernels_are_used()
    by_kernels = sums_and_derivatives(ops.weighted_relu_sum, *operands)
    by_twin = sums_and_derivatives(ops.plain_weighted_relu_sum, *operands)
    assert_close(by_kernels, by_twin)
    ops.choose_kernels("off")
    turned_off = sums_and_derivatives(ops.weighted_relu_sum, *operands)
    for mine, other in zip(turned_off, by_twin, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_rows_are_those_of_the_twin(small_rng, choice):
    table = jnp.asarray(small_rng.normal(size=(50, 16)).astype(np.float32))
    rows = jnp.asarray(small_rng.integers(-1, 50, 20_000).astype(np.int32))
    expected = np.asarray(table)[np.maximum(rows, 0)]
    for kind in ops.CHOICES:
        ops.choose_kernels(kind)
        np.testing.assert_array_equal(jax.jit(ops.read_rows)(table, rows), expected)
    np.testing.assert_array_equal(ops.plain_read_rows(table, rows), expected)


def test_the_number_of_chunks_changes_no_bit(small_rng, monkeypatch):
    vectors, _, indices, weights = problem(small_rng, 4000, 3000, 26, 20)
    rows = indices[:, 1]

    def made():
        out, back = jax.vjp(
            lambda v: ops.weighted_relu_sum(v, jnp.zeros(20), indices, weights), vectors
        )
        return out, *back(out), ops.read_rows(vectors, rows)

    several = made()
    np.testing.assert_array_equal(several[-1], np.asarray(vectors)[rows])
    for chunks in (1, 250):
        monkeypatch.setattr(ops, "chunks_of", lambda reads, chunks=chunks: chunks)
        for mine, other in zip(made(), several, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_the_interface_here_is_one_that_the_kernels_read():
    assert ops._interface()[1] == "" and ops.kernels_are_used()


@pytest.mark.parametrize("minor,known", [(0, False), (1, True), (5, True), (6, False)])
def test_only_a_tried_interface_is_used(minor, known, tmp_path, monkeypatch):
    path = pathlib.Path("xla", "ffi", "api", "c_api.h")
    real = (pathlib.Path(jax.ffi.include_dir()) / path).read_text(encoding="utf-8")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))

    def obstacle():
        return ops._interface.__wrapped__()[1]

    assert "has no header" in obstacle()
    header = tmp_path / path
    header.parent.mkdir(parents=True)
    other = re.sub(r"(define XLA_FFI_API_MINOR) \d+", rf"\1 {minor}", real)
    header.write_text(other)
    assert (obstacle() == "") == known
    if not known:
        assert f"(XLA FFI 0.{minor}) was not tried" in obstacle()
    # The version is one that was tried, but a function has come in between.
    field = "_XLA_FFI_API_STRUCT_FIELD(XLA_FFI_ThreadPool_Schedule)"
    assert field in other
    header.write_text(other.replace(field, f"_XLA_FFI_API_STRUCT_FIELD(XLA_FFI_New);\n{field}"))
    assert not known or "XLA_FFI_Api.XLA_FFI_ThreadPool_Schedule is at byte 144" in obstacle()
    header.write_text("#define XLA_FFI_API_MAJOR 0\n")
    assert "of unknown version" in obstacle()


def take_away(missing, monkeypatch):
    """Makes the kernels impossible to call; returns words of the reason."""
    if missing == "compiler":
        monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
        return "NUMBA_DISABLE_JIT is set"
    if missing == "interface":
        monkeypatch.setattr(ops, "_interface", lambda: ("9.0", "jaxlib 9 was not tried"))
        return "jaxlib 9 was not tried"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return "the devices are of kind gpu"


@pytest.mark.parametrize("missing", ["compiler", "interface", "cpu"])
def test_where_kernels_cannot_be_called(missing, small_rng, choice, monkeypatch, caplog):
    operands = problem(small_rng, 20, 30, 5, 4)
    here = ops.weighted_relu_sum(*operands)
    reason = take_away(missing, monkeypatch)
    with pytest.raises(UserError, match=f"^--cpu_kernels=on needs .* here: {re.escape(reason)}"):
        ops.choose_kernels("on")
    ops._log_once.cache_clear()
    caplog.clear()
    monkeypatch.setattr(ops, "call", None)
    with caplog.at_level("INFO", logger="absl"):
        np.testing.assert_allclose(here, ops.weighted_relu_sum(*operands), rtol=1e-5, atol=1e-5)
        ops.weighted_relu_sum(*operands)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"pooling: XLA; {reason}")
    # An accelerator is nothing to warn of.
    assert record.levelname == ("INFO" if missing == "cpu" else "WARNING")


@pytest.mark.parametrize(
    "kind,line",
    [
        ("auto", r"pooling: compiled CPU kernels \(XLA FFI 0\.\d+\)"),
        ("on", r"pooling: compiled CPU kernels \(XLA FFI 0\.\d+\)"),
        ("off", r"pooling: XLA; --cpu_kernels=off"),
    ],
)
def test_the_log_says_once_which_is_used(kind, line, small_rng, choice, caplog):
    logging.set_verbosity(logging.INFO)
    with caplog.at_level("INFO", logger="absl"):
        for _ in range(2):
            ops.choose_kernels(kind)
            ops.weighted_relu_sum(*problem(small_rng, 20, 30, 5, 4))
    assert [bool(re.fullmatch(line, record.getMessage())) for record in caplog.records] == [True]


@cfunc(ffi_handlers.TASK)
def _raising(operands, chunk, chunks):
    try:
        if chunk == chunks - 1:
            raise ValueError("an index out of range")
    except Exception:
        return ffi_handlers.FAILED
    return ffi_handlers.SUCCEEDED


@cfunc(ffi_handlers.TASK)
def _not_catching(operands, chunk, chunks):
    if chunk == chunks - 1:
        raise ValueError("an index out of range")
    return ffi_handlers.SUCCEEDED


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("task", [_raising, _not_catching])
@pytest.mark.parametrize("chunks", [1, 100])
def test_a_task_that_raises_is_an_error_of_jax(task, chunks):
    name = f"test{task.__name__}_{chunks}"
    ops._register_kernels()
    ops.register_task(name, task.address)

    @jax.jit
    def step(vector):
        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        return ops.call(name, shape, vector, chunks=chunks) + 1.0

    for _ in range(3):
        with pytest.raises(
            jax.errors.JaxRuntimeError, match=f"INTERNAL: .*compiled CPU kernel {name} failed"
        ):
            jax.block_until_ready(step(jnp.zeros(3)))
    # Others go on as before.
    table = jnp.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(ops.read_rows(table, jnp.array([3], jnp.int32)), [[6.0, 7.0]])


_NO_MEMORY = """
import jax, jax.numpy as jnp
import numba
from pinsage_jax.cpu import intrinsics
intrinsics.malloc = numba.njit(lambda size: 0)
from pinsage_jax.cpu import ops, pooling_kernels
# Its function is never called.
pooling_kernels.tasks = lambda: {"read_rows": 0}
try:
    jax.block_until_ready(ops.read_rows(jnp.ones((4, 2)), jnp.zeros(3, jnp.int32)))
except jax.errors.JaxRuntimeError as error:
    print(str(error).splitlines()[0])
"""


def test_a_call_without_memory_is_an_error_of_jax(tmp_path):
    # A cache of its own: that of all processes does not know of the exchanged function.
    ran = subprocess.run(
        [sys.executable, "-c", _NO_MEMORY],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    expected = "RESOURCE_EXHAUSTED: the compiled CPU kernel read_rows did not start: memory ran out"
    assert expected in ran.stdout
