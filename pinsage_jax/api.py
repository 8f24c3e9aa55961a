"""Settings for use from Python; see the package's own docstring for what they go to."""

from __future__ import annotations

import os
from typing import Any

from pinsage_jax.config.fields import from_values
from pinsage_jax.config.presets import NO_PRESET, with_preset
from pinsage_jax.config.settings import Config


def settings(
    workdir: str | os.PathLike,
    *,
    mode: str = "library",
    seed: int = 0,
    threads: int | None = None,
    preset: str = NO_PRESET,
    **values: Any,
) -> Config:
    """Settings from the names of flags, for use from Python.

    Example:
      config = settings("runs/mine", edges="edges.parquet", epochs=2.0)

    Args:
      mode: what the settings are for; anything but a --mode leaves it open.
      threads: host threads; None: one per core available.
      preset: settings that belong together, such as "paper"; `values` override it.
      values: flags by name, as docs/flags.md lists them, and constants of the dataclasses
        in pinsage_jax/config. What is `auto` on the command line is None or "auto".

    Raises:
      UserError: a name is unknown, a value is of another type or out of range, or
        settings do not fit together.
    """
    of_the_run = {"mode": mode, "workdir": os.fspath(workdir), "seed": seed, "threads": threads}
    return from_values(Config, {**of_the_run, **with_preset(preset, values)})
