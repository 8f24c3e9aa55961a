"""Nearest items: a printed table for a few queries, or related_items.parquet for every item.

N items, Z embedding dimensions, Q queries, k neighbors
"""

from __future__ import annotations

import csv
import difflib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.progress import Progress
from pinsage_jax.core.text_table import aligned, terminal_width, with_last_column
from pinsage_jax.data.ids import IdTable
from pinsage_jax.listing.filters import Filters
from pinsage_jax.listing.rules import Listing, Rules, rules_of
from pinsage_jax.retrieval.ann import AnnSearch
from pinsage_jax.retrieval.online import ExactSearch
from pinsage_jax.retrieval.ruled_search import RuledSearch

RELATED_FILE = "related_items.parquet"
QUERIES_FILE, NEW_FILE = "neighbors.parquet", "new_neighbors.parquet"
_MAX_QUERY_BLOCK = 16384
_MAX_BLOCK_ROWS = 1 << 21
# So many queries are searched one by one with NumPy, unless their scores take more than 1 GiB.
_FEW_QUERIES, _MAX_SCORES = 32, 1 << 28
_TITLE_WIDTH = 70
# String similarity is slow, so an unknown id is compared with this many known ids at most.
_MAX_COMPARED_IDS = 20_000
# An unquoted id of --query may contain fewer commas than this.
_MAX_COMMAS = 8

RELATED_SCHEMA = pa.schema(
    [
        ("item_id", pa.large_string()),
        ("rank", pa.int32()),
        ("neighbor_id", pa.large_string()),
        ("score", pa.float32()),
        ("cosine", pa.float32()),
    ]
)


