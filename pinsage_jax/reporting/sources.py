"""Reads the files of a finished run for its report: settings, training log and scores.

No file is required: one that is missing or damaged becomes None or an empty list, and the
report says so.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.config.fields import with_saved
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.costs import COSTS_FILE, RUN_FILE
from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation.baseline_choice import position
from pinsage_jax.evaluation.evaluate import EVAL_FILE, MAIN, RANKED, read_evaluation
from pinsage_jax.export import writer
from pinsage_jax.training.checkpoints import Checkpoints

METRICS_FILE = "metrics.jsonl"
# Settings that are taken from the flags, not from the checkpoint.
_FROM_FLAGS = (
    "mode", "workdir", "threads", "encoders", "evaluate", "search", "recommend", "explorer",
    "serve", "report",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """The contents of a run's files.

    Attributes:
      config: the current flags, with the training settings replaced by the checkpoint's.
      trained: whether the workdir has a checkpoint of the embeddings' step.
      embeddings: the manifest of the export; {} if there is none.
      training: training entries of metrics.jsonl, by step.
      validation: validation entries of metrics.jsonl, by step.
      scores: eval.json with the methods in display order; None if there is none for this
        catalog.
      stale: whether the scores are older than the embeddings.
      scores_damaged: why an existing eval.json is not used; "" otherwise.
      run: run.json, about the training; {} if there is none.
      costs: costs.json; {} if there is none.
    """

    config: Config
    trained: bool
    embeddings: dict[str, Any]
    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    scores: dict[str, Any] | None
    stale: bool
    scores_damaged: str = ""
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    costs: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def known_scores(self) -> dict[str, Any]:
        """The scores, for callers that have checked that there are any."""
        assert self.scores is not None
        return self.scores


def read_source(config: Config, num_items: int) -> Source:
    """Reads the files of the run in config.workdir.

    Args:
      config: the current flags.
      num_items: size of the catalog; scores of another catalog are not used.
    """
    workdir = pathlib.Path(config.workdir)
    manifest_path = workdir / writer.FOLDER / writer.MANIFEST
    manifest = _json(manifest_path) or {}
    scores, damaged = _scores(workdir)
    if scores is not None and not _usable(scores, num_items):
        logging.warning("report: %s is not of this catalog and is not shown.", workdir / EVAL_FILE)
        scores = None
    if scores is not None:
        # The keys of the file are in alphabetical order.
        first = (MAIN, RANKED)
        methods = sorted(
            scores["methods"].items(),
            key=lambda pair: first.index(pair[0]) if pair[0] in first else 2 + position(pair[0]),
        )
        scores = {**scores, "methods": dict(methods)}
    stale = (
        scores is not None
        and manifest_path.exists()
        and (workdir / EVAL_FILE).stat().st_mtime_ns < manifest_path.stat().st_mtime_ns
    )
    saved = _saved_config(workdir, manifest.get("step"))
    lines = _lines(workdir / METRICS_FILE)
    return Source(
        config=config if saved is None else with_saved(config, saved, _FROM_FLAGS),
        trained=saved is not None,
        embeddings=manifest,
        training=[line for line in lines if "loss" in line],
        validation=[line for line in lines if "loss" not in line and "score" in line],
        scores=scores,
        stale=stale,
        scores_damaged=damaged,
        run=_json(workdir / RUN_FILE) or {},
        costs=_json(workdir / COSTS_FILE) or {},
    )


def directions_of(source: Source, embeddings: np.ndarray) -> np.ndarray:
    """Embeddings [N, Z] without the popularity bias, if their last coordinate is one."""
    has_bias = source.config.model.popularity_bias and not source.embeddings.get("normalized")
    return embeddings[:, :-1] if has_bias else embeddings


def _saved_config(workdir: pathlib.Path, step: Any) -> Mapping[str, Any] | None:
    if not isinstance(step, int) or not (workdir / "checkpoints").is_dir():
        return None
    try:
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            if step not in checkpoints.steps():
                return None
            saved = checkpoints.meta(step).get("config")
    except UserError as error:
        logging.warning("report: the training settings are not shown: %s", error)
        return None
    return saved if isinstance(saved, Mapping) else None


def _json(path: pathlib.Path) -> dict[str, Any] | None:
    """Reads a JSON object; None if the file is missing, damaged or not an object."""
    if not path.exists():
        return None
    try:
        found = files.read_json(path)
    except UserError as error:
        logging.warning("report: %s", error)
        return None
    return found if isinstance(found, dict) else None


def _scores(workdir: pathlib.Path) -> tuple[dict[str, Any] | None, str]:
    """eval.json, or None if it is missing or damaged, and what is wrong with it, or ""."""
    if not (workdir / EVAL_FILE).exists():
        return None, ""
    try:
        return read_evaluation(workdir), ""
    except UserError as error:
        logging.warning("report: the scores are not shown: %s", error)
        return None, str(error)


def _usable(scores: dict[str, Any], num_items: int) -> bool:
    methods = scores.get("methods")
    return (
        isinstance(methods, dict) and MAIN in methods and scores.get("catalog_items") == num_items
    )


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The finite numbers of each entry of a log, ordered by step; malformed lines are skipped."""
    entries = []
    content = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in content.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            # A process that was killed may have written half of its last line.
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            numbers = (int, float)
            entries.append(
                {
                    name: value
                    for name, value in values.items()
                    if isinstance(value, numbers) and math.isfinite(value)
                }
            )
    return sorted(entries, key=lambda values: values["step"])
