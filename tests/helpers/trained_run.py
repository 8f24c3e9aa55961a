"""One finished pipeline that takes seconds, for tests of code that reads a workdir."""

from __future__ import annotations

import pathlib

from pinsage_jax.config.data import SyntheticCatalog, SyntheticConfig
from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.search import EvalConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.stages.pipeline import pipeline

CATALOG = SyntheticCatalog(
    items=300,
    collections=80,
    edges=2500,
    topics=8,
    styles=3,
    pairs=300,
)


def settings(workdir: str | pathlib.Path, **train) -> Config:
    """Settings of the run; keyword arguments are those of TrainConfig."""
    return Config(
        mode="pipeline",
        workdir=str(workdir),
        seed=0,
        threads=1,
        synthetic=SyntheticConfig(True, synthetic_catalog=CATALOG),
        sampling=SamplingConfig(num_neighbors=10, num_walks=40, hard_walks=60),
        model=ModelConfig(hidden_dim=32, layer_dim=32, output_dim=16, spectral_dim=16),
        train=TrainConfig(
            **{
                "batch_size": 64,
                "random_negatives": 64,
                "epochs": 3.0,
                "pairs_per_epoch": 640,
                "hard_max": 2,
                "log_every": 5,
                "devices": 1,
                "tracker": "tensorboard",
                **train,
            }
        ),
        embed=EmbedConfig(embed_block=256, embed_walks=None),
        evaluate=EvalConfig(bootstrap=50),
    )


def small_run(workdir: str | pathlib.Path, **train) -> Config:
    """Runs the whole pipeline; returns its settings."""
    config = settings(workdir, **train)
    pipeline(config)
    return config
