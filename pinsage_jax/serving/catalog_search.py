"""Text search over titles and ids, in a catalog of any size.

Results are ordered as by the explorer's own search (explorer/web/explorer.js).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinsage_jax.catalog.prepare import Prepared


class CatalogSearch:
    """Substring search over lower-case titles and ids; every query scans the catalog."""

    def __init__(self, prepared: Prepared):
        self._degree = prepared.graph.degree()[: prepared.graph.num_items]
        self._ids = pc.utf8_lower(prepared.item_ids.ids)
        self._titles = self._ids
        if prepared.titles is not None:
            self._titles = pc.fill_null(pc.utf8_lower(prepared.titles), "")

    def find(self, query: str, limit: int) -> tuple[int, np.ndarray]:
        """Finds the items whose title or id contains every word of the query.

        First comes the item whose id equals the query, then ids and then titles that begin
        with it; among equals, items with more edges come first.

        Returns:
          The number of matches, and the rows int64 of the first `limit` of them.
        """
        whole = query.strip().lower()
        words = whole.split()
        if not words:
            return 0, np.empty(0, np.int64)
        matches = pa.scalar(True)
        for word in words:
            in_column = [pc.match_substring(column, word) for column in (self._ids, self._titles)]
            matches = pc.and_(matches, pc.or_(*in_column))
        rows = np.flatnonzero(matches.to_numpy(zero_copy_only=False))
        ids, titles = self._ids.take(pa.array(rows)), self._titles.take(pa.array(rows))
        tests = [pc.equal(ids, whole), pc.starts_with(ids, whole), pc.starts_with(titles, whole)]
        rank = np.select([test.to_numpy(zero_copy_only=False) for test in tests], [0, 1, 2], 3)
        order = np.lexsort((rows, -self._degree[rows], rank))
        return len(rows), rows[order[:limit]]
