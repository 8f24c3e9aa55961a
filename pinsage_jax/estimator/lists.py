"""Builds the tables of listed items, and the rules by which they are listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.estimator import frames
from pinsage_jax.estimator.wording import unknown_name
from pinsage_jax.listing.rules import Listing


def listing_of(where: str, boost: str, one_per: str, block: Any, allow: Any) -> Listing:
    """The listing of a call; ids may be of any type that frames.ids_of accepts."""
    return Listing(
        (where,) if where else (),
        boost,
        one_per,
        frames.ids_of(block, "block"),
        None if allow is None else frames.ids_of(allow, "allow"),
        prefix="",
    )


def listed(
    prepared: Prepared,
    rows: np.ndarray,
    ids: np.ndarray,
    scores: np.ndarray,
    columns: Sequence[str],
    with_query: bool,
) -> pa.Table:
    """Builds a table of the lists int [Q, n] of the items `rows` [Q]."""
    query, place = np.nonzero(ids >= 0)
    listed = pa.array(ids[query, place].astype(np.int64))
    found: dict[str, Any] = {}
    if with_query:
        found["query"] = prepared.item_ids.names(rows[query])
    found["item"] = prepared.item_ids.ids.take(listed)
    found["score"] = pa.array(scores[query, place])
    if prepared.titles is not None:
        found["title"] = prepared.titles.take(listed)
    known = prepared.item_columns
    for name in [columns] if isinstance(columns, str) else columns:
        if name not in known.types:
            raise unknown_name(name, known.types, "column")
        found[name] = known.column(name).take(listed)
    return pa.table(found)
