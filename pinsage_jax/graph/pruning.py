"""Graph pruning after Pixie (Eksombatchai et al., WWW 2018, section 3.2).

Collections with too many items, or with items of too many topics, lose all their edges;
then an item of degree d keeps d^delta of the edges left to it.  Pixie keeps the edges to
the collections most similar to the item; here those of the largest weight are kept, and a
random sample of edges of equal weight.

spark/graph_tables.py prunes by joins where the graph does not fit into the memory of one
machine.  Both keep the same number of edges per item, and the same edges where weights
decide.
"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.config.data import PruneConfig
from pinsage_jax.core.splitmix import GOLDEN, mix_array
from pinsage_jax.data import columns as column_values
from pinsage_jax.data.tables import Table, iter_batches
from pinsage_jax.graph.csr import Graph, build


def read_topics(items: Table, column: str, num_items: int) -> np.ndarray:
    """Topic numbers int32 [num_items] in the order of the table, -1 for no topic.

    Raises:
      UserError: there is no such column.
    """
    items.require(column, "prune_topic_column")
    parts = [
        column_values.texts(batch.column(column), column, batch.where)
        for batch in iter_batches(items, [column])
    ]
    texts = pa.chunked_array(parts, pa.large_string()).combine_chunks()
    # Missing values are read as empty texts, as CSV files have them.
    coded = pc.if_else(pc.equal(texts, ""), None, texts).dictionary_encode()
    numbers = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    absent = np.full(num_items - len(numbers), -1, np.int32)
    return np.concatenate([numbers.astype(np.int32), absent])


def kept_edges(
    graph: Graph, config: PruneConfig, seed: int, topics: np.ndarray | None = None
) -> np.ndarray:
    """Edges that pruning keeps, bool [E] in the order of the items' rows.

    Args:
      topics: int32 [num_items], -1 for none; needed for --prune_entropy.
    """
    items, edges = graph.num_items, graph.num_edges
    owner = np.repeat(np.arange(items), np.diff(graph.indptr[: items + 1]))
    collection = np.asarray(graph.indices[:edges]) - np.int32(items)
    sizes = np.diff(graph.indptr[items:])
    removed = np.zeros(graph.num_collections, bool)
    if config.prune_collection_items:
        removed |= sizes > config.prune_collection_items
    if config.prune_entropy and topics is not None:
        entropy = _entropies(collection, topics[owner], graph.num_collections)
        removed |= entropy > config.prune_entropy
    kept = ~removed[collection]
    if config.prune_power < 1.0:
        left = np.bincount(owner[kept], minlength=items)
        wanted = num_kept(left, config)
        rank = _hash(seed, owner, collection)
        for item in np.flatnonzero(wanted < left):
            row = np.arange(graph.indptr[item], graph.indptr[item + 1])
            row = row[kept[row]]
            weight = np.zeros(len(row)) if graph.weights is None else graph.weights[row]
            order = np.lexsort((rank[row], -weight))
            kept[row[order[wanted[item] :]]] = False
    return kept


def keep_edges(
    graph: Graph, times: np.ndarray | None, kept: np.ndarray, folder: str | os.PathLike
) -> tuple[Graph, np.ndarray | None]:
    """The graph of the edges `kept` (bool [E]), and their times int64; see csr.build."""
    items, edges = graph.num_items, graph.num_edges
    owner = np.repeat(np.arange(items, dtype=np.int32), np.diff(graph.indptr[: items + 1]))
    return build(
        owner[kept],
        graph.indices[:edges][kept] - np.int32(items),
        items,
        graph.num_collections,
        None if graph.weights is None else graph.weights[:edges][kept],
        None if times is None else times[kept],
        folder,
    )


def num_kept(degree: np.ndarray, config: PruneConfig) -> np.ndarray:
    """Edges int64 [n] that items of `degree` (int [n]) keep: all, or ceil(degree^power)."""
    powered = np.ceil(degree.astype(np.float64) ** config.prune_power).astype(np.int64)
    return np.minimum(degree, np.maximum(powered, config.prune_from))


def _entropies(collection: np.ndarray, topic: np.ndarray, collections: int) -> np.ndarray:
    """Entropy in bits, float64 [C], of the known topics of each collection's items."""
    known = topic >= 0
    pairs = collection[known].astype(np.int64) << 32 | topic[known]
    pairs, counts = np.unique(pairs, return_counts=True)
    owner = pairs >> 32
    total = np.bincount(owner, counts, minlength=collections)
    share = counts / total[owner]
    return np.bincount(owner, -share * np.log2(share), minlength=collections)


def _hash(seed: int, items: np.ndarray, collections: np.ndarray) -> np.ndarray:
    """A random number uint64 [E] per edge, a hash of seed, item and collection."""
    value = items.astype(np.uint64) << np.uint64(32) | collections.astype(np.uint64)
    # An array, not a scalar: only scalars warn when they overflow.
    return mix_array(value + np.array([seed], np.uint64) * GOLDEN)
