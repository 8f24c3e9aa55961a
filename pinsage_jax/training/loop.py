"""The training loop: prepared data in, checkpoints and metrics.jsonl out.

One pass is `for step, batch in queue: state, metrics = step(state, batch)`; what
happens around it (logging, validation, checkpoints) are functions called at steps
that a resumed run reaches too.  The loop blocks on the device only when it logs.

Of several processes each runs this loop on its part of every batch; process 0
alone validates and writes, and the others wait for it.

Validation embeds the whole catalog, which is the business of a later stage, so
the caller passes a function that does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.batching.prefetch import Prefetcher
from pinsage_jax.config.settings import Config
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core.costs import peak_memory
from pinsage_jax.core.progress import Progress
from pinsage_jax.distributed import process_group
from pinsage_jax.distributed.devices import compile_step, make_devices, replicate
from pinsage_jax.model.init import init_model
from pinsage_jax.sampling.pairs import PairSource
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.compatibility import check_resume_config, check_same_devices
from pinsage_jax.training.curriculum import total_steps
from pinsage_jax.training.device_clock import DeviceClock
from pinsage_jax.training.divergence import keep_batch
from pinsage_jax.training.events import Events
from pinsage_jax.training.log import MetricsLog, MetricsWindow
from pinsage_jax.training.state import initial_state, learning_rate, make_optimizer
from pinsage_jax.training.steps import make_train_step

# Called with parameters; returns metrics, of which "score" picks the best checkpoint.
Validate = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a training run ended.

    Attributes:
      step: steps taken over all sessions.
      total: steps the run has.
      best: validation metrics of the best checkpoint, with its "step".
      interrupted: whether `should_stop` ended it before the last step.
      seconds, pairs: time and training pairs of this session.
      devices: devices they were computed on.
      wait_share: share of this session's time of training in which they waited.
    """

    step: int
    total: int
    best: dict[str, float]
    interrupted: bool
    seconds: float = 0.0
    pairs: int = 0
    devices: int = 0
    wait_share: float | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """At which steps something happens; the same after a resume.

    Attributes:
      steps_per_epoch: may be fractional, batches run across the end of an epoch.
      total: steps of the run.
      validate_every, save_every, log_every: in steps; all happen at the last too.
    """

    steps_per_epoch: float
    total: int
    validate_every: int
    save_every: int
    log_every: int

    @classmethod
    def of(cls, train: TrainConfig, pairs_per_epoch: int) -> Schedule:
        """The schedule of a run over `pairs_per_epoch` pairs an epoch."""
        epoch = pairs_per_epoch / train.batch_size
        total = total_steps(train, pairs_per_epoch)
        validate = train.validate_every or max(round(epoch), 1)
        return cls(epoch, total, validate, train.checkpoint_every or validate, train.log_every)


def is_finished(config: Config, identity: dict[str, Any]) -> bool:
    """Whether the workdir holds the last step of just this run, of just this data.

    Raises:
      UserError: it holds a run of other data or settings.
    """
    folder = pathlib.Path(config.workdir) / "checkpoints"
    if not folder.exists():
        return False
    with Checkpoints(folder, read_only=True) as checkpoints:
        if (latest := checkpoints.latest_step()) is None:
            return False
        meta = checkpoints.meta(latest)
        checkpoints.check(meta, identity, dataclasses.asdict(config.model))
    check_resume_config(config, meta)
    lengths = ("epochs", "max_steps")
    same = all(meta["config"]["train"][name] == getattr(config.train, name) for name in lengths)
    return same and meta["queue"]["next_index"] >= meta["total"]


