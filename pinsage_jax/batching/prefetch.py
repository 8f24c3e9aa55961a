"""Batches prepared ahead of their use: threads, a bounded look-ahead, exact order.

While the device computes batch t, host threads make batches t+1, t+2, ....  A
batch is a pure function of its index, so the sequence a consumer sees does not
depend on the number of threads: results are handed out in the order of their
indices, and the position after the last *consumed* item is all that a
checkpoint needs to continue the very same sequence.

The contract:

* An entry is (item, state, error); an error raised while item i was made is
  raised in the consumer in place of item i, with the producer's traceback, after
  all the items before i.  The iterator is closed then.
* Never more than `depth` items beyond the last consumed one are made or in the
  making.  Depth 0 makes each item when it is asked for, without a thread.
* Threads start at the first ``next``, not before, and none is left after
  ``close``.  A Prefetcher that is dropped without ``close`` stops its threads too.

Example:
  with Prefetcher(make_batch, start=state["next_index"], stop=total, depth=2) as batches:
      for batch in batches:
          train(batch)
          save(batches.state())
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class _Entry(NamedTuple):
    """What a producer hands over for one index."""

    item: Any
    state: dict[str, int]  # of the iterator once this entry is consumed
    error: BaseException | None
    seconds: float  # that making it took


class _Shared:
    """What the threads and the consumer share.

    It knows nothing of the Prefetcher, so that running threads do not keep a
    dropped Prefetcher alive.
    """

    def __init__(self, start: int, stop: int | None, depth: int):
        # Reentrant: the garbage collector may run `halt` in a thread that holds it.
        self.changed = threading.Condition(threading.RLock())
        self.depth = depth
        self.entries: dict[int, _Entry] = {}
        self.claimed = start  # the next index that a thread takes
        self.wanted = start  # the next index that the consumer takes
        self.stop = stop
        self.halted = False

    def finished(self, index: int) -> bool:
        return self.stop is not None and index >= self.stop

    def halt(self) -> None:
        with self.changed:
            self.halted = True
            self.entries.clear()
            self.changed.notify_all()

    def claim(self) -> int | None:
        """The index to make next, once there is room; None when there is no more."""
        with self.changed:
            while True:
                if self.halted or self.finished(self.claimed):
                    return None
                if self.claimed < self.wanted + self.depth:
                    self.claimed += 1
                    return self.claimed - 1
                self.changed.wait()

    def put(self, index: int, entry: _Entry) -> None:
        with self.changed:
            if self.halted:
                return
            self.entries[index] = entry
            self.changed.notify_all()


def _make_entry(make: Callable[[int], Any], index: int) -> _Entry:
    state = {"next_index": index + 1}
    begun = time.perf_counter()
    try:
        item = make(index)
        return _Entry(item, state, None, time.perf_counter() - begun)
    except StopIteration as error:
        # Raised from ``__next__`` it would look like an ordinary, early end.
        failure = RuntimeError(f"making item {index} raised StopIteration")
        failure.__cause__ = error
        return _Entry(None, state, failure, 0.0)
    except BaseException as error:
        return _Entry(None, state, error, 0.0)


def _produce(shared: _Shared, make: Callable[[int], Any]) -> None:
    while (index := shared.claim()) is not None:
        # No local name for the entry: it would keep the item alive during the next one.
        shared.put(index, _make_entry(make, index))


class Prefetcher(Generic[Item]):
    """Iterates over make(start), make(start + 1), ... up to but without `stop`.

    For one consumer thread; ``close`` may be called from any thread.

    Args:
      make: pure function of the index; called by several threads at once when
        `threads` > 1, so it must not change anything shared, and it should
        release the interpreter lock in its heavy parts.
      start: index of the first item, ``state()["next_index"]`` when resuming.
      stop: one past the last index; None never ends.  Nothing is made if it is
        not above `start`.
      depth: items made ahead of the consumer; 0 makes them synchronously.
      threads: producer threads; more than `depth` are of no use and not started.

    Attributes:
      items: number of items consumed.
      wait_seconds: time that the consumer was blocked in ``next``; with depth 0
        that is the whole time of making the items.
      make_seconds: time that making the consumed items took, added up over threads.

    Raises:
      ValueError: a negative `start` or `depth`, or no thread.
    """

    def __init__(
        self,
        make: Callable[[int], Item],
        start: int,
        stop: int | None,
        depth: int,
        threads: int = 1,
    ):
        if start < 0:
            raise ValueError(f"start={start} must not be negative")
        if depth < 0:
            raise ValueError(f"depth={depth} must not be negative")
        if threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        self._make = make
        self._num_threads = min(threads, depth)
        self._shared = _Shared(start, stop, depth)
        self._threads: list[threading.Thread] = []
        self._start_lock = threading.Lock()
        self._state = {"next_index": start}
        self.items = 0
        self.wait_seconds = 0.0
        self.make_seconds = 0.0
        weakref.finalize(self, self._shared.halt)

    def __enter__(self) -> Prefetcher[Item]:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        shared = self._shared
        if shared.halted or shared.finished(shared.wanted):
            # The threads have run out of indices by now; joining them is immediate.
            self.close()
            raise StopIteration
        began = time.perf_counter()
        try:
            entry = self._take_threaded() if shared.depth else self._take_synchronously()
        finally:
            self.wait_seconds += time.perf_counter() - began
        if entry is None:
            raise StopIteration
        if entry.error is not None:
            self.close()
            try:
                raise entry.error
            finally:
                # The traceback holds this frame: without the name there is no cycle.
                del entry
        self._state = entry.state
        self.items += 1
        self.make_seconds += entry.seconds
        return entry.item

    def state(self) -> dict[str, int]:
        """{"next_index": i + 1} after item i was consumed; starts nothing."""
        return dict(self._state)

    def close(self) -> None:
        """Stops and joins every thread and drops what they made; may be repeated.

        Waits for items in the making, since a thread cannot be interrupted.
        """
        with self._start_lock:
            self._shared.halt()
            started = list(self._threads)
        for thread in started:
            if thread is not threading.current_thread():
                thread.join()

    def _take_synchronously(self) -> _Entry:
        index = self._shared.wanted
        self._shared.wanted = index + 1
        return _make_entry(self._make, index)

    def _take_threaded(self) -> _Entry | None:
        """The next entry in order, or None if closed by another thread meanwhile."""
        self._start()
        shared = self._shared
        with shared.changed:
            while shared.wanted not in shared.entries and not shared.halted:
                shared.changed.wait()
            if shared.halted:
                return None
            entry = shared.entries.pop(shared.wanted)
            shared.wanted += 1
            shared.changed.notify_all()
            return entry

    def _start(self) -> None:
        with self._start_lock:
            if self._threads or self._shared.halted:
                return
            for number in range(self._num_threads):
                # Daemon: a program that dies of an error is not held up by a batch.
                thread = threading.Thread(
                    target=_produce,
                    args=(self._shared, self._make),
                    name=f"prefetch-{number}",
                    daemon=True,
                )
                try:
                    thread.start()
                except BaseException:
                    # No more threads to be had: those that run end, and the consumer does not
                    # wait for the others.
                    self._shared.halt()
                    raise
                # Only now: a thread that never started cannot be joined.
                self._threads.append(thread)
