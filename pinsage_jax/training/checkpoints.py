"""Checkpoints of a training run, written atomically and verified by checksums.

Orbax's CheckpointManager writes WORKDIR/checkpoints/<step>/ (arrays as OCDBT, the rest as
JSON; no pickles) under a temporary name and renames it.  Then ``<step>/checksums.json``
is written: the CRC-32 of every file, the shape and dtype of every array, and the metrics.  A
checkpoint without it is incomplete and not used, and older ones are deleted only after it was
written.  So a process that is killed leaves the previous checkpoints unchanged, and the next one
that opens the folder for writing removes the incomplete one.

A missing, truncated or corrupted file is found by its checksum.  ``latest_step`` and
``best_step``, and so resuming, skip a damaged checkpoint with a warning that names the file.  If
all are damaged they raise UserError, as ``restore`` of a damaged step does.

A checkpoint holds:

* the state, a pytree of arrays (parameters, optimizer state, step), stored by path from host
  memory, so that it does not depend on the number of devices;
* the metadata (`meta`), a dict of JSON values.  ``check`` reads meta["data"], which identifies
  the data, and meta["config"]["model"]; the other entries belong to the caller;
* metrics, among them "score": the checkpoint with the highest score is the best one.
"""

from __future__ import annotations

import contextlib
import json
import logging as python_logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.training import compatibility
from pinsage_jax.training.curriculum import best_first, highest_first
from pinsage_jax.training.leaf_paths import by_path, nested

_REPLACED = ".replaced"
_CHECKSUMS = compatibility.CHECKSUM_FILE
_UNFINISHED = ".orbax-checkpoint-tmp"
_DISK_FULL = ("No space left", "Disk quota exceeded", "RESOURCE_EXHAUSTED")


class _QuietOrbax(python_logging.Filter):
    """Drops Orbax's messages below WARNING, about fifty for each checkpoint.

    It also drops the tracebacks of Orbax's threads, because ``save`` raises the same error.
    """

    def filter(self, record: python_logging.LogRecord) -> bool:
        if f"{os.sep}orbax{os.sep}" not in record.pathname:
            return True
        is_raised_by_save = record.exc_info and "_SignalingThread" in str(record.msg)
        # Opening the folder read-only is intended, so it needs no warning.
        is_read_only_notice = "read_only" in str(record.msg) or "read only" in str(record.msg)
        return (
            record.levelno >= python_logging.WARNING
            and not is_raised_by_save
            and not is_read_only_notice
        )


