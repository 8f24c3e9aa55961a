"""The report's parts about the run itself: what was run, and how training went."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.reporting import page
from pinsage_jax.reporting.figures import Series, line_chart
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.sources import METRICS_FILE, Source

# Points drawn per curve; a longer log is thinned out.
_MOST_POINTS = 400
_HIT_RATES = r"(\w+_)?hit@\d+"
# Key, title, what it is, pattern of the fields' names, whether it is a percentage.
_CURVES = (
    ("loss", "Training loss", "mean since the point before", "loss", False),
    ("validation", "Validation hit-rate", "share of pairs whose target ranks K or better",
     _HIT_RATES, False),
    ("rate", "Learning rate", "of the step logged", "learning_rate", False),
    ("hard", "Hard negatives per query", "mean since the point before", "hard_per_query", False),
    ("wait", "Device wait", "share of the time that it waits for batches", "wait_share", True),
)  # fmt: skip


def what_was_run(source: Source, prepared: Prepared) -> Html:
    """Counts, the model's step, and every setting that is not the default."""
    counts = prepared.manifest.get("counts", {})
    features = prepared.manifest.get("features", {})
    degree = prepared.graph.degree()[: prepared.graph.num_items]
    linked = degree[degree > 0]
    rows = [
        ("items", _count(prepared.graph.num_items)),
        ("items without edges", _with_share(int((degree == 0).sum()), len(degree))),
        ("collections", _count(prepared.graph.num_collections)),
        ("edges", _count(prepared.graph.num_edges)),
        ("duplicate rows of edges merged", _count(counts.get("duplicate_edges"))),
        (
            "edges per linked item: median, 99th percentile, most",
            ", ".join(_count(value) for value in (*np.quantile(linked, [0.5, 0.99]), linked.max()))
            if len(linked)
            else "none",
        ),
        ("features", _feature_words(features, prepared.features.shape[1])),
        (
            "training pairs",
            "drawn from shared collections"
            if prepared.train_pairs is None
            else f"{len(prepared.train_pairs):,} given",
        ),
        ("evaluation pairs given", _count(len(prepared.eval_pairs))),
    ]
    rows = [(name, value) for name, value in rows if value]
    parts = [page.table("The data", ("what", "count"), rows), _model(source)]
    changed = changed_settings(source.config)
    if changed:
        parts.append(
            page.table("Settings that differ from their defaults", ("flag", "here", "default"),
                       [(f"--{name}", page.foreign(here), page.foreign(default) if default != ""
                         else "(empty)") for name, here, default in changed])
        )  # fmt: skip
    else:
        parts.append(page.paragraph("Every setting has its default."))
    if not source.trained:
        parts.append(
            page.note(
                "No checkpoint of these embeddings is in the workdir, so the settings are those "
                "that this report was made with, which may differ from those of the training."
            )
        )
    return page.join(parts)


def changed_settings(config: Any) -> list[tuple[str, Any, Any]]:
    """(flag, value, default) of every setting that is not the default, in order."""
    changed = []
    for section in dataclasses.fields(config):
        settings = getattr(config, section.name)
        if not dataclasses.is_dataclass(settings):
            continue
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if value != field.default:
                changed.append((field.name, value, field.default))
    return changed


def _model(source: Source) -> Html:
    about, train = source.embeddings, source.config.train
    step = about.get("step")
    rows: list[tuple[str, Any]] = []
    if step is not None:
        which = {"best": "the best on validation", "last": "the last"}.get(
            str(about.get("checkpoint")), ""
        )
        rows.append(("step of the model", f"{_count(step)}{f' ({which})' if which else ''}"))
        if source.trained:
            rows.append(("pairs it has seen", f"{step * train.batch_size:,}"))
    if source.training:
        rows.append(("steps trained in all", _count(source.training[-1]["step"])))
        if "epoch" in source.training[-1]:
            rows.append(("epochs begun", _count(source.training[-1]["epoch"])))
    rows.append(("loss", train.loss))
    rows.append(("layers, pooling", f"{source.config.model.num_layers}, {_pooling(source)}"))
    if "dimension" in about:
        kind = "of unit length" if about.get("normalized") else "of any length"
        rows.append(("embedding", f"{_count(about['dimension'])} numbers, {kind}"))
    if about.get("cold_start_bias"):
        rows.append(("offset of items without edges", f"{about['cold_start_bias']:.3g}"))
    rows.append(("seed", source.config.seed))
    return page.table("The model", ("what", "value"), rows)


