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
        *_seeds_line(result["seeds"]),
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


def _seeds_line(seeds: list[int]) -> list[str]:
    if len(seeds) == 1:
        return []
    named = ", ".join(map(str, seeds))
    return [f"Means over {len(seeds)} seeds ({named}); behind ±: their standard deviation."]


def _table(
    kind: str, scored: dict[str, Any], variants: dict[str, Any], width: int | None
) -> list[str]:
    title = "all pairs" if kind == "all" else f"kind {kind}"
    brief = width is not None
    metrics = _DIFFERENCES if brief else [*next(iter(scored["variants"].values()))["metrics"]]
    head = [f"{title} ({scored['pairs']:,})", *metrics]
    rows = [[*head, *(f"variant - base, {metric}" for metric in _DIFFERENCES), "minutes"]]
    for number, (name, values) in enumerate((scored["variants"] | scored["references"]).items()):
        row = [name, *(_number(values["metrics"][metric], not brief) for metric in metrics)]
        # The first variant is the base, which has no difference to itself.
        differences = [
            _number(values["minus_base"][metric], signed=True) for metric in _DIFFERENCES
        ]
        row += differences if number else [""] * len(differences)
        rows.append([*row, _minutes(variants.get(name))])
    return aligned(rows, width)


def _minutes(variant: dict[str, Any] | None) -> str:
    """What the variant's trainings took, or of which variant they are; a reference has none."""
    if variant is None:
        return "no training"
    return f"as {variant['same_as']}" if variant["same_as"] else f"{variant['minutes']:.1f}"


def _number(values: dict[str, float], interval: bool = True, signed: bool = False) -> str:
    """Formats a metric with three decimals, its deviation, and its interval if it is asked for."""
    sign = "+" if signed else ""
    text = f"{values['value']:{sign}.3f}"
    if "deviation" in values and not signed:
        text += f" ±{values['deviation']:.3f}"
    if interval and "low" in values:
        text += f" [{values['low']:{sign}.3f}, {values['high']:{sign}.3f}]"
    return text
