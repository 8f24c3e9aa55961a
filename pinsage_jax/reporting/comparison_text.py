"""Formats compare.json as aligned text tables for a terminal."""

from __future__ import annotations

from typing import Any

from pinsage_jax.core.text_table import aligned
from pinsage_jax.evaluation.tables import LIST_COLUMNS, format_statistic

_TABLE_METRICS = ("hit@10", "hit@100", "ndcg@10", "mrr")
_GIB = 2**30


def format_comparison(result: dict[str, Any], width: int | None = None) -> str:
    """Tables of settings, data, metrics, neighbors and costs; A is the first run, B the second.

    Args:
      width: characters of a line of a terminal, for which tables are brief; None: no limit.
    """
    lines = [f"A: {result['runs'][0]}", f"B: {result['runs'][1]}", ""]
    lines += _settings(result, width)
    rows = [["data", "A", "B"]]
    rows += [
        [name.replace("_", " "), *(_count(data[name]) for data in result["data"])]
        for name in result["data"][0]
    ]
    lines += [*_aligned(rows, width), "", *_metrics(result["metrics"], width), ""]
    lines += [*_neighbors(result["neighbors"]), *_lists(result["lists"], width)]
    lines += _costs(result["costs"], width)
    return "\n".join(lines)


def _settings(result: dict[str, Any], width: int | None) -> list[str]:
    lines = [
        f"The settings of {name} are unknown (no checkpoint of its embeddings' step)."
        for name, known in zip("AB", result["settings_known"])
        if not known
    ]
    if not result["settings"]:
        return [*lines, "The settings are the same.", ""]
    rows = [["settings that differ", "A", "B"]]
    for row in result["settings"]:
        rows.append([f"--{row['flag']}", *(str(value) or "(empty)" for value in row["values"])])
    return [*lines, *_aligned(rows, width), ""]


def _metrics(result: dict[str, Any], width: int | None) -> list[str]:
    of_a, of_b = result["pairs_of_each"]
    if not result["pairs"]:
        return [
            f"The runs share no evaluation pair (A has {of_a:,}, B {of_b:,}), so there are no "
            "metrics to compare."
        ]
    if result["same_pairs"]:
        lines = [f"Both runs are evaluated on the same {result['pairs']:,} evaluation pairs."]
    else:
        lines = [
            f"Both runs are evaluated on the {result['pairs']:,} evaluation pairs that they share, "
            f"of {of_a:,} (A) and {of_b:,} (B)."
        ]
    if not result["same_catalog"]:
        lines.append("The catalogs differ: each run ranks its own catalog.")
    lines.append(f"In brackets: {result['interval']}; those of B - A are paired.")
    for kind, scored in result["kinds"].items():
        title = "all pairs" if kind == "all" else f"kind {kind}"
        rows = [[f"{title} ({scored['pairs']:,})", "A", "B", "B - A"]]
        for name in _TABLE_METRICS:
            values = scored["metrics"][name]
            intervals = values.get("intervals", [None, None])
            if width is not None:
                # The difference is what a narrow table is read for.
                intervals = [None, None]
            cells = [_number(*pair) for pair in zip(values["values"], intervals)]
            bounds = [values["low"], values["high"]] if "low" in values else None
            rows.append([name, *cells, _number(values["difference"], bounds, signed=True)])
        lines += ["", *_aligned(rows, width)]
    if width is not None:
        lines += ["", "Intervals of A and of B: compare.json."]
    return lines


def _aligned(rows: list[list[str]], width: int | None) -> list[str]:
    """A table whose columns are compared with each other, so that none is left out."""
    return aligned(rows, width, least=len(rows[0]))


def _number(value: float, interval: list[float] | None, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{value:{sign}.3f}"
    return text if interval is None else text + " [{0:{2}.3f}, {1:{2}.3f}]".format(*interval, sign)


def _neighbors(result: dict[str, Any]) -> list[str]:
    if not result["items"]:
        return ["The runs share no item, so no neighbors are compared."]
    changed = ", ".join(" ".join(name.split()) for name in result["most_changed"])
    return [
        f"Of an item's {result['k']} nearest neighbors in A, {result['mean_overlap']:.1%} are also "
        f"in B (mean over {result['items']:,} of {result['common_items']:,} shared items): "
        f"{1 - result['mean_overlap']:.1%} churn.",
        f"The nearest neighbor is the same for {result['same_first']:.1%} of the items; all "
        f"neighbors are the same for {result['unchanged']:.1%} and none for "
        f"{result['all_new']:.1%}.",
        f"Items that changed most: {changed}.",
    ]


def _lists(lists: list[dict[str, Any] | None], width: int | None) -> list[str]:
    if any(statistics is None for statistics in lists):
        return []
    rows = [["lists of 10", "A", "B"]]
    for name, title in LIST_COLUMNS.items():
        cells = [format_statistic(found, name) for found in lists if found is not None]
        rows.append([title, *cells])
    return ["", *_aligned(rows, width)]


def _costs(costs: list[dict[str, Any] | None], width: int | None) -> list[str]:
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return []
    rows = [["costs", "A", "B"]]
    stages = dict.fromkeys(name for cost in known for name in cost["seconds"])
    for name in stages:
        rows.append([f"{name}, seconds", *(_count(cost["seconds"].get(name)) for cost in known)])
    for name in ("device_seconds", "pairs"):
        rows.append([name.replace("_", " "), *(_count(cost.get(name)) for cost in known)])
    memory = [f"{cost['peak_memory_bytes'] / _GIB:.2f}" for cost in known]
    rows.append(["peak memory, GiB", *memory])
    return ["", *_aligned(rows, width)]


def _count(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else "-"
