"""Training for hours: resident memory, compilations and the CPU time of a step by minute.

The embedded example (experiments/pinterest_like.flags) with a queue of four batches, as
--mode=train takes it, with a validation and a checkpoint every 500 steps.  The time of a
step is in CPU seconds of the process, those that were followed by a validation left out.
On a shared machine even CPU seconds grow with what others do to caches and cores, so some
fixed work is timed after every step in the same way, and `step_over_fixed_work` is the
ratio of the two.

  python -m benchmarks.run long_run --minutes=120

Where the machine is crowded a step takes longer even in CPU seconds, as others empty its
caches: `cpu_ms_at_equal_crowding` is the slope in a fit that also has the logarithm of a step's
wall-clock time.  The other slopes are those of least squares over the samples after the first
tenth, in which the curriculum of hard negatives rises and everything is compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from scipy import stats

import pinsage_jax
from benchmarks import processes
from pinsage_jax import cli
from pinsage_jax.config.settings import Config
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core import logging_setup
from pinsage_jax.stages.prepare import prepare

_FLAGFILE = pathlib.Path(__file__).resolve().parent.parent / "experiments" / "pinterest_like.flags"
_VALIDATE_EVERY = 500
_COMPILED = "/jax/core/compile/backend_compile_duration"
_SETTLING = 0.1
_MEASURES = {
    "rss_mib": "MiB",
    "anon_mib": "MiB",
    "cpu_ms_per_step": "ms",
    "fixed_work_ms": "ms",
    "step_over_fixed_work": "",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to train")
    parser.add_argument("--sample_seconds", type=float, default=60.0, help="between two samples")


def settings(workdir: pathlib.Path, options: argparse.Namespace) -> Config:
    """The example's settings, for as many epochs as there is time."""
    values = flags.FlagValues()
    cli.define_flags(values)
    arguments = [
        f"--flagfile={_FLAGFILE}",
        f"--workdir={workdir}",
        f"--threads={options.threads}",
        "--epochs=1000000",
        # With a learning rate that decays to zero the parameters would no longer change.
        "--decay=1",
        "--learning_rate=0.001",
        f"--validate_every={10 if options.quick else _VALIDATE_EVERY}",
    ]
    if options.quick:
        arguments += ["--synthetic_size=600x5000"]
        arguments += ["--batch_size=64", "--hard_walks=50", "--embed_walks=auto", "--hidden_dim=16"]
    cli.parse_flags(values, ["long_run", *arguments])
    config = cli.config_from_flags(values)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, prefetch=4))


class Compilations:
    """Records the name and the step of everything that XLA compiles."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []
        self.step = 1

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._record)

    def _record(self, event: str, seconds: float, **about: Any) -> None:
        if event == _COMPILED:
            self.found.append((self.step, str(about.get("fun_name", "?"))))

    def count(self, name: str, after: int) -> int:
        """Number of compilations after a step of functions whose name contains `name`."""
        return sum(step > after and name in found for step, found in self.found)


class FixedWork:
    """Fixed random reads and arithmetic, executed by the calling thread alone."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._table = rng.standard_normal((1 << 18, 64), np.float32)
        self._rows = rng.integers(0, len(self._table), 1 << 14)

    def __call__(self) -> float:
        """Executes the work and returns its CPU seconds."""
        begun = time.thread_time()
        np.tanh(self._table[self._rows]).sum()
        return time.thread_time() - begun


