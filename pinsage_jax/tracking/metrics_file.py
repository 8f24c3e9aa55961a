"""Writes metrics.jsonl: a line for each kind of measurement of a training run (schema.py)."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from pinsage_jax.core.files import atomic_file, reported_os_errors
from pinsage_jax.distributed import process_group
from pinsage_jax.tracking.trackers import Tracker, write_to_all

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends lines to metrics.jsonl; a resume first drops the lines of undone steps.

    Of several processes only process 0 writes.
    """

    def __init__(
        self, path: pathlib.Path, resume_step: int, trackers: dict[str, Tracker] | None = None
    ):
        """Opens `path` to continue after `resume_step`; `trackers` get every line too."""
        self._path = path
        self._trackers = {} if trackers is None else trackers
        if not process_group.is_rank0():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= resume_step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                # A killed process can leave its last line half-written.
                continue
        with atomic_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Appends one line of a kind of schema.py; the values have the step."""
        if not process_group.is_rank0():
            return
        line = {"kind": kind, **values}
        with reported_os_errors(self._path), open(self._path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        write_to_all(self._trackers, line)
