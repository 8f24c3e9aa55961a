"""One step on the devices of one or several hosts; the only file that spells pmap or sharding.

A step is written once, for one device, and told the name of the axis over which
its siblings run (None when it has none):

  def step(state, batch, axis_name=None):
      loss, grads = jax.value_and_grad(local_sum_over_count)(state.params, batch)
      grads = psum_if(grads, axis_name)
      ...
      return new_state, {"loss": psum_if(loss, axis_name)}

Shapes: every leaf of a batch has a leading device axis [n, ...], also when n is
1; a state has none, neither before nor after the step, so a checkpoint of it
does not depend on the number of devices.

What a step must do for the same numbers on any number of devices:

* Means are psum(sum) / psum(count), never a mean of the devices' means: masks
  are uneven.  The count is psum-ed first and carries no gradient.
* Differentiate the *local* sum (over the global count), then psum the gradient.
  Inside pmap the transpose of psum is psum, so the gradient of a psum-ed loss
  comes out n times too large.  The transpose of all_gather adds up what the
  other devices' losses say about this device's rows, so in-batch negatives that
  span devices need nothing more.
* Everything in the returned state and metrics is the same on every device.
  pmap does not check that (`out_axes=None` hands out the first device's copy
  and keeps the others); ``assert_is_replicated`` does.

Several hosts: every process runs the same program on its own devices.  A batch has the
rows of those alone, [local, ...]; the axis spans the devices of all processes, in order
of process, so psum and all_gather do too.  A state is whole on every device of every
process, and each process sees it as an array of its own.

Why the state is placed by ``replicate`` before the first step: pmap is jit of
shard_map now, and the type of an argument includes the mesh it lives on.  A
state from the host, or on a mesh with another axis name, is traced once, and the
step's own output, which lives on pmap's mesh, a second time.  A weakly typed
leaf (a Python number) has the same effect.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from pinsage_jax.core.errors import UserError
from pinsage_jax.cpu.allocator import keep_freed_memory
from pinsage_jax.distributed import channel, process_group

AXIS_NAME = "devices"

Step = Callable[..., tuple[Any, Any]]

_JAX_HEARTBEAT_SECONDS = 3600


def connect() -> None:
    """Makes one system of the devices of all processes; before any other use of JAX.

    Whoever dies is found out by our own lines; JAX's heartbeat is a last resort.
    """
    group = process_group.current()
    if group.count == 1 or jax.distributed.is_initialized():
        return
    keep_freed_memory()
    host, port = group.service
    bind = f"{_bracketed(host)}:{port}"
    if group.index:
        host, port = "127.0.0.1", channel.relay(host, port)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from core/signals.py.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"{_bracketed(host)}:{port}",
        group.count,
        group.index,
        coordinator_bind_address=bind,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
    )
    # The processes tell each other of their devices now, in all of them: one that came to
    # its first use of JAX alone would wait for the others.
    jax.devices()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def table_limit(devices: Sequence[jax.Device]) -> int:
    """Bytes of constant tables that may live on each device: a quarter of its memory.

    Where the device does not tell its memory (the CPU's is the host's), 2 GiB over all.
    """
    stats = devices[0].memory_stats() or {}
    return stats.get("bytes_limit", 2**33 // len(devices)) // 4


def device_count() -> int:
    """Number of devices of this process."""
    return jax.local_device_count()


def make_devices(count: int = 0) -> tuple[jax.Device, ...]:
    """The first `count` local devices; 0 takes all of them.

    Raises:
      UserError: there are fewer.
    """
    keep_freed_memory()
    devices = jax.local_devices()
    if count > len(devices):
        raise UserError(
            f"--devices={count} is more than the {len(devices)} that JAX finds here; "
            "use --devices=0 for all of them."
        )
    return tuple(devices[: count or None])


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of every leaf, whole, on each of `devices`, ready for ``compile_step``.

    Always a copy, since the step gives the memory of its state away: the arrays
    passed in (of NumPy or JAX) stay valid and unchanged.  Leaves keep their
    shape and dtype; Python numbers become strongly typed arrays.
    """
    target = _sharding(devices, PartitionSpec())

    def place(leaf):
        # A private host copy: device_put shares the memory of what it is given when
        # it can (on CPU a NumPy array's too, even with may_alias=False).
        return jax.device_put(np.array(jnp.asarray(leaf)), target)

    return jax.tree.map(place, tree)


