"""Generates the embedded example and writes it as ordinary Parquet input tables.

`write_catalog` draws the latent variables (latents.py), fills boards with items, draws
engagement pairs, and writes the tables that a user would bring:

  edges.parquet        collection_id, item_id
  items.parquet        item_id, name, visual, text_vector
  train_pairs.parquet  query_id, target_id, kind
  eval_pairs.parquet   query_id, target_id, kind (warm; or cold: the target is isolated)
  manifest.json        settings, counts, checksums and the meaning of each column

The readable label (words.py) is called `name`, not `title`: a title is a text feature by
default, and this label tells the latent topic and style.

The memory is bounded by about 200 bytes per item and one block of rows.

Axis letters: n rows, N items, P parts (groups of one item or board).
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

from pinsage_jax.config.data import SyntheticCatalog
from pinsage_jax.core import files
from pinsage_jax.core.progress import Progress
from pinsage_jax.synthetic import draw_kernels, latents, words
from pinsage_jax.synthetic.latents import Stream
from pinsage_jax.synthetic.ordered import in_order

COLD_SHARE = 0.25

_EDGE_BLOCK = 1 << 19
_ITEM_BLOCK = 1 << 15
_PAIR_BLOCK = 1 << 14

# Probabilities that an edge has nothing to do with its board, and that it has the board's
# topic but another style.
_OFF_TOPIC, _EDGE_OTHER_STYLE = 0.08, 0.15
# Number of attempts to replace an item that the board already holds.
_REDRAWS = 4

# Pairs: exponent of the popularity, candidates per pair, probability of another style of the
# topic, and weights of shared groups and of similar looks.
_POPULARITY_EXPONENT, _CANDIDATES, _PAIR_OTHER_STYLE = 0.4, 24, 0.1
_GROUP_WEIGHT, _LOOK_WEIGHT = 2.0, 3.0
_PAIR_ROUNDS = 6

_COLUMNS = {
    "edges.parquet": "collection_id, item_id: one row per item saved to a board.",
    "items.parquet": "item_id; name, a label with the latent topic and style, for reading and not "
    "for training; visual and text_vector, fixed-size lists of float32.",
    "train_pairs.parquet": "query_id, target_id, kind: engagement for training, all pairs warm.",
    "eval_pairs.parquet": "query_id, target_id, kind: engagement for evaluation, disjoint from "
    "train_pairs; both items of a warm pair have edges, the target of a cold pair has none.",
}


def write_catalog(settings: SyntheticCatalog, folder: str | os.PathLike) -> dict[str, str]:
    """Writes the synthetic catalog to `folder`, which it replaces if it exists.

    Equal settings give equal rows in the same order.

    Returns:
      The path of each table by the name of its DataConfig field: edges, items, train_pairs,
      eval_pairs.

    Raises:
      UserError: a setting is out of range, or `folder` cannot be written.
    """
    settings.validate()
    folder = pathlib.Path(folder)
    item_latents = latents.draw_items(settings)
    rows = settings.edges + settings.items + 2 * settings.pairs
    with (
        Progress(total=rows, unit="row", name="generating the catalog") as progress,
        files.atomic_folder(folder) as temporary,
    ):
        _write(temporary / "edges.parquet", _edge_batches(settings, item_latents), progress)
        _write(temporary / "items.parquet", _item_batches(settings, item_latents), progress)
        pairs = draw_pairs(settings, item_latents)
        for name, (query, target, kind) in pairs.items():
            table = _pair_table(settings, query, target, kind)
            _write(temporary / f"{name}.parquet", iter([table]), progress)
        manifest = {
            "what": "A synthetic Pinterest-like item_latents: the embedded example of pinsage_jax.",
            "files": _COLUMNS,
            "settings": dataclasses.asdict(settings),
            "counts": {
                "items": settings.items,
                "items_without_edges": int(np.count_nonzero(~item_latents.connected)),
                "collections": settings.collections,
                "edge_rows": settings.edges,
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


def id_strings(prefix: str, numbers: np.ndarray, count: int, min_digits: int) -> pa.StringArray:
    """Ids such as pin0000123: a prefix and a zero-padded number.

    Args:
      prefix: ASCII text.
      numbers: int [n], each below `count`.
      count: number of all ids, which may need more than `min_digits` digits.
      min_digits: minimum number of digits.
    """
    width = max(min_digits, len(str(count - 1)))
    length = len(prefix) + width
    text = np.empty((len(numbers), length), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode("ascii"), np.uint8)
    rest = numbers.astype(np.uint32)
    for column in range(length - 1, len(prefix) - 1, -1):
        rest, digit = np.divmod(rest, np.uint32(10))
        text[:, column] = digit + np.uint32(ord("0"))
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(length)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text))


def _item_ids(settings: SyntheticCatalog, numbers: np.ndarray) -> pa.Array:
    if settings.number_ids:
        return pa.array(numbers.astype(np.int32))
    return id_strings("pin", numbers, settings.items, 7)


def _board_ids(settings: SyntheticCatalog, numbers: np.ndarray) -> pa.Array:
    if settings.number_ids:
        return pa.array(numbers.astype(np.int32))
    return id_strings("board", numbers, settings.collections, 6)


def edge_blocks(
    settings: SyntheticCatalog, item_latents: latents.ItemLatents, block: int = _EDGE_BLOCK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (boards, items), int64 [n] each, of about `block` edges.

    First every connected item gets one edge; then the boards are filled by their groups and
    the items' popularity.  A few edges occur twice.  The edges do not depend on `block`; a
    board with more edges is one block.
    """
    groups = latents.group_count(settings)
    connected = np.flatnonzero(item_latents.connected)
    boards = latents.draw_boards(settings, settings.edges - len(connected))
    by_group, overall = boards.by_group(groups), boards.overall()
    for first in range(0, len(connected), block):
        items = connected[first : first + block]
        draws = latents.uniforms(settings.seed, Stream.FIRST_EDGES, first, len(items), 4)
        part = _pick_part(np.cumsum(item_latents.shares[items], axis=1), draws[:, 0])
        of_group = by_group.draw(item_latents.groups[items, part], draws[:, 1])
        off_topic = (draws[:, 2] < _OFF_TOPIC) | (of_group < 0)
        of_any = overall.draw(np.zeros(len(items), np.int64), draws[:, 3])
        yield np.where(off_topic, of_any, of_group), items
    del by_group, overall

    by_group, overall = item_latents.by_group(groups, 1.0), item_latents.overall(1.0)

    def fill(span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return _fill_boards(settings, boards, by_group, overall, *span)

    yield from in_order(fill, _board_spans(boards.offsets, block))


def _board_spans(offsets: np.ndarray, block: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole boards of about `block` edges: duplicates are removed within a board."""
    low, count = 0, len(offsets) - 1
    while low < count:
        high = int(np.searchsorted(offsets, offsets[low] + block, side="right")) - 1
        high = max(high, low + 1)
        if offsets[high] > offsets[low]:
            yield low, high
        low = high


def _fill_boards(
    settings: SyntheticCatalog,
    boards: latents.BoardLatents,
    by_group: latents.WeightedGroups,
    overall: latents.WeightedGroups,
    low: int,
    high: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the boards [low, high): (boards, items), int64 [n] each.

    An item of each edge's group is drawn, of any group if the edge is off topic or the group is
    empty; one that the board has already is drawn again, at most _REDRAWS times.
    """
    first, stop = int(boards.offsets[low]), int(boards.offsets[high])
    draws = latents.uniforms(settings.seed, Stream.EDGES, first, stop - first, 4 + 2 * _REDRAWS)
    board, items = np.empty(stop - first, np.int64), np.empty(stop - first, np.int64)
    draw_kernels.fill_boards(
        boards.groups, boards.cumulative, boards.noise, boards.offsets, low, high, draws,
        by_group.table, overall.table, settings.styles,
        np.array([_OFF_TOPIC, _EDGE_OTHER_STYLE]), _REDRAWS, board, items,
    )  # fmt: skip
    return board, items


def _pick_part(cumulative: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Parts int64 [n] drawn by cumulative shares [n, P] and random numbers [n] in [0, 1)."""
    return np.minimum((uniform[:, None] >= cumulative).sum(axis=1), cumulative.shape[1] - 1)


def _change_style(
    settings: SyntheticCatalog, group: np.ndarray, uniform: np.ndarray, probability: float
) -> np.ndarray:
    """Replaces a group by one of the same topic, with a random style, with `probability`."""
    style = (uniform / probability * settings.styles).astype(np.int64)
    other = group - group % settings.styles + style
    return np.where(uniform < probability, other, group)


def _edge_batches(
    settings: SyntheticCatalog, item_latents: latents.ItemLatents
) -> Iterator[pa.RecordBatch]:
    def batch(edges: tuple[np.ndarray, np.ndarray]) -> pa.RecordBatch:
        boards, items = edges
        names = "collection_id", "item_id"
        return pa.record_batch([_board_ids(settings, boards), _item_ids(settings, items)], names)

    return in_order(batch, edge_blocks(settings, item_latents))


def _item_batches(
    settings: SyntheticCatalog, item_latents: latents.ItemLatents
) -> Iterator[pa.RecordBatch]:
    views = {
        "visual": latents.FeatureView(settings, text=False),
        "text_vector": latents.FeatureView(settings, text=True),
    }

    def batch(first: int) -> pa.RecordBatch:
        stop = min(first + _ITEM_BLOCK, settings.items)
        columns = {"item_id": _item_ids(settings, np.arange(first, stop))}
        if settings.names:
            main = item_latents.groups[first:stop, 0]
            names = words.titles(first, main, settings.topics, settings.styles)
            columns["name"] = pa.array(names)
        for name, view in views.items():
            vectors = view.rows(item_latents, first, stop)
            columns[name] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        return pa.record_batch(columns)

    return in_order(batch, range(0, settings.items, _ITEM_BLOCK))


def draw_pairs(
    settings: SyntheticCatalog, item_latents: latents.ItemLatents, block: int = _PAIR_BLOCK
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Draws engagement pairs: (query, target, kind) of train_pairs and of eval_pairs.

    No two pairs have the same two items in either order.  A small catalog may have fewer
    pairs than the settings request.  Isolated items occur only as targets of cold evaluation
    pairs.  The pairs do not depend on `block`.
    """
    has_cold = not item_latents.connected.all()
    cold = round(COLD_SHARE * settings.pairs) if has_cold else 0
    warm = settings.pairs - cold
    cold_target, cold_query = _unique_pairs(settings, item_latents, Stream.COLD_PAIRS, cold, block)
    query, target = _unique_pairs(
        settings, item_latents, Stream.WARM_PAIRS, warm + settings.pairs, block
    )
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
    settings: SyntheticCatalog,
    item_latents: latents.ItemLatents,
    stream: Stream,
    count: int,
    block: int,
) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` distinct pairs (anchor, other), int64 [n] each, in the order drawn."""
    empty = np.empty(0, np.int64)
    if not count:
        return empty, empty
    by_group = item_latents.by_group(latents.group_count(settings), _POPULARITY_EXPONENT)
    if stream is Stream.COLD_PAIRS:
        # Cold items have no engagement yet, so all are equally popular.
        members = np.flatnonzero(~item_latents.connected).astype(np.int32)
        anchors = latents.WeightedGroups(
            np.zeros(len(members), np.int8), members, np.ones(len(members)), 1
        )
    else:
        anchors = item_latents.overall(_POPULARITY_EXPONENT)
    anchor, other = empty, empty
    drawn = 0
    for _ in range(_PAIR_ROUNDS):
        more = count + count // 4 + 16
        parts = [(anchor, other)]
        for first in range(drawn, drawn + more, block):
            rows = min(block, drawn + more - first)
            parts.append(
                _draw_pair_block(settings, item_latents, anchors, by_group, stream, first, rows)
            )
        drawn += more
        anchor, other = (np.concatenate(side) for side in zip(*parts))
        key = np.minimum(anchor, other) * settings.items + np.maximum(anchor, other)
        distinct = np.sort(np.unique(key, return_index=True)[1])
        anchor, other = anchor[distinct], other[distinct]
        if len(anchor) >= count:
            break
    return anchor[:count], other[:count]


def _draw_pair_block(
    settings: SyntheticCatalog,
    item_latents: latents.ItemLatents,
    anchors: latents.WeightedGroups,
    by_group: latents.WeightedGroups,
    stream: Stream,
    first: int,
    rows: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws anchors and, among candidates of one of their groups, a similar item for each."""
    draws = latents.uniforms(settings.seed, stream, first, rows, 4 + 2 * _CANDIDATES)
    anchor = anchors.draw(np.zeros(rows, np.int64), draws[:, 0])
    part = _pick_part(np.cumsum(item_latents.shares[anchor], axis=1), draws[:, 1])
    group = _change_style(
        settings, item_latents.groups[anchor, part], draws[:, 2], _PAIR_OTHER_STYLE
    )
    uniform = draws[:, 4 : 4 + _CANDIDATES]
    candidates = by_group.draw(np.repeat(group[:, None], _CANDIDATES, axis=1), uniform)
    shared = np.zeros(candidates.shape, np.float32)
    for anchor_part in range(latents.ITEM_PARTS):
        for other_part in range(latents.ITEM_PARTS):
            anchor_group = item_latents.groups[anchor, anchor_part, None]
            same = anchor_group == item_latents.groups[candidates, other_part]
            anchor_share = item_latents.shares[anchor, anchor_part, None]
            shared += same * (anchor_share * item_latents.shares[candidates, other_part])
    difference = item_latents.looks[anchor, None] - item_latents.looks[candidates]
    distance = np.square(difference).sum(axis=2) / latents.LOOK_DIM
    # The maximum of scores plus Gumbel noise is a draw from the softmax of the scores.
    gumbel = -np.log(-np.log1p(-np.maximum(draws[:, 4 + _CANDIDATES :], 1e-12)))
    score = _GROUP_WEIGHT * shared - _LOOK_WEIGHT * distance + gumbel
    score[(candidates == anchor[:, None]) | (candidates < 0)] = -np.inf
    best = np.argmax(score, axis=1)
    row = np.arange(rows)
    valid = np.isfinite(score[row, best])
    return anchor[valid], candidates[row, best][valid]


def _pair_table(
    settings: SyntheticCatalog, query: np.ndarray, target: np.ndarray, kind: np.ndarray
) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "query_id": _item_ids(settings, query),
            "target_id": _item_ids(settings, target),
            "kind": pa.array(kind.tolist(), pa.string()),
        }
    )
