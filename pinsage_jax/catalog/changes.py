"""Changes of a prepared catalog: edges added, weighed anew or removed, items new or changed.

--changed_edges has the columns of --edges: an edge that is there gets the row's weight,
another is added.  --removed_edges names edges that go.  --changed_items has the columns
that the catalog's features were made from: an item that is there gets new features,
another comes behind the last one.  Numbers stay: new items and new collections are
numbered behind the old ones of their kind.

Shapes: N items and C collections after the change, E edges before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.catalog.additions import (
    collection_rows,
    first,
    read_edge_rows,
    read_item_rows,
    where,
)
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.features import FEATURES_FILE, WORDS_FILE, FeatureTransform
from pinsage_jax.data.ids import IdTable, save_column
from pinsage_jax.data.tables import Table, iter_batches, open_table
from pinsage_jax.graph import csr

_COPIED_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class Changes:
    """What the tables say, in numbers of the catalog after the change.

    Attributes:
      item_ids, collection_ids: all ids, the new ones last.
      featured: int32 [f] items with features of their own here, known or new.
      features: [f, F] of these; words: int32 [f, 2K] likewise.
      titles: large_string [N], or None where the catalog has none.
      kept: bool [E], edges that stay as they are, in the order of the items' rows.
      edges: int32 [a, 2] items and collections of edges that are added or weighed anew.
      weights: float32 [a], or None where edges have none.
      members: int32 [m, 2] items and collections that came or ceased to belong together.
      report: counts, for the manifest.
    """

    item_ids: IdTable
    collection_ids: IdTable
    featured: np.ndarray
    features: np.ndarray
    words: np.ndarray
    titles: pa.Array | None
    kept: np.ndarray
    edges: np.ndarray
    weights: np.ndarray | None
    members: np.ndarray
    report: dict[str, int]

    @property
    def touched(self) -> np.ndarray:
        """Nodes int32 whose neighbors or edge weights differ, ascending."""
        both = np.concatenate([self.edges, self.members])
        return np.unique([both[:, 0], both[:, 1] + len(self.item_ids)]).astype(np.int32)

    def digest(self) -> str:
        """Hash of all of it."""
        ids = f"{self.item_ids.digest()} {self.collection_ids.digest()}"
        total = hashlib.blake2b(ids.encode(), digest_size=8)
        for name in ("featured", "features", "words", "kept", "edges", "weights", "members"):
            array = getattr(self, name)
            total.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        return total.hexdigest()


def read_changes(
    before: Prepared, features_folder: pathlib.Path, data: DataConfig, update: UpdateConfig
) -> Changes:
    """Reads the tables that `update` names.

    Raises:
      UserError: an item of an edge is neither known nor in --changed_items, an edge to
        be removed is not there or is also in --changed_edges, or whatever else is wrong
        with a table.
    """
    graph = before.graph
    item_ids, featured, features, words, titles = _read_items(before, features_folder, data, update)
    weighted = graph.weights is not None
    changed = _read_pairs(update.changed_edges, "changed_edges", data, item_ids, before, weighted)
    removed = _read_pairs(update.removed_edges, "removed_edges", data, item_ids, before, False)
    fresh = changed.fresh
    collections = graph.num_collections + len(fresh)
    collection_ids = before.collection_ids
    if len(fresh):
        collection_ids = IdTable(pa.concat_arrays([before.collection_ids.ids, fresh.ids]))

    keys = _keys(_edges(graph), collections)  # ascending, as rows are
    wanted, inverse = np.unique(_keys(changed.pairs, collections), return_inverse=True)
    weights = None
    if changed.weights is not None:
        weights = np.zeros(len(wanted), np.float32)
        np.add.at(weights, inverse, changed.weights)
    gone = _keys(removed.pairs, collections)
    # A collection that the catalog lacks is numbered behind the known ones, as are those
    # of --changed_edges: its key may be that of another edge.
    unknown = removed.pairs[:, 1] >= graph.num_collections
    if (row := first(unknown | ~_within(gone, keys))) is not None:
        raise UserError(f"{removed.named(row)} is not in the catalog; leave it out.")
    if (row := first(np.isin(gone, wanted))) is not None:
        raise UserError(f"{removed.named(row)} is also in --changed_edges; keep one of the two.")
    known = _within(wanted, keys)
    place = np.searchsorted(keys, wanted[known])
    same = np.zeros(len(wanted), np.bool_)
    same[known] = True
    if weights is not None and graph.weights is not None:
        same[known] = graph.weights[place] == weights[known]
    kept = np.ones(len(keys), np.bool_)
    kept[place[~same[known]]] = False
    gone = np.unique(gone)
    kept[np.searchsorted(keys, gone)] = False
    return Changes(
        item_ids,
        collection_ids,
        featured,
        features.astype(before.features.dtype),
        words,
        titles,
        kept,
        _pairs(wanted[~same], collections),
        None if weights is None else weights[~same],
        _pairs(np.concatenate([wanted[~known], gone]), collections),
        {
            "edges_added": int((~known).sum()),
            "edges_weighed_anew": int((known & ~same).sum()),
            "edges_removed": len(gone),
            "items_added": len(item_ids) - graph.num_items,
            "items_changed": int((featured < graph.num_items).sum()),
            "collections_added": len(fresh),
        },
    )


def write_changed(
    before: Prepared, changes: Changes, source: pathlib.Path, folder: pathlib.Path
) -> None:
    """Writes the catalog after the change, in the form of WORKDIR/prepared.

    Times of edges are left out; evaluation and training pairs stay.

    Args:
      before: what `source` holds.
      folder: to be made.
    """
    graph, items = before.graph, len(changes.item_ids)
    (folder / "features").mkdir(parents=True)
    (folder / "graph").mkdir()
    pairs = np.concatenate([_edges(graph)[changes.kept], changes.edges])
    weights = None
    if graph.weights is not None:
        weights = np.concatenate([graph.weights[: graph.num_edges][changes.kept], changes.weights])
    made, _ = csr.build(
        np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), items,
        len(changes.collection_ids), weights, folder=folder / "graph",
    )  # fmt: skip
    made.save(folder / "graph")
    written = {FEATURES_FILE: (before.features, changes.features)}
    if before.words is not None:
        written[WORDS_FILE] = before.words, changes.words
    for name, (old, new) in written.items():
        _write_rows(old, changes.featured, new, items, folder / "features" / name)
    for path in (source / "features").iterdir():
        if path.name not in written:
            shutil.copyfile(path, folder / "features" / path.name)
    changes.item_ids.save(folder / "item_ids.arrow")
    changes.collection_ids.save(folder / "collection_ids.arrow")
    if changes.titles is not None:
        save_column(folder / "titles.arrow", changes.titles, "title")
    for name in ("eval_pairs.npy", "eval_kinds.json", "train_pairs.npy"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    degree = made.degree()[:items]
    counts = {
        **before.manifest["counts"],
        "items": items,
        "collections": len(changes.collection_ids),
        "edges": made.num_edges,
        "items_without_edges": int((degree == 0).sum()),
    }
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.parent != folder / "graph"
    )
    manifest: dict[str, Any] = {
        **before.manifest,
        "fingerprint": files.fingerprint([before.manifest["fingerprint"], changes.digest()]),
        "base": before.manifest.get("base", before.manifest["fingerprint"]),
        "counts": counts,
        "time_kind": None,
        "item_digest": changes.item_ids.digest(),
        "collection_digest": changes.collection_ids.digest(),
        "checksums": files.checksums(folder, names),
    }
    files.write_checked_json(folder / "manifest.json", manifest)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pairs:
    """An edge table in numbers."""

    pairs: np.ndarray  # int32 [n, 2]
    weights: np.ndarray | None  # float32 [n]
    fresh: IdTable  # ids of collections that are not known

    rows: Any = None

    def named(self, row: int) -> str:
        """The edge of a row, for messages."""
        item, collection = self.rows.items[row].as_py(), self.rows.collections[row].as_py()
        return (
            f"The edge of item {format_id(item)} and collection {format_id(collection)} in "
            f"{where(self.rows.batches, row)}"
        )


def _read_pairs(
    value: str, flag: str, data: DataConfig, item_ids: IdTable, before: Prepared, weighted: bool
) -> _Pairs:
    if not value:
        none = np.empty(0, np.float32) if weighted else None
        return _Pairs(np.empty((0, 2), np.int32), none, IdTable(pa.array([], pa.large_string())))
    rows = read_edge_rows(open_table(data.path(value), flag, data), data, weighted)
    items = item_ids.lookup(rows.items)
    if (row := first(items < 0)) is not None:
        raise UserError(
            f"Item {format_id(rows.items[row].as_py())} in {where(rows.batches, row)} is neither "
            "in the catalog nor in --changed_items."
        )
    collections, fresh = collection_rows(rows.collections, before.collection_ids)
    return _Pairs(np.stack([items, collections], axis=1), rows.weights, fresh, rows)


def _read_items(
    before: Prepared, features_folder: pathlib.Path, data: DataConfig, update: UpdateConfig
) -> tuple[IdTable, np.ndarray, np.ndarray, np.ndarray, pa.Array | None]:
    """All ids, the items of --changed_items with their features and words, and all titles."""
    if not update.changed_items:
        words = np.empty((0, 0), np.int32) if before.words is None else before.words[:0]
        unchanged = np.empty(0, np.int32), before.features[:0], words
        return before.item_ids, *unchanged, before.titles
    table = open_table(data.path(update.changed_items), "changed_items", data)
    rows = read_item_rows(table, data, FeatureTransform.load(features_folder))
    known = before.item_ids.lookup(rows.ids.ids)
    fresh = rows.ids.ids.filter(pa.array(known < 0))
    places = np.where(known >= 0, known, len(before.item_ids) + np.cumsum(known < 0) - 1)
    ids = IdTable(pa.concat_arrays([before.item_ids.ids, fresh]))
    titles = _titles(before, table, places, len(ids))
    return ids, places.astype(np.int32), rows.features, rows.words, titles


def _titles(before: Prepared, table: Table, places: np.ndarray, items: int) -> pa.Array | None:
    """Titles large_string [items]: those of the table's rows at `places`, else as before."""
    if before.titles is None:
        return None
    absent = pa.nulls(items - len(before.titles), before.titles.type)
    titles = pa.concat_arrays([before.titles, absent])
    column = before.manifest["title_column"]
    if column not in table.columns:
        return titles
    parts = [
        column_values.texts(batch.column(column), column, batch.where)
        for batch in iter_batches(table, [column])
    ]
    row = np.full(items, -1, np.int64)
    row[places] = np.arange(len(places))
    given = pa.concat_arrays(parts).take(pa.array(np.maximum(row, 0)))
    return pc.if_else(pa.array(row >= 0), given, titles)


