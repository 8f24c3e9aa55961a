"""TensorBoard event files in WORKDIR/tensorboard (extra tensorboard)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from tensorboardX import SummaryWriter

EVENTS_FOLDER = "tensorboard"


class _Events:
    def __init__(self, writer: Any):
        self._writer = writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def open_run(
    workdir: pathlib.Path, run_id: str, settings: Mapping[str, Any], resume_step: int
) -> tuple[_Events, str]:
    """See `trackers.RunOfTracker`; TensorBoard drops what undone steps had written."""
    return _Events(SummaryWriter(str(workdir / EVENTS_FOLDER), purge_step=resume_step + 1)), ""
