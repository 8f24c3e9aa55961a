"""What is true in the generated world: topics, styles, items, boards and features.

Every topic has a few hidden *styles*; a (topic, style) couple is a *group*.  An
item belongs to one main group and one or two others, by shares, and has a *look*,
a small vector of its own.  Boards collect from groups, engagement follows groups
and looks, features show topics and looks well but styles hardly: the graph knows
what features do not, and the other way round.

Every random number is a function of (seed, stream, row), so that blocks of any
size draw the same world.

Letters here: N items, C collections, G groups, P parts (groups of one item or
board), F look dimensions.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from pinsage_jax.config.data import SyntheticWorld

ITEM_PARTS = 3
BOARD_PARTS = 8
LOOK_DIM = 6

# Pareto exponents of the tails; smaller is heavier.
_POPULARITY_TAIL = 1.3
_BOARD_SIZE_TAIL = 1.4
_TOPIC_SIZE_DECAY = 0.3
_RELATED_TOPICS = 4
_CATALOG_BLOCK = 1 << 18

# How strongly a feature vector shows a topic of the kind that it sees well, one
# that it hardly sees, a style, and a look; noise of scale 1 has length 1 as well.
_CLEAR_TOPIC, _DIM_TOPIC, _STYLE, _LOOK = 1.0, 0.25, 0.25, 0.8
_VISUAL_NOISE, _TEXT_NOISE = 1.0, 0.8


class Stream(enum.IntEnum):
    """Names of the independent random streams of one seed."""

    ITEMS = 1
    LOOKS = 2
    BOARDS = 3
    FIRST_EDGES = 4
    EDGES = 5
    VISUAL_NOISE = 6
    TEXT_NOISE = 7
    VISUAL_TABLE = 8
    TEXT_TABLE = 9
    WARM_PAIRS = 10
    COLD_PAIRS = 11


def uniforms(seed: int, stream: Stream, first: int, rows: int, columns: int) -> np.ndarray:
    """Rows [first, first + rows) of a stream: [rows, columns] float64 in [0, 1).

    A stream is always read with the same `columns`.
    """
    # Philox yields four numbers a counter, so whole counters make a row.
    counters = -(-columns // 4)
    bits = np.random.Philox(key=np.array([seed % 2**64, stream], np.uint64))
    bits.advance(first * counters)
    return np.random.Generator(bits).random((rows, 4 * counters))[:, :columns]


def normals(seed: int, stream: Stream, first: int, rows: int, columns: int) -> np.ndarray:
    """Like `uniforms`, standard normal and float32 (Box-Muller: fixed draws a row)."""
    half = -(-columns // 2)
    draws = uniforms(seed, stream, first, rows, 2 * half)
    radius = np.sqrt(-2.0 * np.log1p(-draws[:, :half])).astype(np.float32)
    angle = (2.0 * np.pi * draws[:, half:]).astype(np.float32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :columns]


class WeightedGroups:
    """Members of groups, drawn in proportion to their weights.

    Args:
      groups: [n] int, the group of each entry.
      members: [n] int32, what a draw returns.
      weights: [n] float; entries of weight 0 are never drawn.
      count: G, number of groups.
    """

    def __init__(self, groups: np.ndarray, members: np.ndarray, weights: np.ndarray, count: int):
        used = np.flatnonzero(weights > 0)
        order = used[np.argsort(groups[used], kind="stable")]
        self._members = members[order]
        self._cumulative = np.zeros(len(order) + 1)
        np.cumsum(weights[order], dtype=np.float64, out=self._cumulative[1:])
        sizes = np.bincount(groups[used], minlength=count)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def draw(self, groups: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """Draws one member per group; [..] int64 and -1 for an empty group.

        Args:
          groups: [..] int.
          chance: [..] float64 in [0, 1).
        """
        start, stop = self._starts[groups], self._starts[groups + 1]
        low, high = self._cumulative[start], self._cumulative[stop]
        place = np.searchsorted(self._cumulative[1:], low + chance * (high - low), side="right")
        place = np.clip(place, start, np.maximum(stop - 1, start))
        empty = start == stop
        if empty.any():
            place = np.where(empty, 0, place)
        if not len(self._members):
            return np.full(np.shape(groups), -1, np.int64)
        return np.where(empty, -1, self._members[place].astype(np.int64))


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The items' truth.

    Attributes:
      groups: [N, ITEM_PARTS] int32, the main group first.
      shares: [N, ITEM_PARTS] float32, sums to 1; the third may be 0.
      looks: [N, LOOK_DIM] float32, standard normal.
      popularity: [N] float32, Pareto tail.
      connected: [N] bool, false for items that get no edge.
    """

    groups: np.ndarray
    shares: np.ndarray
    looks: np.ndarray
    popularity: np.ndarray
    connected: np.ndarray

    def by_group(self, count: int, exponent: float) -> WeightedGroups:
        """Connected items by group, weighted by share times popularity**exponent."""
        weights = self.shares * (self.popularity**exponent * self.connected)[:, None]
        members = np.repeat(np.arange(len(self.groups), dtype=np.int32), ITEM_PARTS)
        return WeightedGroups(self.groups.ravel(), members, weights.ravel(), count)

    def overall(self, exponent: float) -> WeightedGroups:
        """All connected items as a single group, weighted by popularity**exponent."""
        members = np.arange(len(self.groups), dtype=np.int32)
        weights = self.popularity**exponent * self.connected
        return WeightedGroups(np.zeros(len(members), np.int8), members, weights, 1)


