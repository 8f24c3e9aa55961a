"""Messages on stderr: a time and a sentence; libraries are heard from warnings up."""

from __future__ import annotations

import logging as standard
import os
import pathlib

from absl import logging

_HERE = str(pathlib.Path(__file__).resolve().parents[1]) + os.sep
_CHATTY = ("numba", "jax", "matplotlib")


class _Line(standard.Formatter):
    def format(self, record: standard.LogRecord) -> str:
        text = f"{self.formatTime(record, '%H:%M:%S')} "
        if record.levelno >= standard.WARNING:
            text += f"{record.levelname.lower()}: "
        text += record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _is_wanted(record: standard.LogRecord) -> bool:
    # Libraries such as Orbax log through absl too, so the logger's name tells nothing.
    return record.levelno >= standard.WARNING or record.pathname.startswith(_HERE)


def set_up(verbosity: str) -> None:
    """Sends messages from `verbosity` (debug, info, warning, error) up to stderr."""
    logging.use_absl_handler()
    logging.set_verbosity(verbosity)
    handler = logging.get_absl_handler()
    handler.setFormatter(_Line())
    handler.removeFilter(_is_wanted)
    handler.addFilter(_is_wanted)
    for name in _CHATTY:
        standard.getLogger(name).setLevel(standard.WARNING)
    # Read by XLA when it is loaded: its own messages from warnings up.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
