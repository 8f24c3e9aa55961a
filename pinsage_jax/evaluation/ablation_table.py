"""Formats ablate.json as aligned text tables for a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from pinsage_jax.core.text_table import aligned

_WIDTH = 100
_DIFFERENCES = ("hit@10", "hit@100")


def ablation_tables(result: dict[str, Any], width: int | None = None) -> str:
    """The settings in which each variant differs from the base, and a table per kind of pairs.

    Args:
      width: characters of a line of a terminal, for which tables are brief; None: no limit.
    """
    prose = min(_WIDTH, width or _WIDTH)
    lines = [
        f"{len(result['variants'])} variants on {result['pairs']:,} {result['pairs_from']} pairs, "
        f"each ranked among {result['catalog_items']:,} items.",
        f"Ties: {result['tie_rule']}.",
        f"In brackets: {result['interval']}.",
        *(f"Note: {note}." for note in result["notes"]),
        "",
        "Settings that differ from the base:",
    ]
    indent = max(map(len, result["variants"])) + 4
    for name, variant in result["variants"].items():
        detail = f"(as {variant['same_as']}) " if variant["same_as"] else ""
        detail += ", ".join(
            f"{setting.partition('.')[2]}={value}" for setting, value in variant["settings"].items()
        )
        lines += textwrap.wrap(
            detail or "none",
            prose,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    for kind, scored in result["kinds"].items():
        lines += ["", *_table(kind, scored, result["variants"], width)]
    if width is not None:
        lines += ["", "Other metrics and intervals: ablate.json."]
    return "\n".join(lines)


def _table(
    kind: str, scored: dict[str, Any], variants: dict[str, Any], width: int | None
) -> list[str]:
    title = "all pairs" if kind == "all" else f"kind {kind}"
    brief = width is not None
    metrics = _DIFFERENCES if brief else [*next(iter(scored["variants"].values()))["metrics"]]
    head = [f"{title} ({scored['pairs']:,})", *metrics]
    rows = [[*head, *(f"variant - base, {metric}" for metric in _DIFFERENCES), "minutes"]]
    for number, (name, values) in enumerate(scored["variants"].items()):
        row = [name, *(_number(values["metrics"][metric], not brief) for metric in metrics)]
        # The first variant is the base, which has no difference to itself.
        differences = [
            _number(values["minus_base"][metric], signed=True) for metric in _DIFFERENCES
        ]
        row += differences if number else [""] * len(differences)
        same_as = variants[name]["same_as"]
        rows.append([*row, f"as {same_as}" if same_as else f"{variants[name]['minutes']:.1f}"])
    return aligned(rows, width)


def _number(values: dict[str, float], interval: bool = True, signed: bool = False) -> str:
    """Formats a metric with three decimals, and its interval if it has one and is asked for."""
    sign = "+" if signed else ""
    text = f"{values['value']:{sign}.3f}"
    if interval and "low" in values:
        text += f" [{values['low']:{sign}.3f}, {values['high']:{sign}.3f}]"
    return text
