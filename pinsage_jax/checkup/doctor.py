"""--mode=doctor: the check-up as a table, sentences and WORKDIR/doctor.json.

Nothing of a run is changed: what is written is doctor.json (and, with --synthetic, the
example's tables).  Problems are what a run would refuse, or what makes its figures
worthless; they end in exit code 2.  Warnings are worth a look; alone they end in 0.
"""

from __future__ import annotations

import dataclasses
import pathlib
import textwrap
from typing import Any

from absl import logging

from pinsage_jax.checkup import forecast as forecasting
from pinsage_jax.checkup import graph_checks, table_checks
from pinsage_jax.checkup.clock import now
from pinsage_jax.checkup.findings import PROBLEM, WARNING, Finding, Findings
from pinsage_jax.checkup.inputs import read_inputs
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.text_table import aligned

DOCTOR_FILE = "doctor.json"
_WIDTH = 100
_GIB = 2**30
# Of what there is, so that a forecast that is somewhat too low is heard of as well.
_COMFORTABLE = 0.7


def examine(config: Config) -> dict[str, Any]:
    """Reads the inputs, measures the machine, prints what was found, writes doctor.json.

    Returns:
      {counts, features, columns: a sentence a table, forecast, findings: [{level, topic,
      sentence}]}.

    Raises:
      UserError: there is no edge table, or (after everything is printed and written)
        there are problems.
    """
    findings = Findings()
    inputs = read_inputs(config, findings)
    counts: dict[str, Any] = {}
    if inputs.graph is not None:
        counts |= graph_checks.check_graph(inputs, findings)
        counts |= table_checks.check_ids(inputs, findings)
    start = now()
    columns, lines = table_checks.check_features(inputs, findings)
    column_seconds = now() - start
    if inputs.graph is not None:
        counts |= table_checks.check_leaks(inputs, findings)
    forecast = None
    if config.doctor.forecast and inputs.graph is not None and not findings.of(PROBLEM):
        logging.info("doctor: the inputs are read; measuring this machine")
        with findings.caught("machine"):
            forecast = forecasting.forecast(config, inputs, columns, column_seconds)
            _check_machine(forecast, findings)
    result = {
        "counts": counts,
        "features": columns,
        "columns": lines,
        "forecast": forecast,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    print(doctor_text(result))
    files.write_json(pathlib.Path(config.workdir) / DOCTOR_FILE, result)
    table_checks.refuse_problems(findings)
    return result


def _check_machine(forecast: dict[str, Any], findings: Findings) -> None:
    machine = forecast["machine"]
    for what, need, there, advice in (
        ("memory", "memory_bytes", "memory_available_bytes", "lower --spectral_dim, --hidden_dim "
         "or --text_dim, or set --neighbor_embeddings=off"),
        ("disk", "disk_bytes", "disk_free_bytes", "choose another --workdir"),
    ):  # fmt: skip
        if forecast[need] > _COMFORTABLE * machine[there]:
            findings.warn(
                "machine",
                f"The run is forecast to need {forecast[need] / _GIB:.1f} GiB of {what}, and "
                f"{machine[there] / _GIB:.1f} GiB are free; {advice}.",
            )


def doctor_text(result: dict[str, Any]) -> str:
    """The tables and sentences for a person."""
    lines: list[str] = []
    if counts := result["counts"]:
        lines += [*aligned(_count_rows(counts)), ""]
        tails = [["how many", "half have at most", "99% have at most", "most"]]
        for what in ("collections_per_item", "items_per_collection"):
            told = counts[what]
            tails.append([what.replace("_", " "), *(f"{told[name]:,}" for name in told)])
        lines += [*aligned(tails), ""]
    if result["features"]:
        rows = [["feature column", "kind", "width", "rows with a value"]]
        for column in result["features"]:
            present = column["present"] / max(column["rows"], 1)
            rows.append(
                [column["column"], column["kind"], f"{column['width']:,}", f"{present:.1%}"]
            )
        lines += [*aligned(rows), ""]
    for sentence in result["columns"]:
        lines += textwrap.wrap(sentence, _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    if result["columns"]:
        lines.append("")
    if forecast := result["forecast"]:
        lines += [*_forecast_lines(forecast), ""]
    found = [Finding(**finding) for finding in result["findings"]]
    for level, heading in ((PROBLEM, "Problems"), (WARNING, "Warnings")):
        sentences = [finding for finding in found if finding.level == level]
        if sentences:
            lines.append(f"{heading}:")
        for finding in sentences:
            lines += textwrap.wrap(
                f"{finding.topic}: {finding.sentence}",
                _WIDTH,
                initial_indent="  - ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    if not found:
        lines.append("Nothing odd was found.")
    return "\n".join(lines)


def _count_rows(counts: dict[str, Any]) -> list[list[str]]:
    rows = [["inputs", "count"]]
    for name, value in counts.items():
        if isinstance(value, dict):
            continue
        if isinstance(value, bool):
            shown = "yes" if value else "no"
        else:
            shown = f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
        rows.append([name.replace("_", " "), shown])
    return rows


def _forecast_lines(forecast: dict[str, Any]) -> list[str]:
    machine = forecast["machine"]
    rows = [["forecast of --mode=pipeline", "minutes here and now", "minutes of CPU"]]
    for name, value in forecast["seconds"].items():
        rows.append([name, f"{value / 60:.1f}", f"{forecast['cpu_seconds'][name] / 60:.1f}"])
    rows.append(["in all", f"{forecast['minutes']:.1f}", f"{forecast['cpu_minutes']:.1f}"])
    lines = [*aligned(rows), ""]
    rows = [
        ["steps", f"{forecast['steps']:,} of {forecast['step_seconds']:.2f} s"],
        ["peak memory", f"{forecast['memory_bytes'] / _GIB:.2f} GiB "
         f"({machine['memory_available_bytes'] / _GIB:.1f} available)"],
        ["disk", f"{forecast['disk_bytes'] / _GIB:.2f} GiB "
         f"({machine['disk_free_bytes'] / _GIB:.1f} free)"],
    ]  # fmt: skip
    lines += aligned(rows)
    if forecast["not_counted"]:
        lines.append(f"Not in the forecast: baselines {', '.join(forecast['not_counted'])}.")
    return lines
