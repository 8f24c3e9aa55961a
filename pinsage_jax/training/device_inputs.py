"""Input vectors on the devices: whether they are stored there, and how a step reads them.

With `device_features` the devices hold NodeInputs.table, one row per node, and a batch
holds node ids and only what the table lacks (NodeInputs.gather_for_table).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pinsage_jax.batching.blocks import Minibatch
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.cpu.ops import read_rows
from pinsage_jax.distributed import process_group
from pinsage_jax.distributed.devices import make_devices, max_table_bytes


def keeps_table(train: TrainConfig, inputs: NodeInputs) -> bool:
    """Whether input vectors are stored on the devices (`device_features`).

    Gathering there is never slower: an accelerator is spared the transfer, and a CPU's
    XLA gathers straight into the step's own memory on all its threads, where the host
    writes a copy first.  So only the memory decides, that of a whole second table.
    """
    if train.device_features != "auto":
        return train.device_features == "on" and any(inputs.table_columns)
    fits = inputs.table_bytes <= max_table_bytes(make_devices(train.devices))
    return fits and any(inputs.table_columns)


def all_keep_table(train: TrainConfig, inputs: NodeInputs) -> bool:
    """`keeps_table` of all processes of the run; the one with the least memory decides.

    The compiled step is the same in all of them, and it either has a table or not.
    """
    local = keeps_table(train, inputs)
    return all(process_group.all_gather_object(local, "input table on the devices"))


def read_inputs(batch: Minibatch, table: jax.Array | None) -> jax.Array:
    """Input vectors float32 [n_0, D] of a minibatch, the same bits with and without a table.

    Args:
      table: float32 [N, D] of NodeInputs.table, or None: the batch holds them.
    """
    if table is None:
        return batch.features
    width = batch.spectral_features.shape[1]
    extra = batch.features.shape[1]
    start = table.shape[1] - extra - width
    # Padding reads node 0: nothing points to it.
    rows = read_rows(table, batch.node_ids)
    if width:
        spectral_columns = (jnp.arange(table.shape[1]) >= start)[None, :]
        rows = jnp.where(spectral_columns & ~batch.has_spectral[:, None], 0.0, rows)
        rows = jax.lax.dynamic_update_slice(rows, batch.spectral_features, (0, start))
    if extra:
        rows = jax.lax.dynamic_update_slice(rows, batch.features, (0, start + width))
    return rows
