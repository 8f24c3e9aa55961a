"""Recall@20 and NDCG@20 of recommendations, in the protocol published for Gowalla.

As in LightGCN (He et al., SIGIR 2020) and later papers: all items without a training edge
to the user are ranked; a user's recall is the number of test items in the first 20 ranks
divided by the number of all test items; NDCG has gains of one, and the best possible DCG
has min(20, test items) hits in the first ranks; both are averaged over users with test
items.

  U users, k recommendations
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.data import DataConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import edges_table, tables
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.ids import IdTable
from pinsage_jax.graph.csr import Graph
from pinsage_jax.recommend.scores import Histories, histories_of

DEPTH = 20
METRICS = (f"recall@{DEPTH}", f"ndcg@{DEPTH}")
PROTOCOL = (
    "every item outside a user's training edges is ranked; recall@20 = test items in the first 20 "
    "ranks / all test items of the user; ndcg@20 with gains of one over the best DCG of "
    "min(20, test items); means over users with test items and a training edge"
)


@dataclasses.dataclass(frozen=True, eq=False)
class TestEdges:
    """The test items of users.

    Attributes:
      users: int32 [U], collection indices, ascending.
      targets: each user's test items that are in the catalog.
      sizes: int64 [U], number of each user's test items, in the catalog or not.
      report: counts of the edges and users that were read or skipped.
    """

    users: np.ndarray
    targets: Histories
    sizes: np.ndarray
    report: dict[str, int]


def per_user(ids: np.ndarray, targets: Histories, sizes: np.ndarray) -> np.ndarray:
    """Recall@20 and NDCG@20 of each user, float64 [U, 2].

    Args:
      ids: int32 [U, k], recommendations, best first, padded with -1; the first 20 count.
      targets: the test items of each user.
      sizes: int64 [U], number of test items of each user, at least 1.
    """
    users = len(targets)
    ids = ids[:, :DEPTH].astype(np.int64)
    stride = max(int(targets.items.max(initial=0)), int(ids.max(initial=0))) + 1
    # The keys ascend, because the users do and so do the items of each user.
    target_keys = targets.owners() * stride + targets.items
    keys = np.arange(users)[:, None] * stride + ids
    hits = np.zeros(ids.shape, np.bool_)
    if len(target_keys):
        position = np.minimum(np.searchsorted(target_keys, keys), len(target_keys) - 1)
        hits = (target_keys[position] == keys) & (ids >= 0)
    gains = 1.0 / np.log2(2.0 + np.arange(DEPTH))
    best = np.cumsum(gains)[np.minimum(sizes, DEPTH) - 1]
    return np.stack([hits.sum(axis=1) / sizes, hits @ gains[: ids.shape[1]] / best], axis=1)


def read_test_edges(path: pathlib.Path, data: DataConfig, prepared: Prepared) -> TestEdges:
    """Reads --test_edges, whose columns have the same names as those of --edges.

    Items outside the catalog count as test items that cannot be found.  Users without a
    training edge are skipped, counted and logged.

    Raises:
      UserError: the file cannot be read, a test edge is also a training edge, or no user has
        a training edge.
    """
    table = tables.open_table(path, "test_edges", data)
    only_ids = dataclasses.replace(
        data, weight_column="", time_column="", kind_column="", kind_weights="", half_life=0.0
    )
    ids = edges_table.collect_ids(table, None, only_ids, None)
    # Unknown ids are numbered after the known ones.
    items, num_items = _codes(ids.items, prepared.item_ids)
    users, num_users = _codes(ids.collections, prepared.collection_ids)
    found_users, found_items = [], []
    names = [data.collection_column, data.item_column]
    for group in edges_table.group_batches(
        tables.iter_batches(table, names, ids=names), 4 * max(len(ids.items), len(ids.collections))
    ):
        chunks = [pa.chunked_array([batch.column(name) for batch in group]) for name in names]
        found_users.append(users[ids.collections.lookup(chunks[0])])
        found_items.append(items[ids.items.lookup(chunks[1])])
    graph = Graph.from_edges(
        np.concatenate(found_items), np.concatenate(found_users), num_items, num_users
    )
    tests = histories_of(graph)
    trained = np.zeros(num_users, np.bool_)
    trained[: len(prepared.collection_ids)] = (
        prepared.graph.degree()[prepared.graph.num_items :] > 0
    )
    sizes = np.diff(tests.indptr)
    chosen = np.flatnonzero((sizes > 0) & trained)
    skipped = int(((sizes > 0) & ~trained).sum())
    if len(chosen) == 0:
        raise UserError(
            f"--test_edges={path}: none of its collections has a training edge; "
            "check that its ids are those of --edges."
        )
    if skipped:
        logging.warning("--test_edges: %d users without a training edge skipped.", skipped)
    selected = tests.select(chosen)
    known = selected.items < len(prepared.item_ids)
    lengths = np.bincount(selected.owners()[known], minlength=len(chosen))
    targets = Histories(np.concatenate([[0], np.cumsum(lengths)]), selected.items[known])
    _check_disjoint(path, chosen, targets, prepared)
    report = {
        "test_edges": len(selected.items),
        "users": len(chosen),
        "skipped_users": skipped,
        "test_edges_of_unknown_items": int((~known).sum()),
    }
    return TestEdges(chosen.astype(np.int32), targets, sizes[chosen], report)


def _codes(table: IdTable, known: IdTable) -> tuple[np.ndarray, int]:
    """The index int32 of each id of `table`, and the number of known and unknown ids."""
    codes = known.lookup(table.ids).copy()
    unknown = np.flatnonzero(codes < 0)
    codes[unknown] = len(known) + np.arange(len(unknown))
    return codes, len(known) + len(unknown)


def _check_disjoint(
    path: pathlib.Path, users: np.ndarray, targets: Histories, prepared: Prepared
) -> None:
    """Raises UserError if a test edge is also a training edge."""
    trained = histories_of(prepared.graph).select(users)
    stride = len(prepared.item_ids)
    shared = np.isin(
        targets.owners() * stride + targets.items, trained.owners() * stride + trained.items
    )
    if shared.any():
        first = int(np.argmax(shared))
        user = prepared.collection_ids.names(users[targets.owners()[[first]]])[0].as_py()
        item = prepared.item_ids.names(targets.items[[first]])[0].as_py()
        raise UserError(
            f"--test_edges={path} contains {int(shared.sum()):,} edges that are also training "
            f"edges, the first of them {format_id(user)} with {format_id(item)}; remove them from "
            "one of the two files."
        )
