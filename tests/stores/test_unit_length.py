"""One more coordinate gives vectors the length 1 and leaves the order of inner products."""

import numpy as np
import pytest

from pinsage_jax.core.errors import UserError
from pinsage_jax.stores.unit_length import radius_of, unit_items, unit_queries


@pytest.mark.parametrize("dimension", [1, 3, 16, 129])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_cosines_order_items_as_inner_products_do(dimension, spread, small_rng):
    # Whole numbers: products and their ties are exact.
    items = small_rng.integers(-9, 10, (60, dimension)).astype(np.float32)
    items *= np.round(np.exp(spread * small_rng.normal(size=(60, 1))) * 4).astype(np.float32) + 1
    queries = np.concatenate([items[:20], small_rng.integers(-9, 10, (20, dimension))])
    queries = queries.astype(np.float32)
    queries = queries[np.any(queries != 0, axis=1)]
    stored = unit_items(items, radius_of(items))
    asked = unit_queries(queries)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(asked, axis=1), 1.0, atol=1e-6)
    products, cosines = queries @ items.T, asked.astype(np.float64) @ stored.T
    for exact, found in zip(products, cosines, strict=True):
        order = np.argsort(-found, kind="stable")
        assert np.all(np.diff(exact[order]) <= 0) or _only_ties(exact, found)


def _only_ties(exact: np.ndarray, found: np.ndarray) -> bool:
    """Whether pairs in another order have equal inner products."""
    less = exact[:, None] < exact[None, :]
    return not np.any(less & (found[:, None] >= found[None, :]))


def test_a_stored_vector_is_not_a_query(small_rng):
    items = small_rng.normal(size=(40, 4)).astype(np.float32)
    items[:5] *= 0.01
    stored = unit_items(items, radius_of(items))
    wrong = stored[:5] @ stored.T
    right = unit_queries(items[:5]) @ stored.T
    exact = np.argsort(-(items[:5] @ items.T), axis=1)
    assert np.array_equal(np.argsort(-right, axis=1), exact)
    assert not np.array_equal(np.argsort(-wrong, axis=1), exact)


def test_zeros_and_vectors_that_are_too_long():
    zeros = np.zeros((2, 3), np.float32)
    assert radius_of(zeros) == 1.0 and radius_of(zeros[:0]) == 1.0
    np.testing.assert_array_equal(unit_items(zeros, 1.0), np.eye(4)[[3, 3]])
    np.testing.assert_array_equal(unit_queries(zeros), np.zeros((2, 4)))
    with pytest.raises(UserError, match=r"2\.000000 times as long as the longest item"):
        unit_items(np.full((1, 1), 2.0, np.float32), 1.0)
