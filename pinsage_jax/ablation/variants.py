"""The variants of an ablation as data, and the settings that each is trained with.

The variants follow the tables of the paper (Ying et al. 2018, tables 1 and 4) and remove
the additions of this package one at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pinsage_jax.config import presets
from pinsage_jax.config.settings import Config, path_of
from pinsage_jax.core.errors import UserError
from pinsage_jax.training.curriculum import total_epochs

BASE = "base"
Overrides = dict[str, Any]

# The method of the paper, from its preset.  Sizes, walks and the optimizer are those of the
# base, because the paper leaves them open or uses sizes that do not fit the data.
_PINSAGE: Overrides = {path_of(name): value for name, value in presets.PAPER.method.items()}
PAPER: Overrides = {**_PINSAGE, "train.hard_start": "none"}

# Group -> variant -> {"section.field": value}.
VARIANTS: dict[str, dict[str, Overrides]] = {
    "paper": {
        "paper_max": {**PAPER, "model.pooling": "max"},
        "paper_mean": {**PAPER, "model.pooling": "mean"},
        "paper_mean_cross_entropy": {
            **PAPER, "model.pooling": "mean", "train.loss": "cross_entropy",
        },
        "paper_mean_hard": {**_PINSAGE, "model.pooling": "mean"},
        "paper_pinsage": _PINSAGE,
    },
    "additions": {
        "no_popularity_bias": {"model.popularity_bias": False},
        "no_spectral_features": {"model.spectral_dim": 0},
        "no_content_neighbors": {"sampling.content_neighbors": 0},
        "no_neighbor_embeddings": {"model.neighbor_embeddings": "off"},
        "no_edge_dropout": {"train.edge_dropout": 0.0},
        "no_skip": {"model.skip": False},
    },
    "neighbors": {
        f"T{size}": {"sampling.num_neighbors": size} for size in (10, 20, 50)
    },
    "layers": {f"K{number}": {"model.num_layers": number} for number in (0, 1, 2)},
    "hard": {
        f"hard_{start}": {"train.hard_start": start} for start in ("curriculum", "full", "none")
    },
    "loss": {
        "margin": {"train.loss": "margin"},
        "softmax": {"train.loss": "softmax"},
        "softmax_no_logq": {"train.loss": "softmax", "train.logq": False},
    },
}  # fmt: skip


def chosen_variants(names: str) -> dict[str, Overrides]:
    """The settings that each variant of --ablate_variants overrides, the base first.

    Args:
      names: comma-separated variants or groups, or all.

    Raises:
      UserError: a name is unknown; the message lists the known ones.
    """
    known = {name: overrides for group in VARIANTS.values() for name, overrides in group.items()}
    wanted = {BASE}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name == "all":
            wanted |= set(known)
        elif name in VARIANTS:
            wanted |= set(VARIANTS[name])
        elif name in known or name == BASE:
            wanted.add(name)
        else:
            raise UserError(
                f"--ablate_variants={name} is not a variant; use all, a group "
                f"({', '.join(VARIANTS)}) or a variant ({', '.join(known)})."
            )
    everything = {BASE: {}, **known}
    return {name: everything[name] for name in everything if name in wanted}


def with_overrides(config: Config, overrides: Overrides) -> Config:
    """A validated copy of the settings with some fields changed.

    Args:
      config: the settings.
      overrides: values by "section.field".

    Raises:
      UserError: a value is out of range.
    """
    for name, value in overrides.items():
        section, field = name.split(".")
        changed = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: changed})
    config.validate()
    return config


def base_settings(config: Config, per_epoch: int) -> Config:
    """The base variant's settings: those of the run, for --ablate_steps steps.

    The length of an epoch is scaled with the steps, so that warm-up, decay and curriculum,
    which count in epochs, pass through all of their stages whatever the number of steps.

    Args:
      config: settings of the run.
      per_epoch: pairs per epoch of the run.
    """
    steps = config.ablate.ablate_steps
    if not steps:
        return config
    epochs = total_epochs(config.train, per_epoch) or 1.0
    pairs = round(steps * config.train.batch_size / epochs)
    length = {"train.max_steps": steps, "train.pairs_per_epoch": max(pairs, 1)}
    return with_overrides(config, length)


def differences(base: Config, variant: Config) -> Overrides:
    """The variant's settings that differ from the base, by "section.field"."""
    changed: Overrides = {}
    for section in ("split", "sampling", "model", "train", "embed"):
        before = dataclasses.asdict(getattr(base, section))
        after = dataclasses.asdict(getattr(variant, section))
        changed |= {
            f"{section}.{name}": after[name] for name in after if after[name] != before[name]
        }
    return changed
