"""The answers of the server, independent of HTTP except for the status codes of errors.

One object has the catalog, its vectors and an optional index; its methods may be called by
several threads in parallel, because they only read.

  N items, Z embedding dimensions, k neighbors
"""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.search import SearchConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.tables import Table, table_in_memory
from pinsage_jax.explorer.answers import ExplorerAnswers
from pinsage_jax.export.codec import VectorCodec
from pinsage_jax.inference.new_item_model import NewItemModel
from pinsage_jax.listing.filters import Fetch, Filters
from pinsage_jax.listing.rules import Listing, Rules
from pinsage_jax.ranking.candidates import NewQueries, new_queries
from pinsage_jax.ranking.ranker import Ranker
from pinsage_jax.recommend.choice import Choice
from pinsage_jax.recommend.recommend import saved_choice, spectral_bases
from pinsage_jax.recommend.recommender import Recommender
from pinsage_jax.recommend.scores import Histories
from pinsage_jax.reporting.sources import Source
from pinsage_jax.retrieval.ann import AnnSearch
from pinsage_jax.retrieval.online import ExactSearch, weigh_popularity
from pinsage_jax.retrieval.ruled_search import RuledSearch
from pinsage_jax.serving.columns import check_columns, values_of

# Items in one request, both of a history and to be embedded.
MAX_REQUEST_ITEMS = 1000


# A request without rules.
_EVERYTHING = Listing(prefix="", warns=False)


