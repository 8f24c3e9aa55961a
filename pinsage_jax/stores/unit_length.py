"""Vectors of unit length whose cosines order items as inner products do.

Some stores know cosine alone.  With R the length of the longest item, one more coordinate

  item x    ->  [x, sqrt(R^2 - |x|^2)] / R
  query q   ->  [q, 0] / |q|

gives every vector the length 1, and the cosine of a query and an item is q.x / (R |q|): for one
query a constant times the inner product (Bachrach et al. 2014).  An item that is a query is
written as a query; the vector stored for it has another last coordinate.

  n vectors, d dimensions
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.core.errors import UserError

# A vector of this length beyond R is as long as R up to rounding.
_ROUNDING = 1e-6


def radius_of(vectors: np.ndarray) -> float:
    """Length of the longest of vectors float32 [n, d]; 1.0 if there is none but zeros."""
    lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1))
    return float(lengths.max(initial=0.0)) or 1.0


def unit_items(vectors: np.ndarray, radius: float) -> np.ndarray:
    """Items [n, d] as vectors of unit length, float32 [n, d + 1].

    Args:
      radius: R, at least the length of every vector.

    Raises:
      UserError: a vector is longer, so that no coordinate gives it the length 1.
    """
    wide = np.asarray(vectors, np.float64) / radius
    squared = np.square(wide).sum(axis=1)
    if (longest := float(squared.max(initial=0.0))) > 1.0 + _ROUNDING:
        raise UserError(
            f"A vector is {longest**0.5:.6f} times as long as the longest item of the export "
            f"(radius {radius:g}); write the whole export again with --mode=export --unit_length."
        )
    last = np.sqrt(np.maximum(1.0 - squared, 0.0))
    return np.concatenate([wide, last[:, None]], axis=1).astype(np.float32)


def unit_queries(vectors: np.ndarray) -> np.ndarray:
    """Queries [n, d] as vectors of unit length, float32 [n, d + 1]; zeros stay zeros."""
    wide = np.asarray(vectors, np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return np.pad(wide / np.maximum(lengths, 1e-300), ((0, 0), (0, 1))).astype(np.float32)
