"""Input vectors of nodes: stored features, place in the graph, log-degree, node type.

The paper's input is visual features, text features and log-degree (section 4.1).
The degree, and the place of --spectral_dim (sampling.structure), belong to the graph
in use and to what a training pair may see, so they are made when a node is read and
not stored with the features.  With collections
as nodes of the model (--neighborhood=all) a type column is appended too, and a
collection's features are zeros: only items have content.
"""

from __future__ import annotations

import numpy as np

from pinsage_jax.batching import block_kernels
from pinsage_jax.sampling.spectral import Structure

# log(1 + degree) runs to about ten; features have unit length.
_DEGREE_SCALE = 0.1
_SCALE_ROWS = 100_000


def feature_scale(features: np.ndarray, whiten: float) -> np.ndarray:
    """Factor of every feature column, float32 [F].

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

    The columns are: stored features, structure, log-degree, edgeless, node type, as
    far as each is used.

    Attributes:
      dim: D, the width of an input vector.
      scale: float32 [F], factors of the feature columns.
    """

    def __init__(
        self,
        features: np.ndarray,
        degree: np.ndarray,
        *,
        degree_feature: bool,
        edgeless_feature: bool = False,
        node_type: bool = False,
        whiten: float = 0.0,
        structure: Structure | None = None,
        scale: np.ndarray | None = None,
    ):
        """Takes stored features [num_items, F] and degrees int32 [N].

        The scale is measured on the features (feature_scale) unless it is given, as it
        must be for features that the network was not trained with.
        """
        self.scale = feature_scale(features, whiten) if scale is None else scale
        self._features = features
        self._degree = degree
        self._structure = structure
        self._degree_feature = degree_feature
        self._edgeless_feature = edgeless_feature
        self._node_type = node_type
        self._first_extra = features.shape[1] + (structure.dim if structure else 0)
        extra = int(degree_feature) + int(edgeless_feature) + int(node_type)
        # A model needs some input even where nothing is known about a node.
        self.dim = max(self._first_extra + extra, 1)

    @property
    def table_columns(self) -> tuple[int, int]:
        """(F, r): widths of what `table` holds."""
        width = self._features.shape[1]
        return width, self._first_extra - width

    @property
    def table_bytes(self) -> int:
        """Size of `table`: items, and collections where they are nodes of the model."""
        return 4 * len(self._degree if self._node_type else self._features) * self.dim

    def table(self) -> np.ndarray:
        """float32 [nodes, D] of all nodes, as `gather` reads them with all their edges.

        The columns after structure are zeros: a batch brings its own (`gather_own`).
        """
        nodes = self.table_bytes // (4 * self.dim)
        every = np.arange(nodes, dtype=np.int32)
        out = np.zeros((nodes, self.dim), np.float32)
        self._gather_stored(every, self._degree[:nodes], np.full(nodes, -1, np.int32), out)
        return out

    def gather(
        self,
        nodes: np.ndarray,
        rows: int | None = None,
        *,
        hidden: np.ndarray | None = None,
        edgeless: np.ndarray | None = None,
    ) -> np.ndarray:
        """Input vectors of `nodes` (int32 [n]) as float32 [rows, D], zero-padded.

        Args:
          hidden: int32 [n] collection (node id) that a node must not know of, or -1.
          edgeless: bool [n], nodes read as if they had no edges.
        """
        used = len(nodes)
        out = np.zeros((used if rows is None else rows, self.dim), np.float32)
        hidden = np.full(used, -1, np.int32) if hidden is None else hidden
        degree = self._seen_degree(nodes, hidden, edgeless)
        self._gather_stored(nodes, degree, hidden, out)
        self._write_extras(nodes, degree, out[:used, self._first_extra :])
        return out

    def gather_own(
        self,
        nodes: np.ndarray,
        rows: int,
        *,
        hidden: np.ndarray,
        edgeless: np.ndarray,
        first: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `gather` reads and `table` does not hold.

        Args:
          nodes, rows, hidden, edgeless: as in `gather`; only the first `first` rows may
            have something hidden.

        Returns:
          extras float32 [rows, E], places float32 [first, r] and placed bool [rows]:
          whether a row after the first ones has its table's place rather than zeros.
        """
        used = len(nodes)
        degree = self._seen_degree(nodes, hidden, edgeless)
        extras = np.zeros((rows, self.dim - self._first_extra), np.float32)
        self._write_extras(nodes, degree, extras[:used])
        placed = np.zeros(rows, np.bool_)
        placed[:used] = degree > 0
        places = np.zeros((first, self.table_columns[1]), np.float32)
        if self._structure is not None:
            own = min(first, used)
            self._structure.gather(nodes[:own], degree[:own], hidden[:own], places[:own])
        return extras, places, placed

    def _seen_degree(self, nodes, hidden, edgeless) -> np.ndarray:
        """Edges int32 [n] that the rows may know of."""
        degree = self._degree[nodes] - (hidden >= 0)
        return degree if edgeless is None else np.where(edgeless, 0, degree)

    def _write_extras(self, nodes, degree, out) -> None:
        column = 0
        if self._degree_feature:
            out[:, column] = _DEGREE_SCALE * np.log1p(degree)
            column += 1
        if self._edgeless_feature:
            out[:, column] = _DEGREE_SCALE * (degree == 0)
            column += 1
        if self._node_type:
            out[:, column] = nodes >= self._features.shape[0]

    def _gather_stored(self, nodes, degree, hidden, out) -> None:
        """Features and places of `nodes` into the first columns and rows of `out`."""
        width = self._features.shape[1]
        if width:
            self._gather_features(nodes, out)
        if self._structure is not None:
            place = out[: len(nodes), width : self._first_extra]
            self._structure.gather(nodes, degree, hidden, place)

    def _gather_features(self, nodes: np.ndarray, out: np.ndarray) -> None:
        """Scaled features of `nodes` into the first columns of `out`."""
        if self._features.dtype != np.float16:
            block_kernels.gather_rows(self._features, self.scale, nodes, len(nodes), out)
            return
        # Numba has no float16 on the CPU.
        rows = np.flatnonzero(nodes < len(self._features))
        out[rows, : self._features.shape[1]] = self._features[nodes[rows]] * self.scale
