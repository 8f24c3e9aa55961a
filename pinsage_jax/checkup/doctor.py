"""--mode=doctor: prints the findings and the forecast, and writes WORKDIR/doctor.json.

The doctor writes doctor.json (and, with --synthetic, the example's tables) and changes nothing
else of a run.  A problem would stop a run or make its figures worthless; the exit code is
then 2.  With warnings alone it is 0.
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
from pinsage_jax.core.text_table import aligned, terminal_width

DOCTOR_FILE = "doctor.json"
_WIDTH = 100
_GIB = 2**30
# Share of the available memory or disk; the rest is a margin for the error of the forecast.
_SAFE_SHARE = 0.7


def examine(config: Config) -> dict[str, Any]:
    """Checks the inputs, forecasts the costs of a run, prints both and writes doctor.json.

    Returns:
      {counts, features, columns: a sentence for each table, forecast, findings: [{level, topic,
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
        logging.info("doctor: the inputs are checked; measuring this machine")
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
    print(doctor_text(result, terminal_width()))
    files.write_json(pathlib.Path(config.workdir) / DOCTOR_FILE, result)
    table_checks.refuse_problems(findings)
    return result


def _check_machine(forecast: dict[str, Any], findings: Findings) -> None:
    machine = forecast["machine"]
    for what, needed, available, advice in (
        ("memory", "memory_bytes", "memory_available_bytes", "lower --spectral_dim, --hidden_dim "
         "or --text_dim, or set --neighbor_embeddings=off"),
        ("disk", "disk_bytes", "disk_free_bytes", "choose another --workdir"),
    ):  # fmt: skip
        if forecast[needed] > _SAFE_SHARE * machine[available]:
            findings.warn(
                "machine",
                f"The run is forecast to need {forecast[needed] / _GIB:.1f} GiB of {what}, and "
                f"{machine[available] / _GIB:.1f} GiB are free; {advice}.",
            )


def doctor_text(result: dict[str, Any], width: int | None = None) -> str:
    """The tables and findings as text, in lines of at most `width` characters."""
    prose = min(_WIDTH, width or _WIDTH)
    lines: list[str] = []
    if counts := result["counts"]:
        lines += [*aligned(_count_rows(counts), width), ""]
        quantiles = [["sizes", "median", "99th percentile", "maximum"]]
        for what in ("collections_per_item", "items_per_collection"):
            numbers = [f"{value:,}" for value in counts[what].values()]
            quantiles.append([what.replace("_", " "), *numbers])
        lines += [*aligned(quantiles, width, least=4), ""]
    if result["features"]:
        rows = [["feature column", "kind", "width", "rows with a value"]]
        for column in result["features"]:
            present = column["present"] / max(column["rows"], 1)
            rows.append(
                [column["column"], column["kind"], f"{column['width']:,}", f"{present:.1%}"]
            )
        lines += [*aligned(rows, width, least=4), ""]
    for sentence in result["columns"]:
        lines += textwrap.wrap(sentence, prose, subsequent_indent="    ", break_on_hyphens=False)
    if result["columns"]:
        lines.append("")
    if forecast := result["forecast"]:
        lines += [*_forecast_lines(forecast, width), ""]
    found = [Finding(**finding) for finding in result["findings"]]
    for level, heading in ((PROBLEM, "Problems"), (WARNING, "Warnings")):
        sentences = [finding for finding in found if finding.level == level]
        if sentences:
            lines.append(f"{heading}:")
        for finding in sentences:
            lines += textwrap.wrap(
                f"{finding.topic}: {finding.sentence}",
                prose,
                initial_indent="  - ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    if not found:
        lines.append("No problems and no warnings.")
    return "\n".join(lines)


def _count_rows(counts: dict[str, Any]) -> list[list[str]]:
    rows = [["inputs", "count"]]
    for name, value in counts.items():
        if isinstance(value, dict):
            continue
        if isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            text = f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
        rows.append([name.replace("_", " "), text])
    return rows


def _forecast_lines(forecast: dict[str, Any], width: int | None) -> list[str]:
    machine = forecast["machine"]
    rows = [["forecast of --mode=pipeline", "minutes", "CPU minutes"]]
    for name, value in forecast["seconds"].items():
        rows.append([name, f"{value / 60:.1f}", f"{forecast['cpu_seconds'][name] / 60:.1f}"])
    rows.append(["total", f"{forecast['minutes']:.1f}", f"{forecast['cpu_minutes']:.1f}"])
    lines = [*aligned(rows, width), ""]
    rows = [
        ["steps", f"{forecast['steps']:,} of {forecast['step_seconds']:.2f} s"],
        ["peak memory", f"{forecast['memory_bytes'] / _GIB:.2f} GiB "
         f"({machine['memory_available_bytes'] / _GIB:.1f} available)"],
        ["disk", f"{forecast['disk_bytes'] / _GIB:.2f} GiB "
         f"({machine['disk_free_bytes'] / _GIB:.1f} free)"],
    ]  # fmt: skip
    lines += aligned(rows, width)
    if forecast["not_counted"]:
        lines.append(f"Not in the forecast: baselines {', '.join(forecast['not_counted'])}.")
    return lines