class RequestError(Exception):
    """A request that cannot be answered: a sentence, and the HTTP status of the response."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Service:
    """Answers requests with JSON-serializable values, or raises RequestError.

    Attributes:
      followed: counts of --mode=follow for `health`; None without it.
    """

    def __init__(
        self,
        source: Source,
        prepared: Prepared,
        vectors: np.ndarray,
        index: AnnSearch | None,
        new_items: tuple[NewItemModel, VectorCodec] | None,
        ranker: Ranker | None = None,
    ):
        """Prepares to answer.

        Args:
          source: the run's settings and manifest.
          prepared: the catalog.
          vectors: float32 [N, Z], the items' embeddings, weighted by --popularity_weight.
          index: an index over the vectors; None searches exactly.
          new_items: embeds new items; None: they are refused.
          ranker: orders neighbors; None: by the vectors.
        """
        self.config: Config = source.config
        self.followed: dict[str, int] | None = None
        self._source, self._prepared, self._vectors = source, prepared, vectors
        self._index, self._new_items, self._ranker = index, new_items, ranker
        self._search = index or ExactSearch(vectors)
        self._degree = prepared.graph.degree()[: prepared.graph.num_items]
        # A dictionary, because IdTable.lookup hashes all ids in every call.
        self._row_of = {name: row for row, name in enumerate(prepared.item_ids.ids.to_pylist())}
        saved = saved_choice(self.config, vectors)
        choice = saved[0] if saved else Choice("mean")
        self._recommender = Recommender(
            self.config.recommend,
            choice,
            vectors,
            self._degree,
            # Requests run in parallel, so each has a single thread.
            threads=1,
            search=index,
            quiet=True,
            graph=prepared.graph,
            bases=spectral_bases(self.config, choice, prepared.graph),
        )
        # Opened now: later the file may be that of another model.
        with contextlib.suppress(UserError):
            _ = prepared.item_columns
        self.explorer = ExplorerAnswers(source, prepared, vectors, self._row_of, ranker)

    def health(self) -> dict[str, Any]:
        """The size of the catalog, the step of the model, and how requests are answered."""
        return {
            "status": "ok",
            "items": len(self._vectors),
            "dimension": int(self._vectors.shape[1]),
            "step": self._source.embeddings.get("step"),
            "search": self._index.setting.name if self._index else "exact",
            "history_scoring": self._recommender.choice.by,
            "new_items": self._new_items is not None,
            "updated": "changes" in self._source.embeddings,
            "followed": self.followed,
        }

    @property
    def row_of(self) -> dict[str, int]:
        """The row of every item, by its id."""
        return self._row_of

    def follow(self, rows: np.ndarray, vectors: np.ndarray, degree: np.ndarray) -> None:
        """Takes new embeddings of some items while requests are answered.

        A request that runs meanwhile may read some of them and not others.  The graph of walks,
        of histories and of the explorer stays that of the workdir.

        Args:
          rows: int [n].
          vectors: float32 [n, Z], weighted by --popularity_weight; the array that the service
            was made with must be writable.
          degree: int32 [N], edges of every item now.
        """
        self._vectors[rows] = vectors
        self._degree[:] = degree
        if self._index is not None:
            self._index.note_changed(rows)

    def neighbors(
        self, item: str, k: int, listing: Listing = _EVERYTHING, columns: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The k nearest items of an item, among those that the listing allows.

        Raises:
          RequestError: the item is unknown, k is out of range, or the listing is wrong.
        """
        return self.neighbors_of_items([item], k, listing, columns)["items"][0]

    def neighbors_of_items(
        self,
        items: list[str],
        k: int,
        listing: Listing = _EVERYTHING,
        columns: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The k nearest items of each item, among those that the listing allows.

        Raises:
          RequestError: an item is unknown, k is out of range, or the listing is wrong.
        """
        self._check(k, columns)
        rows = np.array([self._row(item) for item in items])
        rules = self._rules(listing, lambda: self._prepared.item_columns)
        if self._ranker is None:
            fetch = self._by_vectors(self._vectors[rows], rows, rows, rules)
        else:
            fetch = self._by_ranker(rows, rules)
        found = self._listed(fetch, len(rows), k, rules)
        entries = [self._neighbor_entries(*row, columns) for row in zip(*found)]
        return {"items": [{"item": i, "neighbors": e} for i, e in zip(items, entries)]}

    def recommend(
        self,
        items: list[str],
        k: int,
        listing: Listing = _EVERYTHING,
        columns: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Recommends k items to a user with the given history; lists its unknown items.

        Raises:
          RequestError: no item of the history is in the catalog, k is out of range, or the
            listing is wrong.
        """
        self._check(k, columns)
        unknown = [name for name in items if name not in self._row_of]
        rows = np.unique([self._row_of[name] for name in items if name in self._row_of])
        if len(rows) == 0:
            raise RequestError(404, "None of the items is in the catalog.")
        history = Histories(np.array([0, len(rows)], np.int64), rows.astype(np.int32))
        recommender, rules = self._recommender, self._rules(listing, None)
        if rules is not None:
            filters = Filters(SearchConfig(), self._prepared.graph, self._vectors, False, rules)
            # The scorer is made once, and not for every request.
            recommender = dataclasses.replace(
                recommender, rules=rules, filters=filters, made=recommender.scorer
            )
        with _as_requests():
            ids, scores = recommender.top_k(history, k)
        neighbors = self._neighbor_entries(ids[0], scores[0], columns)
        return {"neighbors": neighbors, "unknown_items": unknown}

    def neighbors_of_new_items(
        self,
        items: list[dict[str, Any]],
        edges: list[dict[str, Any]],
        k: int,
        listing: Listing = _EVERYTHING,
        columns: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Embeds items that are not in the catalog and finds their k nearest catalog items.

        Args:
          items: rows with the columns of --new_items.
          edges: rows with the columns of --new_edges.
          k: number of neighbors.
          listing: which items may be listed; query.COLUMN is a column of the new item.
          columns: columns of --items to return beside each neighbor.

        Returns:
          "items", the neighbors of each item, and "clipped", sentences that name the numbers
          clipped to the range of the catalog, if there are any.

        Raises:
          RequestError: there is no checkpoint, a row is invalid, or k is out of range.
        """
        self._check(k, columns)
        if self._new_items is None:
            raise RequestError(
                409,
                "New items cannot be embedded: the workdir has no checkpoint of its embeddings.",
            )
        name = self.config.data.item_id_column
        if not any(name in item for item in items):
            items = [{**item, name: f"new-{uuid.uuid4().hex}"} for item in items]
        with _as_requests():
            edge_table = _table(edges, "the request's list of edges") if edges else None
            model, codec = self._new_items
            table = _table(items, "the request's list of items")
            additions = model.read(table, edge_table)
            clipped = model.transform.beyond(table.rows) if table.rows is not None else []
            vectors = codec.project(model.embed(additions)[0])

        def given() -> ItemColumns:
            return self._prepared.item_columns.of_table(table, additions.item_ids)

        rules = self._rules(listing, given)
        if self._ranker is None:
            weight = self.config.search.popularity_weight
            vectors = weigh_popularity(vectors, weight, has_popularity=True)
            none, rows = np.full(len(vectors), -1), np.arange(len(vectors))
            fetch = self._by_vectors(vectors, rows, none, rules)
        else:
            asked = new_queries(self._prepared.graph, additions, vectors)
            fetch = self._new_by_ranker(asked, rules)
        ids, scores = self._listed(fetch, len(vectors), k, rules)
        names = additions.item_ids.ids.to_pylist()
        neighbors = [self._neighbor_entries(*row, columns) for row in zip(ids, scores)]
        entries = [{"item": name, "neighbors": row} for name, row in zip(names, neighbors)]
        return {"items": entries} | ({"clipped": clipped} if clipped else {})

    def _rules(self, listing: Listing, queries: Callable[[], ItemColumns] | None) -> Rules | None:
        """The rules of a request; None if it has none.  `queries` makes columns of its queries."""
        if listing == _EVERYTHING:
            return None
        with _as_requests():
            columns = self._prepared.item_columns
            return Rules(listing, columns, None if queries is None else queries())

    def _by_vectors(
        self, vectors: np.ndarray, rows: np.ndarray, exclude: np.ndarray, rules: Rules | None
    ) -> Fetch:
        """Lists by the vectors of queries float32 [Q, Z], at `rows` of the rules' queries."""
        if rules is None:
            return lambda queries, k: self._search.top_k(vectors[queries], k, exclude[queries])
        search = RuledSearch(rules, self._vectors, self._index)
        return lambda queries, k: search.top_k(vectors[queries], k, rows[queries], exclude[queries])

    def _by_ranker(self, rows: np.ndarray, rules: Rules | None) -> Fetch:
        """Lists of catalog items by the ranker."""
        ranker = self._ranker
        assert ranker is not None, "there is a ranker"
        return lambda queries, k: ranker.top_k(self._vectors[:0], k, rows[queries], rules)

    def _new_by_ranker(self, new: NewQueries, rules: Rules | None) -> Fetch:
        """Lists of new items by the ranker; few, so all are made where one is asked for."""
        ranker = self._ranker
        assert ranker is not None, "there is a ranker"

        def fetch(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            ids, scores = ranker.top_k_of_new(new, k, rules)
            return ids[queries], scores[queries]

        return fetch

    def _listed(
        self, fetch: Fetch, count: int, k: int, rules: Rules | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores [count, k] of what `fetch` finds and the rules let through."""
        if rules is None:
            return fetch(np.arange(count), k)
        with _as_requests():
            filters = Filters(SearchConfig(), self._prepared.graph, self._vectors, False, rules)
            return filters.top_k(fetch, count, k, _nothing_seen, exact=True)

    def _check(self, k: int, columns: Sequence[str]) -> None:
        limit = self.config.serve.serve_max_neighbors
        if not 1 <= k <= limit:
            raise RequestError(400, f"k is {k} but must be from 1 to {limit}.")
        if columns:
            with _as_requests():
                check_columns(self._prepared.item_columns, columns)

    def _row(self, item: str) -> int:
        row = self._row_of.get(item)
        if row is None:
            raise RequestError(404, "The item is not in the catalog.")
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

    def _neighbor_entries(
        self, ids: np.ndarray, scores: np.ndarray, columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """item_id, score and, if the catalog has titles, title of each neighbor; the columns."""
        valid = ids >= 0
        entries = []
        for item, score in zip(self._items(ids[valid]), scores[valid]):
            entry = {"item_id": item["id"], "score": float(score)}
            if self._prepared.titles is not None:
                entry["title"] = item["title"]
            entries.append(entry)
        if columns:
            shown = values_of(self._prepared.item_columns, columns, ids[valid])
            entries = [{**entry, "columns": values} for entry, values in zip(entries, shown)]
        return entries


def listing_of_request(
    where: str, boost: str, one_per: str, blocked: list[str], allowed: list[str] | None
) -> Listing:
    """The listing that a request asks for; its messages name the keys of the request."""
    expressions = (where,) if where else ()
    listed = None if allowed is None else tuple(allowed)
    return Listing(expressions, boost, one_per, tuple(blocked), listed, prefix="", warns=False)


def _nothing_seen(query: int) -> np.ndarray:
    return np.empty(0, np.int32)


@contextlib.contextmanager
def _as_requests() -> Iterator[None]:
    """Errors of the input are those of the request."""
    try:
        yield
    except UserError as error:
        message = str(error)
        raise RequestError(400, f"{message[:1].upper()}{message[1:]}") from None


def _table(rows: list[dict[str, Any]], name: str) -> Table:
    """Converts the rows of a request to a table; a key that a row lacks is null there.

    Raises:
      UserError: the values of a key have incompatible types.
    """
    columns = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        try:
            columns[key] = pa.array([row.get(key) for row in rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            raise UserError(
                f"Column '{key[:40]}' of {name} has values of incompatible types."
            ) from None
    return table_in_memory(pa.table(columns), name)
