"""The embedded example: a Pinterest-like world, written as ordinary Parquet inputs.

`write_world` draws the truth (`synthetic_truth`), fills boards with items, draws
engagement pairs and writes what a user would bring:

  edges.parquet        collection_id, item_id
  items.parquet        item_id, name, visual, text_vector
  train_pairs.parquet  query_id, target_id, kind
  eval_pairs.parquet   query_id, target_id, kind (warm, or cold: target without edge)
  manifest.json        settings, counts, checksums and what each column means

The readable label is called `name` and not `title`, because a title is taken as a
text feature by default and this one tells the truth.

Memory stays bounded by the items (about 200 bytes each) and one block of rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinsage_jax.config.data import SyntheticWorld
from pinsage_jax.core import files
from pinsage_jax.core.progress import Progress
from pinsage_jax.synthetic import truth as truth
from pinsage_jax.synthetic.truth import Stream

COLD_SHARE = 0.25

_EDGE_BLOCK = 1 << 19
_ITEM_BLOCK = 1 << 15
_PAIR_BLOCK = 1 << 14

# A save that has nothing to do with the board, and one of the board's topic but
# not of its style.
_STRAY_EDGE, _STRAY_STYLE = 0.08, 0.15
# How often another item is drawn in place of one that the board already holds.
_SECOND_CHANCES = 4

# Pairs: the popularity tilt, candidates weighed per pair, chance of another style
# of the topic, and what shared groups and similar looks count for.
_TILT, _CANDIDATES, _OTHER_STYLE, _GROUP_PULL, _LOOK_PULL = 0.4, 24, 0.1, 2.0, 3.0
_PAIR_ROUNDS = 6

_COLUMNS = {
    "edges.parquet": "collection_id, item_id: one row per item saved to a board.",
    "items.parquet": "item_id; name, a label that tells the true topic and style, to read and not "
    "to learn from; visual and text_vector, fixed-size lists of float32.",
    "train_pairs.parquet": "query_id, target_id, kind: engagement to train on, all of it warm.",
    "eval_pairs.parquet": "query_id, target_id, kind: engagement to evaluate on, none of it in "
    "train_pairs; warm pairs have edges on both sides, the target of a cold pair has none.",
}


def write_world(world: SyntheticWorld, folder: str | os.PathLike) -> dict[str, str]:
    """Writes the generated world to `folder`, replacing what is there.

    The same settings give the same rows, in the same order.

    Returns:
      Paths by the name of the DataConfig field that takes them: edges, items,
      train_pairs, eval_pairs.

    Raises:
      UserError: a setting is out of range, or `folder` cannot be written.
    """
    world.validate()
    folder = pathlib.Path(folder)
    catalog = truth.draw_catalog(world)
    rows = world.edges + world.items + 2 * world.pairs
    with (
        Progress(total=rows, unit="row", name="generating the world") as progress,
        files.atomic_folder(folder) as temporary,
    ):
        _write(temporary / "edges.parquet", _edge_batches(world, catalog), progress)
        _write(temporary / "items.parquet", _item_batches(world, catalog), progress)
        pairs = draw_pairs(world, catalog)
        for name, (query, target, kind) in pairs.items():
            table = _pair_table(world, query, target, kind)
            _write(temporary / f"{name}.parquet", iter([table]), progress)
        manifest = {
            "what": "A generated Pinterest-like world: the embedded example of pinsage_jax.",
            "files": _COLUMNS,
            "settings": dataclasses.asdict(world),
            "counts": {
                "items": world.items,
                "items_without_edges": int(np.count_nonzero(~catalog.connected)),
                "collections": world.collections,
                "edge_rows": world.edges,
                "train_pairs": len(pairs["train_pairs"][0]),
                "eval_pairs_warm": int(np.count_nonzero(pairs["eval_pairs"][2] == "warm")),
                "eval_pairs_cold": int(np.count_nonzero(pairs["eval_pairs"][2] == "cold")),
            },
            "checksums": files.checksums(temporary, sorted(_COLUMNS)),
        }
        files.write_json(temporary / "manifest.json", manifest)
    names = ("edges", "items", "train_pairs", "eval_pairs")
    return {name: str(folder / f"{name}.parquet") for name in names}


def _write(path: pathlib.Path, batches: Iterator[pa.RecordBatch], progress: Progress) -> None:
    first = next(batches)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)
            progress.update(batch.num_rows)


def id_strings(prefix: str, numbers: np.ndarray, count: int, least_width: int) -> pa.StringArray:
    """Ids such as pin0000123: the prefix and the zero-padded number.

    Args:
      prefix: ASCII.
      numbers: [n] int, each below `count`.
      count: how many there are in all; it widens the ids beyond `least_width` digits.
      least_width: digits at least.
    """
    width = max(least_width, len(str(count - 1)))
    length = len(prefix) + width
    text = np.empty((len(numbers), length), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode("ascii"), np.uint8)
    rest = numbers.astype(np.uint32)
    for place in range(length - 1, len(prefix) - 1, -1):
        rest, digit = np.divmod(rest, np.uint32(10))
        text[:, place] = digit + np.uint32(ord("0"))
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(length)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text))


def _item_ids(world: SyntheticWorld, numbers: np.ndarray) -> pa.StringArray:
    return id_strings("pin", numbers, world.items, 7)


def edge_blocks(
    world: SyntheticWorld, catalog: truth.Catalog, block: int = _EDGE_BLOCK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (boards, items) of at most `block` edges, each [n] int64.

    First every connected item is saved once, then boards fill by their groups and
    the items' popularity.  A few edges occur twice.  `block` does not change the
    edges; a board larger than it comes whole.
    """
    groups = truth.group_count(world)
    connected = np.flatnonzero(catalog.connected)
    boards = truth.draw_boards(world, world.edges - len(connected))
    by_group, overall = boards.by_group(groups), boards.overall()
    for first in range(0, len(connected), block):
        items = connected[first : first + block]
        draws = truth.uniforms(world.seed, Stream.FIRST_EDGES, first, len(items), 4)
        part = _pick_part(np.cumsum(catalog.shares[items], axis=1), draws[:, 0])
        found = by_group.draw(catalog.groups[items, part], draws[:, 1])
        stray = (draws[:, 2] < _STRAY_EDGE) | (found < 0)
        anywhere = overall.draw(np.zeros(len(items), np.int64), draws[:, 3])
        yield np.where(stray, anywhere, found), items
    del by_group, overall

    by_group, overall = catalog.by_group(groups, 1.0), catalog.overall(1.0)
    low = 0
    while low < world.collections:
        # Whole boards, so that what a board holds twice is seen.
        high = int(np.searchsorted(boards.offsets, boards.offsets[low] + block, side="right")) - 1
        high = max(high, low + 1)
        if boards.offsets[high] > boards.offsets[low]:
            yield _fill_boards(world, boards, by_group, overall, low, high)
        low = high


