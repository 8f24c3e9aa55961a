"""Further processes that answer on the same port (--serve_workers).

All of them accept connections of one listening socket.  Each loads the workdir by itself;
vectors in an export of the layout `npy` are memory-mapped and thus in memory once.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from absl import logging

# A process that has ended is started again after so long.
_RESTART_SECONDS = 5.0
_STOP_SECONDS = 15.0


class Workers:
    """Processes that run a function, and are started again when they end."""

    def __init__(self, target: Callable[..., None], arguments: Sequence[Any], count: int):
        """Takes what the processes run.

        Args:
          target: a function of a module, called with the number of the process, from 1, and
            `arguments`.
          arguments: what multiprocessing can send to a new process.
          count: number of processes.
        """
        # Threads run already, so that a fork would not be safe.
        self._context = multiprocessing.get_context("spawn")
        self._target, self._arguments, self._count = target, tuple(arguments), count
        self._processes: dict[int, SpawnProcess] = {}
        self._restart: dict[int, float] = {}

    def __enter__(self) -> Workers:
        for number in range(1, self._count + 1):
            self._start(number)
        return self

    def tend(self) -> None:
        """Starts processes again that have ended."""
        for number, process in list(self._processes.items()):
            if process.is_alive():
                continue
            if number not in self._restart:
                logging.warning(
                    "Server process %d ended with exit code %s; another one takes its place.",
                    number, process.exitcode,
                )  # fmt: skip
                self._restart[number] = time.monotonic() + _RESTART_SECONDS
            elif time.monotonic() >= self._restart[number]:
                del self._restart[number]
                self._start(number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(_STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()

    def _start(self, number: int) -> None:
        process = self._context.Process(
            target=self._target, args=(number, *self._arguments), daemon=True, name=f"{number}"
        )
        process.start()
        self._processes[number] = process


def stop_signal() -> Callable[[], bool]:
    """In a further process: whether the first one asks it to stop, or has ended.

    Ctrl-C reaches every process of a terminal; the first one decides.
    """
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    return lambda: stopped.is_set() or parent is None or not parent.is_alive()
