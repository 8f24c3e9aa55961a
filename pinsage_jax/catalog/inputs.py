"""The input tables of a run: their paths, and whether WORKDIR/prepared is made from them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from pinsage_jax.catalog.encoders import encoder_identity
from pinsage_jax.config.data import AUTO, DataConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError

# Version of what WORKDIR/prepared holds.
FORMAT = 2
FOLDER = "prepared"
_INPUTS = "inputs"
_INPUT_FLAGS = ("edges", "items", "train_pairs", "eval_pairs")


def input_tables(config: Config) -> tuple[DataConfig, dict[str, pathlib.Path]]:
    """Settings of the input tables, and the path of each table by flag.

    With --synthetic the tables are generated first, into WORKDIR/inputs.

    Raises:
      UserError: there is no --edges.
    """
    data = config.data
    if config.synthetic.synthetic:
        # Its kernels take a while to load, and a query of a finished run needs none of them.
        from pinsage_jax.synthetic import generator

        paths = generator.write_catalog(
            config.synthetic.chosen, pathlib.Path(config.workdir) / _INPUTS
        )
        # The example's tables have the default column names.
        names = ("collection_column", "item_column", "item_id_column")
        changed: dict[str, Any] = {name: getattr(DataConfig(), name) for name in names}
        data = dataclasses.replace(data, data_dir="", **(changed | paths))
    return data, _input_paths(data)


def is_current(config: Config) -> bool:
    """Whether WORKDIR/prepared is of the same tables, settings and times of change."""
    return saved_fingerprint(pathlib.Path(config.workdir) / FOLDER) == fingerprint_of(config)


def fingerprint_of(config: Config) -> str:
    """Hash of the settings and of every input file's path, size and time of change."""
    # Not how a path is written: the same file named otherwise is the same input.
    data = dataclasses.asdict(config.data) | {"data_dir": "", **dict.fromkeys(_INPUT_FLAGS, "")}
    value: dict[str, Any] = {"format": FORMAT, "data": data}
    if encoders := encoder_identity(config, pathlib.Path(config.workdir) / FOLDER):
        value["encoders"] = encoders
    if config.prune.prunes:
        value["prune"] = [dataclasses.asdict(config.prune), config.seed]
    if config.data.kind_weights == AUTO:
        value["kind_weights"] = [dataclasses.asdict(config.split), config.seed]
    if config.synthetic.synthetic:
        value["synthetic"] = dataclasses.asdict(config.synthetic.chosen)
        return files.fingerprint(value)
    found = []
    for flag, path in _input_paths(config.data).items():
        if not path.exists():
            raise UserError(f"--{flag}={path} does not exist.")
        parts = sorted(path.rglob("*")) if path.is_dir() else [path]
        for part in parts:
            state = part.stat()
            found.append([flag, str(part.resolve()), state.st_size, state.st_mtime_ns])
    value["files"] = found
    return files.fingerprint(value)


def saved_fingerprint(folder: pathlib.Path) -> str | None:
    """The fingerprint of what is there; None if there is nothing usable."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _input_paths(data: DataConfig) -> dict[str, pathlib.Path]:
    """Paths of the inputs that are given; relative ones are looked up in --data_dir."""
    paths = {}
    for flag in _INPUT_FLAGS:
        if value := getattr(data, flag):
            paths[flag] = data.path(value)
    if "edges" not in paths:
        raise UserError("--edges is required (or --synthetic for the embedded example).")
    return paths
