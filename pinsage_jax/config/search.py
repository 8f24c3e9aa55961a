"""Settings of what is computed from embeddings: evaluation, neighbors, indexes, serving."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, option
from pinsage_jax.core.errors import UserError

DEFAULT_SETTINGS = "hnsw16:32,hnsw16:128,hnsw32:64,hnsw32:256,ivfpq32:8,ivfpq32:32,ivfpq64:32"


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
    exclude_seen: str = option(
        "auto",
        "Leave out items that share a collection with the query (neighbors), or that the "
        "collection holds (recommend); auto: recommend alone.",
        choices=("auto", "on", "off"),
    )
    one_per_collection: bool = option(
        False, "List no item that shares a collection with one listed above it."
    )
    min_degree: int = option(0, "List items with at least so many edges only.", low=0)
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


@dataclasses.dataclass(frozen=True)
class ServeConfig(Checked):
    """The explorer page of --mode=report and the HTTP service of --mode=serve."""

    explorer_limit: int = option(
        50_000,
        "Catalogs with more items get no explorer.html beside the report (it would be tens of "
        "MiB); --mode=serve shows them.",
        low=0,
    )
    serve_host: str = option(
        "127.0.0.1", "Address to listen on; the default is reached from this machine only."
    )
    serve_port: int = option(
        8080, "Port to listen on; 0: any free one, which is logged.", low=0, high=65535
    )
    serve_most: int = option(100, "Most neighbors that a request may ask for.", low=1, high=10000)
    serve_body_kib: int = option(
        256, "Longest body of a request, in KiB; longer ones are refused.", low=1, high=65536
    )
