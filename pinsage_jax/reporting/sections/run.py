"""Sections of the report about the run: when and where, data, model, settings, learning curves."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.reporting import page
from pinsage_jax.reporting.figures import Series, line_chart
from pinsage_jax.reporting.page import Html
from pinsage_jax.reporting.sources import METRICS_FILE, Source

_GIB = 2**30
# Points drawn per curve; a longer log is thinned.
_MAX_POINTS = 400
_HIT_RATES = r"(\w+_)?hit@\d+"
# Key, title, subtitle, pattern of the log's field names, whether the axis is in percent.
_CURVES = (
    ("loss", "Training loss", "mean since the previous point", "loss", False),
    ("validation", "Validation hit-rate", "share of pairs whose target has rank K or better",
     _HIT_RATES, False),
    ("rate", "Learning rate", "at the logged step", "learning_rate", False),
    ("hard", "Hard negatives per query", "mean since the previous point", "hard_per_query", False),
    ("wait", "Device wait", "share of time in which devices wait for batches", "wait_share", True),
)  # fmt: skip


def origin(source: Source) -> Html:
    """When, where and with what the model was trained, in one line."""
    run, cost = source.run, source.costs
    versions, machine = _mapping(run, "versions"), _mapping(run, "machine")
    parts = []
    if run.get("started"):
        parts.append(f"trained {_date(run['started'])}")
    if versions.get("pinsage_jax"):
        parts.append(f"pinsage_jax {versions['pinsage_jax']}")
    where = [f"{machine['cores']} cores"] if machine.get("cores") else []
    if machine.get("device") not in (None, "cpu"):
        where.append(str(machine["device"]))
    if total := sum(_stages(cost).values()):
        parts.append(" on ".join([_duration(total), *([", ".join(where)] if where else [])]))
    return page.text(" \u00b7 ".join(parts))


def provenance(source: Source) -> Html:
    """Date, command, machine and versions of the training, and what the pipeline cost."""
    run, cost = source.run, source.costs
    machine, versions = _mapping(run, "machine"), _mapping(run, "versions")
    rows: list[tuple[str, Any]] = []
    if run.get("started"):
        rows.append(("training started", _date(run["started"])))
    if run.get("command"):
        rows.append(("command", page.element("code", page.user_text(run["command"], 2000))))
    described = [str(machine[name]) for name in ("processor", "system") if machine.get(name)]
    if machine.get("cores"):
        described.append(f"{machine['cores']} cores")
    if isinstance(machine.get("memory_bytes"), int):
        described.append(f"{machine['memory_bytes'] / _GIB:.0f} GiB of memory")
    if machine.get("device") not in (None, "cpu"):
        described.append(f"{_count(cost.get('devices', 1))} x {machine['device']}")
    if described:
        rows.append(("machine", page.user_text(", ".join(described), 400)))
    if versions:
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        rows.append(("versions", page.user_text(told, 400)))
    stages = _stages(cost)
    if stages:
        told = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in stages.items())
        rows.append(("time", f"{_duration(sum(stages.values()))}: {told}"))
    if isinstance(cost.get("pairs"), int) and cost["pairs"]:
        rows.append(("training pairs processed", f"{cost['pairs']:,}"))
    if isinstance(cost.get("peak_memory_bytes"), int):
        rows.append(("peak memory", f"{cost['peak_memory_bytes'] / _GIB:.1f} GiB"))
    parts = [page.table("Run", ("quantity", "value"), rows)] if rows else []
    missing = []
    if not run:
        missing.append("when, where and by which command it was trained (run.json)")
    if not stages:
        missing.append("what it cost (costs.json, which --mode=pipeline writes)")
    if missing:
        parts.append(page.note(f"The workdir does not say {' and '.join(missing)}."))
    return page.join(parts)


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _stages(cost: dict[str, Any]) -> dict[str, float]:
    """Seconds by stage, without the report's own, which are known when it is written."""
    order = ("prepare", "train", "embed", "rank", "evaluate")
    seconds = _mapping(cost, "seconds")
    return {
        name: float(seconds[name]) for name in order if isinstance(seconds.get(name), (int, float))
    }


