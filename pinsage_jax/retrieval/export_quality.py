"""Measures the recall that an export loses against float32; aligns it to an earlier export.

Neighbors are the ten best items of the whole catalog by exact inner product; the queries
are items, evenly spaced over the catalog.

  N items, Q queries, Z embedding coordinates, d exported coordinates
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from absl import logging
from scipy.linalg import orthogonal_procrustes

from pinsage_jax.core.errors import UserError
from pinsage_jax.data.ids import IdTable
from pinsage_jax.export.codec import (
    StoredVectors,
    VectorCodec,
    extend_to_bias,
    principal_directions,
)
from pinsage_jax.export.reader import open_export
from pinsage_jax.retrieval.topk import top_k

NEIGHBORS = 10
QUERIES = 1000
_MOST_COMPARISONS = 10**10
_ROWS = 1 << 16


def evenly_spaced_rows(count: int, limit: int = QUERIES) -> np.ndarray:
    """At most `limit` of `count` rows, evenly spaced, int64; fewer of more than 10 million.

    Exact search compares each of them with every row.
    """
    size = min(count, limit, max(_MOST_COMPARISONS // max(count, 1), 100))
    return np.arange(size) * count // max(size, 1)


def recall_per_query(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Share of each query's expected ids that were found.

    Args:
      found: int [Q, m]; padded with -1.
      expected: int [Q, k]; padded with -1.

    Returns:
      float64 [Q]; 1 for a query that expects nothing.
    """
    hits = (expected[:, :, None] == found[:, None, :]).any(axis=2) & (expected >= 0)
    relevant = (expected >= 0).sum(axis=1)
    return np.where(relevant > 0, hits.sum(axis=1) / np.maximum(relevant, 1), 1.0)


def recall_against_float32(
    codec: VectorCodec, vectors: np.ndarray, expected: np.ndarray | None = None
) -> dict[str, Any]:
    """recall@10 of search over the encoded vectors against search over the float32 ones.

    Args:
      codec: how the vectors are stored.
      vectors: float32 [N, Z].
      expected: int32 [Q, 10], float32 neighbors of evenly_spaced_rows, if known.

    Returns:
      {"recall@10", "loss@10", "standard_error", "queries"}, for the manifest.
    """
    rows = evenly_spaced_rows(len(vectors))
    if codec.is_exact or len(vectors) < 2:
        return {"recall@10": 1.0, "loss@10": 0.0, "standard_error": 0.0, "queries": len(rows)}
    if expected is None:
        expected = top_k(vectors[rows], vectors, NEIGHBORS, rows)[0]
    stored = StoredVectors(vectors, codec)
    found = top_k(stored[rows], stored, NEIGHBORS, rows)[0]
    per_query = recall_per_query(found, expected)
    recall = float(per_query.mean())
    return {
        "recall@10": recall,
        "loss@10": 1.0 - recall,
        "standard_error": float(per_query.std() / math.sqrt(len(rows))),
        "queries": len(rows),
    }


def choose_codec(
    vectors: np.ndarray,
    ids: IdTable,
    dtype: str,
    dim: int | None,
    separate_bias: bool,
    align_to: str,
) -> tuple[VectorCodec, dict[str, Any]]:
    """Builds the codec of an export and measures what it loses.

    Args:
      vectors: float32 [N, Z] of the items `ids`.
      ids: N item ids.
      dtype: float32, float16 or int8.
      dim: d; None keeps all Z coordinates.
      separate_bias: whether the last coordinate is a popularity bias.
      align_to: folder of an earlier export, or empty.

    Returns:
      The codec, and the manifest's entries about it: "against_float32", and "aligned" for an
      aligned export.

    Raises:
      UserError: the earlier export has other dimensions or shares no item.
    """
    transform, entries = None, {}
    if dim and dim < vectors.shape[1]:
        transform = principal_directions(vectors, dim, separate_bias)
    if align_to:
        rotation, entries["aligned"] = _align(
            vectors, ids, VectorCodec("float32", separate_bias, transform), align_to
        )
        transform = rotation if transform is None else transform @ rotation
    codec = VectorCodec(dtype, separate_bias, transform)
    entries["against_float32"] = recall_against_float32(codec, vectors)
    if not codec.is_exact:
        logging.info(
            "export: %s, %d dimensions: recall@10 against float32 is %.4f",
            dtype, codec.project(vectors[:0]).shape[1], entries["against_float32"]["recall@10"],
        )  # fmt: skip
    return codec, entries


