"""Finds items by words of their title or id, in a catalog of any size.

The order is that of the explorer's own search (reporting/web/explorer.js).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.catalog.prepare import Prepared


class CatalogSearch:
    """Titles and ids in lower case, searched from end to end."""

    def __init__(self, prepared: Prepared):
        self._degree = prepared.graph.degree()[: prepared.graph.num_items]
        self._ids = pc.utf8_lower(prepared.item_ids.ids)
        self._titles = self._ids
        if prepared.titles is not None:
            self._titles = pc.fill_null(pc.utf8_lower(prepared.titles), "")

    def find(self, words: str, most: int) -> tuple[int, np.ndarray]:
        """How many items hold every word, and the first `most` of them, int64.

        First comes the item of that very id, then ids and then titles that begin like it;
        among these, items of more edges.
        """
        whole = words.strip().lower()
        parts = whole.split()
        if not parts:
            return 0, np.empty(0, np.int64)
        held = pa.scalar(True)
        for part in parts:
            either = [pc.match_substring(column, part) for column in (self._ids, self._titles)]
            held = pc.and_(held, pc.or_(*either))
        found = np.flatnonzero(held.to_numpy(zero_copy_only=False))
        ids, titles = self._ids.take(pa.array(found)), self._titles.take(pa.array(found))
        begins = [pc.equal(ids, whole), pc.starts_with(ids, whole), pc.starts_with(titles, whole)]
        rank = np.select([test.to_numpy(zero_copy_only=False) for test in begins], [0, 1, 2], 3)
        order = np.lexsort((found, -self._degree[found], rank))
        return len(found), found[order[:most]]