class ListSearch(Protocol):
    """Finds the items that lists are made of: an index, or the ranker."""

    def top_k(
        self, queries: np.ndarray, k: int, exclude_self: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [Q, k] and scores float32 [Q, k]; see AnnSearch.top_k."""


@runtime_checkable
class RankedLists(Protocol):
    """Orders the whole catalog for items of it, under rules too; ranking/ranker.py does."""

    by: str  # ranker, or the name of a method

    def top_k(
        self,
        queries: np.ndarray,
        k: int,
        exclude_self: np.ndarray | None = None,
        rules: Rules | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [Q, k] and scores float32 [Q, k] for the items `exclude_self`."""


class Related(NamedTuple):
    """One neighbor: id, score, title on one line ('' without titles), and cosine to the query."""

    item_id: str
    score: float
    title: str
    cosine: float


def _nearest(
    config: Config,
    embeddings: np.ndarray,
    search: ListSearch | None,
    rows: np.ndarray,
    filters: Filters,
    placed: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest items of the items `rows` that pass the filters.

    Args:
      placed: the embeddings as blocks.resident returns them; None: those on the host.

    Returns:
      ids int32 [Q, k] and scores float32 [Q, k], padded with -1 and -inf.
    """

    rules = filters.rules
    ruled = None
    if rules is not None and not isinstance(search, RankedLists):
        index = search if isinstance(search, AnnSearch) else None
        ruled = RuledSearch(rules, embeddings, index)

    def fetch(queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        query_rows = rows[queries]
        if ruled is not None:
            return ruled.top_k(embeddings[query_rows], depth, query_rows, query_rows)
        if isinstance(search, RankedLists):
            return search.top_k(embeddings[query_rows], depth, query_rows, rules)
        if search is not None:
            return search.top_k(embeddings[query_rows], depth, query_rows)
        few = len(rows) <= _FEW_QUERIES and len(rows) * len(embeddings) <= _MAX_SCORES
        if few and isinstance(embeddings, np.ndarray):
            # No JAX, whose import takes longer than the search.
            return ExactSearch(embeddings).top_k(embeddings[query_rows], depth, query_rows)
        from pinsage_jax.retrieval.topk import top_k

        catalog = embeddings if placed is None else placed
        return top_k(embeddings[query_rows], catalog, depth, query_rows)

    def seen_of(query: int) -> np.ndarray:
        return filters.items_sharing_a_collection(int(rows[query]))

    exact = ruled is not None or search is None
    return filters.top_k(fetch, len(rows), config.evaluate.neighbors_listed, seen_of, exact)


def _filters(config: Config, prepared: Prepared, embeddings: np.ndarray) -> Filters:
    exclude_seen = config.search.exclude_seen == "on"
    rules = rules_of(config, prepared)
    return Filters(config.search, prepared.graph, embeddings, exclude_seen, rules)


def print_neighbors(
    config: Config, prepared: Prepared, embeddings: np.ndarray, search: ListSearch | None = None
) -> dict[str, list[Related]]:
    """Prints and returns the --k nearest items of each id of --query: id, score, cosine, title.

    Titles are printed where the catalog has any.

    Args:
      embeddings: float32 [N, Z].
      search: an index over the embeddings; None searches exactly.

    Raises:
      UserError: an id is unknown; the message suggests similar ids.
    """
    names = query_ids(config.evaluate.query, prepared.item_ids)
    if not names:
        raise UserError(f"--query={config.evaluate.query} names no item.")
    found = nearest(config, names, prepared, embeddings, search)
    for name, row in zip(names, rows_of(names, prepared)):
        table = [["item_id", "score", "cosine"]]
        table += [[n.item_id, f"{n.score:.4f}", f"{n.cosine:.4f}"] for n in found[name]]
        lines = aligned(table)
        if prepared.titles is not None:
            titles = ["title", *(neighbor.title for neighbor in found[name])]
            lines = with_last_column(lines, titles, terminal_width())
        heading = "  ".join(["query", *ids_and_titles(prepared, np.array([row]))[0]]).rstrip()
        print("\n".join([heading, *lines, ""]))
    return found


def query_ids(text: str, known: IdTable) -> list[str]:
    """Splits a comma-separated text into ids; ids may contain commas and outer blanks.

    The whole text is tried first, then the longest runs of its parts, each as it is and
    without outer blanks.  Parts that no run makes an id of are returned without blanks.
    Quotation marks around an id keep its commas, as in a CSV file.
    """
    parts = text.split(",")
    if '"' in text and known.lookup(pa.array([text], pa.large_string()))[0] < 0:
        try:
            parts = next(csv.reader([text], skipinitialspace=True))
        except csv.Error:
            raise UserError(f"--query={text} cannot be read; close its quotation marks.") from None
    spans = [
        (start, end)
        for start in range(len(parts))
        for end in range(start + 1, min(start + _MAX_COMMAS, len(parts)) + 1)
    ]
    if len(parts) > _MAX_COMMAS:
        spans.append((0, len(parts)))
    joined = [",".join(parts[start:end]) for start, end in spans]
    names: dict[tuple[int, int], str] = {}
    for tried in ([name.strip() for name in joined], joined):
        found = known.lookup(pa.array(tried, pa.large_string())) >= 0
        names |= {span: name for span, name, there in zip(spans, tried, found) if there}
    wanted, start = [], 0
    while start < len(parts):
        end = max((end for begin, end in names if begin == start), default=start + 1)
        wanted.append(names.get((start, end), parts[start].strip()))
        start = end
    return [name for name in wanted if name]


def nearest(
    config: Config,
    names: Sequence[str],
    prepared: Prepared,
    embeddings: np.ndarray,
    search: ListSearch | None = None,
) -> dict[str, list[Related]]:
    """Finds the --k nearest items of each named item.

    Args:
      names: item ids.
      embeddings: float32 [N, Z].
      search: an index over the embeddings; None searches exactly.

    Returns:
      The neighbors of each item id, best first.

    Raises:
      UserError: an id is unknown; the message suggests similar ids.
    """
    rows = rows_of(names, prepared)
    filters = _filters(config, prepared, embeddings)
    ids, scores = _nearest(config, embeddings, search, rows, filters)
    result = {}
    for name, row, row_ids, row_scores in zip(names, rows, ids, scores):
        listed = row_ids[row_ids >= 0]
        found = ids_and_titles(prepared, listed)
        cosines = _cosines(config, embeddings, np.full(len(listed), row), listed)
        result[name] = [
            Related(neighbor, float(score), "".join(title), float(cosine))
            for (neighbor, *title), score, cosine in zip(found, row_scores, cosines)
        ]
    return result


def listed_for(
    config: Config,
    prepared: Prepared,
    embeddings: np.ndarray,
    rows: np.ndarray,
    listing: Listing,
    search: ListSearch | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The --k nearest items of the items `rows` that pass a listing and the settings' filters.

    Args:
      search: what orders the lists; None: the embeddings.

    Returns:
      ids int32 [Q, k] and scores float32 [Q, k], padded with -1 and -inf.

    Raises:
      UserError: the listing is wrong.
    """
    columns = prepared.item_columns if listing.has_rules else None
    rules = None if columns is None else Rules(listing, columns, columns)
    exclude_seen = config.search.exclude_seen == "on"
    filters = Filters(config.search, prepared.graph, embeddings, exclude_seen, rules)
    return _nearest(config, embeddings, search, rows, filters)


def rows_of(names: Sequence[str], prepared: Prepared, flag: str = "query") -> np.ndarray:
    """Looks up the rows, int32 [n], of n item ids.

    Args:
      flag: the flag that the ids came from, for the error message.

    Raises:
      UserError: an id is unknown; the message suggests similar ids.
    """
    rows = prepared.item_ids.lookup(pa.array(names, pa.large_string()))
    for name, row in zip(names, rows):
        if row < 0:
            raise UserError(f"--{flag}: there is no item {name}.{_suggestion(name, prepared)}")
    return rows


def write_related(
    config: Config,
    prepared: Prepared,
    embeddings: np.ndarray,
    search: ListSearch | None = None,
    queries: np.ndarray | None = None,
    file: str = RELATED_FILE,
) -> pathlib.Path:
    """Writes the --k nearest items of each item to a file in WORKDIR, in blocks.

    The columns are item_id, rank (int32, from 1), neighbor_id, score and cosine (float32);
    the items come in the order of `queries`, the neighbors of each best first.  The cosine is
    that of the two vectors without their popularity, from -1 to 1.

    Args:
      embeddings: float32 [N, Z].
      search: an index over the embeddings; None searches exactly.
      queries: int [Q], rows of the items; None: of all items.
      file: name of the file.

    Returns:
      The path of the file.
    """
    path = pathlib.Path(config.workdir) / file
    queries = np.arange(len(embeddings)) if queries is None else queries
    count, k = len(queries), config.evaluate.neighbors_listed
    block = int(np.clip(_MAX_BLOCK_ROWS // k, 1, _MAX_QUERY_BLOCK))
    filters = _filters(config, prepared, embeddings)
    if filters.rules is not None and isinstance(search, AnnSearch):
        RuledSearch(filters.rules, embeddings, search).log_recall(queries, k)
    placed = None
    if search is None and filters.rules is None and count > _FEW_QUERIES:
        from pinsage_jax.retrieval.blocks import resident

        placed = resident(embeddings, config.search.device_recall)
    with (
        files.atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, RELATED_SCHEMA) as writer,
        Progress(total=count, unit="item", name="related items") as progress,
    ):
        for start in range(0, count, block):
            rows = queries[start : start + block]
            ids, scores = _nearest(config, embeddings, search, rows, filters, placed)
            query, rank = np.nonzero(ids >= 0)
            cosines = _cosines(config, embeddings, rows[query], ids[query, rank])
            columns = [
                prepared.item_ids.names(rows[query]),
                pa.array((rank + 1).astype(np.int32)),
                prepared.item_ids.names(ids[query, rank]),
                pa.array(scores[query, rank]),
                pa.array(cosines),
            ]
            writer.write_table(pa.table(columns, schema=RELATED_SCHEMA))
            progress.update(len(rows))
    logging.info("related items of %d items written to %s", count, path)
    return path


def _cosines(
    config: Config, embeddings: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Cosines float32 [n] of two items each, int [n], without popularity; 0 for a zero vector."""
    # The last coordinate is the popularity.
    width = embeddings.shape[1] - int(config.model.popularity_bias)
    result = np.empty(len(first), np.float32)
    for start in range(0, len(first), _MAX_QUERY_BLOCK):
        span = slice(start, start + _MAX_QUERY_BLOCK)
        pairs = embeddings[first[span]][:, :width], embeddings[second[span]][:, :width]
        lengths = np.linalg.norm(pairs[0], axis=1) * np.linalg.norm(pairs[1], axis=1)
        products = np.einsum("nz,nz->n", *pairs)
        result[span] = products / np.where(lengths == 0, 1, lengths)
    return np.clip(result, -1, 1)


def similar_ids(name: str, item_ids: IdTable, limit: int = 3) -> list[str]:
    """Up to `limit` known ids that are spelled like `name`.

    In a large catalog only ids with the same beginning and about the same length are
    compared.
    """
    candidates = item_ids.ids
    if len(candidates) > _MAX_COMPARED_IDS:
        length = pc.utf8_length(candidates)
        shortest, longest = max(len(name) - 2, 0), len(name) + 2
        in_range = pc.and_(pc.greater_equal(length, shortest), pc.less_equal(length, longest))
        candidates = candidates.filter(in_range)
    for prefix in range(1, len(name)):
        if len(candidates) <= _MAX_COMPARED_IDS:
            break
        narrower = candidates.filter(pc.starts_with(candidates, pattern=name[:prefix]))
        if len(narrower) < limit:
            break
        candidates = narrower
    compared = candidates.slice(0, _MAX_COMPARED_IDS).to_pylist()
    return difflib.get_close_matches(name, compared, n=limit, cutoff=0.6)


def _suggestion(name: str, prepared: Prepared) -> str:
    found = similar_ids(name, prepared.item_ids)
    return f" Did you mean {' or '.join(found)}?" if found else " Ids are those of --items."


def ids_and_titles(prepared: Prepared, rows: np.ndarray) -> list[list[str]]:
    """[id, title] of each row, or [id] where the catalog has no titles.

    Titles are put on one line and truncated to _TITLE_WIDTH characters.
    """
    names = prepared.item_ids.names(rows).to_pylist()
    if prepared.titles is None:
        return [[name] for name in names]
    titles = prepared.titles.take(pa.array(np.asarray(rows, np.int64))).to_pylist()
    return [[name, _shorten(title)] for name, title in zip(names, titles)]


def _shorten(title: str | None) -> str:
    """A title on one line, truncated to fit a terminal."""
    text = " ".join((title or "").split())
    return text if len(text) <= _TITLE_WIDTH else text[: _TITLE_WIDTH - 3] + "..."
