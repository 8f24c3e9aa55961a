"""Batches on their way to an accelerator: packed, and placed ahead of the step that takes them.

A batch has some twenty leaves, most of them small, and each transfer to an accelerator costs
microseconds whatever its size.  So small leaves travel as one array of their bits, which the
step takes apart again, and a thread places the next batches while a step runs.  On CPUs
arrays are not sent anywhere, and batches reach the step as they were made.

Axis letters: n devices of this process, P entries of the packed leaves of a device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pinsage_jax.batching.blocks import BatchInfo, Minibatch
from pinsage_jax.batching.prefetch import Prefetcher
from pinsage_jax.config.settings import Config
from pinsage_jax.distributed.devices import place_batch

# Batches that are on the device, or on their way to it, before the step takes them.
PLACED_AHEAD = 2
# Leaves of at most so many bytes on a device are packed; larger ones are worth a transfer.
_SMALL_BYTES = 1 << 20


_MOST_PRODUCERS = 16


def queue_of(config: Config) -> tuple[int, int]:
    """Batches that are made ahead on the host (0: none), and threads that make them.

    On a CPU the step itself takes the cores that more threads would use.
    """
    train, threads = config.train, 1
    if train.producers is not None:
        threads = train.producers
    elif places_batches():
        threads = min(max(config.host_threads // 2, 1), _MOST_PRODUCERS)
    return (threads + 1 if train.prefetch is None else train.prefetch), threads


def places_batches() -> bool:
    """Whether batches are packed and placed: on accelerators."""
    return jax.default_backend() != "cpu"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["small", "large"], meta_fields=["layout"]
)
@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """A minibatch whose small leaves are one array.

    Attributes:
      small: int32 [n, P], the bits of the small leaves in the order of their names.
      large: the other leaves by name, [n, ...].
      layout: (name, dtype, shape on a device) of every packed leaf.
    """

    small: Any
    large: dict[str, Any]
    layout: tuple[tuple[str, str, tuple[int, ...]], ...]


def pack(batch: Minibatch, small_bytes: int = _SMALL_BYTES) -> PackedBatch:
    """Packs the leaves of a host batch that have at most `small_bytes` on a device."""
    columns, layout, large = [], [], {}
    for name, leaf in batch._asdict().items():
        if leaf is None:
            continue
        if leaf[0].nbytes > small_bytes:
            large[name] = leaf
            continue
        layout.append((name, str(leaf.dtype), leaf.shape[1:]))
        flat = np.ascontiguousarray(leaf).reshape(len(leaf), leaf[0].size)
        if leaf.dtype == np.bool_:
            flat = flat.astype(np.int32)
        columns.append(flat.view(np.int32))
    return PackedBatch(np.concatenate(columns, axis=1), large, tuple(layout))


def unpack(batch: Minibatch | PackedBatch) -> Minibatch:
    """The minibatch of one device, inside a step; leaves have no device axis."""
    if isinstance(batch, Minibatch):
        return batch
    leaves, begin = dict(batch.large), 0
    for name, dtype, shape in batch.layout:
        end = begin + int(np.prod(shape, dtype=np.int64))
        bits = batch.small[begin:end].reshape(shape)
        if dtype == "bool":
            leaves[name] = bits != 0
        else:
            leaves[name] = jax.lax.bitcast_convert_type(bits, jnp.dtype(dtype))
        begin = end
    return Minibatch(**leaves)


class Feed:
    """The batches of a run in the order of their steps, on accelerators placed ahead.

    Attributes:
      items: number of batches taken.
      make_seconds: time to make them, summed over the threads that make batches.
    """

    def __init__(
        self,
        made: Prefetcher[tuple[Minibatch, BatchInfo]],
        span: tuple[int, int],
        devices: tuple[jax.Device, ...],
        stack: contextlib.ExitStack,
    ):
        """Starts the second stage where batches are placed.

        Args:
          made: batches on the host.
          span: steps [first, last) that are left.
          devices: those of this process.
          stack: closes the stage.
        """
        self._made = made
        self._taken: Prefetcher[tuple[Any, BatchInfo]] = made

        def place(_: int) -> tuple[PackedBatch, BatchInfo]:
            batch, info = next(made)
            placed = place_batch(pack(batch), devices)
            # A transfer is only begun; the host arrays live as long as it runs.
            return placed, info

        if places_batches():
            # One thread: batches are taken in the order of their steps.
            self._taken = stack.enter_context(Prefetcher(place, *span, PLACED_AHEAD))

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> tuple[Any, BatchInfo]:
        return next(self._taken)

    @property
    def items(self) -> int:
        return self._taken.items

    @property
    def make_seconds(self) -> float:
        return self._made.make_seconds

    def state(self) -> dict[str, int]:
        """{"next_index": i + 1} after the batch of step i was taken."""
        return self._taken.state()


def unpacking(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` of (state, Minibatch, ...) as a step that takes packed batches, too."""

    @functools.wraps(step)
    def with_unpacked(state, batch, *constants, axis_name=None):
        return step(state, unpack(batch), *constants, axis_name=axis_name)

    return with_unpacked
