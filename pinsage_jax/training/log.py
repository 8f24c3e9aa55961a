"""Measures the steps of training between two lines of metrics.jsonl, and records some.

JAX's profiler records those of --profile_steps in WORKDIR/profile, for TensorBoard or XProf.

WORKDIR/not_finite_step_STEP.json holds the node ids of a batch whose loss is not finite, which
are positions in prepared/item_ids.arrow, and what the batch is a function of: the step (counted
from 1), the epoch and the seed.  `MinibatchBuilder.make(STEP - 1)` makes the same batch again,
and the same command, run from the last checkpoint, repeats the same step.

Of several processes, which all reach the same step, process 0 writes the shards of all of
them: any process can make any shard.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from pinsage_jax.batching.blocks import BatchInfo
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed import process_group
from pinsage_jax.training.device_clock import DeviceClock

_IDS = ("query_ids", "target_ids", "negative_ids", "hard_ids")


class MetricsWindow:
    """Sums over the steps since the last line of metrics.jsonl, without the pauses.

    Attributes:
      seconds: wall-clock time of all closed windows.
      waited: part of it in which the devices waited for a batch.
    """

    def __init__(
        self,
        train: TrainConfig,
        budget_rows: int,
        clock: DeviceClock,
        learning_rate_fn: Callable[[int], Any],
        dump_batch: Callable[[int, dict[str, Any]], pathlib.Path],
    ):
        """Begins the first window.

        Args:
          budget_rows: rows of a step's last frontier, summed over all devices.
          clock: of the devices; the window reports steps and pauses to it.
          learning_rate_fn: the learning rate of a step counted from 0.
          dump_batch: writes the batch of a step (counted from 1) with the given facts to a
            file and returns its path.
        """
        self._train = train
        self._budget_rows = budget_rows
        self._clock = clock
        self._learning_rate_fn = learning_rate_fn
        self._dump_batch = dump_batch
        self._idle_before = 0.0
        self._make_before = 0.0
        self.seconds = self.waited = 0.0
        self._reset()

    def _reset(self) -> None:
        self._losses: list[tuple[jax.Array, jax.Array]] = []
        self._gradient_norms: list[jax.Array] = []
        self._infos: list[BatchInfo] = []
        self._paused = 0.0
        self._start = time.perf_counter()

    def add(self, metrics: dict[str, jax.Array], info: BatchInfo) -> None:
        """Adds one step that was just dispatched; does not wait for it."""
        self._clock.step_dispatched(metrics["loss_sum"])
        self._losses.append((metrics["loss_sum"], metrics["loss_count"]))
        self._gradient_norms.append(metrics["gradient_norm"])
        self._infos.append(info)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time of the block from the training time."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start
        self._clock.resume()

    def check(self, step: int) -> float:
        """The mean loss since the last line; waits for the device.

        Call it before a checkpoint too: parameters that are not finite must not be saved,
        since every later run would continue from them.

        Raises:
          UserError: the loss or the gradient of a step is not finite; its batch is in a file.
        """
        sums = [(float(part), float(count)) for part, count in self._losses]
        norms = [float(norm) for norm in self._gradient_norms]
        for back, ((part, count), norm) in enumerate(zip(sums, norms), start=1 - len(sums)):
            if not (math.isfinite(part) and math.isfinite(norm)):
                raise self._not_finite(step + back, part / max(count, 1.0), norm)
        return sum(part for part, _ in sums) / max(sum(count for _, count in sums), 1.0)

    def _not_finite(self, step: int, loss: float, norm: float) -> UserError:
        rate = float(self._learning_rate_fn(step - 1))
        about = {"loss": str(loss), "gradient_norm": str(norm), "learning_rate": rate}
        path = self._dump_batch(step, about)
        return UserError(
            f"The loss is {loss:.3g} and its gradient {norm:.3g} at step {step} (learning rate "
            f"{rate:.3g}; its batch is in {path}); train again in another --workdir with a lower "
            "--learning_rate."
        )

    def close(self, step: int, make_seconds: float = 0.0) -> dict[str, Any]:
        """Ends the window and begins the next: a line of metrics.jsonl; waits for the device.

        Counts are sums over all processes of the run, and times their means.

        Args:
          step: of the last step, counted from 1.
          make_seconds: time that the threads of this process spent making batches since
            the start, added up.

        Raises:
          UserError: see `check`.
        """
        loss = self.check(step)
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        steps = len(self._infos)
        idle = self._clock.idle_seconds()
        local = {
            "used": sum(sum(info.used) for info in self._infos),
            "left_out": sum(info.left_out for info in self._infos),
            "hard": sum(info.hard_per_query for info in self._infos),
            "dropout": sum(info.edge_dropout_share for info in self._infos),
            "waited": min(idle - self._idle_before, seconds),
            "making": make_seconds - self._make_before,
        }
        everywhere = process_group.all_gather_object(local, "training log", interruptible=False)
        processes = len(everywhere)
        total = {name: sum(counts[name] for counts in everywhere) for name in local}
        waited, making = total["waited"] / processes, total["making"] / processes
        line = {
            "step": step,
            "loss": loss,
            "learning_rate": float(self._learning_rate_fn(step - 1)),
            "hard_per_query": total["hard"] / (steps * processes),
            "pairs_per_second": steps * self._train.batch_size / seconds,
            "wait_share": waited / seconds,
            "make_ms": 1e3 * making / steps,
            # So many threads make batches as fast as the device takes them, if there are cores.
            "producers_needed": max(math.ceil(making / max(seconds - waited, 1e-3)), 1),
            "padding_share": 1.0 - total["used"] / (self._budget_rows * steps),
            "neighbors_left_out": total["left_out"],
            "edge_dropout_share": total["dropout"] / (steps * processes),
        }
        self._idle_before = idle
        self._make_before = make_seconds
        self.seconds += seconds
        self.waited += waited
        self._reset()
        return line


class StepTrace:
    """Records a span of steps with JAX's profiler.

    Example:
      with StepTrace(folder, (10, 20)) as trace:
          for step in range(1, 31):
              with trace.step(step):
                  state, metrics = run(state, batch)
              trace.ended(step, metrics)
    """

    def __init__(self, folder: pathlib.Path, span: tuple[int, int] | None):
        """Takes the first and the last step, counted from 1; None: nothing is recorded."""
        self._folder, self._span = folder, span
        self._running = False

    def __enter__(self) -> StepTrace:
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """Surrounds a step; the first one of the span that this process takes begins the trace."""
        if self._span is None or not self._span[0] <= step <= self._span[1]:
            return contextlib.nullcontext()
        if not self._running:
            logging.info("recording steps %d to %d in %s", step, self._span[1], self._folder)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def ended(self, step: int, results: Any) -> None:
        """Call it after a step with its results; the last one of the span ends the trace."""
        if self._running and self._span is not None and step >= self._span[1]:
            # The device may not have begun with it.
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def dump_batch(
    workdir: str | pathlib.Path, builder: MinibatchBuilder, step: int, about: dict[str, Any]
) -> pathlib.Path:
    """Writes the ids of the batch of `step` (counted from 1) and `about`; returns the path.

    Every process must call it; the file is complete when it returns.  The file holds B
    query ids, B target ids, B lists of H hard negatives (-1 where there is none), or one for
    every device where queries share them, and the R random negatives, once for every device.
    """
    path = pathlib.Path(workdir) / f"not_finite_step_{step}.json"
    if process_group.is_rank0():
        _write_batch(path, builder, step, about)
    # A process that ended now would end process 0 too, before it has written the file.
    process_group.all_gather_object(None, "batch that is not finite", interruptible=False)
    return path


def _write_batch(
    path: pathlib.Path, builder: MinibatchBuilder, step: int, about: dict[str, Any]
) -> None:
    batch, _ = builder.make(step - 1, range(builder.spec.num_devices))
    ids = {}
    for name in _IDS:
        array = np.asarray(getattr(batch, name))
        # The first axis is that of the devices.
        ids[name] = array.reshape(-1, *array.shape[2:]).tolist()
    files.write_json(path, {"step": step, **about, **ids})
