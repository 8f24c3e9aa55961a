"""The minibatch that the device sees: one compact graph of fixed shape.

PinSage (Ying et al. 2018, Algorithm 2 and section 3.3): S(K) are the seeds, and
S(k-1) is S(k) with all its neighbors.  Frontiers are laid out so that S(k) is the
beginning of S(k-1); one neighbor table then serves every layer, and "self" is a
prefix instead of a gather.

Axis letters: n_k rows of S(k) with padding, T neighbors, D input features,
B pairs, R random negatives, H hard negatives per query, G sets of them: B, or 1 where all
queries share the H of some.  Where the devices hold a table
of inputs: E columns that every batch brings, P first rows whose spectral features
(r columns) it brings too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pinsage_jax.config.training import TrainConfig

# A numpy.ndarray on the host and a jax.Array in a step; this module imports no JAX.
Array = Any


class Minibatch(NamedTuple):
    """One step's compact graph G' and what to compare; numpy or JAX arrays.

    Row indices point into S(K); ids are node ids and tell equal items apart.
    """

    features: Array  # float32 [n_0, D]; [n_0, E] where the rest is on the device
    spectral_features: Array  # float32 [P, r] of the first rows; [0, 0] without a device table
    has_spectral: Array  # bool [n_0] rows with spectral features; [0] without a device table
    node_ids: Array  # int32 [n_0] node of each row; -1 where padded
    neighbors: Array  # int32 [n_1, T] rows of the next frontier; 0 where masked
    weights: Array  # float32 [n_1, T] pooling weights; 0 where masked
    queries: Array  # int32 [B] rows
    targets: Array  # int32 [B] rows
    pair_weights: Array  # float32 [B]; 0 where a pair does not count
    negatives: Array  # int32 [R] rows
    hard: Array  # int32 [G, H] rows; 0 where masked
    query_ids: Array  # int32 [B]
    target_ids: Array  # int32 [B]
    negative_ids: Array  # int32 [R]
    hard_ids: Array  # int32 [G, H]; -1 where masked
    # Log probabilities of being drawn as a candidate: for queries and reverse_negative_logq
    # of the reverse direction, whose candidates are the queries of other pairs.
    query_logq: Array  # float32 [B]
    target_logq: Array  # float32 [B]
    negative_logq: Array  # float32 [R]
    hard_logq: Array  # float32 [G, H]
    reverse_negative_logq: Array  # float32 [R]
    transposed: Array | None = None  # int32 [X] of batching/transposed.py; [0] for CPUs


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The settings of a run's minibatches.

    Attributes:
      train: settings of the pairs, the negatives and the edge dropout.
      num_layers: K.
      seed: key of all random draws.
      hard_in_epoch: hard negatives per query in an epoch (from 0).
      hard_slots: the most that hard_in_epoch ever gives.
      num_devices: shards that a step is cut into, over all processes.
      local_devices: the shards that this process makes; all of them when not given.
      table: whole or split, where batches name rows of a table on the devices and bring only
        what it lacks (training/device_inputs.py); none.
      transposed: batches bring their lists transposed, for the derivative of pooling on
        accelerators (batching/transposed.py).

    Raises:
      ValueError: the batch size is not a multiple of the devices.
    """

    train: TrainConfig
    num_layers: int
    seed: int
    hard_in_epoch: Callable[[int], int]
    hard_slots: int
    num_devices: int = 1
    local_devices: range | None = None
    table: str = "none"
    transposed: bool = False

    def __post_init__(self):
        if self.train.batch_size % self.num_devices:
            raise ValueError(
                f"batch_size={self.train.batch_size} is not a multiple of "
                f"{self.num_devices} devices"
            )

    @property
    def table_on_device(self) -> bool:
        """Whether the devices hold a table of inputs."""
        return self.table != "none"

    @property
    def table_is_split(self) -> bool:
        """Whether every device holds a part of that table."""
        return self.table == "split"

    @property
    def hard_shape(self) -> tuple[int, int]:
        """(G, H) of a device."""
        if self.train.shared_hard_queries:
            return 1, self.train.shared_hard_queries * self.hard_slots
        return self.pairs_per_device, self.hard_slots

    @property
    def pairs_per_device(self) -> int:
        """The number of pairs of a step on each device."""
        return self.train.batch_size // self.num_devices


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Rows of every frontier, seeds first: (n_K, ..., n_0)."""

    rows: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        return len(self.rows) - 1


@dataclasses.dataclass(frozen=True)
class BatchInfo:
    """What happened while one minibatch was built (summed over devices).

    Attributes:
      used: rows in use of every frontier, seeds first.
      left_out: neighbors masked because a frontier was full.
      hard_per_query: mean number of hard negatives that a query is scored against.
      edge_dropout_share: share of rows trained as if they had no edges.
    """

    used: tuple[int, ...]
    left_out: int
    hard_per_query: float
    edge_dropout_share: float


def padded_size(rows: int, most: int) -> int:
    """`rows` with headroom, rounded up to a multiple of 64, at most `most`.

    The new nodes of a frontier vary like a count, by less than its square root: there is
    room for a 64th and two roots more, or for a sixteenth where that is less.
    """
    wanted = rows + min(rows // 16, rows // 64 + 2 * math.isqrt(rows)) + 1
    return min(-(-wanted // 64) * 64, most)
