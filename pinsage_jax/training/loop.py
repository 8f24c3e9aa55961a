"""The training loop: prepared data in, checkpoints and metrics.jsonl out.

One pass over the minibatches, with hooks for logging, validation and checkpoints, which run at
the same steps in a resumed run.  The loop blocks on the device only when it logs, validates or
saves.

Of several processes each runs this loop on its part of every batch; process 0
alone validates and writes, and the others wait for it.

Validation embeds the whole catalog, which later folders implement, so the caller passes a
function for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pinsage_jax.batching.blocks import BatchInfo, Minibatch
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.batching.prefetch import Prefetcher
from pinsage_jax.config.settings import Config, plain_values, remembered_values
from pinsage_jax.core.costs import peak_memory
from pinsage_jax.core.progress import Progress
from pinsage_jax.distributed import process_group
from pinsage_jax.distributed.devices import compile_step, make_devices, replicate
from pinsage_jax.model.init import init_model
from pinsage_jax.tracking.metrics_file import METRICS_FILE, MetricsLog
from pinsage_jax.tracking.schema import RUN, STEP, VALIDATION
from pinsage_jax.tracking.trackers import Tracker, close_all, open_trackers
from pinsage_jax.training import feed
from pinsage_jax.training.curriculum import Schedule, best_first, highest_first
from pinsage_jax.training.device_clock import DeviceClock
from pinsage_jax.training.device_inputs import table_arguments
from pinsage_jax.training.log import MetricsWindow, StepTrace, dump_batch
from pinsage_jax.training.resume import Saver, open_checkpoints, restore_latest
from pinsage_jax.training.state import (
    TrainState,
    initial_state,
    learning_rate_schedule,
    make_optimizer,
)
from pinsage_jax.training.steps import make_train_step

PROFILE_FOLDER = "profile"

# Called with parameters; returns metrics, of which "score" picks the best checkpoint.
Validate = Callable[[Any], dict[str, float]]

_Step = Callable[[TrainState, Minibatch | feed.PackedBatch], tuple[TrainState, dict]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a training run ended.

    Attributes:
      step: steps taken so far, those of earlier processes included.
      total: steps the run has.
      best: validation metrics of the best checkpoint, with its "step".
      interrupted: whether `should_stop` ended it before the last step.
      seconds: time of this process.
      pairs: training pairs of this process.
      devices: devices of all processes.
      wait_share: share of this process's training time in which the devices waited.
    """

    step: int
    total: int
    best: dict[str, float]
    interrupted: bool
    seconds: float = 0.0
    pairs: int = 0
    devices: int = 0
    wait_share: float | None = None


def train(
    config: Config,
    builder: MinibatchBuilder,
    identity: dict[str, Any],
    validate: Validate | None,
    should_stop: Callable[[], bool] = lambda: False,
    warm_start: Callable[[Any], Any] | None = None,
) -> Outcome:
    """Trains, or continues, the run of config.workdir.

    Args:
      builder: makes the minibatch of any step.
      identity: what identifies the data (counts, id digest, width of the input); a
        checkpoint of other data is refused.
      validate: scores parameters; called once an epoch unless --validate_every says
        otherwise.  None in processes that do not write.
      should_stop: called after every step, and returns the same in every process; True
        ends the run with a checkpoint.
      warm_start: makes the parameters before the first step from random ones.

    Raises:
      UserError: a checkpoint that does not fit, or a loss that is not finite.
    """
    with contextlib.ExitStack() as stack:
        run = Run(config, builder, identity, validate, should_stop, stack, warm_start)
        run.make_up_validation()
        for batch, info in () if run.ended else run.batches:
            run.take_step(batch, info)
            run.log_if_due()
            run.validate_if_due()
            run.save_if_due()
            if run.interrupted or run.ended:
                break
        return run.finish()