class Recorder:
    """Tells the training loop after every step whether to stop, and records samples."""

    def __init__(
        self, seconds: float, between: float, train: TrainConfig, compilations: Compilations
    ):
        self.samples: list[dict[str, Any]] = []
        self._compilations = compilations
        self._validate_every, self._log_every = train.validate_every, train.log_every
        self._seconds, self._between = seconds, between
        self._start = self._last_sample = self._wall = self._cpu = 0.0
        self._fixed_work = FixedWork()
        self._done = 0
        self._reset()

    def _reset(self) -> None:
        self._steps, self._spent_wall, self._spent_cpu, self._fixed = 0, 0.0, 0.0, 0.0

    def __call__(self) -> bool:
        """Records a step; True when the time is over."""
        wall, cpu = time.perf_counter(), time.process_time()
        if not self._done:
            # The time before the first step is the start of the program.
            self._start = self._last_sample = wall
        elif self._done % self._validate_every:
            self._steps += 1
            self._spent_wall += wall - self._wall
            self._spent_cpu += cpu - self._cpu
            fixed = self._fixed_work()
            self._fixed += fixed
            # Other threads continue with the step; only this thread's time is subtracted.
            cpu += fixed
        self._wall, self._cpu = wall, cpu
        self._done += 1
        self._compilations.step = self._done + 1
        # The loop waits for the device when it logs, so all steps but this one are finished.
        settled = self._done % self._log_every == 1 % self._log_every
        if settled and wall - self._last_sample >= self._between and self._steps:
            self._sample(wall)
        return wall - self._start >= self._seconds

    def _sample(self, wall: float) -> None:
        kib = processes.status_kib("self", ("VmRSS", "RssAnon", "Threads"))
        self.samples.append(
            {
                "minutes": (wall - self._start) / 60,
                "step": self._done,
                "rss_mib": kib["VmRSS"] / 1024,
                "anon_mib": kib["RssAnon"] / 1024,
                "cpu_ms_per_step": 1e3 * self._spent_cpu / self._steps,
                "wall_ms_per_step": 1e3 * self._spent_wall / self._steps,
                "fixed_work_ms": 1e3 * self._fixed / self._steps,
                "step_over_fixed_work": self._spent_cpu / self._fixed,
                "threads": kib["Threads"],
                "compiled": len(self._compilations.found),
            }
        )
        print(json.dumps(self.samples[-1]), file=sys.stderr, flush=True)
        self._last_sample = wall
        self._reset()


def slopes(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each measure: its mean, its slope per hour and the slope's standard error."""
    settled = samples[int(_SETTLING * len(samples)) :]
    if len(settled) < 3:
        return [{"note": f"{len(samples)} samples are too few for slopes."}]
    hours = np.array([sample["minutes"] for sample in settled]) / 60
    rows = []
    for name, unit in _MEASURES.items():
        values = np.array([sample[name] for sample in settled], float)
        fit = stats.linregress(hours, values)
        rows.append(
            {
                "measure": name,
                "unit": unit,
                "samples": len(settled),
                "mean": float(values.mean()),
                "lowest": float(values.min()),
                "highest": float(values.max()),
                "slope_an_hour": float(fit.slope),
                "standard_error": float(fit.stderr),
                "share_of_mean_an_hour": float(fit.slope / values.mean()),
            }
        )
    rows.append(_at_equal_crowding(settled, hours))
    return rows


def _at_equal_crowding(settled: list[dict[str, Any]], hours: np.ndarray) -> dict[str, Any]:
    """The slope of CPU time in a fit on hours and the logarithm of wall-clock time."""
    values = np.array([sample["cpu_ms_per_step"] for sample in settled])
    crowding = np.log([sample["wall_ms_per_step"] for sample in settled])
    columns = np.stack([np.ones_like(hours), hours, crowding], axis=1)
    found = np.linalg.lstsq(columns, values)[0]
    freedom = max(len(values) - len(found), 1)
    spread = np.square(values - columns @ found).sum() / freedom
    error = np.sqrt(spread * np.linalg.pinv(columns.T @ columns)[1, 1])
    return {
        "cpu_ms_at_equal_crowding": float(found[1]),
        "standard_error": float(error),
        "ms_per_log_wall": float(found[2]),
    }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows by minute, rows of slopes, and the names compiled after the first step."""
    folder = pathlib.Path(options.out).resolve() / "long_run"
    shutil.rmtree(folder, ignore_errors=True)
    config = settings(folder, options)
    logging_setup.set_up("warning")
    prepare(config)
    seconds, between = 60 * options.minutes, options.sample_seconds
    if options.quick:
        seconds, between = 5.0, 0.5
    before = threading.active_count()
    with Compilations() as compilations:
        record = Recorder(seconds, between, config.train, compilations)
        outcome = pinsage_jax.train(config, record)
    shutil.rmtree(folder)
    later = sorted({name for step, name in compilations.found if step > 1})
    settled = sum(step > 2 * config.train.validate_every for step, _ in compilations.found)
    return [
        *record.samples,
        *slopes(record.samples),
        {
            "steps": outcome.step,
            "train_step_compiled": compilations.count("train_step", after=0),
            "train_step_compiled_after_the_first": compilations.count("train_step", after=1),
            "all_compiled_after_the_second_validation": settled,
            "threads_left": threading.active_count() - before,
        },
        {"note": f"Compiled after the first step: {', '.join(later) or 'nothing'}."},
    ]
