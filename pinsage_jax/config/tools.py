"""Settings of the tools beside the pipeline: split, ablate, doctor, compare, report, export."""

from __future__ import annotations

import dataclasses
import re

from pinsage_jax.config.fields import Checked, constant, option
from pinsage_jax.core.errors import UserError

# What --mode=export writes for.
NO_STORE, HUB = "none", "huggingface"
STORES = (
    "lancedb", "pgvector", "qdrant", "milvus", "opensearch", "elasticsearch", "redis",
    "huggingface",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SplitToolConfig(Checked):
    """Tables to train and to evaluate on, made from one edge table by --mode=split."""

    split_by: str = option(
        "collections",
        "What is withheld: collections whole, every edge of some items, edges after a time, or one "
        "edge of every collection (the latest with --time_column, otherwise a random one).",
        choices=("collections", "items", "time", "leave_one_out"),
        basic=True,
    )
    split_share: float = option(
        0.2, "Share of collections, of items, or of the latest edges withheld.", low=0.0, high=0.9
    )
    split_cut: str | None = option(
        None,
        "Last time that still trains, as in --time_column; auto: --split_share decides.",
        auto=str,
    )
    split_pairs: int = option(10_000, "Most evaluation pairs drawn.", low=1)

    @property
    def gives_a_size(self) -> bool:
        """Whether a setting says how much is withheld."""
        return self.split_cut is not None or self.split_share != SplitToolConfig.split_share


@dataclasses.dataclass(frozen=True)
class AblateConfig(Checked):
    """Variants of the settings compared on the same pairs, by --mode=ablate."""

    ablate_variants: str = option(
        "all",
        "Comma-separated variants or groups of them (paper, additions, neighbors, layers, hard, "
        "loss), or all; the base is always there.",
    )
    ablate_steps: int | None = option(
        None,
        "Training steps of each variant; epochs change with them. auto: as in the run.",
        auto=int,
        low=1,
    )
    seeds: int = option(
        1,
        "Trainings of each variant: with --seed and the numbers after it. Their mean, deviation "
        "and paired intervals are compared.",
        low=1,
        high=100,
    )
    ablate_pairs: str = constant(
        "validation",
        "Pairs that variants are scored on; an ablation is a choice, so eval is for a last table.",
        choices=("validation", "eval"),
    )


@dataclasses.dataclass(frozen=True)
class DoctorConfig(Checked):
    """The check-up of the inputs, by --mode=doctor."""

    forecast: bool = option(
        True,
        "Also measure this machine, for half a minute or so, and say how long a run takes and how "
        "much memory and disk it needs.",
    )


@dataclasses.dataclass(frozen=True)
class CompareConfig(Checked):
    """Two runs beside each other, by --mode=compare."""

    compare_with: str = option("", "Another workdir; both need embeddings.", basic=True)
    compare_items: int = constant(
        5000, "Most items whose --k nearest neighbors are compared.", low=1
    )


@dataclasses.dataclass(frozen=True)
class ReportConfig(Checked):
    """The report and its figures, by --mode=report and at the end of a pipeline."""

    color_column: str = option(
        "", "Column of --items whose values color a projection of the vectors in the report."
    )


@dataclasses.dataclass(frozen=True)
class VectorStoreConfig(Checked):
    """The vectors of a finished run as files of a vector store, by --mode=export."""

    to: str = option(
        NO_STORE,
        "--mode=export: the store that files are written for.",
        choices=(NO_STORE, *STORES),
        basic=True,
    )
    export_folder: str = option(
        "", "Folder that --to writes, whole; empty: WORKDIR/stores and the store's name."
    )
    export_table: str = option(
        "items", "Name of the table, collection or index: small letters, digits and _."
    )
    export_columns: str = option(
        "", "Comma-separated columns of --items that are written beside each vector, or all."
    )
    unit_length: bool = option(
        False,
        "Write vectors of unit length with one more coordinate, for a store that compares by "
        "cosine; the order is that of inner products.",
    )
    export_model: bool = option(
        False,
        "--mode=export: write the encoder of new items without edges as StableHLO, which JAX runs "
        "without this package, to WORKDIR/encoder.",
    )
    hub_repo: str = option(
        "",
        "--to=huggingface: upload the folder to this repository of the hub, USER/NAME; a new one "
        "is private. Needs `hf auth login` or HF_TOKEN.",
    )
    hub_license: str = option(
        "", "--to=huggingface: license in the model card, such as apache-2.0; empty: none is named."
    )
    check: str = option(
        "",
        "Compare a store with this model instead: a folder that --to wrote, a LanceDB database, or "
        "a file dumped from the store (Parquet, CSV, JSON).",
    )

    @property
    def writes(self) -> bool:
        """Whether files are written: for a store, or of the model."""
        return self.to != NO_STORE or self.export_model

    def validate(self) -> None:
        super().validate()
        for name, value, pattern, wanted in (
            ("hub_repo", self.hub_repo, r"[\w.-]+/[\w.-]+", "USER/NAME is"),
            ("hub_license", self.hub_license, r"[a-z0-9.-]+", "an identifier such as mit is"),
        ):
            if value and self.to != HUB:
                raise UserError(f"--{name}={value} needs --to={HUB}.")
            if value and not re.fullmatch(pattern, value, re.ASCII):
                raise UserError(f"--{name}={value}: {wanted} expected.")
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", self.export_table):
            raise UserError(
                f"--export_table={self.export_table}: small letters, digits and _ are expected, a "
                "letter first, at most 63."
            )
