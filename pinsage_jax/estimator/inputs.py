"""Turns the arguments of `fit` into the tables and settings of a run."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinsage_jax.core import files
from pinsage_jax.estimator import frames

FOLDER = "inputs"
# The settings that the object was given; run.flags has those of the run alone.
SETTINGS = "object.json"
_TABLES = ("edges", "items", "train_pairs", "eval_pairs")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names and roles of the columns of edges and items, as the arguments of `fit`."""

    item: str
    collection: str
    weight: str
    time: str
    title: str | None
    text: Sequence[str] | str
    categorical: Sequence[str] | str
    numeric: Sequence[str] | str
    dense: Sequence[str] | str
    image: Sequence[str] | str = ()


def write_inputs(
    folder: pathlib.Path, tables: Mapping[str, Any], columns: Columns
) -> dict[str, Any]:
    """Writes tables in memory into the folder; returns settings with the paths of all tables.

    Args:
      tables: edges, items, train_pairs and eval_pairs, as `fit` takes them; None: none.

    Raises:
      UserError: a table is of another kind.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    edges = frames.edges_table(tables["edges"], columns.item, columns.collection)
    weight = columns.weight
    if hasattr(tables["edges"], "tocoo") and isinstance(edges, pa.Table) and not weight:
        weight = _weights_of(edges)
    named: dict[str, Any] = {"edges": _stored(edges, folder, "edges")}
    item_id = columns.item
    for name in _TABLES[1:]:
        given = tables[name]
        if given is None:
            continue
        rows = given
        if not isinstance(given, str | os.PathLike):
            rows = frames.as_table(given, name)
        if name == "items" and isinstance(rows, pa.Table):
            rows = _with_ids(rows, columns.item)
            if columns.item not in rows.column_names:
                item_id = "item_id"
        named[name] = _stored(rows, folder, name)
    return {
        **named,
        "item_column": columns.item,
        "collection_column": columns.collection,
        "item_id_column": item_id,
        "weight_column": weight,
        "time_column": columns.time,
        "title_column": columns.title,
        **{
            f"{kind}_columns": frames.names_text(getattr(columns, kind), kind)
            for kind in ("text", "categorical", "numeric", "dense", "image")
        },
    }


def plain(value: Any) -> Any:
    """Converts a setting to a JSON value."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def moved(source: pathlib.Path, target: pathlib.Path) -> dict[str, Any]:
    """The settings with the paths of the tables in a copied folder."""
    return {
        name: str(target.resolve() / FOLDER / f"{name}.parquet")
        for name in _TABLES
        if (source / FOLDER / f"{name}.parquet").exists()
    }


def _stored(table: pa.Table | str | os.PathLike, folder: pathlib.Path, name: str) -> str:
    """The path of a table, written into the folder if it is in memory."""
    if not isinstance(table, pa.Table):
        return os.fspath(pathlib.Path(table).resolve())
    path = folder / FOLDER / f"{name}.parquet"
    with files.atomic_file(path) as temporary:
        pq.write_table(table, temporary)
    return str(path.resolve())


def _with_ids(table: pa.Table, item: str) -> pa.Table:
    """The table of items; one without ids gets row numbers as ids, like a matrix."""
    if item in table.column_names or "item_id" in table.column_names:
        return table
    return table.add_column(0, item, pa.array(np.arange(table.num_rows)))


def _weights_of(table: pa.Table) -> str:
    """The weight column: that of a matrix's values, unless all values are 1."""
    values = table.column("weight").to_numpy()
    return "" if (values == 1).all() else "weight"
