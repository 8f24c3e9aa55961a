"""The rows that a store takes: id, vector, version of the model, and columns of --items.

N items, d dimensions of a written vector (one more than the export's with --unit_length)
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.core.errors import UserError
from pinsage_jax.stores.unit_length import radius_of, unit_items, unit_queries

ID, VECTOR, VERSION = "item_id", "embedding", "model_version"
_BATCH_ROWS = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class StoreRows:
    """Items of a finished run, as a store takes them.

    Attributes:
      ids: string [N], in catalog order.
      vectors: float32 [N, Z], as inner products compare them.
      columns: columns [N] by the name that they are written under.
      version: the version of the model, the same in every row.
      radius: of vectors that are written with unit length; None: they are written as they are.
    """

    ids: pa.Array
    vectors: np.ndarray
    columns: dict[str, pa.Array]
    version: str
    radius: float | None = None

    @classmethod
    def of(
        cls,
        items: ItemColumns,
        vectors: np.ndarray,
        wanted: str,
        version: str,
        unit_length: bool,
    ) -> StoreRows:
        """The rows of a catalog.

        Args:
          items: ids and columns of the N items.
          vectors: float32 [N, Z].
          wanted: comma-separated names of columns, "all", or "" for none.

        Raises:
          UserError: there is no such column, or two are written under one name.
        """
        radius = radius_of(vectors) if unit_length else None
        found = {new: items.column(old) for new, old in chosen_columns(items, wanted).items()}
        return cls(items.ids.ids.cast(pa.string()), vectors, found, version, radius)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        """d."""
        return self.vectors.shape[1] + int(self.radius is not None)

    @property
    def by_cosine(self) -> bool:
        """Whether the store compares by cosine, rather than by inner product."""
        return self.radius is not None

    @property
    def schema(self) -> pa.Schema:
        """Types of the rows that `batches` yields."""
        fields = [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(VECTOR, pa.list_(pa.float32(), self.dimension), nullable=False),
            pa.field(VERSION, pa.string(), nullable=False),
        ]
        return pa.schema(fields + [pa.field(n, c.type) for n, c in self.columns.items()])

    def items(self, rows: np.ndarray | slice) -> np.ndarray:
        """Vectors of some rows as they are stored, float32 [n, d]."""
        found = np.asarray(self.vectors[rows], np.float32)
        return found if self.radius is None else unit_items(found, self.radius)

    def queries(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of some rows as they are searched with, float32 [n, d]."""
        found = np.asarray(self.vectors[rows], np.float32)
        return found if self.radius is None else unit_queries(found)

    def batches(self, rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """All rows in catalog order, at most `rows` at a time."""
        for begin in range(0, len(self), rows):
            vectors = self.items(slice(begin, begin + rows))
            arrays = [
                self.ids.slice(begin, rows),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.dimension),
                pa.array([self.version] * len(vectors), pa.string()),
                *(column.slice(begin, rows) for column in self.columns.values()),
            ]
            yield pa.record_batch(arrays, schema=self.schema)


def chosen_columns(items: ItemColumns, wanted: str) -> dict[str, str]:
    """Columns of `wanted` by the name that they are written under: letters, digits and _.

    Raises:
      UserError: there is no such column, or two are written under one name.
    """
    (own, *others), found = items.types, {ID: "", VECTOR: "", VERSION: ""}
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if names == ["all"]:
        names = others
    for name in dict.fromkeys(names):
        if name == own:
            continue
        if name not in items.types:
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(others) or '-'}."
            raise UserError(f"--export_columns: --items has no column '{name}'; {hint}")
        written = re.sub(r"\W", "_", name)
        written = f"_{written}" if written[:1].isdigit() else written
        if written in found:
            other = f"that of column '{found[written]}'" if found[written] else "the export's own"
            raise UserError(
                f"--export_columns: column '{name}' would be written as {written}, which is "
                f"{other}; name the columns without it, or rename it in --items."
            )
        found[written] = name
    return {written: name for written, name in found.items() if name}
