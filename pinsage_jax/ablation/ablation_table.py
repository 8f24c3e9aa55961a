"""Formats ablate.json as aligned text tables for a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from pinsage_jax.core.text_table import aligned
from pinsage_jax.evaluation.table_files import Tables

_WIDTH = 100
_DIFFERENCES = ("hit@10", "hit@100")


def ablation_tables(result: dict[str, Any], width: int | None = None) -> str:
    """The settings in which each variant differs from the base, and a table per kind of pairs.

    Args:
      width: characters of a line of a terminal, for which tables are brief; None: no limit.
    """
    prose = min(_WIDTH, width or _WIDTH)
    lines = [*_notes(result), "", "Settings that differ from the base:"]
    indent = max(map(len, result["variants"])) + 4
    for name, variant in result["variants"].items():
        lines += textwrap.wrap(
            _settings(variant),
            prose,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    for kind, scored in result["kinds"].items():
        rows = _table(kind, scored, result["variants"], brief=width is not None)
        lines += ["", *aligned(rows, width)]
    if width is not None:
        lines += ["", "Other metrics and intervals: ablate.json."]
    return "\n".join(lines)


def table_files(result: dict[str, Any]) -> Tables:
    """The content of ablate.json for --tables."""
    settings = [["variant", "settings that differ from the base"]]
    settings += [[name, _settings(variant)] for name, variant in result["variants"].items()]
    tables = [
        _table(kind, scored, result["variants"], brief=False)
        for kind, scored in result["kinds"].items()
    ]
    return Tables("ablation", _notes(result), [settings, *tables], _records(result))


def _notes(result: dict[str, Any]) -> list[str]:
    """What stands above the tables."""
    return [
        f"{len(result['variants'])} variants on {result['pairs']:,} {result['pairs_from']} pairs, "
        f"each ranked among {result['catalog_items']:,} items.",
        f"Ties: {result['tie_rule']}.",
        f"In brackets: {result['interval']}.",
        *_seeds_line(result["seeds"]),
        *(f"Note: {note}." for note in result["notes"]),
    ]


def _settings(variant: dict[str, Any]) -> str:
    """The settings of a variant that differ from the base."""
    detail = f"(as {variant['same_as']}) " if variant["same_as"] else ""
    detail += ", ".join(
        f"{setting.partition('.')[2]}={value}" for setting, value in variant["settings"].items()
    )
    return detail or "none"


def _records(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every metric of every variant and reference on every kind of pairs, and the differences."""
    parts = ("value", "low", "high", "deviation")
    return [
        {
            "kind": kind, "pairs": scored["pairs"], "queries": scored["queries"], "variant": name,
            "seeds": len(values.get("by_seed", [0])), "quantity": quantity, "metric": metric,
            **{part: values.get(part, "") for part in parts},
        }
        for kind, scored in result["kinds"].items()
        for group in ("variants", "references")
        for name, found in scored[group].items()
        for quantity in ("metrics", "minus_base")
        for metric, values in found[quantity].items()
    ]  # fmt: skip


def _seeds_line(seeds: list[int]) -> list[str]:
    if len(seeds) == 1:
        return []
    named = ", ".join(map(str, seeds))
    return [f"Means over {len(seeds)} seeds ({named}); behind ±: their standard deviation."]


def _table(
    kind: str, scored: dict[str, Any], variants: dict[str, Any], brief: bool
) -> list[list[str]]:
    """Rows of the table of one kind of pairs; `brief`: hit-rates without intervals."""
    title = "all pairs" if kind == "all" else f"kind {kind}"
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
    return rows


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
