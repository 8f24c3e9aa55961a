"""Changes of a prepared catalog: edges added, removed or with new weights, items new or changed.

--changed_edges has the columns of --edges: an edge that exists gets the weight of the row,
any other is added.  --removed_edges names edges to remove.  --changed_items has the columns
that the catalog's features are made of: an item that exists gets new features, any other
is added.  Indices stay valid: new items and new collections are numbered after the old
ones.

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
    EdgeRows,
    first_true,
    lookup_collections,
    read_edge_rows,
    read_item_rows,
    read_titles,
    row_name,
)
from pinsage_jax.catalog.edge_keys import contained, edge_keys, edges_of, pairs_of_keys
from pinsage_jax.catalog.item_columns import FILE, table_bytes, write_changed_columns
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.embed import UpdateConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.features import FEATURES_FILE, WORDS_FILE, FeatureTransform
from pinsage_jax.data.ids import IdTable, save_column
from pinsage_jax.data.tables import Table, open_table
from pinsage_jax.graph import csr
from pinsage_jax.graph.edge_weights import EdgeWeights

_COPIED_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class Changes:
    """What the tables change, in indices of the catalog after the change.

    Attributes:
      item_ids, collection_ids: all ids, the new ones last.
      changed_items: int32 [f], items of --changed_items, known or new.
      features: [f, F] of these items; words: int32 [f, 2K] likewise.
      titles: large_string [N]; None if the catalog has none.
      kept: bool [E], edges that stay as they are, in the order of the items' rows.
      edges: int32 [a, 2], items and collections of edges that are added or reweighted.
      weights: float32 [a] of these edges; None if edges have no weights.
      memberships: int32 [m, 2], items and collections of edges that are added or removed.
      report: counts, for the manifest.
      columns: the other columns of --items, of these items; None if the catalog keeps none.
    """

    item_ids: IdTable
    collection_ids: IdTable
    changed_items: np.ndarray
    features: np.ndarray
    words: np.ndarray
    titles: pa.Array | None
    kept: np.ndarray
    edges: np.ndarray
    weights: np.ndarray | None
    memberships: np.ndarray
    report: dict[str, int]
    columns: pa.Table | None = None

    @property
    def touched(self) -> np.ndarray:
        """Nodes int32 [*] whose neighbors or edge weights change, ascending."""
        both = np.concatenate([self.edges, self.memberships])
        return np.unique([both[:, 0], both[:, 1] + len(self.item_ids)]).astype(np.int32)

    def digest(self) -> str:
        """Hash of everything that changes: all fields but the report, which follows from them."""
        total = hashlib.blake2b(digest_size=8)
        for field in dataclasses.fields(self):
            if field.name == "report":
                continue
            total.update(field.name.encode())
            value = getattr(self, field.name)
            if isinstance(value, pa.Array):
                # IdTable reads a missing title as an empty one.
                total.update(value.is_null().to_numpy(zero_copy_only=False).tobytes())
                value = IdTable(value)
            if isinstance(value, pa.Table):
                total.update(table_bytes(value))
            elif isinstance(value, IdTable):
                total.update(value.digest().encode())
            elif value is not None:
                total.update(f"{value.dtype} {value.shape} ".encode())
                total.update(np.ascontiguousarray(value).data)
        return total.hexdigest()


def read_changes(
    before: Prepared, transform: FeatureTransform, data: DataConfig, update: UpdateConfig
) -> Changes:
    """Reads the tables that `update` names.

    Args:
      transform: that of the catalog's features.

    Raises:
      UserError: an item of an edge is neither known nor in --changed_items, an edge to
        remove does not exist or is also in --changed_edges, or a table has any other
        mistake.
    """
    graph = before.graph
    items = _read_items(before, transform, data, update)
    how = before.edge_weights(data)
    changed = _read_edges(update.changed_edges, "changed_edges", data, items.ids, before, how)
    removed = _read_edges(update.removed_edges, "removed_edges", data, items.ids, before, None)
    collection_ids = before.collection_ids
    if len(changed.new_collections):
        both = [before.collection_ids.ids, changed.new_collections.ids]
        collection_ids = IdTable(pa.concat_arrays(both))
    edges = _edge_changes(graph, changed, removed, len(collection_ids))
    return Changes(
        items.ids,
        collection_ids,
        items.changed,
        items.features.astype(before.features.dtype),
        items.words,
        items.titles,
        edges.kept,
        edges.pairs,
        edges.weights,
        edges.memberships,
        {
            **edges.report,
            "items_added": len(items.ids) - graph.num_items,
            "items_changed": int((items.changed < graph.num_items).sum()),
            "collections_added": len(changed.new_collections),
        },
        items.columns,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _EdgeChanges:
    """The part of Changes that is about edges; `pairs` are its `edges`."""

    kept: np.ndarray
    pairs: np.ndarray
    weights: np.ndarray | None
    memberships: np.ndarray
    report: dict[str, int]


def _edge_changes(
    graph: csr.Graph, changed: _EdgeTable, removed: _EdgeTable, collections: int
) -> _EdgeChanges:
    """Compares the tables with the edges of the graph.

    Args:
      collections: C.

    Raises:
      UserError: an edge to remove is not in the graph, or is in both tables.
    """
    keys = edge_keys(edges_of(graph), collections)  # ascending, as rows are
    set_keys, inverse = np.unique(edge_keys(changed.pairs, collections), return_inverse=True)
    weights = None
    if changed.weights is not None:
        # As graph.build adds them: in float64, the smallest first.
        order = np.lexsort((changed.weights, inverse))
        totals = np.zeros(len(set_keys))
        np.add.at(totals, inverse[order], changed.weights[order])
        weights = totals.astype(np.float32)
    removed_keys = edge_keys(removed.pairs, collections)
    # A collection that the catalog lacks is numbered behind the known ones, as are those
    # of --changed_edges: its key may be that of another edge.
    unknown = removed.pairs[:, 1] >= graph.num_collections
    if (row := first_true(unknown | ~contained(removed_keys, keys))) is not None:
        raise UserError(f"{removed.edge_name(row)} is not in the catalog; leave it out.")
    if (row := first_true(np.isin(removed_keys, set_keys))) is not None:
        raise UserError(
            f"{removed.edge_name(row)} is also in --changed_edges; keep one of the two."
        )
    known = contained(set_keys, keys)
    place = np.searchsorted(keys, set_keys[known])
    same = np.zeros(len(set_keys), np.bool_)
    same[known] = True
    if weights is not None and graph.weights is not None:
        same[known] = graph.weights[place] == weights[known]
    kept = np.ones(len(keys), np.bool_)
    kept[place[~same[known]]] = False
    removed_keys = np.unique(removed_keys)
    kept[np.searchsorted(keys, removed_keys)] = False
    return _EdgeChanges(
        kept,
        pairs_of_keys(set_keys[~same], collections),
        None if weights is None else weights[~same],
        pairs_of_keys(np.concatenate([set_keys[~known], removed_keys]), collections),
        {
            "edges_added": int((~known).sum()),
            "edges_reweighted": int((known & ~same).sum()),
            "edges_removed": len(removed_keys),
        },
    )


def write_changed(
    before: Prepared, changes: Changes, source: pathlib.Path, folder: pathlib.Path
) -> None:
    """Writes the catalog after the change, in the layout of WORKDIR/prepared.

    Times and kinds of edges are not written; evaluation and training pairs are copied.

    Args:
      before: the catalog in `source`.
      folder: is made; it must not exist.
    """
    graph, items = before.graph, len(changes.item_ids)
    (folder / "features").mkdir(parents=True)
    (folder / "graph").mkdir()
    pairs = np.concatenate([edges_of(graph)[changes.kept], changes.edges])
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
        _write_rows(old, changes.changed_items, new, items, folder / "features" / name)
    for path in (source / "features").iterdir():
        if path.name not in written:
            shutil.copyfile(path, folder / "features" / path.name)
    changes.item_ids.save(folder / "item_ids.arrow")
    changes.collection_ids.save(folder / "collection_ids.arrow")
    if isinstance(before.columns_file, pathlib.Path):
        columns = changes.columns, changes.changed_items
        write_changed_columns(before.columns_file, items, *columns, folder / FILE)
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
        "kind_names": [],
        "item_digest": changes.item_ids.digest(),
        "collection_digest": changes.collection_ids.digest(),
        "checksums": files.checksums(folder, names),
    }
    files.write_checked_json(folder / "manifest.json", manifest)


@dataclasses.dataclass(frozen=True, eq=False)
class _EdgeTable:
    """An edge table in indices.

    Attributes:
      pairs: int32 [n, 2], items and collections.
      weights: float32 [n]; None if edges have none.
      new_collections: ids of collections that the catalog lacks.
      rows: the table as text, for messages; None if there is no table.
    """

    pairs: np.ndarray
    weights: np.ndarray | None
    new_collections: IdTable
    rows: EdgeRows | None = None

    def edge_name(self, row: int) -> str:
        """Names the edge of a row, for messages."""
        assert self.rows is not None, "an edge comes from a table"
        item, collection = self.rows.items[row].as_py(), self.rows.collections[row].as_py()
        return (
            f"The edge of item {format_id(item)} and collection {format_id(collection)} in "
            f"{row_name(self.rows.batches, row)}"
        )


def _read_edges(
    value: str,
    flag: str,
    data: DataConfig,
    item_ids: IdTable,
    before: Prepared,
    how: EdgeWeights | None,
) -> _EdgeTable:
    if not value:
        none = None if how is None else np.empty(0, np.float32)
        return _EdgeTable(
            np.empty((0, 2), np.int32), none, IdTable(pa.array([], pa.large_string()))
        )
    rows = read_edge_rows(open_table(data.path(value), flag, data), data, how)
    items = item_ids.lookup(rows.items)
    if (row := first_true(items < 0)) is not None:
        raise UserError(
            f"Item {format_id(rows.items[row].as_py())} in {row_name(rows.batches, row)} is "
            "neither in the catalog nor in --changed_items."
        )
    collections, new = lookup_collections(rows.collections, before.collection_ids)
    return _EdgeTable(np.stack([items, collections], axis=1), rows.weights, new, rows)


@dataclasses.dataclass(frozen=True, eq=False)
class _Items:
    """The part of Changes that is about items: `ids` is its item_ids, `changed` changed_items."""

    ids: IdTable
    changed: np.ndarray
    features: np.ndarray
    words: np.ndarray
    titles: pa.Array | None
    columns: pa.Table | None = None


def _read_items(
    before: Prepared, transform: FeatureTransform, data: DataConfig, update: UpdateConfig
) -> _Items:
    """Reads --changed_items; without it no item changes."""
    if not update.changed_items:
        words = np.empty((0, 0), np.int32) if before.words is None else before.words[:0]
        none = np.empty(0, np.int32)
        return _Items(before.item_ids, none, before.features[:0], words, before.titles)
    table = open_table(data.path(update.changed_items), "changed_items", data)
    rows = read_item_rows(table, data, transform)
    known = before.item_ids.lookup(rows.ids.ids)
    fresh = rows.ids.ids.filter(pa.array(known < 0))
    places = np.where(known >= 0, known, len(before.item_ids) + np.cumsum(known < 0) - 1)
    ids = IdTable(pa.concat_arrays([before.item_ids.ids, fresh]))
    titles = _titles(before, table, places, len(ids))
    columns = before.item_columns.given(table, rows.ids) if before.columns_file else None
    return _Items(ids, places.astype(np.int32), rows.features, rows.words, titles, columns)


def _titles(before: Prepared, table: Table, places: np.ndarray, items: int) -> pa.Array | None:
    """Titles large_string [items]: of the rows of the table at `places`, elsewhere as before."""
    if before.titles is None:
        return None
    absent = pa.nulls(items - len(before.titles), before.titles.type)
    titles = pa.concat_arrays([before.titles, absent])
    column = before.manifest["title_column"]
    if column not in table.columns:
        return titles
    row = np.full(items, -1, np.int64)
    row[places] = np.arange(len(places))
    given = read_titles(table, column).take(pa.array(np.maximum(row, 0)))
    return pc.if_else(pa.array(row >= 0), given, titles)


def _write_rows(
    old: np.ndarray, changed: np.ndarray, new: np.ndarray, items: int, path: pathlib.Path
) -> None:
    """Writes [items, F]: the old rows, with the rows `changed` replaced or added from `new`."""
    width = old.shape[1]
    if 0 in (items, width):
        files.write_array(path, np.empty((items, width), old.dtype))
        return
    out = np.lib.format.open_memmap(path, mode="w+", dtype=old.dtype, shape=(items, width))
    for begin in range(0, len(old), _COPIED_ROWS):
        out[begin : min(begin + _COPIED_ROWS, len(old))] = old[begin : begin + _COPIED_ROWS]
    out[changed] = new
    out.flush()
