"""A fixed projection of features to fewer columns (--input_dim), made once in prepare.

The first matrix products of the network are as wide as the features: of vectors of thousands
of numbers they are most of a step's operations.  A projection makes them narrower for all
that reads features, new items too.

PCA without centering, so that items without features stay zero: the first eigenvectors of
the second moments of at most 65,536 rows, evenly spaced.  Of more than 8,192 columns, whose
moments would take too long, a Gaussian matrix with a fixed seed takes its place; it keeps inner
products up to a relative error of about 1 / sqrt(columns).

Shapes: n rows, F columns of features, d columns after the projection.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.progress import Progress

PROJECTION_FILE, RAW_FILE = "projection.npy", "raw_features.npy"
_FITTED_ROWS = 1 << 16
_MOST_COLUMNS = 8192
_SEED = 0
# Rows of one matrix product.  Their number is fixed, so that a row's bits do not depend on how
# many rows come with it.
_ROWS = 256
_BLOCK_ROWS = 32 * _ROWS


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """A matrix that features are multiplied by.

    Attributes:
      matrix: float32 [F, d].
      method: pca or random.
      kept: share of the sum of squares that PCA keeps; 1 for random.
    """

    matrix: np.ndarray
    method: str
    kept: float

    @classmethod
    def fit(cls, features: np.ndarray, width: int) -> Projection:
        """The projection of float [n, F] to `width` < F columns."""
        columns = features.shape[1]
        if columns > _MOST_COLUMNS:
            draws = np.random.Generator(np.random.Philox(_SEED)).standard_normal((columns, width))
            return cls((draws / math.sqrt(width)).astype(np.float32), "random", 1.0)
        moments = np.zeros((columns, columns))
        step = max(-(-len(features) // _FITTED_ROWS), 1)
        for start in range(0, len(features), step * _BLOCK_ROWS):
            rows = features[start : start + step * _BLOCK_ROWS : step].astype(np.float64)
            moments += rows.T @ rows
        powers, vectors = np.linalg.eigh(moments)
        chosen = vectors[:, ::-1][:, :width]
        # An eigenvector has no sign of its own: the largest entry is positive.
        largest = np.take_along_axis(chosen, np.abs(chosen).argmax(axis=0)[None, :], axis=0)
        total = float(powers.sum())
        kept = float(powers[::-1][:width].sum() / total) if total > 0 else 1.0
        return cls((chosen * np.sign(largest)).astype(np.float32), "pca", kept)

    def apply(self, features: np.ndarray) -> np.ndarray:
        """float32 [n, d] of float [n, F]; the bits of a row do not depend on the others."""
        made = np.empty((len(features), self.matrix.shape[1]), np.float32)
        padded = np.zeros((_ROWS, features.shape[1]), np.float32)
        for start in range(0, len(features), _ROWS):
            rows = features[start : start + _ROWS]
            padded[: len(rows)] = rows
            padded[len(rows) :] = 0.0
            made[start : start + len(rows)] = (padded @ self.matrix)[: len(rows)]
        return made

    def about(self) -> dict[str, Any]:
        """What is recorded of it, as JSON values."""
        before, after = self.matrix.shape
        return {"method": self.method, "from": before, "to": after, "kept": self.kept}

    def save(self, folder: pathlib.Path) -> None:
        """Writes projection.npy."""
        files.write_array(folder / PROJECTION_FILE, self.matrix)

    @classmethod
    def load(cls, folder: pathlib.Path, about: dict[str, Any], columns: int) -> Projection:
        """The projection of a prepared folder.

        Args:
          about: as `about` made it.
          columns: F of the fitted blocks.

        Raises:
          UserError: the file is missing, damaged or of another width.
        """
        path = folder / PROJECTION_FILE
        matrix = np.array(files.read_array(path))
        if matrix.shape != (columns, about["to"]) or matrix.dtype != np.float32:
            raise UserError(f"{path} is damaged; run --mode=prepare again.")
        return cls(matrix, about["method"], about["kept"])


def project_file(raw: pathlib.Path, path: pathlib.Path, width: int, dtype: np.dtype) -> Projection:
    """Fits a projection on the features in `raw`, writes theirs to `path` and deletes `raw`."""
    features = files.read_array(raw)
    projection = Projection.fit(features, width)
    matrix = files.new_array(path, dtype, (len(features), width))
    with Progress(len(features), "row", "projecting features") as progress:
        for start in range(0, len(features), _BLOCK_ROWS):
            rows = features[start : start + _BLOCK_ROWS]
            matrix[start : start + len(rows)] = projection.apply(rows)
            progress.update(len(rows))
    matrix.flush()
    del features
    raw.unlink()
    logging.info(
        "%d columns of features were projected to %d (%s%s).", *projection.matrix.shape,
        projection.method,
        f", {projection.kept:.1%} of the sum of squares" if projection.method == "pca" else "",
    )  # fmt: skip
    return projection
