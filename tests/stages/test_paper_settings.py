"""The paper's own configuration, reduced, learns the smallest embedded example in bfloat16."""

import pinsage_jax
from pinsage_jax.stages.prepare import prepare
from pinsage_jax.stages.train import train


def test_the_papers_configuration_learns_in_bfloat16(tmp_path):
    config = pinsage_jax.settings(
        tmp_path / "run",
        preset="paper",
        # Widths, neighbors, walks and the batch of a twentieth; a batch so small needs a larger
        # rate, and a catalog of 600 pins nearer hard negatives.
        preset_scale=0.05,
        synthetic=True,
        synthetic_size="tiny",
        pairs_per_epoch=4096,
        epochs=3.0,
        learning_rate=0.05,
        hard_low=50,
        hard_high=150,
        hard_walks=200,
        validate_every=1_000,
        seed=0,
        threads=1,
    )
    assert config.model.compute_dtype == "bfloat16" and config.model.num_layers == 2
    assert config.train.loss == "margin" and config.train.hard_max == 6
    prepare(config)
    outcome = train(config)
    # By chance 10 of 600 pins: .017.
    assert outcome.best["warm_hit@10"] > 0.08, outcome.best
