"""The costs of a run: seconds per stage, device-seconds, items, pairs, waiting, memory.

The stages fill in a Costs while they run; the program logs its `summary` at the end, and
`save` writes the numbers to WORKDIR/costs.json, which `--mode=compare` reads.  Seconds
are wall-clock time.  Device-seconds are wall-clock seconds times the number of devices,
busy or idle, because a rented machine is paid for in both cases.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import resource
import time
from collections.abc import Iterator
from typing import Any

from pinsage_jax.core import files

COSTS_FILE = "costs.json"
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
        files.write_json(pathlib.Path(workdir) / COSTS_FILE, self.values())
