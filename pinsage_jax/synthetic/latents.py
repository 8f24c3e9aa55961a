"""Latent variables of the synthetic catalog: topics, styles, items, boards and features.

Every topic has a few latent *styles*; a (topic, style) pair is a *group*.  An item belongs
to a main group and one or two others, with shares, and has a *look*, a small vector of its
own.  Boards collect items of their groups, and engagement follows groups and looks.  Feature
vectors show topics and looks well but styles hardly, so that the graph and the features hold
different information.

Every random number is a function of (seed, stream, row), so that blocks of any size draw the
same catalog.

Axis letters: N items, C boards, G groups, P parts (groups of one item or board).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator

import numpy as np

from pinsage_jax.config.data import SyntheticCatalog
from pinsage_jax.synthetic import draw_kernels

ITEM_PARTS = 3
BOARD_PARTS = 8
LOOK_DIM = 6

# Pareto exponents of the distributions' tails; a smaller exponent is a heavier tail.
_POPULARITY_TAIL = 1.3
_BOARD_SIZE_TAIL = 1.4
_TOPIC_SIZE_DECAY = 0.3
_RELATED_TOPICS = 4
_ITEM_BLOCK = 1 << 18

# Lengths of the components of a feature vector: a topic that the view shows strongly, one
# that it shows weakly, a style, and a look.  Noise of scale 1 has length 1 too.
_STRONG_TOPIC, _WEAK_TOPIC, _STYLE, _LOOK = 1.0, 0.25, 0.25, 0.8
_VISUAL_NOISE, _TEXT_NOISE = 1.0, 0.8


class Stream(enum.IntEnum):
    """The independent random streams of one seed."""

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
    """Rows [first, first + rows) of a stream, float64 [rows, columns] in [0, 1).

    A stream must always be read with the same number of columns.
    """
    # A counter of Philox yields four numbers, so a row takes whole counters.
    counters = -(-columns // 4)
    bits = np.random.Philox(key=np.array([seed % 2**64, stream], np.uint64))
    bits.advance(first * counters)
    return np.random.Generator(bits).random((rows, 4 * counters))[:, :columns]


def normals(seed: int, stream: Stream, first: int, rows: int, columns: int) -> np.ndarray:
    """As `uniforms`, but standard normal and float32.

    The Box-Muller transform uses a fixed number of draws per row.
    """
    half = -(-columns // 2)
    draws = uniforms(seed, stream, first, rows, 2 * half)
    radius = np.sqrt(-2.0 * np.log1p(-draws[:, :half])).astype(np.float32)
    angle = (2.0 * np.pi * draws[:, half:]).astype(np.float32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :columns]


class WeightedGroups:
    """Draws members of groups in proportion to their weights.

    Attributes:
      table: starts int64 [G + 1], running sums of weights float64 [m + 1], members int32 [m].
    """

    def __init__(self, groups: np.ndarray, members: np.ndarray, weights: np.ndarray, count: int):
        """Prepares the running sums of the weights.

        Args:
          groups: int [n] or [n, P], the groups of each entry.
          members: int32 [n], the value that a draw of the entry returns.
          weights: float, in the shape of `groups`; 0: the entry is never drawn in this group.
          count: G, the number of groups.
        """
        shape = len(members), groups.size // max(len(members), 1)
        groups, weights = groups.reshape(shape), weights.reshape(shape)
        starts = np.zeros(count + 1, np.int64)
        draw_kernels.count_members(groups, weights, starts)
        found = np.empty(starts[-1], np.int32)
        cumulative = np.empty(len(found) + 1)
        draw_kernels.sum_members(
            groups, members.astype(np.int32, copy=False), weights, starts[:-1].copy(), found,
            cumulative,
        )  # fmt: skip
        self.table = starts, cumulative, found

    def draw(self, groups: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draws one member of each group, int64 [...]; -1 for an empty group.

        Args:
          groups: int [...].
          uniform: random numbers float64 [...] in [0, 1).
        """
        out = np.empty(np.shape(groups), np.int64)
        flat = np.ascontiguousarray(groups, np.int64).reshape(-1)
        draw_kernels.draw_members(
            *self.table, flat, np.ascontiguousarray(uniform).reshape(-1), out.reshape(-1)
        )
        return out


@dataclasses.dataclass(frozen=True)
class ItemLatents:
    """Latent variables of the items.

    Attributes:
      groups: int32 [N, ITEM_PARTS], the main group first.
      shares: float32 [N, ITEM_PARTS], summing to 1; the third may be 0.
      looks: float32 [N, LOOK_DIM], standard normal.
      popularity: float32 [N], with a Pareto tail.
      connected: bool [N], false for an isolated item.
    """

    groups: np.ndarray
    shares: np.ndarray
    looks: np.ndarray
    popularity: np.ndarray
    connected: np.ndarray

    def by_group(self, count: int, exponent: float) -> WeightedGroups:
        """Connected items by group, weighted by share times popularity**exponent."""
        weights = self.shares * (self.popularity**exponent * self.connected)[:, None]
        members = np.arange(len(self.groups), dtype=np.int32)
        return WeightedGroups(self.groups, members, weights, count)

    def overall(self, exponent: float) -> WeightedGroups:
        """All connected items as one group, weighted by popularity**exponent."""
        members = np.arange(len(self.groups), dtype=np.int32)
        weights = self.popularity**exponent * self.connected
        return WeightedGroups(np.zeros(len(members), np.int8), members, weights, 1)


