"""Settings of random-walk neighborhoods, and of the pairs and negatives drawn with them."""

from __future__ import annotations

import dataclasses

from pinsage_jax.config.fields import Checked, constant, option
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
    resample: bool = constant(
        False, "Draw new neighborhoods every epoch instead of one set for the run."
    )
    content_neighbors: int = option(
        10,
        "C: content-nearest items appended to every list, for items with few edges.",
        low=0,
        high=1000,
    )
    content_kappa: float = constant(
        0.5, "Edges at which an item's walk neighbors and content links weigh the same.", low=0.0
    )
    content_limit: int = constant(
        200_000,
        "Catalogs with more items get content links for items without edges only, and to a "
        "sample of 65,536 items.",
        low=0,
    )
    pair_power: float = constant(
        0.2,
        "Collections give training pairs in proportion to (size - 1) to this power; "
        "1 visits every edge once an epoch.",
        low=0.0,
        high=2.0,
    )
    hard_low: int = constant(2000, "Best personalized-PageRank rank of a hard negative.", low=1)
    hard_high: int = constant(5000, "Worst personalized-PageRank rank of a hard negative.", low=2)
    hard_scale: bool = constant(
        True, "Scale the band of ranks down when the catalog is smaller than 100 bands."
    )
    hard_walks: int = option(1000, "Walks per query to rank hard-negative candidates.", low=1)

    def validate(self) -> None:
        super().validate()
        if self.hard_low >= self.hard_high:
            raise UserError(f"hard_low={self.hard_low} must be below hard_high={self.hard_high}.")


@dataclasses.dataclass(frozen=True)
class StoreConfig(Checked):
    """Where sampled neighborhoods are kept; changes no result."""

    neighborhood_store: str = option(
        "auto",
        "Neighborhoods walked once and kept in memory, once and kept on disk (in checked shards "
        "that later stages and killed runs find again), or when asked for. auto: memory up to "
        "256 MiB, disk beyond. With resample, memory keeps the lists of one epoch while training "
        "is in it, and none and auto beyond 256 MiB keep nothing.",
        choices=("auto", "memory", "disk", "none"),
    )
