"""Experiment trackers beside metrics.jsonl: --tracker=tensorboard,mlflow,wandb.

A tracker gets the settings of the run once and then every number of metrics.jsonl as
<kind>/<field>.  All of them write into the workdir unless the variables of their own
environment say otherwise, and none uses the network of itself.  A run that is continued goes
on in the same run of a tracker: WORKDIR/tracking.json has its id.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from absl import logging

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError

IDS_FILE = "tracking.json"
PROJECT = "pinsage-jax"


class Tracker(Protocol):
    """Keeps the numbers of a run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of one line by <kind>/<field>."""

    def close(self) -> None:
        """Writes what is left."""


class RunOfTracker(Protocol):
    """What `open_trackers` calls to open a tracker; each module has one, called `open_run`."""

    def __call__(
        self, workdir: pathlib.Path, run_id: str, settings: Mapping[str, Any], resume_step: int
    ) -> tuple[Tracker, str]:
        """Continues the run `run_id`, or begins one if it is empty.

        Returns:
          The tracker and the id of its run; "" for a tracker without ids.
        """


def open_trackers(
    names: Sequence[str],
    workdir: str | pathlib.Path,
    settings: Mapping[str, Any],
    resume_step: int,
) -> dict[str, Tracker]:
    """Opens trackers by name, to continue after `resume_step`.

    Args:
      names: of tensorboard, mlflow and wandb.
      settings: those of the run, by name.

    Raises:
      UserError: a tracker's package is not installed, or it cannot be opened.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / IDS_FILE
    # Where no step is kept the run is another one.
    ids = files.read_json(path) if path.exists() and resume_step else {}
    found: dict[str, Tracker] = {}
    for name in names:
        try:
            module = importlib.import_module(f"pinsage_jax.tracking.{name}_tracker")
            open_run: RunOfTracker = module.open_run
            found[name], ids[name] = open_run(workdir, ids.get(name, ""), settings, resume_step)
        except ImportError as error:
            raise UserError(
                f"--tracker={name} needs {str(error.name).split('.')[0]}; install it with "
                f"pip install 'pinsage-jax[{name}]' or leave it out."
            ) from None
        except Exception as error:
            for tracker in found.values():
                tracker.close()
            raise UserError(
                f"--tracker={name} cannot be opened ({_one_line(error)}); leave it out, or see to "
                "the variables of the environment that it reads."
            ) from error
    if kept := {name: value for name, value in ids.items() if value}:
        files.write_json(path, kept)
    return found


def write_to_all(trackers: dict[str, Tracker], line: Mapping[str, Any]) -> None:
    """Passes a line of metrics.jsonl on; a tracker that fails is left out from then on.

    A run must not end because a server of its tracker does.
    """
    numbers = {
        f"{line['kind']}/{name}": value
        for name, value in line.items()
        if name != "step" and isinstance(value, (int, float))
    }
    for name in list(trackers):
        try:
            trackers[name].write(line["step"], numbers)
        except Exception as error:
            logging.warning(
                "--tracker=%s failed at step %d and gets no more lines (%s); metrics.jsonl does.",
                name, line["step"], _one_line(error),
            )  # fmt: skip
            del trackers[name]


def close_all(trackers: dict[str, Tracker]) -> None:
    """Closes the trackers; what one of them fails with is logged."""
    for name, tracker in trackers.items():
        try:
            tracker.close()
        except Exception as error:
            logging.warning("--tracker=%s could not be closed (%s).", name, _one_line(error))


def run_name(workdir: pathlib.Path) -> str:
    """The name of the run: the workdir and the folder that it is in."""
    return os.sep.join(workdir.resolve().parts[-2:])


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
