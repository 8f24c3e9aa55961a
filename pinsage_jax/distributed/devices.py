"""Runs a training step on the devices of one or several hosts.

This is the only module that uses pmap, shard_map or sharding.  A step is written for one device
and receives the name of the mapped axis, which is None on a single device:

  def step(state, batch, axis_name=None):
      loss, grads = jax.value_and_grad(local_sum_over_count)(state.params, batch)
      grads = psum_if(grads, axis_name)
      ...
      return new_state, {"loss": psum_if(loss, axis_name)}

Shapes: every leaf of a batch has a leading device axis [n, ...], also if n is 1.  A
state has no device axis before or after the step, so that a checkpoint does not depend
on the number of devices.

Three rules make a step compute the same values on any number of devices:

* A mean is psum(sum) / psum(count) and never a mean of the devices' means, because the
  devices have different numbers of unmasked rows.  The count is psum-ed first and
  carries no gradient.
* Differentiate the *local* sum divided by the global count, then psum the gradient.
  Inside pmap the transpose of psum is psum, so the gradient of a psum-ed loss would be
  n times too large.  The transpose of all_gather sums the gradients of all devices'
  losses with respect to this device's rows, so in-batch negatives from other devices
  need no further correction.
* The returned state and metrics are the same on every device.  pmap does not check this
  (`out_axes=None` returns the first device's copy); ``assert_is_replicated`` does.

Several hosts: every process runs the same program on its own devices.  A batch holds the
rows of the local devices, [local, ...].  The mapped axis spans the devices of all
processes in order of process, and psum and all_gather run over all of them.  The state
is replicated on every device of every process; each process holds it as its own array.

``replicate`` places the state before the first step because pmap is a jit of shard_map,
where the type of an argument includes its mesh.  A state from the host, or on a mesh with
another axis name, would be traced once, and the step's own output, which is on pmap's
mesh, a second time.  A weakly typed leaf (a Python number) has the same effect.

Arrays without elements, such as spectral features of width 0, are not passed to pmap but
made inside it: over two or more devices, the compiler of jaxlib 0.11.2 (not of 0.11.1 or
0.12.0.1) ends the process with a segmentation fault for an argument of that kind.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from pinsage_jax.core.errors import UserError

AXIS_NAME = "devices"

# How a step is mapped over several devices: "pmap", or "shard_map" for jit of shard_map.
# Both compute the same bits (tests/distributed/test_mappings.py).
MAPPING = "pmap"

Step = Callable[..., tuple[Any, Any]]


def max_table_bytes(devices: Sequence[jax.Device]) -> int:
    """Largest size in bytes of constant tables on each device: a quarter of its memory.

    For devices that do not report their memory (CPU devices share the host's), the total
    over all devices is 2 GiB.
    """
    stats = devices[0].memory_stats() or {}
    return stats.get("bytes_limit", 2**33 // len(devices)) // 4


def device_count() -> int:
    """Number of local devices, those of this process."""
    return jax.local_device_count()


def make_devices(count: int | None = None) -> tuple[jax.Device, ...]:
    """The first `count` local devices; all of them if `count` is None.

    Raises:
      UserError: there are fewer than `count`.
    """
    devices = jax.local_devices()
    if count and count > len(devices):
        raise UserError(
            f"--devices={count} is more than the {len(devices)} that JAX finds here; "
            "use --devices=auto for all of them."
        )
    return tuple(devices[:count])


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies every leaf to each of `devices`, as ``compile_step`` expects a state.

    The result never shares memory with the argument, because a step donates the memory of
    its state; the NumPy or JAX arrays passed in stay valid and unchanged.  Leaves keep
    their shape and dtype; Python numbers become strongly typed arrays.
    """
    target = _sharding(devices, PartitionSpec())

    def place(leaf):
        # The host copy is needed: on CPU device_put shares the memory of its argument, also
        # of a NumPy array and even with may_alias=False.
        return jax.device_put(np.array(jnp.asarray(leaf)), target)

    return jax.tree.map(place, tree)


def place_batch(batch: Any, devices: Sequence[jax.Device]) -> Any:
    """Transfers row i of every leaf [n, ...] of a host batch to device i.

    Raises:
      ValueError: the first axis of a leaf differs from the number of devices.
    """
    _check_device_axis(batch, len(devices))
    return jax.device_put(batch, _sharding(devices, PartitionSpec(AXIS_NAME)))


def compile_step(
    step: Callable[..., tuple[Any, Any]],
    num_devices: int,
    *,
    donate: bool = True,
    constants: int = 0,
    split: bool = False,
) -> Step:
    """Compiles ``step(state, batch, *constant, axis_name=...)`` for `num_devices` devices.

    Args:
      step: a pure function that returns (state, metrics), both equal on all devices.
      num_devices: number of devices of this process.  One device in a single process
        compiles with jit and axis_name None; otherwise ``MAPPING`` maps over
        `num_devices` devices of every process, with axis_name ``AXIS_NAME``.
      donate: reuses the memory of the old state for the new one; the state passed in must
        not be used again.
      constants: number of further arguments, each a pytree from ``replicate`` whose memory
        is never donated.
      split: their leaves have a device axis instead, and come from ``place_batch``.

    Returns:
      A callable (state, batch, *constant) -> (state, metrics).  The state comes from
      ``replicate`` or from the step itself and has no device axis.  Leaves of the batch are
      [num_devices, ...], on the host or from ``place_batch``.  Metrics have no device axis.
      It traces once as long as shapes and dtypes stay the same, and raises ValueError for a
      batch without the device axis.
    """
    if num_devices == jax.process_count() == 1:
        compiled = _without_axis(step, donate, split)
    else:
        mapped = _devices_of_all_processes(num_devices)
        over_devices = _over_devices(step, mapped, donate, constants, split)

        def compiled(*arguments):
            return over_devices(*_without_empty(arguments))

    def run(state, batch, *constant):
        _check_device_axis(batch, num_devices)
        return compiled(state, batch, *constant)

    return run


def compile_ahead(
    step: Callable[..., tuple[Any, Any]],
    devices: Sequence[jax.Device],
    state: Any,
    batch: Any,
    *constant: Any,
    split: bool = False,
) -> Any:
    """Compiles the program of ``compile_step`` for devices that need not be there.

    Args:
      step: as in ``compile_step``.
      devices: of one process, such as those of a topology from jax.experimental.topologies.
      state, batch, constant: arrays or jax.ShapeDtypeStruct; leaves of the batch have the
        device axis.
      split: as in ``compile_step``.

    Returns:
      jax.stages.Compiled, with the program's text and what memory it needs.
    """
    _check_device_axis(batch, len(devices))
    arguments = (state, batch, *constant)
    if len(devices) > 1:
        compiled = _over_devices(step, devices, True, len(constant), split)
        arguments = _without_empty(arguments)
    else:
        compiled = _without_axis(step, True, split)
        arguments = on_device(arguments, devices[0])
    # Pallas asks the default device what it compiles for.
    with jax.default_device(devices[0]):
        return compiled.lower(*arguments).compile()


def on_device(tree: Any, device: jax.Device) -> Any:
    """The shapes of `tree`, each as jax.ShapeDtypeStruct on `device`, for ``jit(...).lower``."""
    place = SingleDeviceSharding(device)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def _without_axis(step: Callable[..., tuple[Any, Any]], donate: bool, split: bool) -> Any:
    """The step on one device, jitted; leaves of its batch are [1, ...]."""

    @functools.wraps(step)
    def without_axis(state, batch, *constant):
        batch = _squeezed(batch)
        constant = _squeezed(constant) if split else constant
        return step(state, batch, *constant, axis_name=None)

    return jax.jit(without_axis, donate_argnums=(0,) if donate else ())


def _over_devices(
    step: Callable[..., tuple[Any, Any]],
    devices: Sequence[jax.Device],
    donate: bool,
    constants: int,
    split: bool,
) -> Any:
    """The step mapped over `devices` as ``MAPPING`` says, of arguments from ``_without_empty``.

    Leaves of its batch are [local devices, ...].
    """

    @functools.wraps(step)
    def of_one_device(state, batch, *constant):
        state, batch = _with_empty(state), _with_empty(batch, mapped_axes=1)
        constant = _with_empty(constant, mapped_axes=int(split))
        return step(state, batch, *constant, axis_name=AXIS_NAME)

    if MAPPING == "shard_map":
        return _with_shard_map(of_one_device, devices, donate, constants, split)
    return jax.pmap(
        of_one_device,
        axis_name=AXIS_NAME,
        in_axes=(None, 0, *(0 if split else None,) * constants),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=(0,) if donate else (),
    )


def _with_shard_map(
    of_one_device: Callable[..., tuple[Any, Any]],
    devices: Sequence[jax.Device],
    donate: bool,
    constants: int,
    split: bool,
) -> Any:
    """What ``_over_devices`` returns, without pmap."""
    mesh = Mesh(np.array(devices), (AXIS_NAME,))
    replicated = PartitionSpec()
    over_devices = PartitionSpec(AXIS_NAME)
    specs = (replicated, over_devices, *(over_devices if split else replicated,) * constants)

    def of_one_row(state, batch, *constant):
        constant = _squeezed(constant) if split else constant
        return of_one_device(state, _squeezed(batch), *constant)

    # Without check_vma the transpose of psum is psum, as in pmap: see the rules above.
    mapped = jax.shard_map(
        of_one_row, mesh=mesh, in_specs=specs, out_specs=replicated, check_vma=False
    )
    compiled = jax.jit(
        mapped,
        in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),
        donate_argnums=(0,) if donate else (),
    )
    if jax.process_count() == 1:
        return compiled

    def of_one_process(*arguments):
        whole = multihost_utils.host_local_array_to_global_array(arguments, mesh, specs)
        return multihost_utils.global_array_to_host_local_array(compiled(*whole), mesh, replicated)

    return of_one_process


