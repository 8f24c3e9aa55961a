"""Settings of evaluation, search, recommendation and serving."""

from __future__ import annotations

import dataclasses
import re

from pinsage_jax.config.fields import Checked, constant, option
from pinsage_jax.core.errors import UserError

# Settings of search that say which items lists hold.
_LIST_RULES = (
    "exclude_seen", "one_per_collection", "min_degree", "where", "boost", "one_per", "block_items",
    "allow_items", "diversity",
)  # fmt: skip
TABLE_FORMATS = ("csv", "markdown", "latex")
DEFAULT_SETTINGS = "hnsw16:32,hnsw16:128,hnsw32:64,hnsw32:256,ivfpq32:8,ivfpq32:32,ivfpq64:32"


@dataclasses.dataclass(frozen=True)
class EvalConfig(Checked):
    """Evaluation, its baselines and related items."""

    baselines: str = option(
        "default",
        "Comma-separated baselines, all or none; default: popularity,content,content_columns,walk,"
        "steered,pagerank, and als where its extra is installed.",
        basic=True,
    )
    bootstrap: int = option(
        1000, "Bootstrap resamples behind the 95% intervals; 0: no intervals.", low=0
    )
    query: str = option(
        "",
        "Comma-separated ids: of items for --mode=neighbors, of collections for --mode=recommend; "
        "empty: a table of all is written. --mode=explain: one item id.",
        basic=True,
    )
    queries: str = option(
        "",
        "--mode=neighbors: table with a column of item ids, whose neighbors are written to "
        "WORKDIR/neighbors.parquet.",
    )
    target: str = option(
        "", "--mode=explain: the item id whose place beside --query is asked for.", basic=True
    )
    k: int | None = option(
        None,
        "Items listed for each id; auto: 10 neighbors of an item, 20 for a collection.",
        auto=int,
        low=1,
        high=10000,
        basic=True,
    )

    tables: str = option(
        "",
        "Formats of the tables of evaluation and ablation that are written to WORKDIR/tables, "
        "comma-separated: csv, markdown, latex.",
    )

    def validate(self) -> None:
        super().validate()
        if strange := set(self.table_formats) - {*TABLE_FORMATS}:
            raise UserError(
                f"--tables={self.tables}: {min(strange)} is not one of {', '.join(TABLE_FORMATS)}."
            )

    @property
    def table_formats(self) -> list[str]:
        """The formats of --tables, each once."""
        names = filter(None, (name.strip() for name in self.tables.split(",")))
        return list(dict.fromkeys(names))

    @property
    def neighbors_listed(self) -> int:
        """Neighbors listed for each item."""
        return self.k or 10

    @property
    def items_recommended(self) -> int:
        """Items listed for each collection."""
        return self.k or 20


@dataclasses.dataclass(frozen=True)
class SearchConfig(Checked):
    """Exact or approximate search, and what may be listed, for neighbors and recommend."""

    index_settings: str = option(
        DEFAULT_SETTINGS,
        "--mode=index: comma-separated indexes to build and measure: hnswM:EF (M links a node, EF "
        "candidates held in a search) and ivfpqB:P (B bytes a vector, P cells searched).",
    )
    search: str = option(
        "exact",
        "How neighbors and recommend search: exact, or by one of the indexes that --mode=index "
        "built, as index.json names it (hnsw32:64).",
    )
    device_recall: float = constant(
        1.0,
        "Share of the best items that exact search of all related items finds on TPUs, in "
        "expectation, by XLA's approximate maximum; 1: all.",
        low=0.5,
        high=1.0,
    )
    exclude_seen: str = option(
        "auto",
        "Leave out items that share a collection with the query (neighbors), or that the "
        "collection holds (recommend); auto: recommend alone.",
        choices=("auto", "on", "off"),
    )
    one_per_collection: bool = option(
        False, "List no item that shares a collection with one listed above it."
    )
    related_by: str = option(
        "auto",
        "What orders related items: the ranker that --mode=rank fitted, the vectors, walks, walks "
        "steered by content, or content alone; auto: the ranker if the workdir has one, else the "
        "vectors.",
        choices=("auto", "ranker", "vectors", "walk", "steered", "content"),
    )
    new_item_price: float | None = option(
        None,
        "Share of the hits on items with edges that the ranker may give up to list items without "
        "edges; auto: as many as leave it at the best single method.",
        auto=float,
        low=0.0,
        high=1.0,
    )
    popularity_weight: float = option(
        1.0,
        "How much the popularity of an item counts in every list, from 0 to 1 (needs "
        "--popularity_bias). Less shows more of the catalog and finds fewer isolated items.",
        low=0.0,
        high=1.0,
    )
    min_degree: int = option(0, "List items with at least so many edges only.", low=0)
    where: str = option(
        "",
        "Expression over columns of --items that must hold for an item to be listed, such as "
        '"in_stock and category == query.category and price < 2 * query.price".',
    )
    boost: str = option(
        "",
        'Expression above 0 that scores are multiplied by, such as "1 + 0.2 * on_sale".',
    )
    one_per: str = option(
        "", "Column of --items of whose values each is listed once, such as a product's variants."
    )
    block_items: str = option(
        "", "Items that are not listed: comma-separated ids, or a table with a column of item ids."
    )
    allow_items: str = option("", "The items that may be listed; empty: all. As --block_items.")
    diversity: float = option(
        0.0,
        "Weight of unlikeness to what is listed above (maximal marginal relevance); 0: none.",
        low=0.0,
        high=0.99,
    )

    def validate(self) -> None:
        super().validate()
        if not self.index_settings.strip():
            raise UserError("--index_settings names no index; leave it out for the usual ones.")

    @property
    def list_rules(self) -> str:
        """The flags given that say which items lists hold, for a message; "" without any."""
        return ", ".join(
            f"--{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if field.name in _LIST_RULES and getattr(self, field.name) != field.default
        )


