"""What an exported vector looks like: rotated, truncated, rounded; and back to float32.

  exported = rounded(vector @ transform)

`transform` [Z, d] keeps inner products as well as d numbers can: the leading principal
directions of the second moment (for queries that are spread as the items are), turned
towards an earlier export where one is to be matched.  Where the last coordinate is an
item's popularity it stays itself, as the last of the d.

int8 has one scale per vector, its largest absolute number over 127.  The popularity is
some ten times as large as any other coordinate and would take the steps of all others,
so it has a scale of its own and is kept exactly.

Shapes: n vectors, Z coordinates of an embedding, d exported ones, G groups of scales.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.linalg import block_diag, eigh

_ROWS = 1 << 16
_STEPS = 127


@dataclasses.dataclass(frozen=True, eq=False)
class ExportForm:
    """How vectors are written.

    Attributes:
      dtype: float32, float16 or int8.
      last_apart: whether the last coordinate is a popularity, which nothing rotates.
      transform: float32 [Z, d]; None: vectors as they are.
    """

    dtype: str = "float32"
    last_apart: bool = False
    transform: np.ndarray | None = None

    @property
    def scale_columns(self) -> tuple[str, ...]:
        """Names of the scales that a vector has."""
        if self.dtype != "int8":
            return ()
        return ("scale", "last_scale") if self.last_apart else ("scale",)

    @property
    def is_exact(self) -> bool:
        """Whether inner products are those of the vectors, up to the rounding of float32."""
        return self.dtype == "float32" and (
            self.transform is None or self.transform.shape[0] == self.transform.shape[1]
        )

    def moved(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, d]: rotated and truncated, not yet rounded."""
        vectors = np.asarray(vectors, np.float32)
        return vectors if self.transform is None else vectors @ self.transform

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored numbers [n, d] of `dtype` and scales float32 [n, G] of vectors [n, Z]."""
        moved = self.moved(vectors)
        if self.dtype != "int8":
            none = np.empty((len(moved), 0), np.float32)
            return np.ascontiguousarray(moved, np.dtype(self.dtype)), none
        scales, codes = [], np.empty(moved.shape, np.int8)
        for part in self._groups(moved.shape[1]):
            largest = np.abs(moved[:, part]).max(axis=1, initial=0.0)
            scale = np.where(largest > 0, largest / _STEPS, 1.0).astype(np.float32)
            codes[:, part] = np.rint(moved[:, part] / scale[:, None])
            scales.append(scale)
        return codes, np.stack(scales, axis=1)

    def decode(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """float32 [n, d] of what `encode` gives."""
        vectors = np.asarray(codes).astype(np.float32)
        if self.dtype == "int8":
            for group, part in enumerate(self._groups(codes.shape[1])):
                vectors[:, part] *= scales[:, group : group + 1]
        return vectors

    def _groups(self, width: int) -> list[slice]:
        cut = width - int(self.last_apart)
        return [slice(0, cut), slice(cut, width)][: len(self.scale_columns)]


class StoredVectors:
    """Vectors as a reader of the export would find them, made when rows are read.

    Attributes:
      shape: (n, d).
    """

    def __init__(self, vectors: np.ndarray, form: ExportForm, chosen: np.ndarray | None = None):
        """Takes vectors [N, Z] and the rows int [n] that there are; None: all."""
        self._vectors, self._form, self._chosen = vectors, form, chosen
        width = vectors.shape[1] if form.transform is None else form.transform.shape[1]
        self.shape = len(vectors if chosen is None else chosen), width

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 rows, by slice or by index."""
        rows = rows if self._chosen is None else self._chosen[rows]
        return self._form.decode(*self._form.encode(self._vectors[rows]))


def principal_directions(vectors: np.ndarray, dim: int, last_apart: bool) -> np.ndarray:
    """float32 [Z, dim], orthonormal columns that keep the inner products of vectors [n, Z].

    Raises:
      ValueError: `dim` is not below Z or leaves no room beside the popularity.
    """
    width, apart = vectors.shape[1], int(last_apart)
    if not apart < dim <= width:
        raise ValueError(f"{dim} of {width} dimensions")
    moment = np.zeros((width - apart, width - apart))
    for begin in range(0, len(vectors), _ROWS):
        rows = np.asarray(vectors[begin : begin + _ROWS, : width - apart], np.float64)
        moment += rows.T @ rows
    first = width - dim  # eigenvalues come in ascending order
    _, directions = eigh(moment, subset_by_index=[first, width - apart - 1])
    # The sign of an eigenvector is free: the largest number of each is made positive.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    directions = (directions * np.sign(largest))[:, ::-1]
    return with_last(directions, last_apart)


def with_last(rotation: np.ndarray, last_apart: bool) -> np.ndarray:
    """A map of the other coordinates as a map of all: float32, the last one kept."""
    whole = block_diag(rotation, np.ones((1, 1))) if last_apart else rotation
    return whole.astype(np.float32)
