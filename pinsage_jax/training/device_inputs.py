"""Input vectors on the devices: whether they are stored there, and how a step reads them.

With `device_features` the devices hold NodeInputs.table, one row per node, and a batch
holds node ids and only what the table lacks (NodeInputs.gather_for_table).  The table may be
in fewer bits (`device_features_dtype`): half or a quarter of the memory, and of the bytes that
a step reads.  A table that is too large for each device is dealt to all of them
(distributed/owned_rows.py), and a step asks the others for the rows that it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.batching.blocks import Minibatch
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.cpu.ops import kernels_are_used, read_rows
from pinsage_jax.distributed import process_group
from pinsage_jax.distributed.devices import (
    make_devices,
    max_table_bytes,
    place_batch,
    replicate,
)
from pinsage_jax.distributed.owned_rows import (
    all_parts,
    owned_by,
    part_size,
    places,
    read_owned,
)
from pinsage_jax.model.input_rows import TableInputs

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_INT8_LARGEST = 127
# Inputs that are read at once while the table is made.
_BLOCK_BYTES = 1 << 26


class Int8Table(NamedTuple):
    """Input vectors of all nodes in eight bits.

    Attributes:
      codes: int8 [N, D].
      scale: float32 [D], what a code is multiplied by.
    """

    codes: Any
    scale: Any


class SharedTable(NamedTuple):
    """Input vectors of which every device has the rows of its own nodes.

    Attributes:
      part: this device's nodes, [S, D], as in distributed/owned_rows.py.
    """

    part: Any


Table = jax.Array | Int8Table


def stored_parts(
    inputs: NodeInputs, dtype: str, count: int, devices: range
) -> np.ndarray | Int8Table:
    """The parts [len(devices), S, D] of NodeInputs.table that `devices`, of `count`, own.

    They are made in blocks of rows, so that a process never holds more than its own parts, in
    the type in which they are stored.  In int8 the largest number of a column of all parts is
    127, so that an entry is off by at most a 254th of it; all processes call this then.

    Args:
      dtype: as `device_features_dtype`.
    """
    nodes, width = inputs.table_shape
    own = [owned_by(device, nodes, count) for device in devices]
    scale = _int8_scale(inputs, own) if dtype == "int8" else None
    parts = np.zeros((len(own), part_size(nodes, count), width), jnp.dtype(dtype))
    for part, rows in zip(parts, own):
        for begin, block in _blocks(inputs, rows):
            stored = block if scale is None else np.rint(block / scale)
            part[begin : begin + len(block)] = stored
    if scale is None:
        return parts
    return Int8Table(parts, np.broadcast_to(scale, (len(own), width)))


def _int8_scale(inputs: NodeInputs, own: list[range]) -> np.ndarray:
    """The unit of each column, float32 [D], from the parts of all processes."""
    largest = np.zeros(inputs.table_shape[1], np.float32)
    for rows in own:
        for _, block in _blocks(inputs, rows):
            largest = np.maximum(largest, np.abs(block).max(axis=0, initial=0.0))
    everywhere = process_group.all_gather_object(largest.tolist(), "scale of the input table")
    largest = np.array(everywhere, np.float32).max(axis=0)
    return np.where(largest > 0, largest / _INT8_LARGEST, 1.0).astype(np.float32)


def _blocks(inputs: NodeInputs, rows: range) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the inputs of `rows` in blocks, each with the place of its first row."""
    step = max(_BLOCK_BYTES // (4 * max(inputs.table_shape[1], 1)), 1)
    for begin in range(0, len(rows), step):
        yield begin, inputs.table(rows[begin : begin + step])
        inputs.release()


def table_arguments(
    builder: MinibatchBuilder, train: TrainConfig, devices: tuple[jax.Device, ...]
) -> tuple[Table | SharedTable, ...]:
    """What a step takes beside state and batch: the table on the devices, if there is one.

    Where the batches' `table_is_split`, its leaves have a device axis.
    """
    spec, dtype = builder.spec, train.device_features_dtype
    if not spec.table_on_device:
        return ()
    if not spec.table_is_split:
        whole = stored_parts(builder.inputs, dtype, 1, range(1))
        return (replicate(jax.tree.map(lambda part: part[0], whole), devices),)
    local = spec.local_devices or range(spec.num_devices)
    parts = stored_parts(builder.inputs, dtype, spec.num_devices, local)
    return (place_batch(SharedTable(parts), devices),)


def table_form(train: TrainConfig, inputs: NodeInputs) -> str:
    """How input vectors are stored on the devices (`device_features`): whole, split or none.

    Gathering there is never slower: an accelerator is spared the transfer, and a CPU's
    XLA gathers straight into the step's own memory on all its threads, where the host
    writes a copy first.  So only the memory decides, that of a whole second table.  Devices that
    are no CPUs divide a table that is too large for each of them.

    Returns:
      The same in all processes; the one with the least memory decides.
    """
    forms = process_group.all_gather_object(
        local_table_form(train, inputs), "input table on the devices"
    )
    return max(forms, key=("whole", "split", "none").index)


def local_table_form(train: TrainConfig, inputs: NodeInputs) -> str:
    """`table_form` by the devices of this process."""
    if train.device_features == "off" or not any(inputs.table_columns):
        return "none"
    devices = make_devices(train.devices)
    # All processes have as many devices.
    count = len(devices) * process_group.current().count
    if train.device_features == "split" and count > 1:
        return "split"
    size = inputs.table_bytes // 4 * _BYTES[train.device_features_dtype]
    most = max_table_bytes(devices)
    if train.device_features != "auto" or size <= most:
        return "whole"
    return "split" if size <= count * most and jax.default_backend() != "cpu" else "none"


def read_inputs(
    batch: Minibatch,
    table: Table | SharedTable | None,
    first: int | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Input vectors float32 [n_0, D] of a minibatch.

    With a table in float32 they are the bits of those without one.

    Args:
      table: of `stored_table`, or None: the batch holds them.
      first: only so many rows, at least as many as the batch brings spectral features for.
      axis_name: the axis of the devices that share the table.
    """
    if table is None:
        return batch.features[:first]
    stored, scale = _codes(table)
    columns = stored.shape[1]
    width = batch.spectral_features.shape[1]
    extra = batch.features.shape[1]
    start = columns - extra - width
    # Padding reads node 0, or zeros: nothing points to it.
    if isinstance(table, SharedTable):
        assert axis_name is not None
        rows = read_owned(stored, batch.node_ids[:first], axis_name).astype(jnp.float32)
    else:
        rows = read_rows(stored, batch.node_ids[:first]).astype(jnp.float32)
    if scale is not None:
        rows = rows * scale[None, :]
    if width:
        spectral_columns = (jnp.arange(columns) >= start)[None, :]
        rows = jnp.where(spectral_columns & ~batch.has_spectral[:first, None], 0.0, rows)
        rows = jax.lax.dynamic_update_slice(rows, batch.spectral_features, (0, start))
    if extra:
        rows = jax.lax.dynamic_update_slice(rows, batch.features[:first], (0, start + width))
    return rows


def minibatch_inputs(
    batch: Minibatch,
    table: Table | SharedTable | None,
    frontiers: tuple[int, ...],
    axis_name: str | None = None,
) -> jax.Array | TableInputs:
    """Input vectors of a minibatch as its first layer takes them.

    Args:
      table, axis_name: as in `read_inputs`.
      frontiers: rows of every frontier, seeds first.

    Returns:
      float32 [n_0, D]; or what the table is projected by, where that is less work.
    """
    if table is None:
        return read_inputs(batch, table)
    stored, scale = _codes(table)
    # The axis of the devices that share the table.
    shared = axis_name if isinstance(table, SharedTable) else None
    nodes = len(stored)
    if shared is not None:
        nodes *= jax.lax.axis_size(shared)
    if not projects_table(nodes, batch, frontiers):
        return read_inputs(batch, table, axis_name=axis_name)
    width = batch.spectral_features.shape[1]
    narrow = batch.features
    if width:
        start = stored.shape[1] - width - narrow.shape[1]
        if shared is not None:
            part = stored[:, start : start + width]
            spectral = read_owned(part, batch.node_ids, shared).astype(jnp.float32)
        else:
            spectral = _columns(stored, batch.node_ids, start, width).astype(jnp.float32)
        if scale is not None:
            spectral = spectral * scale[None, start : start + width]
        spectral = jnp.where(batch.has_spectral[:, None], spectral, 0.0)
        narrow = jnp.concatenate([spectral, narrow], axis=1)
    return TableInputs(
        rows=read_inputs(batch, table, frontiers[-2], axis_name),
        narrow=narrow,
        table=stored,
        scale=scale,
        places=batch.node_ids if shared is None else places(batch.node_ids, len(stored), shared),
        pairs=len(batch.spectral_features),
        collect=(lambda whole: whole) if shared is None else all_parts,
    )


def projects_table(nodes: int, batch: Minibatch, frontiers: tuple[int, ...]) -> bool:
    """Whether the first layer projects the table of so many nodes rather than the batch's rows.

    Where kernels for CPUs read the rows, it does not: steps then have the same bits with a table
    and without.
    """
    if len(frontiers) < 2 or kernels_are_used():
        return False
    return nodes <= frontiers[-1] - len(batch.spectral_features)


def _codes(table: Table | SharedTable) -> tuple[jax.Array, jax.Array | None]:
    """The array [N, D] of a table, or [S, D] of a part, and the scale [D] of its columns."""
    whole = table.part if isinstance(table, SharedTable) else table
    return (whole.codes, whole.scale) if isinstance(whole, Int8Table) else (whole, None)


def _columns(table: jax.Array, node_ids: jax.Array, start: int, width: int) -> jax.Array:
    """table[max(node_ids, 0), start : start + width], without a copy of these columns."""
    rows = jnp.maximum(node_ids, 0)
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0, 1)
    )
    corners = jnp.stack([rows, jnp.full_like(rows, start)], axis=1)
    return jax.lax.gather(
        table, corners, numbers, (1, width), mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
    )
