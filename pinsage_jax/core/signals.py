"""SIGINT (Ctrl-C) and SIGTERM: the first requests a stop, the second ends the process at once.

A stage with state to save checks `stop_requested` after each step, writes its checkpoint
and returns.  A stage that can simply be run again calls `raise_if_stopped` between units
of work.  All writes under a workdir are atomic, so ending at once is safe too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_CODE_BASE = 128

_received: int | None = None
_previous_handlers: dict[int, Any] = {}


class Stopped(Exception):
    """A signal requested the end of the run."""


def install() -> None:
    """Installs the handlers of SIGINT and SIGTERM; only the main thread may call it."""
    global _received
    _received = None
    for number in _SIGNALS:
        handler = signal.signal(number, _handle)
        _previous_handlers.setdefault(number, handler)


def restore() -> None:
    """Restores the handlers from before `install` and clears a stop request."""
    global _received
    _received = None
    while _previous_handlers:
        number, handler = _previous_handlers.popitem()
        signal.signal(number, handler)


def stop_requested() -> bool:
    """Whether this process has received a signal to stop."""
    return _received is not None


def stop_requested_anywhere(all_gather: Callable[[int], list[int]]) -> bool:
    """Whether any process of the run has received a signal to stop.

    All processes must call it at the same point; if it is true, the stop request also
    becomes this process's own.

    Args:
      all_gather: maps this process's value to the values of all processes
        (process_group.all_gather_object).
    """
    global _received
    number = max(all_gather(_received or 0))
    if number:
        _received = number
    # Not stop_requested(): a signal that arrived here since is unknown to the other processes.
    return number > 0


def request_stop(code: int) -> None:
    """Requests a stop as the signal of this exit code does; another process received it."""
    global _received
    if _received is None:
        _received = code - _CODE_BASE


def raise_if_stopped() -> None:
    """Raises Stopped if this process has received a signal to stop."""
    if stop_requested():
        raise Stopped


def exit_code() -> int:
    """Exit code by the shell's convention, 128 + signal number (130, 143); 0 without a signal."""
    return 0 if _received is None else _CODE_BASE + _received


def _handle(number: int, _frame: object) -> None:
    global _received
    if _received is not None:
        # Not sys.exit, which waits for threads and runs exception handlers.
        os._exit(_CODE_BASE + number)
    _received = number
    # Not logging: the signal may have interrupted the logging of a line.
    os.write(2, b"\nstopping after the current step; once more to end at once\n")
