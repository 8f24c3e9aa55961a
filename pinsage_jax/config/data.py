"""Settings of the data: input tables, the synthetic catalog, the validation split, pruning."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from typing import Any

from pinsage_jax.config.fields import Checked, code, constant, option
from pinsage_jax.core.errors import UserError

# An old edge weighs at least this part of a new one, so that float32 holds sums of both.
MIN_WEIGHT = 1e-6

# --kind_weights that validation chooses.
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """Where the input tables are and what their columns mean."""

    data_dir: str = option("", "Folder that relative input paths are looked up in.", basic=True)
    edges: str = option(
        "",
        "Edge table (Parquet, CSV or Feather, file or folder): one row per item in a collection.",
        basic=True,
    )
    items: str = option(
        "", "Item table: item_id and feature columns; may hold items without edges.", basic=True
    )
    train_pairs: str = option(
        "",
        "Pairs query_id,target_id to train on; empty: pairs that share a collection.",
        basic=True,
    )
    eval_pairs: str = option(
        "", "Pairs query_id,target_id[,kind] to evaluate on; never used for training.", basic=True
    )
    collection_column: str = option(
        "collection_id", "Column of --edges that names the collection.", basic=True
    )
    item_column: str = option("item_id", "Column of --edges that names the item.", basic=True)
    weight_column: str = option(
        "", "Optional column of --edges with a positive weight; walks follow it."
    )
    time_column: str = option(
        "", "Optional column of --edges with a time (number, date or timestamp)."
    )
    kind_column: str = option(
        "",
        "Optional column of --edges with the kind of an edge, such as bought or viewed; "
        "--mode=explain says by which kinds two items are related.",
    )
    kind_weights: str = option(
        "",
        "Weights by kind, as in bought=1,viewed=0.2, by which the weights of edges are "
        "multiplied; a kind that is not named has 1. auto: chosen by walks on validation pairs.",
    )
    half_life: float = option(
        0.0,
        "Age at which an edge has half the weight of the newest, in days, or in the unit of "
        "--time_column where that holds numbers; 0: age does not count.",
        low=0.0,
    )
    item_id_column: str = option("item_id", "Column of --items that names the item.", basic=True)
    title_column: str | None = option(
        None,
        "Column of --items shown beside ids; auto: 'title' or 'name' if there is one.",
        auto=str,
    )
    text_columns: str = option(
        "auto",
        "Comma-separated text columns; auto: text, title, description, abstract and other prose.",
    )
    dense_columns: str = option(
        "auto", "Comma-separated vector columns; auto: every list-of-numbers column."
    )
    numeric_columns: str = option(
        "auto", "Comma-separated number columns; auto: numbers that are no row numbers or codes."
    )
    categorical_columns: str = option(
        "auto",
        "Comma-separated categorical columns (one-hot, rare values together); auto: strings of "
        "few values, and lists of strings.",
    )
    image_columns: str = option(
        "",
        "Comma-separated columns of pictures that --image_encoder encodes: bytes, or paths of "
        "files below --data_dir (or the table's folder).",
    )
    csv_delimiter: str = option(
        "auto",
        "What separates the cells of CSV files; auto: by the first line.",
        choices=("auto", "comma", "tab", "semicolon", "bar"),
    )
    csv_header: str = option(
        "on",
        "off: CSV files have no header; their columns are f0, f1, ... (pairs: query_id, "
        "target_id, kind).",
        choices=("on", "off"),
    )
    category_separator: str = option(
        "|", "What separates the values of a cell of a categorical column; empty: nothing does."
    )
    text_dim: int = option(512, "Dimensions of the vectors made from text.", low=1, high=4096)
    input_dim: int = option(
        0,
        "Project wider features to so many columns, once in prepare: by PCA, or at random where "
        "there are more than 8192; 0: not.",
        low=0,
        high=8192,
    )
    link_words: int = constant(
        64,
        "K: words of most weight kept of every item, by which content links compare items that "
        "are described by text alone; 0: links compare features.",
        low=0,
        high=4096,
    )
    text_vocabulary: int = constant(20000, "Most frequent terms kept for text.", low=1)
    text_min_df: int = constant(2, "A term must occur in this many items.", low=1)
    category_limit: int = constant(
        128, "Values kept per categorical column; the rest share one slot.", low=1
    )
    feature_dtype: str = option(
        "float32", "Type of the stored features.", choices=("float32", "float16")
    )

    @property
    def weighs_edges(self) -> bool:
        """Whether kinds or ages give edges weights."""
        return bool(self.kind_weights or self.half_life)

    def weight_by_kind(self) -> dict[str, float]:
        """The weights of --kind_weights by the name of the kind; {} for auto.

        Raises:
          UserError: a part is no KIND=WEIGHT, or a kind is named twice.
        """
        weights: dict[str, float] = {}
        if self.kind_weights == AUTO:
            return weights
        for part in filter(None, (part.strip() for part in self.kind_weights.split(","))):
            name, equals, text = part.rpartition("=")
            try:
                weight = float(text)
            except ValueError:
                weight = 0.0
            if not equals or not MIN_WEIGHT <= weight <= 1 / MIN_WEIGHT or name.strip() in weights:
                raise UserError(
                    f"--kind_weights={self.kind_weights}: {part} must be KIND=WEIGHT with a "
                    f"weight of {MIN_WEIGHT:g} to {1 / MIN_WEIGHT:g}, each kind once."
                )
            weights[name.strip()] = weight
        return weights

    def validate(self) -> None:
        super().validate()
        named = self.weight_by_kind() or self.kind_weights == AUTO
        if named and not self.kind_column:
            raise UserError(
                f"--kind_weights={self.kind_weights} needs --kind_column, the column of --edges "
                "with the kinds."
            )
        if self.half_life and not self.time_column:
            raise UserError(
                f"--half_life={self.half_life:g} needs --time_column, the column of --edges with "
                "the times."
            )

    def path(self, value: str) -> pathlib.Path:
        """An input path as given; relative ones are looked up in --data_dir.

        Raises:
          UserError: it is the address of a remote store.
        """
        for given in (value, self.data_dir):
            if re.match("[A-Za-z][A-Za-z0-9+.-]*://", given):
                raise UserError(
                    f"{given} is a remote address, and only files of this machine are read; copy "
                    "it to a folder here first."
                )
        return pathlib.Path(self.data_dir).expanduser() / pathlib.Path(value).expanduser()


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Checked):
    """Encoders of text and pictures in place of TF-IDF, named by every command that needs them."""

    text_encoder: Any = code(
        "MODULE:FUNCTION, called with a list of str and returning float32 [n, d], or the folder of "
        "a sentence-transformers model; empty: TF-IDF."
    )
    image_encoder: Any = code(
        "MODULE:FUNCTION, called with a list of bytes (pictures of --image_columns) and returning "
        "float32 [n, d]."
    )

    @property
    def text_folder(self) -> str:
        """The folder that --text_encoder names; "" if it names none."""
        value = self.text_encoder
        folder = os.path.expanduser(value) if isinstance(value, str) else ""
        return folder if os.path.isdir(folder) else ""


@dataclasses.dataclass(frozen=True)
class SyntheticCatalog(Checked):
    """Parameters of the generated Pinterest-like catalog; the defaults are the size `small`."""

    items: int = constant(10_000, "Items (pins).", low=20)
    collections: int = constant(2_500, "Collections (boards).", low=4)
    edges: int = constant(100_000, "Edges, before duplicates are merged.", low=20)
    topics: int = constant(64, "Overlapping topics behind features, boards and pairs.", low=2)
    styles: int = constant(
        4, "Hidden styles of each topic, which boards follow and features hardly show.", low=1
    )
    visual_dim: int = constant(64, "Dimensions of the visual-like feature vectors.", low=1)
    text_dim: int = constant(32, "Dimensions of the text-like feature vectors.", low=1)
    noise: float = constant(
        0.85, "Noise of the feature vectors, relative to their signal.", low=0.0
    )
    noise_boards: float = constant(
        0.1, "Share of boards filled without regard to topic.", low=0.0, high=1.0
    )
    isolated: float = constant(0.05, "Share of items that get no edge at all.", low=0.0, high=0.9)
    pairs: int = constant(
        4_000, "Engagement pairs drawn for evaluation (as many again for training).", low=1
    )
    seed: int = constant(0, "Seed of the catalog; --seed does not change it.", low=0)
    number_ids: bool = constant(False, "Ids are numbers, a third of the size of texts.")
    names: bool = constant(True, "Items have names.")


SIZES = {
    "tiny": SyntheticCatalog(
        items=600, collections=150, edges=5_000, topics=12, styles=3, pairs=600
    ),
    "small": SyntheticCatalog(),
    # Large enough for hard negatives of the paper's ranks, 2000 to 5000.
    "large": SyntheticCatalog(
        items=1_000_000, collections=250_000, edges=20_000_000, visual_dim=256, text_dim=64,
        pairs=200_000,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SyntheticConfig(Checked):
    """The embedded example: a generated Pinterest-like catalog."""

    synthetic: bool = option(
        False,
        "Generate the embedded example instead of reading --edges and --items.",
        basic=True,
    )
    synthetic_size: str = option(
        "small",
        "Size of the embedded example: tiny (600 items, 5,000 edges), small (10,000 and 100,000), "
        "large (1 million and 20 million), or ITEMSxEDGES, such as 50000x600000.",
        basic=True,
    )
    synthetic_catalog: SyntheticCatalog | None = constant(
        None, "All parameters of the generated catalog, in place of a size.", auto=SyntheticCatalog
    )

    @property
    def chosen(self) -> SyntheticCatalog:
        """The parameters to use.

        Raises:
          UserError: --synthetic_size is not a valid size.
        """
        return self.synthetic_catalog or catalog_of_size(self.synthetic_size)

    def validate(self) -> None:
        super().validate()
        catalog = self.chosen
        try:
            catalog.validate()
        except UserError as error:
            if self.synthetic_catalog:
                raise
            raise UserError(f"--synthetic_size={self.synthetic_size}: {error}") from None


def catalog_of_size(size: str) -> SyntheticCatalog:
    """The catalog that a --synthetic_size stands for.

    Raises:
      UserError: it is none of the names and not ITEMSxEDGES.
    """
    if size in SIZES:
        return SIZES[size]
    if not (found := re.fullmatch(r"(\d+)x(\d+)", size)):
        raise UserError(
            f"--synthetic_size={size} is not one of {', '.join(SIZES)} or ITEMSxEDGES, such as "
            "50000x600000."
        )
    items, edges = int(found[1]), int(found[2])
    # The proportions of `small`; fewer topics where there are too few items to tell them apart.
    return SyntheticCatalog(
        items=items,
        collections=max(items // 4, 4),
        edges=edges,
        topics=min(max(items // 50, 2), 64),
        pairs=min(max(2 * items // 5, 1), 200_000),
    )


@dataclasses.dataclass(frozen=True)
class SplitConfig(Checked):
    """The validation split, made from training edges alone."""

    validation_collections: float = option(
        0.05,
        "Share of collections withheld from training to make validation pairs.",
        low=0.0,
        high=0.5,
    )
    validation_cold_items: float = constant(
        0.05,
        "Share of items whose training edges are withheld to validate cold start.",
        low=0.0,
        high=0.5,
    )
    validation_pairs: int = constant(4000, "Most validation pairs drawn.", low=1)


@dataclasses.dataclass(frozen=True)
class PruneConfig(Checked):
    """Edges left out of the graph (Pixie, WWW 2018); by default none."""

    prune_power: float = option(
        1.0,
        "Items with more than 100 edges (prune_from) keep degree^this of them, the heaviest or a "
        "random sample of equal ones; 1: all. Pixie: 0.91.",
        low=0.0,
        high=1.0,
    )
    prune_from: int = constant(100, "Edges below which --prune_power never takes an item.", low=1)
    prune_collection_items: int = option(
        0, "Collections with more items than this are dropped; 0: none.", low=0
    )
    prune_entropy: float = option(
        0.0,
        "Collections whose items' topics have an entropy above this many bits are dropped; 0: "
        "none. Needs --prune_topic_column.",
        low=0.0,
    )
    prune_topic_column: str = option("", "Column of --items that names an item's topic.")

    @property
    def prunes(self) -> bool:
        """Whether any edge may be left out."""
        return bool(self.prune_power < 1.0 or self.prune_collection_items or self.prune_entropy)

    def validate(self) -> None:
        super().validate()
        if self.prune_entropy and not self.prune_topic_column:
            raise UserError(
                f"--prune_entropy={self.prune_entropy} needs --prune_topic_column, the column of "
                "--items with the topics."
            )
