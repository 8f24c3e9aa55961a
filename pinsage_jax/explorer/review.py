"""Lists of items that are worth a look: where the model does worst, new items, most listed ones.

N items, k neighbors, P evaluation pairs
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.retrieval.topk import target_ranks

LENGTH = 60
# Pairs that are ranked; more would take as long as an evaluation.
_MAX_PAIRS = 20_000


def review_lists(
    prepared: Prepared, embeddings: np.ndarray, near: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
    """The lists, each with at most LENGTH items.

    Args:
      prepared: the catalog.
      embeddings: float32 [N, Z].
      near: int32 [N, k], each item's nearest items by PinSage, padded with -1.
      scores: float32 [N, k], their scores.

    Returns:
      For each list its key, name and description, the `rows` of its items, int64 [*], the
      `values` by which they were chosen, texts [*], and `targets` int64 [*], the item that
      should have been found, or None.
    """
    degree = prepared.graph.degree()[: prepared.graph.num_items]
    lists = []
    if len(prepared.eval_pairs):
        lists.append(_worst(prepared.eval_pairs, embeddings))
    lists.append(_alone(near, scores))
    lists.append(_new(degree))
    lists.append(_most_listed(near))
    return [each for each in lists if len(each["rows"])]


def _list(
    key: str, name: str, description: str, rows: np.ndarray, values: list[str],
    targets: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    rows = np.asarray(rows, np.int64)[:LENGTH]
    found = {"key": key, "name": name, "description": description, "rows": rows}
    return {
        **found,
        "values": values[: len(rows)],
        "targets": None if targets is None else np.asarray(targets, np.int64)[:LENGTH],
    }


def _worst(pairs: np.ndarray, embeddings: np.ndarray) -> dict[str, Any]:
    pairs = np.unique(pairs, axis=0)
    # Evenly over all pairs, because a prefix would be of the first queries alone.
    pairs = pairs[:: -(-len(pairs) // _MAX_PAIRS)]
    query, target = pairs.T
    ranks = target_ranks(embeddings[query], embeddings, query, target)
    order = np.argsort(-ranks, kind="stable")
    # Each query once, with its worst target.
    _, first = np.unique(query[order], return_index=True)
    chosen = order[np.sort(first)]
    return _list(
        "worst",
        "Worst ranked",
        "Evaluation pairs whose target ranks lowest among the neighbors of its query.",
        query[chosen],
        [f"target ranks {rank:,} of {len(embeddings) - 1:,}" for rank in ranks[chosen[:LENGTH]]],
        target[chosen],
    )


def _alone(near: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    rows = np.flatnonzero(near[:, 0] >= 0)
    order = rows[np.argsort(scores[rows, 0], kind="stable")]
    return _list(
        "alone",
        "Far from all",
        "Items whose nearest neighbor by PinSage has the lowest score.",
        order,
        [f"nearest at {scores[row, 0]:.3f}" for row in order[:LENGTH]],
    )


def _new(degree: np.ndarray) -> dict[str, Any]:
    # Tables are usually appended to, so the last rows are the newest.
    rows = np.flatnonzero(degree == 0)[::-1]
    return _list(
        "new",
        "New",
        f"The last of {len(rows):,} items without an edge: only their features tell what is "
        "near them.",
        rows,
        ["in no collection"] * LENGTH,
    )


def _most_listed(near: np.ndarray) -> dict[str, Any]:
    counts = np.bincount(near[near >= 0].ravel(), minlength=len(near))
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    return _list(
        "listed",
        "Most listed",
        f"Items that are in the most lists of {near.shape[1]} neighbors by PinSage. An item that "
        "is in a great share of all lists hides others.",
        order,
        [f"in {counts[row]:,} of {len(near):,} lists" for row in order[:LENGTH]],
    )
