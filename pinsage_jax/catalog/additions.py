"""New items, which a prepared catalog does not contain, and their edges.

--new_items has the columns that the catalog's features are made of, --new_edges those of
--edges.  New items are numbered after the items of the catalog and new collections after
its collections, as if the new rows were at the end of its tables.

Shapes: N items and C collections of the catalog, n new items, m new collections.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.column_choice import choose_title, named_columns
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.encoders.pictures import Pictures
from pinsage_jax.data.features import FeatureTransform
from pinsage_jax.data.ids import IdTable, UniqueIds
from pinsage_jax.data.tables import Batch, Table, iter_batches, open_table
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.edge_weights import EdgeWeights


def read_titles(items: Table, column: str) -> pa.Array:
    """The titles of a table of items, large_string [n].

    Raises:
      UserError: a title is not text.
    """
    return pa.concat_arrays(
        [
            column_values.texts(batch.column(column), column, batch.where)
            for batch in iter_batches(items, [column])
        ]
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Additions:
    """New items with their features and edges.

    Attributes:
      item_ids: ids of the n new items, in the order of the table.
      features: [n, F] by the transform of the catalog, in the dtype of its features.
      graph: the new edges alone, between n items and the t collections that they touch.
      collections: int32 [t], the index of each of those collections, ascending; the new ones,
        from C on, are the last.
      num_new_collections: m.
      words: int32 [n, 2K]; None if the catalog has none.
    """

    item_ids: IdTable
    features: np.ndarray
    graph: Graph
    collections: np.ndarray
    num_new_collections: int
    words: np.ndarray | None = None

    @property
    def link_rows(self) -> np.ndarray:
        """Rows that content links compare, as in Prepared."""
        return self.features if self.words is None else self.words


def read_additions(
    prepared: Prepared,
    transform: FeatureTransform,
    data: DataConfig,
    new_items: str,
    new_edges: str = "",
) -> Additions:
    """Reads --new_items and, if there are any, --new_edges.

    Args:
      transform: that of the catalog's features.
      new_items, new_edges: paths as given; relative ones are looked up in --data_dir.

    Raises:
      UserError: an item is in the catalog already or occurs twice, a column is missing
        or was not there when the features were fitted, an edge is of an item that is
        not new, or a table has any other mistake.
    """
    items = open_table(data.path(new_items), "new_items", data)
    edges = open_table(data.path(new_edges), "new_edges", data) if new_edges else None
    return build_additions(prepared, transform, data, items, edges)


def build_additions(
    prepared: Prepared,
    transform: FeatureTransform,
    data: DataConfig,
    items: Table,
    edges: Table | None,
) -> Additions:
    """read_additions for open tables."""
    rows = _read_items(items, data, transform, prepared.item_ids)
    item_ids = rows.ids
    graph = prepared.graph
    items_of, collections_of = np.empty(0, np.int32), np.empty(0, np.int32)
    weights, fresh = None if graph.weights is None else np.empty(0, np.float32), 0
    if edges is not None:
        items_of, collections_of, weights, fresh = _read_edges(edges, data, item_ids, prepared)
    # Without words in the catalog, content links of new items compare features too.
    words = None if prepared.words is None else rows.words
    features = rows.features.astype(prepared.features.dtype)
    new_graph, touched = touched_graph(items_of, collections_of, len(item_ids), weights)
    return Additions(item_ids, features, new_graph, touched, fresh, words)


def touched_graph(
    items: np.ndarray, collections: np.ndarray, num_items: int, weights: np.ndarray | None
) -> tuple[Graph, np.ndarray]:
    """Edges int32 [e] of new items as a graph, in memory in proportion to them.

    Returns:
      The graph between the items and the collections that the edges touch, and the indices of
      these, int32 [t], ascending.
    """
    touched, local = np.unique(collections, return_inverse=True)
    local = local.reshape(-1).astype(np.int32)
    graph = Graph.from_edges(items, local, num_items, len(touched), weights)
    return graph, touched.astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class ItemRows:
    """The rows of an item table, one for each item.

    Attributes:
      ids: ids in the order of the table.
      features: float32 [n, F] by the transform of the catalog.
      words: int32 [n, 2K] likewise; K = 0 if items have other features than texts.
      batches: the id column, for messages that name a row.
    """

    ids: IdTable
    features: np.ndarray
    words: np.ndarray
    batches: list[Batch]


def read_item_rows(table: Table, data: DataConfig, transform: FeatureTransform) -> ItemRows:
    """Reads ids and features of a table with the columns of the catalog's features.

    Raises:
      UserError: a column is missing or unknown to the transform, or an item occurs twice.
    """
    name = data.item_id_column
    table.require(name, "item_id_column")
    for column in transform.columns:
        if column not in table.columns:
            raise UserError(
                f"{table.label} has no column '{column}', which the catalog's "
                f"features were made from; its columns are: {', '.join(table.columns)}."
            )
    by_flag = {column for names in named_columns(table, data).values() for column in names or ()}
    if unknown := sorted(by_flag - set(transform.columns)):
        raise UserError(
            f"Column '{unknown[0]}' is named as a feature, but the catalog's features were made "
            "without it; leave it out, or run --mode=prepare and --mode=train with it."
        )
    used = {name, choose_title(table, data), *transform.columns}
    if unused := [column for column in table.columns if column not in used]:
        logging.info("%s: not among the catalog's features: %s", table.label, ", ".join(unused))
    batches: list[Batch] = []
    values = [np.empty((0, transform.width), np.float32)]
    words = [np.empty((0, 2 * transform.link_words), np.int32)]
    wanted, size = [name, *transform.columns], transform.batch_rows
    pictures = Pictures(transform.picture_columns, table, data)
    for batch in iter_batches(table, wanted, ids=[name], batch_rows=size):
        for start in range(0, len(batch), size):
            named = batch.where_item(name, start)
            rows = pictures.loaded(batch.rows.slice(start, size), named)
            row_values, row_words = transform.with_words(rows, named)
            values.append(row_values)
            words.append(row_words)
        batches.append(dataclasses.replace(batch, rows=batch.rows.select([name])))
    pictures.warn()
    ids = concat_column(batches, name)
    unique = UniqueIds()
    for batch in batches:
        unique.add(batch.column(name))
    distinct = unique.finish("items")
    if len(distinct) < len(ids):
        repeated = np.ones(len(ids), bool)
        repeated[np.unique(distinct.lookup(ids), return_index=True)[1]] = False
        row = int(np.argmax(repeated))
        raise UserError(
            f"Item {format_id(ids[row].as_py())} is in {table.label} more than once, again in "
            f"{row_name(batches, row)}; keep one row per item."
        )
    return ItemRows(distinct, np.concatenate(values), np.concatenate(words), batches)


def _read_items(
    table: Table, data: DataConfig, transform: FeatureTransform, known: IdTable
) -> ItemRows:
    """The rows of new items.

    Raises:
      UserError: an item is in the catalog.
    """
    rows = read_item_rows(table, data, transform)
    if (row := first_true(known.lookup(rows.ids.ids) >= 0)) is not None:
        raise UserError(
            f"Item {format_id(rows.ids.ids[row].as_py())} in {row_name(rows.batches, row)} is in "
            "the catalog already; leave it out of the new items."
        )
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeRows:
    """The rows of an edge table.

    Attributes:
      items, collections: ids, large_string [n].
      weights: float32 [n]; None if they were not to be read.
      batches: the columns, for messages that name a row.
    """

    items: pa.ChunkedArray
    collections: pa.ChunkedArray
    weights: np.ndarray | None
    batches: list[Batch]


def read_edge_rows(table: Table, data: DataConfig, how: EdgeWeights | None) -> EdgeRows:
    """Reads a table with the columns of --edges, with weights as `how` says.

    Raises:
      UserError: a column is missing or a weight is not finite and above 0.
    """
    names = [data.item_column, data.collection_column]
    table.require(names[0], "item_column")
    table.require(names[1], "collection_column")
    wanted, weights = list(names), None
    if how is not None:
        wanted += how.require(table)
    batches = list(iter_batches(table, list(dict.fromkeys(wanted)), ids=names))
    if how is not None:
        parts = [how.of_batch(batch) for batch in batches]
        weights = np.concatenate([np.empty(0, np.float32), *parts])
    return EdgeRows(
        concat_column(batches, names[0]), concat_column(batches, names[1]), weights, batches
    )


def lookup_collections(names: pa.ChunkedArray, known: IdTable) -> tuple[np.ndarray, IdTable]:
    """Indices int32 [n] of collections, and the ids of new ones, sorted.

    New collections are numbered after those that are `known`.
    """
    found = known.lookup(names)
    unique = UniqueIds()
    for chunk in names.filter(pa.array(found < 0)).chunks:
        unique.add(chunk)
    fresh = unique.finish("new collections", sorted_from=0)
    found = np.where(found >= 0, found, len(known) + fresh.lookup(names))
    return found.astype(np.int32), fresh


def _read_edges(
    table: Table, data: DataConfig, item_ids: IdTable, prepared: Prepared
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """New items and collections int32 [e], weights float32 [e] or None, and m."""
    rows = read_edge_rows(table, data, prepared.edge_weights(data))
    items = item_ids.lookup(rows.items)
    if (row := first_true(items < 0)) is not None:
        known = prepared.item_ids.lookup(rows.items[row : row + 1])[0] >= 0
        why = "is in the catalog already" if known else "is not among the new items"
        raise UserError(
            f"Item {format_id(rows.items[row].as_py())} in {row_name(rows.batches, row)} {why}; "
            "new edges may only be those of new items."
        )
    collections, fresh = lookup_collections(rows.collections, prepared.collection_ids)
    return items, collections, rows.weights, len(fresh)


def concat_column(batches: list[Batch], name: str) -> pa.ChunkedArray:
    """One column of all batches, large_string."""
    return pa.chunked_array([batch.column(name) for batch in batches], pa.large_string())


def first_true(mask: np.ndarray) -> int | None:
    """Index of the first True in bool [n]; None if there is none."""
    return int(np.argmax(mask)) if mask.any() else None


def row_name(batches: list[Batch], row: int) -> str:
    """File and row number, for messages, of a row counted over all batches."""
    for batch in batches:
        if row < len(batch):
            return batch.where(row)
        row -= len(batch)
    raise IndexError(row)
