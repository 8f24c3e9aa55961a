"""TensorBoard event files beside metrics.jsonl, for those who ask (--tensorboard)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from pinsage_jax.core.errors import UserError

FOLDER = "tensorboard"


class Events:
    """Writes the numbers of each line of metrics.jsonl as scalars at its step.

    Lines with a loss are under training/, those with a score under validation/.  After
    a resume TensorBoard drops what undone steps had written.
    """

    def __init__(self, workdir: str | pathlib.Path, resume_step: int):
        """Opens WORKDIR/tensorboard to go on after `resume_step`.

        Raises:
          UserError: the extra is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs tensorboardX; install it with "
                "pip install 'pinsage-jax[tensorboard]' or drop the flag."
            ) from None
        self._writer = SummaryWriter(
            str(pathlib.Path(workdir) / FOLDER), purge_step=resume_step + 1
        )

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds one line of metrics.jsonl."""
        room = "training" if "loss" in values else "validation" if "score" in values else "run"
        for name, value in values.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{room}/{name}", value, values["step"])

    def close(self) -> None:
        """Writes what is left and ends the writer's thread."""
        self._writer.close()