def _date(text: Any) -> str:
    """A time of run.json for people; as it is if it is none."""
    try:
        found = datetime.datetime.fromisoformat(str(text)).astimezone(datetime.UTC)
    except ValueError:
        return str(text)
    return f"{found:%Y-%m-%d %H:%M} UTC"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def data_and_settings(source: Source, prepared: Prepared) -> Html:
    """The run, the size of the data, the model, and settings that differ from their defaults."""
    counts = prepared.manifest.get("counts", {})
    features = prepared.manifest.get("features", {})
    degree = prepared.graph.degree()[: prepared.graph.num_items]
    linked = degree[degree > 0]
    rows = [
        ("items", _count(prepared.graph.num_items)),
        ("isolated items (no edges)", _with_share(int((degree == 0).sum()), len(degree))),
        ("collections", _count(prepared.graph.num_collections)),
        ("edges", _count(prepared.graph.num_edges)),
        ("duplicate rows of edges merged", _count(counts.get("duplicate_edges"))),
        (
            "edges per item with edges: median, 99th percentile, maximum",
            ", ".join(_count(value) for value in (*np.quantile(linked, [0.5, 0.99]), linked.max()))
            if len(linked)
            else "none",
        ),
        ("features", _describe_features(features, prepared.features.shape[1])),
        (
            "training pairs",
            "sampled from shared collections"
            if prepared.train_pairs is None
            else f"{len(prepared.train_pairs):,} given",
        ),
        ("evaluation pairs given", _count(len(prepared.eval_pairs))),
    ]
    rows = [(name, value) for name, value in rows if value]
    data = page.table("Data", ("quantity", "value"), rows)
    parts = [provenance(source), page.figures(data, _model(source))]
    changed = changed_settings(source.config)
    if changed:
        parts.append(
            page.table("Settings that differ from their defaults", ("flag", "value", "default"),
                       [(f"--{name}", page.user_text(value), page.user_text(default)
                         if default != "" else "(empty)") for name, value, default in changed])
        )  # fmt: skip
    else:
        parts.append(page.paragraph("All settings have their defaults."))
    if not source.trained:
        parts.append(
            page.note(
                "The workdir has no checkpoint of these embeddings, so the settings shown are the "
                "flags of this report, which may differ from those of the training run."
            )
        )
    return page.join(parts)


def changed_settings(config: Any) -> list[tuple[str, Any, Any]]:
    """(flag, value, default) of every setting that differs from its default, in order."""
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
    manifest, train = source.embeddings, source.config.train
    step = manifest.get("step")
    rows: list[tuple[str, Any]] = []
    if step is not None:
        which = {"best": "best on validation", "last": "last"}.get(
            str(manifest.get("checkpoint")), ""
        )
        rows.append(("step of the checkpoint", f"{_count(step)}{f' ({which})' if which else ''}"))
        if source.trained:
            rows.append(("training pairs up to this step", f"{step * train.batch_size:,}"))
    if source.training:
        rows.append(("training steps in total", _count(source.training[-1]["step"])))
        if "epoch" in source.training[-1]:
            rows.append(("epochs started", _count(source.training[-1]["epoch"])))
    rows.append(("loss", train.loss))
    rows.append(("layers, pooling", f"{source.config.model.num_layers}, {_pooling(source)}"))
    if "dimension" in manifest:
        norm = "normalized to unit length" if manifest.get("normalized") else "not normalized"
        rows.append(("embedding", f"{_count(manifest['dimension'])} dimensions, {norm}"))
    if manifest.get("cold_start_bias"):
        rows.append(("cold-start bias of isolated items", f"{manifest['cold_start_bias']:.3g}"))
    rows.append(("seed", source.config.seed))
    return page.table("Model", ("quantity", "value"), rows)