def _pooling(source: Source) -> str:
    model, sampling = source.config.model, source.config.sampling
    return f"{model.pooling} over {sampling.num_neighbors} neighbors of the walk"


def _feature_words(report: dict[str, Any], width: int) -> Any:
    if not width:
        return "none"
    columns = [
        name
        for block in report.get("blocks", [])
        if isinstance(block, dict)
        for name in block.get("columns", [])
    ]
    of = page.join((" from ", page.foreign(", ".join(map(str, columns))))) if columns else ""
    return page.join((f"{width:,} numbers per item", of))


def learning(source: Source) -> Html:
    """Loss, validation hit-rate, learning rate, hard negatives and waiting, by step."""
    if not source.training and not source.validation:
        return page.note(
            f"There is no {METRICS_FILE} in the workdir, so there are no learning curves."
        )
    step = source.embeddings.get("step")
    step = step if isinstance(step, int) else None
    pictures = [_curve(source, *curve, mark=step) for curve in _CURVES]
    lead = _best(source)
    if step is not None:
        lead = page.join(
            (lead, page.note(f"The dotted line is step {step:,}, which was embedded."))
        )
    return page.join((lead, page.figures(*pictures)))


def _curve(
    source: Source, key: str, title: str, about: str, fields: str, percent: bool, mark: int | None
) -> Html:
    """One chart of the fields whose names match; a sentence where there is none."""
    lines = source.validation if key == "validation" else source.training
    names = _matching(lines, fields)
    if not names:
        return page.figure(page.note("The log holds none."), title)
    labels = [name.replace("_", " ") for name in names] if len(names) > 1 else [title]
    series = [_series(lines, name, shown) for name, shown in zip(names, labels)]
    alt = "; ".join(_told(line, title, percent) for line in series)
    chart = line_chart(
        f"learning-{key}",
        f"{alt}.",
        series,
        "step",
        percent=percent,
        from_zero=key != "loss",
        mark=mark,
    )
    return page.figure(chart, title, about)


def _best(source: Source) -> Html:
    if not source.validation:
        return page.note("No validation was made during training.")
    best = max(source.validation, key=lambda line: line["score"])
    names = _matching([best], _HIT_RATES)
    rates = [f"{name.replace('_', ' ')} {best[name]:.3f}" for name in names]
    told = ", ".join(rates) or f"score {best['score']:.4f}"
    return page.paragraph(f"Best validation at step {best['step']:,}: {told}.")


def _matching(lines: Sequence[dict[str, Any]], pattern: str) -> list[str]:
    """Names of fields that match, in order of appearance."""
    names = dict.fromkeys(name for line in lines for name in line)
    return [name for name in names if re.fullmatch(pattern, name)]


def _series(lines: Sequence[dict[str, Any]], field: str, label: str) -> Series:
    """One field by step, thinned to what a small chart can show; both ends stay."""
    found = [(line["step"], line[field]) for line in lines if field in line]
    if len(found) > _MOST_POINTS:
        places = np.unique(np.linspace(0, len(found) - 1, _MOST_POINTS).round().astype(int))
        found = [found[place] for place in places]
    return Series(label, [x for x, _ in found], [y for _, y in found])


def _told(line: Series, title: str, percent: bool) -> str:
    def shown(value: float) -> str:
        return f"{value:.0%}" if percent else f"{value:.4g}"

    name = title if line.label == title else f"{title} {line.label}"
    ends = f"from {shown(line.y[0])} at step {line.x[0]:,} to {shown(line.y[-1])}"
    return f"{name}: {ends} at step {line.x[-1]:,}"


def _count(value: Any) -> str:
    return "" if value is None else f"{value:,.0f}"


def _with_share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"
