"""The minibatch that the device sees: one compact graph of fixed shape.

PinSage (Ying et al. 2018, Algorithm 2 and section 3.3): S(K) are the seeds, and
S(k-1) is S(k) with all its neighbors.  Frontiers are laid out so that S(k) is the
beginning of S(k-1); one neighbor table then serves every layer, and "self" is a
prefix instead of a gather.

Axis letters: n_k rows of S(k) with padding, T neighbors, D input features,
B pairs, R random negatives, H hard negatives per query.  With the table of inputs
on the device: E columns that every batch brings, P first rows whose place in the
graph (r columns) it brings too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

# Of NumPy on the host and of JAX in a step, which this room does not know.
Array = Any


class Minibatch(NamedTuple):
    """One step's compact graph G' and what to compare; numpy or JAX arrays.

    Row indices point into S(K); ids are node ids and tell equal items apart.
    """

    features: Array  # float32 [n_0, D]; [n_0, E] where the rest is on the device
    places: Array  # float32 [P, r] of the first rows; [0, 0] where nothing is on the device
    placed: Array  # bool [n_0] rows with a place in the graph; [0] likewise
    node_ids: Array  # int32 [n_0] node of each row; -1 where padded
    neighbors: Array  # int32 [n_1, T] rows of the next frontier; 0 where masked
    weights: Array  # float32 [n_1, T] pooling weights; 0 where masked
    queries: Array  # int32 [B] rows
    targets: Array  # int32 [B] rows
    pair_weights: Array  # float32 [B]; 0 where a pair does not count
    negatives: Array  # int32 [R] rows
    hard: Array  # int32 [B, H] rows; 0 where masked
    query_ids: Array  # int32 [B]
    target_ids: Array  # int32 [B]
    negative_ids: Array  # int32 [R]
    hard_ids: Array  # int32 [B, H]; -1 where masked
    query_logq: Array  # float32 [B] log chance of being drawn as a candidate
    target_logq: Array  # float32 [B] likewise
    negative_logq: Array  # float32 [R]
    hard_logq: Array  # float32 [B, H]


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
      hard_per_query: mean number of hard negatives that a query got.
      stripped: share of rows trained as if they had no edges.
    """

    used: tuple[int, ...]
    left_out: int
    hard_per_query: float
    stripped: float


def padded_size(rows: int, most: int) -> int:
    """`rows` with headroom, rounded up to 64 and cut at `most`.

    The new nodes of a frontier vary like a count, by less than its square root: there is
    room for a 64th and two roots more, or for a sixteenth where that is less.
    """
    wanted = rows + min(rows // 16, rows // 64 + 2 * math.isqrt(rows)) + 1
    return min(-(-wanted // 64) * 64, most)
