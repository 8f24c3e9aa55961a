"""Settings of the loss, the optimizer, the training loop and its checkpoints."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, option


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """Loss, negatives, curriculum, optimizer and checkpoints."""

    loss: str = option(
        "softmax",
        "margin (the paper's), cross_entropy (its ablation) or sampled softmax.",
        choices=("margin", "cross_entropy", "softmax"),
    )
    margin: float = option(0.1, "Margin of the max-margin loss.", low=0.0)
    temperature: float = option(
        0.12, "Divides the scores of the softmax and cross-entropy losses.", low=1e-4
    )
    logq: float = option(
        1.0, "Exponent of the popularity correction of in-batch negatives.", low=0.0, high=2.0
    )
    in_batch: bool = option(True, "Softmax: other pairs' targets are negatives too.")
    gather_in_batch: bool = option(
        True,
        "In-batch negatives from all devices, gathered every step: the loss then does not depend "
        "on how many there are. Off: those of the pair's own device.",
    )
    symmetric: bool = option(True, "Train each pair in both directions.")
    batch_size: int = option(1024, "B: pairs per step over all devices.", low=1)
    random_negatives: int = option(512, "R: uniform negatives shared by a step.", low=1)
    hard_max: int = option(6, "Most hard negatives per query (0: none).", low=0)
    hard_start: str = option(
        "curriculum",
        "curriculum: n-1 in epoch n; full: all from the start; none.",
        choices=("curriculum", "full", "none"),
    )
    epochs: float = option(3.0, "Passes over the training pairs.", low=0.0)
    pairs_per_epoch: int = option(0, "Pairs in one epoch; 0: one per edge.", low=0)
    max_steps: int = option(0, "Stop after this many steps; 0: --epochs decides.", low=0)
    learning_rate: float = option(
        1e-2, "Peak rate for batches of 1024 pairs; scaled linearly with the batch.", low=0.0
    )
    warmup_epochs: float = option(0.25, "Epochs of linear warm-up.", low=0.0)
    decay: float = option(
        0.3, "Factor of the exponential decay per epoch after the warm-up.", low=0.0, high=1.0
    )
    adam_b2: float = option(
        0.99, "How slowly Adam forgets squared gradients.", low=0.0, high=0.999999
    )
    weight_decay: float = option(1e-4, "Decoupled weight decay.", low=0.0)
    clip_norm: float = option(1.0, "Gradients longer than this are scaled down; 0: never.", low=0.0)
    edge_dropout: float = option(
        0.25,
        "Share of nodes trained as if they had no edges in a step, so that cold items work.",
        low=0.0,
        high=1.0,
    )
    prefetch: int = option(2, "Batches prepared ahead by host threads; 0: none.", low=0, high=64)
    producers: int = option(1, "Host threads that make batches; no more than --prefetch.", low=1)
    device_features: str = option(
        "auto",
        "Keep input vectors on the devices and send node ids only; auto: where they take at most "
        "a quarter of a device's memory (on CPUs 2 GiB in all).",
        choices=("auto", "on", "off"),
    )
    devices: int = option(0, "Devices of each process to train on; 0: all it has.", low=0)
    validate_every: int = option(0, "Steps between validations; 0: once an epoch.", low=0)
    checkpoint_every: int = option(0, "Steps between checkpoints; 0: at every validation.", low=0)
    keep: int = option(2, "Latest checkpoints kept, beside the best.", low=1)
    log_every: int = option(20, "Steps between lines of metrics.jsonl.", low=1)
    tensorboard: bool = option(
        False, "Also write WORKDIR/tensorboard, event files for TensorBoard (extra tensorboard)."
    )
