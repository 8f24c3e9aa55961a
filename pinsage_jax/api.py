"""Settings for use from Python; the docstring of the package lists the functions that take them."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from absl import logging

from pinsage_jax.config.fields import from_text, from_values
from pinsage_jax.config.presets import NO_PRESET, with_preset
from pinsage_jax.config.settings import Config, names_data, remembered_fields
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.flagfiles import RUN_FLAGS, read_run_flags


def settings(
    workdir: str | os.PathLike,
    *,
    mode: str = "library",
    threads: int | None = None,
    **values: Any,
) -> Config:
    """Settings from the names of flags, for use from Python.

    Without `edges` and `synthetic`, settings that are not given are those that the workdir
    remembers of its run (WORKDIR/run.flags), if there is one.

    >>> config = settings("runs/mine", edges="edges.parquet", epochs=2.0)
    >>> config = settings("runs/mine")  # later: the same settings

    Args:
      mode: what the settings are for; anything but a --mode leaves it open.
      threads: host threads; None: one per core available.
      values: flags by name, as docs/flags.md lists them, and constants of the dataclasses
        in pinsage_jax/config. What is `auto` on the command line is None or "auto".

    Raises:
      UserError: a name is unknown, a value is of another type or out of range, or
        settings do not fit together.
    """
    of_the_run = {"mode": mode, "workdir": os.fspath(workdir), "threads": threads}
    return with_remembered({**of_the_run, **values})


def with_remembered(given: dict[str, Any], kind: type[Config] = Config) -> Config:
    """The validated settings: `given` by name, then its preset, then WORKDIR/run.flags.

    Settings that name the data are those of another run, for which nothing is remembered,
    unless they ask to fit the same model again (--refit).

    Args:
      kind: the class of the settings.

    Raises:
      UserError: run.flags is damaged, or settings are unknown or do not fit together.
    """
    found: dict[str, Any] = {}
    path = pathlib.Path(given["workdir"]) / RUN_FLAGS
    own_run = names_data(given) and not given.get("refit")
    if given["workdir"] and not own_run and path.is_file():
        found = _remembered(path)
    if names_data(given):
        # Another table to fit: pairs of the remembered one may be among its edges.
        found = {name: found[name] for name in found if name not in ("eval_pairs", "synthetic")}
    scale = given.get("preset_scale", found.get("preset_scale", 1.0))
    values = {
        **with_preset(found.get("preset", NO_PRESET), found, scale),
        **with_preset(given.get("preset", NO_PRESET), given, scale),
    }
    if used := sorted(found.keys() - given.keys()):
        logging.info("%s sets %s", path, ", ".join(f"--{name}" for name in used))
    return from_values(kind, values)


def _remembered(path: pathlib.Path) -> dict[str, Any]:
    """The settings that a run.flags holds; those this version does not know are left out.

    Raises:
      UserError: a line is damaged or its value is not of the setting's type.
    """
    arguments, values = read_run_flags(path)
    known = remembered_fields()
    strange = values.keys() - known.keys()
    for argument in arguments:
        name, (_, equals, text) = argument.name, argument.text.partition("=")
        if name not in known and name.removeprefix("no") in known and not equals:
            name, text = name.removeprefix("no"), "false"
        if name not in known:
            strange.add(name)
            continue
        try:
            values[name] = from_text(known[name], text if equals or text == "false" else "true")
        except ValueError:
            raise UserError(
                f"{argument.text} ({argument.where}): a value of another type is expected; "
                "remove the line."
            ) from None
    if strange:
        logging.warning(
            "%s: this version remembers no setting named %s, and ignores it; remove the line.",
            path, " or ".join(sorted(strange)),
        )  # fmt: skip
    return {name: value for name, value in values.items() if name in known}
