"""Neighbor embeddings that a step updates by rows: those of the nodes in its batch alone.

The gradient of a table [N, M] of neighbor embeddings has as many non-zero rows as a batch has
nodes.  As a dense array it is summed over the devices, and Adam reads and writes the table and its
two moments whole.  By rows, devices exchange the rows of their batches with their ids, and Adam
reads and writes these rows only.

That is lazy Adam, and it trains another model than Adam does: a row that no batch meets keeps its
value and its moments, where Adam goes on moving it along its last gradients while they decay, and
decays the weights of all rows.  A row that is met is updated as by Adam, with the count of all
steps.  So a step by rows equals a dense one where every row is met, and in the first step without
weight decay.  Which of them a run takes is `embedding_updates`.

Axis letters: N nodes with an embedding; M width; n_0 rows of a batch; n devices; R = n * n_0.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pinsage_jax.config.training import TrainConfig
from pinsage_jax.distributed.devices import all_gather_if
from pinsage_jax.model.init import MAX_EMBEDDING_NUMBERS
from pinsage_jax.model.pinsage import PinSage

_TABLE = "neighbor_embeddings"


def updates_by_rows(model: PinSage, train: TrainConfig) -> bool:
    """Whether the embeddings of a model are updated by rows (`embedding_updates`)."""
    if not model.num_ids or not model.config.num_layers:
        return False
    numbers = model.num_ids * model.config.hidden_dim
    large = train.embedding_updates == "auto" and numbers > MAX_EMBEDDING_NUMBERS
    return large or train.embedding_updates == "rows"


def with_rows(tree: Any, ids: jax.Array) -> Any:
    """Parameters, or an optimizer's state, with rows `ids` in place of the table.

    Args:
      tree: every leaf that is named after the table is [N, M].
      ids: int32 [R]; rows of zeros for ids outside [0, N).
    """

    def pick(table: jax.Array) -> jax.Array:
        # A negative index would count from the end.
        rows = jnp.where(ids < 0, len(table), ids)
        return table.at[rows].get(mode="fill", fill_value=0)

    return _on_table(pick, tree)


def with_rows_back(tree: Any, rows: Any, ids: jax.Array) -> Any:
    """`tree` with the rows `ids` from `rows`, and all other leaves from there.

    Args:
      tree: as in `with_rows`.
      rows: what `with_rows` returns, updated.
      ids: int32 [R], no id of [0, N) twice; other ids are left out.
    """

    def put(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        if not _is_table(path):
            return new
        return old.at[ids].set(new, mode="drop", unique_indices=True)

    return jax.tree_util.tree_map_with_path(put, tree, rows)


def summed_rows(
    ids: jax.Array, gradients: jax.Array, num_ids: int, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """The rows of all devices, each id once, with the sums of its gradients.

    Each device's rows of an id are added at once, one device after the other.  Of them at most one
    is not zero, since neighbor lists name one row of a node, so the sums have the same bits every
    time.

    Args:
      ids: int32 [n_0] of this device; -1 for padding.
      gradients: float32 [n_0, M].

    Returns:
      int32 [R], distinct; num_ids or more where there is none. And float32 [R, M].
    """
    local = len(ids)
    ids, gradients = all_gather_if((ids, gradients), axis_name)
    ids = jnp.where(ids < 0, num_ids, ids)
    order = jnp.argsort(ids)
    ranked = ids[order]
    begins = jnp.concatenate([jnp.ones(1, jnp.bool_), ranked[1:] != ranked[:-1]])
    numbers = jnp.cumsum(begins.astype(jnp.int32)) - 1
    place = jnp.zeros_like(ids).at[order].set(numbers, unique_indices=True)
    past = num_ids + jnp.arange(len(ids), dtype=jnp.int32)
    # Padding and places without an id have ids of their own, past the table.
    found = past.at[place].set(jnp.where(ids < num_ids, ids, past[place]))
    sums = jnp.zeros(gradients.shape, jnp.float32)
    for first in range(0, len(ids), local):
        span = slice(first, first + local)
        sums = sums.at[place[span]].add(gradients[span])
    return found, sums


def table_of(params: Any) -> jax.Array:
    """The table [N, M] of parameters, or the rows in its place."""
    return params["params"][_TABLE]


def with_table(params: Any, table: jax.Array) -> Any:
    """Parameters with another array in place of the table."""
    return _on_table(lambda _: table, params)


def _on_table(change: Any, tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: change(leaf) if _is_table(path) else leaf, tree
    )


def _is_table(path: Any) -> bool:
    return any(getattr(part, "key", None) == _TABLE for part in path)
