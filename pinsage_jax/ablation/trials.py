"""One training of one variant with one seed: where it is kept, and its ranks.

WORKDIR/ablate/<variant>/ has the seed of the run, WORKDIR/ablate/seed3/<variant>/ seed 3.  A
trial that is finished there for the same settings is not trained again, and one that was
interrupted goes on.

  N items, P pairs, Z embedding dimensions
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.ablation.variants import Overrides, with_overrides
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.validation_split import ValidationSplit
from pinsage_jax.retrieval.topk import target_ranks
from pinsage_jax.training.compatibility import RESUMABLE_OVERRIDES

FOLDER = "ablate"
# The pseudo-variant whose network is not trained.
UNTRAINED = "untrained"
_VARIANT_FILE = "variant.json"
_RANKS_FILE = "ranks.npy"

# Trains by the settings and embeds over the graph: returns the embeddings float32 [N, Z] and
# entries for the variant's file.
Embeddings = Callable[[Config, Graph], tuple[np.ndarray, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs on which variants are scored, and the graph over which they are embedded."""

    source: str  # validation or eval
    graph: Graph
    pairs: np.ndarray  # int32 [P, 2], distinct
    kinds: np.ndarray  # str [P]

    @classmethod
    def of(cls, config: Config, prepared: Prepared, split: ValidationSplit) -> Pairs:
        """The pairs that `ablate_pairs` names.

        Raises:
          UserError: there are no such pairs.
        """
        source = config.ablate.ablate_pairs
        if source == "eval":
            graph, pairs, kinds = prepared.graph, prepared.eval_pairs, prepared.eval_kinds
            remedy = "ablate_pairs='eval' needs --eval_pairs"
        else:
            graph, pairs, kinds = split.train_graph, split.pairs, split.kinds
            remedy = (
                "--validation_collections must be above 0, with collections of two items or more"
            )
        if len(pairs) == 0:
            raise UserError(f"There is no pair on which to compare variants; {remedy}.")
        distinct, first = np.unique(pairs, axis=0, return_index=True)
        return cls(source, graph, distinct, np.asarray(kinds)[first])


@dataclasses.dataclass(frozen=True)
class Trial:
    """A variant with a seed.

    Attributes:
      config: its settings, whose workdir is the trial's folder.
      fingerprint: hash of all that determines its ranks.
    """

    name: str
    config: Config
    fingerprint: str

    @classmethod
    def of(
        cls,
        name: str,
        overrides: Overrides,
        base: Config,
        seed: int,
        prepared: Prepared,
        pairs: Pairs,
    ) -> Trial:
        """The trial of a variant.

        Args:
          overrides: its settings that differ from `base`, by "section.field".
          base: settings of the base variant, with the workdir and the seed of the run.
          seed: of walks, batches and initial parameters; pairs and their split stay as they are.

        Raises:
          UserError: a value is out of range.
        """
        folder = seed_folder(base, seed) / name
        config = dataclasses.replace(
            with_overrides(base, overrides), seed=seed, workdir=str(folder)
        )
        parts = _identity(config, prepared, pairs)
        if seed != base.seed:
            # The pairs are those of the run's seed.
            parts.append(base.seed)
        if name == UNTRAINED:
            parts.append(name)
        return cls(name, config, files.fingerprint(parts))

    @property
    def folder(self) -> pathlib.Path:
        """Where the trial is kept."""
        return pathlib.Path(self.config.workdir)

    @property
    def is_finished(self) -> bool:
        """Whether the folder has the ranks of this trial."""
        saved = self._saved()
        return bool(saved.get("finished")) and (self.folder / _RANKS_FILE).exists()

    def _saved(self) -> dict[str, Any]:
        """The trial's file; {} without one, or of other settings."""
        path = self.folder / _VARIANT_FILE
        saved = files.read_json(path) if path.exists() else {}
        return saved if saved.get("fingerprint") == self.fingerprint else {}

    def run(
        self, root: pathlib.Path, base: Config, pairs: Pairs, embeddings: Embeddings
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Trains and ranks, unless the folder has the result.

        Args:
          root: workdir of the run.
          base: settings of the base variant.

        Returns:
          The contents of the trial's file, and its ranks int64 [P].
        """
        folder, config = self.folder, self.config
        if self.is_finished:
            logging.info("ablate: %s contains the finished variant", folder)
            return self._saved(), files.read_array(folder / _RANKS_FILE)
        if not self._saved():
            # Otherwise training would resume, or refuse, the checkpoints of other settings.
            shutil.rmtree(folder, ignore_errors=True)
            saved = {"fingerprint": self.fingerprint, "finished": False}
            files.write_json(folder / _VARIANT_FILE, saved)
        _link(folder / "prepared", root / "prepared")
        if config.model.spectral_dim and config.model.spectral_dim == base.model.spectral_dim:
            _link(folder / "spectral", seed_folder(base, config.seed) / "spectral")
        start = time.monotonic()
        vectors, entries = embeddings(config, pairs.graph)
        query, target = pairs.pairs.T
        ranks = target_ranks(vectors[query], vectors, query, target)
        files.write_array(folder / _RANKS_FILE, ranks)
        minutes = round((time.monotonic() - start) / 60, 2)
        saved = {
            "fingerprint": self.fingerprint, "finished": True, "minutes": minutes, **entries,
        }  # fmt: skip
        files.write_json(folder / _VARIANT_FILE, saved)
        return saved, ranks


def seed_folder(base: Config, seed: int) -> pathlib.Path:
    """Folder of the trials with a seed, in the workdir of `base`."""
    folder = pathlib.Path(base.workdir) / FOLDER
    return folder if seed == base.seed else folder / f"seed{seed}"


def _identity(variant: Config, prepared: Prepared, pairs: Pairs) -> list[Any]:
    """All that determines a variant's ranks, its seed included: data, settings and pairs."""
    train = dataclasses.asdict(variant.train)
    # These may change when a run is resumed, but they change its result.
    relevant = {"epochs", "max_steps", "validate_every"}
    parts: dict[str, Any] = {
        "train": {
            name: train[name]
            for name in train
            if name in relevant or name not in RESUMABLE_OVERRIDES
        }
    }
    for section in ("split", "sampling", "model"):
        parts[section] = dataclasses.asdict(getattr(variant, section))
    embed = variant.embed
    parts["embed"] = [embed.checkpoint, embed.embed_walks, embed.cold_start_bias]
    parts["seed"], parts["pairs"] = variant.seed, [pairs.source, len(pairs.pairs)]
    return [parts, prepared.manifest["fingerprint"]]


def _link(path: pathlib.Path, target: pathlib.Path) -> None:
    """A symbolic link relative to its folder, so that the workdir may be moved."""
    with files.reported_os_errors(path):
        if not (path.is_symlink() or path.exists()):
            path.symlink_to(os.path.relpath(target, path.parent), target_is_directory=True)