@dataclasses.dataclass(frozen=True)
class ExplorerConfig(Checked):
    """The explorer: the page of --mode=report, and that of --mode=serve."""

    show_columns: str = option(
        "", "Comma-separated columns of --items that the explorer shows beside each item."
    )
    image_column: str = option(
        "",
        "Column of --items with a picture of each item: a path below --data_dir (or the folder "
        "of --items), or an address at one of --image_hosts.",
    )
    image_hosts: str = option(
        "",
        "Comma-separated hosts that the explorer may load pictures from, such as "
        "img.example.com; with http:// before it, one without TLS.",
    )
    map_layout: str = option(
        "auto",
        "How the map lays out the items: by UMAP, which keeps neighbors together (extra map), or "
        "by two principal components; auto: UMAP if it is installed, from 1,000 items on.",
        choices=("auto", "umap", "pca"),
    )
    explorer_limit: int = constant(
        50_000,
        "Catalogs with more items get no explorer.html beside the report (it would be tens of "
        "MiB); --mode=serve shows them.",
        low=0,
    )
    explorer_edges: int = constant(
        1_000_000,
        "Catalogs with more edges get an explorer.html without collections; --mode=serve shows "
        "them.",
        low=0,
    )
    explorer_image_mb: float = constant(
        16.0, "Most megabytes of thumbnails in explorer.html.", low=0.0
    )

    def validate(self) -> None:
        super().validate()
        image_origins(self.image_hosts)
        if self.image_hosts and not self.image_column:
            raise UserError(
                f"--image_hosts={self.image_hosts} needs --image_column, whose addresses it allows."
            )


def image_origins(hosts: str) -> tuple[str, ...]:
    """The origins that --image_hosts allows, as a content security policy names them.

    Raises:
      UserError: one is no host.
    """
    origins = []
    for host in filter(None, (part.strip().lower() for part in hosts.split(","))):
        if not re.fullmatch(r"(https?://)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?", host):
            raise UserError(
                f"--image_hosts: '{host}' is no host; write it like img.example.com, without a "
                "path or wildcards."
            )
        origins.append(host if "://" in host else f"https://{host}")
    return tuple(origins)


@dataclasses.dataclass(frozen=True)
class ServeConfig(Checked):
    """The HTTP service of --mode=serve."""

    serve_host: str = option(
        "127.0.0.1", "Address to listen on; the default is reached from this machine only."
    )
    serve_port: int = option(
        8080, "Port to listen on; 0: any free one, which is logged.", low=0, high=65535, basic=True
    )
    serve_workers: int = option(
        1,
        "Processes that answer on the port together; each loads the workdir, and vectors of "
        "--export_format=npy are in memory once.",
        low=1,
        high=64,
    )
    follow: str = option(
        "",
        "Edges that arrive: a folder into which files are put (Parquet, Feather, CSV, .jsonl), or "
        "- for JSON lines on standard input.",
    )
    follow_tolerance: float = option(
        0.05,
        "Share of the walks behind a list that may be out of date before it is made again.",
        low=0.0001,
        high=1.0,
    )
    serve_max_neighbors: int = constant(
        100, "Most neighbors that a request may ask for.", low=1, high=10000
    )
    serve_body_kib: int = constant(
        256, "Longest body of a request, in KiB; longer ones are refused.", low=1, high=65536
    )


@dataclasses.dataclass(frozen=True)
class RecommendConfig(Checked):
    """Items for a collection or a user's history, by --mode=recommend."""

    recommend_by: str = option(
        "auto",
        "How a history scores an item: by its mean vector, by medoids of its interests, by the sum "
        "of powers or of exponentials of its similarities, by collections shared with it, by "
        "spectral vectors of the graph, or by a mixture; auto: any of these but interests, "
        "whichever does best in validation.",
        choices=(
            *("auto", "mean", "interests", "power", "attention"),
            *("cooccurrence", "spectral", "mixed"),
        ),
    )
    recommend_interests: int = constant(3, "Most interests (clusters) used of a history.", low=1)
    recommend_ward: float = constant(
        1.2, "Ward distance, of unit vectors, above which interests stay apart.", low=0.0
    )
    recommend_half_life: float = constant(
        0.0,
        "Time in which an item's part in an interest's importance halves, in days or the unit of "
        "--time_column; 0: never.",
        low=0.0,
    )
    test_edges: str = option(
        "",
        "Edges to score recommendations on (Recall@20, NDCG@20); no setting is chosen by them.",
    )
