"""Settings of searching the embeddings: indexes, filters, diversity."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, option
from pinsage_jax.core.errors import UserError

DEFAULT_SETTINGS = "hnsw16:32,hnsw16:128,hnsw32:64,hnsw32:256,ivfpq32:8,ivfpq32:32,ivfpq64:32"


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
