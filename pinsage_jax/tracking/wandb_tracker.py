"""Weights & Biases (extra wandb): a run in WORKDIR/wandb, for `wandb sync` or none.

Offline unless WANDB_MODE says otherwise.  The project is that of WANDB_PROJECT, or pinsage-jax,
and the folder that of WANDB_DIR, or the workdir.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, cast

# It would report its errors to its makers.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb

from pinsage_jax.tracking.trackers import PROJECT, run_name


class _WandbRun:
    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # Its own step only grows, and a continued run goes back.
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


def open_run(
    workdir: pathlib.Path, run_id: str, settings: Mapping[str, Any], resume_step: int
) -> tuple[_WandbRun, str]:
    """See `trackers.RunOfTracker`."""
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        dir=os.environ.get("WANDB_DIR") or str(workdir),
        mode=cast(Any, os.environ.get("WANDB_MODE") or "offline"),
        id=run_id or None,
        resume="allow",
        name=run_name(workdir),
        config=dict(settings),
        settings=wandb.Settings(silent=True, console="off"),
        reinit="create_new",
    )
    run.define_metric("*", step_metric="step")
    return _WandbRun(run), run.id
