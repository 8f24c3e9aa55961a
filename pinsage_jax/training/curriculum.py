"""What happens at which step: the length of a run, its hard negatives, validations, saves.

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

    Of a run that --max_steps ends before --epochs, as many as without that limit: H is the
    width of an array, and sums over another width round differently, so that the run could
    not be continued to its end bit for bit.
    """
    without_limit = total_steps(dataclasses.replace(train, max_steps=0), pairs_per_epoch)
    last_step = max(total_steps(train, pairs_per_epoch), without_limit) - 1
    return hard_negatives_in(last_step * train.batch_size // pairs_per_epoch, train)


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
    def from_config(cls, train: TrainConfig, pairs_per_epoch: int) -> Schedule:
        """The schedule of a run over `pairs_per_epoch` pairs an epoch."""
        epoch = pairs_per_epoch / train.batch_size
        total = total_steps(train, pairs_per_epoch)
        validate = train.validate_every or max(round(epoch), 1)
        return cls(epoch, total, validate, train.checkpoint_every or validate, train.log_every)
