"""Numbers and texts as the page holds them: little-endian bytes in base64, read without parsing.

n values
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

# Coordinates and scores are 16-bit integers from 0 to RANGE; 65535 means none.
RANGE = 65534


def encode_integers(numbers: np.ndarray, width: int = 0) -> dict[str, Any]:
    """Encodes integers from -1 up as unsigned bytes in base64; -1 becomes the largest number.

    Args:
      numbers: int, any shape.
      width: bytes per number: 1, 2 or 4; 0: the smallest that fits.
    """
    largest = int(numbers.max(initial=0))
    width = width or next(size for size in (1, 2, 4) if largest < 2 ** (8 * size) - 1)
    data = numbers.astype(f"<u{width}").tobytes()
    return {"bytes": width, "data": base64.b64encode(data).decode("ascii")}


def encode_scores(scores: np.ndarray, valid: np.ndarray, is_count: bool) -> dict[str, Any]:
    """Encodes scores as offset + step * integer, of 16 bits unless the scores are counts.

    Args:
      scores: float [n].
      valid: bool [n]; other scores are encoded as 0.
    """
    values = np.where(valid, scores, 0.0).astype(np.float64)
    if is_count:
        return {"offset": 0, "step": 1, "scores": encode_integers(values.astype(np.int64))}
    offset = float(values.min(initial=0.0))
    step = max(float(values.max(initial=0.0)) - offset, 1e-12) / RANGE
    codes = np.round((values - offset) / step)
    return {"offset": offset, "step": step, "scores": encode_integers(codes, 2)}


def encode_repeated(texts: Sequence[str | None]) -> dict[str, Any]:
    """Encodes texts as their distinct values, in order of appearance, and a code for each."""
    codes: dict[str, int] = {}
    rows = [-1 if text is None else codes.setdefault(text, len(codes)) for text in texts]
    return {"values": list(codes), "codes": encode_integers(np.array(rows, np.int64))}


def encode_addresses(texts: Sequence[str | None]) -> dict[str, Any]:
    """Encodes texts as their common beginning and the rest of each."""
    given = [text for text in texts if text]
    # What the first and the last in order have in common, all between them have.
    first, last = (min(given), max(given)) if given else ("", "")
    length = min(len(first), len(last))
    shared = next((n for n in range(length) if first[n] != last[n]), length)
    prefix = first[:shared]
    return {"prefix": prefix, "rest": [text[len(prefix) :] if text else None for text in texts]}
