"""Nearest items: a table for a person, or related_items.parquet for all.

N items, Z embedding dimensions, k neighbors
"""

from __future__ import annotations

import csv
import difflib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

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
from pinsage_jax.core.text_table import aligned
from pinsage_jax.data.ids import IdTable
from pinsage_jax.retrieval.ann import AnnSearch
from pinsage_jax.retrieval.filters import Filters
from pinsage_jax.retrieval.topk import top_k

RELATED_FILE = "related_items.parquet"
_QUERIES_AT_ONCE = 16384
_ROWS_AT_ONCE = 1 << 21
_TITLE_WIDTH = 70
# Comparing texts is slow, so a close id is looked for among this many at most.
_MOST_COMPARED = 20_000
# An id of --query without quotation marks may hold fewer commas than this.
_MOST_COMMAS = 8

RELATED_SCHEMA = pa.schema(
    [
        ("item_id", pa.large_string()),
        ("rank", pa.int32()),
        ("neighbor_id", pa.large_string()),
        ("score", pa.float32()),
    ]
)


class Related(NamedTuple):
    """One neighbor: its id, its score, and its title on one line ('' without titles)."""

    item_id: str
    score: float
    title: str


def _nearest(
    config: Config,
    prepared: Prepared,
    embeddings: np.ndarray,
    search: AnnSearch | None,
    rows: np.ndarray,
    filters: Filters,
) -> tuple[np.ndarray, np.ndarray]:
    """What is listed for the items `rows`: ids int32 [Q, k] and scores float32 [Q, k]."""

    def fetch(queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        own = rows[queries]
        if search is not None:
            return search.top_k(embeddings[own], depth, own)
        return top_k(embeddings[own], embeddings, depth, own)

    def seen_of(query: int) -> np.ndarray:
        return filters.neighbors_seen(int(rows[query]))

    return filters.best(fetch, len(rows), config.evaluate.k, seen_of)


def _filters(config: Config, prepared: Prepared, embeddings: np.ndarray) -> Filters:
    seen = config.search.exclude_seen == "on"
    return Filters(config.search, prepared.graph, embeddings, seen)


def print_neighbors(
    config: Config, prepared: Prepared, embeddings: np.ndarray, search: AnnSearch | None = None
) -> dict[str, list[Related]]:
    """Prints and returns the --k nearest items of each id of --query: id, score, title if any.

    Args:
      embeddings: float32 [N, Z].
      search: an index of them; None searches exactly.

    Raises:
      UserError: an id is unknown (close ones are named).
    """
    wanted = query_ids(config.evaluate.query, prepared.item_ids)
    if not wanted:
        raise UserError(f"--query={config.evaluate.query} names no item.")
    found = nearest(config, wanted, prepared, embeddings, search)
    for name, row in zip(wanted, rows_of(wanted, prepared)):
        table = [["item_id", "score"]]
        table += [[other.item_id, f"{other.score:.4f}"] for other in found[name]]
        lines = aligned(table)
        if prepared.titles is not None:
            titles = ["title", *(other.title for other in found[name])]
            lines = [f"{line}  {title}".rstrip() for line, title in zip(lines, titles)]
        heading = "  ".join(["query", *described(prepared, np.array([row]))[0]]).rstrip()
        print("\n".join([heading, *lines, ""]))
    return found


def query_ids(text: str, known: IdTable) -> list[str]:
    """The ids that a comma-separated text names; ids may hold commas and outer blanks.

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
        for end in range(start + 1, min(start + _MOST_COMMAS, len(parts)) + 1)
    ]
    if len(parts) > _MOST_COMMAS:
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
    search: AnnSearch | None = None,
) -> dict[str, list[Related]]:
    """The --k nearest items of each item, best first, by its id.

    Args:
      names: ids of items.
      embeddings: float32 [N, Z].
      search: an index of them; None searches exactly.

    Raises:
      UserError: an id is unknown (close ones are named).
    """
    rows = rows_of(names, prepared)
    filters = _filters(config, prepared, embeddings)
    ids, scores = _nearest(config, prepared, embeddings, search, rows, filters)
    result = {}
    for name, some, values in zip(names, ids, scores):
        about = described(prepared, some[some >= 0])
        result[name] = [
            Related(other, float(value), "".join(title))
            for (other, *title), value in zip(about, values)
        ]
    return result


def rows_of(names: Sequence[str], prepared: Prepared, flag: str = "query") -> np.ndarray:
    """Rows int32 [n] of items by id.

    Raises:
      UserError: an id is unknown (close ones are named); `flag` is where it came from.
    """
    rows = prepared.item_ids.lookup(pa.array(names, pa.large_string()))
    for name, row in zip(names, rows):
        if row < 0:
            raise UserError(f"--{flag}: there is no item {name}.{_suggestion(name, prepared)}")
    return rows


def write_related(
    config: Config, prepared: Prepared, embeddings: np.ndarray, search: AnnSearch | None = None
) -> pathlib.Path:
    """Writes the --k nearest items of every item, in blocks.

    WORKDIR/related_items.parquet: item_id, rank int32 from 1, neighbor_id, score
    float32; in the order of the items, best first.

    Args:
      embeddings: float32 [N, Z].
      search: an index of them; None searches exactly.

    Returns:
      The path of the file.
    """
    path = pathlib.Path(config.workdir) / RELATED_FILE
    count, k = len(embeddings), config.evaluate.k
    block = int(np.clip(_ROWS_AT_ONCE // k, 1, _QUERIES_AT_ONCE))
    filters = _filters(config, prepared, embeddings)
    with (
        files.atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, RELATED_SCHEMA) as writer,
        Progress(total=count, unit="item", name="related items") as progress,
    ):
        for start in range(0, count, block):
            rows = np.arange(start, min(start + block, count))
            ids, scores = _nearest(config, prepared, embeddings, search, rows, filters)
            place, rank = np.nonzero(ids >= 0)
            columns = [
                prepared.item_ids.names(rows[place]),
                pa.array((rank + 1).astype(np.int32)),
                prepared.item_ids.names(ids[place, rank]),
                pa.array(scores[place, rank]),
            ]
            writer.write_table(pa.table(columns, schema=RELATED_SCHEMA))
            progress.update(len(rows))
    logging.info("related items of %d items written to %s", count, path)
    return path


def close_ids(name: str, item_ids: IdTable, most: int = 3) -> list[str]:
    """Up to `most` known ids that look like `name`.

    In a large catalog only ids that begin like it and have about its length are
    compared.
    """
    candidates = item_ids.ids
    if len(candidates) > _MOST_COMPARED:
        measured = pc.utf8_length(candidates)
        shortest, longest = max(len(name) - 2, 0), len(name) + 2
        near = pc.and_(pc.greater_equal(measured, shortest), pc.less_equal(measured, longest))
        candidates = candidates.filter(near)
    for shared in range(1, len(name)):
        if len(candidates) <= _MOST_COMPARED:
            break
        alike = candidates.filter(pc.starts_with(candidates, pattern=name[:shared]))
        if len(alike) < most:
            break
        candidates = alike
    compared = candidates.slice(0, _MOST_COMPARED).to_pylist()
    return difflib.get_close_matches(name, compared, n=most, cutoff=0.6)


def _suggestion(name: str, prepared: Prepared) -> str:
    found = close_ids(name, prepared.item_ids)
    return f" Did you mean {' or '.join(found)}?" if found else " Ids are those of --items."


def described(prepared: Prepared, rows: np.ndarray) -> list[list[str]]:
    """[id] or, where there are titles, [id, title] of each row; titles on one line and short."""
    names = prepared.item_ids.names(rows).to_pylist()
    if prepared.titles is None:
        return [[name] for name in names]
    titles = prepared.titles.take(pa.array(np.asarray(rows, np.int64))).to_pylist()
    return [[name, _short(title)] for name, title in zip(names, titles)]


def _short(title: str | None) -> str:
    """A title on one line, cut to fit a terminal."""
    text = " ".join((title or "").split())
    return text if len(text) <= _TITLE_WIDTH else text[: _TITLE_WIDTH - 3] + "..."
