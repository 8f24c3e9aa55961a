"""Section of the report about lists: how much of the catalog they show, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pinsage_jax.evaluation.evaluate import EVAL_FILE, MAIN, RANKED
from pinsage_jax.evaluation.tables import LIST_COLUMNS, format_statistic
from pinsage_jax.reporting import page
from pinsage_jax.reporting.figures import Points, Series, interval_chart, plane_chart
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.sections import glossary, scores
from pinsage_jax.reporting.sources import Source

# Kinds of pairs with a column in the table by --popularity_weight.
_MAX_KINDS = 9


def lists(source: Source) -> Html:
    """Coverage and concentration of the lists of every method and --popularity_weight."""
    if (note := scores.missing(source)) is not None:
        return note
    methods = source.known_scores["methods"]
    names = [name for name in methods if "lists" in methods[name]]
    if MAIN not in names:
        return page.note(f"{EVAL_FILE} has no statistics of lists; run --mode=evaluate again.")
    found = {
        MAIN: source.known_scores.get("popularity_weights"),
        RANKED: source.known_scores.get("ranker_popularity_weights"),
    }
    weights = {name: entries for name, entries in found.items() if entries}
    prices = source.known_scores.get("new_item_prices") or []
    charts = [_coverage_map(methods, names, weights)]
    charts += _price_frontier(prices) or [_concentration(methods, names)]
    queries = methods[MAIN]["lists"]["queries"]
    rows = [
        (
            scores.label(name),
            *(format_statistic(methods[name]["lists"], key) for key in LIST_COLUMNS),
        )
        for name in names
    ]
    parts = [
        page.figures(*charts),
        page.table(
            f"The first 10 neighbors of {queries:,} items", ("method", *LIST_COLUMNS.values()),
            rows, numbers=True, main=names.index(MAIN),
        ),
    ]  # fmt: skip
    parts += [_weights(name, entries) for name, entries in weights.items()]
    if prices:
        parts.append(_prices(prices))
    parts.append(
        page.note(
            "Catalog listed is ", glossary.term("coverage"),
            ", the share of items that stand in a list; the ",
            glossary.term("Gini coefficient", "Gini"), " is 0 if all items stand in as many lists "
            "and near 1 if few fill them; ", glossary.term("novelty"),
            " is the mean of log2((C + 1) / (degree + 1)) over the places, with C collections.",
        )
    )  # fmt: skip
    return page.join(parts)


def _coverage_map(
    methods: Mapping[str, Any],
    names: Sequence[str],
    weights: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Html:
    """hit@10 against coverage: PinSage and its ranker by --popularity_weight, other methods."""
    groups = [
        Points(
            f"{scores.label(name)} by popularity weight",
            [entry["lists"]["coverage"] for entry in entries],
            [entry["hit@10"]["all"] for entry in entries],
            _end_names(entries),
            line=True,
        )
        for name, entries in weights.items()
    ]
    for name in names:
        hit = scores.metrics(methods[name], "overall", "all").get("hit@10")
        if hit is None or name in weights:
            continue
        coverage = methods[name]["lists"]["coverage"]
        groups.append(Points(scores.label(name), [coverage], [hit["value"]]))
    alt = _points_in_words(groups, "{x:.1%} of the catalog, hit@10 {y:.3f}")
    chart = plane_chart("coverage", f"Hit-rate against coverage. {alt}.", groups,
                        "catalog listed", "hit@10, all pairs")  # fmt: skip
    return page.figure(chart, "Hit-rate against coverage", "up and to the right is better")


def _points_in_words(groups: Sequence[Points], point: str) -> str:
    """The points of a chart as text; `point` formats one, by x and y."""
    return "; ".join(
        f"{group.label}{f' {name}' if name else ''}: {point.format(x=x, y=y)}"
        for group in groups
        for x, y, name in zip(group.x, group.y, group.names or [""] * len(group.x))
    )


def _end_names(weights: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first and the last weight; names of all points would hide each other."""
    names = [f"{entry['weight']:g}" for entry in weights]
    return [name if place in (0, len(names) - 1) else "" for place, name in enumerate(names)]


