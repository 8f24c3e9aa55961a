"""Sections of the report about eval.json: metrics by method, hit-rate by K and by degree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pinsage_jax.evaluation.evaluate import DEGREE_BUCKETS, DIFFERENCE, EVAL_FILE, MAIN, RANKED
from pinsage_jax.reporting import page
from pinsage_jax.reporting.figures import Series, interval_chart, line_chart
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.sections import glossary
from pinsage_jax.reporting.sources import Source

_TABLE_METRICS = ("hit@10", "hit@100", "recall@100", "ndcg@10", "mrr")
COMPARED = ("hit@10", "hit@100")
# Kinds with fewer pairs are folded: their intervals are too wide to judge by.
MIN_PAIRS = 100
# The kinds of pairs are free text, so there may be any number of them.
_MAX_KINDS = 8
# Kinds of pairs that the glossary has.
_TERMS = {"warm": "warm pair", "cold": "cold pair"}
_DEGREE_METHODS = (MAIN, RANKED, "content", "walk")
_LABELS = {
    MAIN: "PinSage",
    "steered": "steered walk",
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


def in_words(group: str, name: str) -> Html:
    """A kind of pair within a sentence."""
    if group == "overall":
        return page.text("all pairs")
    if name in _TERMS:
        return glossary.term(_TERMS[name], f"{name} pairs")
    return page.join(("kind ", page.user_text(name, 60)))


def title_of(group: str, name: str) -> Html:
    """A kind of pair as a heading."""
    if group == "overall":
        return page.text("All pairs")
    if name in _TERMS:
        return page.text(f"{name.capitalize()} pairs")
    return page.join(("Pairs of kind ", page.user_text(name, 60)))


def kinds_of(methods: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The kinds of pairs, largest first: those with MIN_PAIRS or more, and the others.

    One kind alone is all pairs, and both lists are empty.
    """
    kinds = methods[MAIN].get("by_kind", {})
    if len(kinds) < 2:
        return [], []
    ordered = sorted(kinds, key=lambda kind: (-kinds[kind].get("pairs", 0), kind))
    large = [kind for kind in ordered if kinds[kind].get("pairs", 0) >= MIN_PAIRS]
    return large, ordered[len(large) :]


def metrics_by_method(source: Source) -> Html:
    """Metrics of every method over all pairs and per kind of pair, with intervals."""
    if (note := missing(source)) is not None:
        return note
    methods = source.known_scores["methods"]
    kinds, small = kinds_of(methods)
    parts = [*_notes(source)]
    for omitted in (kinds[_MAX_KINDS:], small[_MAX_KINDS:]):
        if omitted:
            parts.append(page.note(f"{len(omitted)} rarer kinds of pairs are in {EVAL_FILE} only."))
    slices = [("overall", "all"), *(("by_kind", kind) for kind in kinds[:_MAX_KINDS])]
    drawn = [_slice(methods, *part, number) for number, part in enumerate(slices)]
    charts = [chart for chart, _ in drawn]
    curve = _by_cutoff(source)
    charts.insert(1, curve[0])
    parts += [page.figures(*charts), *(table for _, table in drawn)]
    folded = [
        _slice(methods, "by_kind", kind, number)
        for number, kind in enumerate(small[:_MAX_KINDS], len(slices))
    ]
    if folded:
        title = f"Kinds with fewer than {MIN_PAIRS} pairs ({len(small)})"
        content = [page.figures(*(chart for chart, _ in folded)), *(table for _, table in folded)]
        parts.append(page.details(title, *content))
    parts += curve[1:]
    parts.append(
        page.note(
            "Intervals, in small print: ",
            page.text(source.known_scores.get("interval", "none")),
            ". Differences are paired: both methods are scored on the same resamples. "
            "hit@K is the share of pairs whose target has rank K or better; recall@100 and ndcg@10 "
            "are averaged over queries; mrr is the mean of 1 / rank.",
            page.text(_fusions(methods)),
        )
    )
    return page.join(parts)


def _slice(methods: Mapping[str, Any], group: str, name: str, number: int) -> tuple[Html, Html]:
    """The chart and the table of one kind of pair."""
    size, title = methods[MAIN][group][name], title_of(group, name)
    counts = f"{size['pairs']:,} pairs of {size['queries']:,} queries"
    names = _scored(methods, group, name)
    series = [
        _points(metric, [metrics(methods[method], group, name)[metric] for method in names])
        for metric in COMPARED
    ]
    alt = "; ".join(
        f"{label(method)}: hit@10 {hit_10:.3f}, hit@100 {hit_100:.3f}"
        for method, hit_10, hit_100 in zip(names, series[0].y, series[1].y)
    )
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30]
    chart = interval_chart(
        f"scores-{words}" if group == "overall" else f"scores-{number}-{words}".rstrip("-"),
        f"Hit-rates with 95% intervals. {alt}.",
        [label(method) for method in names], series, "share of pairs",
    )  # fmt: skip
    table = _table(methods, names, group, name, title, counts)
    return page.figure(chart, title, counts), table


