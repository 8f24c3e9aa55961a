"""Makes the devices of several processes known to each other (jax.distributed).

One process may have all accelerators of a host, or each process some of them
(--local_device_ids); a run whose processes use the same accelerator is told so.
"""

from __future__ import annotations

import os
import pathlib
import socket
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging

from pinsage_jax.distributed import channel, process_group

_JAX_HEARTBEAT_SECONDS = 3600


def connect() -> None:
    """Initializes jax.distributed for the current process group.

    It must be called before any other use of JAX; in a single process it does nothing.
    The channels of the process group detect a dead process, so JAX's heartbeat timeout is
    set to an hour.
    """
    group = process_group.current()
    if group.count == 1 or jax.distributed.is_initialized():
        return
    host, port = group.service
    bind = f"{_bracketed(host)}:{port}"
    if group.index:
        host, port = "127.0.0.1", channel.relay(host, port)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The service would replace the SIGTERM handler of core/signals.py.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"{_bracketed(host)}:{port}",
        group.count,
        group.index,
        coordinator_bind_address=bind,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=_JAX_HEARTBEAT_SECONDS,
        local_device_ids=group.own_devices,
    )
    # All processes exchange their devices in this call.  Without it, the first process that
    # uses JAX would wait for the others.
    jax.devices()
    claims = [
        [_host(), os.environ.get("CUDA_VISIBLE_DEVICES"), device.local_hardware_id]
        for device in jax.local_devices()
        if device.platform != "cpu"
    ]
    everywhere = process_group.all_gather_object(claims, "accelerators")
    if shared := claimed_twice(everywhere):
        logging.warning(
            "processes %d and %d use the same accelerators of one host; give each its own with "
            "--local_device_ids.", *shared,
        )  # fmt: skip


def claimed_twice(claims: Sequence[Sequence[Any]]) -> tuple[int, int] | None:
    """The first two processes that claim the same accelerator; None if no two do.

    Args:
      claims: for each process what it claims; what is equal is the same accelerator.
    """
    for second, ours in enumerate(claims):
        for first in range(second):
            if any(claim in claims[first] for claim in ours):
                return first, second
    return None


def _host() -> str:
    """Identifies the machine, whatever its name is; containers on one machine agree on it."""
    path = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else socket.gethostname()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
