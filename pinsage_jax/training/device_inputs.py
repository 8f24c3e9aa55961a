"""Input vectors on the devices: whether they are stored there, and how a step reads them.

With `device_features` the devices hold NodeInputs.table, one row per node, and a batch
holds node ids and only what the table lacks (NodeInputs.gather_for_table).  The table may be
in fewer bits (`device_features_dtype`): half or a quarter of the memory, and of the bytes that
a step reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.batching.blocks import Minibatch
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.cpu.ops import read_rows
from pinsage_jax.distributed import process_group
from pinsage_jax.distributed.devices import make_devices, max_table_bytes, replicate

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_INT8_LARGEST = 127


class Int8Table(NamedTuple):
    """Input vectors of all nodes in eight bits.

    Attributes:
      codes: int8 [N, D].
      scale: float32 [D], what a code is multiplied by.
    """

    codes: Any
    scale: Any


Table = jax.Array | Int8Table


def stored_table(table: np.ndarray, dtype: str) -> Any:
    """float32 [N, D] of NodeInputs.table in a type of `device_features_dtype`.

    In int8 the largest number of a column is 127, so that an entry is off by at most a 254th
    of it.
    """
    if dtype == "float32":
        return table
    if dtype == "bfloat16":
        return table.astype(jnp.bfloat16)
    largest = np.abs(table).max(axis=0, initial=0.0)
    scale = np.where(largest > 0, largest / _INT8_LARGEST, 1.0).astype(np.float32)
    return Int8Table(np.rint(table / scale).astype(np.int8), scale)


def replicated_table(
    builder: MinibatchBuilder, train: TrainConfig, devices: tuple[jax.Device, ...]
) -> tuple[Table, ...]:
    """What a step takes beside state and batch: the table on every device, if there is one."""
    table = builder.table()
    if table is None:
        return ()
    return (replicate(stored_table(table, train.device_features_dtype), devices),)


def keeps_table(train: TrainConfig, inputs: NodeInputs) -> bool:
    """Whether input vectors are stored on the devices (`device_features`).

    Gathering there is never slower: an accelerator is spared the transfer, and a CPU's
    XLA gathers straight into the step's own memory on all its threads, where the host
    writes a copy first.  So only the memory decides, that of a whole second table.
    """
    if train.device_features != "auto":
        return train.device_features == "on" and any(inputs.table_columns)
    size = inputs.table_bytes // 4 * _BYTES[train.device_features_dtype]
    fits = size <= max_table_bytes(make_devices(train.devices))
    return fits and any(inputs.table_columns)


def all_keep_table(train: TrainConfig, inputs: NodeInputs) -> bool:
    """`keeps_table` of all processes of the run; the one with the least memory decides.

    The compiled step is the same in all of them, and it either has a table or not.
    """
    local = keeps_table(train, inputs)
    return all(process_group.all_gather_object(local, "input table on the devices"))


def read_inputs(batch: Minibatch, table: Table | None) -> jax.Array:
    """Input vectors float32 [n_0, D] of a minibatch.

    With a table in float32 they are the bits of those without one.

    Args:
      table: of `stored_table`, or None: the batch holds them.
    """
    if table is None:
        return batch.features
    stored = table.codes if isinstance(table, Int8Table) else table
    columns = stored.shape[1]
    width = batch.spectral_features.shape[1]
    extra = batch.features.shape[1]
    start = columns - extra - width
    # Padding reads node 0: nothing points to it.
    rows = read_rows(stored, batch.node_ids).astype(jnp.float32)
    if isinstance(table, Int8Table):
        rows = rows * table.scale[None, :]
    if width:
        spectral_columns = (jnp.arange(columns) >= start)[None, :]
        rows = jnp.where(spectral_columns & ~batch.has_spectral[:, None], 0.0, rows)
        rows = jax.lax.dynamic_update_slice(rows, batch.spectral_features, (0, start))
    if extra:
        rows = jax.lax.dynamic_update_slice(rows, batch.features, (0, start + width))
    return rows
