"""Prefetcher: order, bounded look-ahead, errors in place, resume, and no thread left."""

import contextlib
import gc
import subprocess
import sys
import threading
import time
import traceback
import weakref

import numpy as np
import pytest

from pinsage_jax.batching.prefetch import Prefetcher

pytestmark = pytest.mark.timeout(30)

DEPTHS_AND_THREADS = [(0, 1), (1, 1), (2, 1), (2, 4), (5, 3), (64, 8)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    if not set(threading.enumerate()) <= before:
        gc.collect()
    wait_until(lambda: set(threading.enumerate()) <= before)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "still not so after the deadline"
        time.sleep(0.002)


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch-")]


def uneven(index):
    """Takes longest for the even items, so that threads finish out of order."""
    time.sleep(0.004 if index % 2 == 0 else 0.0)
    return np.random.default_rng(index).integers(0, 1 << 30, size=3).tolist()


@pytest.mark.parametrize("depth,threads", DEPTHS_AND_THREADS)
@pytest.mark.parametrize("start,stop", [(0, 0), (0, 1), (3, 20), (7, 7), (9, 4)])
def test_items_come_in_order_and_only_once(depth, threads, start, stop):
    with Prefetcher(uneven, start, stop, depth, threads) as items:
        assert list(items) == [uneven(index) for index in range(start, stop)]
        assert items.items == max(stop - start, 0)
        assert list(items) == []


@pytest.mark.parametrize("depth,threads", DEPTHS_AND_THREADS)
def test_without_a_stop_it_goes_on(depth, threads):
    with Prefetcher(lambda index: index, 5, None, depth, threads) as items:
        assert [next(items) for _ in range(200)] == list(range(5, 205))


@pytest.mark.parametrize("depth,threads", DEPTHS_AND_THREADS)
def test_resume_from_the_state_after_any_item(depth, threads):
    everything = [uneven(index) for index in range(6)]
    for consumed in range(7):
        with Prefetcher(uneven, 0, 6, depth, threads) as items:
            first = [next(items) for _ in range(consumed)]
            state = items.state()
        assert state == {"next_index": consumed}
        with Prefetcher(uneven, state["next_index"], 6, depth, threads) as items:
            assert first + list(items) == everything


def test_state_is_of_the_consumed_items_and_starts_no_thread():
    made = []
    with Prefetcher(made.append, 4, None, 8) as items:
        assert items.state() == {"next_index": 4}
        assert not prefetch_threads()
        assert not made
        next(items)
        wait_until(lambda: made[-1] == 4 + 8)
        assert items.state() == {"next_index": 5}
        items.state()["next_index"] = 99
        assert items.state() == {"next_index": 5}


@pytest.mark.parametrize("depth,threads", [(1, 1), (3, 1), (3, 2), (3, 9)])
def test_look_ahead_is_bounded(depth, threads):
    made, lock = [], threading.Lock()

    def make(index):
        with lock:
            made.append(index)
        return index

    with Prefetcher(make, 0, None, depth, threads) as items:
        for index in range(10):
            assert next(items) == index
            wait_until(lambda: len(made) == index + 1 + depth)  # noqa: B023
            time.sleep(0.005)
            assert sorted(made) == list(range(index + 1 + depth))
        assert len(prefetch_threads()) == min(depth, threads)


def test_depth_zero_makes_each_item_when_asked():
    callers = []
    items = Prefetcher(lambda index: callers.append(threading.current_thread()), 0, 3, 0, 4)
    next(items)
    assert callers == [threading.current_thread()]
    list(items)
    assert callers == [threading.current_thread()] * 3


def fail_here(index):
    raise OSError(f"item {index} cannot be made")


@pytest.mark.parametrize("depth,threads", DEPTHS_AND_THREADS)
@pytest.mark.parametrize("bad", [0, 1, 5, 9])
def test_an_error_is_raised_in_its_place_with_its_traceback(depth, threads, bad):
    items = Prefetcher(lambda i: fail_here(i) if i >= bad else uneven(i), 0, 10, depth, threads)
    for index in range(bad):
        assert next(items) == uneven(index)
    with pytest.raises(OSError, match=f"item {bad} cannot") as caught:
        next(items)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "fail_here" in names
    assert items.state() == {"next_index": bad}
    assert items.items == bad
    assert not prefetch_threads()
    assert list(items) == []


def test_the_earliest_error_wins_when_a_later_one_happens_first():
    later = threading.Event()

    def make(index):
        if index == 2:
            later.wait()
        if index in (2, 3):
            if index == 3:
                later.set()
            fail_here(index)
        return index

    items = Prefetcher(make, 0, None, 8, 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="item 2 cannot"):
        next(items)


@pytest.mark.parametrize("threads", [3, 8, 16])
def test_under_load_the_first_error_in_order_wins_and_every_thread_ends(threads):
    rng = np.random.default_rng(threads)
    for _ in range(30):
        bad = set(rng.choice(40, size=6, replace=False).tolist())

        def make(index):
            # Some of this holds the interpreter's lock, some of it releases it.
            np.sort(np.random.default_rng(index).random(2000))
            if index in bad:  # noqa: B023
                raise ValueError(index)
            return index

        seen = []
        with Prefetcher(make, 0, None, 2 * threads, threads) as items:
            with pytest.raises(ValueError) as caught:
                for item in items:
                    seen.append(item)
            # Later items have failed as well, in other threads.
            assert caught.value.args == (min(bad),) and seen == list(range(min(bad)))
            assert not prefetch_threads()
            assert list(items) == []


@pytest.mark.parametrize("startable", [0, 1, 3])
def test_threads_that_cannot_be_started_are_an_error_and_not_a_wait(startable, monkeypatch):
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == startable:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with Prefetcher(uneven, 0, None, 8, 4) as items:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            next(items)
        assert list(items) == []
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_stop_iteration_in_a_producer_is_no_early_end(depth):
    items = Prefetcher(lambda index: next(iter([])), 0, 3, depth)
    with pytest.raises(RuntimeError, match="item 0 raised StopIteration"):
        next(items)


@pytest.mark.parametrize("depth", [0, 2])
def test_even_an_exit_in_a_producer_reaches_the_consumer(depth):
    items = Prefetcher(lambda index: sys.exit(3), 0, None, depth)
    with pytest.raises(SystemExit):
        next(items)


@pytest.mark.parametrize("depth,threads", DEPTHS_AND_THREADS)
def test_close_early_twice_and_before_the_start(depth, threads):
    items = Prefetcher(uneven, 0, None, depth, threads)
    items.close()
    assert list(items) == []
    items = Prefetcher(uneven, 0, None, depth, threads)
    next(items)
    items.close()
    assert not prefetch_threads()
    items.close()
    assert list(items) == []
    assert items.state() == {"next_index": 1}


def test_close_from_another_thread_wakes_the_consumer():
    release = threading.Event()
    items = Prefetcher(lambda index: release.wait(), 0, None, 2)
    closer = threading.Timer(0.05, lambda: (items._shared.halt(), release.set(), items.close()))
    closer.start()
    assert list(items) == []
    closer.join()


def test_an_error_in_the_consumer_leaves_no_thread():
    with (
        pytest.raises(KeyError, match="consumer"),
        Prefetcher(uneven, 0, None, 4, 2) as items,
    ):
        for _ in items:
            raise KeyError("consumer")
    assert not prefetch_threads()


def test_no_thread_is_left_once_everything_is_consumed():
    assert len(list(Prefetcher(uneven, 0, 5, 2, 2))) == 5
    assert not prefetch_threads()


def test_a_dropped_prefetcher_is_freed_and_stops_its_threads():
    class Payload:
        pass

    items = Prefetcher(lambda index: Payload(), 0, None, 3, 2)
    payload = weakref.ref(next(items))
    freed = weakref.ref(items)
    gc.disable()  # by reference counts alone: no cycle holds it
    try:
        del items
        assert freed() is None
        assert payload() is None
    finally:
        gc.enable()
    wait_until(lambda: not prefetch_threads())


def test_a_failed_prefetcher_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        items = Prefetcher(fail_here, 0, None, 2)
        freed = weakref.ref(items)
        with contextlib.suppress(OSError):
            next(items)
        del items
        assert freed() is None
    finally:
        gc.enable()


def test_waiting_is_counted_and_readiness_is_not():
    def slow(index):
        time.sleep(0.05)
        return index

    with Prefetcher(slow, 0, 4, 0) as items:
        list(items)
        assert items.wait_seconds >= 4 * 0.05
    with Prefetcher(slow, 0, 1, 1) as items:
        list(items)
        assert items.wait_seconds >= 0.04
    made = []
    with Prefetcher(made.append, 0, 5, 8) as items:
        next(items)
        wait_until(lambda: len(made) == 5)
        before = items.wait_seconds
        for _ in items:
            time.sleep(0.1)
        assert items.wait_seconds - before < 0.1


@pytest.mark.parametrize(
    "wrong,message",
    [({"depth": -1}, "depth=-1"), ({"start": -1}, "start=-1"), ({"threads": 0}, "threads=0")],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Prefetcher(uneven, **({"start": 0, "stop": 1, "depth": 1, "threads": 1} | wrong))


def test_a_program_that_never_closes_it_still_ends():
    program = (
        "import time\n"
        "from pinsage_jax.batching.prefetch import Prefetcher\n"
        "items = Prefetcher(lambda i: time.sleep(0.01) or i, 0, None, 4, 2)\n"
        "print(next(items), next(items))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")
