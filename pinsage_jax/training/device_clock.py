"""How long the device had nothing to do, seen without stopping the training loop.

JAX hands steps to the device and returns before they are computed, so a loop that waits
for a batch does not mean a device that waits: several steps may still lie before it.
Here a thread of its own waits for each step to end; the device was idle from then until
the loop handed over the next one, if that came later.

Example:
  with DeviceClock() as clock:
      for batch in batches:
          state, metrics = step(state, batch)
          clock.handed_over(metrics)
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
    """Adds up the device's idle time; for one loop."""

    def __init__(self):
        """Time before the first step counts from here."""
        self._entries: queue.Queue[tuple[float, Any] | None] = queue.Queue()
        self._idle = 0.0
        self._free_since = time.perf_counter()
        # Daemon: a program that dies of an error is not held up by a step.
        self._thread = threading.Thread(target=self._watch, name="device-clock", daemon=True)
        self._thread.start()

    def __enter__(self) -> DeviceClock:
        return self

    def __exit__(self, *_) -> None:
        self._entries.put(None)
        self._thread.join()

    def handed_over(self, results: Any) -> None:
        """To be called right after a step, with some of its arrays that are not given away."""
        self._entries.put((time.perf_counter(), results))

    def resume(self) -> None:
        """What has passed since the last step was no training."""
        self._entries.put((time.perf_counter(), None))

    def idle_seconds(self) -> float:
        """Idle time before the steps handed over so far; waits for them."""
        self._entries.join()
        return self._idle

    def _watch(self) -> None:
        while (entry := self._entries.get()) is not None:
            moment, results = entry
            if results is not None:
                self._idle += max(moment - self._free_since, 0.0)
                # Whoever reads the results meets an error that they hold.
                with contextlib.suppress(Exception):
                    jax.block_until_ready(results)
                moment = time.perf_counter()
            self._free_since = max(self._free_since, moment)
            # Held on to no longer: the loop may wait before it hands over the next.
            del entry, results
            self._entries.task_done()
        self._entries.task_done()
