"""eval.json as aligned text for a terminal."""

from __future__ import annotations

from typing import Any

from pinsage_jax.core.text_table import aligned
from pinsage_jax.evaluation.baseline_choice import NAMES
from pinsage_jax.evaluation.metrics import NDCG_DEPTH
from pinsage_jax.retrieval.ranks import TIE_RULE

_WITH_INTERVAL = ("hit@10", "hit@100")
_PLAIN = ("hit@500", "recall@100", f"ndcg@{NDCG_DEPTH}", "mrr", "scaled_mrr")
_GAP = "pinsage_minus_this"


def evaluation_tables(result: dict[str, Any]) -> str:
    """One table over all pairs, one per kind, and hit-rates by degree of the target."""
    # JSON files are sorted by name: PinSage first, then the rivals in their own order.
    places = {name: place for place, name in enumerate(NAMES)}
    names = sorted(result["methods"], key=lambda name: places.get(name, -1))
    methods = {name: result["methods"][name] for name in names}
    first = next(iter(methods.values()))
    lines = [
        f"{result['pairs']:,} pairs of {result['queries']:,} queries, each ranked among "
        f"{result['catalog']:,} items.",
        f"Ties: {TIE_RULE}.",
        f"In brackets: {result['interval']}.",
    ]
    lines += [f"Note: {note}." for note in result["notes"]]
    lines += [f"Left out: {name}, because {why}." for name, why in result["left_out"].items()]
    if dropped := {name: count for name, count in result["dropped"].items() if count}:
        told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in dropped.items())
        lines.append(f"Dropped: {told}.")
    lines += ["", *_metric_table("all pairs", "overall", "all", methods)]
    if len(first["by_kind"]) > 1:
        for kind in first["by_kind"]:
            lines += ["", *_metric_table(f"kind {kind}", "by_kind", kind, methods)]
    lines += ["", *_degree_table(methods)]
    return "\n".join(lines)


def _metric_table(title: str, group: str, name: str, methods: dict[str, Any]) -> list[str]:
    first = next(iter(methods.values()))[group][name]
    head = [f"{title} ({first['pairs']:,})", *_WITH_INTERVAL, *_PLAIN]
    rows = [[*head, *(f"pinsage - this, {metric}" for metric in _WITH_INTERVAL)]]
    for method, values in methods.items():
        scored = values[group][name]
        row = [method]
        row += [_number(scored["metrics"], metric, interval=True) for metric in _WITH_INTERVAL]
        row += [_number(scored["metrics"], metric) for metric in _PLAIN]
        gaps = scored.get(_GAP, {})
        row += [_number(gaps, metric, interval=True, signed=True) for metric in _WITH_INTERVAL]
        rows.append(row)
    return aligned(rows)


def _degree_table(methods: dict[str, Any]) -> list[str]:
    buckets = next(iter(methods.values()))["by_degree"]
    names = sorted(buckets, key=lambda name: int(name.split("-")[0].rstrip("+")))
    head = [f"{name} ({buckets[name]['pairs']:,})" for name in names]
    rows = [["hit@10 / hit@100 by degree of target", *head]]
    for method, values in methods.items():
        row = [method]
        for name in names:
            scored = values["by_degree"][name]
            cells = [_number(scored["metrics"], metric) for metric in _WITH_INTERVAL]
            row.append(" / ".join(cells) if scored["pairs"] else "")
        rows.append(row)
    return aligned(rows)


def _number(
    described: dict[str, Any], metric: str, interval: bool = False, signed: bool = False
) -> str:
    """A metric as .123, with its interval if it has one; empty if it is absent."""
    if metric not in described:
        return ""
    sign = "+" if signed else ""
    values = described[metric]
    text = f"{values['value']:{sign}.3f}"
    if interval and "low" in values:
        text += f" [{values['low']:{sign}.3f}, {values['high']:{sign}.3f}]"
    return text