def _align(
    vectors: np.ndarray, ids: IdTable, codec: VectorCodec, folder: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Rotates the new export onto an earlier one (orthogonal Procrustes over shared items).

    Returns:
      The rotation float32 [d, d], and the manifest's entry about the alignment.
    """
    earlier = open_export(folder)
    width, bias = codec.project(vectors[:0]).shape[1], codec.separate_bias_scale
    earlier_bias = earlier.codec.separate_bias_scale
    if earlier.dimension != width or earlier_bias != bias:
        raise UserError(
            f"--align_to={folder} has {earlier.dimension} dimensions"
            f"{' with a popularity bias' if earlier_bias else ''}, this export {width}"
            f"{' with a popularity bias' if bias else ''}; make both alike with "
            "--export_dim and --popularity_bias."
        )
    rows = ids.lookup(earlier.ids().ids)
    old_shared = np.flatnonzero(rows >= 0)
    new_shared = rows[old_shared]
    if len(new_shared) == 0:
        raise UserError(f"--align_to={folder} shares no item with this catalog.")
    old = earlier.vectors()
    rotated = width - int(bias)
    product, squares = np.zeros((rotated, rotated)), np.zeros(2)
    for begin in range(0, len(new_shared), _ROWS):
        span = slice(begin, begin + _ROWS)
        new_rows = codec.project(vectors[new_shared[span]])[:, :rotated].astype(np.float64)
        old_rows = np.asarray(old[old_shared[span]], np.float64)[:, :rotated]
        product += new_rows.T @ old_rows
        squares += np.square(new_rows).sum(), np.square(old_rows).sum()
    # The least-squares rotation depends on new.T @ old alone, so rows need not be in memory.
    solution, overlap_after = orthogonal_procrustes(np.eye(rotated), product)
    rotation = extend_to_bias(solution, bias)

    def residual(overlap: float) -> float:
        return float(math.sqrt(max(squares.sum() - 2 * overlap, 0.0) / max(squares[1], 1e-12)))

    transform = rotation if codec.transform is None else codec.transform @ rotation
    after = VectorCodec("float32", bias, transform)
    return rotation, {
        "to": str(folder),
        "earlier_settings": earlier.manifest.get("settings"),
        "earlier_step": earlier.manifest.get("step"),
        "shared_items": len(new_shared),
        "residual": {
            "before": residual(float(np.trace(product))), "after": residual(float(overlap_after))
        },
        "neighbor_churn@10": _neighbor_churn(
            StoredVectors(old, VectorCodec(), old_shared),
            StoredVectors(vectors, codec, new_shared),
            StoredVectors(vectors, after, new_shared),
        ),
    }  # fmt: skip


def _neighbor_churn(
    old: StoredVectors, before: StoredVectors, after: StoredVectors
) -> dict[str, Any]:
    """Share of the ten old neighbors that are no longer neighbors, over the shared items.

    Args:
      old: vectors of the earlier export.
      before, after: vectors of the new export before and after the rotation.

    Returns:
      old_queries_before, old_queries_after: the query is the old vector, as where queries
        were stored or cached.
      new_queries: the query is the new vector, so that no rotation changes the result.
      queries: how many queries were measured.
    """
    rows = evenly_spaced_rows(len(old))
    expected = top_k(old[rows], old, NEIGHBORS, rows)[0]

    def churn(queries: np.ndarray, catalog: StoredVectors) -> float:
        found = top_k(queries, catalog, NEIGHBORS, rows)[0]
        return float(1.0 - recall_per_query(found, expected).mean())

    return {
        "old_queries_before": churn(old[rows], before),
        "old_queries_after": churn(old[rows], after),
        "new_queries": churn(after[rows], after),
        "queries": len(rows),
    }
