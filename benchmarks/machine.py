"""Describes the machine, the versions and the date of a measurement, and times functions.

Times are medians of repeated calls; peak memory is that of this process.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable

PACKAGES = ("numpy", "numba", "scipy", "jax", "jaxlib", "flax", "optax", "pyarrow")


def facts() -> dict:
    """The machine, versions of packages, the date and the load, as JSON values."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "caches": _caches(),
        "huge_pages": _huge_pages(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "load_before": round(os.getloadavg()[0], 2),
    }


def median_seconds(work: Callable[[], object], repeat: int, warm_up: int = 1) -> dict:
    """Times `work` after warm-up calls; see `summary`."""
    for _ in range(warm_up):
        work()
    return summary([seconds(work) for _ in range(repeat)])


def in_turn(works: dict[str, Callable[[], float]], repeat: int, warm_up: int = 1) -> dict:
    """Times several functions in turns (A B A B), so that drift affects all of them equally.

    Each function returns its seconds, because it may run in another process.
    """
    taken = {name: [] for name in works}
    for turn in range(warm_up + repeat):
        for name, work in works.items():
            spent = work()
            if turn >= warm_up:
                taken[name].append(spent)
    return {name: summary(spent) for name, spent in taken.items()}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def summary(taken: list[float]) -> dict:
    """Median, fastest, slowest and number of timings in seconds."""
    return {
        "seconds": statistics.median(taken),
        "fastest": min(taken),
        "slowest": max(taken),
        "repeat": len(taken),
    }


def peak_memory_gib() -> float:
    """Peak resident memory of this process, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _line(path: str, word: str) -> str | None:
    with contextlib.suppress(OSError):
        for line in pathlib.Path(path).read_text().splitlines():
            if line.startswith(word):
                return line.partition(":")[2].strip()
    return None


def _caches() -> dict[str, str]:
    found = {}
    for folder in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with contextlib.suppress(OSError):
            level, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
            found[f"L{level} {kind.lower()}"] = size
    return found


def _huge_pages() -> str | None:
    with contextlib.suppress(OSError):
        text = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        return text.partition("[")[2].partition("]")[0]
    return None
