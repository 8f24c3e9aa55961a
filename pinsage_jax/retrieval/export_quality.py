"""What an export loses beside exact float32, and how it lies beside an earlier one.

Neighbors are the ten best of the whole catalog by exact inner product, for queries
that are spread evenly over the items.

  N items, Q queries, Z coordinates of an embedding, d exported ones
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
    ExportForm,
    StoredVectors,
    principal_directions,
    with_last,
)
from pinsage_jax.export.reader import open_export
from pinsage_jax.retrieval.topk import top_k

NEIGHBORS = 10
QUERIES = 1000
_ROWS = 1 << 16


def spread_rows(count: int, most: int = QUERIES) -> np.ndarray:
    """At most `most` of `count` rows, evenly spaced, int64."""
    size = min(count, most)
    return np.arange(size) * count // max(size, 1)


def shared_share(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each row of ids expected [Q, k] (-1: none), the share that is in found; float64 [Q]."""
    hits = (expected[:, :, None] == found[:, None, :]).any(axis=2) & (expected >= 0)
    wanted = (expected >= 0).sum(axis=1)
    return np.where(wanted > 0, hits.sum(axis=1) / np.maximum(wanted, 1), 1.0)


def recall_of(
    form: ExportForm, vectors: np.ndarray, expected: np.ndarray | None = None
) -> dict[str, Any]:
    """recall@10 of vectors as stored beside float32 [N, Z], for the manifest.

    Args:
      expected: int32 [Q, 10] neighbors in float32 of spread_rows, if known.

    Returns:
      {"recall@10", "loss@10", "standard_error", "queries"}.
    """
    rows = spread_rows(len(vectors))
    if form.is_exact or len(vectors) < 2:
        return {"recall@10": 1.0, "loss@10": 0.0, "standard_error": 0.0, "queries": len(rows)}
    if expected is None:
        expected = top_k(vectors[rows], vectors, NEIGHBORS, rows)[0]
    stored = StoredVectors(vectors, form)
    found = top_k(stored[rows], stored, NEIGHBORS, rows)[0]
    shares = shared_share(found, expected)
    recall = float(shares.mean())
    return {
        "recall@10": recall,
        "loss@10": 1.0 - recall,
        "standard_error": float(shares.std() / math.sqrt(len(rows))),
        "queries": len(rows),
    }


def choose_form(
    vectors: np.ndarray,
    ids: IdTable,
    dtype: str,
    dim: int | None,
    last_apart: bool,
    align_to: str,
) -> tuple[ExportForm, dict[str, Any]]:
    """The form that the settings ask for, and what the manifest says about it.

    Args:
      vectors: float32 [N, Z] of the items `ids`.
      dim: d; None: Z.
      last_apart: whether the last coordinate is a popularity.
      align_to: folder of an earlier export, or empty.

    Raises:
      UserError: the earlier export has other dimensions or shares no item.
    """
    transform, about = None, {}
    if dim and dim < vectors.shape[1]:
        transform = principal_directions(vectors, dim, last_apart)
    if align_to:
        rotation, about["aligned"] = _aligned(
            vectors, ids, ExportForm("float32", last_apart, transform), align_to
        )
        transform = rotation if transform is None else transform @ rotation
    form = ExportForm(dtype, last_apart, transform)
    about["against_float32"] = recall_of(form, vectors)
    if not form.is_exact:
        logging.info(
            "export: %s, %d dimensions: recall@10 against float32 is %.4f",
            dtype, form.moved(vectors[:0]).shape[1], about["against_float32"]["recall@10"],
        )  # fmt: skip
    return form, about


def _aligned(
    vectors: np.ndarray, ids: IdTable, form: ExportForm, folder: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rotation float32 [d, d] onto an earlier export, and what it brings."""
    earlier = open_export(folder)
    width = form.moved(vectors[:0]).shape[1]
    # Exports of before there was a choice do not say whether they have a popularity.
    apart = earlier.manifest.get("last_apart", form.last_apart)
    if earlier.dimension != width or apart != form.last_apart:
        raise UserError(
            f"--align_to={folder} has {earlier.dimension} dimensions"
            f"{' with a popularity' if apart else ''}, this export {width}"
            f"{' with a popularity' if form.last_apart else ''}; make both alike with "
            "--export_dim and --popularity_bias."
        )
    rows = ids.lookup(earlier.ids().ids)
    theirs = np.flatnonzero(rows >= 0)
    ours = rows[theirs]
    if len(ours) == 0:
        raise UserError(f"--align_to={folder} shares no item with this catalog.")
    old = earlier.vectors()
    free = width - int(form.last_apart)
    product, squares = np.zeros((free, free)), np.zeros(2)
    for begin in range(0, len(ours), _ROWS):
        span = slice(begin, begin + _ROWS)
        new_rows = form.moved(vectors[ours[span]])[:, :free].astype(np.float64)
        old_rows = np.asarray(old[theirs[span]], np.float64)[:, :free]
        product += new_rows.T @ old_rows
        squares += np.square(new_rows).sum(), np.square(old_rows).sum()
    # The rotation of least squares depends on the product alone.
    turn, gain = orthogonal_procrustes(np.eye(free), product)
    rotation = with_last(turn, form.last_apart)

    def residual(overlap: float) -> float:
        return float(math.sqrt(max(squares.sum() - 2 * overlap, 0.0) / max(squares[1], 1e-12)))

    turned = rotation if form.transform is None else form.transform @ rotation
    after = ExportForm("float32", form.last_apart, turned)
    return rotation, {
        "to": str(folder),
        "earlier_settings": earlier.manifest.get("settings"),
        "earlier_step": earlier.manifest.get("step"),
        "shared_items": len(ours),
        "residual": {"before": residual(float(np.trace(product))), "after": residual(float(gain))},
        "neighbor_churn@10": _churn(
            StoredVectors(old, ExportForm(), theirs), StoredVectors(vectors, form, ours),
            StoredVectors(vectors, after, ours),
        ),
    }  # fmt: skip


def _churn(old: StoredVectors, before: StoredVectors, after: StoredVectors) -> dict[str, Any]:
    """Shares of ten old neighbors that are gone, among the shared items alone.

    before, after: an earlier vector asks the new ones, as where queries were stored.
    own: the new vector asks; no rotation can change that.
    """
    rows = spread_rows(len(old))
    expected = top_k(old[rows], old, NEIGHBORS, rows)[0]

    def gone(queries: np.ndarray, catalog: StoredVectors) -> float:
        found = top_k(queries, catalog, NEIGHBORS, rows)[0]
        return float(1.0 - shared_share(found, expected).mean())

    return {
        "before": gone(old[rows], before),
        "after": gone(old[rows], after),
        "own": gone(after[rows], after),
        "queries": len(rows),
    }
