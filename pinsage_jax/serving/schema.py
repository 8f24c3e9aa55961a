"""What requests and answers hold, as pydantic models; /docs and /openapi.json show them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pinsage_jax.listing.rules import Listing
from pinsage_jax.serving.service import MAX_REQUEST_ITEMS, listing_of_request

_DEFAULT_K = 10
Ids = Annotated[list[str], Field(min_length=1, max_length=MAX_REQUEST_ITEMS)]


class Asked(BaseModel):
    """What every request for lists may hold beside its items; another key is refused."""

    model_config = ConfigDict(extra="forbid")
    k: int = Field(_DEFAULT_K, description="Neighbors of each item.")
    where: str = Field(
        "",
        description="Expression that must hold for an item to be listed, such as "
        '"in_stock and price < 2 * query.price".',
    )
    boost: str = Field("", description="Expression above 0 that scores are multiplied by.")
    one_per: str = Field("", description="Column of whose values each is listed once.")
    block_items: list[str] = Field([], description="Ids that are not listed.")
    allow_items: list[str] | None = Field(None, description="Ids that alone are listed.")
    columns: list[str] = Field(
        [], description="Columns of --items to return beside each neighbor, such as an image's URL."
    )

    @property
    def listing(self) -> Listing:
        """The rules, as the service takes them."""
        return listing_of_request(
            self.where, self.boost, self.one_per, self.block_items, self.allow_items
        )


class Item(Asked):
    """An item whose neighbors are asked for."""

    item: str


class Items(Asked):
    """Items whose neighbors are asked for."""

    items: Ids


class History(Asked):
    """The items of a user's history."""

    items: Ids


class NewItems(Asked):
    """Rows with the columns of --new_items and --new_edges."""

    items: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_REQUEST_ITEMS)]
    edges: list[dict[str, Any]] = []


class Neighbor(BaseModel):
    """A listed item; `title` if the catalog has titles, `columns` if they were asked for."""

    item_id: str
    score: float
    title: str | None = None
    columns: dict[str, Any] | None = None


class NeighborsOfItem(BaseModel):
    """The neighbors of one item, best first."""

    item: str
    neighbors: list[Neighbor]


class NeighborsOfItems(BaseModel):
    """The neighbors of several items."""

    items: list[NeighborsOfItem]


class NeighborsOfNewItems(NeighborsOfItems):
    """The neighbors of new items; `clipped` names numbers beyond the range of the catalog."""

    clipped: list[str] | None = None


class Recommended(BaseModel):
    """Items for a history, best first, and its ids that the catalog does not hold."""

    neighbors: list[Neighbor]
    unknown_items: list[str]


class Health(BaseModel):
    """What is served: `updated` with the changes of WORKDIR/updated.

    `reload_error` says why a newer model in the workdir is not served.  `followed` counts the
    events of --mode=follow, the edges that they changed and the items embedded again.
    """

    status: str
    items: int
    dimension: int
    step: int | None
    search: str
    history_scoring: str
    new_items: bool
    updated: bool
    followed: dict[str, int] | None
    loaded_at: str
    reload_error: str | None


class Error(BaseModel):
    """Every answer with a status from 400 on."""

    error: str
