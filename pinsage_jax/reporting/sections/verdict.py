"""First section of the report: is PinSage better than the best baseline, for which pairs?

For each kind of pair and each metric the best baseline is the one with the highest value for
that kind.  PinSage is better if the 95% interval of the paired difference to it lies above 0,
worse if it lies below 0, and level if it contains 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pinsage_jax.evaluation.evaluate import DIFFERENCE, MAIN, RANKED, RANKED_DIFFERENCE
from pinsage_jax.evaluation.tables import format_statistic
from pinsage_jax.reporting import page
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.sections import glossary, scores
from pinsage_jax.reporting.sources import Source

_ORDERED_BY = {RANKED: "the ranker", "walk": "walks", "steered": "steered walks"}
BETTER, LEVEL, WORSE, UNDECIDED = "better", "level", "worse", "undecided"


@dataclasses.dataclass(frozen=True)
class Judgment:
    """One metric of a method beside the best baseline, for one kind of pair.

    Attributes:
      value: metric of the method.
      baseline: the best baseline; "" if none was scored.
      best: its metric.
      difference: "value", and "low" and "high" if there is an interval.
      word: better, level or worse; undecided without a baseline or an interval.
    """

    value: float
    baseline: str
    best: float
    difference: Mapping[str, float]
    word: str


def judge(
    methods: Mapping[str, Any], judged: str, group: str, name: str, metric: str
) -> Judgment | None:
    """Compares a method with the best baseline; None if it has no such metric.

    Args:
      methods: those of eval.json.
      judged: the method, PinSage's embeddings or what orders its lists.
      group, name: kind of pair, as eval.json names it.
      metric: a metric of which more is better.
    """
    own = scores.metrics(methods[judged], group, name).get(metric)
    if own is None:
        return None
    found = {
        method: scores.metrics(values, group, name)[metric]["value"]
        for method, values in methods.items()
        if method not in (MAIN, RANKED) and metric in scores.metrics(values, group, name)
    }
    if not found:
        return Judgment(own["value"], "", 0.0, {}, UNDECIDED)
    best = max(found, key=lambda method: found[method])
    key = DIFFERENCE if judged == MAIN else RANKED_DIFFERENCE
    difference = methods[best][group][name].get(key, {}).get(metric)
    if difference is None:
        difference = {"value": own["value"] - found[best]}
    return Judgment(own["value"], best, found[best], difference, _word(difference))


def _word(difference: Mapping[str, float]) -> str:
    if "low" not in difference or "high" not in difference:
        return UNDECIDED
    if difference["low"] > 0:
        return BETTER
    return WORSE if difference["high"] < 0 else LEVEL


def verdict(source: Source) -> Html:
    """The judgments for all pairs and for each kind, and what the lists show."""
    if (note := scores.missing(source)) is not None:
        return note
    methods = source.known_scores["methods"]
    kinds, small = scores.kinds_of(methods)
    judged = RANKED if RANKED in methods else MAIN
    slices = [("overall", "all"), *(("by_kind", kind) for kind in kinds)]
    cards = [_card(methods, judged, *part) for part in slices]
    parts = [
        _sentence(methods, judged, slices),
        page.element("div", *cards, class_="cards"),
        _lists(methods, judged),
        _explanation(source, judged),
    ]
    if small:
        parts.append(
            page.note(
                f"Too few to judge are kinds with fewer than {scores.MIN_PAIRS} pairs: ",
                page.join((page.user_text(kind, 60) for kind in small), ", "),
                ".",
            )
        )
    return page.join(parts)


def _sentence(methods: Mapping[str, Any], judged: str, slices: list[tuple[str, str]]) -> Html:
    """The verdicts at 10 in one sentence."""
    told: dict[str, list[Html]] = {BETTER: [], LEVEL: [], WORSE: []}
    for part in slices:
        judgment = judge(methods, judged, *part, scores.COMPARED[0])
        if judgment is not None and judgment.word in told:
            told[judgment.word].append(scores.in_words(*part))
    after = {BETTER: " than", LEVEL: " with", WORSE: " than"}
    clauses = [
        page.join((page.element("strong", word), after[word], " the best baseline for ",
                   _enumerated(kinds)))
        for word, kinds in told.items()
        if kinds
    ]  # fmt: skip
    if not clauses:
        return page.join(())
    by = _method(methods, judged)
    ordered = f", its lists ordered by {_ORDERED_BY.get(by, by)}," if by else ""
    return page.paragraph(f"PinSage{ordered} is ", page.join(clauses, "; "), ".")


def _enumerated(parts: list[Html]) -> Html:
    """a, b and c."""
    return page.join([page.join(parts[:-1], ", "), parts[-1]] if parts[1:] else parts, " and ")


def _method(methods: Mapping[str, Any], judged: str) -> str:
    """The name of what orders the lists; "" for the embeddings."""
    if judged == MAIN:
        return ""
    return str(methods[judged].get("settings", {}).get("related_by", judged))


def _card(methods: Mapping[str, Any], judged: str, group: str, name: str) -> Html:
    """One kind of pair: a word, and the numbers that decide it."""
    size = methods[judged][group][name]
    heading = page.element(
        "h3",
        scores.title_of(group, name),
        page.element("small", f"{size['pairs']:,} pairs of {size['queries']:,} queries"),
    )
    found = {metric: judge(methods, judged, group, name, metric) for metric in scores.COMPARED}
    lines = [
        _line(metric, judgment, with_word=metric != scores.COMPARED[0])
        for metric, judgment in found.items()
        if judgment is not None
    ]
    first = found[scores.COMPARED[0]]
    word = UNDECIDED if first is None else first.word
    if judged != MAIN and (alone := judge(methods, MAIN, group, name, scores.COMPARED[0])):
        told = "" if alone.word == UNDECIDED else f", {alone.word}"
        lines.append(page.note(f"Embeddings alone: {scores.COMPARED[0]} {alone.value:.1%}{told}."))
    title = page.element("p", word.capitalize(), class_="word") if word != UNDECIDED else ""
    return page.element("div", heading, title, *lines, class_=word)


def _line(metric: str, judgment: Judgment, with_word: bool) -> Html:
    """A metric beside the best baseline's, and the difference in percentage points."""
    parts: list[object] = [f"{metric} ", page.element("strong", f"{judgment.value:.1%}")]
    if judgment.baseline:
        difference = judgment.difference
        text = f"{100 * difference['value']:+.1f} points"
        if judgment.word != UNDECIDED:
            text += f", {100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}"
        name = scores.label(judgment.baseline)
        parts.append(f" against {judgment.best:.1%} by {name} ({page.minus(text)})")
        if with_word and judgment.word != UNDECIDED:
            parts.append(f": {judgment.word}")
    return page.paragraph(*parts)


