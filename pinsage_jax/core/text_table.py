"""Tables as aligned text: whole in a file or a pipe, cut to its width on a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

_GAP = "  "
_CUT = "..."
# Cells are cut to no fewer characters.
_NARROWEST = 6


def terminal_width() -> int | None:
    """Characters of a line of the terminal that is printed to; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def aligned(rows: list[list[str]], width: int | None = None, least: int = 2) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right.

    Args:
      rows: the first row is the heading.
      width: most characters of a line.  The last columns that do not fit are left out and
        named below the table; if that is not enough, long cells are cut.  None: no limit.
      least: so many columns are not left out.
    """
    widths = _widths(rows)
    dropped: list[str] = []
    if width is not None:
        kept = columns_that_fit(rows, width, least)
        dropped = rows[0][kept:]
        rows = [row[:kept] for row in rows]
        widths = _narrowed(widths[:kept], width - len(_GAP) * (kept - 1))
    lines = []
    for row in rows:
        cells = [_shortened(cell, limit) for cell, limit in zip(row, widths)]
        cells = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        lines.append(_GAP.join(cells).rstrip())
    if width is not None and dropped:
        lines += textwrap.wrap(f"Not shown: {', '.join(dropped)}.", width)
    return lines


def columns_that_fit(rows: list[list[str]], width: int, least: int = 2) -> int:
    """How many of the first columns an aligned table of `width` characters holds."""
    widths = _widths(rows)
    kept = len(widths)
    while kept > least and sum(widths[:kept]) + len(_GAP) * (kept - 1) > width:
        kept -= 1
    return kept


def with_last_column(lines: list[str], texts: Sequence[str], width: int | None = None) -> list[str]:
    """Lines of a table with a text behind each, cut where a line exceeds `width` characters."""
    found = []
    for line, text in zip(lines, texts, strict=True):
        if width is not None:
            text = _shortened(text, max(width - len(line) - len(_GAP), 0))
        found.append(f"{line}{_GAP}{text}".rstrip())
    return found


def _widths(rows: list[list[str]]) -> list[int]:
    return [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]


def _narrowed(widths: list[int], room: int) -> list[int]:
    """Widths of columns whose sum is at most `room`, the widest narrowed first."""
    widths = list(widths)
    while sum(widths) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else (text[: max(limit - len(_CUT), 0)] + _CUT)[:limit]
