"""An encoder that a user gives: called with few values at a time, and its answers checked.

It is a callable that takes a list and returns float32 [n, d], one vector per value: a list of str
for text, a list of bytes (the content of picture files) for pictures.  A vector must depend on its
own value alone, so that new items are encoded as those of the catalog were.

What tells two encoders apart is their vector of a fixed text or picture (`fingerprint`).  Only this
and a name are stored; a stored name is shown, and never imported.

  n values, d dimensions of a vector
"""

from __future__ import annotations

import base64
import functools
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.core.errors import UserError, described
from pinsage_jax.data.columns import Where
from pinsage_jax.data.feature_blocks import unit_rows

TEXT, IMAGE = "text_encoder", "image_encoder"
# Values of one call: a callable that encodes them all at once needs memory in proportion.
_AT_ONCE = {TEXT: 256, IMAGE: 32}
_TEXT_PROBE = (
    "A red ceramic teapot for 4 people, 1.2 l; une théière rouge, красный чайник, 赤い急須"
)
# An 8 x 8 PNG in RGB, each pixel of another color.
_IMAGE_PROBE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAvElEQVR42g3IEUAEABAEwIUgCIIgCB4OgiAIgoeH4CAI"
    "giAIguAgCIIgeHgIFoKHIAiCIFgIgiAIgiBYCIIgCIIgOKjBAYDAIDEq7BGnwqXx0Hj/75mIyNio2GeMFVeOx44PIGcj"
    "lzOz8oA5UV47nzo/gZqLWsnarCrWmerG9dz1BXA+uJrcKh6SFG/Nl+Y3oIXQWmq7dESdS7JeWz+AF8Pr6Z3yMT2V72y3"
    "f4Feih5m71afsC/U9+637v4DwEpegWpfKRMAAAAASUVORK5CYII="
)
_PROBES: dict[str, Any] = {TEXT: _TEXT_PROBE, IMAGE: _IMAGE_PROBE}
_DECIMALS = 6
# Largest distance between unit vectors of one encoder: number formats and devices round
# differently (a cosine of 0.999).
_SAME = 0.045


class Encoder:
    """A callable with its name, whose answers are checked."""

    def __init__(self, function: Callable[[list[Any]], Any], name: str, flag: str):
        """Takes the callable, a name for messages, and the flag that gave it: TEXT or IMAGE."""
        self._function, self._flag, self._width = function, flag, 0
        self.name = name

    @property
    def label(self) -> str:
        """Name in messages: --flag=name."""
        return f"--{self._flag}={self.name}"

    @functools.cached_property
    def fingerprint(self) -> tuple[float, ...]:
        """The unit vector [d] of a fixed text or picture, in six decimals.

        Raises:
          UserError: as of `encode`.
        """
        vector = unit_rows(self.encode([_PROBES[self._flag]], lambda _: "the fixed test value"))[0]
        return tuple(round(float(number), _DECIMALS) for number in vector)

    def encode(self, values: Sequence[Any], where: Where) -> np.ndarray:
        """Vectors of values, float32 [n, d], as the callable gives them.

        Args:
          values: n texts or pictures, at least one.
          where: names the row of a value in messages.

        Raises:
          UserError: the callable fails, or gives something else than finite floats [n, d].
        """
        size = _AT_ONCE[self._flag]
        parts = [
            self._encoded(list(values[start : start + size]), start, where)
            for start in range(0, len(values), size)
        ]
        return np.concatenate(parts)

    def _encoded(self, values: list[Any], start: int, where: Where) -> np.ndarray:
        count = len(values)
        try:
            found = np.asarray(self._function(values))
        # Of a callable from elsewhere anything may come, and a library may end the program.
        except (Exception, SystemExit) as error:
            logging.debug("%s", traceback.format_exc())
            more = f" and {count - 1} more" if count > 1 else ""
            raise UserError(
                f"{self.label} failed for {where(start)}{more} ({described(error)}); "
                "--verbosity=debug shows where."
            ) from error
        if found.dtype.kind != "f":
            raise UserError(
                f"{self.label} returned {found.dtype} for {count} values; return an array of "
                "float32 [n, d], one row per value."
            )
        if found.ndim != 2 or len(found) != count or not found.shape[1]:
            raise UserError(
                f"{self.label} returned an array of shape {list(found.shape)} for {count} values; "
                f"return [{count}, d], one row per value."
            )
        if found.shape[1] != (self._width or found.shape[1]):
            raise UserError(
                f"{self.label} returned vectors of {found.shape[1]} numbers, and of {self._width} "
                "before; every vector needs the same length."
            )
        self._width = found.shape[1]
        with np.errstate(over="ignore"):
            # A copy, since the callable may write its next answer to the same memory.
            vectors = found.astype(np.float32)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{self.label} returned NaN or infinity for {where(start + int(np.argmin(finite)))}"
                "; vectors must be finite (zeros stand for nothing)."
            )
        return vectors


def same_fingerprint(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two fingerprints are of one encoder, up to rounding."""
    if len(one) != len(other):
        return False
    return float(np.linalg.norm(np.subtract(one, other))) <= _SAME
