"""Where the items lie on the map: a layout by UMAP, or the two main axes of the embeddings.

UMAP (McInnes et al. 2018, arXiv:1802.03426) lays out a graph of nearest neighbors, so that an
item's neighbors on the map are mostly its neighbors by embedding.  How many of them are is
measured for either layout.

  N vectors, D dimensions, n items on the map
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
import warnings

import numpy as np
from absl import logging

from pinsage_jax.evaluation.metrics import keyed_generator
from pinsage_jax.reporting import space
from pinsage_jax.retrieval.topk import top_k

# Dots on the map; more would only hide each other.
MAX_DOTS = 50_000
# With fewer items UMAP takes longer to load than it helps.
_MIN_UMAP_ITEMS = 1000
_UMAP_NEIGHBORS = 15
# Least distance of dots: more than usual, so that dots of a small group can be told apart.
_UMAP_MIN_DIST = 0.25
# Neighbors whose share on the map is measured, and items that it is measured for.
MEASURED_NEIGHBORS = 10
_MEASURED_ITEMS = 2000


@dataclasses.dataclass(frozen=True)
class Layout:
    """Items on a plane.

    Attributes:
      rows: int64 [n], ascending, the items on the map.
      points: float64 [n, 2].
      kept: share of an item's nearest items by cosine that are its nearest on the map too; NaN
        for fewer than four items.
      description: how they were laid out.
    """

    rows: np.ndarray
    points: np.ndarray
    kept: float
    description: str


def lay_out(directions: np.ndarray, seed: int, layout: str = "auto") -> Layout | None:
    """Lays out the items, or a sample of MAX_DOTS of them.

    Args:
      directions: float [N, D]; may be memory-mapped.
      seed: key of the sample and of the layout.
      layout: "umap", "pca", or "auto": UMAP if it is installed, for 1,000 items or more.

    Returns:
      The layout; None if fewer than three vectors have a direction, or if all have the same.
    """
    flat = space.projection(directions, MAX_DOTS, keyed_generator(seed, "explorer map"), seed)
    if flat is None:
        return None
    rows, points = flat.rows, flat.points
    sample = np.asarray(directions[rows], np.float32)
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    description = (
        "the first two principal components of their embeddings, which explain "
        f"{flat.explained_variance:.0%} of the variance"
    )
    if _wants_umap(layout, len(rows)):
        found = _umap(sample, points, seed)
        if found is not None:
            points, description = found, "UMAP of their embeddings"
    return Layout(rows, points, kept_neighbors(sample, points, seed), description)


def _wants_umap(layout: str, count: int) -> bool:
    if layout == "umap":
        # UMAP cannot lay out fewer items than it compares.
        return count > 2 * _UMAP_NEIGHBORS
    installed = importlib.util.find_spec("umap") is not None
    if layout == "auto" and count >= _MIN_UMAP_ITEMS and not installed:
        logging.info(
            "explorer: the map shows two principal components; with UMAP more neighbors would "
            "lie together (pip install 'pinsage-jax[map]')."
        )
    return layout == "auto" and count >= _MIN_UMAP_ITEMS and installed


def _umap(sample: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray | None:
    """UMAP of vectors of unit length, beginning with their projection; None if it fails."""
    began = time.monotonic()
    rows = np.arange(len(sample))
    ids, cosines = top_k(sample, sample, _UMAP_NEIGHBORS - 1, rows)
    # Of unit vectors, the Euclidean distance orders as the cosine does.
    distances = np.sqrt(np.maximum(2.0 - 2.0 * cosines, 0.0)).astype(np.float32)
    known = (
        np.concatenate([rows[:, None].astype(np.int32), ids], axis=1),
        np.concatenate([np.zeros((len(rows), 1), np.float32), distances], axis=1),
        None,
    )
    initial = (10.0 * start / max(np.abs(start).max(), 1e-12)).astype(np.float32)
    with warnings.catch_warnings():
        # It warns of one thread, which a fixed seed needs.
        warnings.simplefilter("ignore")
        import umap

        model = umap.UMAP(
            n_neighbors=_UMAP_NEIGHBORS,
            min_dist=_UMAP_MIN_DIST,
            precomputed_knn=known,
            init=initial,
            random_state=seed,
            n_jobs=1,
        )
        points = np.asarray(model.fit_transform(sample), np.float64)
    if not np.isfinite(points).all():
        logging.warning("explorer: UMAP failed; the map shows two principal components.")
        return None
    logging.info("explorer: UMAP laid out the map in %.0f s", time.monotonic() - began)
    return points


def kept_neighbors(sample: np.ndarray, points: np.ndarray, seed: int) -> float:
    """Share of the nearest items by cosine that are among as many nearest on the map.

    Args:
      sample: float32 [n, D], of unit length.
      points: float64 [n, 2].
      seed: key of the items that it is measured for.
    """
    from sklearn.neighbors import NearestNeighbors

    count = len(sample)
    k = min(MEASURED_NEIGHBORS, count - 2)
    if k < 2:
        return float("nan")
    generator = keyed_generator(seed, "explorer kept neighbors")
    chosen = np.sort(generator.choice(count, min(count, _MEASURED_ITEMS), replace=False))
    near, _ = top_k(sample[chosen], sample, k, chosen)
    flat = NearestNeighbors(n_neighbors=k + 1).fit(points)
    shares = []
    for row, wanted, found in zip(chosen, near, flat.kneighbors(points[chosen])[1]):
        others = found[found != row][:k]
        shares.append(len(np.intersect1d(wanted, others)) / k)
    return float(np.mean(shares))
