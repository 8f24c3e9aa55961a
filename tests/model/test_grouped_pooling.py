"""Pooling as accelerators compute it, over transposed lists, against sums in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import make_run, random_params, unit_features

from pinsage_jax.batching.transposed import Layout, layouts, transpose, transposed_size
from pinsage_jax.cpu.ops import plain_weighted_relu_sum
from pinsage_jax.model import grouped_pooling
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.training.steps import global_gradients


def problem(rng, senders, rows, width):
    """Lists with gaps; the last sender is in every list, the first in none."""
    neighbors = rng.integers(1, senders, (rows, width)).astype(np.int32)
    neighbors[:, 0] = senders - 1
    weights = rng.random((rows, width), np.float32) * (rng.random((rows, width)) < 0.8)
    weights[:, 0] = 1.0
    weights[rows // 2] = 0.0
    return np.where(weights > 0, neighbors, 0), weights


# One list; lists of one; a sum of two pieces, and of two rounds; few senders.
SIZES = [(5, 1, 3), (9, 40, 1), (30, 257, 4), (3, 300, 64), (12, 4100, 2)]


def transposed_of(neighbors, weights, senders):
    layout = Layout(*neighbors.shape, senders)
    rows = (neighbors.shape[0], senders)
    lists = transpose(rows, neighbors, weights)
    assert lists.shape == (transposed_size(rows, neighbors.shape[1]),) == (layout.size,)
    return lists, layout


@pytest.mark.parametrize("senders,rows,width", SIZES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_directions_equal_sums_in_float64(senders, rows, width, dtype, small_rng):
    columns = 3
    neighbors, weights = problem(small_rng, senders, rows, width)
    lists, layout = transposed_of(neighbors, weights, senders)
    projected = jnp.asarray(small_rng.normal(size=(senders, columns))).astype(dtype)
    bias = jnp.asarray(small_rng.normal(size=columns)).astype(dtype)
    cotangent = jnp.asarray(small_rng.normal(size=(rows, columns))).astype(dtype)

    @jax.jit
    def both(projected, bias, weights):
        out, back = jax.vjp(
            lambda p, b, w: grouped_pooling.weighted_relu_sum(p, b, neighbors, w, lists, layout),
            projected,
            bias,
            weights,
        )
        return out, *back(cotangent)

    out, to_projected, to_bias, to_weights = both(projected, bias, weights)
    assert out.dtype == to_projected.dtype == to_bias.dtype == dtype
    shifted = np.asarray(projected + bias[None, :], np.float64)
    gathered = np.maximum(shifted, 0.0)[neighbors]
    # Sums are in float32, so rounding is that of the result and not of its terms.
    rough = 1e-5 if dtype == jnp.float32 else 2.0**-8
    expected = np.einsum("nt,ntm->nm", weights.astype(np.float64), gathered)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=rough, atol=1e-4)
    spread = weights.astype(np.float64)[..., None] * np.asarray(cotangent, np.float64)[:, None]
    expected = np.zeros(projected.shape)
    np.add.at(expected, neighbors, spread)
    expected *= shifted > 0
    close = {"rtol": rough, "atol": 1e-4 * max(1.0, rows / 1000)}
    np.testing.assert_allclose(np.asarray(to_projected, np.float64), expected, **close)
    total = expected.sum(axis=0)
    np.testing.assert_allclose(np.asarray(to_bias, np.float64), total, rtol=rough, atol=1e-2)
    expected = np.einsum("nm,ntm->nt", np.asarray(cotangent, np.float64), gathered)
    np.testing.assert_allclose(to_weights, expected, rtol=2.0**-7, atol=0.05)


def test_blocks_of_rows_are_the_same_sums(small_rng, monkeypatch):
    neighbors, weights = problem(small_rng, 50, 103, 7)
    messages = jnp.asarray(small_rng.random((50, 5), np.float32))
    monkeypatch.setattr(grouped_pooling, "_BLOCK_BYTES", 5 * 4 * 16)
    once = jax.jit(grouped_pooling._sum_at_once)(messages, neighbors, weights)
    blocks = jax.jit(grouped_pooling._sum_by_blocks)(messages, neighbors, weights)
    np.testing.assert_allclose(blocks, once, rtol=1e-6, atol=1e-6)
    sums = jnp.asarray(small_rng.normal(size=(9, 5)), jnp.float32)
    rows = small_rng.integers(-1, 9, 50).astype(np.int32)
    signed = messages - 0.5
    once = jax.jit(grouped_pooling._rows_at_once)(sums, rows, signed)
    blocks = jax.jit(grouped_pooling._rows_by_blocks)(sums, rows, signed)
    np.testing.assert_array_equal(blocks[0], once[0])
    np.testing.assert_allclose(blocks[1], once[1], rtol=1e-5, atol=1e-6)
    lists, layout = transposed_of(neighbors, weights, 50)
    cotangent = jnp.asarray(small_rng.normal(size=(103, 5)), jnp.float32)
    parts = grouped_pooling._parts(jnp.asarray(lists), layout)
    summed = jax.jit(grouped_pooling._sums_of_pieces, static_argnums=(2, 3))
    for many in (2, 8, 1024):
        blocks = summed(cotangent, parts, layout, many)
        np.testing.assert_array_equal(blocks, summed(cotangent, parts, layout, 1))


def test_every_layer_has_its_own_lists(small_rng):
    rows, width = (20, 90, 300), 6
    neighbors, weights = problem(small_rng, 90, 90, width)
    neighbors[20:] = small_rng.integers(0, 300, (70, width))
    lists = transpose(rows, neighbors, weights)
    first, second = layouts(rows, width)
    assert (first.lists, first.rows) == (90, 300) and (second.lists, second.rows) == (20, 90)
    assert len(lists) == first.size + second.size
    cotangent = jnp.asarray(small_rng.normal(size=(90, 4)), jnp.float32)
    for layout, begin in ((first, 0), (second, first.size)):
        head, part = slice(layout.lists), lists[begin : begin + layout.size]
        args = (neighbors[head], jnp.asarray(weights[head]))
        projected = jnp.asarray(small_rng.normal(size=(layout.rows, 4)), jnp.float32)
        bias = jnp.zeros(4)
        mine = jax.vjp(
            lambda p, b: grouped_pooling.weighted_relu_sum(p, b, *args, part, layout),  # noqa: B023
            projected,
            bias,
        )[1](cotangent[head])
        twin = jax.vjp(lambda p, b: plain_weighted_relu_sum(p, b, *args), projected, bias)  # noqa: B023
        for here, there in zip(mine, twin[1](cotangent[head]), strict=True):
            np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-4)


def test_the_sums_of_a_gradient_do_not_depend_on_the_run(small_rng):
    neighbors, weights = problem(small_rng, 12, 5000, 5)
    lists, layout = transposed_of(neighbors, weights, 12)
    cotangent = jnp.asarray(small_rng.normal(size=(5000, 8)), jnp.bfloat16)
    sums = jax.jit(grouped_pooling._sums, static_argnums=2)
    text = sums.lower(cotangent, jnp.asarray(lists), layout).as_text()
    assert "scatter" not in text
    assert np.array_equal(sums(cotangent, lists, layout), sums(cotangent, lists, layout))


def test_a_step_with_transposed_lists_has_the_gradients_of_one_without():
    run = make_run(features=unit_features(40), model={"neighbor_embeddings": "on"})
    builder = run.builder(transposed=True)
    batch, info = builder.make(3)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch)
    assert info.left_out == 0 and batch.transposed.size
    params = random_params(run.model, builder.input_dim, num_ids=builder.num_nodes)
    model = PinSage(run.model, builder.budgets.rows, builder.num_nodes)

    @jax.jit
    def gradients(batch):
        return global_gradients(params, batch, model, run.train, None)

    here, there = gradients(batch), gradients(batch._replace(transposed=None))
    for mine, other in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
