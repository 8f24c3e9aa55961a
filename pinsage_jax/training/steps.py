"""The training step: pure functions of (state, minibatch), for one or many devices.

Every device has a shard of the pairs and a copy of the parameters.  Losses are
(sum, count); the gradient of the mean over all devices is psum(gradient of sum)
divided by psum(count), which is exact however unevenly pairs are masked.

Axis letters as in batching/blocks.py and model/losses.py; Z width of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from pinsage_jax.batching.blocks import Minibatch
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.distributed.devices import all_gather_if, axis_index_or_zero, psum_if
from pinsage_jax.model.embedding_rows import (
    summed_rows,
    table_of,
    updates_by_rows,
    with_rows,
    with_rows_back,
    with_table,
)
from pinsage_jax.model.losses import LOSSES, Scored
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.training.device_inputs import SharedTable, Table, minibatch_inputs
from pinsage_jax.training.state import TrainState


def score(
    embedded: jax.Array, batch: Minibatch, axis_name: str | None, *, reverse: bool = False
) -> Scored:
    """Inner products and masks of a minibatch.

    Args:
      embedded: float32 [n_K, Z], the seeds' embeddings.
      axis_name: the in-batch candidates are the targets of all devices on this axis, so
        that the loss does not depend on how a batch is cut; None: those of this device.
      reverse: targets take the part of the queries and queries that of the targets, also
        in how likely a candidate is.
        Hard negatives belong to the queries and are masked then.
    """
    query, target = embedded[batch.queries], embedded[batch.targets]
    query_ids, target_ids, target_logq = batch.query_ids, batch.target_ids, batch.target_logq
    random_logq = batch.negative_logq
    if reverse:
        query, target = target, query
        query_ids, target_ids, target_logq = target_ids, query_ids, batch.query_logq
        random_logq = batch.reverse_negative_logq
    candidates, candidate_ids, candidate_logq, counted = all_gather_if(
        (target, target_ids, target_logq, batch.pair_weights > 0), axis_name
    )
    # The candidates come in the order of the devices, so these are the pairs' own targets.
    first = axis_index_or_zero(axis_name) * len(query_ids)
    positive_columns = first + jnp.arange(len(query_ids))

    def differs(ids: jax.Array) -> jax.Array:
        """bool [B, n]: ids [n] or [B, n] that are neither the row's query nor its target."""
        ids = ids[None, :] if ids.ndim == 1 else ids
        return (ids != query_ids[:, None]) & (ids != target_ids[:, None]) & (ids >= 0)

    not_positive = jnp.arange(len(candidate_ids))[None, :] != positive_columns[:, None]
    hard_ids = jnp.full_like(batch.hard_ids, -1) if reverse else batch.hard_ids
    hard = embedded[batch.hard]
    if len(hard) == 1 < len(query):
        # All queries share one set.
        hard_scores = query @ hard[0].T
    else:
        hard_scores = jnp.einsum("bz,bhz->bh", query, hard)
    return Scored(
        positive=jnp.sum(query * target, axis=-1),
        positive_logq=target_logq,
        random=query @ embedded[batch.negatives].T,
        random_mask=differs(batch.negative_ids),
        random_logq=random_logq,
        hard=hard_scores,
        hard_mask=differs(hard_ids),
        hard_logq=batch.hard_logq,
        in_batch=query @ candidates.T,
        in_batch_mask=differs(candidate_ids) & not_positive & counted[None, :],
        in_batch_logq=candidate_logq,
        weights=batch.pair_weights,
    )


def loss_sum(
    params: Any,
    batch: Minibatch,
    model: PinSage,
    config: TrainConfig,
    axis_name: str | None,
    table: Table | SharedTable | None = None,
    by_rows: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(sum, count) of the loss over this device's pairs, float32 [].

    Args:
      axis_name: as in `score`.
      table: as in minibatch_inputs.
      by_rows: the neighbor embeddings in `params` are those of the rows of the batch.
    """
    with jax.named_scope("inputs"):
        features = minibatch_inputs(batch, table, model.rows, axis_name)
    node_ids = None if by_rows else batch.node_ids
    graph = (node_ids, batch.neighbors, batch.weights, batch.transposed)
    if by_rows:
        model = model.clone(num_ids=len(batch.node_ids))
    # Flax names the scopes of the layers.
    embedded = cast(jax.Array, model.apply(params, features, *graph))
    loss = LOSSES[config.loss]
    with jax.named_scope("loss"):
        total, count = loss(score(embedded, batch, axis_name), config)
        if not config.symmetric:
            return total, count
        reversed_scores = score(embedded, batch, axis_name, reverse=True)
        reverse_total, reverse_count = loss(reversed_scores, config)
        return total + reverse_total, count + reverse_count


def global_gradients(
    params: Any,
    batch: Minibatch,
    model: PinSage,
    config: TrainConfig,
    axis_name: str | None,
    table: Table | SharedTable | None = None,
) -> tuple[Any, jax.Array, jax.Array]:
    """Gradient of the mean loss over all devices, with the loss's global sum and count.

    Args:
      axis_name, table: as in `loss_sum`.

    Returns:
      (gradients like `params`, sum float32 [], count float32 []), the same on all devices.
    """
    gradients, total, count, _ = _gradients(params, batch, model, config, axis_name, table, False)
    return gradients, total, count


def _gradients(
    params: Any,
    batch: Minibatch,
    model: PinSage,
    config: TrainConfig,
    axis_name: str | None,
    table: Table | SharedTable | None,
    by_rows: bool,
) -> tuple[Any, jax.Array, jax.Array, jax.Array | None]:
    """`global_gradients`, and with `by_rows` the ids of the rows [R, M] in place of the table."""
    if by_rows:
        params = with_rows(params, batch.node_ids)
    (total, count), gradients = jax.value_and_grad(loss_sum, has_aux=True)(
        params, batch, model, config, axis_name, table, by_rows
    )
    with jax.named_scope("reduce"):
        total, count = psum_if(total, axis_name), psum_if(count, axis_name)
        scale = 1.0 / jnp.maximum(count, 1.0)
        ids = rows = None
        if by_rows:
            found = table_of(gradients)
            ids, rows = summed_rows(batch.node_ids, found, model.num_ids, axis_name)
            gradients = with_table(gradients, jnp.zeros((), found.dtype))
        gradients = jax.tree.map(lambda leaf: psum_if(leaf, axis_name) * scale, gradients)
        if rows is not None:
            gradients = with_table(gradients, rows * scale)
    return gradients, total, count, ids


def make_train_step(
    model: PinSage, config: TrainConfig, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, dict]]:
    """The step for devices.compile_step.

    Returns:
      A function (state, batch, [table,] axis_name) -> (state, metrics); metrics are
      loss_sum, loss_count and gradient_norm, float32 [].
    """

    by_rows = updates_by_rows(model, config)

    def train_step(
        state: TrainState,
        batch: Minibatch,
        table: Table | SharedTable | None = None,
        axis_name: str | None = None,
    ) -> tuple[TrainState, dict]:
        gradients, total, count, ids = _gradients(
            state.params, batch, model, config, axis_name, table, by_rows
        )
        with jax.named_scope("optimizer"):
            before = (state.params, state.opt_state)
            params, opt_state = before if ids is None else with_rows(before, ids)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            params = optax.apply_updates(params, updates)
            if ids is not None:
                params, opt_state = with_rows_back(before, (params, opt_state), ids)
        metrics = {
            "loss_sum": total,
            "loss_count": count,
            "gradient_norm": optax.tree.norm(gradients),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
