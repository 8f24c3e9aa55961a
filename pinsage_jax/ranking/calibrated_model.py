"""Logistic regression of a few features and of their products, by Newton's method in float64.

What a feature tells depends on others: visits of a walk tell more where the query has few edges,
and content more where there are no visits.  Products say so.  Their penalty is so much higher that
few pairs leave them near 0.  The same rows give the same model.

n rows, F features
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

# Penalties of the squares of the weights of standardized features, and of their products.
_RIDGE, _PRODUCT_RIDGE = 1.0, 1000.0
# Products are of standardized features cut to this size: squares of outliers would decide alone.
_MOST_DEVIATIONS = 6.0
_STEPS, _TOLERANCE = 50, 1e-5
# Log-odds beyond this are as good as certain; they would overflow exp.
_LARGEST = 30.0
_ROWS_AT_ONCE = 1 << 13


@dataclasses.dataclass(frozen=True, eq=False)
class CalibratedModel:
    """Log-odds as a weighted sum of features and of products of two standardized features.

    Attributes:
      weights: float64 [F].
      intercept: log-odds where all features are 0 and have no products.
      products: float64 [F, F], weights of the products, 0 below the diagonal; None: no products.
      center, scale: float64 [F], by which features are standardized for them: (x - center) scale.
    """

    weights: np.ndarray
    intercept: float
    products: np.ndarray | None = None
    center: np.ndarray | None = None
    scale: np.ndarray | None = None

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Log-odds float32 [...] of features [..., F]."""
        found = features @ self.weights.astype(np.float32) + self.intercept
        if self.products is not None and self.center is not None and self.scale is not None:
            center, scale = self.center.astype(np.float32), self.scale.astype(np.float32)
            parts = _cut((features - center) * scale)
            found += np.einsum("...f,...f->...", parts @ self.products.astype(np.float32), parts)
        return found.astype(np.float32)

    def as_json(self) -> dict[str, Any]:
        """The parameters as JSON values, which `from_json` reads."""
        found = dataclasses.asdict(self)
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in found.items()
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> CalibratedModel:
        """Restores the model that `as_json` returned."""
        arrays = {
            name: None if saved[name] is None else np.asarray(saved[name], np.float64)
            for name in ("products", "center", "scale")
        }
        return cls(np.asarray(saved["weights"], np.float64), float(saved["intercept"]), **arrays)


def fit(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> CalibratedModel:
    """Fits the probability of a label by maximum likelihood with L2 penalties.

    The penalties are on the weights of standardized features and their products, so that the
    units of a feature do not matter, and not on the intercept.

    Args:
      features: float [n, F].
      labels: bool [n], at least one of each.
      weights: float [n], how often each row counts.

    Raises:
      ValueError: all labels are equal.
    """
    if labels.all() or not labels.any():
        raise ValueError("there must be rows of both labels")
    y, counts = (np.asarray(array, np.float64) for array in (labels, weights))
    x, total = np.asarray(features), counts.sum()
    center = counts @ x / total
    spread = np.sqrt(counts @ np.square(x - center) / total)
    # A constant feature carries no information and gets weight 0.
    scale = np.where(spread > 1e-9, 1.0 / np.maximum(spread, 1e-9), 0.0)
    width = len(center)
    pairs = np.triu_indices(width)
    penalty = np.concatenate(
        [np.full(width, _RIDGE), np.full(len(pairs[0]), _PRODUCT_RIDGE), np.zeros(1)]
    )
    share = counts @ y / total
    solution = np.zeros(len(penalty))
    solution[-1] = np.log(share / (1.0 - share))
    # Blocks are too small for several threads, whose sums would also differ by their number.
    with threadpool_limits(1, "blas"):
        for _ in range(_STEPS):
            gradient, hessian = penalty * solution, np.diag(penalty + 1e-9)
            for begin in range(0, len(x), _ROWS_AT_ONCE):
                part = slice(begin, begin + _ROWS_AT_ONCE)
                rows = _design((x[part] - center) * scale, pairs)
                odds = np.clip(rows @ solution, -_LARGEST, _LARGEST)
                probability = 1.0 / (1.0 + np.exp(-odds))
                gradient += rows.T @ (counts[part] * (probability - y[part]))
                curvature = counts[part] * probability * (1.0 - probability)
                hessian += rows.T @ (rows * curvature[:, None])
            step = np.linalg.solve(hessian, gradient)
            # Newton's step can overshoot far from the solution.
            solution -= step / max(1.0, float(np.abs(step).max()))
            if np.abs(step).max() < _TOLERANCE:
                break
    unscaled = solution[:width] * scale
    products = np.zeros((width, width))
    products[pairs] = solution[width:-1]
    return CalibratedModel(
        unscaled, float(solution[-1] - unscaled @ center), products, center, scale
    )


def _design(standardized: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The features [n, F], their products and 1, float64 [n, F + F (F + 1) / 2 + 1]."""
    parts = _cut(standardized)
    products = parts[:, pairs[0]] * parts[:, pairs[1]]
    return np.concatenate([standardized, products, np.ones((len(parts), 1))], axis=1)


def _cut(standardized: np.ndarray) -> np.ndarray:
    return np.clip(standardized, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
