"""Settings that belong together, by the names of their fields: --preset=NAME.

A setting that is given beside a preset overrides it, whichever comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pinsage_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings by name.

    Attributes:
      method: what is computed: the loss, the negatives, the parts of the network.
      sizes: how much of it: widths, walks, batches and the schedule.
    """

    method: Mapping[str, Any]
    sizes: Mapping[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """All settings of the preset."""
        return {**self.method, **self.sizes}

    def scaled(self, scale: float) -> dict[str, Any]:
        """All settings, the sizes in SCALED multiplied by `scale` with their ratios kept."""
        values = self.values
        for multiple, (first, *others) in SCALED:
            before = values[first]
            values[first] = max(multiple, multiple * round(before * scale / multiple))
            for name in others:
                values[name] = max(1, round(values[name] * values[first] / before))
        return values


# Sizes that --preset_scale multiplies.  Of each group the first is rounded to a multiple, and
# the others keep their ratios to it: widths to widths; walks to neighbors; negatives to the
# batch, and the pairs of an epoch too, so that it has as many steps.  Every other setting stays:
# what has no size (layers, margin, schedule), the learning rate, which is of a batch of 1024
# and scaled with it, and ranks and walks of hard negatives, which belong to the catalog.
SCALED = (
    (8, ("layer_dim", "output_dim", "hidden_dim")),
    (1, ("num_neighbors", "num_walks")),
    (8, ("batch_size", "random_negatives", "pairs_per_epoch")),
)


# Ying et al. 2018. The paper gives neither the walks of a node nor those that rank
# candidates for hard negatives: enough for 50 distinct items and to reach rank 5000.
PAPER = Preset(
    method={
        "pooling": "importance",
        "loss": "margin",
        "margin": 0.1,
        "hard_start": "curriculum",
        "hard_max": 6,
        # Additions of this package that the paper does not have.
        "spectral_dim": 0,
        "isolated_feature": False,
        "popularity_bias": False,
        "neighbor_embeddings": "off",
        "skip": False,
        "whiten": 0.0,
        "content_neighbors": 0,
        "pair_power": 1.0,
        "symmetric": False,
        "edge_dropout": 0.0,
        "weight_decay": 0.0,
        "embed_walks": None,
    },
    sizes={
        "num_neighbors": 50,
        "num_walks": 500,
        "hard_low": 2000,
        "hard_high": 5000,
        "hard_walks": 20_000,
        "num_layers": 2,
        "hidden_dim": 2048,
        "layer_dim": 1024,
        "output_dim": 1024,
        "compute_dtype": "bfloat16",
        # Linear warm-up over the first epoch, then exponential decay; 13 epochs of 20
        # million pairs are the paper's 130,000 steps.
        "batch_size": 2048,
        "random_negatives": 500,
        "pairs_per_epoch": 20_000_000,
        "epochs": 13.0,
        "warmup_epochs": 1.0,
        "learning_rate": 1e-3,
        "decay": 0.9,
        "adam_b2": 0.999,
    },
)

PRESETS = {"paper": PAPER}
NO_PRESET = "none"


def with_preset(name: str, given: Mapping[str, Any], scale: Any = 1.0) -> dict[str, Any]:
    """The settings of a preset, overridden by those that are given.

    Args:
      scale: of its sizes; one that is not above 0 and at most 1 is left to the checks of the
        settings.

    Raises:
      UserError: there is no such preset.
    """
    if name == NO_PRESET:
        return dict(given)
    if name not in PRESETS:
        raise UserError(f"--preset={name} is not one of {', '.join([NO_PRESET, *PRESETS])}.")
    number = isinstance(scale, (int, float)) and 0 < scale < 1
    preset = PRESETS[name]
    return {**(preset.scaled(scale) if number else preset.values), **given}
