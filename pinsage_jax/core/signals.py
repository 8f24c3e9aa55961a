"""Ctrl-C and SIGTERM: the first asks the run to stop, the second ends it at once.

A stage with something to save asks `stop_requested` after each step, writes its
checkpoint and returns.  A stage that only needs to be run again calls
`raise_if_stopped` between units of work.  Everything written under a workdir is
whole or absent, so that ending at once is safe too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: int | None = None
_before: dict[int, Any] = {}


class Stopped(Exception):
    """The run ends early because a signal asked for it."""


def install() -> None:
    """Takes over SIGINT and SIGTERM; only the main thread may call it."""
    global _received
    _received = None
    for number in _SIGNALS:
        handler = signal.signal(number, _handle)
        _before.setdefault(number, handler)


def restore() -> None:
    """Gives the signals back to whoever handled them before, and forgets a request."""
    global _received
    _received = None
    while _before:
        number, handler = _before.popitem()
        signal.signal(number, handler)


def stop_requested() -> bool:
    """Whether a signal has asked the run to stop."""
    return _received is not None


def stop_everywhere(agree: Callable[[int], list[int]]) -> bool:
    """Whether a signal has asked any process of the run to stop; then it has asked all.

    Args:
      agree: gives the values of all processes for that of this one (hosts.exchange).
    """
    global _received
    number = max(agree(_received or 0))
    if number:
        _received = number
    # Not stop_requested(): a signal may have come here since, of which the others know nothing.
    return number > 0


def raise_if_stopped() -> None:
    """Raises Stopped if a signal has asked the run to stop."""
    if stop_requested():
        raise Stopped


def exit_code() -> int:
    """128 + the signal's number as shells have it (130, 143); 0 without a signal."""
    return 0 if _received is None else 128 + _received


def _handle(number: int, _frame: object) -> None:
    global _received
    if _received is not None:
        # Not sys.exit: no thread, lock or exception handler may hold up the end.
        os._exit(128 + number)
    _received = number
    # Not logging: the signal may have come in the middle of a line being logged.
    os.write(2, b"\nstopping after the current step; once more to end at once\n")
