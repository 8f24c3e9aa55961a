"""The schedule of a run: its last step, hard negatives, validations, and which of them counts.

The curriculum of Ying et al. 2018, section 3.3: no hard negative in the first epoch, n-1
per query in epoch n, up to a limit.  Everything here is a pure function of the step or the
epoch, so a resumed run continues where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from pinsage_jax.config.training import TrainConfig


def total_steps(train: TrainConfig, pairs_per_epoch: int) -> int:
    """Steps of the whole run: --max_steps where it is given, otherwise --epochs."""
    # In this order, so that a whole number of epochs that ends with a batch is exact.
    return train.max_steps or max(
        math.ceil(train.num_epochs * pairs_per_epoch / train.batch_size), 1
    )


def total_epochs(train: TrainConfig, pairs_per_epoch: int) -> float:
    """Passes over the training pairs in the whole run."""
    if train.max_steps:
        return train.max_steps * train.batch_size / pairs_per_epoch
    return train.num_epochs


def hard_negatives_in(epoch: int, train: TrainConfig) -> int:
    """Hard negatives per query in `epoch` (counted from 0)."""
    if train.hard_start == "none":
        return 0
    if train.hard_start == "full":
        return train.hard_max
    return min(epoch, train.hard_max)


def hard_slots(train: TrainConfig, pairs_per_epoch: int) -> int:
    """H: the most hard negatives per query in any step of the run.

    If --max_steps ends the run before --epochs, H is that of --epochs.  It is the width of
    an array, and a sum over another width rounds differently: with a smaller H the run could
    not be continued to --epochs with the same bits.
    """
    without_limit = total_steps(dataclasses.replace(train, max_steps=None), pairs_per_epoch)
    last_step = max(total_steps(train, pairs_per_epoch), without_limit) - 1
    return hard_negatives_in(last_step * train.batch_size // pairs_per_epoch, train)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The steps at which a run logs, validates, saves and ends; the same after a resume.

    Steps count from 1.  Everything also happens at the last step.

    Attributes:
      total: steps of the run.
      pairs_per_epoch: training pairs in one epoch.
      train: settings.
    """

    total: int
    pairs_per_epoch: int
    train: TrainConfig

    @classmethod
    def from_config(cls, train: TrainConfig, pairs_per_epoch: int) -> Schedule:
        """The schedule of a run over `pairs_per_epoch` pairs an epoch."""
        return cls(total_steps(train, pairs_per_epoch), pairs_per_epoch, train)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in an epoch; a fraction, since a batch may span the end of an epoch."""
        return self.pairs_per_epoch / self.train.batch_size

    def logs_after(self, step: int) -> bool:
        """Whether a line of metrics.jsonl is written after `step`."""
        return step == self.total or step % self.train.log_every == 0

    def validates_after(self, step: int) -> bool:
        """Whether `step` is one of --validate_every, by default the last one of an epoch.

        Counted in pairs: epochs rounded to steps would drift from the end of the run, and
        validate twice within a few steps there.
        """
        if step == self.total:
            return True
        if every := self.train.validate_every:
            return step % every == 0
        return self._epochs_after(step) > self._epochs_after(step - 1)

    def saves_after(self, step: int) -> bool:
        """Whether `step` is one of --checkpoint_every, by default those of validations."""
        if every := self.train.checkpoint_every:
            return step == self.total or step % every == 0
        return self.validates_after(step)

    @property
    def validations(self) -> int:
        """Number of validations in the whole run."""
        if every := self.train.validate_every:
            return -(-self.total // every)
        before = self._epochs_after(self.total - 1)
        return min(before, self.total - 1) + 1

    def validations_between(self, first: int, last: int) -> int:
        """Number of validations after step `first` up to step `last`."""
        return sum(self.validates_after(step) for step in range(first + 1, last + 1))

    def _epochs_after(self, step: int) -> int:
        """Number of whole epochs in this number of steps."""
        return step * self.train.batch_size // self.pairs_per_epoch


def highest_first(metrics: Mapping[int, Mapping[str, float | None]]) -> list[int]:
    """Steps that have a score, the highest first, the earlier of equal ones first.

    Args:
      metrics: those of each step; the score is "score".
    """
    scores = {step: score for step, found in metrics.items()
              if (score := found.get("score")) is not None}  # fmt: skip
    return sorted(scores, key=lambda step: (-scores[step], step))


def best_first(metrics: Mapping[int, Mapping[str, float | None]]) -> list[int]:
    """The same, but first the step to be used.

    That is the latest one whose score is within the standard error of the highest score
    ("score_error"), where it is known: validation cannot tell the two apart, and the learning
    rate of the later one is lower.
    """
    ordered = highest_first(metrics)
    error = metrics[ordered[0]].get("score_error") if ordered else None
    if not error:
        return ordered
    least = (metrics[ordered[0]]["score"] or 0.0) - error
    used = max(step for step in ordered if (metrics[step]["score"] or 0.0) >= least)
    return [used, *(step for step in ordered if step != used)]
