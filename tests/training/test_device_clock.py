"""The device's idle time, with steps that end when the test says so."""

import threading
import time

import jax.numpy as jnp
import pytest

from pinsage_jax.training.device_clock import DeviceClock


class Step:
    """What a step returns: it runs for `seconds` once it is waited for."""

    def __init__(self, seconds):
        self._seconds = seconds
        self.ended = threading.Event()

    def block_until_ready(self):
        if not self.ended.is_set():
            time.sleep(self._seconds)
            self.ended.set()
        return self


def test_a_loop_that_runs_ahead_keeps_the_device_busy():
    with DeviceClock() as clock:
        for _ in range(5):
            clock.step_dispatched(Step(0.1))
        assert clock.idle_seconds() < 0.3


def test_a_late_batch_is_idle_time():
    with DeviceClock() as clock:
        clock.step_dispatched(Step(0.0))
        clock.idle_seconds()
        time.sleep(0.2)
        clock.step_dispatched(Step(0.5))
        # Handed over while the step before it still runs.
        clock.step_dispatched(Step(0.0))
        assert 0.2 <= clock.idle_seconds() < 0.6


def test_pauses_do_not_count():
    with DeviceClock() as clock:
        clock.step_dispatched(Step(0.0))
        before = clock.idle_seconds()
        time.sleep(0.5)
        clock.resume()
        clock.step_dispatched(Step(0.0))
        assert clock.idle_seconds() - before < 0.4


def test_arrays_and_errors_pass_through():
    class Broken(Step):
        def block_until_ready(self):
            raise RuntimeError("the step failed")

    with DeviceClock() as clock:
        clock.step_dispatched({"loss": jnp.ones(3)})
        clock.step_dispatched(Broken(0.0))
        clock.step_dispatched(Step(0.0))
        assert clock.idle_seconds() < 5
    assert not any(thread.name == "device-clock" for thread in threading.enumerate())


def test_the_thread_ends_when_the_loop_fails():
    with pytest.raises(ZeroDivisionError), DeviceClock() as clock:
        clock.step_dispatched(Step(0.01))
        raise ZeroDivisionError
    assert not any(thread.name == "device-clock" for thread in threading.enumerate())
