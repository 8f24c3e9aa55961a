"""A few vectors and queries of a model with their answers, and what a store holds beside them.

canary.json, in every folder that --mode=export writes:

  model_version, store, items, dimension, metric, radius
  vectors   [{item_id, embedding, sha256}, ...]  as they must be stored; sha256 is that of the
            vector's float32 numbers, little-endian
  queries   [{item_id, embedding, neighbors: [{item_id, score}, ...]}, ...]  a vector to search
            with and its nearest items by exact search, best first; the item itself is not
            left out
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.core.errors import UserError
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.ids import IdTable
from pinsage_jax.retrieval.topk import top_k
from pinsage_jax.stores.rows import ID, VECTOR, StoreRows

FILE = "canary.json"
VECTORS, QUERIES, NEIGHBORS = 20, 3, 10
# Of the length of a vector: what float16 loses is a twentieth of it.
_TOLERANCE = 1e-2
_NAMED = 5


def canary_rows(count: int, most: int) -> np.ndarray:
    """Up to `most` rows of `count`, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(most, count)).round().astype(np.int64))


def canary(rows: StoreRows) -> dict[str, Any]:
    """The contents of canary.json."""
    some = canary_rows(len(rows), VECTORS)
    stored = rows.items(some)
    asked = canary_rows(len(rows), QUERIES)
    return {
        "model_version": rows.version,
        "items": len(rows),
        "dimension": rows.dimension,
        "metric": "cosine" if rows.by_cosine else "inner product",
        "radius": rows.radius,
        "vectors": [
            {ID: rows.ids[int(row)].as_py(), VECTOR: vector.tolist(), "sha256": digest(vector)}
            for row, vector in zip(some, stored, strict=True)
        ],
        "queries": [
            {ID: rows.ids[int(row)].as_py(), VECTOR: query.tolist(), "neighbors": listed}
            for row, query, listed in zip(
                asked, rows.queries(asked), _listed(rows, asked), strict=True
            )
        ],
    }


def _listed(rows: StoreRows, asked: np.ndarray) -> list[list[dict[str, Any]]]:
    """The nearest items of some rows, with the scores that the store gives them."""
    found = []
    for query, nearest in zip(rows.queries(asked), neighbors_of(rows, asked), strict=True):
        scores = rows.items(nearest) @ query
        found.append(
            [
                {ID: rows.ids[int(item)].as_py(), "score": float(score)}
                for item, score in zip(nearest, scores, strict=True)
            ]
        )
    return found


def neighbors_of(rows: StoreRows, asked: np.ndarray) -> np.ndarray:
    """The nearest items of some rows by inner product, int [q, k]."""
    vectors = np.asarray(rows.vectors, np.float32)
    return top_k(vectors[asked], vectors, min(NEIGHBORS, len(rows)))[0]


def digest(vector: np.ndarray) -> str:
    """SHA-256 of float32 [d], little-endian, as hexadecimal digits."""
    return hashlib.sha256(np.asarray(vector, "<f4").tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """What a store holds.

    Attributes:
      label: names it in messages.
      ids: string [n].
      vectors: float32 [n, d].
      versions: the version of the model beside each vector, string [n]; None: it holds none.
    """

    label: str
    ids: pa.Array
    vectors: np.ndarray
    versions: pa.Array | None = None


def compare(rows: StoreRows, held: Held) -> str:
    """Compares every vector that a store holds with that of this model.

    Args:
      rows: the model's, of unit length if those of the store are.

    Returns:
      A sentence that says how many agree.

    Raises:
      UserError: a vector is another model's, or one of the canaries is not there.
    """
    found = IdTable(rows.ids.cast(pa.large_string())).lookup(held.ids.cast(pa.large_string()))
    if held.vectors.shape[1] != rows.dimension:
        raise UserError(
            f"{held.label} holds vectors of {held.vectors.shape[1]} dimensions, and this model's "
            f"have {rows.dimension}; load it again from --mode=export."
        )
    problems = _problems(rows, held, found)
    wanted = canary_rows(len(rows), VECTORS)
    missing = wanted[~np.isin(wanted, found)]
    count = f"{len(set(found[found >= 0])):,} of {len(rows):,} items"
    if problems:
        named = "; ".join(f"{_name(held.ids, at)} {why}" for at, why in problems[:_NAMED])
        more = f"; and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
        raise UserError(
            f"{held.label} holds {count}, and {len(problems):,} of its {len(held.ids):,} rows are "
            f"not this model's (version {rows.version}): {named}{more}. Load it again from "
            "--mode=export."
        )
    if len(missing):
        named = ", ".join(_name(rows.ids, row) for row in missing[:_NAMED])
        raise UserError(
            f"{held.label} holds {count}; {len(missing)} of the {len(wanted)} items that are "
            f"checked (canary.json) are not among them: {named}."
        )
    return f"{held.label} holds {count}, and every vector is this model's ({rows.version})."


def _problems(rows: StoreRows, held: Held, found: np.ndarray) -> list[tuple[int, str]]:
    """Rows of a store that differ, each with what is wrong."""
    known = np.flatnonzero(found >= 0)
    expected = rows.items(found[known])
    apart = np.linalg.norm(held.vectors[known] - expected, axis=1)
    lengths = np.linalg.norm(expected, axis=1)
    # A vector that is not finite is apart from any.
    differs = ~(apart <= _TOLERANCE * np.maximum(lengths, 1e-12))
    why: dict[int, str] = {}
    for at in np.flatnonzero(differs):
        why[int(known[at])] = f"is {apart[at]:.3g} away, of a length of {lengths[at]:.3g}"
    if held.versions is not None:
        other = pc.fill_null(pc.not_equal(held.versions, rows.version), True)
        for at in np.flatnonzero(other.to_numpy(zero_copy_only=False)):
            version = held.versions[int(at)].as_py()
            why.setdefault(int(at), f"is of version {version or 'unknown'}")
    for at in np.flatnonzero(found < 0):
        why[int(at)] = "is no item of this catalog"
    return sorted(why.items())


def _name(ids: pa.Array, row: int) -> str:
    return format_id(ids[int(row)].as_py())
