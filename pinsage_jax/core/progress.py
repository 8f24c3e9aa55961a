"""Progress with rate and remaining time: a bar on a terminal, occasional lines in a log."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

from absl import logging
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Progress display of a long stage.

    On a terminal or in a notebook it is a tqdm bar, which stays when it is full, unless it is
    below the bar of a longer stage; log lines go above it (core/logging_setup.py).  Elsewhere (a
    log file, CI) it logs at most one line every 20 seconds, and one at the end of a stage that
    took longer than that.

    Example:
      with Progress(total=rows, unit="row", name="reading edges") as progress:
          progress.update(1000)
    """

    def __init__(self, total: int | None, unit: str, name: str, *, quiet: bool = False):
        """Starts the display.

        Args:
          total: number of units of work; None if it is not known.
          unit: name of a unit, such as "row".
          name: what the stage does, such as "reading edges".
          quiet: shows and logs nothing.
        """
        self._total = total
        self._unit = unit
        self._name = name
        self._done = 0
        self._note = ""
        self._start = self._last_line = time.monotonic()
        self._bar = None
        self._quiet = quiet
        if not quiet and (bar := _bar()) is not None:
            self._bar = bar(total=total, unit=unit, desc=name, unit_scale=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Sets the text shown next to the rate."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def update(self, count: int = 1) -> None:
        """Adds `count` finished units."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        # `close` logs the last line.
        finished = self._total is not None and self._done >= self._total
        if now - self._last_line >= _SECONDS_BETWEEN_LINES and not finished:
            self._last_line = now
            self._log_line(now)

    def close(self) -> None:
        """Closes the bar, or logs the last line of a stage longer than 20 seconds."""
        if self._bar is not None:
            # One below another bar would be in the way of it.
            self._bar.leave = self._done == self._total and not self._bar.pos
            self._bar.close()
        elif time.monotonic() - self._start >= _SECONDS_BETWEEN_LINES:
            self._log_line(time.monotonic())

    def _log_line(self, now: float) -> None:
        if self._quiet:
            return
        seconds = max(now - self._start, 1e-9)
        rate = self._done / seconds
        text = f"{self._name}: {self._done:,}"
        if self._done == self._total:
            text += f" {self._unit} in {seconds:.0f} s, {rate:,.1f}/s"
        elif self._total and not self._done:
            text += f"/{self._total:,} {self._unit}"
        elif self._total:
            left = (self._total - self._done) / rate
            text += f"/{self._total:,} {self._unit}, {rate:,.1f}/s, {left:.0f} s left"
        else:
            text += f" {self._unit}, {rate:,.1f}/s"
        logging.info("%s%s", text, f", {self._note}" if self._note else "")


def _bar() -> Any:
    """The kind of bar for this terminal or notebook; None elsewhere."""
    if "ipykernel" in sys.modules:
        with warnings.catch_warnings():
            # Without ipywidgets the bar is text.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm as notebook_bar

        return notebook_bar
    return tqdm if sys.stderr.isatty() else None
