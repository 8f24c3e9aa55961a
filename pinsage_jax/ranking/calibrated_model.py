"""Logistic regression of a few features, fitted by Newton's method in float64, deterministic.

n rows, F features
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_RIDGE = 1.0
_STEPS, _TOLERANCE = 50, 1e-6
# Log-odds beyond this are as good as certain; they would overflow exp.
_LARGEST = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class CalibratedModel:
    """Log-odds as a weighted sum of features.

    Attributes:
      weights: float64 [F].
      intercept: log-odds where all features are 0.
    """

    weights: np.ndarray
    intercept: float

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Log-odds float32 [...] of features [..., F]."""
        return (features @ self.weights.astype(np.float32) + self.intercept).astype(np.float32)

    def as_json(self) -> dict[str, Any]:
        """The parameters as JSON values, which `from_json` reads."""
        return {"weights": self.weights.tolist(), "intercept": self.intercept}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> CalibratedModel:
        """Restores the model that `as_json` returned."""
        return cls(np.asarray(saved["weights"], np.float64), float(saved["intercept"]))


def fit(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> CalibratedModel:
    """Fits the probability of a label by maximum likelihood with an L2 penalty.

    The penalty is on the weights of standardized features, so that the units of a feature do
    not matter, and not on the intercept.

    Args:
      features: float [n, F].
      labels: bool [n], at least one of each.
      weights: float [n], how often each row counts.

    Raises:
      ValueError: all labels are equal.
    """
    if labels.all() or not labels.any():
        raise ValueError("there must be rows of both labels")
    x, y, counts = (np.asarray(array, np.float64) for array in (features, labels, weights))
    center = counts @ x / counts.sum()
    spread = np.sqrt(counts @ np.square(x - center) / counts.sum())
    # A constant feature carries no information and gets weight 0.
    scale = np.where(spread > 1e-9, 1.0 / np.maximum(spread, 1e-9), 0.0)
    rows = np.column_stack([(x - center) * scale, np.ones(len(x))])
    penalty = np.full(rows.shape[1], _RIDGE)
    penalty[-1] = 0.0
    share = counts @ y / counts.sum()
    solution = np.zeros(rows.shape[1])
    solution[-1] = np.log(share / (1.0 - share))
    for _ in range(_STEPS):
        odds = np.clip(rows @ solution, -_LARGEST, _LARGEST)
        probability = 1.0 / (1.0 + np.exp(-odds))
        gradient = rows.T @ (counts * (probability - y)) + penalty * solution
        curvature = counts * probability * (1.0 - probability)
        hessian = rows.T @ (rows * curvature[:, None]) + np.diag(penalty)
        step = np.linalg.solve(hessian + 1e-9 * np.eye(len(hessian)), gradient)
        # Newton's step can overshoot far from the solution.
        solution -= step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < _TOLERANCE:
            break
    unscaled = solution[:-1] * scale
    return CalibratedModel(unscaled, float(solution[-1] - unscaled @ center))
