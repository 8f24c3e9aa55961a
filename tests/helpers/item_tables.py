"""Prepared catalogs with columns of --items, without tables on disk."""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from pinsage_jax.catalog.item_columns import ItemColumns, stored_type
from pinsage_jax.catalog.prepare import Prepared


def with_columns(prepared: Prepared, **columns: object) -> Prepared:
    """The catalog with columns, each an Arrow array or a list of one value per item."""
    arrays = {}
    for name, values in columns.items():
        array = values if isinstance(values, pa.Array) else pa.array(values)
        arrays[name] = array.cast(stored_type(array.type))
    types = {name: array.type for name, array in arrays.items()}
    found = ItemColumns(prepared.item_ids, "item_id", types, arrays.__getitem__)
    return dataclasses.replace(prepared, columns_file=found)