def _fill_boards(
    world: SyntheticWorld,
    boards: truth.Boards,
    by_group: truth.WeightedGroups,
    overall: truth.WeightedGroups,
    low: int,
    high: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The edges drawn by boards [low, high): (boards, items), each [n] int64."""
    first, stop = int(boards.offsets[low]), int(boards.offsets[high])
    board = np.repeat(np.arange(low, high), np.diff(boards.offsets[low : high + 1]))
    draws = truth.uniforms(world.seed, Stream.EDGES, first, stop - first, 4 + 2 * _SECOND_CHANCES)
    group = boards.groups[board, _pick_part(boards.cumulative[board], draws[:, 0])]
    group = _change_style(world, group, draws[:, 1], _STRAY_STYLE)
    aimless = boards.noise[board] | (draws[:, 3] < _STRAY_EDGE)
    items = _draw_items(by_group, overall, group, aimless, draws[:, 2])
    for chance in range(_SECOND_CHANCES):
        twice = np.ones(stop - first, bool)
        twice[np.unique(board * world.items + items, return_index=True)[1]] = False
        rows = np.flatnonzero(twice)
        # A board that exhausts its groups reaches for others of its wider interests.
        part, again = draws[rows, 4 + 2 * chance], draws[rows, 5 + 2 * chance]
        group = boards.groups[board[rows], (part * truth.BOARD_PARTS).astype(np.int64)]
        items[rows] = _draw_items(by_group, overall, group, aimless[rows], again)
    return board, items


def _draw_items(
    by_group: truth.WeightedGroups,
    overall: truth.WeightedGroups,
    group: np.ndarray,
    aimless: np.ndarray,
    chance: np.ndarray,
) -> np.ndarray:
    """[n] int64 items of each row's group; of any group where aimless or it has none."""
    items = by_group.draw(group, chance)
    rows = np.flatnonzero(aimless | (items < 0))
    items[rows] = overall.draw(np.zeros(len(rows), np.int64), chance[rows])
    return items


def _pick_part(cumulative: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """[n] index of the part in which `chance` falls, given [n, P] cumulative shares."""
    return np.minimum((chance[:, None] >= cumulative).sum(axis=1), cumulative.shape[1] - 1)


def _change_style(
    world: SyntheticWorld, group: np.ndarray, chance: np.ndarray, share: float
) -> np.ndarray:
    """With probability `share` another group of the same topic."""
    style = (chance / share * world.styles).astype(np.int64)
    other = group - group % world.styles + style
    return np.where(chance < share, other, group)


def _edge_batches(world: SyntheticWorld, catalog: truth.Catalog) -> Iterator[pa.RecordBatch]:
    for boards, items in edge_blocks(world, catalog):
        collection = id_strings("board", boards, world.collections, 6)
        yield pa.record_batch({"collection_id": collection, "item_id": _item_ids(world, items)})


def _item_batches(world: SyntheticWorld, catalog: truth.Catalog) -> Iterator[pa.RecordBatch]:
    views = {
        "visual": truth.FeatureView(world, text=False),
        "text_vector": truth.FeatureView(world, text=True),
    }
    for first in range(0, world.items, _ITEM_BLOCK):
        stop = min(first + _ITEM_BLOCK, world.items)
        numbers = np.arange(first, stop)
        main = catalog.groups[first:stop, 0]
        columns = {
            "item_id": _item_ids(world, numbers),
            "name": pa.array(
                f"topic{group // world.styles} style{group % world.styles} pin {number}"
                for number, group in zip(numbers.tolist(), main.tolist())
            ),
        }
        for name, view in views.items():
            vectors = view.rows(catalog, first, stop)
            columns[name] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        yield pa.record_batch(columns)


def draw_pairs(
    world: SyntheticWorld, catalog: truth.Catalog, block: int = _PAIR_BLOCK
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draws engagement: (query, target, kind) for train_pairs and eval_pairs.

    No two pairs join the same two items, whichever is the query.  A world too small
    for `pairs` of them has fewer.  Items without edges are the target of cold
    evaluation pairs alone.  `block` does not change the pairs.
    """
    has_cold = not catalog.connected.all()
    cold = round(COLD_SHARE * world.pairs) if has_cold else 0
    warm = world.pairs - cold
    cold_target, cold_query = _unique_pairs(world, catalog, Stream.COLD_PAIRS, cold, block)
    query, target = _unique_pairs(world, catalog, Stream.WARM_PAIRS, warm + world.pairs, block)
    warm = min(warm, (len(query) + 1) // 2)
    train = query[warm:], target[warm:], np.full(len(query) - warm, "warm")
    return {
        "train_pairs": train,
        "eval_pairs": (
            np.concatenate([query[:warm], cold_query]),
            np.concatenate([target[:warm], cold_target]),
            np.repeat(["warm", "cold"], [warm, len(cold_query)]),
        ),
    }


def _unique_pairs(
    world: SyntheticWorld, catalog: truth.Catalog, stream: Stream, wanted: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `wanted` pairs (anchor, other), each [n] int64, in the order of drawing."""
    empty = np.empty(0, np.int64)
    if not wanted:
        return empty, empty
    count = world.items
    by_group = catalog.by_group(truth.group_count(world), _TILT)
    if stream is Stream.COLD_PAIRS:
        # New items wait for their first engagement, so none is more popular.
        members = np.flatnonzero(~catalog.connected).astype(np.int32)
        anchors = truth.WeightedGroups(
            np.zeros(len(members), np.int8), members, np.ones(len(members)), 1
        )
    else:
        anchors = catalog.overall(_TILT)
    anchor, other = empty, empty
    drawn = 0
    for _ in range(_PAIR_ROUNDS):
        more = wanted + wanted // 4 + 16
        parts = [(anchor, other)]
        for first in range(drawn, drawn + more, block):
            rows = min(block, drawn + more - first)
            parts.append(_draw_pair_block(world, catalog, anchors, by_group, stream, first, rows))
        drawn += more
        anchor, other = (np.concatenate(side) for side in zip(*parts))
        key = np.minimum(anchor, other) * count + np.maximum(anchor, other)
        kept = np.sort(np.unique(key, return_index=True)[1])
        anchor, other = anchor[kept], other[kept]
        if len(anchor) >= wanted:
            break
    return anchor[:wanted], other[:wanted]


def _draw_pair_block(
    world: SyntheticWorld,
    catalog: truth.Catalog,
    anchors: truth.WeightedGroups,
    by_group: truth.WeightedGroups,
    stream: Stream,
    first: int,
    rows: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws an anchor and, among candidates of one of its groups, a similar item."""
    draws = truth.uniforms(world.seed, stream, first, rows, 4 + 2 * _CANDIDATES)
    anchor = anchors.draw(np.zeros(rows, np.int64), draws[:, 0])
    part = _pick_part(np.cumsum(catalog.shares[anchor], axis=1), draws[:, 1])
    group = _change_style(world, catalog.groups[anchor, part], draws[:, 2], _OTHER_STYLE)
    chance = draws[:, 4 : 4 + _CANDIDATES]
    candidates = by_group.draw(np.repeat(group[:, None], _CANDIDATES, axis=1), chance)
    shared = np.zeros(candidates.shape, np.float32)
    for mine in range(truth.ITEM_PARTS):
        for theirs in range(truth.ITEM_PARTS):
            same = catalog.groups[anchor, mine, None] == catalog.groups[candidates, theirs]
            weight = catalog.shares[anchor, mine, None] * catalog.shares[candidates, theirs]
            shared += same * weight
    apart = catalog.looks[anchor, None] - catalog.looks[candidates]
    apart = np.square(apart).sum(axis=2) / truth.LOOK_DIM
    # Adding Gumbel noise and taking the best draws from the softmax of the scores.
    gumbel = -np.log(-np.log1p(-np.maximum(draws[:, 4 + _CANDIDATES :], 1e-12)))
    score = _GROUP_PULL * shared - _LOOK_PULL * apart + gumbel
    score[(candidates == anchor[:, None]) | (candidates < 0)] = -np.inf
    best = np.argmax(score, axis=1)
    row = np.arange(rows)
    found = np.isfinite(score[row, best])
    return anchor[found], candidates[row, best][found]


def _pair_table(
    world: SyntheticWorld, query: np.ndarray, target: np.ndarray, kind: np.ndarray
) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "query_id": _item_ids(world, query),
            "target_id": _item_ids(world, target),
            "kind": pa.array(kind.tolist(), pa.string()),
        }
    )
