"""Settings of every stage as frozen dataclasses; the defaults live here, once.

``cli.py`` derives one absl flag from every field that is no constant; library code
takes these dataclasses and never sees a flag.  ``validate`` methods raise UserError with one
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
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pinsage_jax.config.data import (
    DataConfig,
    EncoderConfig,
    PruneConfig,
    SplitConfig,
    SyntheticConfig,
)
from pinsage_jax.config.distributed import DistributedConfig
from pinsage_jax.config.embed import EmbedConfig, NewItemsConfig, UpdateConfig
from pinsage_jax.config.fields import Checked, from_values, option
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.presets import NO_PRESET, PRESETS, with_preset
from pinsage_jax.config.sampling import SamplingConfig, StoreConfig
from pinsage_jax.config.search import (
    EvalConfig,
    ExplorerConfig,
    RecommendConfig,
    SearchConfig,
    ServeConfig,
)
from pinsage_jax.config.spark import SparkConfig
from pinsage_jax.config.tools import (
    STORES,
    AblateConfig,
    CompareConfig,
    DoctorConfig,
    ReportConfig,
    SplitToolConfig,
    VectorStoreConfig,
)
from pinsage_jax.config.training import RetrainConfig, TrainConfig
from pinsage_jax.core.errors import UserError

# Sections whose settings belong to a run, and those of them that belong to one command.
_REMEMBERED_SECTIONS = (
    "data", "synthetic", "split", "sampling", "model", "train", "embed", "evaluate", "store",
    "prune", "report",
)  # fmt: skip
_OF_ONE_COMMAND = (
    "data_dir", "query", "queries", "target", "k", "devices", "producers", "prefetch",
    "profile_steps",
)  # fmt: skip
_OF_THE_RUN = ("preset", "preset_scale", "seed")
_INPUT_PATHS = ("edges", "items", "train_pairs", "eval_pairs")


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """All settings of one run."""

    mode: str
    workdir: str
    seed: int = option(
        0, "Seed of walks, batches, splits and initial parameters.", low=0, basic=True
    )
    threads: int | None = option(
        None, "Host threads; auto: one per core available.", auto=int, low=1
    )
    preset: str = option(
        NO_PRESET,
        "Settings that belong together; paper: those of Ying et al. 2018, too large for a CPU. "
        "Every flag that is given overrides the preset, before or after it.",
        choices=(NO_PRESET, *PRESETS),
        basic=True,
    )
    preset_scale: float = option(
        1.0,
        "Multiplies widths, neighbors, walks, batch, negatives and pairs of an epoch of --preset, "
        "with their ratios kept; every flag that is given stays as it is.",
        low=0.001,
        high=1.0,
    )
    data: DataConfig = DataConfig()
    encoders: EncoderConfig = EncoderConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
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
    explorer: ExplorerConfig = ExplorerConfig()
    serve: ServeConfig = ServeConfig()
    spark: SparkConfig = SparkConfig()
    prune: PruneConfig = PruneConfig()
    distributed: DistributedConfig = DistributedConfig()
    doctor: DoctorConfig = DoctorConfig()
    compare: CompareConfig = CompareConfig()
    retraining: RetrainConfig = RetrainConfig()
    report: ReportConfig = ReportConfig()
    vector_store: VectorStoreConfig = VectorStoreConfig()

    @property
    def host_threads(self) -> int:
        """Host threads to use: --threads, or one for each core that the process may run on."""
        return self.threads or len(os.sched_getaffinity(0))

    def validate(self) -> None:
        """Raises UserError for the first setting that is invalid."""
        super().validate()
        for field in dataclasses.fields(self):
            if isinstance(section := getattr(self, field.name), Checked):
                section.validate()
        if not self.workdir:
            raise UserError("--workdir is required: the folder that everything is written to.")
        if self.preset == NO_PRESET and self.preset_scale != Config.preset_scale:
            raise UserError(
                f"--preset_scale={self.preset_scale} scales a preset; add --preset=paper."
            )
        if self.new.new_items and self.mode not in ("embed", "neighbors"):
            raise UserError(
                f"--new_items={self.new.new_items} needs --mode=embed or --mode=neighbors."
            )
        if self.new.new_items and self.mode == "neighbors" and self.search.search != "exact":
            raise UserError(
                f"--search={self.search.search}: the index does not hold --new_items; leave it out."
            )
        if self.mode in ("serve", "follow") and (given := self.search.list_rules):
            raise UserError(
                f"{given} does not go with --mode={self.mode}, whose requests carry their own "
                "rules (where, boost, one_per, block_items, allow_items); leave it out."
            )
        if self.mode == "follow" and self.sampling.neighborhood == "all":
            raise UserError("--mode=follow needs --neighborhood=items: only items are followed.")
        if self.mode == "follow" and self.serve.serve_workers > 1:
            raise UserError(
                f"--serve_workers={self.serve.serve_workers}: --mode=follow runs in one process; "
                "leave it out."
            )
        if self.evaluate.queries and (self.evaluate.query or self.new.new_items):
            raise UserError("--queries cannot go with --query or --new_items; give one of them.")
        if self.update.has_changes and (self.mode != "embed" or self.new.new_items):
            raise UserError(
                "--changed_edges, --removed_edges and --changed_items need --mode=embed, without "
                "--new_items."
            )
        if self.distributed.num_processes > 1 and self.mode not in ("pipeline", "train"):
            raise UserError(
                f"--num_processes={self.distributed.num_processes} needs --mode=pipeline or train; "
                f"run --mode={self.mode} in one process."
            )
        if self.retraining.beside and self.mode != "pipeline":
            name = "retrain" if self.retraining.retrain else "refit"
            raise UserError(f"--{name} needs --mode=pipeline: a model takes another's place whole.")
        if self.retraining.init_from and self.mode not in ("pipeline", "train", "library"):
            raise UserError(
                f"--init_from={self.retraining.init_from} needs --mode=pipeline or train."
            )
        if self.sampling.resample and self.store.neighborhood_store == "disk":
            raise UserError(
                "--neighborhood_store=disk keeps one set of lists but resample=True draws new ones "
                "every epoch; drop one of the two, or take --neighborhood_store=memory."
            )
        store, on_tables = self.vector_store, bool(self.spark.spark_tables)
        if self.mode == "export" and not (store.writes or store.check or on_tables):
            raise UserError(
                f"--mode=export needs --to, one of {', '.join(STORES)}, --export_model, "
                "--spark_tables or --check."
            )
        if self.mode == "export" and on_tables and (store.writes or store.check):
            raise UserError(
                "--spark_tables writes tables for Spark; give it without --to, --export_model and "
                "--check."
            )
        if self.vector_store.writes and self.vector_store.check:
            raise UserError(
                "--to and --export_model write files, and --check compares a store; give it alone."
            )
        least, dim = 1 + int(self.model.popularity_bias), self.embed.export_dim
        if dim and not least <= dim <= self.model.output_dim:
            raise UserError(
                f"--export_dim={dim} must be at least {least} and at most "
                f"--output_dim={self.model.output_dim}."
            )
        if self.spark.on_spark and (self.new.new_items or self.update.has_changes):
            raise UserError("--new_items and changes are embedded on this machine; drop --engine.")
        if self.mode == "graph_tables" and not self.data.edges:
            raise UserError("--edges is required: a Parquet file or folder.")
        for mode, name, value in (
            ("follow", "follow", self.serve.follow),
            ("explain", "query", self.evaluate.query),
            ("explain", "target", self.evaluate.target),
            ("compare", "compare_with", self.compare.compare_with),
        ):
            if self.mode == mode and not value:
                raise UserError(f"--{name} is required with --mode={mode}.")
        if self.mode in ("pipeline", "prepare", "doctor") and not (
            self.synthetic.synthetic or self.data.edges
        ):
            raise UserError("--edges is required (or --synthetic for the embedded example).")


def remembered_values(config: Config) -> dict[str, Any]:
    """The settings of a run by name, constants too, that a later command can leave out.

    Only values other than the defaults (or the preset's) are among them.  Input paths are
    absolute.  Mode, workdir and what concerns one command alone, such as a query or a number
    of devices, are not among them.
    """
    preset = with_preset(config.preset, {}, config.preset_scale)
    usual = from_values(Config, {"workdir": ".", "mode": "", **preset})
    found: dict[str, Any] = {name: getattr(config, name) for name in _OF_THE_RUN}
    for name in _REMEMBERED_SECTIONS:
        section, default = getattr(config, name), getattr(usual, name)
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if field.name in _OF_ONE_COMMAND or value == getattr(default, field.name):
                continue
            if field.name in _INPUT_PATHS:
                value = os.path.abspath(config.data.path(value))
            elif field.name == "align_to":
                value = os.path.abspath(pathlib.Path(value).expanduser())
            found[field.name] = value
    for name in _OF_THE_RUN:
        if found[name] == getattr(Config, name):
            del found[name]
    return found


def remembered_fields() -> dict[str, dataclasses.Field]:
    """The settings that a run remembers, by name."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    sections: list[Any] = [fields[name].default for name in _REMEMBERED_SECTIONS]
    found = {field.name: field for section in sections for field in dataclasses.fields(section)}
    found |= {name: fields[name] for name in _OF_THE_RUN}
    left_out = {*_OF_ONE_COMMAND, *code_settings()}
    return {name: field for name, field in found.items() if name not in left_out}


def code_settings() -> frozenset[str]:
    """Names of the settings whose values are run, which no file or folder may set."""
    return frozenset(
        field.name for field in dataclasses.fields(EncoderConfig) if field.metadata.get("code")
    )


def plain_values(config: Config) -> dict[str, Any]:
    """All settings by section as JSON values, for a file; without those that name code."""
    # Not of the whole: a callable may be a large model, which would be copied.
    rest = dataclasses.replace(config, encoders=EncoderConfig())
    found = dataclasses.asdict(rest)
    del found["encoders"]
    return found


def all_settings() -> frozenset[str]:
    """Names of all settings, constants too."""
    plain = dataclasses.fields(Config)
    sections: list[Any] = [f.default for f in plain if dataclasses.is_dataclass(f.default)]
    names = {field.name for section in sections for field in dataclasses.fields(section)}
    return frozenset(names | {f.name for f in plain if not dataclasses.is_dataclass(f.default)})


def names_data(values: Mapping[str, Any]) -> bool:
    """Whether the settings name the data; a command with such settings begins a new run."""
    return bool(values.get("edges") or values.get("synthetic"))


def path_of(name: str) -> str:
    """The setting as section.field.

    Raises:
      KeyError: no section has a field of that name.
    """
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default) and name in {
            field.name for field in dataclasses.fields(section.default)
        }:
            return f"{section.name}.{name}"
    raise KeyError(name)


def constants() -> frozenset[str]:
    """Names of the settings without a flag."""
    return frozenset(
        field.name
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(section.default)
        for field in dataclasses.fields(section.default)
        if field.metadata["level"] == "constant"
    )