@dataclasses.dataclass(frozen=True)
class Boards:
    """The collections' truth.

    Attributes:
      groups: [C, BOARD_PARTS] int32.
      cumulative: [C, BOARD_PARTS] float32, cumulative shares of the groups.
      noise: [C] bool, boards that are filled without regard to topic.
      offsets: [C + 1] int64, the board-drawn edges of each board.
    """

    groups: np.ndarray
    cumulative: np.ndarray
    noise: np.ndarray
    offsets: np.ndarray

    def by_group(self, count: int) -> WeightedGroups:
        """Boards by group, weighted by share times size; no noise boards."""
        shares = np.diff(self.cumulative, axis=1, prepend=np.float32(0))
        weights = shares * (np.diff(self.offsets) * ~self.noise)[:, None]
        members = np.repeat(np.arange(len(self.noise), dtype=np.int32), BOARD_PARTS)
        return WeightedGroups(self.groups.ravel(), members, weights.ravel(), count)

    def overall(self) -> WeightedGroups:
        """All boards as a single group, weighted by size."""
        members = np.arange(len(self.noise), dtype=np.int32)
        weights = np.maximum(np.diff(self.offsets), 1)
        return WeightedGroups(np.zeros(len(members), np.int8), members, weights, 1)


def group_count(world: SyntheticWorld) -> int:
    """G, the number of (topic, style) couples."""
    return world.topics * world.styles


def _draw_topics(world: SyntheticWorld, chance: np.ndarray) -> np.ndarray:
    """Topics by size, a mild power law: int32 of the shape of `chance`."""
    sizes = np.arange(1, world.topics + 1) ** -_TOPIC_SIZE_DECAY
    bounds = np.cumsum(sizes) / sizes.sum()
    return np.searchsorted(bounds[:-1], chance, side="right").astype(np.int32)


