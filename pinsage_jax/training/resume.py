"""Saves and resumes a run: when a checkpoint is written, and which one a run goes on from."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from pinsage_jax.config.settings import Config
from pinsage_jax.distributed import process_group
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.compatibility import CHECKPOINTS, check_resume_config
from pinsage_jax.training.state import TrainState


def is_finished(config: Config, identity: dict[str, Any]) -> bool:
    """Whether the workdir holds the last checkpoint of exactly this run, on exactly this data.

    Args:
      identity: what the data is; see Checkpoints.check.

    Raises:
      UserError: it holds a run of other data or settings.
    """
    folder = pathlib.Path(config.workdir) / CHECKPOINTS
    if not folder.exists():
        return False
    with Checkpoints(folder, read_only=True) as checkpoints:
        if (latest := checkpoints.latest_step()) is None:
            return False
        meta = checkpoints.meta(latest)
        checkpoints.check(meta, identity, dataclasses.asdict(config.model))
    check_resume_config(config, meta)
    lengths = ("epochs", "max_steps", "patience")
    then = meta["config"]["train"]
    same = all(then.get(name) == getattr(config.train, name) for name in lengths)
    return same and (meta["queue"]["next_index"] >= meta["total"] or meta.get("ended", False))


def open_checkpoints(config: Config, stack: contextlib.ExitStack) -> Checkpoints:
    """The checkpoints of the workdir, closed by `stack`; only process 0 writes to them."""

    def opened() -> Checkpoints:
        folder = pathlib.Path(config.workdir) / CHECKPOINTS
        read_only = not process_group.is_rank0()
        return stack.enter_context(Checkpoints(folder, config.train.keep, read_only=read_only))

    # Process 0 first: it removes what a killed run left half-written.
    return process_group.rank0_first(opened, "checkpoint folder")


class Saver:
    """Writes checkpoints, on accelerators in a thread while the next steps run.

    A checkpoint that the thread has not sealed is none: a run that is killed before goes on
    from the one before it, and takes the same steps again.

    Example:
      with Saver(checkpoints, in_background=True) as saver:
          saver.save(step, state, meta, scores)
          saver.wait()
    """

    def __init__(self, checkpoints: Checkpoints, in_background: bool):
        """Takes the open checkpoints; starts no thread yet."""
        self._checkpoints = checkpoints
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "saver") if in_background else None
        self._last: concurrent.futures.Future | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_) -> None:
        """Waits; an error that `wait` has not raised is logged: another may be on its way."""
        try:
            self.wait()
        except Exception as error:
            logging.error("the last checkpoint was not written: %s", error)
        if self._pool is not None:
            self._pool.shutdown()

    def save(self, step: int, state: Any, meta: dict[str, Any], scores: dict[str, float]) -> None:
        """Writes the checkpoint of a step, or begins to; arguments of Checkpoints.save.

        Raises:
          UserError: it, or the checkpoint before it, could not be written.
        """
        self.wait()
        if self._pool is None:
            self._checkpoints.save(step, jax.tree.map(np.asarray, state), meta, scores)
            return
        # Copies: the next step reuses the memory of the state.
        copied = jax.tree.map(np.array, state)
        self._last = self._pool.submit(self._checkpoints.save, step, copied, meta, scores)

    def wait(self) -> None:
        """Returns when the last checkpoint is complete.

        Raises:
          UserError: it could not be written.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()


class Restored(NamedTuple):
    """The state from which a run resumes.

    Attributes:
      step: steps taken so far; 0 for a new run.
      scored: validation metrics of the best step so far, and of that with the highest score.
      validation_owed: whether the run was stopped before it validated this step.
      state: arrays of the host.
    """

    step: int
    scored: dict[int, dict[str, float]]
    validation_owed: bool
    state: TrainState


def restore_latest(
    checkpoints: Checkpoints,
    config: Config,
    identity: dict[str, Any],
    state: TrainState,
) -> Restored:
    """The latest checkpoint, or `state` where there is none.

    Args:
      identity: what the data is; see Checkpoints.check.
      state: before the first step; gives the shapes.

    Raises:
      UserError: a checkpoint of other data, settings or shapes, or a damaged one.
    """
    latest = process_group.broadcast_from_rank0(checkpoints.latest_step, "latest checkpoint")
    if latest is None:
        return Restored(0, {}, False, state)
    meta = checkpoints.meta(latest)
    checkpoints.check(meta, identity, dataclasses.asdict(config.model))
    check_resume_config(config, meta)
    state, _ = checkpoints.restore(latest, state)
    first = meta["queue"]["next_index"]
    logging.info("continuing from the checkpoint of step %d", first)
    scored = {int(step): scores for step, scores in meta.get("scored", {}).items()}
    return Restored(first, scored, meta.get("validation_owed", False), state)
