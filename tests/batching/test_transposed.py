"""Transposed lists, added up as a device does it, against sums entry by entry."""

import numpy as np
import pytest

from pinsage_jax.batching.transposed import WIDTHS, Layout, layouts, transpose, transposed_size

pytestmark = pytest.mark.kernels


def sums_of(layout: Layout, lists: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
    """float64 [n, M]: what each row is named by, with the weights, in groups and merges."""
    parts = layout.split(lists)
    weights = parts["weights"].view(np.float32)
    sums = np.zeros((layout.sums, cotangents.shape[1]))
    group = place = 0
    for width, count in zip(WIDTHS, parts["counts"], strict=False):
        pieces = layout.slots // width
        for at in range(group, group + count):
            gathered = cotangents[parts["entries"][at]] * weights[at][:, None]
            sums[place : place + pieces] = gathered.reshape(width, pieces, -1).sum(axis=0)
            place += pieces
        group += count
    assert group <= layout.groups and place <= layout.pieces
    assert parts["counts"][-1] <= layout.merge_groups
    for at in range(parts["counts"][-1]):
        named = parts["merges"][at]
        merged = np.where(named[..., None] >= 0, sums[named], 0.0).sum(axis=0)
        begin = layout.pieces + at * len(merged)
        sums[begin : begin + len(merged)] = merged
    rows = parts["rows"]
    return np.where(rows[:, None] >= 0, sums[rows], 0.0)


# Rows, lists, length: one list; lists of one; rows of 256, 257, 256 * 16 and 256 * 16 + 1
# entries; three rounds of merges; more rows than entries; no list; more slots than the least.
CASES = [
    (5, 1, 3), (9, 40, 1), (3, 256, 2), (3, 257, 2), (2, 4096, 1), (2, 4097, 2), (4, 70_000, 1),
    (500, 7, 5), (6, 0, 4), (900, 700, 4),
]  # fmt: skip


@pytest.mark.parametrize("rows,lists,length", CASES)
def test_groups_and_merges_hold_every_entry_once(rows, lists, length, small_rng):
    neighbors = small_rng.integers(0, rows, (lists, length)).astype(np.int32)
    weights = small_rng.integers(0, 4, (lists, length)).astype(np.float32)
    neighbors[:, 0] = rows - 1
    weights[:, 0] = 1.0
    cotangents = small_rng.integers(-9, 9, (max(lists, 1), 2)).astype(np.float64)
    made = transpose((lists, rows), neighbors, weights)
    layout = Layout(lists, length, rows)
    assert made.shape == (layout.size,)
    expected = np.zeros((rows, 2))
    for place in range(lists):
        for row, weight in zip(neighbors[place], weights[place], strict=True):
            expected[row] += weight * cotangents[place]
    np.testing.assert_array_equal(sums_of(layout, made, cotangents), expected)


def test_every_layer_has_its_part(small_rng):
    rows = (3, 8, 20)
    neighbors = small_rng.integers(0, 8, (8, 4)).astype(np.int32)
    neighbors[3:] = small_rng.integers(0, 20, (5, 4))
    weights = small_rng.integers(1, 4, (8, 4)).astype(np.float32)
    made = transpose(rows, neighbors, weights)
    assert len(made) == transposed_size(rows, 4)
    for layout in layouts(rows, 4):
        part, made = made[: layout.size], made[layout.size :]
        cotangents = small_rng.integers(-9, 9, (layout.lists, 2)).astype(np.float64)
        expected = np.zeros((layout.rows, 2))
        for place in range(layout.lists):
            np.add.at(expected, neighbors[place], weights[place][:, None] * cotangents[place])
        np.testing.assert_array_equal(sums_of(layout, part, cotangents), expected)
    assert [layout.rows for layout in layouts(rows, 4)] == [20, 8] and len(made) == 0
