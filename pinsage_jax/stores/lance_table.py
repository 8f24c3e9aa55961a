"""A LanceDB database with one table (extra `lancedb`).

import lancedb
table = lancedb.connect(FOLDER).open_table("items")
table.search(query).distance_type("dot").limit(10).to_arrow()
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.core.errors import UserError
from pinsage_jax.stores.rows import ID, VECTOR, VERSION, StoreRows


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError:
        raise UserError(
            "A LanceDB table needs lancedb: pip install 'pinsage-jax[lancedb]'."
        ) from None
    return lancedb


def write(rows: StoreRows, table: str, folder: pathlib.Path) -> str:
    """Writes the database into a folder; returns how to go on."""
    database = _lancedb().connect(str(folder))
    database.create_table(table, data=rows.batches(), schema=rows.schema)
    metric = "cosine" if rows.by_cosine else "dot"
    return f'lancedb.connect("{{}}").open_table("{table}").search(vector).distance_type("{metric}")'


def read(folder: pathlib.Path, table: str) -> pa.Table:
    """Ids, vectors and versions of a table.

    Raises:
      UserError: there is no such table, or it has no such columns.
    """
    opened = _open(folder, table)
    lacking = [name for name in (ID, VECTOR) if name not in opened.schema.names]
    if lacking:
        raise UserError(f"{folder}/{table}.lance has no column '{lacking[0]}'.")
    names = [name for name in (ID, VECTOR, VERSION) if name in opened.schema.names]
    return opened.to_arrow().select(names)


def search(
    folder: pathlib.Path, table: str, queries: np.ndarray, k: int, by_cosine: bool
) -> list[list[str]]:
    """Ids of the k nearest items of queries float32 [q, d], as the table itself finds them."""
    opened = _open(folder, table)
    metric = "cosine" if by_cosine else "dot"
    found = []
    for query in queries:
        nearest = (
            opened.search(query).distance_type(metric).limit(k).select([ID, "_distance"]).to_list()
        )
        found.append([row[ID] for row in nearest])
    return found


def _open(folder: pathlib.Path, table: str) -> Any:
    # A connection to a folder that is not there would make it.
    if not (folder / f"{table}.lance").is_dir():
        raise UserError(f"{folder} has no LanceDB table '{table}'; see --export_table.")
    return _lancedb().connect(str(folder)).open_table(table)