@dataclasses.dataclass(frozen=True)
class BoardLatents:
    """Latent variables of the boards.

    Attributes:
      groups: int32 [C, BOARD_PARTS].
      cumulative: float32 [C, BOARD_PARTS], cumulative shares of the groups.
      noise: bool [C], true for a board that is filled regardless of topic.
      offsets: int64 [C + 1]; board c draws the edges [offsets[c], offsets[c + 1]).
    """

    groups: np.ndarray
    cumulative: np.ndarray
    noise: np.ndarray
    offsets: np.ndarray

    def by_group(self, count: int) -> WeightedGroups:
        """Boards other than noise boards by group, weighted by share times size."""
        shares = np.diff(self.cumulative, axis=1, prepend=np.float32(0))
        weights = shares * (np.diff(self.offsets) * ~self.noise)[:, None]
        members = np.arange(len(self.noise), dtype=np.int32)
        return WeightedGroups(self.groups, members, weights, count)

    def overall(self) -> WeightedGroups:
        """All boards as one group, weighted by size."""
        members = np.arange(len(self.noise), dtype=np.int32)
        weights = np.maximum(np.diff(self.offsets), 1)
        return WeightedGroups(np.zeros(len(members), np.int8), members, weights, 1)


def group_count(settings: SyntheticCatalog) -> int:
    """G, the number of (topic, style) pairs."""
    return settings.topics * settings.styles


def _draw_topics(settings: SyntheticCatalog, uniform: np.ndarray) -> np.ndarray:
    """Topics int32 in the shape of `uniform`; their sizes follow a mild power law."""
    sizes = np.arange(1, settings.topics + 1) ** -_TOPIC_SIZE_DECAY
    bounds = np.cumsum(sizes) / sizes.sum()
    return np.searchsorted(bounds[:-1], uniform, side="right").astype(np.int32)


def _related_topics(
    settings: SyntheticCatalog, topics: np.ndarray, uniform: np.ndarray
) -> np.ndarray:
    """One overlapping topic for each of `topics`; topics overlap with neighbors on a ring."""
    step = 1 + (uniform * 2 * _RELATED_TOPICS).astype(np.int32)
    step = np.where(step > _RELATED_TOPICS, _RELATED_TOPICS - step, step)
    return (topics + step) % settings.topics


def _draw_styles(settings: SyntheticCatalog, uniform: np.ndarray) -> np.ndarray:
    return (uniform * settings.styles).astype(np.int32)


def draw_items(settings: SyntheticCatalog) -> ItemLatents:
    """Draws the latent variables of all items."""
    count, seed = settings.items, settings.seed
    # A connected item has at least one edge, so there are at most as many as edges.
    num_connected = min(count - round(settings.isolated * count), settings.edges)
    groups = np.empty((count, ITEM_PARTS), np.int32)
    shares = np.empty((count, ITEM_PARTS), np.float32)
    looks = np.empty((count, LOOK_DIM), np.float32)
    popularity = np.empty(count, np.float32)
    connection_draws = np.empty(count)
    for first in range(0, count, _ITEM_BLOCK):
        rows = min(_ITEM_BLOCK, count - first)
        block = slice(first, first + rows)
        draws = uniforms(seed, Stream.ITEMS, first, rows, 12)
        main = _draw_topics(settings, draws[:, 0])
        topics = np.stack(
            [
                main,
                _related_topics(settings, main, draws[:, 1]),
                _draw_topics(settings, draws[:, 2]),
            ],
            axis=1,
        )
        groups[block] = topics * settings.styles + _draw_styles(settings, draws[:, 3:6])
        second = 0.15 + 0.2 * draws[:, 6]
        third = np.where(draws[:, 7] < 0.5, 0.0, 0.15 * draws[:, 8])
        shares[block] = np.stack([1.0 - second - third, second, third], axis=1)
        tail = (1.0 - draws[:, 9]) ** (-1.0 / _POPULARITY_TAIL)
        popularity[block] = np.minimum(tail, 2.0 * np.sqrt(count))
        connection_draws[block] = draws[:, 10]
        looks[block] = normals(seed, Stream.LOOKS, first, rows, LOOK_DIM)
    threshold = np.partition(connection_draws, count - num_connected)[count - num_connected]
    return ItemLatents(groups, shares, looks, popularity, connection_draws >= threshold)


