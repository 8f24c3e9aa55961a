"""Logging to stderr: time and message per line; other libraries log warnings and errors only.

Lines go above the progress bars of a terminal instead of through them.
"""

from __future__ import annotations

import contextlib
import logging as standard
import os
import pathlib
import sys
from typing import Any

from absl import logging

_PACKAGE_FOLDER = str(pathlib.Path(__file__).resolve().parents[1]) + os.sep
_VERBOSE_LIBRARIES = ("numba", "jax", "matplotlib")


class _Formatter(standard.Formatter):
    def format(self, record: standard.LogRecord) -> str:
        text = f"{self.formatTime(record, '%H:%M:%S')} "
        if record.levelno >= standard.WARNING:
            text += f"{record.levelname.lower()}: "
        text += record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _is_wanted(record: standard.LogRecord) -> bool:
    # Orbax logs through absl too, so the path tells our records apart and the name does not.
    return record.levelno >= standard.WARNING or record.pathname.startswith(_PACKAGE_FOLDER)


def _emit_above_bars(record: standard.LogRecord) -> None:
    """Emits a record while tqdm's bars are taken off the terminal, and puts them back."""
    handler = logging.get_absl_handler().python_handler
    # Without tqdm there is no bar, and its import takes time.
    tqdm: Any = sys.modules.get("tqdm")
    with tqdm.tqdm.external_write_mode(sys.stderr) if tqdm else contextlib.nullcontext():
        type(handler).emit(handler, record)


def set_up(verbosity: str | int) -> None:
    """Logs to stderr at level `verbosity` (debug, info, warning, error, or absl's) and above."""
    logging.use_absl_handler()
    logging.set_verbosity(verbosity)
    handler = logging.get_absl_handler()
    handler.setFormatter(_Formatter())
    vars(handler.python_handler)["emit"] = _emit_above_bars
    handler.removeFilter(_is_wanted)
    handler.addFilter(_is_wanted)
    for name in _VERBOSE_LIBRARIES:
        standard.getLogger(name).setLevel(standard.WARNING)
    # XLA reads this variable when it is loaded; 1 hides its info messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
