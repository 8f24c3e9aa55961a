"""Settings of every stage as frozen dataclasses; the defaults live here, once.

``cli.py`` derives one absl flag from every field; library code takes these
dataclasses and never sees a flag.  ``validate`` methods raise UserError with one
sentence that names the flag.

Axis letters, used in every docstring of this package:

  N nodes (items first, then collections)    E edges (item, collection)
  S seeds of a minibatch                     B pairs of a minibatch
  T neighbors per node                      W walks per node
  K convolution layers (L in shapes)         D input features
  M width of Q (the projected neighbors)    H hard negatives per query
  R shared random negatives per minibatch
"""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.data import DataConfig, SplitConfig, WorldConfig
from pinsage_jax.config.distributed import HostsConfig
from pinsage_jax.config.fields import Checked, option
from pinsage_jax.config.search import SearchConfig
from pinsage_jax.config.serve import ServeConfig
from pinsage_jax.config.spark import ClusterConfig, PruneConfig
from pinsage_jax.config.tools import (
    AblateConfig,
    CompareConfig,
    DoctorConfig,
    NewItemsConfig,
    RecommendConfig,
    SplitToolConfig,
    StoreConfig,
    UpdateConfig,
)
from pinsage_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Checked):
    """Random-walk neighborhoods and the pairs and negatives drawn with them."""

    neighborhood: str = option(
        "items",
        "Nodes counted by walks: items only, or all (collections too, embedded as well).",
        choices=("items", "all"),
    )
    num_neighbors: int = option(20, "T: neighbors kept per node, by visit count.", low=1, high=1000)
    num_walks: int = option(100, "W: walks from each node.", low=1)
    walk_length: int = option(
        4, "Steps of a walk; one step goes item, collection, item.", low=1, high=1000
    )
    restart: float = option(
        0.3, "Chance to return to the start before each further step.", low=0.0, high=1.0
    )
    restart_ends: bool = option(
        False,
        "End a walk where it would return to its start (or is stuck), so that it makes fewer "
        "steps; DGL's PinSAGESampler does.",
    )
    resample: bool = option(
        False, "Draw new neighborhoods every epoch instead of one set for the run."
    )
    content_neighbors: int = option(
        10,
        "C: content-nearest items appended to every list, for items with few edges.",
        low=0,
        high=1000,
    )
    content_kappa: float = option(
        0.5, "Edges at which an item's walk neighbors and content links weigh the same.", low=0.0
    )
    content_limit: int = option(
        200_000,
        "Catalogs with more items get content links for items without edges only, and to a "
        "sample of 65,536 items.",
        low=0,
    )
    pair_power: float = option(
        0.2,
        "Collections give training pairs in proportion to (size - 1) to this power; "
        "1 visits every edge once an epoch.",
        low=0.0,
        high=2.0,
    )
    hide_positive: str = option(
        "collection",
        "What a training pair must not see: the collection it was drawn from (its walks avoid it), "
        "the edge between the two (dropped from both lists), or none.",
        choices=("collection", "edge", "none"),
    )
    hard_low: int = option(2000, "Best personalized-PageRank rank of a hard negative.", low=1)
    hard_high: int = option(5000, "Worst personalized-PageRank rank of a hard negative.", low=2)
    hard_scale: bool = option(
        True, "Scale the band of ranks down when the catalog is smaller than 100 bands."
    )
    hard_walks: int = option(1000, "Walks per query to rank hard-negative candidates.", low=1)

    def validate(self) -> None:
        super().validate()
        if self.hard_low >= self.hard_high:
            raise UserError(
                f"--hard_low={self.hard_low} must be below --hard_high={self.hard_high}."
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    """PinSage, Algorithm 1 and 2 (Ying et al. 2018), and its variants."""

    num_layers: int = option(1, "K: convolution layers; 0 embeds by features alone.", low=0, high=5)
    hidden_dim: int = option(256, "m: width of Q, the projected neighbors.", low=1)
    layer_dim: int = option(256, "d: width of each layer's output.", low=1)
    output_dim: int = option(256, "Width of the exported embedding.", low=1)
    pooling: str = option(
        "importance",
        "How neighbors are pooled: by visit count, equally, or elementwise maximum.",
        choices=("importance", "mean", "max"),
    )
    spectral_dim: int = option(
        256,
        "Dimensions of an item's place in a spectral map of the graph, found through its "
        "collections and appended to its features; 0: none (the paper). Fewer where items times "
        "dimensions would pass 200 million.",
        low=0,
        high=4096,
    )
    edgeless_feature: bool = option(
        True, "Append a column that marks items without edges (not in the paper)."
    )
    popularity: bool = option(
        True,
        "Make the last coordinate of an embedding 1 + b, with b learned: how likely an item is "
        "whatever the query (not in the paper).",
    )
    neighbor_embeddings: str = option(
        "auto",
        "Add a learned vector of the neighbor's id to what it sends; with one layer an item's "
        "own id never enters its embedding. auto: when they have at most 50 million numbers.",
        choices=("auto", "on", "off"),
    )
    skip: bool = option(
        True, "Add linear maps of a node's own input and of its pooled neighbors to the output."
    )
    normalize_output: bool = option(True, "Scale every embedding to unit length.")
    whiten: float = option(
        0.5,
        "Feature columns are divided by their root mean square to this power.",
        low=0.0,
        high=1.0,
    )
    degree_feature: bool = option(
        True, "Append log(1 + degree) to the features, as the paper does."
    )
    compute_dtype: str = option(
        "float32", "Type of the matrix products.", choices=("float32", "bfloat16")
    )


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


@dataclasses.dataclass(frozen=True)
class EmbedConfig(Checked):
    """Whole-catalog inference and export."""

    checkpoint: str = option("best", "Checkpoint to embed with.", choices=("best", "last"))
    embed_block: int = option(8192, "Nodes computed at once.", low=1)
    shard_rows: int = option(
        1_000_000,
        "Rows per embeddings/part-*.parquet, and of what a killed run finds again.",
        low=1,
    )
    embed_walks: int = option(
        1000, "Walks per node behind the lists that embeddings pool over; 0: --num_walks.", low=0
    )
    cold_start_bias: float = option(
        -1.0,
        "Added to the last coordinate of items without edges (needs --popularity); negative: "
        "chosen on validation pairs, so that warm and cold pairs both gain over plain rivals.",
        high=10.0,
    )
    export_format: str = option(
        "parquet",
        "embeddings/ as Parquet shards, or as vectors.npy (to be memory-mapped) with its ids.",
        choices=("parquet", "npy"),
    )
    export_dtype: str = option(
        "float32",
        "Type of exported vectors; int8 has a scale per vector. The manifest says what is lost.",
        choices=("float32", "float16", "int8"),
    )
    export_dim: int = option(
        0,
        "Dimensions of the exported vectors: the leading principal directions, and the popularity; "
        "0: all.",
        low=0,
    )
    align_to: str = option(
        "",
        "Folder of an earlier export: vectors are rotated onto it by the items that both hold "
        "(orthogonal Procrustes), which changes no inner product among them.",
    )
    keep_layers: bool = option(
        False,
        "Keep WORKDIR/layers, from which --changed_edges recomputes only what is affected; "
        "otherwise the first such run makes it anew.",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig(Checked):
    """Evaluation, its baselines and related items."""

    baselines: str = option(
        "default", "Comma-separated baselines, default (popularity,content,walk), all or none."
    )
    bootstrap: int = option(
        1000, "Bootstrap resamples behind the 95% intervals; 0: no intervals.", low=0
    )
    query: str = option(
        "",
        "--mode=neighbors: comma-separated item ids; empty: write related_items.parquet. "
        "--mode=explain: one item id.",
    )
    target: str = option("", "--mode=explain: the item id whose place beside --query is asked for.")
    k: int = option(10, "Neighbors listed per item.", low=1, high=10000)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything one run is told."""

    mode: str
    workdir: str
    seed: int
    threads: int
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig()
    split: SplitConfig = SplitConfig()
    sampling: SamplingConfig = SamplingConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    evaluate: EvalConfig = EvalConfig()
    search: SearchConfig = SearchConfig()
    split_tool: SplitToolConfig = SplitToolConfig()
    recommend: RecommendConfig = RecommendConfig()
    ablate: AblateConfig = AblateConfig()
    new: NewItemsConfig = NewItemsConfig()
    update: UpdateConfig = UpdateConfig()
    store: StoreConfig = StoreConfig()
    serve: ServeConfig = ServeConfig()
    cluster: ClusterConfig = ClusterConfig()
    prune: PruneConfig = PruneConfig()
    hosts: HostsConfig = HostsConfig()
    doctor: DoctorConfig = DoctorConfig()
    compare: CompareConfig = CompareConfig()

    def validate(self) -> None:
        """Raises UserError for the first setting that cannot work."""
        for field in dataclasses.fields(self):
            if isinstance(section := getattr(self, field.name), Checked):
                section.validate()
        if not self.workdir:
            raise UserError("--workdir is required: the folder that everything is written to.")
        if self.new.new_items and self.mode != "embed":
            raise UserError(f"--new_items={self.new.new_items} needs --mode=embed.")
        if self.update.asked and (self.mode != "embed" or self.new.new_items):
            raise UserError(
                "--changed_edges, --removed_edges and --changed_items need --mode=embed, without "
                "--new_items."
            )
        if self.hosts.num_processes > 1 and self.mode not in ("pipeline", "train"):
            raise UserError(
                f"--num_processes={self.hosts.num_processes} needs --mode=pipeline or train; "
                f"run --mode={self.mode} in one process."
            )
        if self.sampling.resample and self.store.neighborhood_store == "disk":
            raise UserError(
                "--neighborhood_store=disk keeps one set of lists but --resample draws new ones "
                "every epoch; drop one of the two, or take --neighborhood_store=memory."
            )
        least, dim = 1 + int(self.model.popularity), self.embed.export_dim
        if dim and not least <= dim <= self.model.output_dim:
            raise UserError(
                f"--export_dim={dim} must be at least {least} and at most "
                f"--output_dim={self.model.output_dim}."
            )
        if self.cluster.engine == "spark" and (self.new.new_items or self.update.asked):
            raise UserError(
                "--new_items and changes are embedded on this machine; drop --engine=spark."
            )
        if self.mode == "graph_tables" and not self.data.edges:
            raise UserError("--edges is required: a Parquet file or folder.")
        for mode, name, value in (
            ("explain", "query", self.evaluate.query),
            ("explain", "target", self.evaluate.target),
            ("compare", "compare_with", self.compare.compare_with),
        ):
            if self.mode == mode and not value:
                raise UserError(f"--{name} is required with --mode={mode}.")
        if self.mode in ("pipeline", "prepare", "doctor") and not (
            self.world.world or self.data.edges
        ):
            raise UserError("--edges is required (or --world for the embedded example).")
