"""Settings of the loss, the optimizer, the training loop and its checkpoints."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, constant, option
from pinsage_jax.core.errors import UserError

# With --epochs=auto: passes, and fewest steps of each.
_EPOCHS, _LEAST_STEPS = 3.0, 64
TRACKERS = ("tensorboard", "mlflow", "wandb")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """Loss, negatives, curriculum, optimizer and checkpoints."""

    loss: str = option(
        "softmax",
        "margin (the paper's), cross_entropy (its ablation) or sampled softmax.",
        choices=("margin", "cross_entropy", "softmax"),
        basic=True,
    )
    margin: float = option(0.1, "Margin of the max-margin loss.", low=0.0)
    temperature: float = option(
        0.12, "Divides the scores of the softmax and cross-entropy losses.", low=1e-4
    )
    in_batch: bool = constant(
        True, "Softmax: other pairs' targets, from all devices, are negatives too."
    )
    logq: bool = constant(
        True, "Softmax: correct the scores for how often an item stands among the candidates."
    )
    symmetric: bool = constant(True, "Train each pair in both directions.")
    batch_size: int = option(1024, "B: pairs per step over all devices.", low=1, basic=True)
    random_negatives: int = option(512, "R: uniform negatives shared by a step.", low=1)
    hard_max: int = option(6, "Most hard negatives per query (0: none).", low=0)
    hard_start: str = constant(
        "curriculum",
        "curriculum: n-1 in epoch n; full: all from the start; none.",
        choices=("curriculum", "full", "none"),
    )
    shared_hard_queries: int = constant(
        0,
        "Queries of a step whose hard negatives all pairs are scored against, which takes fewer "
        "nodes; 0: each query has its own.",
        low=0,
    )
    epochs: float | None = option(
        None,
        "Passes over the training pairs; auto: 3, each of at least 64 steps, for which small "
        "tables are passed through several times.",
        auto=float,
        low=0.0,
        basic=True,
    )
    patience: int = option(
        0,
        "Validations in a row without a higher score after which training ends; 0: never.",
        low=0,
    )
    pairs_per_epoch: int | None = option(
        None, "Pairs in one epoch; auto: one per edge, or each of --train_pairs.", auto=int, low=1
    )
    max_steps: int | None = option(
        None, "Steps of the run; auto: --epochs decides.", auto=int, low=1
    )
    learning_rate: float = option(
        1e-2,
        "Peak rate for batches of 1024 pairs; scaled linearly with the batch.",
        low=0.0,
        basic=True,
    )
    warmup_epochs: float = constant(0.25, "Epochs of linear warm-up.", low=0.0)
    decay: float = option(
        0.3, "Factor of the exponential decay per epoch after the warm-up.", low=0.0, high=1.0
    )
    adam_b2: float = constant(
        0.99, "How slowly Adam forgets squared gradients.", low=0.0, high=0.999999
    )
    weight_decay: float = constant(1e-4, "Decoupled weight decay.", low=0.0)
    clip_norm: float = constant(
        1.0, "Gradients longer than this are scaled down; 0: never.", low=0.0
    )
    embedding_updates: str = constant(
        "auto",
        "How a step updates neighbor embeddings. dense: by Adam; rows: those of its nodes alone, "
        "by lazy Adam; auto: rows where they have more than 50 million numbers, which "
        "--neighbor_embeddings=on alone allows.",
        choices=("auto", "dense", "rows"),
    )
    edge_dropout: float = option(
        0.25,
        "Share of nodes trained as if they had no edges in a step, so that cold items work.",
        low=0.0,
        high=1.0,
    )
    producers: int | None = option(
        None,
        "Host threads that make batches; auto: one on CPUs, on accelerators half of --threads, at "
        "most 16.",
        auto=int,
        low=1,
        high=63,
    )
    prefetch: int | None = constant(
        None,
        "Batches prepared ahead by host threads; 0: none; auto: one more than --producers.",
        auto=int,
        low=0,
        high=64,
    )
    device_features: str = constant(
        "auto",
        "Keep input vectors on the devices and send node ids only; on: all of them on each; split: "
        "each has a part; auto: on where they take at most a quarter of a device's memory (on CPUs "
        "2 GiB in all), else split where the parts do, on accelerators.",
        choices=("auto", "on", "split", "off"),
    )
    device_features_dtype: str = option(
        "float32",
        "Type of input vectors that are kept on the devices; int8 has a scale for each column. "
        "Training alone reads them: embedding reads the vectors as prepared.",
        choices=("float32", "bfloat16", "int8"),
    )
    cpu_kernels: str = option(
        "auto",
        "Compiled kernels for pooling on CPUs; auto: where the installed jaxlib can call them; "
        "off: XLA's own operations.",
        choices=("auto", "on", "off"),
    )
    accelerator_kernels: str = option(
        "auto",
        "Pallas kernels for pooling; auto: on NVIDIA GPUs, and on TPUs other than v5e and v6e "
        "where rows fill the registers; off: XLA's own operations.",
        choices=("auto", "off"),
    )
    devices: int | None = option(
        None, "Devices of each process to train on; auto: all it has.", auto=int, low=1, basic=True
    )
    validate_every: int | None = option(
        None, "Steps between validations; auto: once an epoch.", auto=int, low=1
    )
    checkpoint_every: int | None = option(
        None, "Steps between checkpoints; auto: at every validation.", auto=int, low=1
    )
    keep: int = constant(2, "Latest checkpoints kept, beside the best.", low=1)
    log_every: int = constant(20, "Steps between lines of metrics.jsonl.", low=1)
    profile_steps: str = option(
        "",
        "Steps FIRST:LAST, counted from 1, that JAX's profiler records in WORKDIR/profile, such "
        "as 10:20; empty: none.",
    )
    tracker: str = option(
        "",
        "Experiment trackers that get the numbers of metrics.jsonl too, comma-separated: "
        "tensorboard, mlflow, wandb (an extra each). They write into the workdir.",
    )

    def validate(self) -> None:
        super().validate()
        if strange := set(self.trackers) - {*TRACKERS}:
            raise UserError(
                f"--tracker={self.tracker}: {min(strange)} is not one of {', '.join(TRACKERS)}."
            )
        if self.shared_hard_queries > self.batch_size:
            raise UserError(
                f"shared_hard_queries={self.shared_hard_queries} is more than "
                f"--batch_size={self.batch_size}."
            )
        if self.profile_steps and self.profiled is None:
            raise UserError(
                f"--profile_steps={self.profile_steps} is not FIRST:LAST, such as 10:20."
            )

    @property
    def profiled(self) -> tuple[int, int] | None:
        """The first and the last step of --profile_steps; None if it names none."""
        parts = self.profile_steps.split(":")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            return None
        first, last = map(int, parts)
        return (first, last) if 1 <= first <= last else None

    @property
    def trackers(self) -> list[str]:
        """The names in --tracker, each once."""
        names = filter(None, (name.strip() for name in self.tracker.split(",")))
        return list(dict.fromkeys(names))

    @property
    def num_epochs(self) -> float:
        """Epochs of the run, if neither --max_steps nor --patience ends it before."""
        return _EPOCHS if self.epochs is None else self.epochs

    @property
    def least_epoch_pairs(self) -> int:
        """Fewest pairs of an epoch whose length is not given: small tables take several passes."""
        return _LEAST_STEPS * self.batch_size if self.epochs is None else 1


@dataclasses.dataclass(frozen=True)
class RetrainConfig(Checked):
    """A new model in a workdir that has one."""

    retrain: bool = option(
        False,
        "Train a new model in WORKDIR/next, while the present one goes on serving; when the whole "
        "pipeline is done it takes its place in one step. What was there stays in "
        "WORKDIR/previous.",
    )
    init_from: str = option(
        "",
        "Workdir whose model training starts from: parameters of the same shape, and the "
        "neighbor embeddings of items and collections with the same ids; empty: random.",
    )
    refit: bool = option(
        False,
        "Like --retrain, on every edge: validation edges are put back, and settings, number of "
        "steps and cold-start bias are those that validation chose in WORKDIR. With --edges: on "
        "that table, such as the one that --mode=split has cut; other flags are remembered.",
    )

    @property
    def beside(self) -> bool:
        """Whether a new model is made in WORKDIR/next."""
        return self.retrain or self.refit
