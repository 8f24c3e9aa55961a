"""The kernels that compiled steps call on CPUs, against loops and products in float64."""

import numba
import numpy as np
import pytest

from pinsage_jax.cpu import pooling_kernels
from pinsage_jax.cpu.tiles import TILE_COLUMNS, TILE_ROWS, add_tile

pytestmark = pytest.mark.kernels

# Rows that send, rows that pool, neighbors, width: nothing, less than a line, whole lines,
# lines and some, more than a block of a product, more rows than are asked for ahead.
SIZES = [(1, 1, 1, 1), (30, 50, 7, 16), (200, 40, 9, 20), (65, 90, 3, 33), (9, 0, 4, 5)]


def problem(rng, senders, rows, width, columns):
    """Vectors, a bias and lists with gaps and a node that all rows name."""
    projected = rng.normal(size=(senders, columns)).astype(np.float32)
    bias = rng.normal(size=columns).astype(np.float32)
    neighbors = rng.integers(0, senders, (rows, width)).astype(np.int32)
    neighbors[:, 0] = senders - 1
    weights = (rng.random((rows, width)) * (rng.random((rows, width)) < 0.7)).astype(np.float32)
    return projected, bias, np.where(weights > 0, neighbors, -1), weights


def transpose(neighbors, weights, senders):
    """What transpose_neighbor_lists makes; masked entries name node 0 there."""
    starts = np.empty(senders + 1, np.int32)
    rows = np.full(neighbors.size, -1, np.int32)
    masses = np.zeros(neighbors.size, np.float32)
    pooling_kernels.transpose_neighbor_lists(
        np.maximum(neighbors, 0), weights, starts, rows, masses
    )
    return starts, rows, masses


def returned(projected, bias, neighbors, weights, cotangents):
    """float64: the derivative of the pooled vectors towards the projected ones."""
    expected = np.zeros(projected.shape)
    for row, place in np.argwhere(weights > 0):
        node = neighbors[row, place]
        passed = projected[node] + bias > 0
        expected[node] += float(weights[row, place]) * cotangents[row] * passed
    return expected


@pytest.mark.parametrize("senders,rows,width,columns", SIZES)
def test_any_range_of_rows_can_be_pooled_alone(senders, rows, width, columns, small_rng):
    projected, bias, neighbors, weights = problem(small_rng, senders, rows, width, columns)
    sent = np.maximum(projected.astype(np.float64) + bias, 0.0)
    expected = np.einsum("nt,ntm->nm", weights.astype(np.float64), sent[neighbors])
    for begin, end in ((0, rows), (rows // 3, rows // 2)):
        out = np.full((end - begin, columns), np.nan, np.float32)
        pooling_kernels.weighted_rows(projected, bias, neighbors, weights, begin, out)
        np.testing.assert_allclose(out, expected[begin:end], rtol=1e-5, atol=1e-5)


def test_turned_lists_name_every_entry_once(small_rng):
    _, _, neighbors, weights = problem(small_rng, 30, 50, 7, 1)
    starts, rows, masses = transpose(neighbors, weights, 30)
    assert starts[0] == 0 and starts[-1] == (weights > 0).sum()
    for node in range(30):
        named = slice(starts[node], starts[node + 1])
        at = np.argwhere((neighbors == node) & (weights > 0))
        np.testing.assert_array_equal(rows[named], at[:, 0])
        np.testing.assert_array_equal(masses[named], weights[tuple(at.T)])


@pytest.mark.parametrize("senders,rows,width,columns", SIZES)
@pytest.mark.parametrize("depth", [1, 16, 21])
def test_what_comes_back_and_its_product(senders, rows, width, columns, depth, small_rng):
    projected, bias, neighbors, weights = problem(small_rng, senders, rows, width, columns)
    inputs = small_rng.normal(size=(senders, depth)).astype(np.float32)
    cotangents = small_rng.normal(size=(rows, columns)).astype(np.float32)
    lists = transpose(neighbors, weights, senders)
    expected = returned(projected, bias, neighbors, weights, cotangents)
    for begin, end in ((0, senders), (senders // 3, senders // 2)):
        out = np.full((end - begin, columns), np.nan, np.float32)
        pooling_kernels.weighted_sum_vjp(projected, bias, cotangents, lists, begin, out)
        np.testing.assert_allclose(out, expected[begin:end], rtol=1e-4, atol=1e-4)
        both = np.full((depth + 1, columns), np.nan, np.float32)
        pooling_kernels.projection_vjp(inputs, projected, bias, cotangents, lists, begin, end, both)
        product = inputs[begin:end].astype(np.float64).T @ expected[begin:end]
        np.testing.assert_allclose(both[:-1], product, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(both[-1], expected[begin:end].sum(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("columns", [1, 16, 20, 64])
@pytest.mark.parametrize("shift", [0, 1])
def test_rows_are_read_by_number(columns, shift, small_rng):
    table = small_rng.normal(size=(50, columns)).astype(np.float32)
    rows = small_rng.integers(-1, 50, 70).astype(np.int32)
    # Results begin on the edge of a cache line, or not.
    memory = np.full(60 * columns + 33, np.nan, np.float32)
    first = -(memory.ctypes.data // 4) % 16 + shift
    out = memory[first : first + 60 * columns].reshape(60, columns)
    pooling_kernels.read_rows(table, rows, 5, out)
    np.testing.assert_array_equal(out, table[np.maximum(rows[5:65], 0)])
    assert np.isnan(memory[:first]).all() and np.isnan(memory[first + out.size :]).all()


@numba.njit
def tile_grown(sums, place, left, first, right, second, count):
    """Calls the intrinsic, which only compiled code can."""
    add_tile(sums, place, left, first, right, second, count)


@pytest.mark.parametrize("count", [1, 2, 67])
def test_a_tile_grows_by_a_product(count, small_rng):
    left, right, sums = (
        small_rng.normal(size=size).astype(np.float32)
        for size in (3 + count * TILE_COLUMNS, 5 + count * TILE_COLUMNS, 7 + 16 * 16)
    )
    before = sums.copy()
    tile_grown(sums, 7, left, 3, right, 5, count)
    rows = left[3:].reshape(count, -1)[:, :TILE_ROWS].astype(np.float64)
    product = rows.T @ right[5:].reshape(count, -1)
    size = TILE_ROWS * TILE_COLUMNS
    grown = before[7 : 7 + size] + product.reshape(-1)
    np.testing.assert_allclose(sums[7 : 7 + size], grown, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(sums[:7], before[:7])
    np.testing.assert_array_equal(sums[7 + size :], before[7 + size :])


def test_the_largest_of_all_neighbors(small_rng):
    projected, _, neighbors, weights = problem(small_rng, 40, 60, 6, 18)
    projected = np.abs(projected)
    out = np.full((60, 18), np.nan, np.float32)
    pooling_kernels.max_rows(projected, neighbors, weights, out)
    for row in range(60):
        named = neighbors[row][weights[row] > 0]
        expected = projected[named].max(axis=0) if len(named) else np.zeros(18)
        np.testing.assert_array_equal(out[row], expected)
