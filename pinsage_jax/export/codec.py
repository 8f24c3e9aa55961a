"""Codec of exported vectors: projection, quantization, and decoding to float32.

  exported = quantize(vector @ transform)

`transform` [Z, d] preserves inner products as well as d numbers can: its columns are the
leading principal directions of the second moment (optimal for queries distributed like
the items), rotated onto an earlier export where the new one is aligned to it.  If the
last coordinate is a popularity bias, the transform does not mix it with the others: it
stays the last of the d coordinates.

int8 vectors have one scale each: the largest absolute coordinate divided by 127.  The
popularity bias is about ten times as large as any other coordinate, and one common scale
would leave the others too few steps; it has a scale of its own, which keeps it exact.

Shapes: n vectors, Z embedding coordinates, d exported coordinates, G scales per vector.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_ROWS = 1 << 16
_STEPS = 127


@dataclasses.dataclass(frozen=True, eq=False)
class VectorCodec:
    """Encodes and decodes exported vectors.

    Attributes:
      dtype: float32, float16 or int8.
      separate_bias_scale: whether the last coordinate is a popularity bias, which the
        transform leaves alone and int8 stores with a scale of its own.
      transform: float32 [Z, d]; None: the identity.
    """

    dtype: str = "float32"
    separate_bias_scale: bool = False
    transform: np.ndarray | None = None

    @property
    def scale_columns(self) -> tuple[str, ...]:
        """Names of the scales of a vector, in order."""
        if self.dtype != "int8":
            return ()
        return ("scale", "bias_scale") if self.separate_bias_scale else ("scale",)

    @property
    def is_exact(self) -> bool:
        """Whether encoding preserves inner products up to the rounding of float32."""
        return self.dtype == "float32" and (
            self.transform is None or self.transform.shape[0] == self.transform.shape[1]
        )

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Applies the transform to vectors [n, Z]: float32 [n, d], not quantized."""
        vectors = np.asarray(vectors, np.float32)
        return vectors if self.transform is None else vectors @ self.transform

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Projects and quantizes vectors [n, Z].

        Returns:
          codes [n, d] of `dtype` and scales float32 [n, G].
        """
        projected = self.project(vectors)
        if self.dtype != "int8":
            no_scales = np.empty((len(projected), 0), np.float32)
            return np.ascontiguousarray(projected, np.dtype(self.dtype)), no_scales
        scales, codes = [], np.empty(projected.shape, np.int8)
        for part in self._groups(projected.shape[1]):
            largest = np.abs(projected[:, part]).max(axis=1, initial=0.0)
            scale = np.where(largest > 0, largest / _STEPS, 1.0).astype(np.float32)
            codes[:, part] = np.rint(projected[:, part] / scale[:, None])
            scales.append(scale)
        return codes, np.stack(scales, axis=1)

    def decode(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Vectors float32 [n, d] from the codes [n, d] and scales [n, G] of `encode`."""
        vectors = np.asarray(codes).astype(np.float32)
        if self.dtype == "int8":
            for group, part in enumerate(self._groups(codes.shape[1])):
                vectors[:, part] *= scales[:, group : group + 1]
        return vectors

    def _groups(self, width: int) -> list[slice]:
        """The slices of coordinates that share a scale."""
        boundary = width - int(self.separate_bias_scale)
        return [slice(0, boundary), slice(boundary, width)][: len(self.scale_columns)]


class StoredVectors:
    """Vectors as a reader of the export decodes them, computed when rows are read.

    Attributes:
      shape: (n, d).
    """

    def __init__(self, vectors: np.ndarray, codec: VectorCodec, subset: np.ndarray | None = None):
        """Takes vectors [N, Z] and the rows int [n] to present; None: all."""
        self._vectors, self._codec, self._subset = vectors, codec, subset
        width = vectors.shape[1] if codec.transform is None else codec.transform.shape[1]
        self.shape = len(vectors if subset is None else subset), width

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 rows, by slice or by index."""
        rows = rows if self._subset is None else self._subset[rows]
        return self._codec.decode(*self._codec.encode(self._vectors[rows]))


class EncodedRows:
    """Vectors of an export as its codes, decoded when rows are read.

    Attributes:
      shape: (n, d); dtype: float32; ndim: 2.
    """

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, codes: np.ndarray, scales: np.ndarray, codec: VectorCodec):
        """Takes codes [n, d] and scales [n, G], which may be memory-mapped."""
        self._codes, self._scales, self._codec = codes, scales, codec
        self.shape = codes.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """float32 rows, by slice, index or indices."""
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        return self._codec.decode(self._codes[rows], self._scales[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows in memory."""
        return self[:].astype(dtype or np.float32, copy=False)


def principal_directions(vectors: np.ndarray, dim: int, separate_bias: bool) -> np.ndarray:
    """Orthonormal columns that best preserve the inner products of vectors [n, Z].

    Args:
      vectors: float [n, Z].
      dim: d, the number of columns.
      separate_bias: whether the last coordinate is a popularity bias; it then stays the last
        of the d coordinates, unmixed.

    Returns:
      float32 [Z, d].

    Raises:
      ValueError: `dim` exceeds Z, or is so small that nothing but the bias is left.
    """
    # Only where it is used: readers of an export need no SciPy.
    from scipy.linalg import eigh

    width, bias = vectors.shape[1], int(separate_bias)
    if not bias < dim <= width:
        raise ValueError(f"cannot project {width} dimensions onto {dim}")
    moment = np.zeros((width - bias, width - bias))
    for begin in range(0, len(vectors), _ROWS):
        rows = np.asarray(vectors[begin : begin + _ROWS, : width - bias], np.float64)
        moment += rows.T @ rows
    first = width - dim  # eigh returns eigenvalues in ascending order
    _, directions = eigh(moment, subset_by_index=[first, width - bias - 1])
    # The sign of an eigenvector is arbitrary: the largest number of each is made positive.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    directions = (directions * np.sign(largest))[:, ::-1]
    return extend_to_bias(directions, separate_bias)


def extend_to_bias(matrix: np.ndarray, separate_bias: bool) -> np.ndarray:
    """Extends a float matrix by the identity on the bias coordinate, if there is one: float32."""
    extended = np.asarray(matrix, np.float32)
    if separate_bias:
        extended = np.pad(extended, ((0, 1), (0, 1)))
        extended[-1, -1] = 1.0
    return extended
