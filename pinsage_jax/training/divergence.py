"""Writes the batch of a step whose loss is not finite to a file, for debugging.

WORKDIR/not_finite_step_STEP.json holds the node ids of the batch, which are positions in
prepared/item_ids.arrow, and what the batch is a function of: the step (counted from 1),
the epoch and the seed.  `MinibatchBuilder.make(STEP - 1)` makes the same batch again, and
the same command, run from the last checkpoint, repeats the same step.

Of several processes, which all reach the same step, process 0 writes the shards of all of
them: any process can make any shard.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.core import files
from pinsage_jax.distributed import process_group

_IDS = ("query_ids", "target_ids", "negative_ids", "hard_ids")


def dump_batch(
    workdir: str | pathlib.Path, builder: MinibatchBuilder, step: int, about: dict[str, Any]
) -> pathlib.Path:
    """Writes the ids of the batch of `step` (counted from 1) and `about`; returns the path.

    Every process must call it; the file is complete when it returns.  The file holds B
    query ids, B target ids, B lists of H hard negatives (-1 where there is none), and the R
    random negatives, once for every device.
    """
    path = pathlib.Path(workdir) / f"not_finite_step_{step}.json"
    if process_group.is_rank0():
        _write_batch(path, builder, step, about)
    # A process that ended now would end process 0 too, before it has written the file.
    process_group.all_gather_object(None, "batch that is not finite", interruptible=False)
    return path


def _write_batch(
    path: pathlib.Path, builder: MinibatchBuilder, step: int, about: dict[str, Any]
) -> None:
    batch, _ = builder.make(step - 1, range(builder.spec.num_devices))
    ids = {}
    for name in _IDS:
        array = np.asarray(getattr(batch, name))
        # The first axis is that of the devices.
        ids[name] = array.reshape(-1, *array.shape[2:]).tolist()
    files.write_json(path, {"step": step, **about, **ids})
