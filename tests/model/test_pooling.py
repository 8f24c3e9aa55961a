"""Pooling on a CPU, forward and backward, against loops in float64 and against XLA's own way."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from pinsage_jax.cpu import ops
from pinsage_jax.model.layers import Messages
from pinsage_jax.model.pooling import pool_neighbors, pool_sent


def problem(rng, senders, rows, width, columns):
    """Projected vectors, lists with gaps, one popular node, empty and padding rows."""
    projected = rng.normal(size=(senders, columns)).astype(np.float32)
    neighbors = rng.integers(0, senders, (rows, width)).astype(np.int32)
    neighbors[:, 0] = senders - 1
    weights = rng.random((rows, width), np.float32) * (rng.random((rows, width)) < 0.7)
    weights[[0, rows // 2, rows - 1]] = 0.0
    return projected, np.where(weights > 0, neighbors, 0), weights.astype(np.float32)


# Several calls side by side, lists of every length modulo four, fewer rows than calls.
SIZES = [(300, 700, 26, 9), (7, 90, 187, 16), (40, 5, 1, 3), (9, 2, 9000, 4), (50, 64, 4, 1)]


@pytest.mark.parametrize("senders,rows,width,columns", SIZES)
def test_pooling_and_its_gradient_equal_sums_in_float64(senders, rows, width, columns, small_rng):
    projected, neighbors, weights = problem(small_rng, senders, rows, width, columns)
    bias = small_rng.normal(size=columns).astype(np.float32)
    cotangent = small_rng.normal(size=(rows, columns)).astype(np.float32)

    @jax.jit
    def both(projected, bias, weights, cotangent):
        out, back = jax.vjp(
            lambda *operands: pool_neighbors(*operands[:2], neighbors, operands[2], "importance"),
            projected,
            bias,
            weights,
        )
        return out, *back(cotangent)

    out, to_projected, to_bias, to_weights = both(projected, bias, weights, cotangent)
    shifted = projected.astype(np.float64) + bias
    gathered = np.maximum(shifted, 0.0)[neighbors]
    expected = np.einsum("nt,ntm->nm", weights.astype(np.float64), gathered)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)
    spread = weights.astype(np.float64)[..., None] * cotangent[:, None, :]
    expected = np.zeros(projected.shape)
    np.add.at(expected, neighbors, spread)
    expected *= shifted > 0
    np.testing.assert_allclose(to_projected, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(to_bias, expected.sum(axis=0), rtol=1e-4, atol=1e-3)
    expected = np.einsum("nm,ntm->nt", cotangent.astype(np.float64), gathered)
    np.testing.assert_allclose(to_weights, expected, rtol=1e-4, atol=1e-4)
    assert not np.asarray(out)[0].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["importance", "max"])
def test_the_way_of_accelerators_gives_the_same(kind, dtype, small_rng, monkeypatch):
    projected, neighbors, weights = problem(small_rng, 60, 200, 12, 5)
    projected = jnp.asarray(projected).astype(dtype)
    bias = jnp.asarray(small_rng.normal(size=5)).astype(dtype)

    def loss(projected, bias):
        out = pool_neighbors(projected, bias, neighbors, weights, kind)
        assert out.dtype == dtype
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    both = jax.value_and_grad(loss, argnums=(0, 1))
    here = jax.tree.leaves(both(projected, bias))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = jax.tree.leaves(both(projected, bias))
    for mine, other in zip(here, there, strict=True):
        mine, other = (np.asarray(array, np.float32) for array in (mine, other))
        # Sums in bfloat16 go astray by its three digits, and by the size of their terms.
        rough = 1e-5 if dtype == jnp.float32 else 0.03
        np.testing.assert_allclose(mine, other, rtol=rough, atol=rough * np.abs(other).max())


# One share of the product's rows, several, and widths off the tiles.
@pytest.mark.parametrize("senders,depth,columns", [(300, 7, 9), (9000, 24, 33)])
def test_the_product_fused_with_pooling_has_the_same_derivatives(
    senders, depth, columns, small_rng
):
    _, neighbors, weights = problem(small_rng, senders, 700, 26, columns)
    hidden = small_rng.normal(size=(senders, depth)).astype(np.float32)
    kernel = small_rng.normal(size=(depth, columns)).astype(np.float32)
    bias = small_rng.normal(size=columns).astype(np.float32)
    cotangent = small_rng.normal(size=(700, columns)).astype(np.float32)

    @jax.jit
    def both(hidden, kernel, bias, weights):
        made = []
        for of_inputs in (False, True):
            out, back = jax.vjp(
                lambda h, k, b, w, fused=of_inputs: pool_sent(
                    Messages(h, k, b), neighbors, w, "importance", of_inputs=fused
                ),
                *(hidden, kernel, bias, weights),
            )
            made.append((out, *back(cotangent)))
        return made

    plain, fused = both(hidden, kernel, bias, weights)
    for mine, other in zip(fused, plain, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-3)


def test_the_number_of_parts_changes_no_bit(small_rng, monkeypatch):
    projected, neighbors, weights = problem(small_rng, 4000, 3000, 26, 20)
    table, rows = jnp.asarray(projected), jnp.asarray(neighbors[:, 1])

    def made():
        out, back = jax.vjp(
            lambda p: pool_neighbors(p, jnp.zeros(20), neighbors, weights, "mean"), table
        )
        return out, *back(out), ops.read_rows(table, rows)

    several = made()
    np.testing.assert_array_equal(several[-1], projected[neighbors[:, 1]])
    for parts in (1, 250):
        monkeypatch.setattr(ops, "parts_of", lambda reads, parts=parts: parts)
        for mine, other in zip(made(), several, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_the_interface_here_is_one_that_the_kernels_read():
    assert ops._known_interface()


@pytest.mark.parametrize("minor,known", [(0, False), (1, True), (3, True), (4, False)])
def test_only_a_tried_interface_is_used(minor, known, tmp_path, monkeypatch):
    path = pathlib.Path("xla", "ffi", "api", "c_api.h")
    real = (pathlib.Path(jax.ffi.include_dir()) / path).read_text(encoding="utf-8")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    assert not ops._known_interface.__wrapped__()
    header = tmp_path / path
    header.parent.mkdir(parents=True)
    other = re.sub(r"(define XLA_FFI_API_MINOR) \d+", rf"\1 {minor}", real)
    header.write_text(other)
    assert ops._known_interface.__wrapped__() == known
    # The version is one that was tried, but a function has come in between.
    field = "_XLA_FFI_API_STRUCT_FIELD(XLA_FFI_ThreadPool_Schedule)"
    assert field in other
    header.write_text(other.replace(field, f"_XLA_FFI_API_STRUCT_FIELD(XLA_FFI_New);\n{field}"))
    assert not ops._known_interface.__wrapped__()
    header.write_text("#define XLA_FFI_API_MAJOR 0\n")
    assert not ops._known_interface.__wrapped__()


@pytest.mark.parametrize("missing", ["compiler", "interface"])
def test_without_compiled_kernels_xla_does_it(missing, small_rng, monkeypatch):
    projected, neighbors, weights = problem(small_rng, 20, 30, 5, 4)
    operands = (jnp.asarray(projected), jnp.ones(4), neighbors, weights, "mean")
    here = pool_neighbors(*operands)
    if missing == "compiler":
        monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    else:
        monkeypatch.setattr(ops, "_known_interface", lambda: False)
    monkeypatch.setattr(ops, "call", None)
    other = pool_neighbors(*operands)
    np.testing.assert_allclose(here, other, rtol=1e-5, atol=1e-5)