def _related_topics(world: SyntheticWorld, topics: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """A topic that overlaps with each of `topics`; topics overlap along a ring."""
    step = 1 + (chance * 2 * _RELATED_TOPICS).astype(np.int32)
    step = np.where(step > _RELATED_TOPICS, _RELATED_TOPICS - step, step)
    return (topics + step) % world.topics


def _styles(world: SyntheticWorld, chance: np.ndarray) -> np.ndarray:
    return (chance * world.styles).astype(np.int32)


def draw_catalog(world: SyntheticWorld) -> Catalog:
    """Draws what is true of every item."""
    count, seed = world.items, world.seed
    # Every connected item gets at least one edge, so few edges leave more without.
    kept = min(count - round(world.isolated * count), world.edges)
    groups = np.empty((count, ITEM_PARTS), np.int32)
    shares = np.empty((count, ITEM_PARTS), np.float32)
    looks = np.empty((count, LOOK_DIM), np.float32)
    popularity = np.empty(count, np.float32)
    lots = np.empty(count)
    for first in range(0, count, _CATALOG_BLOCK):
        rows = min(_CATALOG_BLOCK, count - first)
        block = slice(first, first + rows)
        draws = uniforms(seed, Stream.ITEMS, first, rows, 12)
        main = _draw_topics(world, draws[:, 0])
        topics = np.stack(
            [
                main,
                _related_topics(world, main, draws[:, 1]),
                _draw_topics(world, draws[:, 2]),
            ],
            axis=1,
        )
        groups[block] = topics * world.styles + _styles(world, draws[:, 3:6])
        second = 0.15 + 0.2 * draws[:, 6]
        third = np.where(draws[:, 7] < 0.5, 0.0, 0.15 * draws[:, 8])
        shares[block] = np.stack([1.0 - second - third, second, third], axis=1)
        tail = (1.0 - draws[:, 9]) ** (-1.0 / _POPULARITY_TAIL)
        popularity[block] = np.minimum(tail, 2.0 * np.sqrt(count))
        lots[block] = draws[:, 10]
        looks[block] = normals(seed, Stream.LOOKS, first, rows, LOOK_DIM)
    connected = lots >= np.partition(lots, count - kept)[count - kept]
    return Catalog(groups, shares, looks, popularity, connected)


def draw_boards(world: SyntheticWorld, edges: int) -> Boards:
    """Draws what is true of every board; their sizes sum to `edges`."""
    count = world.collections
    draws = uniforms(world.seed, Stream.BOARDS, 0, count, 4 + 3 * BOARD_PARTS)
    sizes = np.minimum((1.0 - draws[:, 0]) ** (-1.0 / _BOARD_SIZE_TAIL), 2.0 * np.sqrt(count))
    # One edge each where that is possible, so that no board is missing.
    base = 1 if edges >= count else 0
    spread = np.cumsum(sizes) / sizes.sum() * (edges - base * count)
    spread[-1] = edges - base * count
    offsets = np.zeros(count + 1, np.int64)
    offsets[1:] = np.floor(spread).astype(np.int64) + base * np.arange(1, count + 1)

    main = _draw_topics(world, draws[:, 2])
    place, swap, style = np.split(draws[:, 4:], 3, axis=1)
    # Parts are the main topic in another style, or an overlapping topic.
    other = _related_topics(world, main[:, None], place)
    topics = np.where(swap < 0.4, main[:, None], other)
    topics[:, 0] = main
    groups = (topics * world.styles + _styles(world, style)).astype(np.int32)
    # Larger boards reach further, or they would hold the same few items often.
    reach = np.log2(np.maximum(np.diff(offsets), 1) / 16.0) + 2.0 * draws[:, 3]
    parts = np.clip(1 + np.floor(reach), 1, BOARD_PARTS)
    shares = np.where(np.arange(BOARD_PARTS) < parts[:, None], 0.7 ** np.arange(BOARD_PARTS), 0.0)
    cumulative = np.cumsum(shares, axis=1) / shares.sum(axis=1, keepdims=True)
    noise = draws[:, 1] < world.noise_boards
    return Boards(groups, cumulative.astype(np.float32), noise, offsets)


class FeatureView:
    """One kind of feature vectors: a noisy, partial projection of the truth.

    The visual-like view sees even topics and the first half of the look well, the
    text-like one odd topics and the second half.

    Args:
      world: the settings.
      text: the text-like view instead of the visual-like one.
    """

    def __init__(self, world: SyntheticWorld, *, text: bool):
        self._world = world
        self._dim = world.text_dim if text else world.visual_dim
        self._stream = Stream.TEXT_NOISE if text else Stream.VISUAL_NOISE
        self._noise = world.noise * (_TEXT_NOISE if text else _VISUAL_NOISE)
        topics, groups = world.topics, group_count(world)
        table = Stream.TEXT_TABLE if text else Stream.VISUAL_TABLE
        axes = normals(world.seed, table, 0, topics + groups + LOOK_DIM, self._dim)
        axes *= np.float32(self._dim**-0.5)
        clear = np.arange(topics) % 2 == int(text)
        shown = axes[:topics] * np.where(clear, _CLEAR_TOPIC, _DIM_TOPIC)[:, None]
        styles = axes[topics : topics + groups] * _STYLE
        self._groups = (np.repeat(shown, world.styles, axis=0) + styles).astype(np.float32)
        half = LOOK_DIM // 2
        seen = np.arange(LOOK_DIM) // half == int(text)
        looks = axes[topics + groups :] * (seen * _LOOK * half**-0.5)[:, None]
        self._looks = looks.astype(np.float32)

    def rows(self, catalog: Catalog, first: int, stop: int) -> np.ndarray:
        """Vectors of items [first, stop): [stop - first, dim] float32."""
        noise = normals(self._world.seed, self._stream, first, stop - first, self._dim)
        result = noise * np.float32(self._noise * self._dim**-0.5)
        # Sums part by part: a matrix product may round by the size of the block.
        for part in range(ITEM_PARTS):
            share = catalog.shares[first:stop, part, None]
            result += share * self._groups[catalog.groups[first:stop, part]]
        for axis in range(LOOK_DIM):
            result += catalog.looks[first:stop, axis, None] * self._looks[axis]
        return result
