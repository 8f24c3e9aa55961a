"""The curriculum of hard negatives (Ying et al. 2018, section 3.3).

No hard negative in the first epoch, n-1 per query in epoch n, up to a limit.  A
pure function of the epoch, so a resumed run continues where it was.
"""

from __future__ import annotations

import math

from pinsage_jax.config.settings import TrainConfig


def hard_negatives_in(epoch: int, train: TrainConfig) -> int:
    """Hard negatives per query in `epoch` (counted from 0)."""
    if train.hard_start == "none":
        return 0
    if train.hard_start == "full":
        return train.hard_max
    return min(epoch, train.hard_max)


def hard_slots(train: TrainConfig) -> int:
    """H: the most hard negatives that any epoch of the run asks for."""
    last_epoch = max(math.ceil(train.epochs) - 1, 0)
    return hard_negatives_in(last_epoch, train)
