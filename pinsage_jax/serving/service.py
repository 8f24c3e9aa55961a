"""What the server answers, without a word about HTTP but for the status of a refusal.

One object holds the catalog, its vectors and perhaps an index of them; its methods are
called by several threads at once and only read it.

  N items, Z embedding dimensions, k neighbors
"""

from __future__ import annotations

import functools
import uuid
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.tables import Table, table_in_memory
from pinsage_jax.evaluation.side_by_side import METHODS, NeighborsByMethod
from pinsage_jax.export.codec import VectorCodec
from pinsage_jax.inference.new_item_model import NewItemModel
from pinsage_jax.recommend.choice import Choice
from pinsage_jax.recommend.recommend import saved_choice
from pinsage_jax.recommend.recommender import Recommender
from pinsage_jax.recommend.scores import Histories
from pinsage_jax.reporting import explorer
from pinsage_jax.reporting.sources import Source, directions_of
from pinsage_jax.retrieval.ann import AnnSearch
from pinsage_jax.retrieval.online import ExactSearch
from pinsage_jax.serving.catalog_search import CatalogSearch

# Items in one request: of a history, and to be embedded.
MOST_ITEMS = 1000
_MOST_FOUND = 100


class RequestError(Exception):
    """A request that cannot be answered, in one sentence, with the status of its answer."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Service:
    """Answers as JSON-like values; RequestError where there is none."""

    def __init__(
        self,
        source: Source,
        prepared: Prepared,
        vectors: np.ndarray,
        index: AnnSearch | None,
        new_items: tuple[NewItemModel, VectorCodec] | None,
    ):
        """Takes vectors float32 [N, Z]; without `index` search is exact, without `new_items`
        none can be embedded.
        """
        self.config: Config = source.config
        self._source, self._prepared, self._vectors = source, prepared, vectors
        self._index, self._new_items = index, new_items
        self._search = index or ExactSearch(vectors)
        self._degree = prepared.graph.degree()[: prepared.graph.num_items]
        # IdTable.lookup hashes all ids each time.
        self._row_of = {name: row for row, name in enumerate(prepared.item_ids.ids.to_pylist())}
        saved = saved_choice(self.config, vectors)
        self._recommender = Recommender(
            self.config.recommend,
            saved[0] if saved else Choice("mean"),
            vectors,
            self._degree,
            # Requests, not their parts, are what runs at once.
            threads=1,
            search=index,
            quiet=True,
        )
        self._methods = NeighborsByMethod(self.config, prepared, vectors, threads=1)

    def health(self) -> dict[str, Any]:
        """What is served."""
        return {
            "status": "ok",
            "items": len(self._vectors),
            "dimension": int(self._vectors.shape[1]),
            "step": self._source.embeddings.get("step"),
            "search": self._index.setting.name if self._index else "exact",
            "histories_by": self._recommender.choice.by,
            "new_items": self._new_items is not None,
        }

    def neighbors(self, item: str, k: int) -> dict[str, Any]:
        """The nearest items of an item."""
        self._check_k(k)
        row = self._row(item)
        ids, scores = self._search.top_k(self._vectors[[row]], k, np.array([row]))
        return {"item": item, "neighbors": self._listed(ids[0], scores[0])}

    def for_history(self, items: list[str], k: int) -> dict[str, Any]:
        """Items for a user who holds `items`; those that the catalog lacks are named."""
        self._check_k(k)
        unknown = [name for name in items if name not in self._row_of]
        rows = np.unique([self._row_of[name] for name in items if name in self._row_of])
        if len(rows) == 0:
            raise RequestError(404, "None of the items is in the catalog.")
        history = Histories(np.array([0, len(rows)], np.int64), rows.astype(np.int32))
        ids, scores = self._recommender.top_k(history, k)
        return {"neighbors": self._listed(ids[0], scores[0]), "unknown": unknown}

    def for_new(
        self, items: list[dict[str, Any]], edges: list[dict[str, Any]], k: int
    ) -> dict[str, Any]:
        """The nearest catalog items of items that the catalog does not hold.

        Numbers beyond those of the catalog are clipped; sentences under "clipped" name them.
        """
        self._check_k(k)
        if self._new_items is None:
            raise RequestError(
                409, "The workdir holds no checkpoint of these embeddings to embed items with."
            )
        name = self.config.data.item_id_column
        if not any(name in item for item in items):
            items = [{**item, name: f"new-{uuid.uuid4().hex}"} for item in items]
        try:
            held = _table(edges, "the request's list of edges") if edges else None
            model, codec = self._new_items
            table = _table(items, "the request's list of items")
            additions = model.read(table, held)
            beyond = model.transform.beyond(table.rows) if table.rows is not None else []
            vectors = codec.project(model.embed(additions)[0])
        except UserError as error:
            said = str(error)
            raise RequestError(400, f"{said[:1].upper()}{said[1:]}") from None
        ids, scores = self._search.top_k(vectors, k)
        names = additions.item_ids.ids.to_pylist()
        found = [self._listed(*lists) for lists in zip(ids, scores)]
        listed = [{"item": name, "neighbors": near} for name, near in zip(names, found)]
        return {"items": listed} | ({"clipped": beyond} if beyond else {})

    # What the explorer asks for.

    def page(self) -> str:
        """The explorer's page, which asks for everything else."""
        told = explorer.frame(self.config, self._prepared, self._methods)
        return explorer.document(told, connect="'self'")

    def found(self, words: str, most: int) -> dict[str, Any]:
        """Items by words of their title or id."""
        count, rows = self._words.find(words, min(most, _MOST_FOUND))
        return {"count": count, "items": self._items(rows)}

    def item(self, item: str) -> dict[str, Any]:
        """An item and its neighbors by every method."""
        row = self._row(item)
        lists = []
        for method in METHODS:
            ids, scores = self._methods.neighbors(method, np.array([row]), explorer.NEIGHBORS)
            kept = ids[0] >= 0
            near = self._items(ids[0, kept])
            lists.append(
                [{**other, "score": float(score)} for other, score in zip(near, scores[0, kept])]
            )
        return {**self._items(np.array([row]))[0], "lists": lists}

    def any_item(self) -> dict[str, str]:
        """The id of an item drawn at random."""
        row = np.random.default_rng().integers(len(self._vectors))
        return {"id": self._prepared.item_ids.names(np.array([row]))[0].as_py()}

    @functools.cached_property
    def map(self) -> dict[str, Any]:
        """Places of up to 50,000 items on two axes, computed once."""
        flat = explorer.flat_map(directions_of(self._source, self._vectors), self.config.seed)
        rows = flat.pop("rows", np.empty(0, np.int64))
        names = self._prepared.item_ids.names(rows).to_pylist()
        return {**flat, "ids": names, "degree": explorer.packed(self._degree[rows])}

    @functools.cached_property
    def _words(self) -> CatalogSearch:
        return CatalogSearch(self._prepared)

    def _check_k(self, k: int) -> None:
        most = self.config.serve.serve_most
        if not 1 <= k <= most:
            raise RequestError(400, f"k is {k} but must be from 1 to {most}.")

    def _row(self, item: str) -> int:
        row = self._row_of.get(item)
        if row is None:
            raise RequestError(404, "There is no such item in the catalog.")
        return row

    def _items(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """id, title and degree of each row."""
        names = self._prepared.item_ids.names(rows).to_pylist()
        titles = [None] * len(names)
        if self._prepared.titles is not None:
            titles = self._prepared.titles.take(pa.array(np.asarray(rows, np.int64))).to_pylist()
        return [
            {"id": name, "title": title, "degree": int(degree)}
            for name, title, degree in zip(names, titles, self._degree[rows])
        ]

    def _listed(self, ids: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        """Neighbors as requests get them: item_id, score, and the title if there are titles."""
        kept = ids >= 0
        listed = []
        for item, score in zip(self._items(ids[kept]), scores[kept]):
            entry = {"item_id": item["id"], "score": float(score)}
            if self._prepared.titles is not None:
                entry["title"] = item["title"]
            listed.append(entry)
        return listed


def _table(rows: list[dict[str, Any]], name: str) -> Table:
    """Rows of a request as a table; a key that a row lacks is missing there."""
    columns = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        try:
            columns[key] = pa.array([row.get(key) for row in rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            raise UserError(
                f"Column '{key[:40]}' of {name} holds values that do not go together in one column."
            ) from None
    return table_in_memory(pa.table(columns), name)
