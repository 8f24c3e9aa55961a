"""Writes the measurements of training: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from pinsage_jax.batching.blocks import BatchInfo
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.files import atomic_file, reported_os_errors
from pinsage_jax.distributed import process_group
from pinsage_jax.training.device_clock import DeviceClock

EVENTS_FOLDER = "tensorboard"


class Events:
    """TensorBoard event files (--tensorboard): the numbers of metrics.jsonl as scalars.

    Lines with a loss are under training/, those with a score under validation/.  After
    a resume TensorBoard drops what undone steps had written.
    """

    def __init__(self, workdir: str | pathlib.Path, resume_step: int):
        """Opens WORKDIR/tensorboard to continue after `resume_step`.

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
            str(pathlib.Path(workdir) / EVENTS_FOLDER), purge_step=resume_step + 1
        )

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds one line of metrics.jsonl."""
        group = "training" if "loss" in values else "validation" if "score" in values else "run"
        for name, value in values.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{name}", value, values["step"])

    def close(self) -> None:
        """Writes what is left and ends the writer's thread."""
        self._writer.close()


class MetricsLog:
    """Appends lines to metrics.jsonl; a resume first drops the lines of undone steps.

    Of several processes only process 0 writes.
    """

    def __init__(self, path: pathlib.Path, resume_step: int, events: Events | None = None):
        """Opens `path` to continue after `resume_step`; `events` gets every line too."""
        self._path = path
        self._events = events
        if not process_group.is_rank0():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= resume_step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                # A killed process can leave its last line half-written.
                continue
        with atomic_file(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Appends one line."""
        if not process_group.is_rank0():
            return
        with reported_os_errors(self._path), open(self._path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(values) + "\n")
        if self._events is not None:
            self._events.write(values)


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