def _pooling(source: Source) -> str:
    model, sampling = source.config.model, source.config.sampling
    return f"{model.pooling} over {sampling.num_neighbors} neighbors from random walks"


def _describe_features(report: dict[str, Any], width: int) -> Any:
    if not width:
        return "none"
    columns = [
        name
        for block in report.get("blocks", [])
        if isinstance(block, dict)
        for name in block.get("columns", [])
    ]
    of = page.join((" from ", page.user_text(", ".join(map(str, columns))))) if columns else ""
    return page.join((f"{width:,} dimensions", of))


def learning(source: Source) -> Html:
    """Curves of loss, validation hit-rate, learning rate, hard negatives and wait, by step."""
    if not source.training and not source.validation:
        return page.note(
            f"There is no {METRICS_FILE} in the workdir, so there are no learning curves."
        )
    step = source.embeddings.get("step")
    step = step if isinstance(step, int) else None
    charts = [_curve(source, *curve, mark=step) for curve in _CURVES]
    lead = _best(source)
    if step is not None:
        lead = page.join(
            (
                lead,
                page.note(f"The dotted line marks step {step:,}, whose checkpoint was embedded."),
            )
        )
    return page.join((lead, page.figures(*charts)))


def _curve(
    source: Source,
    key: str,
    title: str,
    subtitle: str,
    pattern: str,
    percent: bool,
    mark: int | None,
) -> Html:
    """A chart of the log's fields whose names match; a note if there are none."""
    entries = source.validation if key == "validation" else source.training
    names = _matching(entries, pattern)
    if not names:
        return page.figure(page.note("The log has no such values."), title)
    labels = [name.replace("_", " ") for name in names] if len(names) > 1 else [title]
    series = [_series(entries, name, label) for name, label in zip(names, labels)]
    alt = "; ".join(_describe_line(line, title, percent) for line in series)
    chart = line_chart(
        f"learning-{key}",
        f"{alt}.",
        series,
        "step",
        percent=percent,
        from_zero=key != "loss",
        mark=mark,
    )
    return page.figure(chart, title, subtitle)


def _best(source: Source) -> Html:
    """The scores of the best validation."""
    if not source.validation:
        return page.note("Training ran no validation.")
    best = max(source.validation, key=lambda entry: entry["score"])
    names = _matching([best], _HIT_RATES)
    rates = [f"{name.replace('_', ' ')} {best[name]:.3f}" for name in names]
    scores = ", ".join(rates) or f"score {best['score']:.4f}"
    return page.paragraph(f"Best validation at step {best['step']:,}: {scores}.")


def _matching(entries: Sequence[dict[str, Any]], pattern: str) -> list[str]:
    """Names of the fields that match, in order of appearance."""
    names = dict.fromkeys(name for entry in entries for name in entry)
    return [name for name in names if re.fullmatch(pattern, name)]


def _series(entries: Sequence[dict[str, Any]], field: str, label: str) -> Series:
    """One field by step, thinned to _MAX_POINTS points including both ends."""
    points = [(entry["step"], entry[field]) for entry in entries if field in entry]
    if len(points) > _MAX_POINTS:
        indices = np.unique(np.linspace(0, len(points) - 1, _MAX_POINTS).round().astype(int))
        points = [points[index] for index in indices]
    return Series(label, [x for x, _ in points], [y for _, y in points])


def _describe_line(line: Series, title: str, percent: bool) -> str:
    """The ends of a line in words, for screen readers."""

    def number(value: float) -> str:
        return f"{value:.0%}" if percent else f"{value:.4g}"

    name = title if line.label == title else f"{title} {line.label}"
    ends = f"from {number(line.y[0])} at step {line.x[0]:,} to {number(line.y[-1])}"
    return f"{name}: {ends} at step {line.x[-1]:,}"


def _count(value: Any) -> str:
    return "" if value is None else f"{value:,.0f}"


def _with_share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"
