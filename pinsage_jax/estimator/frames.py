"""Tables that Python programs hold, as Arrow tables.

Any object with the Arrow PyCapsule interface is taken (pandas, Polars, DuckDB, Arrow and others),
so that none of these libraries is needed here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.core.errors import UserError
from pinsage_jax.data.tables import Table, table_in_memory


def is_frame(value: Any) -> bool:
    """Whether a value is a table that `as_table` reads."""
    return (
        isinstance(value, pa.Table | Mapping)
        or _is_dataset(value)
        or any(
            hasattr(value, name)
            for name in ("__arrow_c_stream__", "__arrow_c_array__", "__dataframe__")
        )
    )


def in_memory(value: Any, name: str) -> Table:
    """A table of a frame that readers of input tables take; see `as_table`."""
    return table_in_memory(as_table(value, name), name)


def as_table(value: Any, name: str) -> pa.Table:
    """An Arrow table of a frame.

    Args:
      value: a pandas, Polars or Arrow table, any other object with the Arrow PyCapsule
        interface, a Dataset of Hugging Face, or a mapping from names to columns.
      name: what messages call it.

    Raises:
      UserError: it is no table, or a column has values of several types.
    """
    try:
        if isinstance(value, pa.Table):
            return value
        if _is_dataset(value):
            if isinstance(value, Mapping):
                raise UserError(f"{name}: give one split of the dataset ({', '.join(value)}).")
            # The rows that it was filtered or sorted to, in its order.
            return value.with_format("arrow")[:].replace_schema_metadata()
        if isinstance(value, Mapping):
            return pa.table({str(key): _column(column) for key, column in value.items()})
        if type(value).__module__.startswith("pandas"):
            # Without the index, which is no column.
            return pa.Table.from_pandas(value, preserve_index=False).replace_schema_metadata()
        if hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__"):
            return pa.table(value)
    except (pa.ArrowException, TypeError, ValueError) as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{name} cannot be read as a table ({message}).") from None
    raise UserError(
        f"{name} is of type {type(value).__name__}; give a pandas, Polars or Arrow table, or a "
        "dictionary of columns."
    )


def edges_table(value: Any, item: str, collection: str) -> pa.Table | str:
    """Edges as an Arrow table with these two columns, or the path of a table.

    Args:
      value: a frame; a path; a sparse matrix whose rows are collections and whose columns are
        items, with weights as its values; or the items of each collection, as a list of lists
        or a mapping from collections to lists.

    Raises:
      UserError: it is none of these.
    """
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tocoo"):
        matrix = value.tocoo()
        columns = {collection: matrix.row.astype(np.int64), item: matrix.col.astype(np.int64)}
        return pa.table({**columns, "weight": np.asarray(matrix.data, np.float64)})
    if _is_dataset(value):
        return as_table(value, "edges")
    if isinstance(value, Mapping) and {item, collection} <= value.keys():
        return as_table(value, "edges")
    if is_frame(value) and not isinstance(value, Mapping):
        return as_table(value, "edges")
    if isinstance(value, Mapping | Sequence | np.ndarray):
        named = value.items() if isinstance(value, Mapping) else enumerate(value)
        baskets = [(name, np.asarray(items).reshape(-1)) for name, items in named]
        if not baskets:
            raise UserError("edges hold no collection.")
        names = np.repeat(
            np.array([str(name) for name, _ in baskets]), [len(items) for _, items in baskets]
        )
        items = [str(one) for _, basket in baskets for one in basket.tolist()]
        return pa.table({collection: pa.array(names.tolist(), pa.string()), item: items})
    raise UserError(
        f"edges are of type {type(value).__name__}; give a table, a path, a sparse matrix of "
        "collections by items, or the items of each collection."
    )


def ids_of(values: Any, name: str) -> list[str]:
    """Ids as text, from one id, a sequence, an array or a column.

    Raises:
      UserError: an id is neither text nor a whole number.
    """
    if isinstance(values, str | int | np.integer):
        values = [values]
    if hasattr(values, "to_pylist"):
        values = values.to_pylist()
    elif hasattr(values, "tolist"):
        values = values.tolist()
    ids = list(values)
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, str | int | np.integer):
            raise UserError(f"{name}: {one!r} is no id; ids are text or whole numbers.")
    return [str(one) for one in ids]


def names_text(value: Any, argument: str) -> str:
    """Names of columns as a flag takes them: 'auto', or separated by commas.

    Raises:
      UserError: a name has a comma.
    """
    if value is None or value == "auto":
        return "auto"
    names = [value] if isinstance(value, str) else list(value)
    for name in names:
        if "," in name:
            raise UserError(f"{argument}: the column '{name}' has a comma in its name; rename it.")
    return ",".join(names)


def _is_dataset(value: Any) -> bool:
    """Whether a value is a Dataset or DatasetDict of Hugging Face, which are not imported here."""
    return type(value).__module__ in ("datasets.arrow_dataset", "datasets.dataset_dict")


def _column(column: Any) -> Any:
    if isinstance(column, np.ndarray) and column.ndim == 2:
        flat = pa.array(np.ascontiguousarray(column).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
    return column