def train(
    config: Config,
    builder: MinibatchBuilder,
    pairs: PairSource,
    inputs: NodeInputs,
    identity: dict[str, Any],
    validate: Validate | None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Trains, or continues, the run of config.workdir.

    Args:
      builder: makes the minibatch of any step.
      identity: what the data is (counts, id digest, width of the input); a
        checkpoint of other data is refused.
      validate: scores parameters; called once an epoch unless told otherwise.  None in
        processes that do not write.
      should_stop: asked after every step, and answers the same in every process; True
        writes a checkpoint and returns.

    Raises:
      UserError: a checkpoint that does not fit, or a loss that is not finite.
    """
    start = time.perf_counter()
    devices = make_devices(config.train.devices)
    schedule = Schedule.of(config.train, pairs.per_epoch)
    model, params = init_model(config, inputs.dim, builder.num_nodes, builder.budgets.rows)
    optimizer = make_optimizer(config.train, schedule.steps_per_epoch)
    state = initial_state(params, optimizer)
    workdir = pathlib.Path(config.workdir)
    stack = contextlib.ExitStack()
    # The writer first: it removes what a killed run left half-written.
    checkpoints = process_group.rank0_first(
        lambda: stack.enter_context(
            Checkpoints(
                workdir / "checkpoints", config.train.keep, read_only=not process_group.is_rank0()
            )
        )
    )
    first, best = 0, {}
    if (latest := process_group.broadcast_from_rank0(checkpoints.latest_step)) is not None:
        meta = checkpoints.meta(latest)
        checkpoints.check(meta, identity, dataclasses.asdict(config.model))
        check_resume_config(config, meta)
        check_same_devices(
            checkpoints.folder, meta, dataclasses.asdict(config.train), builder.spec.num_devices
        )
        state, _ = checkpoints.restore(latest, state)
        first, best = meta["queue"]["next_index"], meta["best"]
        logging.info("continuing from the checkpoint of step %d", first)
    events = None
    if config.train.tensorboard and process_group.is_rank0():
        events = Events(workdir, first)
        stack.callback(events.close)
    log = MetricsLog(workdir / "metrics.jsonl", first, events)
    table = builder.table()
    constants = () if table is None else (replicate(table, devices),)
    step_function = compile_step(
        make_train_step(model, config.train, optimizer), len(devices), constants=len(constants)
    )
    state = replicate(state, devices)
    clock = stack.enter_context(DeviceClock())

    def kept(step: int, about: dict[str, Any]) -> pathlib.Path:
        epoch = pairs.epoch_of((step - 1) * config.train.batch_size) + 1
        return keep_batch(workdir, builder, step, {"epoch": epoch, "seed": config.seed, **about})

    rate = learning_rate(config.train, schedule.steps_per_epoch)
    budget_rows = builder.budgets.rows[-1] * builder.spec.num_devices
    window = MetricsWindow(config.train, budget_rows, clock, rate, kept)
    interrupted = False

    def due(step: int, every: int) -> bool:
        return step % every == 0 or step == schedule.total or interrupted

    ahead, threads = config.train.prefetch, config.train.producers
    queue = Prefetcher(builder.make, first, schedule.total, ahead, threads)
    progress = Progress(schedule.total - first, "step", "training")
    with stack, queue, progress:
        for done, (batch, info) in enumerate(queue, start=first + 1):
            state, metrics = step_function(state, batch, *constants)
            window.add(metrics, info)
            interrupted = done < schedule.total and should_stop()
            if due(done, schedule.log_every):
                # The only place where the host waits for the device.
                line = window.close(done, queue.make_seconds)
                epoch = pairs.epoch_of((done - 1) * config.train.batch_size) + 1
                log.write({"epoch": epoch, **line})
                progress.note(
                    f"loss {line['loss']:.3f}, device waits {line['wait_share']:.0%} "
                    f"(would not with --producers={line['producers_needed']}), "
                    f"padding {line['padding_share']:.0%}"
                )
            if due(done, schedule.validate_every) or due(done, schedule.save_every):
                window.check(done)
            scores: dict[str, float] = {}
            if due(done, schedule.validate_every) and not interrupted and validate:
                with window.pause():
                    scores = validate(jax.tree.map(np.asarray, state.params))
                if scores and scores["score"] > best.get("score", -math.inf):
                    best = {**scores, "step": done}
                log.write({"step": done, "epoch": done / schedule.steps_per_epoch, **scores})
                readable = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
                logging.info("step %d of %d: %s", done, schedule.total, readable)
            if (due(done, schedule.save_every) or scores) and process_group.is_rank0():
                meta = {
                    "queue": queue.state(),
                    "total": schedule.total,
                    "devices": builder.spec.num_devices,
                    "curriculum": {"epoch": pairs.epoch_of(done * config.train.batch_size)},
                    "config": dataclasses.asdict(config),
                    "data": identity,
                    "best": best,
                }
                with window.pause():
                    checkpoints.save(done, jax.tree.map(np.asarray, state), meta, scores)
            if due(done, schedule.validate_every) or due(done, schedule.save_every):
                # Not in the next step's sums: those do not wait for ever.
                process_group.all_gather_object(None)
            progress.update()
            if interrupted:
                break
        outcome = Outcome(
            int(state.step),
            schedule.total,
            best,
            interrupted,
            seconds=time.perf_counter() - start,
            pairs=queue.items * config.train.batch_size,
            devices=builder.spec.num_devices,
            wait_share=window.waited / max(window.seconds, 1e-9),
        )
        log.write(_summary(outcome))
    return outcome


def _summary(outcome: Outcome) -> dict[str, Any]:
    """The last line of a session in metrics.jsonl: what it cost."""
    return {
        "step": outcome.step,
        "session_seconds": outcome.seconds,
        "device_seconds": outcome.seconds * outcome.devices,
        "pairs": outcome.pairs,
        "wait_share": outcome.wait_share,
        "peak_memory_bytes": peak_memory(),
    }
