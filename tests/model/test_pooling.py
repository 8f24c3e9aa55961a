"""Pooling on a CPU, forward and backward, against loops in float64 and against XLA's own way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinsage_jax.cpu.ops import add_bias, gather_rows
from pinsage_jax.model.pooling import pool_neighbors


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


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", ["importance", "max"])
def test_a_node_that_thousands_of_rows_read_has_a_gradient_in_bfloat16(kind, backend, monkeypatch):
    """A running sum in bfloat16 stops growing after some hundred terms."""
    rows, columns = 5000, 6
    rng = np.random.default_rng(3)
    # Sender 0 is in every list, and is the largest of each column; the others differ.
    projected = rng.uniform(0.2, 1.0, (40, columns))
    projected[0] += 1.0
    neighbors = rng.integers(1, 40, (rows, 4)).astype(np.int32)
    neighbors[:, 2] = 0
    weights = rng.uniform(0.5, 1.0, neighbors.shape).astype(np.float32)
    cotangent = rng.uniform(0.5, 1.5, (rows, columns))
    bias = rng.uniform(0.0, 0.2, columns)
    half = [jnp.asarray(array, jnp.bfloat16) for array in (projected, bias, cotangent)]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    @jax.jit
    def gradients(projected, bias, cotangent):
        _, back = jax.vjp(
            lambda *operands: pool_neighbors(*operands, neighbors, weights, kind), projected, bias
        )
        return back(cotangent)

    to_projected, to_bias = (np.asarray(array, np.float64) for array in gradients(*half))
    cotangent = np.asarray(half[2], np.float64)
    expected = np.zeros((40, columns))
    if kind == "max":
        expected[0] = cotangent.sum(axis=0)
    else:
        np.add.at(expected, neighbors, weights.astype(np.float64)[..., None] * cotangent[:, None])
    np.testing.assert_allclose(to_projected, expected, rtol=0.01)
    np.testing.assert_allclose(to_bias, expected.sum(axis=0), rtol=0.01)


def test_gathered_rows_and_biases_in_float32_are_plain_jax(small_rng):
    table = small_rng.normal(size=(7, 3)).astype(np.float32)
    bias = small_rng.normal(size=3).astype(np.float32)
    rows = small_rng.integers(0, 7, (5, 4)).astype(np.int32)

    def loss(gather, add, table, bias):
        return jnp.sum(jnp.sin(gather(add(table, bias), rows)))

    plain = (lambda table, rows: table[rows]), (lambda rows, bias: rows + bias[None, :])
    ours, theirs = (
        jax.value_and_grad(lambda *given, pair=pair: loss(*pair, *given), argnums=(0, 1))(
            table, bias
        )
        for pair in ((gather_rows, add_bias), plain)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    # The same sums, and values, in bfloat16 up to its three digits.
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (table, bias))
    value, gradients = jax.value_and_grad(
        lambda *given: loss(gather_rows, add_bias, *given), argnums=(0, 1)
    )(*half)
    assert {leaf.dtype for leaf in gradients} == {jnp.dtype(jnp.bfloat16)}
    for mine, other in zip((value, *gradients), (theirs[0], *theirs[1]), strict=True):
        np.testing.assert_allclose(np.asarray(mine, np.float32), other, rtol=0.05, atol=0.05)
