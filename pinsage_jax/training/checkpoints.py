"""Checkpoints of a training run: whole or absent, verified, and never a surprise.

Orbax's CheckpointManager writes WORKDIR/checkpoints/<step>/ (arrays as OCDBT,
the rest as JSON; no pickles) under a temporary name and renames it.  When that
is done a seal is added, ``<step>/checksums.json``: the CRC-32 of every file, the
shape and dtype of every array, and the metrics.  A checkpoint counts once it has
its seal; older ones are deleted only after that.  A process killed at any moment
therefore leaves the previous checkpoints as they were, and the remains of the
unfinished one are removed when the folder is next opened for writing.

Damage: a missing, truncated or bit-flipped file is found by its checksum.
``latest_step`` and ``best_step`` (so also resuming) pass over a damaged
checkpoint with a warning that names the file and use the next best intact one;
if there are checkpoints but none is intact they raise UserError.  ``restore`` of
a damaged step raises UserError.

A checkpoint holds:

* the state, a pytree of arrays (parameters, optimizer state, step), stored by
  path from host memory, so that it does not depend on the number of devices;
* the meta, a dict of JSON values; ``check`` reads meta["data"] (the identity of
  the data) and meta["config"]["model"], the rest (say "sampler" with the queue's
  position, and "curriculum") is the caller's;
* metrics; "score", higher is better, decides which checkpoint is the best.
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
from pinsage_jax.training.leaf_paths import by_path, nested

_SEAL = compatibility.SEAL
_REPLACED = ".replaced"
_UNFINISHED = ".orbax-checkpoint-tmp"
_DISK_FULL = ("No space left", "Disk quota exceeded", "RESOURCE_EXHAUSTED")


class _QuietOrbax(python_logging.Filter):
    """Drops what Orbax logs below WARNING (some fifty lines a checkpoint).

    And the tracebacks of its threads: ``save`` raises the same error.
    """

    def filter(self, record: python_logging.LogRecord) -> bool:
        if f"{os.sep}orbax{os.sep}" not in record.pathname:
            return True
        raised_anyway = record.exc_info and "_SignalingThread" in str(record.msg)
        # Opening read-only is meant; that it is so is no warning.
        meant = "read_only" in str(record.msg) or "read only" in str(record.msg)
        return record.levelno >= python_logging.WARNING and not raised_anyway and not meant


_QUIET_ORBAX = _QuietOrbax()


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      folder: WORKDIR/checkpoints; made if missing, unless `read_only`.
      keep: the latest `keep` checkpoints stay, and the best one always.
      read_only: only look; for stages that read what training wrote.

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
        """Releases Orbax's resources; may be repeated."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending; intact or not."""
        return [step for step in self._step_folders() if (self._path(step) / _SEAL).exists()]

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes one checkpoint and returns when it is complete.

        A checkpoint of the same step is replaced, and stays until the new one is
        complete.

        Args:
          step: not negative.
          state: pytree whose leaves are arrays or numbers.
          meta: JSON values with string keys (tuples come back as lists).
          metrics: numbers; those that are not finite are stored as null and
            never count as a score.

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
            # TensorStore prints tracebacks of its own when a disk fills up under it.
            files.require_free_space(self.folder, sum(array.nbytes for array in arrays.values()))
            try:
                if path.exists():
                    os.replace(path, f"{path}{_REPLACED}")
                manager = self._open()
                manager.reload()
                manager.save(
                    step,
                    args=ocp.args.Composite(
                        # Orbax cannot store arrays without elements; the seal
                        # has their shapes.
                        state=ocp.args.StandardSave(
                            nested({name: a for name, a in arrays.items() if a.size})
                        ),
                        meta=ocp.args.JsonSave(meta),
                    ),
                    force=True,
                )
                manager.wait_until_finished()
                self._seal(step, arrays, metrics or {})
            except BaseException:
                self._recover()
                raise
            shutil.rmtree(f"{path}{_REPLACED}", ignore_errors=True)
            self._damaged.discard(step)
            self._intact.add(step)
            self._delete_old(step)

    def latest_step(self) -> int | None:
        """The newest intact checkpoint; None if there is none at all.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        return self._first_intact(sorted(self.steps(), reverse=True))

    def best_step(self) -> int | None:
        """The intact checkpoint with the highest score (the earliest of equals).

        Without any scored one it is the latest; None if there is none at all.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        scored = self._best_first()
        unscored = sorted({*self.steps()} - {*scored}, reverse=True)
        return self._first_intact(scored + unscored)

    def metrics(self, step: int) -> dict[str, float | None]:
        """The metrics that were saved with a step."""
        return self._read_seal(step)["metrics"]

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state and the meta of a step, bit for bit as they were saved.

        Args:
          step: of ``steps()``.
          like: a state of the same structure, shapes and dtypes (arrays,
            jax.ShapeDtypeStruct, or numbers); its values are not used.

        Returns:
          (state, meta); the state has NumPy arrays, to be placed on devices by
          ``devices.replicate``.

        Raises:
          UserError: no such checkpoint, a damaged file (named), or a state that
            does not have the shapes of `like`.
        """
        saved, wanted = self._verified_seal(step)["arrays"], by_path(like)
        compatibility.check_same_arrays(self._path(step), saved, wanted)
        found, tree = self.arrays(step), jax.tree.structure(like)
        return jax.tree.unflatten(tree, [found[path] for path in wanted]), self.meta(step)

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of a step by path, whatever their shapes.

        Raises:
          UserError: no such checkpoint, or a damaged file (named).
        """
        arrays = {
            path: np.empty(shape, jax.numpy.dtype(dtype))
            for path, (dtype, shape) in self._verified_seal(step)["arrays"].items()
        }
        manager = self._open()
        manager.reload()
        # NumPy targets: nothing is placed, and no sharding is asked for.
        stored = nested({path: array for path, array in arrays.items() if array.size})
        targets = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
        found = by_path(manager.restore(step, args=targets).state)
        return arrays | {path: np.asarray(array) for path, array in found.items()}

    def meta(self, step: int) -> dict[str, Any]:
        """The meta of a step alone, to check it before the arrays are read.

        Raises:
          UserError: no such checkpoint, or a damaged file (named).
        """
        self._verified_seal(step)
        manager = self._open()
        manager.reload()
        return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def check(
        self,
        meta: Mapping[str, Any],
        data_identity: Mapping[str, Any],
        model_config: Mapping[str, Any],
    ) -> None:
        """Refuses a checkpoint of other data or of another model.

        Args:
          meta: as restored.
          data_identity: what meta["data"] was when saved: "ids" (digest of the
            id map), "num_items", "num_collections", "num_edges", "feature_dim".
          model_config: what meta["config"]["model"] was: flag name to value.

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
                    # Orbax would delete old ones before the new one has its seal.
                    max_to_keep=None,
                    # Each process on its own: the caller says which one writes, and when.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=jax.process_index(), active_processes={jax.process_index()}
                    ),
                ),
                item_names=("state", "meta"),
            )
        return self._manager

    def _recover(self) -> None:
        """Undoes what a killed or failed save left half done."""
        for temporary in self.folder.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(temporary, ignore_errors=True)
        for replaced in self.folder.glob(f"*{_REPLACED}"):
            path = replaced.with_suffix("")
            if (path / _SEAL).exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                shutil.rmtree(path, ignore_errors=True)
                os.replace(replaced, path)
        complete = self.steps()
        for step in self._step_folders():
            if step not in complete:
                logging.info("Removing the unfinished checkpoint %s.", self._path(step))
                shutil.rmtree(self._path(step), ignore_errors=True)

    def _seal(self, step: int, arrays: dict[str, np.ndarray], metrics: Mapping[str, float]) -> None:
        path = self._path(step)
        names = sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file())
        numbers = {name: float(value) for name, value in metrics.items()}
        content = {
            "step": step,
            "metrics": {n: v if math.isfinite(v) else None for n, v in numbers.items()},
            "arrays": {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()},
            "files": files.checksums(path, names),
        }
        files.write_json(path / _SEAL, content | {"fingerprint": files.fingerprint(content)})

    def _read_seal(self, step: int) -> dict[str, Any]:
        path = self._path(step) / _SEAL
        if not path.exists():
            has = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.folder} has no checkpoint of step {step}; it has {has}.")
        seal = files.read_json(path)
        content = dict(seal) if isinstance(seal, dict) else {}
        if content.pop("fingerprint", None) != files.fingerprint(content):
            raise UserError(f"{path} is damaged; delete {path.parent} and run again.")
        return content

    def _verified_seal(self, step: int) -> dict[str, Any]:
        seal = self._read_seal(step)
        files.verify_checksums(self._path(step), seal["files"])
        return seal

    def _best_first(self) -> list[int]:
        """Steps that have a score, from best to worst."""
        scores = {}
        for step in self.steps():
            # One whose seal is damaged has no score to be kept for.
            with contextlib.suppress(UserError):
                scores[step] = self._read_seal(step)["metrics"].get("score")
        scored = [step for step, score in scores.items() if score is not None]
        return sorted(scored, key=lambda step: (-scores[step], step))

    def _first_intact(self, steps: list[int]) -> int | None:
        problems = []
        for step in steps:
            try:
                if step not in self._intact:
                    self._verified_seal(step)
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
        sound = [step for step in complete if step not in self._damaged]
        kept = {saved, *sound[-self._keep :]}
        kept.update([step for step in self._best_first() if step in sound][:1])
        for step in complete:
            # A damaged one ahead of this run stays, to be looked at, until reached.
            if step in kept or (step in self._damaged and step > saved):
                continue
            self._intact.discard(step)
            # Without its seal it does not count, should the deletion be cut short.
            (self._path(step) / _SEAL).unlink()
            shutil.rmtree(self._path(step), ignore_errors=True)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """A full disk is one sentence, also when Orbax wraps it in its own error."""
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
