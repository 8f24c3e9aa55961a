"""Recall@20 and NDCG@20 of recommendations, in the protocol published for Gowalla.

As LightGCN (He et al., SIGIR 2020) and its followers report it: all items that are
not in a user's training edges are ranked; a user's recall is the number of test items
in the first 20 places over the number of all test items; NDCG has gains of one, and
the best possible DCG puts min(20, test items) of them first; both are means over users
with test items.

  U users, k places
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
    "places / all test items of the user; ndcg@20 with gains of one over the best DCG of "
    "min(20, test items); means over users with test items and a training edge"
)


@dataclasses.dataclass(frozen=True, eq=False)
class TestEdges:
    """Test items of users.

    Attributes:
      users: int32 [U], collection indices, ascending.
      targets: their test items that are in the catalog.
      sizes: int64 [U], their test items, known or not.
      report: counts of what was read and left out.
    """

    users: np.ndarray
    targets: Histories
    sizes: np.ndarray
    report: dict[str, int]


def per_user(ids: np.ndarray, targets: Histories, sizes: np.ndarray) -> np.ndarray:
    """Recall@20 and NDCG@20 of each user, float64 [U, 2].

    Args:
      ids: int32 [U, k], best first, -1 padded; the first 20 are looked at.
      targets: test items of each user.
      sizes: int64 [U], at least 1.
    """
    users = len(targets)
    ids = ids[:, :DEPTH].astype(np.int64)
    wide = max(int(targets.items.max(initial=0)), int(ids.max(initial=0))) + 1
    # Ascending, because users are and the items of each user are.
    keys = targets.owners() * wide + targets.items
    wanted = np.arange(users)[:, None] * wide + ids
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    hits = (keys[place] == wanted) & (ids >= 0) if len(keys) else np.zeros(ids.shape, np.bool_)
    gains = 1.0 / np.log2(2.0 + np.arange(DEPTH))
    best = np.cumsum(gains)[np.minimum(sizes, DEPTH) - 1]
    return np.stack([hits.sum(axis=1) / sizes, hits @ gains[: ids.shape[1]] / best], axis=1)


def read_test_edges(path: pathlib.Path, data: DataConfig, prepared: Prepared) -> TestEdges:
    """Reads --test_edges, whose columns are named as those of --edges.

    Items that the catalog lacks count as test items that cannot be found; users
    without a training edge are left out, counted and logged.

    Raises:
      UserError: the file cannot be used, a test edge is a training edge too, or no
        user is known.
    """
    table = tables.open_table(path, "test_edges", data)
    bare = dataclasses.replace(data, weight_column="", time_column="")
    ids = edges_table.collect_ids(table, None, bare, None)
    # Unknown ids have places of their own, behind the known.
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
    left_out = int(((sizes > 0) & ~trained).sum())
    if len(chosen) == 0:
        raise UserError(
            f"--test_edges={path}: none of its collections has a training edge; "
            "are its ids those of --edges?"
        )
    if left_out:
        logging.warning("--test_edges: %d users without a training edge left out.", left_out)
    picked = tests.select(chosen)
    known = picked.items < len(prepared.item_ids)
    lengths = np.bincount(picked.owners()[known], minlength=len(chosen))
    targets = Histories(np.concatenate([[0], np.cumsum(lengths)]), picked.items[known])
    _refuse_trained(path, chosen, targets, prepared)
    report = {
        "test_edges": len(picked.items),
        "users": len(chosen),
        "users_left_out": left_out,
        "test_edges_of_unknown_items": int((~known).sum()),
    }
    return TestEdges(chosen.astype(np.int32), targets, sizes[chosen], report)


def _codes(table: IdTable, known: IdTable) -> tuple[np.ndarray, int]:
    """The index of each id of `table`, int32, and how many there are with the unknown."""
    codes = known.lookup(table.ids).copy()
    unknown = np.flatnonzero(codes < 0)
    codes[unknown] = len(known) + np.arange(len(unknown))
    return codes, len(known) + len(unknown)


def _refuse_trained(
    path: pathlib.Path, users: np.ndarray, targets: Histories, prepared: Prepared
) -> None:
    held = histories_of(prepared.graph).select(users)
    wide = len(prepared.item_ids)
    both = np.isin(targets.owners() * wide + targets.items, held.owners() * wide + held.items)
    if both.any():
        place = int(np.argmax(both))
        user = prepared.collection_ids.names(users[targets.owners()[[place]]])[0].as_py()
        item = prepared.item_ids.names(targets.items[[place]])[0].as_py()
        raise UserError(
            f"--test_edges={path} holds {int(both.sum()):,} edges that are training edges too, the "
            f"first being {format_id(user)} with {format_id(item)}; remove them from one of the "
            "two."
        )
