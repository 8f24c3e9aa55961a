"""Random draws that both splits make: collections, items, and pairs of items.

Every draw has a random stream of its own, keyed by the seed and a number that says what
is drawn, so a draw depends on no other draw and on no order.
"""

from __future__ import annotations

import dataclasses

import numpy as np


def stream(seed: int, purpose: int) -> np.random.Generator:
    """The random stream of one purpose; equal arguments give equal streams."""
    key = np.array([seed & (2**64 - 1), purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def choose(values: np.ndarray, count: int, seed: int, purpose: int) -> np.ndarray:
    """At most `count` of the values (int [n]) without replacement, int32, ascending."""
    chosen = stream(seed, purpose).choice(values, min(count, len(values)), replace=False)
    return np.sort(chosen).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class PairGroup:
    """The pairs that one collection offers: any query with any target but itself.

    Attributes:
      collection: its index, from 0.
      queries: int32 [q], ascending.
      targets: int32 [t], ascending; contains all queries or none of them.
    """

    collection: int
    queries: np.ndarray
    targets: np.ndarray

    @property
    def num_pairs(self) -> int:
        """Number of pairs on offer."""
        overlap = len(self.queries) > 0 and bool(np.isin(self.queries[0], self.targets))
        return len(self.queries) * (len(self.targets) - overlap)

    def pairs(self, numbers: np.ndarray) -> np.ndarray:
        """The pairs int32 [n, 2] (query, target) with the numbers int64 [n] < num_pairs."""
        per_query = self.num_pairs // max(len(self.queries), 1)
        query, other = np.divmod(numbers, max(per_query, 1))
        chosen = self.queries[query]
        if per_query < len(self.targets):
            # The query is no target of its own: `other` counts the remaining ones.
            other = other + (other >= np.searchsorted(self.targets, chosen))
        return np.stack([chosen, self.targets[other]], axis=1).astype(np.int32)


def draw_pairs(
    groups: list[PairGroup], limit: int, seed: int, subset_purpose: int, pair_purpose: int
) -> np.ndarray:
    """At most `limit` pairs, evenly from all groups.

    Every group gives the same number of pairs at most: the largest number for which there
    are no more than `limit` in all.  If even one each is too many, a random subset of
    `limit` groups gives one each.

    Args:
      subset_purpose: stream of the subset of groups.
      pair_purpose: the stream of a group's pairs is this plus the index of its collection.

    Returns:
      int32 [P, 2] of queries and targets; a pair occurs twice if two groups offer it.
    """
    offered = np.array([group.num_pairs for group in groups], np.int64)
    most = pairs_per_group(offered, limit)
    giving = np.flatnonzero(offered > 0)
    if most == 0 and len(giving):
        most, giving = 1, choose(giving, limit, seed, subset_purpose)
    drawn = [np.empty((0, 2), np.int32)]
    for number in giving.tolist():
        group, count = groups[number], min(most, int(offered[number]))
        generator = stream(seed, pair_purpose + group.collection)
        chosen = generator.choice(group.num_pairs, count, replace=False, shuffle=False)
        drawn.append(group.pairs(np.sort(chosen)))
    return np.concatenate(drawn)


def pairs_per_group(offered: np.ndarray, limit: int) -> int:
    """The largest m with sum(min(m, offered)) <= limit, at most max(offered).

    Args:
      offered: int64 [groups], pairs that each group offers.
    """
    low, high = 0, int(offered.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(offered, middle).sum() <= limit:
            low = middle
        else:
            high = middle - 1
    return low
