"""What happens at which step: the end of the run, hard negatives, validations, checkpoints.

The curriculum of Ying et al. 2018, section 3.3: no hard negative in the first epoch, n-1
per query in epoch n, up to a limit.  Everything here is a pure function of the step or the
epoch, so a resumed run continues where it was.
"""

from __future__ import annotations

import dataclasses
import math

from pinsage_jax.config.training import TrainConfig


def total_steps(train: TrainConfig, pairs_per_epoch: int) -> int:
    """Steps of the whole run: --max_steps where it is given, otherwise --epochs."""
    return train.max_steps or max(math.ceil(train.epochs * (pairs_per_epoch / train.batch_size)), 1)


def total_epochs(train: TrainConfig, pairs_per_epoch: int) -> float:
    """Passes over the training pairs in the whole run."""
    if train.max_steps:
        return train.max_steps * train.batch_size / pairs_per_epoch
    return train.epochs


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

    Attributes:
      steps_per_epoch: a fraction, since a batch may span the end of an epoch.
      total: steps of the run.
      validate_every, save_every, log_every: in steps; each also happens at the last step.
    """

    steps_per_epoch: float
    total: int
    validate_every: int
    save_every: int
    log_every: int

    @classmethod
    def from_config(cls, train: TrainConfig, pairs_per_epoch: int) -> Schedule:
        """The schedule of a run over `pairs_per_epoch` pairs an epoch."""
        epoch = pairs_per_epoch / train.batch_size
        total = total_steps(train, pairs_per_epoch)
        validate = train.validate_every or max(round(epoch), 1)
        return cls(epoch, total, validate, train.checkpoint_every or validate, train.log_every)
