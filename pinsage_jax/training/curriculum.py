"""The length of a run and its curriculum of hard negatives (Ying et al. 2018, section 3.3).

No hard negative in the first epoch, n-1 per query in epoch n, up to a limit.  A
pure function of the epoch, so a resumed run continues where it was.
"""

from __future__ import annotations

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
    """H: the most hard negatives per query in any step of the run."""
    first_pair = (total_steps(train, pairs_per_epoch) - 1) * train.batch_size
    return hard_negatives_in(first_pair // pairs_per_epoch, train)