class Run:
    """One process's part of a training run: its state, and the hooks of the loop.

    Attributes:
      batches: minibatches of the steps that are left, made ahead by host threads and on
        accelerators placed ahead.
      done: steps taken so far, those of earlier processes included.
      interrupted: whether `should_stop` asked to stop before the last step.
      ended: whether validation ended the run before it.
    """

    def __init__(
        self,
        config: Config,
        builder: MinibatchBuilder,
        identity: dict[str, Any],
        validate: Validate | None,
        should_stop: Callable[[], bool],
        stack: contextlib.ExitStack,
        warm_start: Callable[[Any], Any] | None = None,
    ):
        """Compiles the step and restores the latest checkpoint, if there is one.

        Args:
          stack: closes what is opened here; the other arguments are those of `train`.
        """
        self._start = time.perf_counter()
        self._config, self._builder, self._identity = config, builder, identity
        self._validate, self._should_stop = validate, should_stop
        self._schedule = schedule = Schedule.from_config(config.train, builder.pairs_per_epoch)
        self._workdir = pathlib.Path(config.workdir)
        devices = make_devices(config.train.devices)
        state, self._step_function = _compiled_step(config, builder, schedule, devices)
        checkpoints = open_checkpoints(config, stack)
        restored = restore_latest(checkpoints, config, identity, state)
        self._saver = stack.enter_context(Saver(checkpoints, in_background=feed.places_batches()))
        self.done, self._scored, self._validation_owed, state = restored
        if warm_start is not None and self.done == 0:
            state = state._replace(params=warm_start(state.params))
        self._state = replicate(state, devices)
        self.interrupted = self.ended = False
        self._scores: dict[str, float] = {}
        self._open_logs(stack)
        total = schedule.total
        made = Prefetcher(builder.make, self.done, total, *feed.queue_of(config))
        self.batches = feed.Feed(stack.enter_context(made), (self.done, total), devices, stack)
        self._progress = stack.enter_context(Progress(total - self.done, "step", "training"))

    def _open_logs(self, stack: contextlib.ExitStack) -> None:
        train, builder = self._config.train, self._builder
        trackers: dict[str, Tracker] = {}
        if train.trackers and process_group.is_rank0():
            settings = remembered_values(self._config)
            trackers = open_trackers(train.trackers, self._workdir, settings, self.done)
            stack.callback(close_all, trackers)
        span = train.profiled if process_group.is_rank0() else None
        self._trace = stack.enter_context(StepTrace(self._workdir / PROFILE_FOLDER, span))
        self._log = MetricsLog(self._workdir / METRICS_FILE, self.done, trackers)
        self._window = MetricsWindow(
            train,
            budget_rows=builder.budgets.rows[-1] * builder.spec.num_devices,
            clock=stack.enter_context(DeviceClock()),
            learning_rate_fn=learning_rate_schedule(train, self._schedule.steps_per_epoch),
            dump_batch=self._dump_batch,
        )

    def _dump_batch(self, step: int, about: dict[str, Any]) -> pathlib.Path:
        """Writes the batch of `step` (counted from 1) with its epoch and seed."""
        epoch = self._builder.epoch_of(step - 1) + 1
        about = {"epoch": epoch, "seed": self._config.seed, **about}
        return dump_batch(self._workdir, self._builder, step, about)

    def take_step(self, batch: Minibatch | feed.PackedBatch, info: BatchInfo) -> None:
        """Dispatches one step to the devices; does not wait for them."""
        with self._trace.step(self.done + 1):
            self._state, metrics = self._step_function(self._state, batch)
        self._window.add(metrics, info)
        self.done += 1
        self._trace.ended(self.done, metrics)
        self.interrupted = self.done < self._schedule.total and self._should_stop()
        self._progress.update()

    def log_if_due(self) -> None:
        """Every --log_every steps: a line of metrics.jsonl; waits for the devices.

        Raises:
          UserError: the loss or the gradient of a step is not finite.
        """
        if not (self.interrupted or self._schedule.logs_after(self.done)):
            return
        line = self._window.close(self.done, self.batches.make_seconds)
        self._log.write(STEP, {"epoch": self._builder.epoch_of(self.done - 1) + 1, **line})
        self._progress.note(
            f"loss {line['loss']:.3f}, device waits {line['wait_share']:.0%} "
            f"(would not with --producers={line['producers_needed']}), "
            f"padding {line['padding_share']:.0%}"
        )

    def validate_if_due(self) -> None:
        """Every --validate_every steps: scores the parameters and remembers the best.

        A run that receives a stop signal may have only seconds left, so the run that continues it
        makes the validation.

        Raises:
          UserError: the loss or the gradient of a step is not finite.
        """
        self._scores = {}
        due = self._schedule.validates_after(self.done)
        if not (self.interrupted or due):
            return
        self._window.check(self.done)
        self._validation_owed = self.interrupted and due
        if not self.interrupted:
            self._score_parameters()
            self._end_if_flat()

    def make_up_validation(self) -> None:
        """Before the first step, makes the validation that the interrupted process left out."""
        if self._validation_owed:
            self._validation_owed = False
            self._score_parameters()
            self._end_if_flat()
            self._save()

    def _score_parameters(self) -> None:
        if self._validate is None:
            return
        with self._window.pause():
            scores = self._validate(jax.tree.map(np.asarray, self._state.params))
        if scores:
            found = {**self._scored, self.done: scores}
            kept = best_first(found)[:1] + highest_first(found)[:1]
            self._scored = {step: found[step] for step in kept}
        epoch = self.done / self._schedule.steps_per_epoch
        self._log.write(VALIDATION, {"step": self.done, "epoch": epoch, **scores})
        readable = [
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in scores.items()
            if name != "cold_start_bias"
        ]
        line = f"step {self.done} of {self._schedule.total}"
        if scores:
            line += f": validation {', '.join(readable)}"
        logging.info("%s", line)
        self._scores = scores

    def _end_if_flat(self) -> None:
        """Ends the run if --patience validations have not passed the highest score."""
        patience, schedule = self._config.train.patience, self._schedule
        if not patience or self.done >= schedule.total:
            return

        def is_flat() -> bool:
            highest = highest_first(self._scored)[:1]
            if not highest:
                return False
            return schedule.validations_between(highest[0], self.done) >= patience

        self.ended = process_group.broadcast_from_rank0(is_flat, "end of training")
        if self.ended:
            logging.info("train: %d validations without a higher score end training", patience)

    def save_if_due(self) -> None:
        """Every --checkpoint_every steps, and after a validation: writes a checkpoint.

        Raises:
          UserError: the loss or the gradient of a step is not finite, or the disk is full.
        """
        saving = self.interrupted or self._schedule.saves_after(self.done)
        if not (saving or self._schedule.validates_after(self.done)):
            return
        # A checkpoint with a loss that is not finite would be continued from for ever.
        self._window.check(self.done)
        self._save(saving or bool(self._scores))

    def _save(self, writes: bool = True) -> None:
        """Writes a checkpoint if `writes`, or begins to; every process waits for that."""
        if writes and process_group.is_rank0():
            with self._window.pause():
                self._saver.save(self.done, self._state, self._meta(), self._scores)
        # The other processes wait here rather than in the next step's sums, which time out.
        process_group.all_gather_object(None, "checkpoint", interruptible=False)

    def _meta(self) -> dict[str, Any]:
        """The metadata of a checkpoint, as JSON values."""
        return {
            "queue": self.batches.state(),
            "total": self._schedule.total,
            "devices": self._builder.spec.num_devices,
            "curriculum": {"epoch": self._builder.epoch_of(self.done)},
            "config": plain_values(self._config),
            "data": self._identity,
            "scored": {str(step): scores for step, scores in self._scored.items()},
            "ended": self.ended,
            "validation_owed": self._validation_owed,
        }

    def finish(self) -> Outcome:
        """Waits for the last checkpoint and writes the last line of metrics.jsonl.

        Returns:
          How the run ended.

        Raises:
          UserError: the checkpoint could not be written.
        """
        self._saver.wait()
        # What comes after training reads it, in every process.
        process_group.all_gather_object(None, "last checkpoint", interruptible=False)
        best = best_first(self._scored)
        outcome = Outcome(
            int(self._state.step),
            self._schedule.total,
            {**self._scored[best[0]], "step": best[0]} if best else {},
            self.interrupted,
            seconds=time.perf_counter() - self._start,
            pairs=self.batches.items * self._config.train.batch_size,
            devices=self._builder.spec.num_devices,
            wait_share=self._window.waited / max(self._window.seconds, 1e-9),
        )
        self._log.write(
            RUN,
            {
                "step": outcome.step,
                "session_seconds": outcome.seconds,
                "device_seconds": outcome.seconds * outcome.devices,
                "pairs": outcome.pairs,
                "wait_share": outcome.wait_share,
                "peak_memory_bytes": peak_memory(),
            },
        )
        return outcome


def _compiled_step(
    config: Config,
    builder: MinibatchBuilder,
    schedule: Schedule,
    devices: tuple[jax.Device, ...],
) -> tuple[TrainState, _Step]:
    """The state before the first step, on the host, and the step of `devices`."""
    model, params = init_model(config, builder.input_dim, builder.num_nodes, builder.budgets.rows)
    optimizer = make_optimizer(config.train, schedule.steps_per_epoch)
    constants = table_arguments(builder, config.train, devices)
    pure = feed.unpacking(make_train_step(model, config.train, optimizer))
    step = compile_step(
        pure, len(devices), constants=len(constants), split=builder.spec.table_is_split
    )
    return initial_state(params, optimizer), lambda state, batch: step(state, batch, *constants)
