"""Parts of the top-k kernels: keys of scores, quickselect, and the first limit."""

import numpy as np
import pytest

from pinsage_jax.retrieval import kernels

pytestmark = pytest.mark.kernels

SCORES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.1, np.inf, -np.inf]


def test_keys_are_in_the_order_of_scores_then_ids():
    rng = np.random.default_rng(3)
    scores = np.concatenate([SCORES, rng.normal(size=200), SCORES]).astype(np.float32)
    ids = np.arange(len(scores), dtype=np.int32)
    made = [int(kernels._key(score, name)) for score, name in zip(scores, ids, strict=True)]
    keys = np.array(made, np.uint64)
    order = np.lexsort((ids, -(scores + np.float32(0.0)).astype(np.float64)))
    np.testing.assert_array_equal(np.argsort(keys), order)
    back = np.array([kernels._score(key) for key in keys], np.float32)
    np.testing.assert_array_equal(back, scores + np.float32(0.0))


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 200])
@pytest.mark.parametrize("form", ["random", "ascending", "descending", "organ pipe"])
def test_partition_moves_the_smallest_to_the_front(count, form):
    keys = np.arange(100, 100 + count, dtype=np.uint64)
    if form == "random":
        keys = np.random.default_rng(count).permutation(keys)
    elif form == "descending":
        keys = keys[::-1].copy()
    elif form == "organ pipe":
        keys = np.concatenate([keys[::2], keys[1::2][::-1]])
    for size in {1, count // 2 + 1, count}:
        moved = np.concatenate([keys, [np.uint64(0)]])
        kernels._partition(moved, count, size)
        assert sorted(moved[:size].tolist()) == sorted(keys.tolist())[:size]
        assert moved[size - 1] == max(moved[:size].tolist()) and moved[count] == 0


@pytest.mark.parametrize("kind", ["normal", "equal", "subnormal", "zeros", "with NaN"])
def test_at_least_k_scores_exceed_the_first_limit(kind):
    rng = np.random.default_rng(4)
    scores = rng.normal(size=130).astype(np.float32)
    if kind == "equal":
        scores[:] = 2.5
    elif kind == "subnormal":
        scores *= np.float32(1e-40)
    elif kind == "zeros":
        scores[:] = 0.0
    elif kind == "with NaN":
        scores[::3] = np.nan
    for size in (1, 4, 8):
        runs = 4 * size
        maxima, keys = np.empty(runs, np.float32), np.empty(runs, np.uint64)
        limit = kernels._first_limit(scores, size, maxima, keys)
        assert (scores > limit).sum() >= size