def _squeezed(tree: Any) -> Any:
    """The tree without the device axis [1, ...] of its leaves."""
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, axis=0), tree)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Empty:
    """Stands for an array without elements; to JAX it is part of the tree, not a leaf."""

    shape: tuple[int, ...]
    dtype: Any


def _without_empty(tree: Any) -> Any:
    """The tree with ``_Empty`` in place of every array without elements."""
    return jax.tree.map(
        lambda leaf: _Empty(leaf.shape, leaf.dtype) if 0 in np.shape(leaf) else leaf, tree
    )


def _with_empty(tree: Any, mapped_axes: int = 0) -> Any:
    """The tree with arrays in place of ``_Empty``, less that many leading axes."""

    def fill(node):
        if isinstance(node, _Empty):
            return jnp.zeros(node.shape[mapped_axes:], node.dtype)
        return node

    return jax.tree.map(fill, tree, is_leaf=lambda node: isinstance(node, _Empty))


def psum_if(tree: Any, axis_name: str | None) -> Any:
    """Sum of every leaf over the devices; `tree` itself if `axis_name` is None."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def all_gather_if(tree: Any, axis_name: str | None) -> Any:
    """Concatenates the leaves [b, ...] of all devices to [n * b, ...], in device order."""
    return tree if axis_name is None else jax.lax.all_gather(tree, axis_name, tiled=True)


def axis_index_or_zero(axis_name: str | None) -> jax.Array:
    """Index of this device on the axis, int32 []; 0 if `axis_name` is None."""
    return jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name)


def assert_is_replicated(tree: Any) -> None:
    """Checks that every leaf is fully replicated, with the same bits on all its devices.

    Raises:
      AssertionError: names the first leaf that is not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array):
            continue
        name = jax.tree_util.keystr(path)
        if not leaf.is_fully_replicated:
            raise AssertionError(f"{name} is split over devices ({leaf.sharding})")
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        # Bytes instead of values, so that NaN equals itself and 0.0 differs from -0.0.
        first = copies[0].tobytes()
        for number, copy in enumerate(copies):
            if copy.tobytes() != first:
                raise AssertionError(f"{name} on device {number} differs from device 0")


def _devices_of_all_processes(count: int) -> list[jax.Device]:
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
