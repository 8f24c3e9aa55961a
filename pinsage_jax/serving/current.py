"""The service that answers now; a new one takes its place when the workdir holds another model.

The old one answers until the new one is whole.  A new one that cannot be loaded leaves the old
one in place: the log and GET /health say why.
"""

from __future__ import annotations

import datetime
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

from absl import logging

from pinsage_jax.core.errors import UserError
from pinsage_jax.serving.service import Service

# How often the files are looked at, and how long after a failure the same files are tried again.
POLL_SECONDS = 2.0
_RETRY_SECONDS = 60.0
_JOIN_SECONDS = 10.0
# Number, time of change and size of each file that a model is made of; None: it is not there.
Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp_of(paths: list[pathlib.Path]) -> Stamp:
    """What tells two states of files apart; every file is replaced whole, never rewritten."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            about = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((about.st_ino, about.st_mtime_ns, about.st_size))
    return tuple(found)


class Current:
    """Holds the service that answers, and replaces it."""

    def __init__(
        self,
        service: Service,
        load: Callable[[], Service] | None = None,
        stamp: Callable[[], Stamp] = tuple,
        seen: Stamp = (),
        on_reload: Callable[[str], None] | None = None,
    ):
        """Takes the first service and how a new one is made.

        Args:
          service: answers until there is another.
          load: loads the service of the files as they are now; None: there is never another.
          stamp: the state of the files.
          seen: their state before `service` was loaded.
          on_reload: called with the outcome of each load, `done` or `failed`.
        """
        self._load, self._stamp, self._on_reload = load, stamp, on_reload or (lambda outcome: None)
        self._service, self._loaded_at, self._error = service, _now(), ""
        # The state of the files at the last load, at the last look, and when to try again.
        self._tried, self._last, self._again = seen, seen, 0.0
        self._stop = threading.Event()

    @property
    def service(self) -> Service:
        """The service that answers now; a request takes it once."""
        return self._service

    def health(self) -> dict[str, Any]:
        """What is served, since when, and why newer files are not, if there are any."""
        return {
            **self._service.health(),
            "loaded_at": self._loaded_at,
            "reload_error": self._error or None,
        }

    def watch(self) -> threading.Thread:
        """Starts a thread that checks the files until `close`."""

        def poll() -> None:
            while not self._stop.wait(POLL_SECONDS):
                self.check()

        thread = threading.Thread(target=poll, name="reload", daemon=True)
        thread.start()
        return thread

    def close(self, thread: threading.Thread) -> None:
        """Ends the thread, unless it is loading for longer than some seconds."""
        self._stop.set()
        thread.join(_JOIN_SECONDS)

    def check(self) -> None:
        """Loads what the files hold, if they have changed and are not changing still."""
        if self._load is None:
            return
        now, before = self._stamp(), self._last
        self._last = now
        retry = bool(self._error) and time.monotonic() >= self._again
        # A change counts when two looks in a row have found the same files.
        if now != before or (now == self._tried and not retry):
            return
        try:
            service = self._load()
        except UserError as error:
            self._failed(now, str(error))
        except Exception as error:
            # Whatever is wrong with the files, the old service goes on.
            logging.exception("The new model could not be loaded")
            self._failed(now, f"The new model could not be loaded ({type(error).__name__}).")
        else:
            if self._stamp() != now:
                # It may be of two models; the next look begins again.
                return
            self._service, self._loaded_at, self._error = service, _now(), ""
            self._tried = now
            self._on_reload("done")
            about = service.health()
            logging.info(
                "serving the model of step %s and %d items, which is in %s now",
                about["step"], about["items"], service.config.workdir,
            )  # fmt: skip

    def _failed(self, stamp: Stamp, sentence: str) -> None:
        # The same files are tried again in silence: a disk or memory may have been full.
        if sentence != self._error or stamp != self._tried:
            logging.warning("The model before it is still served: %s", sentence)
            self._on_reload("failed")
        self._error, self._tried = sentence, stamp
        self._again = time.monotonic() + _RETRY_SECONDS


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
