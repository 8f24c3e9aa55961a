"""The item whose related items are shown first, chosen by a rule and not by hand.

Among at most 64 items that have a title and as many edges as half of the catalog's items, evenly
spaced over the catalog: the one whose ten related items have the most different titles (numbers
aside); of several, the one whose related items have the highest mean cosine to it.
"""

from __future__ import annotations

import re

import numpy as np

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.retrieval.export_quality import evenly_spaced_rows
from pinsage_jax.retrieval.online import ExactSearch

_CANDIDATES, _LISTED = 64, 10
_NUMBERS = re.compile(r"\W*\d+\W*")


def first_query(prepared: Prepared, embeddings: np.ndarray) -> int:
    """The row of the item to show first; see above.

    Args:
      embeddings: float [N, Z], ranked by inner product.
    """
    degree = np.asarray(prepared.graph.degree()[: len(embeddings)])
    # Without any edge the median is of nothing, and every item is a candidate.
    known = degree >= (np.median(degree[degree > 0]) if degree.any() else 0)
    titles = prepared.titles
    if titles is not None:
        titled = np.array([bool(title) for title in titles.to_pylist()])
        known = known & titled if (known & titled).any() else known
    rows = np.flatnonzero(known)
    rows = rows[evenly_spaced_rows(len(rows), _CANDIDATES)].astype(np.int32)
    ids, _ = ExactSearch(embeddings).top_k(embeddings[rows], _LISTED, rows)
    unit = _unit(embeddings[rows])
    best, best_row = (-1, -np.inf), 0
    for row, listed, vector in zip(rows.tolist(), ids, unit, strict=True):
        near = listed[listed >= 0]
        if not len(near):
            continue
        different = 0
        if titles is not None:
            names = (titles[int(one)].as_py() or "" for one in near)
            different = len({_NUMBERS.sub(" ", name.casefold()).strip() for name in names} - {""})
        value = (different, float((_unit(embeddings[near]) @ vector).mean()))
        if value > best:
            best, best_row = value, row
    return best_row


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
