"""The validation split, made from training edges alone.

A share of the collections is withheld whole: two items of one withheld collection
are a validation pair.  A share of the items loses all its edges too, so that some
pairs have a cold target.  Every draw is keyed by its meaning (seed, purpose,
collection), so the split depends on nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pinsage_jax.config.data import SplitConfig
from pinsage_jax.data.pairs_table import derived_kinds
from pinsage_jax.graph.csr import Graph

# Purposes of the keyed streams; a collection's stream is _PAIRS + its index.
_COLLECTIONS, _ITEMS, _SUBSET, _GIVEN, _PAIRS = 1, 2, 3, 4, 1 << 32


@dataclasses.dataclass(frozen=True, eq=False)
class ValidationSplit:
    """A graph to train on and pairs to validate with."""

    train_graph: Graph
    collections: np.ndarray  # int32 [*]: withheld collections, counted from 0, ascending
    items: np.ndarray  # int32 [*]: items stripped of every edge, ascending
    pairs: np.ndarray  # int32 [P, 2]: query, target
    kinds: np.ndarray  # <U4 [P]: warm, or cold if the target has no edge in train_graph
    train_pairs: np.ndarray | None = None  # int32 [*, 2]: given pairs left to train on


def validation_split(
    graph: Graph, split: SplitConfig, seed: int, given: np.ndarray | None = None
) -> ValidationSplit:
    """Withholds collections and items, and draws the pairs.

    With `given` training pairs (int32 [*, 2], --train_pairs) the validation pairs are of
    their kind: as large a share of them as of the collections, and all that touch a
    stripped item, split.validation_pairs at most; training keeps those that are neither.
    Without, they are drawn from the withheld collections:

    Pairs are ordered pairs of two items of one withheld collection whose query has an
    edge left.  Every collection gives the same number at most: the largest one for
    which there are no more than split.validation_pairs in all.  If even one each is
    too many, a random part of the collections gives one.

    With validation_collections 0 there are no pairs and the graph stays as it is.
    Otherwise at least one collection of two items or more is withheld, if there are two.
    """
    degree = graph.degree()
    eligible = np.flatnonzero(degree[graph.num_items :] >= 2)
    count = round(split.validation_collections * len(eligible))
    if split.validation_collections > 0 and len(eligible) >= 2:
        count = max(count, 1)
    if count == 0:
        none = np.empty(0, np.int32)
        empty = np.empty((0, 2), np.int32)
        return ValidationSplit(graph, none, none, empty, np.empty(0, "<U4"), given)
    collections = _choose(eligible, count, seed, _COLLECTIONS)
    linked = np.flatnonzero(degree[: graph.num_items] > 0)
    items = _choose(linked, round(split.validation_cold_items * len(linked)), seed, _ITEMS)
    train_graph = graph.without(collections=collections, items=items)
    train_degree = train_graph.degree()
    if given is not None:
        pairs, kept = _of_given(given, items, train_degree, split, seed)
        kinds = derived_kinds(pairs, train_degree)
        return ValidationSplit(train_graph, collections, items, pairs, kinds, kept)

    members = [graph.neighbors(graph.num_items + index) for index in collections]
    queries = [row[train_degree[row] > 0] for row in members]
    possible = np.array(
        [len(some) * (len(row) - 1) for some, row in zip(queries, members, strict=True)], np.int64
    )
    most = _most_per_collection(possible, split.validation_pairs)
    giving = np.arange(len(collections))
    if most == 0:
        most = 1
        giving = _choose(np.flatnonzero(possible > 0), split.validation_pairs, seed, _SUBSET)
    drawn = [np.empty((0, 2), np.int32)]
    for place in giving:
        row, some = members[place], queries[place]
        number = min(most, int(possible[place]))
        if number == 0:
            continue
        rng = _stream(seed, _PAIRS + int(collections[place]))
        chosen = np.sort(rng.choice(possible[place], number, replace=False, shuffle=False))
        query, other = np.divmod(chosen, len(row) - 1)
        # The target skips the query itself: `other` counts the remaining members.
        own = np.searchsorted(row, some[query])
        drawn.append(np.stack([some[query], row[other + (other >= own)]], axis=1))
    pairs = np.concatenate(drawn).astype(np.int32)
    return ValidationSplit(
        train_graph, collections, items, pairs, derived_kinds(pairs, train_degree)
    )


def _of_given(
    given: np.ndarray, items: np.ndarray, degree: np.ndarray, split: SplitConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Validation pairs out of given ones, and the given ones that training keeps."""
    given = np.asarray(given, np.int32)
    stripped = np.asarray(np.isin(given, items).any(axis=1))
    rest = np.flatnonzero(~stripped)
    drawn = _choose(rest, round(split.validation_collections * len(rest)), seed, _GIVEN)
    held = stripped.copy()
    held[drawn] = True
    usable = np.flatnonzero(held & (degree[given[:, 0]] > 0))
    if len(usable) > split.validation_pairs:
        usable = _choose(usable, split.validation_pairs, seed, _SUBSET)
    return given[usable], given[~held]


def _most_per_collection(possible: np.ndarray, limit: int) -> int:
    """The largest m with sum(min(m, possible)) <= limit, at most max(possible)."""
    low, high = 0, int(possible.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(possible, middle).sum() <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def _choose(values: np.ndarray, count: int, seed: int, purpose: int) -> np.ndarray:
    chosen = _stream(seed, purpose).choice(values, min(count, len(values)), replace=False)
    return np.sort(chosen).astype(np.int32)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    key = np.array([seed & (2**64 - 1), purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
