"""What a vector space looks like: cosines of random pairs and a flat projection.

PinSage section 4.3 and Figure 4: similarities that spread widely keep items apart,
and the kurtosis of their distribution says how much of it sits in a narrow peak.

  N items, D dimensions, P pairs
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Pairs compared at once; rows may have thousands of numbers.
_PAIRS_AT_ONCE = 4096
_NARROWEST = 0.004


def random_cosines(
    vectors: np.ndarray, pairs: int, generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Cosines of random pairs of different rows.

    Args:
      vectors: float [N, D]; may be memory-mapped.
      generator: consumed.

    Returns:
      float64 [at most pairs] and the share of pairs left out because a row has length 0
      (1.0 where there are no pairs).
    """
    count = len(vectors)
    if count < 2 or vectors.shape[1] == 0:
        return np.empty(0), 1.0
    left = generator.integers(0, count, pairs)
    # A step of 1 to N - 1 around the circle never ends where it began.
    right = (left + generator.integers(1, count, pairs)) % count
    found = []
    for start in range(0, pairs, _PAIRS_AT_ONCE):
        chosen = slice(start, start + _PAIRS_AT_ONCE)
        one = np.asarray(vectors[left[chosen]], np.float64)
        other = np.asarray(vectors[right[chosen]], np.float64)
        length = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        product = np.einsum("pd,pd->p", one, other)
        found.append(np.clip(product[length > 0] / length[length > 0], -1.0, 1.0))
    cosines = np.concatenate(found)
    return cosines, 1.0 - len(cosines) / pairs


def kurtosis(values: np.ndarray) -> float:
    """Excess kurtosis (0 for a normal distribution) of float [n]; NaN if all are equal."""
    centered = np.asarray(values, np.float64) - np.mean(values) if len(values) else np.empty(0)
    variance = np.mean(np.square(centered)) if len(values) else 0.0
    if variance < 1e-20:
        return float("nan")
    return float(np.mean(centered**4) / variance**2 - 3.0)


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Density of cosines on a grid, float64 [g], by a Gaussian kernel.

    The kernel's width follows Silverman's rule.  What it would put outside [-1, 1] is
    folded back, so that the density has area 1 inside.

    Args:
      values: float64 [n] in [-1, 1], n > 0.
      grid: float64 [g] in [-1, 1].
    """
    spread = np.std(values)
    quartiles = np.quantile(values, [0.25, 0.75])
    if (middle := (quartiles[1] - quartiles[0]) / 1.34) > 0:
        spread = min(spread, middle)
    width = max(0.9 * spread * len(values) ** -0.2, _NARROWEST)
    total = np.zeros(len(grid))
    for start in range(0, len(values), _PAIRS_AT_ONCE):
        part = values[start : start + _PAIRS_AT_ONCE]
        for images in (part, 2.0 - part, -2.0 - part):
            total += np.exp(-0.5 * np.square((grid[:, None] - images) / width)).sum(axis=1)
    return total / (len(values) * width * np.sqrt(2.0 * np.pi))


@dataclasses.dataclass(frozen=True)
class Projection:
    """Rows of unit length on their two main axes.

    Attributes:
      rows: int64 [n], ascending: which rows were drawn.
      points: float64 [n, 2].
      kept: share of the variance that the two axes hold.
    """

    rows: np.ndarray
    points: np.ndarray
    kept: float


def projection(
    vectors: np.ndarray, most: int, generator: np.random.Generator, seed: int
) -> Projection | None:
    """Principal components of at most `most` rows; None if they all point the same way.

    Args:
      vectors: float [N, D]; may be memory-mapped.
      generator: consumed; draws the rows.
      seed: of the randomized decomposition.
    """
    from sklearn.decomposition import PCA

    count = len(vectors)
    rows = np.sort(generator.choice(count, min(count, most), replace=False))
    if len(rows) < 3 or vectors.shape[1] < 2:
        return None
    sample = np.asarray(vectors[rows], np.float64)
    length = np.linalg.norm(sample, axis=1)
    rows, sample = rows[length > 0], sample[length > 0] / length[length > 0, None]
    if len(rows) < 3 or sample.var(axis=0).sum() < 1e-12:
        return None
    model = PCA(2, svd_solver="randomized", iterated_power=7, random_state=seed)
    points = model.fit_transform(sample)
    return Projection(rows, points, float(model.explained_variance_ratio_.sum()))
