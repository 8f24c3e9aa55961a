"""The costs of a run, and when, where and by which command a model was trained.

The stages fill in a Costs while they run; the program logs its `summary` at the end, and
`save` writes the numbers to WORKDIR/costs.json, which `--mode=compare` reads.  Seconds
are wall-clock time.  Device-seconds are wall-clock seconds times the number of devices,
busy or idle, because a rented machine is paid for in both cases.

WORKDIR/run.json, which the report reads, holds the `provenance` of the last training.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import resource
import shlex
import time
from collections.abc import Iterator
from typing import Any

from pinsage_jax.core.version import __version__

COSTS_FILE = "costs.json"
RUN_FILE = "run.json"
# What is running, as it was typed; "" where no program or method has said so.
_command: contextvars.ContextVar[str] = contextvars.ContextVar("command", default="")
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_GIB = 2**30


def peak_memory() -> int:
    """Peak resident set size of this process on the host, in bytes."""
    # Linux reports ru_maxrss in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@dataclasses.dataclass
class Costs:
    """The costs of one command so far.

    Attributes:
      seconds: wall-clock seconds per stage, in the order in which the stages ran.
      cpu_seconds: CPU seconds per stage, summed over all threads; unlike `seconds` they
        hardly depend on how busy the machine is.
      devices: number of devices that training uses; 0 until it is known.
      items: number of items embedded.
      pairs: number of training pairs processed; a repeated pair counts each time.
      wait_share: fraction of the training time, validation excluded, in which the
        device waited for batches; None without training.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    cpu_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    devices: int = 0
    items: int = 0
    pairs: int = 0
    wait_share: float | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent in the block to the stage `name`."""
        start, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            spent = time.process_time() - cpu
            self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + spent

    def values(self) -> dict[str, Any]:
        """The content of costs.json."""
        total = sum(self.seconds.values())
        return {
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "cpu_seconds": {name: round(value, 3) for name, value in self.cpu_seconds.items()},
            "total_seconds": round(total, 3),
            "devices": self.devices,
            "device_seconds": round(total * max(self.devices, 1), 3),
            "items": self.items,
            "pairs": self.pairs,
            "wait_share": self.wait_share,
            "peak_memory_bytes": peak_memory(),
        }

    def summary(self) -> str:
        """The costs in one line of text."""
        values = self.values()
        stages = ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds.items())
        parts = [f"{values['device_seconds']:.0f} device-seconds ({stages})"]
        if self.pairs:
            parts.append(f"{self.pairs:,} pairs")
        if self.wait_share is not None:
            parts.append(f"device waited {self.wait_share:.0%} of training")
        if self.items:
            parts.append(f"{self.items:,} items embedded")
        parts.append(f"peak memory {values['peak_memory_bytes'] / _GIB:.2f} GiB")
        return "; ".join(parts)

    def save(self, workdir: str | pathlib.Path) -> None:
        """Writes WORKDIR/costs.json."""
        # Here, because it loads NumPy, for which the check of flags does not wait.
        from pinsage_jax.core import files

        files.write_json(pathlib.Path(workdir) / COSTS_FILE, self.values())


@contextlib.contextmanager
def commanded(text: str) -> Iterator[None]:
    """Names the command, or the call, that the block runs for."""
    token = _command.set(text)
    try:
        yield
    finally:
        _command.reset(token)


def as_command(argv: list[str]) -> str:
    """A command line as one types it, argv[0] being the program."""
    program = os.path.basename(argv[0]) if argv else ""
    typed = program if program == "pinsage-jax" else "python -m pinsage_jax.main"
    return " ".join([typed, shlex.join(argv[1:])]).strip()


def provenance(started: datetime.datetime, device: str) -> dict[str, Any]:
    """The content of run.json: start, command, versions and machine; no names of host or user.

    Args:
      started: when training started, with its time zone.
      device: kind of the devices that trained, as JAX names it.
    """
    return {
        "started": started.astimezone(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command.get(),
        "versions": {
            "pinsage_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "device": device,
        },
    }


def _processor() -> str:
    """The model of the CPU as Linux names it; "" if it does not."""
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return ""
