"""Runs a command and measures its wall-clock time and peak memory from outside.

`peak_gib` is the peak resident memory (VmHWM), which includes cached pages of memory-mapped files.
`anon_gib` is the peak anonymous memory (RssAnon, sampled), which the system cannot reclaim.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import threading
import time

_SECONDS_BETWEEN_SAMPLES = 0.2
_ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Cost:
    """The time and memory of a process."""

    seconds: float
    peak_gib: float
    anon_gib: float


def run(arguments: list[str], log: pathlib.Path) -> Cost:
    """Runs `python ARGUMENTS` beside the package, appending its output to `log`.

    Raises:
      RuntimeError: the command failed; the message contains the end of the log.
    """
    begin = time.perf_counter()
    with open(log, "a", encoding="utf-8") as handle:
        print("$ python", *arguments, file=handle, flush=True)
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=handle, stderr=subprocess.STDOUT, cwd=_ROOT
        )
        # Polled, because ru_maxrss of wait4 starts from the size of this process.
        peak = {"VmHWM": 0, "RssAnon": 0}
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_SECONDS_BETWEEN_SAMPLES):
                for name, kib in status_kib(process.pid, tuple(peak)).items():
                    peak[name] = max(peak[name], kib)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status = os.waitpid(process.pid, 0)
        ended.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(
            f"python {' '.join(arguments)} ended with {process.returncode}:\n"
            + log.read_text(encoding="utf-8")[-2000:]
        )
    return Cost(time.perf_counter() - begin, peak["VmHWM"] / 2**20, peak["RssAnon"] / 2**20)


def status_kib(pid: int | str, names: tuple[str, ...]) -> dict[str, int]:
    """Numbers of /proc/PID/status by name, without missing ones; sizes are in KiB."""
    found = {}
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            name = line.split(":")[0]
            if name in names:
                found[name] = int(line.split()[1])
    except (OSError, ValueError):
        pass
    return found
