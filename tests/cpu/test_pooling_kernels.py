"""The kernels that compiled steps call on CPUs, against loops in float64."""

import numpy as np
import pytest

from pinsage_jax.cpu import pooling_kernels

pytestmark = pytest.mark.kernels

# Rows that are named, lists, their length, width of a row: nothing, less than a cache line, whole
# lines, lines and some, more rows than are prefetched ahead.
SIZES = [(1, 1, 1, 1), (30, 50, 7, 16), (200, 40, 9, 20), (65, 90, 3, 33), (9, 0, 4, 5)]


def problem(rng, rows, lists, length, columns):
    """Vectors, a bias and lists with gaps and a row that all lists name."""
    vectors = rng.normal(size=(rows, columns)).astype(np.float32)
    bias = rng.normal(size=columns).astype(np.float32)
    indices = rng.integers(0, rows, (lists, length)).astype(np.int32)
    indices[:, 0] = rows - 1
    weights = (rng.random((lists, length)) * (rng.random((lists, length)) < 0.7)).astype(np.float32)
    return vectors, bias, np.where(weights > 0, indices, -1), weights


def transposed(indices, weights, rows):
    """The output of transpose_lists; masked entries name row 0 there."""
    starts = np.empty(rows + 1, np.int32)
    lists = np.full(indices.size, -1, np.int32)
    list_weights = np.zeros(indices.size, np.float32)
    pooling_kernels.transpose_lists(np.maximum(indices, 0), weights, starts, lists, list_weights)
    return starts, lists, list_weights


def derivative(vectors, bias, indices, weights, cotangents):
    """float64: the derivative of the weighted sums with respect to the vectors."""
    expected = np.zeros(vectors.shape)
    for place, rank in np.argwhere(weights > 0):
        row = indices[place, rank]
        passed = vectors[row] + bias > 0
        expected[row] += float(weights[place, rank]) * cotangents[place] * passed
    return expected


@pytest.mark.parametrize("rows,lists,length,columns", SIZES)
def test_any_range_of_lists_can_be_summed_alone(rows, lists, length, columns, small_rng):
    vectors, bias, indices, weights = problem(small_rng, rows, lists, length, columns)
    shifted = np.maximum(vectors.astype(np.float64) + bias, 0.0)
    expected = np.einsum("nt,ntm->nm", weights.astype(np.float64), shifted[indices])
    for begin, end in ((0, lists), (lists // 3, lists // 2)):
        out = np.full((end - begin, columns), np.nan, np.float32)
        pooling_kernels.weighted_relu_sum(vectors, bias, indices, weights, begin, out)
        np.testing.assert_allclose(out, expected[begin:end], rtol=1e-5, atol=1e-5)


def test_transposed_lists_name_every_entry_once(small_rng):
    _, _, indices, weights = problem(small_rng, 30, 50, 7, 1)
    starts, lists, list_weights = transposed(indices, weights, 30)
    assert starts[0] == 0 and starts[-1] == (weights > 0).sum()
    for row in range(30):
        named = slice(starts[row], starts[row + 1])
        at = np.argwhere((indices == row) & (weights > 0))
        np.testing.assert_array_equal(lists[named], at[:, 0])
        np.testing.assert_array_equal(list_weights[named], weights[tuple(at.T)])


@pytest.mark.parametrize("rows,lists,length,columns", SIZES)
def test_any_range_of_rows_can_be_differentiated_alone(rows, lists, length, columns, small_rng):
    vectors, bias, indices, weights = problem(small_rng, rows, lists, length, columns)
    cotangents = small_rng.normal(size=(lists, columns)).astype(np.float32)
    by_row = transposed(indices, weights, rows)
    expected = derivative(vectors, bias, indices, weights, cotangents)
    for begin, end in ((0, rows), (rows // 3, rows // 2)):
        out = np.full((end - begin, columns), np.nan, np.float32)
        pooling_kernels.weighted_sum_vjp(vectors, bias, cotangents, by_row, begin, out)
        np.testing.assert_allclose(out, expected[begin:end], rtol=1e-4, atol=1e-4)


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


def test_the_largest_of_all_named_rows(small_rng):
    vectors, _, indices, weights = problem(small_rng, 40, 60, 6, 18)
    vectors = np.abs(vectors)
    out = np.full((60, 18), np.nan, np.float32)
    pooling_kernels.max_rows(vectors, indices, weights, out)
    for row in range(60):
        named = indices[row][weights[row] > 0]
        expected = vectors[named].max(axis=0) if len(named) else np.zeros(18)
        np.testing.assert_array_equal(out[row], expected)