def place_batch(batch: Any, devices: Sequence[jax.Device]) -> Any:
    """Sends row i of every leaf [n, ...] of a host batch to device i.

    Raises:
      ValueError: a leaf whose first axis is not the number of devices.
    """
    _check_device_axis(batch, len(devices))
    return jax.device_put(batch, _sharding(devices, PartitionSpec(AXIS_NAME)))


def compile_step(
    step: Callable[..., tuple[Any, Any]],
    num_devices: int,
    *,
    donate: bool = True,
    constants: int = 0,
) -> Step:
    """Compiles ``step(state, batch, *constant, axis_name=...)`` for `num_devices` devices.

    Args:
      step: pure; returns (state, metrics), both equal on all devices.
      num_devices: of this process.  A single one in a single process compiles with
        jit and axis_name None; more with pmap over as many of every process, and
        axis_name ``AXIS_NAME``.
      donate: the old state's memory is reused for the new one, so the state
        passed in must not be used again.
      constants: how many more arguments it takes, each a pytree from ``replicate``
        that is whole on every device and never given away.

    Returns:
      A callable (state, batch, *constant) -> (state, metrics).  The state comes from
      ``replicate`` or from the step itself and has no device axis; leaves of the
      batch are [num_devices, ...], on the host or from ``place_batch``; metrics
      have no device axis.  It traces once as long as shapes and dtypes stay.
      It raises ValueError for a batch without the device axis.
    """
    donated = (0,) if donate else ()
    if num_devices == jax.process_count() == 1:

        @functools.wraps(step)
        def without_axis(state, batch, *constant):
            batch = jax.tree.map(lambda leaf: jnp.squeeze(leaf, axis=0), batch)
            return step(state, batch, *constant, axis_name=None)

        compiled = jax.jit(without_axis, donate_argnums=donated)
    else:
        compiled = jax.pmap(
            functools.wraps(step)(functools.partial(step, axis_name=AXIS_NAME)),
            axis_name=AXIS_NAME,
            in_axes=(None, 0, *(None,) * constants),
            out_axes=(None, None),
            devices=_everywhere(num_devices),
            donate_argnums=donated,
        )

    def run(state, batch, *constant):
        _check_device_axis(batch, num_devices)
        return compiled(state, batch, *constant)

    return run


def psum_if(tree: Any, axis_name: str | None) -> Any:
    """Sum of every leaf over the devices; the tree itself without an axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def all_gather_if(tree: Any, axis_name: str | None) -> Any:
    """Leaves [b, ...] of all devices joined to [n * b, ...], in the order of devices."""
    return tree if axis_name is None else jax.lax.all_gather(tree, axis_name, tiled=True)


def axis_index_or_zero(axis_name: str | None) -> jax.Array:
    """Number of this device on the axis, [] int32; 0 without an axis."""
    return jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name)


def assert_is_replicated(tree: Any) -> None:
    """Checks that every leaf is whole and bit for bit the same on all its devices.

    Raises:
      AssertionError: naming the first leaf that is not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array):
            continue
        name = jax.tree_util.keystr(path)
        if not leaf.is_fully_replicated:
            raise AssertionError(f"{name} is split over devices ({leaf.sharding})")
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        # Bytes, not values: NaN equals itself, and 0.0 and -0.0 differ.
        first = copies[0].tobytes()
        for number, copy in enumerate(copies):
            if copy.tobytes() != first:
                raise AssertionError(f"{name} on device {number} differs from device 0")


def _everywhere(count: int) -> list[jax.Device]:
    """The first `count` devices of every process, in order of process."""
    make_devices(count)
    processes = range(jax.process_count())
    return [device for p in processes for device in jax.local_devices(process_index=p)[:count]]


def _sharding(devices: Sequence[jax.Device], spec: PartitionSpec) -> Sharding:
    if len(devices) == jax.process_count() == 1:
        return SingleDeviceSharding(devices[0])
    return NamedSharding(Mesh(np.array(devices), (AXIS_NAME,)), spec)


def _check_device_axis(batch: Any, num_devices: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != num_devices:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}; its first axis "
                f"must be the {num_devices} devices"
            )