_QUIET_ORBAX = _QuietOrbax()


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      folder: WORKDIR/checkpoints; created if it is missing, unless `read_only`.
      keep: number of latest checkpoints that are not deleted, beside the best one.
      read_only: whether to change nothing; for stages after training.

    Raises:
      ValueError: `keep` is below 1.
      UserError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2, *, read_only: bool = False):
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        self.folder = pathlib.Path(folder).absolute()
        self._keep = keep
        self._read_only = read_only
        self._manager: ocp.CheckpointManager | None = None
        self._intact: set[int] = set()
        self._damaged: set[int] = set()
        # A logger holds one instance of a filter once, however often it is added.
        logging.get_absl_logger().addFilter(_QUIET_ORBAX)
        if not read_only:
            with self._reported():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._recover()
                self._open()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Releases Orbax's resources; may be called again."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending; it may be damaged."""
        return [step for step in self._step_folders() if (self._path(step) / _CHECKSUMS).exists()]

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes a checkpoint and returns when it is complete.

        It replaces a checkpoint of the same step, which is deleted when the new one is complete.

        Args:
          step: number of steps taken, at least 0.
          state: pytree whose leaves are arrays or numbers.
          meta: JSON values with string keys (tuples come back as lists).
          metrics: numbers; those that are not finite are stored as null and are no score.

        Raises:
          ValueError, TypeError: `meta` is not JSON; `state` has no array.
          UserError: the disk is full or the folder cannot be written.
        """
        if self._read_only:
            raise ValueError("these checkpoints were opened read-only")
        meta = json.loads(json.dumps(meta, allow_nan=False))
        arrays = {path: np.asarray(leaf) for path, leaf in by_path(jax.device_get(state)).items()}
        path = self._path(step)
        with self._reported():
            # TensorStore prints a traceback when the disk is full, so space is checked before.
            files.require_free_space(self.folder, sum(array.nbytes for array in arrays.values()))
            try:
                if path.exists():
                    os.replace(path, f"{path}{_REPLACED}")
                manager = self._open()
                manager.reload()
                manager.save(
                    step,
                    args=ocp.args.Composite(
                        # Orbax cannot store arrays without elements; the checksum file
                        # has their shapes.
                        state=ocp.args.StandardSave(
                            nested({name: a for name, a in arrays.items() if a.size})
                        ),
                        meta=ocp.args.JsonSave(meta),
                    ),
                    force=True,
                )
                manager.wait_until_finished()
                self._write_checksums(step, arrays, metrics or {})
            except BaseException:
                self._recover()
                raise
            shutil.rmtree(f"{path}{_REPLACED}", ignore_errors=True)
            self._damaged.discard(step)
            self._intact.add(step)
            self._delete_old(step)

    def latest_step(self) -> int | None:
        """The step of the newest intact checkpoint; None if there are no checkpoints.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        return self._first_intact(sorted(self.steps(), reverse=True))

    def best_step(self) -> int | None:
        """The step of the intact checkpoint to be used, by its score (curriculum.best_first).

        It is the latest checkpoint if none has a score, and None if there are no checkpoints.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        scored = best_first(self._metrics())
        unscored = sorted({*self.steps()} - {*scored}, reverse=True)
        return self._first_intact(scored + unscored)

    def metrics(self, step: int) -> dict[str, float | None]:
        """The metrics of a step."""
        return self._read_checksums(step)["metrics"]

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the state and the metadata of a step, bit for bit as they were saved.

        Args:
          step: one of ``steps()``.
          like: a state of the same structure, shapes and dtypes (arrays,
            jax.ShapeDtypeStruct, or numbers); its values are not used.

        Returns:
          (state, meta); the arrays are NumPy arrays, which ``devices.replicate`` places on
          devices.

        Raises:
          UserError: there is no such checkpoint, a file is damaged, or the arrays do not have
            the shapes of `like`.
        """
        saved, wanted = self._verified_checksums(step)["arrays"], by_path(like)
        compatibility.check_same_arrays(self._path(step), saved, wanted)
        found, tree = self.arrays(step), jax.tree.structure(like)
        return jax.tree.unflatten(tree, [found[path] for path in wanted]), self.meta(step)

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Reads the arrays of a step by path, without a check of their shapes.

        Raises:
          UserError: there is no such checkpoint, or a file is damaged.
        """
        arrays = {
            path: np.empty(shape, jax.numpy.dtype(dtype))
            for path, (dtype, shape) in self._verified_checksums(step)["arrays"].items()
        }
        manager = self._open()
        manager.reload()
        # With NumPy targets Orbax places nothing on devices and needs no sharding.
        stored = nested({path: array for path, array in arrays.items() if array.size})
        targets = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
        found = by_path(manager.restore(step, args=targets).state)
        return arrays | {path: np.asarray(array) for path, array in found.items()}

    def meta(self, step: int) -> dict[str, Any]:
        """Reads only the metadata of a step, to check it before the arrays are read.

        Raises:
          UserError: there is no such checkpoint, or a file is damaged.
        """
        self._verified_checksums(step)
        manager = self._open()
        manager.reload()
        return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def check(
        self,
        meta: Mapping[str, Any],
        data_identity: Mapping[str, Any],
        model_config: Mapping[str, Any],
    ) -> None:
        """Raises UserError for a checkpoint of other data or another model.

        Args:
          meta: the metadata of a checkpoint.
          data_identity: the values that meta["data"] must have: "ids" (digest of the ids),
            "num_items", "num_collections", "num_edges", "feature_dim".
          model_config: the values that meta["config"]["model"] must have, by flag.

        Raises:
          UserError: one sentence that says how they differ.
        """
        compatibility.check_same_training(self.folder, meta, data_identity, model_config)

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / str(step)

    def _step_folders(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    read_only=self._read_only,
                    enable_async_checkpointing=False,
                    # Orbax would delete old checkpoints before the new one has its checksums.
                    max_to_keep=None,
                    # Orbax must not synchronize processes: the caller decides which one writes.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=jax.process_index(), active_processes={jax.process_index()}
                    ),
                ),
                item_names=("state", "meta"),
            )
        return self._manager

    def _recover(self) -> None:
        """Removes what an interrupted save left, and restores the checkpoint that it replaced."""
        for temporary in self.folder.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(temporary, ignore_errors=True)
        for replaced in self.folder.glob(f"*{_REPLACED}"):
            path = replaced.with_suffix("")
            if (path / _CHECKSUMS).exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                shutil.rmtree(path, ignore_errors=True)
                os.replace(replaced, path)
        complete = self.steps()
        for step in self._step_folders():
            if step not in complete:
                logging.info("Removing the unfinished checkpoint %s.", self._path(step))
                shutil.rmtree(self._path(step), ignore_errors=True)

    def _write_checksums(
        self, step: int, arrays: dict[str, np.ndarray], metrics: Mapping[str, float]
    ) -> None:
        path = self._path(step)
        names = sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file())
        numbers = {name: float(value) for name, value in metrics.items()}
        content = {
            "step": step,
            "metrics": {n: v if math.isfinite(v) else None for n, v in numbers.items()},
            "arrays": {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()},
            "files": files.checksums(path, names),
        }
        files.write_json(path / _CHECKSUMS, content | {"fingerprint": files.fingerprint(content)})

    def _read_checksums(self, step: int) -> dict[str, Any]:
        path = self._path(step) / _CHECKSUMS
        if not path.exists():
            has = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.folder} has no checkpoint of step {step}; it has {has}.")
        saved = files.read_json(path)
        content = dict(saved) if isinstance(saved, dict) else {}
        if content.pop("fingerprint", None) != files.fingerprint(content):
            raise UserError(f"{path} is damaged; delete {path.parent} and run again.")
        return content

    def _verified_checksums(self, step: int) -> dict[str, Any]:
        saved = self._read_checksums(step)
        files.verify_checksums(self._path(step), saved["files"])
        return saved

    def _metrics(self) -> dict[int, dict[str, float | None]]:
        """The metrics of each step; a checkpoint with a damaged checksum file has none."""
        found = {}
        for step in self.steps():
            with contextlib.suppress(UserError):
                found[step] = self.metrics(step)
        return found

    def _first_intact(self, steps: list[int]) -> int | None:
        problems = []
        for step in steps:
            try:
                if step not in self._intact:
                    self._verified_checksums(step)
            except UserError as error:
                self._damaged.add(step)
                problems.append(str(error).split(";")[0])
                continue
            self._intact.add(step)
            for problem in problems:
                logging.warning("%s; using the checkpoint of step %d instead.", problem, step)
            return step
        if problems:
            raise UserError(
                f"No checkpoint in {self.folder} is intact ({problems[0]}); "
                "delete that folder to train anew."
            )
        return None

    def _delete_old(self, saved: int) -> None:
        complete = self.steps()
        undamaged = [step for step in complete if step not in self._damaged]
        kept = {saved, *undamaged[-self._keep :]}
        scored = {s: found for s, found in self._metrics().items() if s in undamaged}
        kept.update(best_first(scored)[:1] + highest_first(scored)[:1])
        for step in complete:
            # A damaged checkpoint of a later step stays for inspection until this run reaches it.
            if step in kept or (step in self._damaged and step > saved):
                continue
            self._intact.discard(step)
            # Without its checksum file it is ignored if the deletion is interrupted.
            (self._path(step) / _CHECKSUMS).unlink()
            shutil.rmtree(self._path(step), ignore_errors=True)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns an error about a full disk into a UserError, also if Orbax has wrapped it."""
        with files.reported_os_errors(self.folder):
            try:
                yield
            except OSError:
                raise
            except Exception as error:
                if any(mark in str(error) for mark in _DISK_FULL):
                    raise UserError(
                        f"No space left while writing {self.folder}; free some disk and run again."
                    ) from error
                raise
