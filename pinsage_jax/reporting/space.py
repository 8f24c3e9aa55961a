"""Statistics of a vector space: cosine similarities of random pairs, and a 2-D projection.

Ying et al. 2018, section 4.3 and Figure 4: widely spread similarities separate unrelated
items; the kurtosis of their distribution measures how much of it is in a narrow peak.

  N vectors, D dimensions, n values
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Pairs per block; vectors may have thousands of dimensions.
_PAIR_BLOCK = 4096
_MIN_BANDWIDTH = 0.004


def random_cosines(
    vectors: np.ndarray, pairs: int, generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Cosine similarities of random pairs of distinct vectors.

    Args:
      vectors: float [N, D]; may be memory-mapped.
      pairs: number of pairs.
      generator: source of the draws; its state advances.

    Returns:
      The cosines float64 [at most pairs], and the share of pairs that were dropped because a
      vector has length 0 (1.0 if there are no pairs).
    """
    count = len(vectors)
    if count < 2 or vectors.shape[1] == 0:
        return np.empty(0), 1.0
    first = generator.integers(0, count, pairs)
    # A shift of 1 to N - 1 modulo N always gives another row.
    second = (first + generator.integers(1, count, pairs)) % count
    blocks = []
    for start in range(0, pairs, _PAIR_BLOCK):
        chosen = slice(start, start + _PAIR_BLOCK)
        first_rows = np.asarray(vectors[first[chosen]], np.float64)
        second_rows = np.asarray(vectors[second[chosen]], np.float64)
        length = np.linalg.norm(first_rows, axis=1) * np.linalg.norm(second_rows, axis=1)
        product = np.einsum("pd,pd->p", first_rows, second_rows)
        blocks.append(np.clip(product[length > 0] / length[length > 0], -1.0, 1.0))
    cosines = np.concatenate(blocks)
    return cosines, 1.0 - len(cosines) / pairs


def kurtosis(values: np.ndarray) -> float:
    """Excess kurtosis (0 for a normal distribution) of values float [n]; NaN if all are equal."""
    centered = np.asarray(values, np.float64) - np.mean(values) if len(values) else np.empty(0)
    variance = np.mean(np.square(centered)) if len(values) else 0.0
    if variance < 1e-20:
        return float("nan")
    return float(np.mean(centered**4) / variance**2 - 3.0)


def density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Gaussian kernel density estimate of cosines.

    The bandwidth follows Silverman's rule.  Mass beyond the ends of [-1, 1] is reflected, so
    that the density integrates to 1 inside.

    Args:
      values: float64 [n] in [-1, 1], n > 0.
      grid: float64 [g] in [-1, 1].

    Returns:
      The density float64 [g] at the grid's points.
    """
    spread = np.std(values)
    quartiles = np.quantile(values, [0.25, 0.75])
    if (robust_spread := (quartiles[1] - quartiles[0]) / 1.34) > 0:
        spread = min(spread, robust_spread)
    bandwidth = max(0.9 * spread * len(values) ** -0.2, _MIN_BANDWIDTH)
    total = np.zeros(len(grid))
    for start in range(0, len(values), _PAIR_BLOCK):
        block = values[start : start + _PAIR_BLOCK]
        for images in (block, 2.0 - block, -2.0 - block):
            total += np.exp(-0.5 * np.square((grid[:, None] - images) / bandwidth)).sum(axis=1)
    return total / (len(values) * bandwidth * np.sqrt(2.0 * np.pi))


@dataclasses.dataclass(frozen=True)
class Projection:
    """A sample of vectors, scaled to unit length, on their first two principal components.

    Attributes:
      rows: int64 [n], ascending, rows of the sample.
      points: float64 [n, 2].
      explained_variance: share of the variance that the two components explain.
    """

    rows: np.ndarray
    points: np.ndarray
    explained_variance: float


def projection(
    vectors: np.ndarray, limit: int, generator: np.random.Generator, seed: int
) -> Projection | None:
    """Projects a sample of vectors onto its first two principal components.

    Args:
      vectors: float [N, D]; may be memory-mapped.
      limit: upper bound on the size of the sample.
      generator: draws the sample; its state advances.
      seed: seed of the randomized decomposition.

    Returns:
      The projection; None if there are fewer than three vectors with a direction, or if all
      have the same.
    """
    from sklearn.decomposition import PCA

    count = len(vectors)
    rows = np.sort(generator.choice(count, min(count, limit), replace=False))
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