def _lists(methods: Mapping[str, Any], judged: str) -> Html:
    """Coverage, and the share of places that the most listed items hold."""
    if "lists" not in methods[judged]:
        return page.join(())
    own = methods[judged]["lists"]
    others = [
        f"{scores.label(name)} {format_statistic(values['lists'], 'top_1_percent')}"
        for name, values in methods.items()
        if name not in (MAIN, RANKED) and "lists" in values
    ]
    beside = f" ({', '.join(others)})" if others else ""
    return page.paragraph(
        f"The first ten neighbors of {own['queries']:,} items show ",
        page.element("strong", format_statistic(own, "coverage")),
        " of the catalog (",
        glossary.term("coverage"),
        "); the 1% of the items that are listed most hold ",
        page.element("strong", format_statistic(own, "top_1_percent")),
        f" of all places{beside}.",
    )


def _explanation(source: Source, judged: str) -> Html:
    """How the words come about."""
    methods = source.known_scores["methods"]
    if len(methods) == len({MAIN, RANKED} & methods.keys()):
        return page.note("No baseline was scored (--baselines=none), so there is no verdict.")
    if judge(methods, judged, "overall", "all", "hit@10").word == UNDECIDED:  # type: ignore[union-attr]
        return page.note(
            "There are no intervals of the differences (--bootstrap=0, or an eval.json of an "
            "earlier version), so there is no verdict; run --mode=evaluate again."
        )
    pairs = ""
    if source.known_scores.get("pairs_from") == "validation":
        pairs = " These are validation pairs: see the notes below."
    return page.note(
        "Decided by ",
        glossary.term("hit@K, recall@K, NDCG@K", "hit@10"),
        " and the 95% interval of the ",
        glossary.term("paired difference"),
        " to the ",
        glossary.term("baseline"),
        " with the highest value for the kind of pair: better above 0, worse below 0, level if "
        f"it contains 0.{pairs}",
    )
