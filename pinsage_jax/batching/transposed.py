"""Neighbor lists transposed for accelerators: which lists name a row, in groups of fixed shape.

The derivative of pooling with respect to a row sums over the lists that name it.  Rows are named
once or thousands of times, and XLA wants fixed shapes, so the entries of a row are cut into
pieces of at most 256, and each piece is padded to a power of two.  Pieces of one width fill
groups of G slots; a device gathers a group, adds up each piece, and writes the sums side by
side.  The pieces of a row with several are then added 16 at a time until one sum is left.  So
every sum is a sum of gathered rows in a fixed order: no scatter, no atomics, and the same bits
every time.

Shapes: S lists of T entries, n rows that they name, E = S T entries.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from pinsage_jax.batching import transpose_kernels
from pinsage_jax.batching.blocks import Array
from pinsage_jax.cpu.pooling_kernels import transpose_lists

# Entries of a piece; the last is the most.
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Sums added at a time, and how many such additions are one group.
MERGE_WIDTH, MERGE_ROWS = 16, 64
_MOST_SLOTS, _FEWEST_SLOTS = 1 << 14, WIDTHS[-1]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the parts of one layer's transposed lists are in an int32 array.

    The parts, one after another: entries [groups, slots] (lists), their weights (the bits of
    float32), merges [merge_groups, MERGE_WIDTH, MERGE_ROWS] (sums, -1 for none), counts
    [len(WIDTHS) + 1] (groups in use of each width, and merge groups), rows [n] (the sum of
    each row, -1 where no list names it).

    Attributes:
      lists, length, rows: S, T, n.
    """

    lists: int
    length: int
    rows: int

    @property
    def entries(self) -> int:
        """E."""
        return self.lists * self.length

    @property
    def slots(self) -> int:
        """G, slots of a group: a power of two."""
        slots = _FEWEST_SLOTS
        while slots < min(self.entries // 8, _MOST_SLOTS):
            slots *= 2
        return slots

    @property
    def groups(self) -> int:
        """Groups that suffice: padding to a power of two less than doubles a piece."""
        return 2 * self.entries // self.slots + len(WIDTHS)

    @property
    def pieces(self) -> int:
        """Places for the sums of pieces: a rest for every row, whole pieces, and padding."""
        whole = self.entries // WIDTHS[-1]
        return min(self.rows, self.entries) + whole + 2 * self.slots

    @property
    def merge_groups(self) -> int:
        """Groups of merges that suffice."""
        # A merge for every row of several pieces, and one for every 16 pieces and so on.
        merges = self.entries // WIDTHS[-1] + self.entries // (4 * WIDTHS[-1])
        rounds = 1
        while WIDTHS[-1] * MERGE_WIDTH**rounds < self.entries:
            rounds += 1
        return merges // MERGE_ROWS + rounds + 1

    @property
    def sums(self) -> int:
        """Rows of the array of all sums."""
        return self.pieces + self.merge_groups * MERGE_ROWS

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Shape of each part, in their order."""
        return {
            "entries": (self.groups, self.slots),
            "weights": (self.groups, self.slots),
            "merges": (self.merge_groups, MERGE_WIDTH, MERGE_ROWS),
            "counts": (len(WIDTHS) + 1,),
            "rows": (self.rows,),
        }

    @property
    def size(self) -> int:
        """Length of the array."""
        return sum(int(np.prod(shape)) for shape in self.parts.values())

    def split(self, array: Array) -> dict[str, Array]:
        """The parts of an int32 array [size] by name, of numpy or JAX."""
        found, begin = {}, 0
        for name, shape in self.parts.items():
            size = int(np.prod(shape))
            found[name] = array[begin : begin + size].reshape(shape)
            begin += size
        return found


def layouts(rows: tuple[int, ...], length: int) -> list[Layout]:
    """The layout of every layer that pools, the first layer first.

    Args:
      rows: rows of the frontiers, seeds first: (n_K, ..., n_0); length: T.
    """
    inwards = rows[::-1]
    return [Layout(lists, length, named) for named, lists in itertools.pairwise(inwards)]


def transposed_size(rows: tuple[int, ...], length: int) -> int:
    """Entries of what `transpose` returns."""
    return sum(layout.size for layout in layouts(rows, length))


def transpose(rows: tuple[int, ...], neighbors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The transposed lists of every layer, one layout after another.

    Args:
      rows: as in `layouts`.
      neighbors: int32 [n_1, T] rows of the next frontier; weights: float32 [n_1, T], 0 where
        masked.

    Returns:
      int32 [transposed_size].
    """
    out = np.zeros(transposed_size(rows, neighbors.shape[1]), np.int32)
    begin = 0
    for layout in layouts(rows, neighbors.shape[1]):
        head = slice(0, layout.lists)
        _fill(layout, neighbors[head], weights[head], out[begin : begin + layout.size])
        begin += layout.size
    return out


def _fill(layout: Layout, neighbors: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    starts = np.empty(layout.rows + 1, np.int32)
    lists = np.empty(layout.entries, np.int32)
    list_weights = np.empty(layout.entries, np.float32)
    transpose_lists(neighbors, weights, starts, lists, list_weights)
    rests = np.empty(layout.rows, np.int32)
    parts = layout.split(out)
    parts["merges"][:] = -1
    transpose_kernels.fill_groups(
        starts,
        lists,
        list_weights,
        np.array(WIDTHS, np.int32),
        layout.slots,
        parts["entries"].reshape(-1),
        parts["weights"].reshape(-1).view(np.float32),
        parts["counts"],
        parts["rows"],
        rests,
    )
    transpose_kernels.fill_merges(
        starts,
        np.array([WIDTHS[-1], MERGE_ROWS, MERGE_WIDTH, layout.pieces], np.int32),
        rests,
        parts["rows"],
        parts["merges"].reshape(-1),
        parts["counts"],
    )
