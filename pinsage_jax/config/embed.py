"""Settings of computing and exporting embeddings: the catalog, new items, changes."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, constant, option
from pinsage_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class EmbedConfig(Checked):
    """Whole-catalog inference and export."""

    checkpoint: str = constant("best", "Checkpoint to embed with.", choices=("best", "last"))
    embed_block: int = constant(8192, "Nodes computed at once.", low=1)
    shard_rows: int = constant(
        1_000_000,
        "Rows per embeddings/part-*.parquet, and of what a killed run finds again.",
        low=1,
    )
    embed_walks: int | None = option(
        1000,
        "Walks per node behind the lists that embeddings pool over; auto: --num_walks.",
        auto=int,
        low=1,
    )
    cold_start_bias: float | None = option(
        None,
        "Added to the last coordinate of items without edges (needs --popularity_bias); auto: "
        "chosen on validation pairs, so that warm and cold pairs both gain over plain baselines, "
        "at a cost of at most 2% of the warm hits.",
        auto=float,
        low=0.0,
        high=10.0,
    )
    export_format: str = option(
        "parquet",
        "embeddings/ as Parquet shards, or as vectors.npy (to be memory-mapped) with its ids.",
        choices=("parquet", "npy"),
        basic=True,
    )
    export_dtype: str = option(
        "float32",
        "Type of exported vectors; int8 has a scale per vector. The manifest says what is lost.",
        choices=("float32", "float16", "int8"),
    )
    export_dim: int | None = option(
        None,
        "Dimensions of the exported vectors: the leading principal directions, and the popularity; "
        "auto: all.",
        auto=int,
        low=1,
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
class NewItemsConfig(Checked):
    """Items that the catalog does not hold, embedded by --mode=embed."""

    new_items: str = option(
        "",
        "Item table with the columns of --items: only these items are embedded, into "
        "WORKDIR/new_embeddings; empty: the catalog is.",
        basic=True,
    )
    new_edges: str = option(
        "", "Edges of the new items, to known or new collections, with the columns of --edges."
    )

    def validate(self) -> None:
        super().validate()
        if self.new_edges and not self.new_items:
            raise UserError(
                f"--new_edges={self.new_edges} needs --new_items, whose edges they are."
            )


@dataclasses.dataclass(frozen=True)
class UpdateConfig(Checked):
    """Changes of the catalog, after which --mode=embed recomputes only what they affect."""

    changed_edges: str = option(
        "",
        "Edges that are new or have another weight, with the columns of --edges; the catalog "
        "with them is embedded into WORKDIR/updated.",
    )
    removed_edges: str = option("", "Edges to be removed, with the columns of --edges.")
    changed_items: str = option(
        "", "Items that are new or have other features, with the columns of --items."
    )

    @property
    def has_changes(self) -> bool:
        """Whether there are changes."""
        return bool(self.changed_edges or self.removed_edges or self.changed_items)
