"""metrics.jsonl: what training measured, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from pinsage_jax.batching.blocks import BatchInfo
from pinsage_jax.config import TrainConfig
from pinsage_jax.errors import UserError
from pinsage_jax.files import atomic_file
from pinsage_jax.training.device_clock import DeviceClock


class MetricsLog:
    """Appends lines to metrics.jsonl; a resume first drops the lines of undone steps."""

    def __init__(self, path: pathlib.Path, resume_step: int):
        """Opens `path` to go on after `resume_step`."""
        self._path = path
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
        with open(self._path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(values) + "\n")


class Window:
    """Sums over the steps since the last line, in wall-clock time less pauses."""

    def __init__(self, train: TrainConfig, budget_rows: int, clock: DeviceClock):
        """Begins the first line.

        Args:
          budget_rows: rows that a step's frontier has on all devices together.
          clock: of the devices; the window tells it of steps and pauses.
        """
        self._train = train
        self._budget_rows = budget_rows
        self._clock = clock
        self._idle_before = 0.0
        self._make_before = 0.0
        self._reset()

    def _reset(self) -> None:
        self._losses: list[tuple[jax.Array, jax.Array]] = []
        self._gradient_norm: jax.Array | float = 0.0
        self._infos: list[BatchInfo] = []
        self._paused = 0.0
        self._start = time.perf_counter()

    def add(self, metrics: dict[str, jax.Array], info: BatchInfo) -> None:
        """Adds one step that was just handed over; does not wait for it."""
        self._clock.handed_over(metrics["loss_sum"])
        self._losses.append((metrics["loss_sum"], metrics["loss_count"]))
        self._gradient_norm = metrics["gradient_norm"]
        self._infos.append(info)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count as training time."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start
        self._clock.resume()

    def check(self, step: int, rate: float) -> float:
        """The mean loss since the last line; waits for the device.

        To be called before a checkpoint too: one that is not finite would be
        continued from for ever.

        Raises:
          UserError: the loss or the last gradient is not finite.
        """
        total = sum(float(part) for part, _ in self._losses)
        count = sum(float(part) for _, part in self._losses)
        loss = total / max(count, 1.0)
        if not (math.isfinite(loss) and math.isfinite(float(self._gradient_norm))):
            raise UserError(
                f"The loss is {loss:.3g} and its gradient {float(self._gradient_norm):.3g} at step "
                f"{step} (learning rate {rate:.3g}); train again in another --workdir with a "
                "lower --learning_rate."
            )
        return loss

    def close(self, step: int, rate: float, make_seconds: float = 0.0) -> dict[str, Any]:
        """The line of all steps since the last one; waits for the device.

        Args:
          make_seconds: seconds that threads spent making them so far, added up.

        Raises:
          UserError: the loss is not finite.
        """
        loss = self.check(step, rate)
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        steps = len(self._infos)
        used = sum(sum(info.used) for info in self._infos)
        idle = self._clock.idle_seconds()
        waited = min(idle - self._idle_before, seconds)
        making = make_seconds - self._make_before
        line = {
            "step": step,
            "loss": loss,
            "learning_rate": rate,
            "hard_per_query": sum(info.hard_per_query for info in self._infos) / steps,
            "pairs_per_second": steps * self._train.batch_size / seconds,
            "wait_share": waited / seconds,
            "make_ms": 1e3 * making / steps,
            # As many make batches as fast as the device takes them, if cores allow.
            "producers_needed": max(math.ceil(making / max(seconds - waited, 1e-3)), 1),
            "padding_share": 1.0 - used / (self._budget_rows * steps),
            "neighbours_left_out": sum(info.left_out for info in self._infos),
            "stripped_share": sum(info.stripped for info in self._infos) / steps,
        }
        self._idle_before = idle
        self._make_before = make_seconds
        self._reset()
        return line
