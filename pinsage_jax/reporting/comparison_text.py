"""compare.json as aligned text for a terminal."""

from __future__ import annotations

from typing import Any

from pinsage_jax.core.text_table import aligned

_SHOWN = ("hit@10", "hit@100", "ndcg@10", "mrr")
_GIB = 2**30


def comparison_text(result: dict[str, Any]) -> str:
    """Settings, data, metrics, neighbors and costs; A is the first run, B the second."""
    lines = [f"A: {result['runs'][0]}", f"B: {result['runs'][1]}", ""]
    lines += _settings(result)
    rows = [["data", "A", "B"]]
    rows += [
        [name.replace("_", " "), *(_count(data[name]) for data in result["data"])]
        for name in result["data"][0]
    ]
    lines += [*aligned(rows), "", *_metrics(result["metrics"]), ""]
    lines += [*_neighbors(result["neighbors"]), *_costs(result["costs"])]
    return "\n".join(lines)


def _settings(result: dict[str, Any]) -> list[str]:
    lines = [
        f"The settings of {name} are not known (no checkpoint of its embeddings)."
        for name, known in zip("AB", result["settings_known"])
        if not known
    ]
    if not result["settings"]:
        return [*lines, "The settings are the same.", ""]
    rows = [["settings that differ", "A", "B"]]
    for row in result["settings"]:
        rows.append([f"--{row['flag']}", *(str(value) or "(empty)" for value in row["values"])])
    return [*lines, *aligned(rows), ""]


def _metrics(found: dict[str, Any]) -> list[str]:
    if not found["pairs"]:
        return [
            f"No evaluation pair is in both runs (A has {found['of'][0]:,}, B {found['of'][1]:,}), "
            "so there are no metrics to compare."
        ]
    if found["same_pairs"]:
        lines = [f"Both are ranked on the same {found['pairs']:,} evaluation pairs."]
    else:
        lines = [
            f"Ranked on the {found['pairs']:,} evaluation pairs that both have, of "
            f"{found['of'][0]:,} and {found['of'][1]:,}."
        ]
    if not found["same_catalog"]:
        lines.append("The catalogs differ: each run is ranked in its own.")
    lines.append(f"In brackets: {found['interval']}; those of B - A are paired.")
    for kind, scored in found["kinds"].items():
        title = "all pairs" if kind == "all" else f"kind {kind}"
        rows = [[f"{title} ({scored['pairs']:,})", "A", "B", "B - A"]]
        for name in _SHOWN:
            values = scored["metrics"][name]
            intervals = values.get("intervals", [None, None])
            cells = [_number(*pair) for pair in zip(values["values"], intervals)]
            bounds = [values["low"], values["high"]] if "low" in values else None
            rows.append([name, *cells, _number(values["difference"], bounds, signed=True)])
        lines += ["", *aligned(rows)]
    return lines


def _number(value: float, interval: list[float] | None, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{value:{sign}.3f}"
    return text if interval is None else text + " [{0:{2}.3f}, {1:{2}.3f}]".format(*interval, sign)


def _neighbors(found: dict[str, Any]) -> list[str]:
    if not found["items"]:
        return ["No item is in both runs, so no neighbors are compared."]
    changed = ", ".join(" ".join(name.split()) for name in found["most_changed"])
    return [
        f"Of the {found['k']} nearest neighbors in A, {found['mean_overlap']:.1%} are in B too "
        f"(mean over {found['items']:,} of {found['common_items']:,} items in both): "
        f"{1 - found['mean_overlap']:.1%} churn.",
        f"The nearest is the same for {found['same_first']:.1%} of the items; all are the same for "
        f"{found['unchanged']:.1%} and none for {found['all_new']:.1%}.",
        f"Changed most: {changed}.",
    ]


def _costs(costs: list[dict[str, Any] | None]) -> list[str]:
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
    return ["", *aligned(rows)]


def _count(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else "-"
