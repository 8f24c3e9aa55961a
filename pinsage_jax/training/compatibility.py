"""Checks that a checkpoint fits the data, the model and the settings; says what differs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pinsage_jax.config.fields import AUTO
from pinsage_jax.config.settings import Config, plain_values
from pinsage_jax.core.errors import UserError

CHECKPOINTS, CHECKSUM_FILE = "checkpoints", "checksums.json"
# Settings of TrainConfig that do not change which numbers a step computes.
RESUMABLE_OVERRIDES = frozenset(
    (
        "epochs",
        "max_steps",
        "patience",
        "prefetch",
        "producers",
        "devices",
        "device_features",
        "cpu_kernels",
        "accelerator_kernels",
        "validate_every",
        "checkpoint_every",
        "keep",
        "log_every",
        "profile_steps",
        "tracker",
    )
)
_MOST_DIFFERENCES = 3
_REMEDY = "choose another --workdir, or delete that folder to train anew"

_DATA_SENTENCES = {
    "num_items": "on a catalog of {saved} items but the workdir holds {now}",
    "num_collections": "on {saved} collections but the workdir holds {now}",
    "num_edges": "on {saved} edges but the workdir holds {now}",
    "feature_dim": "on features of {saved} dimensions but those in the workdir have {now}",
    "encoders": "with {saved} but the workdir was prepared with {now}",
    "graph": "on other edges than the workdir holds",
    "ids": "on other ids (digest {saved}) than the workdir holds (digest {now})",
}


def saved_meta(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The meta of the newest checkpoint of a workdir, without opening its arrays.

    None: there is none, or it cannot be read (which training itself reports).
    """
    folder = pathlib.Path(workdir) / CHECKPOINTS
    if not folder.is_dir():
        return None
    steps = [
        path
        for path in folder.iterdir()
        if path.name.isdecimal() and (path / CHECKSUM_FILE).exists()
    ]
    for path in sorted(steps, key=lambda path: -int(path.name)):
        with contextlib.suppress(OSError, ValueError):
            meta = json.loads((path / "meta" / "metadata").read_text(encoding="utf-8"))
            if isinstance(meta, dict) and "config" in meta and "data" in meta:
                return meta
    return None


def check_same_training(
    folder: str | os.PathLike,
    meta: Mapping[str, Any],
    data_identity: Mapping[str, Any],
    model_config: Mapping[str, Any],
) -> None:
    """Compares meta["data"] and meta["config"]["model"] with those of this run.

    Args:
      folder: of the checkpoints, for the sentence.
      meta: as restored from a checkpoint.
      data_identity: name to value; see ``_DATA_SENTENCES`` for the known names.
      model_config: flag name to value.

    Raises:
      UserError: one sentence that says how they differ, data first.
    """
    differences = data_differences(meta.get("data", {}), data_identity)
    for name, saved, now in _differences(meta.get("config", {}).get("model", {}), model_config):
        differences.append(f"with {name}={saved} but this run asks for {now}")
    if differences:
        listed = format_differences(differences)
        raise UserError(f"The checkpoint in {folder} was trained {listed}; {_REMEDY}.")


def data_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Parts of a sentence that say how the data of a checkpoint differ from those here."""
    # Checkpoints of earlier versions do not name their edges.
    unknown = "graph" if not (saved.get("graph") and now.get("graph")) else ""
    found = [
        parts for parts in _differences(saved, now, first=list(_DATA_SENTENCES))
        if parts[0] != unknown
    ]  # fmt: skip
    if len(found) > 1:
        # Different counts make a clearer message than a different checksum.
        found = [parts for parts in found if parts[0] != "graph"]
    sentences = []
    for name, before, after in found:
        sentence = _DATA_SENTENCES.get(name, f"with {name}={{saved}} but the workdir has {{now}}")
        sentences.append(sentence.format(saved=_format_value(before), now=_format_value(after)))
    return sentences


def check_same_settings(config: Config, meta: dict[str, Any]) -> None:
    """check_same_training and check_resume_config of the settings alone, whatever the data.

    Raises:
      UserError: one sentence that names what differs.
    """
    folder = pathlib.Path(config.workdir) / CHECKPOINTS
    check_same_training(folder, meta, meta["data"], dataclasses.asdict(config.model))
    check_resume_config(config, meta)


def check_resume_config(config: Config, meta: dict[str, Any]) -> None:
    """Refuses to continue a run with settings that change what its steps compute.

    Args:
      meta: as restored from a checkpoint; meta["config"] is the settings that it was
        trained with, as a dict.

    Raises:
      UserError: one sentence that names the first flag that differs.
    """
    current, saved = plain_values(config), meta["config"]
    # With --epochs=auto an epoch may be longer, and with it the decay of the learning rate.
    other_epochs = (saved["train"].get("epochs") is None) != (config.train.epochs is None)
    overrides = RESUMABLE_OVERRIDES - ({"epochs"} if other_epochs else set())
    for section in ("split", "sampling", "train"):
        for name, value in current[section].items():
            if name not in overrides and saved[section].get(name) != value:
                here, there = (AUTO if v is None else v for v in (value, saved[section].get(name)))
                raise UserError(
                    f"--{name}={here} differs from {there}, which the run in "
                    f"{config.workdir} was started with; choose another --workdir, or delete "
                    f"{config.workdir}/checkpoints to train anew."
                )
    if saved["seed"] != config.seed:
        raise UserError(
            f"--seed={config.seed} differs from {saved['seed']}, which the run in "
            f"{config.workdir} was started with; choose another --workdir."
        )


def check_same_arrays(
    folder: str | os.PathLike, saved: Mapping[str, list], like: Mapping[str, Any]
) -> None:
    """Compares the arrays of a checkpoint with those that this run would restore.

    Args:
      folder: of the checkpoint, for the sentence.
      saved: path to [dtype name, shape].
      like: path to an array, a jax.ShapeDtypeStruct, or a number (any dtype).

    Raises:
      UserError: one sentence naming the first paths that differ.
    """
    differences = []
    for path in [*like, *(path for path in saved if path not in like)]:
        if path not in saved:
            differences.append(f"{path} is not in it")
        elif path not in like:
            differences.append(f"it has {path} in addition")
        else:
            dtype, shape = saved[path]
            leaf = like[path]
            # A number takes whatever type it had on the device.
            wanted = str(leaf.dtype) if hasattr(leaf, "dtype") else dtype
            here = list(np.shape(leaf))
            if (here, wanted) != (shape, dtype):
                differences.append(f"{path} is {dtype}{shape} there and {wanted}{here} here")
    if differences:
        raise UserError(
            f"The checkpoint {folder} does not fit this model: {format_differences(differences)}; "
            f"{_REMEDY}."
        )


def _differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], first: list[str] | None = None
) -> list[tuple[str, Any, Any]]:
    """(name, saved value, present value) where they differ; `first` names lead."""
    names = sorted({*saved, *now})
    if first:
        names.sort(key=lambda name: first.index(name) if name in first else len(first))
    # Through JSON, as the saved side went: a tuple is a list there.
    now = json.loads(json.dumps(now))
    pairs = ((name, saved.get(name, "nothing"), now.get(name, "nothing")) for name in names)
    return [pair for pair in pairs if pair[1] != pair[2]]


def format_differences(differences: list[str]) -> str:
    """The first few differences, and the number of the others, as part of a sentence."""
    more = len(differences) - _MOST_DIFFERENCES
    return ", ".join(differences[:_MOST_DIFFERENCES]) + (f" ({more} more)" if more > 0 else "")


def _format_value(value: Any) -> str:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else str(value)
