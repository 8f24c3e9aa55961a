"""Measures how long the device was idle, without stopping the training loop.

JAX dispatches a step and returns before it is computed, so the device need not be idle while
the loop waits for a batch: steps that were dispatched before may still be running.  Here a
thread waits for each step to end; the device was idle from then until the loop dispatched
the next step, if that was later.

Example:
  with DeviceClock() as clock:
      for batch in batches:
          state, metrics = step(state, batch)
          clock.step_dispatched(metrics)
  print(clock.idle_seconds())
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Any

import jax


class DeviceClock:
    """Adds up the device's idle time, for one training loop."""

    def __init__(self):
        """Starts the clock: time from here to the first step is idle time."""
        self._entries: queue.Queue[tuple[float, Any] | None] = queue.Queue()
        self._idle = 0.0
        self._free_since = time.perf_counter()
        # A daemon, so that a program that ends with an error does not wait for a step.
        self._thread = threading.Thread(target=self._watch, name="device-clock", daemon=True)
        self._thread.start()

    def __enter__(self) -> DeviceClock:
        return self

    def __exit__(self, *_) -> None:
        self._entries.put(None)
        self._thread.join()

    def step_dispatched(self, results: Any) -> None:
        """Call this right after a step, with some of its results that are not donated."""
        self._entries.put((time.perf_counter(), results))

    def resume(self) -> None:
        """Call this after a pause: the time since the last step is not idle time."""
        self._entries.put((time.perf_counter(), None))

    def idle_seconds(self) -> float:
        """Idle time before the steps dispatched so far; waits for them."""
        self._entries.join()
        return self._idle

    def _watch(self) -> None:
        while (entry := self._entries.get()) is not None:
            moment, results = entry
            if results is not None:
                self._idle += max(moment - self._free_since, 0.0)
                # An error in the results is raised where the loop reads them.
                with contextlib.suppress(Exception):
                    jax.block_until_ready(results)
                moment = time.perf_counter()
            self._free_since = max(self._free_since, moment)
            # The results would stay in memory until the next step, which may take a while.
            del entry, results
            self._entries.task_done()
        self._entries.task_done()
