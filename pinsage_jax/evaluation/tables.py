"""Formats eval.json as aligned text tables for a terminal."""

from __future__ import annotations

import functools
import textwrap
from typing import Any

from pinsage_jax.core.text_table import aligned, columns_that_fit, terminal_width
from pinsage_jax.evaluation.baseline_choice import position
from pinsage_jax.evaluation.metrics import NDCG_DEPTH
from pinsage_jax.evaluation.table_files import Tables
from pinsage_jax.retrieval.ranks import TIE_RULE

_WITH_INTERVAL = ("hit@10", "hit@100")
_WITHOUT_INTERVAL = ("hit@500", "recall@100", f"ndcg@{NDCG_DEPTH}", "mrr", "scaled_mrr")
_DIFFERENCE = "pinsage_minus_baseline"
# Keys of list_statistics and what tables call them.
LIST_COLUMNS = {
    "coverage": "catalog listed",
    "gini": "Gini",
    "top_1_percent": "places of the top 1%",
    "most_listed": "lists with one item",
    "mean_degree": "mean degree",
    "novelty": "novelty, bits",
}


def evaluation_tables(result: dict[str, Any]) -> str:
    """One table over all pairs, one per kind, and one of hit-rates by degree of the target."""
    lines = _notes(result)
    for rows in _tables(result):
        lines += ["", *aligned(rows)]
    return "\n".join(lines)


def table_files(result: dict[str, Any]) -> Tables:
    """The content of eval.json for --tables."""
    return Tables("evaluation", _notes(result), _tables(result), _records(result))


def _notes(result: dict[str, Any]) -> list[str]:
    """What stands above the tables."""
    lines = [
        f"{result['pairs']:,} pairs of {result['queries']:,} queries, each ranked among "
        f"{result['catalog_items']:,} items.",
        f"Ties: {TIE_RULE}.",
        f"In brackets: {result['interval']}.",
    ]
    lines += [f"Note: {note}." for note in result["notes"]]
    skipped = result["skipped_baselines"]
    lines += [f"Skipped baseline: {name}, because {why}." for name, why in skipped.items()]
    if dropped := {name: count for name, count in result["dropped_pairs"].items() if count}:
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in dropped.items())
        lines.append(f"Dropped pairs: {counts}.")
    return lines


def _tables(result: dict[str, Any]) -> list[list[list[str]]]:
    """The rows of each table, headings first."""
    # The file's keys are sorted by name; the tables list PinSage first, then the baselines
    # in the order of --baselines=all.
    names = sorted(result["methods"], key=position)
    methods = {name: result["methods"][name] for name in names}
    first = next(iter(methods.values()))
    tables = [_metric_table("all pairs", "overall", "all", methods)]
    if len(first["by_kind"]) > 1:
        tables += [
            _metric_table(f"kind {kind}", "by_kind", kind, methods) for kind in first["by_kind"]
        ]
    tables.append(_degree_table(methods))
    if all("lists" in values for values in methods.values()):
        tables.append(_list_table(methods))
    return tables


def _records(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every metric of every method on every slice of the pairs, and the differences."""
    return [
        {
            "group": group, "slice": name, "pairs": scored["pairs"], "queries": scored["queries"],
            "method": method, "quantity": quantity, "metric": metric,
            **{part: values.get(part, "") for part in ("value", "low", "high", "sum", "count")},
        }
        for method, found in result["methods"].items()
        for group in ("overall", "by_kind", "by_degree")
        for name, scored in found[group].items()
        for quantity in ("metrics", _DIFFERENCE)
        for metric, values in scored.get(quantity, {}).items()
    ]  # fmt: skip


def printed_tables(result: dict[str, Any], workdir: str) -> str:
    """What a person reads after an evaluation: all tables, or on a terminal one that fits it."""
    width = terminal_width()
    if width is None:
        return evaluation_tables(result)
    return evaluation_summary(result, width, workdir)


def evaluation_summary(result: dict[str, Any], width: int, workdir: str) -> str:
    """One table of hit-rates, over all pairs and by kind, no wider than `width`.

    Kinds that do not fit are left out, and told.
    """
    names = sorted(result["methods"], key=position)
    first = result["methods"][names[0]]
    groups = [("all", "overall", "all")]
    if len(first["by_kind"]) > 1:
        groups += [(kind, "by_kind", kind) for kind in first["by_kind"]]
    heads = [f"{title} ({first[group][name]['pairs']:,})" for title, group, name in groups]
    rows = [["hit@10 / hit@100", *heads]]
    for method in names:
        metrics = [result["methods"][method][group][name]["metrics"] for _, group, name in groups]
        cells = [" / ".join(_number(each, metric) for metric in _WITH_INTERVAL) for each in metrics]
        rows.append([method, *cells])
    kept = columns_that_fit(rows, width) - 1
    notes = [f"Note: {note}." for note in result["notes"]]
    if kept < len(groups):
        notes.append(f"Also measured: {', '.join(heads[kept:])}.")
    notes.append(f"Intervals, other metrics, degrees and lists: {workdir}/eval.json.")
    first_line = (
        f"{result['pairs']:,} pairs of {result['queries']:,} queries, each ranked among "
        f"{result['catalog_items']:,} items."
    )
    table = aligned([row[: kept + 1] for row in rows], width)
    fill = functools.partial(
        textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join([fill(first_line), "", *table, "", *map(fill, notes)])


def _metric_table(title: str, group: str, name: str, methods: dict[str, Any]) -> list[list[str]]:
    first = next(iter(methods.values()))[group][name]
    head = [f"{title} ({first['pairs']:,})", *_WITH_INTERVAL, *_WITHOUT_INTERVAL]
    rows = [[*head, *(f"pinsage - baseline, {metric}" for metric in _WITH_INTERVAL)]]
    for method, values in methods.items():
        scored = values[group][name]
        row = [method]
        row += [_number(scored["metrics"], metric, interval=True) for metric in _WITH_INTERVAL]
        row += [_number(scored["metrics"], metric) for metric in _WITHOUT_INTERVAL]
        difference = scored.get(_DIFFERENCE, {})
        row += [
            _number(difference, metric, interval=True, signed=True) for metric in _WITH_INTERVAL
        ]
        rows.append(row)
    return rows


def _degree_table(methods: dict[str, Any]) -> list[list[str]]:
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
    return rows


def _list_table(methods: dict[str, Any]) -> list[list[str]]:
    queries = next(iter(methods.values()))["lists"]["queries"]
    rows = [[f"lists of 10 for {queries:,} items", *LIST_COLUMNS.values()]]
    for method, values in methods.items():
        rows.append([method, *(format_statistic(values["lists"], name) for name in LIST_COLUMNS)])
    return rows


def format_statistic(statistics: dict[str, Any], name: str) -> str:
    """One of LIST_COLUMNS for a table."""
    share = name in ("coverage", "top_1_percent", "most_listed")
    return f"{statistics[name]:.1%}" if share else f"{statistics[name]:.2f}"


def _number(
    metrics: dict[str, Any], metric: str, interval: bool = False, signed: bool = False
) -> str:
    """Formats a metric with three decimals, and its interval if any; empty if absent."""
    if metric not in metrics:
        return ""
    sign = "+" if signed else ""
    values = metrics[metric]
    text = f"{values['value']:{sign}.3f}"
    if interval and "low" in values:
        text += f" [{values['low']:{sign}.3f}, {values['high']:{sign}.3f}]"
    return text
