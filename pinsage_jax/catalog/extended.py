"""The catalog followed by new items, for lists that contain both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.additions import Additions, read_titles
from pinsage_jax.catalog.edge_keys import edges_of
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.data.ids import IdTable
from pinsage_jax.data.tables import Table
from pinsage_jax.graph.csr import Graph


def with_additions(prepared: Prepared, additions: Additions, items: Table) -> Prepared:
    """The catalog with new items behind its own, for lists.

    It has the ids, titles, columns, graph and `link_rows` of both; pairs stay those of the
    catalog, and so do features where words are compared.

    Args:
      items: the table of the new items.
    """
    ids = IdTable(pa.concat_arrays([prepared.item_ids.ids, additions.item_ids.ids]))
    titles, column = prepared.titles, prepared.manifest.get("title_column")
    if titles is not None:
        new = pa.nulls(len(additions.item_ids), titles.type)
        if column in items.columns:
            new = read_titles(items, column)
        titles = pa.concat_arrays([titles, new])
    known = prepared.item_columns
    rows = np.concatenate([prepared.link_rows, additions.link_rows])
    return dataclasses.replace(
        prepared,
        graph=_extended(prepared.graph, additions),
        item_ids=ids,
        titles=titles,
        columns_file=known.followed_by(known.of_table(items, additions.item_ids), ids),
        # The kinds and times there are those of the edges of the catalog alone.
        folder=None,
        features=rows if prepared.words is None else prepared.features,
        words=None if prepared.words is None else rows,
    )


def _extended(catalog: Graph, additions: Additions) -> Graph:
    """The graph of the catalog with new items behind its items, and new collections likewise."""
    known, new = edges_of(catalog), edges_of(additions.graph)
    edges = np.concatenate(
        [known, np.stack([new[:, 0] + catalog.num_items, additions.collections[new[:, 1]]], axis=1)]
    ).astype(np.int32)
    weights, old, other = None, catalog.weights, additions.graph.weights
    if old is not None and other is not None:
        weights = np.concatenate([old[: len(known)], other[: len(new)]])
    items = catalog.num_items + additions.graph.num_items
    collections = catalog.num_collections + additions.num_new_collections
    return Graph.from_edges(
        np.ascontiguousarray(edges[:, 0]), np.ascontiguousarray(edges[:, 1]), items, collections,
        weights,
    )  # fmt: skip