def draw_boards(settings: SyntheticCatalog, edges: int) -> BoardLatents:
    """Draws the latent variables of all boards; their sizes sum to `edges`."""
    count = settings.collections
    sizes = np.empty(count)
    for block in _board_blocks(count):
        tail = (1.0 - _board_draws(settings, block)[:, 0]) ** (-1.0 / _BOARD_SIZE_TAIL)
        sizes[block] = np.minimum(tail, 2.0 * np.sqrt(count))
    # Every board has an edge if there are enough edges.
    base = 1 if edges >= count else 0
    cumulative_edges = np.cumsum(sizes) / sizes.sum() * (edges - base * count)
    cumulative_edges[-1] = edges - base * count
    offsets = np.zeros(count + 1, np.int64)
    offsets[1:] = np.floor(cumulative_edges).astype(np.int64) + base * np.arange(1, count + 1)
    groups = np.empty((count, BOARD_PARTS), np.int32)
    cumulative = np.empty((count, BOARD_PARTS), np.float32)
    noise = np.empty(count, np.bool_)
    for block in _board_blocks(count):
        draws = _board_draws(settings, block)
        edges_of = np.diff(offsets[block.start : block.stop + 1])
        groups[block] = _board_groups(settings, draws)
        cumulative[block] = _board_shares(edges_of, draws[:, 3])
        noise[block] = draws[:, 1] < settings.noise_boards
    return BoardLatents(groups, cumulative, noise, offsets)


def _board_blocks(count: int) -> Iterator[slice]:
    return (slice(a, min(a + _ITEM_BLOCK, count)) for a in range(0, count, _ITEM_BLOCK))


def _board_draws(settings: SyntheticCatalog, block: slice) -> np.ndarray:
    """Random numbers of the boards of a block, float64 [n, 4 + 3 BOARD_PARTS]."""
    rows = block.stop - block.start
    return uniforms(settings.seed, Stream.BOARDS, block.start, rows, 4 + 3 * BOARD_PARTS)


def _board_groups(settings: SyntheticCatalog, draws: np.ndarray) -> np.ndarray:
    """Groups int32 [n, BOARD_PARTS] of boards."""
    main = _draw_topics(settings, draws[:, 2])
    topic_draws, same_topic_draws, style_draws = np.split(draws[:, 4:], 3, axis=1)
    # A part is the main topic in another style, or an overlapping topic.
    other = _related_topics(settings, main[:, None], topic_draws)
    topics = np.where(same_topic_draws < 0.4, main[:, None], other)
    topics[:, 0] = main
    return (topics * settings.styles + _draw_styles(settings, style_draws)).astype(np.int32)


def _board_shares(edges: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Cumulative shares float32 [n, BOARD_PARTS] of the groups of boards with int [n] edges."""
    # A larger board has more groups; otherwise it would hold the same few items repeatedly.
    breadth = np.log2(np.maximum(edges, 1) / 16.0) + 2.0 * uniform
    parts = np.clip(1 + np.floor(breadth), 1, BOARD_PARTS)
    shares = np.where(np.arange(BOARD_PARTS) < parts[:, None], 0.7 ** np.arange(BOARD_PARTS), 0.0)
    return (np.cumsum(shares, axis=1) / shares.sum(axis=1, keepdims=True)).astype(np.float32)


class FeatureView:
    """Feature vectors of one kind: a noisy, partial projection of the latent variables.

    The visual-like view shows even topics and the first half of the look strongly, the
    text-like view odd topics and the second half.
    """

    def __init__(self, settings: SyntheticCatalog, *, text: bool):
        """Draws the projection of the text-like view if `text`, else of the visual-like one."""
        self._settings = settings
        self._dim = settings.text_dim if text else settings.visual_dim
        self._stream = Stream.TEXT_NOISE if text else Stream.VISUAL_NOISE
        self._noise = settings.noise * (_TEXT_NOISE if text else _VISUAL_NOISE)
        topics, groups = settings.topics, group_count(settings)
        table = Stream.TEXT_TABLE if text else Stream.VISUAL_TABLE
        axes = normals(settings.seed, table, 0, topics + groups + LOOK_DIM, self._dim)
        axes *= np.float32(self._dim**-0.5)
        is_strong = np.arange(topics) % 2 == int(text)
        topic_vectors = axes[:topics] * np.where(is_strong, _STRONG_TOPIC, _WEAK_TOPIC)[:, None]
        style_vectors = axes[topics : topics + groups] * _STYLE
        group_topics = np.repeat(topic_vectors, settings.styles, axis=0)
        self._groups = (group_topics + style_vectors).astype(np.float32)
        half = LOOK_DIM // 2
        is_visible = np.arange(LOOK_DIM) // half == int(text)
        looks = axes[topics + groups :] * (is_visible * _LOOK * half**-0.5)[:, None]
        self._looks = looks.astype(np.float32)

    def rows(self, items: ItemLatents, first: int, stop: int) -> np.ndarray:
        """Feature vectors of the items [first, stop), float32 [stop - first, dim]."""
        noise = normals(self._settings.seed, self._stream, first, stop - first, self._dim)
        result = noise * np.float32(self._noise * self._dim**-0.5)
        # Explicit sums, because the rounding of a matrix product may depend on the block size.
        for part in range(ITEM_PARTS):
            share = items.shares[first:stop, part, None]
            result += share * self._groups[items.groups[first:stop, part]]
        for axis in range(LOOK_DIM):
            result += items.looks[first:stop, axis, None] * self._looks[axis]
        return result
