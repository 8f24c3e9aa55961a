"""Progress with rate and time left: a bar on a terminal, rare lines in a log."""

from __future__ import annotations

import sys
import time

from absl import logging
from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Counts units of work of a long stage.

    On a terminal it is a tqdm bar.  Elsewhere (a log file, CI) it is quiet: one
    line at most every 20 seconds and one at the end of a stage that took longer.

    Example:
      with Progress(total=rows, unit="row", name="reading edges") as progress:
          progress.update(1000)
    """

    def __init__(self, total: int | None, unit: str, name: str, *, quiet: bool = False):
        self._total = total
        self._unit = unit
        self._name = name
        self._done = 0
        self._note = ""
        self._start = self._last_line = time.monotonic()
        self._bar = None
        self._quiet = quiet
        if sys.stderr.isatty() and not quiet:
            self._bar = tqdm(total=total, unit=unit, desc=name, unit_scale=True, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Shows `text` beside the rate from now on."""
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
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._line(now)

    def close(self) -> None:
        """Ends the bar, or writes the last line of a stage that was slow."""
        if self._bar is not None:
            self._bar.close()
        elif time.monotonic() - self._start >= _SECONDS_BETWEEN_LINES:
            self._line(time.monotonic())

    def _line(self, now: float) -> None:
        if self._quiet:
            return
        rate = self._done / max(now - self._start, 1e-9)
        text = f"{self._name}: {self._done:,}"
        if self._total:
            left = (self._total - self._done) / max(rate, 1e-9)
            text += f"/{self._total:,} {self._unit}, {rate:,.1f}/s, {left:.0f} s left"
        else:
            text += f" {self._unit}, {rate:,.1f}/s"
        logging.info("%s%s", text, f", {self._note}" if self._note else "")
