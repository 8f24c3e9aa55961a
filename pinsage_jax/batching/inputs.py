"""Input vectors of nodes: stored features, spectral features, log-degree, node type.

The paper's input is visual features, text features and log-degree (Ying et al. 2018,
section 4.1).  The degree, and the spectral features of --spectral_dim (sampling/spectral.py),
depend on the graph in use and on what a training pair may see, so they are computed when a
node is read and not stored with the features.  With collections as nodes of the model
(--neighborhood=all) a type column is appended too, and a collection's features are zeros:
only items have content.

Axis letters: N nodes of the model, n rows read, D input features, F stored feature
columns, r spectral dimensions, E columns that a device table lacks (degree, isolation
and type).
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.batching import block_kernels
from pinsage_jax.core import files
from pinsage_jax.sampling.spectral import SpectralFeatures

# log(1 + degree) runs to about ten; features have unit length.
_DEGREE_SCALE = 0.1
_SCALE_ROWS = 100_000


def feature_scale(features: np.ndarray, whiten: float) -> np.ndarray:
    """Factors of the feature columns, float32 [F].

    Columns are divided by rms ** whiten (0 leaves them, 1 makes all equally large)
    and then all by one number, so that rows have length one in the root mean square.
    Measured on at most 100,000 rows, evenly spaced; rows of zeros (items without
    features) do not count.
    """
    rows = features[:: max(len(features) // _SCALE_ROWS, 1)].astype(np.float32)
    rows = rows[np.any(rows != 0, axis=1)]
    if not rows.size:
        return np.ones(features.shape[1], np.float32)
    power = np.mean(np.square(rows, dtype=np.float64), axis=0)
    # A column that is (nearly) always zero must not be blown up.
    scale = np.maximum(power, 1e-6 * power.max()) ** (-0.5 * whiten)
    return (scale / np.sqrt(np.sum(power * scale**2))).astype(np.float32)


class NodeInputs:
    """Reads rows of the input matrix [N, D].

    The columns are: stored features, spectral features, log-degree, isolated, node type,
    as far as each is used.

    Attributes:
      dim: D, the width of an input vector.
      scale: float32 [F], factors of the feature columns.
    """

    def __init__(
        self,
        features: np.ndarray,
        degree: np.ndarray,
        *,
        isolated_feature: bool = False,
        node_type: bool = False,
        whiten: float = 0.0,
        spectral: SpectralFeatures | None = None,
        scale: np.ndarray | None = None,
    ):
        """Takes stored features [num_items, F] and degrees int32 [N].

        The scale is measured on the features (feature_scale) unless it is given, as it
        must be for features that the network was not trained with.
        """
        self.scale = feature_scale(features, whiten) if scale is None else scale
        self._features = features
        self._degree = degree
        self._spectral = spectral
        self._isolated_feature = isolated_feature
        self._node_type = node_type
        self._first_extra = features.shape[1] + (spectral.dim if spectral else 0)
        extra = 1 + int(isolated_feature) + int(node_type)
        self.dim = self._first_extra + extra

    @property
    def table_columns(self) -> tuple[int, int]:
        """(F, r): widths of what `table` holds."""
        width = self._features.shape[1]
        return width, self._first_extra - width

    @property
    def table_shape(self) -> tuple[int, int]:
        """(N, D) of the table: items, and collections where they are nodes of the model."""
        return len(self._degree if self._node_type else self._features), self.dim

    @property
    def table_bytes(self) -> int:
        """Size of the table in float32."""
        nodes, width = self.table_shape
        return 4 * nodes * width

    def table(self, nodes: range | None = None) -> np.ndarray:
        """float32 [n, D] of `nodes` (all of them: None), as `gather` reads them with all edges.

        The last E columns are zeros: a batch brings its own (`gather_for_table`).
        """
        wanted = range(self.table_shape[0]) if nodes is None else nodes
        rows = np.arange(wanted.start, wanted.stop, wanted.step, dtype=np.int32)
        out = np.zeros((len(rows), self.dim), np.float32)
        self._gather_stored(rows, self._degree[rows], np.full(len(rows), -1, np.int32), out)
        return out

    def gather(
        self,
        nodes: np.ndarray,
        rows: int | None = None,
        *,
        masked_collection: np.ndarray | None = None,
        isolated: np.ndarray | None = None,
    ) -> np.ndarray:
        """Input vectors of `nodes` (int32 [n]) as float32 [rows, D], zero-padded.

        Args:
          masked_collection: int32 [n], the collection (a node id) that a node is read
            without, or -1.
          isolated: bool [n], nodes read as if they had no edges.
        """
        used = len(nodes)
        out = np.zeros((used if rows is None else rows, self.dim), np.float32)
        if masked_collection is None:
            masked_collection = np.full(used, -1, np.int32)
        degree = self._visible_degree(nodes, masked_collection, isolated)
        self._gather_stored(nodes, degree, masked_collection, out)
        self._write_extras(nodes, degree, out[:used, self._first_extra :])
        return out

    def release(self) -> None:
        """Drops the pages of mapped features from the memory of the process."""
        files.release(self._features)

    def gather_for_table(
        self,
        nodes: np.ndarray,
        rows: int,
        *,
        masked_collection: np.ndarray,
        isolated: np.ndarray,
        first: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The columns of `gather` that `table` does not have.

        Args:
          nodes, rows, masked_collection, isolated: as in `gather`; only the first `first`
            rows may have a masked collection.

        Returns:
          extras float32 [rows, E], spectral features float32 [first, r] of the first rows,
          and bool [rows]: whether a row after them has the spectral features of the
          table, rather than zeros.
        """
        used = len(nodes)
        degree = self._visible_degree(nodes, masked_collection, isolated)
        extras = np.zeros((rows, self.dim - self._first_extra), np.float32)
        self._write_extras(nodes, degree, extras[:used])
        has_spectral = np.zeros(rows, np.bool_)
        has_spectral[:used] = degree > 0
        spectral_features = np.zeros((first, self.table_columns[1]), np.float32)
        if self._spectral is not None:
            head = slice(min(first, used))
            self._spectral.gather(
                nodes[head], degree[head], masked_collection[head], spectral_features[head]
            )
        return extras, spectral_features, has_spectral

    def _visible_degree(self, nodes, masked_collection, isolated) -> np.ndarray:
        """Edges int32 [n] that are neither masked nor dropped."""
        degree = self._degree[nodes] - (masked_collection >= 0)
        return degree if isolated is None else np.where(isolated, 0, degree)

    def _write_extras(self, nodes, degree, out) -> None:
        """The last E columns, after the stored and the spectral features."""
        out[:, 0] = _DEGREE_SCALE * np.log1p(degree)
        column = 1
        if self._isolated_feature:
            out[:, column] = _DEGREE_SCALE * (degree == 0)
            column += 1
        if self._node_type:
            out[:, column] = nodes >= self._features.shape[0]

    def _gather_stored(self, nodes, degree, masked_collection, out) -> None:
        """Stored and spectral features of `nodes` into the first columns and rows of `out`."""
        width = self._features.shape[1]
        if width:
            self._gather_features(nodes, out)
        if self._spectral is not None:
            columns = out[: len(nodes), width : self._first_extra]
            self._spectral.gather(nodes, degree, masked_collection, columns)

    def _gather_features(self, nodes: np.ndarray, out: np.ndarray) -> None:
        """Scaled features of `nodes` into the first columns of `out`."""
        if self._features.dtype != np.float16:
            block_kernels.gather_rows(self._features, self.scale, nodes, len(nodes), out)
            return
        # Numba has no float16 on the CPU.
        rows = np.flatnonzero(nodes < len(self._features))
        out[rows, : self._features.shape[1]] = self._features[nodes[rows]] * self.scale
