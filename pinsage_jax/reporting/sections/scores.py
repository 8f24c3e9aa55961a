"""Sections of the report about eval.json: metrics by method, hit-rate by K and by degree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pinsage_jax.evaluation.evaluate import DEGREE_BUCKETS, DIFFERENCE, EVAL_FILE, MAIN, RANKED
from pinsage_jax.evaluation.tables import LIST_COLUMNS, format_statistic
from pinsage_jax.reporting import page
from pinsage_jax.reporting.figures import Series, interval_chart, line_chart
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.sources import Source

_TABLE_METRICS = ("hit@10", "hit@100", "recall@100", "ndcg@10", "mrr")
_COMPARED = ("hit@10", "hit@100")
# The kinds of pairs are free text, so there may be any number of them.
_MAX_KINDS = 8
_DEGREE_METHODS = (MAIN, "content", "walk")
_LABELS = {
    MAIN: "PinSage",
    "item_knn": "item-kNN",
    "pagerank": "PageRank",
    "als": "ALS",
    "fusion": "fusion (kNN)",
    "fusion_pagerank": "fusion (PR)",
}
# What the fusions that ran are made of.
_FUSIONS = {
    "fusion": "fusion (kNN) adds the cosines of content and of item-kNN",
    "fusion_pagerank": "fusion (PR) adds the reciprocal ranks of content and of PageRank",
}


def label(method: str) -> str:
    """The display name of a method."""
    return _LABELS.get(method, method.replace("_", " "))


def missing(source: Source) -> Html | None:
    """A note that explains why there are no scores; None if there are scores."""
    if source.scores is not None:
        return None
    if source.scores_damaged:
        return page.note("There are no scores: ", page.text(source.scores_damaged))
    return page.note(
        f"There is no {EVAL_FILE} for this catalog in the workdir (no evaluation pairs, or "
        "--mode=evaluate has not run), so there are no scores."
    )


def summary(source: Source) -> Html:
    """hit@10 over all pairs, of PinSage and of the best baseline, in two sentences."""
    if source.scores is None:
        return page.join(())
    methods = source.known_scores["methods"]
    main = _metrics(methods[MAIN], "overall", "all").get("hit@10")
    if main is None:
        return page.join(())
    baselines = {
        name: _metrics(values, "overall", "all")["hit@10"]["value"]
        for name, values in methods.items()
        if name not in (MAIN, RANKED) and "hit@10" in _metrics(values, "overall", "all")
    }
    pairs = "validation pairs" if source.scores.get("pairs_from") == "validation" else "pairs"
    lead = (
        f"For {main['value']:.1%} of {source.scores['pairs']:,} {pairs}{_percent_range(main)}, "
        "PinSage ranks the target among the first 10 of "
        f"{source.known_scores['catalog_items']:,} items."
    )
    if not baselines:
        return page.paragraph(lead)
    best = max(baselines, key=lambda name: baselines[name])
    difference = methods[best]["overall"]["all"].get(DIFFERENCE, {}).get("hit@10")
    comparison = f" The best baseline, {label(best)}, does so for {baselines[best]:.1%}"
    if difference is not None:
        low, high = difference.get("low"), difference.get("high")
        interval = f", 95% interval {_interval(difference, signed=True)}" if low is not None else ""
        comparison += page.minus(f" (PinSage - baseline: {difference['value']:+.3f}{interval})")
        if low is not None and high is not None and low <= 0 <= high:
            comparison += "; the difference is not statistically significant"
    return page.paragraph(lead + comparison + ".")


def metrics_by_method(source: Source) -> Html:
    """Metrics of every method over all pairs and per kind of pair, with intervals."""
    if (note := missing(source)) is not None:
        return note
    scores = source.known_scores
    methods = scores["methods"]
    parts = [*_notes(source)]
    slices = [("overall", "all", page.text("All pairs"))]
    kinds = list(methods[MAIN].get("by_kind", {}))
    if len(kinds) > 1:
        size = {kind: methods[MAIN]["by_kind"][kind].get("pairs", 0) for kind in kinds}
        largest = sorted(kinds, key=lambda kind: (-size[kind], kind))[:_MAX_KINDS]
        slices += [
            ("by_kind", kind, page.join(("Pairs of kind ", page.user_text(kind, 60))))
            for kind in largest
        ]
        if len(kinds) > len(largest):
            omitted = len(kinds) - len(largest)
            parts.append(page.note(f"{omitted} rarer kinds of pairs are in {EVAL_FILE} only."))
    charts, tables = [], []
    for number, (group, name, title) in enumerate(slices):
        size = methods[MAIN][group][name]
        counts = f"{size['pairs']:,} pairs of {size['queries']:,} queries"
        series, names = [], _scored(methods, group, name)
        for metric in _COMPARED:
            series.append(_interval_series(methods, names, group, name, metric))
        alt = "; ".join(
            f"{label(method)}: hit@10 {hit_10:.3f}, hit@100 {hit_100:.3f}"
            for method, hit_10, hit_100 in zip(names, series[0].y, series[1].y)
        )
        chart = interval_chart(
            f"scores-{number}", f"Hit-rates with 95% intervals. {alt}.",
            [label(method) for method in names], series, "share of pairs",
        )  # fmt: skip
        charts.append(page.figure(chart, title, counts))
        tables.append(_table(methods, names, group, name, title, counts))
    parts += [page.figures(*charts), *tables]
    parts.append(
        page.note(
            "Intervals, in small print: ",
            page.text(scores.get("interval", "none")),
            ". Differences are paired: both methods are scored on the same resamples. "
            "hit@K is the share of pairs whose target has rank K or better; recall@100 and ndcg@10 "
            "are averaged over queries; mrr is the mean of 1 / rank.",
            page.text(_fusions(methods)),
        )
    )
    return page.join(parts)


def by_cutoff(source: Source) -> Html:
    """Hit-rate over all pairs by K."""
    if (note := missing(source)) is not None:
        return note
    methods = source.known_scores["methods"]
    curves = {
        name: {int(k): rate for k, rate in values["hit_curve"].items()}
        for name, values in methods.items()
        if values.get("hit_curve")
    }
    if MAIN not in curves:
        return page.note(f"{EVAL_FILE} has no hit-rates by K; run --mode=evaluate again.")
    # With K as large as the catalog, every hit-rate is 1.
    items = source.known_scores["catalog_items"]
    ks = sorted(k for k in curves[MAIN] if k < items) or [min(curves[MAIN])]
    series = [
        Series(label(name), ks, [curve[k] for k in ks])
        for name, curve in curves.items()
        if set(ks) <= set(curve)
    ]
    alt = "; ".join(f"{line.label}: {line.y[0]:.1%} at 1, {line.y[-1]:.1%} at {ks[-1]:,}"
                    for line in series)  # fmt: skip
    chart = line_chart("cutoff", f"Hit-rate by K. {alt}.", series, "K", percent=True,
                       x_ticks=_ticks(ks))  # fmt: skip
    rows = [(line.label, *(f"{rate:.3f}" for rate in line.y)) for line in series]
    numbers = page.table(
        "Hit-rate by K", ("method", *(f"{k:,}" for k in ks)), rows, numbers=True, main=0
    )
    return page.join(
        (
            page.figure(chart, "Share of pairs whose target has rank K or better",
                        "all pairs, logarithmic K", single=True),
            page.details("Table", numbers),
        )
    )  # fmt: skip


def by_degree(source: Source) -> Html:
    """Hit-rate by degree of the target, of PinSage, content and the walk."""
    if (note := missing(source)) is not None:
        return note
    methods = source.known_scores["methods"]
    buckets = methods[MAIN].get("by_degree", {})
    filled = [name for name, _ in DEGREE_BUCKETS if buckets.get(name, {}).get("pairs")]
    if not filled:
        return page.note(f"{EVAL_FILE} has no hit-rates by degree.")
    compared = [name for name in _DEGREE_METHODS if name in methods]
    labels = [f"{name} edges" for name in filled]
    charts = []
    for metric in _COMPARED:
        series = []
        for method in compared:
            values = [_metrics(methods[method], "by_degree", name)[metric] for name in filled]
            series.append(_points(label(method), values))
        alt = "; ".join(
            f"targets with {name}: " + ", ".join(f"{s.label} {s.y[row]:.3f}" for s in series)
            for row, name in enumerate(labels)
        )
        chart = interval_chart(f"degree-{metric.replace('@', '')}", f"{metric}: {alt}.", labels,
                               series, f"{metric}, share of pairs")  # fmt: skip
        charts.append(page.figure(chart, metric, "by degree of the target, 95% intervals"))
    names = [name for name in methods if methods[name].get("by_degree")]
    rows = []
    for method in names:
        row = [label(method)]
        for name in filled:
            scored = _metrics(methods[method], "by_degree", name)
            row.append(" / ".join(f"{scored[metric]['value']:.3f}" for metric in _COMPARED))
        rows.append(row)
    head = [page.with_interval(name, f"{buckets[name]['pairs']:,} pairs") for name in filled]
    numbers = page.table(
        "hit@10 / hit@100 by degree of the target", ("method", *head), rows, numbers=True,
        main=names.index(MAIN),
    )  # fmt: skip
    parts = [page.figures(*charts), numbers]
    if "content" not in methods:
        parts.append(
            page.note("Content was not evaluated (no features, or not among --baselines).")
        )
    return page.join(parts)


def lists(source: Source) -> Html:
    """Coverage and concentration of the lists of every method and --popularity_weight."""
    if (note := missing(source)) is not None:
        return note
    methods = source.known_scores["methods"]
    names = [name for name in methods if "lists" in methods[name]]
    if MAIN not in names:
        return page.note(f"{EVAL_FILE} has no statistics of lists; run --mode=evaluate again.")
    queries = methods[MAIN]["lists"]["queries"]
    rows = [
        (label(name), *(format_statistic(methods[name]["lists"], key) for key in LIST_COLUMNS))
        for name in names
    ]
    parts = [
        page.table(
            f"The first 10 neighbors of {queries:,} items", ("method", *LIST_COLUMNS.values()),
            rows, numbers=True, main=names.index(MAIN),
        )
    ]  # fmt: skip
    if weights := source.known_scores.get("popularity_weights"):
        kinds = list(weights[0]["hit@10"])[: _MAX_KINDS + 1]
        head = ["--popularity_weight", *LIST_COLUMNS.values()]
        head += [page.join(("hit@10, ", page.user_text(kind, 60))) for kind in kinds]
        rows = [
            (
                f"{entry['weight']:g}",
                *(format_statistic(entry["lists"], key) for key in LIST_COLUMNS),
                *(f"{entry['hit@10'][kind]:.3f}" for kind in kinds),
            )
            for entry in weights
        ]
        title = "PinSage by the weight of popularity in its lists"
        parts.append(page.table(title, head, rows, numbers=True))
    if prices := source.known_scores.get("new_item_prices"):
        parts.append(_prices(prices))
    parts.append(
        page.note(
            "Catalog listed is the share of items that stand in a list; Gini is 0 if all items "
            "stand in as many lists and near 1 if few fill them; novelty is the mean of "
            "log2((C + 1) / (degree + 1)) over the places, with C collections."
        )
    )
    return page.join(parts)


def _prices(prices: Sequence[Mapping[str, Any]]) -> Html:
    """Warm and cold hit-rates of the ranker by --new_item_price, cross-validated."""
    kinds = [kind for kind in ("warm", "cold") if kind in prices[0]]
    head = ["--new_item_price"]
    head += [f"{metric}, {kind} targets" for kind in kinds for metric in _COMPARED]
    rows = []
    for entry in prices:
        row: list[Any] = ["auto" if entry["price"] is None else f"{entry['price']:g}"]
        for kind in kinds:
            for value, low, high in (entry[kind][metric] for metric in _COMPARED):
                row.append(_cell({"value": value, "low": low, "high": high}))
        rows.append(row)
    title = "What items without edges (cold) cost in the ranker's lists, on validation pairs"
    return page.table(title, head, rows, numbers=True)


def _notes(source: Source) -> list[Html]:
    """Notes about the evaluation, to be read before its results."""
    scores, notes = source.known_scores, list[Html]()
    if source.stale:
        notes.append(
            page.note(
                f"{EVAL_FILE} is older than the embeddings; run --mode=evaluate to score these "
                "embeddings."
            )
        )
    notes += [page.note("Note: ", page.text(note), ".") for note in scores.get("notes", [])]
    dropped = [
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in scores.get("dropped_pairs", {}).items()
        if count
    ]
    if dropped:
        notes.append(page.note("Dropped pairs: ", ", ".join(dropped), "."))
    for name, reason in scores.get("skipped_baselines", {}).items():
        notes.append(
            page.note(f"Skipped baseline: {label(name)}, because ", page.text(reason), ".")
        )
    candidates = "the whole catalog" if not scores.get("sampled_candidates") else "a sample"
    notes.append(
        page.note(f"Each target is ranked among {candidates}. Ties: {scores.get('tie_rule', '')}.")
    )
    return notes


def _table(
    methods: Mapping[str, Any],
    names: Sequence[str],
    group: str,
    name: str,
    title: Html,
    counts: str,
) -> Html:
    rows = []
    for method in names:
        values = _metrics(methods[method], group, name)
        row: list[Any] = [label(method)]
        row += [_cell(values.get(metric)) for metric in _TABLE_METRICS]
        difference = methods[method][group][name].get(DIFFERENCE, {})
        row += [_cell(difference.get(metric), signed=True) for metric in _COMPARED]
        rows.append(row)
    head = ["method", *_TABLE_METRICS]
    head += [page.with_interval(metric, page.minus("PinSage - baseline")) for metric in _COMPARED]
    caption = page.join((title, f": {counts}"))
    return page.table(caption, head, rows, numbers=True, main=list(names).index(MAIN))


def _scored(methods: Mapping[str, Any], group: str, name: str) -> list[str]:
    """The methods that have metrics for this slice of the pairs."""
    return [method for method in methods if _metrics(methods[method], group, name)]


def _fusions(methods: Mapping[str, Any]) -> str:
    """What each fusion among the methods combines, as a sentence; empty if none ran."""
    found = [what for name, what in _FUSIONS.items() if name in methods]
    return f" Baselines in combination: {'; '.join(found)}." if found else ""


def _metrics(method: Mapping[str, Any], group: str, name: str) -> Mapping[str, Any]:
    return method.get(group, {}).get(name, {}).get("metrics", {})


def _interval_series(
    methods: Mapping[str, Any], names: Sequence[str], group: str, name: str, metric: str
) -> Series:
    return _points(metric, [_metrics(methods[method], group, name)[metric] for method in names])


def _points(title: str, entries: Sequence[Mapping[str, float]]) -> Series:
    """One point per metric, with intervals if all metrics have one."""
    value = [entry["value"] for entry in entries]
    low = high = None
    if all("low" in entry and "high" in entry for entry in entries):
        low, high = [entry["low"] for entry in entries], [entry["high"] for entry in entries]
    return Series(title, range(len(value)), value, low, high)


def _cell(values: Mapping[str, float] | None, signed: bool = False) -> Html:
    if not values:
        return page.text("")
    sign = "+" if signed else ""
    return page.with_interval(page.minus(f"{values['value']:{sign}.3f}"), _interval(values, signed))


def _interval(values: Mapping[str, float], signed: bool = False) -> str:
    if "low" not in values:
        return ""
    sign = "+" if signed else ""
    return page.minus(f"{values['low']:{sign}.3f} to {values['high']:{sign}.3f}")


def _percent_range(values: Mapping[str, float]) -> str:
    if "low" not in values:
        return ""
    return f" (95% interval {values['low']:.1%} to {values['high']:.1%})"


def _ticks(ks: Sequence[int]) -> list[int]:
    """Axis ticks that do not overlap: powers of ten, or the ends of a short range."""
    tens = [k for k in ks if str(k).strip("0") == "1"]
    return tens if len(tens) > 1 else [ks[0], ks[-1]]
