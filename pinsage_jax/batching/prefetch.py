"""Prefetching: host threads make batches ahead of their use, in a fixed order.

While the device computes batch t, threads make batches t+1, t+2, ....  A batch is a pure function
of its index, and batches are returned in the order of their indices, so the sequence does not
depend on the number of threads.  A checkpoint only needs the index after the last *consumed*
batch to continue the same sequence.

Guarantees:

* An error in making item i is raised in the consumer in place of item i, with the producer's
  traceback, after all items before i.  The iterator is then closed.
* At most `depth` items after the last consumed one are finished or in progress.  With depth 0
  each item is made when it is requested, without a thread.
* Threads start at the first ``next``, and none is left after ``close``.  A Prefetcher that is
  garbage-collected without ``close`` stops its threads too.

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
    """An item, or the error in making it, with the iterator's state after it."""

    item: Any
    state: dict[str, int]  # of the iterator after this entry
    error: BaseException | None
    seconds: float  # time to make the item


class _Shared:
    """State that the threads and the consumer share.

    It does not refer to the Prefetcher, so running threads do not keep that alive.
    """

    def __init__(self, start: int, stop: int | None, depth: int):
        # Reentrant, because the garbage collector may call `halt` in a thread that has the lock.
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
        """Waits for room and returns the index to make next; None at the end."""
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
        # ``__next__`` must not raise it, because it would end the iteration without an error.
        failure = RuntimeError(f"making item {index} raised StopIteration")
        failure.__cause__ = error
        return _Entry(None, state, failure, 0.0)
    except BaseException as error:
        return _Entry(None, state, error, 0.0)


def _produce(shared: _Shared, make: Callable[[int], Any]) -> None:
    while (index := shared.claim()) is not None:
        # A local variable would keep the item alive while the next one is made.
        shared.put(index, _make_entry(make, index))


class Prefetcher(Generic[Item]):
    """Iterates over make(start), make(start + 1), ..., make(stop - 1).

    Only one thread may consume; ``close`` may be called from any thread.

    Args:
      make: pure function of the index.  With `threads` > 1 several threads call it at once, so
        it must not change shared state, and it should release the interpreter lock.
      start: index of the first item, ``state()["next_index"]`` when resuming.
      stop: one past the last index; None iterates forever.
      depth: number of items made ahead of the consumer; 0 makes them synchronously.
      threads: number of producer threads; at most `depth` are started.

    Attributes:
      items: number of items consumed.
      wait_seconds: time that the consumer waited in ``next``; with depth 0 the whole time to
        make the items.
      make_seconds: time to make the consumed items, summed over threads.

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
            # The threads have no more indices, so joining them is immediate.
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
                # The traceback refers to this frame, which must not refer to the error.
                del entry
        self._state = entry.state
        self.items += 1
        self.make_seconds += entry.seconds
        return entry.item

    def state(self) -> dict[str, int]:
        """{"next_index": i + 1} after item i was consumed; starts no thread."""
        return dict(self._state)

    def close(self) -> None:
        """Stops and joins all threads and drops their items; may be called again.

        It waits for items in progress, because a thread cannot be interrupted.
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
        """The next entry in order, or None if another thread has closed the iterator."""
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
                # A daemon thread does not delay the exit of a program after an error.
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