def _concentration(methods: Mapping[str, Any], names: Sequence[str]) -> Html:
    """The share of places that the most listed 1% of the items hold, by method."""
    shares = [methods[name]["lists"]["top_1_percent"] for name in names]
    labels = [scores.label(name) for name in names]
    alt = "; ".join(f"{label}: {share:.1%}" for label, share in zip(labels, shares))
    chart = interval_chart(
        "concentration", f"Places of the most listed 1% of the items. {alt}.", labels,
        [Series("places", range(len(shares)), shares)], "share of all places",
    )  # fmt: skip
    return page.figure(chart, "Places of the most listed 1% of the items", "less is more even")


def _price_frontier(prices: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Cold against warm hits of the ranker by --new_item_price; empty without both."""
    if not prices or not {"warm", "cold"} <= prices[0].keys():
        return []
    groups = []
    for is_default, title in ((False, "price in warm hits"), (True, "default")):
        entries = [entry for entry in prices if (entry["price"] is None) == is_default]
        entries, names = _distinct(entries)
        if not entries:
            continue
        warm, cold = ([entry[kind]["hit@10"] for entry in entries] for kind in ("warm", "cold"))
        bounds = [[values[place] for values in kind] for kind in (warm, cold) for place in (1, 2)]
        groups.append(
            Points(
                title,
                [values[0] for values in warm],
                [values[0] for values in cold],
                [] if is_default else names,
                bounds,
                line=not is_default,
            )
        )
    alt = _points_in_words(groups, "warm {x:.3f}, cold {y:.3f}")
    chart = plane_chart("new-item-price", f"Cold against warm hit@10. {alt}.", groups,
                        "hit@10, warm targets", "hit@10, cold targets")  # fmt: skip
    return [
        page.figure(
            chart,
            page.join(("The ", glossary.term("new-item price", "price of new items"))),
            "ranker, validation pairs, 95% intervals",
        )
    ]


def _distinct(
    entries: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Entries of different hit@10, and the prices that share each, for names beside points."""
    found: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for entry in entries:
        key = str([entry[kind]["hit@10"] for kind in ("warm", "cold")])
        price = "" if entry["price"] is None else f"{entry['price']:.0%}"
        found.setdefault(key, (entry, []))[1].append(price)
    return [entry for entry, _ in found.values()], [", ".join(names) for _, names in found.values()]


def _weights(method: str, weights: Sequence[Mapping[str, Any]]) -> Html:
    """Lists and hit-rates of a method by --popularity_weight."""
    kinds = list(weights[0]["hit@10"])[:_MAX_KINDS]
    head: list[object] = ["--popularity_weight", *LIST_COLUMNS.values()]
    head += [page.join(("hit@10, ", page.user_text(kind, 60))) for kind in kinds]
    rows = [
        (
            f"{entry['weight']:g}",
            *(format_statistic(entry["lists"], key) for key in LIST_COLUMNS),
            *(f"{entry['hit@10'][kind]:.3f}" for kind in kinds),
        )
        for entry in weights
    ]
    title = f"{scores.label(method)} by the weight of popularity in its lists"
    return page.table(title, head, rows, numbers=True)


def _prices(prices: Sequence[Mapping[str, Any]]) -> Html:
    """Warm and cold hit-rates of the ranker by --new_item_price, cross-validated."""
    kinds = [kind for kind in ("warm", "cold") if kind in prices[0]]
    head = ["--new_item_price"]
    head += [f"{metric}, {kind} targets" for kind in kinds for metric in scores.COMPARED]
    rows = []
    for entry in prices:
        row: list[Any] = ["auto" if entry["price"] is None else f"{entry['price']:g}"]
        for kind in kinds:
            for value, low, high in (entry[kind][metric] for metric in scores.COMPARED):
                row.append(scores.cell({"value": value, "low": low, "high": high}))
        rows.append(row)
    title = "What items without edges (cold) cost in the ranker's lists, on validation pairs"
    return page.table(title, head, rows, numbers=True)
