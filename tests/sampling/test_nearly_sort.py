"""The counting sort before the top-T selection: what it keeps, and in which order."""

import numpy as np
import pytest

from pinsage_jax.sampling import kernels

pytestmark = pytest.mark.kernels


def nearly_sorted(counts, hashes, size):
    """Ranks uint64 and ids int32 of the nodes that _nearly_sort keeps."""
    number = len(counts)
    rank = (np.asarray(counts, np.uint64) << np.uint64(32)) | np.asarray(hashes, np.uint64)
    ids = np.arange(number, dtype=np.int32)
    scratch = np.full((6, number + 1), -7, np.int32)
    rank_out, ids_out = np.zeros(number, np.uint64), np.full(number, -1, np.int32)
    kept = kernels._nearly_sort(rank, ids, number, size, scratch, rank_out, ids_out)
    return rank, rank_out[:kept], ids_out[:kept]


def cases():
    rng = np.random.default_rng(8)
    uniform = rng.integers(0, 2**32, 300)
    yield "counts of walks", np.minimum(rng.geometric(0.6, 300), 40), uniform
    yield "all visited once", np.ones(300, int), uniform
    yield "one count, one hash", np.full(300, 3), np.full(300, 5)
    yield "hashes that are not uniform", rng.integers(1, 4, 300), uniform % 7
    yield "largest hashes", rng.integers(1, 4, 300), np.full(300, 2**32 - 1)
    yield "every count once", np.arange(1, 301), uniform


@pytest.mark.parametrize("size", [1, 10, 50, 299, 300, 400])
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_the_best_are_among_what_is_kept(case, size):
    _, counts, hashes = case
    rank, kept, ids = nearly_sorted(counts, hashes, size)
    assert len({*ids.tolist()}) == len(ids) >= min(size, len(rank))
    np.testing.assert_array_equal(kept, rank[ids])
    best = np.sort(rank)[::-1][: min(size, len(rank))]
    np.testing.assert_array_equal(np.sort(kept)[::-1][: len(best)], best)


def test_higher_counts_come_first_and_hashes_nearly_in_order():
    rng = np.random.default_rng(9)
    counts = np.minimum(rng.geometric(0.5, 500), 30)
    _, kept, _ = nearly_sorted(counts, rng.integers(0, 2**32, 500), 100)
    by_count = (kept >> np.uint64(32)).astype(np.int64)
    assert (np.diff(by_count) <= 0).all()
    # An insertion sort moves each by a few positions only.
    exact = np.argsort(np.argsort(-kept.astype(np.float64), kind="stable"), kind="stable")
    assert np.abs(exact - np.arange(len(kept))).max() < 25
