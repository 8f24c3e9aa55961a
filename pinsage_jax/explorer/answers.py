"""What the served explorer asks for: an item, a collection, lists for review, the map.

Its methods may be called by several threads in parallel; what takes long is computed once.

  N items, k neighbors
"""

from __future__ import annotations

import functools
import threading
import urllib.parse
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.evaluation.evaluate import OrderedLists
from pinsage_jax.evaluation.side_by_side import METHODS, NeighborsByMethod
from pinsage_jax.explorer import columns, explorer, images, review
from pinsage_jax.explorer.catalog_search import CatalogSearch
from pinsage_jax.explorer.encoding import encode_integers
from pinsage_jax.reporting.sources import Source, directions_of

MAX_LISTED = 200
_MAX_SEARCH_RESULTS = 100


class ExplorerAnswers:
    """Answers with JSON-serializable values; None where there is no such item or collection."""

    def __init__(
        self,
        source: Source,
        prepared: Prepared,
        vectors: np.ndarray,
        row_of: dict[str, int],
        ranker: OrderedLists | None = None,
    ):
        """Prepares to answer; `ranker` is what orders PinSage's lists, if not the vectors.

        Args:
          source: the run's settings and manifest.
          prepared: the catalog.
          vectors: float32 [N, Z], the items' embeddings.
          row_of: row of each item by id.

        Raises:
          UserError: a column that a flag names is missing.
        """
        config: Config = source.config
        explorer.check(config, prepared)
        self._config, self._source, self._prepared = config, source, prepared
        self._vectors, self._row_of = vectors, row_of
        self._methods = NeighborsByMethod(config, prepared, vectors, 1, ranker)
        self._degree = explorer.item_degree(prepared)
        self._images = images.find_images(config, prepared)
        self._columns = columns.named_columns(config.explorer.show_columns)
        # Two requests at once would otherwise compute the same twice.
        self._lock = threading.Lock()

    def page(self) -> str:
        """The page, without the items."""
        data = explorer.page_data(self._config, self._prepared, self._methods)
        origins = None if self._images is None else ("'self'", *self._images.origins)
        return explorer.document(data, connect="'self'", images_from=origins)

    def search(self, query: str, limit: int) -> dict[str, Any]:
        """The number of items with the query's words, the first ones, and whether by a typo."""
        count, rows, similar = self._search.find(query, min(limit, _MAX_SEARCH_RESULTS))
        return {"count": count, "items": self.items(rows), "similar": similar}

    def item(self, item: str) -> dict[str, Any] | None:
        """An item, its neighbors by every method, and the ids of its collections."""
        if (row := self._row_of.get(item)) is None:
            return None
        neighbors = []
        for method in METHODS:
            ids, scores = self._methods.neighbors(method, np.array([row]), explorer.NEIGHBORS)
            valid = ids[0] >= 0
            found = zip(self.items(ids[0, valid]), scores[0, valid])
            neighbors.append([{**entry, "score": float(score)} for entry, score in found])
        graph = self._prepared.graph
        holders = graph.neighbors(row)[:MAX_LISTED].astype(np.int64) - graph.num_items
        return {
            **self.items(np.array([row]))[0],
            "neighbors": neighbors,
            "collections": self._prepared.collection_ids.names(holders).to_pylist(),
        }

    def collection(self, name: str, limit: int) -> dict[str, Any] | None:
        """A collection: its id, the number of its items, and the first ones."""
        if (number := self._collection_of.get(name)) is None:
            return None
        graph = self._prepared.graph
        members = graph.neighbors(graph.num_items + number)
        shown = members[: max(min(limit, MAX_LISTED), 0)]
        return {"id": name, "count": len(members), "items": self.items(shown)}

    def review(self) -> list[dict[str, Any]] | None:
        """The lists for review; None for a catalog of more items than `explorer_limit`."""
        with self._lock:
            return self._review

    def random_item(self) -> dict[str, str]:
        """The id of a random item."""
        row = np.random.default_rng().integers(len(self._vectors))
        return {"id": self._prepared.item_ids.names(np.array([row]))[0].as_py()}

    def map(self) -> dict[str, Any]:
        """Map coordinates, ids and colors of up to 50,000 items."""
        with self._lock:
            return self._map

    def thumbnail(self, item: str) -> bytes | None:
        """The picture of an item as WebP, if it is a local file."""
        row = self._row_of.get(item)
        path = None if row is None or self._images is None else self._images.files[row]
        return None if path is None else images.thumbnail(path)

    def items(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """id, title, degree, shown columns and picture of each row."""
        rows = np.asarray(rows, np.int64)
        names = self._prepared.item_ids.names(rows).to_pylist()
        titles = [None] * len(names)
        if self._prepared.titles is not None:
            titles = self._prepared.titles.take(pa.array(rows)).to_pylist()
        shown = [
            columns.shown_texts(self._prepared.item_columns, name, rows) for name in self._columns
        ]
        return [
            {
                "id": name,
                "title": title,
                "degree": int(self._degree[row]),
                "image": self._image(int(row), name),
                "columns": [values[place] for values in shown],
            }
            for place, (row, name, title) in enumerate(zip(rows, names, titles))
        ]

    def _image(self, row: int, name: str) -> str | None:
        if self._images is None:
            return None
        if self._images.files[row] is not None:
            return f"explorer/image?id={urllib.parse.quote(name, safe='')}"
        return self._images.addresses[row]

    @functools.cached_property
    def _collection_of(self) -> dict[str, int]:
        # A dictionary, because IdTable.lookup hashes all ids in every call.
        names = self._prepared.collection_ids.ids.to_pylist()
        return {name: number for number, name in enumerate(names)}

    @functools.cached_property
    def _search(self) -> CatalogSearch:
        return CatalogSearch(self._prepared)

    @functools.cached_property
    def _review(self) -> list[dict[str, Any]] | None:
        count = len(self._vectors)
        if count > self._config.explorer.explorer_limit:
            return None
        k = min(explorer.NEIGHBORS, max(count - 1, 1))
        found = self._methods.neighbors("PinSage", np.arange(count), k)
        lists = []
        for each in review.review_lists(self._prepared, self._vectors, *found):
            rows, values, targets = each.pop("rows"), each.pop("values"), each.pop("targets")
            wanted = [None] * len(rows) if targets is None else self.items(targets)
            entries = zip(self.items(rows), values, wanted)
            lists.append(
                {**each, "entries": [{**i, "value": v, "target": t} for i, v, t in entries]}
            )
        return lists

    @functools.cached_property
    def _map(self) -> dict[str, Any]:
        directions = directions_of(self._source, self._vectors)
        data = explorer.map_data(self._config, self._prepared, directions, self._config.seed)
        rows = data.pop("rows", np.empty(0, np.int64))
        names = self._prepared.item_ids.names(rows).to_pylist()
        return {**data, "ids": names, "degree": encode_integers(self._degree[rows])}