def _by_cutoff(source: Source) -> tuple[Html, ...]:
    """Hit-rate over all pairs by K: a chart, and its numbers; or one note."""
    methods = source.known_scores["methods"]
    curves = {
        name: {int(k): rate for k, rate in values["hit_curve"].items()}
        for name, values in methods.items()
        if values.get("hit_curve")
    }
    if MAIN not in curves:
        return (page.note(f"{EVAL_FILE} has no hit-rates by K; run --mode=evaluate again."),)
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
    chart = line_chart("hit-rate-by-k", f"Hit-rate by K. {alt}.", series, "K", percent=True,
                       x_ticks=_ticks(ks))  # fmt: skip
    rows = [(line.label, *(f"{rate:.3f}" for rate in line.y)) for line in series]
    numbers = page.table(
        "Hit-rate by K", ("method", *(f"{k:,}" for k in ks)), rows, numbers=True, main=0
    )
    return (
        page.figure(chart, "Hit-rate by K", "all pairs, logarithmic K"),
        page.details("Hit-rate by K as a table", numbers),
    )


def by_degree(source: Source) -> Html:
    """Hit-rate by degree of the target, of PinSage, the ranker, content and the walk."""
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
    for metric in COMPARED:
        series = []
        for method in compared:
            values = [metrics(methods[method], "by_degree", name)[metric] for name in filled]
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
            scored = metrics(methods[method], "by_degree", name)
            row.append(" / ".join(f"{scored[metric]['value']:.3f}" for metric in COMPARED))
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
        values = metrics(methods[method], group, name)
        row: list[Any] = [label(method)]
        row += [cell(values.get(metric)) for metric in _TABLE_METRICS]
        difference = methods[method][group][name].get(DIFFERENCE, {})
        row += [cell(difference.get(metric), signed=True) for metric in COMPARED]
        rows.append(row)
    head = ["method", *_TABLE_METRICS]
    head += [page.with_interval(metric, page.minus("PinSage - baseline")) for metric in COMPARED]
    caption = page.join((title, f": {counts}"))
    return page.table(caption, head, rows, numbers=True, main=list(names).index(MAIN))


def _scored(methods: Mapping[str, Any], group: str, name: str) -> list[str]:
    """The methods that have metrics for this slice of the pairs."""
    return [method for method in methods if metrics(methods[method], group, name)]


def _fusions(methods: Mapping[str, Any]) -> str:
    """What each fusion among the methods combines, as a sentence; empty if none ran."""
    found = [what for name, what in _FUSIONS.items() if name in methods]
    return f" Baselines in combination: {'; '.join(found)}." if found else ""


def metrics(method: Mapping[str, Any], group: str, name: str) -> Mapping[str, Any]:
    """Metrics of a method for one kind of pair; {} if it was not scored there."""
    return method.get(group, {}).get(name, {}).get("metrics", {})


def _points(title: str, entries: Sequence[Mapping[str, float]]) -> Series:
    """One point per metric, with intervals if all metrics have one."""
    value = [entry["value"] for entry in entries]
    low = high = None
    if all("low" in entry and "high" in entry for entry in entries):
        low, high = [entry["low"] for entry in entries], [entry["high"] for entry in entries]
    return Series(title, range(len(value)), value, low, high)


def cell(values: Mapping[str, float] | None, signed: bool = False) -> Html:
    """A number with its interval in small print; empty without a number."""
    if not values:
        return page.text("")
    sign = "+" if signed else ""
    return page.with_interval(page.minus(f"{values['value']:{sign}.3f}"), _interval(values, signed))


def _interval(values: Mapping[str, float], signed: bool = False) -> str:
    if "low" not in values:
        return ""
    sign = "+" if signed else ""
    return page.minus(f"{values['low']:{sign}.3f} to {values['high']:{sign}.3f}")


def _ticks(ks: Sequence[int]) -> list[int]:
    """Axis ticks that do not overlap: powers of ten, or the ends of a short range."""
    tens = [k for k in ks if str(k).strip("0") == "1"]
    return tens if len(tens) > 1 else [ks[0], ks[-1]]