def _write_rows(
    old: np.ndarray, changed: np.ndarray, new: np.ndarray, items: int, path: pathlib.Path
) -> None:
    """Writes [items, F]: the old rows and zeros behind them, then `new` as the rows `changed`."""
    width = old.shape[1]
    if 0 in (items, width):
        files.write_array(path, np.empty((items, width), old.dtype))
        return
    out = np.lib.format.open_memmap(path, mode="w+", dtype=old.dtype, shape=(items, width))
    for begin in range(0, len(old), _COPIED_ROWS):
        out[begin : min(begin + _COPIED_ROWS, len(old))] = old[begin : begin + _COPIED_ROWS]
    out[changed] = new
    out.flush()


def _edges(graph: csr.Graph) -> np.ndarray:
    """Items and collections int32 [E, 2] of all edges, in the order of the items' rows."""
    counts = np.diff(graph.indptr[: graph.num_items + 1])
    items = np.repeat(np.arange(graph.num_items, dtype=np.int32), counts)
    return np.stack([items, graph.indices[: graph.num_edges] - np.int32(graph.num_items)], axis=1)


def _keys(pairs: np.ndarray, collections: int) -> np.ndarray:
    return pairs[:, 0].astype(np.int64) * collections + pairs[:, 1]


def _pairs(keys: np.ndarray, collections: int) -> np.ndarray:
    return np.stack(np.divmod(keys, max(collections, 1)), axis=1).astype(np.int32)


def _within(some: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which of `some` are among the ascending keys."""
    place = np.minimum(np.searchsorted(keys, some), max(len(keys) - 1, 0))
    return keys[place] == some if len(keys) else np.zeros(len(some), np.bool_)
