"""Settings beside the pipeline's: split, recommend, ablate, new items, stores."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, option
from pinsage_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class SplitToolConfig(Checked):
    """Tables to train and to evaluate on, made from one edge table by --mode=split."""

    split_by: str = option(
        "collections",
        "What is withheld: collections whole, every edge of some items, or edges after a time.",
        choices=("collections", "items", "time"),
    )
    split_share: float = option(
        0.2, "Share of collections, of items, or of the latest edges withheld.", low=0.0, high=0.9
    )
    split_cut: str = option(
        "", "Last time that still trains, as in --time_column; empty: --split_share decides."
    )
    split_pairs: int = option(10_000, "Most evaluation pairs drawn.", low=1)


@dataclasses.dataclass(frozen=True)
class RecommendConfig(Checked):
    """Items for a collection or a user's history, by --mode=recommend."""

    recommend_for: str = option(
        "", "Comma-separated collection ids to show; empty: write recommendations.parquet for all."
    )
    recommend_k: int = option(20, "Items recommended to each collection.", low=1, high=1000)
    recommend_by: str = option(
        "auto",
        "How a history scores an item: by its mean vector, by medoids of its interests, by the sum "
        "of powers or of exponentials of its similarities; auto: any of these but interests, "
        "whichever does best in validation.",
        choices=("auto", "mean", "interests", "power", "attention"),
    )
    recommend_power: float = option(
        0.0,
        "p of the sum over a history of max(0, z_h.z_i)^p; 0: chosen in validation.",
        low=0.0,
        high=1000.0,
    )
    recommend_temperature: float = option(
        0.0,
        "t of the sum over a history of exp(z_h.z_i / t); 0: chosen in validation.",
        low=0.0,
        high=1000.0,
    )
    recommend_popularity: float = option(
        -1.0,
        "power and attention: scores are multiplied by (1 + degree)^this; -1: chosen in "
        "validation.",
        low=-1.0,
        high=2.0,
    )
    recommend_rarity: float = option(
        -1.0,
        "power and attention: items of a history count (1 + degree)^-this; -1: chosen in "
        "validation.",
        low=-1.0,
        high=2.0,
    )
    recommend_interests: int = option(3, "Most interests (clusters) used of a history.", low=1)
    recommend_ward: float = option(
        1.2, "Ward distance, of unit vectors, above which interests stay apart.", low=0.0
    )
    recommend_half_life: float = option(
        0.0,
        "Time in which an item's part in an interest's importance halves, in days or the unit of "
        "--time_column; 0: never.",
        low=0.0,
    )
    test_edges: str = option(
        "",
        "Edges to score recommendations on (Recall@20, NDCG@20); no setting is chosen by them.",
    )

    def validate(self) -> None:
        super().validate()
        if 0.0 < self.recommend_temperature < 0.02:
            raise UserError(
                f"--recommend_temperature={self.recommend_temperature} must be at least 0.02, "
                "or 0 to have it chosen."
            )


@dataclasses.dataclass(frozen=True)
class AblateConfig(Checked):
    """Variants of the settings compared on the same pairs, by --mode=ablate."""

    ablate_variants: str = option(
        "all",
        "Comma-separated variants or groups of them (paper, additions, neighbors, layers, hard, "
        "loss), or all; the base is always there.",
    )
    ablate_steps: int = option(
        0, "Training steps of each variant; epochs change with them. 0: as in the run.", low=0
    )
    ablate_pairs: str = option(
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

    compare_with: str = option("", "Another workdir; both need embeddings.")
    compare_items: int = option(5000, "Most items whose --k nearest neighbors are compared.", low=1)


@dataclasses.dataclass(frozen=True)
class StoreConfig(Checked):
    """Where sampled neighborhoods are kept; changes no result."""

    neighborhood_store: str = option(
        "auto",
        "Neighborhoods walked once and kept in memory, once and kept on disk (in checked shards "
        "that later stages and killed runs find again), or when asked for. auto: memory up to "
        "256 MiB, disk beyond. With --resample, memory keeps the lists of one epoch while training "
        "is in it, and none and auto beyond 256 MiB keep nothing.",
        choices=("auto", "memory", "disk", "none"),
    )


@dataclasses.dataclass(frozen=True)
class NewItemsConfig(Checked):
    """Items that the catalog does not hold, embedded by --mode=embed."""

    new_items: str = option(
        "",
        "Item table with the columns of --items: only these items are embedded, into "
        "WORKDIR/new_embeddings; empty: the catalog is.",
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
    def asked(self) -> bool:
        """Whether there are changes."""
        return bool(self.changed_edges or self.removed_edges or self.changed_items)
