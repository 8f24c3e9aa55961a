"""Train and eval tables made from one edge table: --mode=split.

WORKDIR/split/
  train_edges.parquet  the rows of --edges that may be trained on, all columns
  eval_pairs.parquet   query_id, target_id, kind (warm, or cold: no training edge)
  withheld.parquet     collection_id or item_id: what lost every edge; not for time
  manifest.json        how it was done, counts, and a checksum per file

A query always has a training edge.  Who may be a target of it:

  collections  withheld whole; two items of one withheld collection
  items        lose every edge; a query is an item of a collection that held the target
  time         one cut for all; the target entered a collection after the cut, the
               query is what the collection held before, or, where that is nothing,
               another item that entered it

Every collection gives the same number of pairs at most: the largest number for which
there are no more than --split_pairs in all.  Draws are keyed by their meaning (seed,
collection), so they depend on nothing else.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from pinsage_jax.config.settings import Config
from pinsage_jax.config.tools import SplitToolConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.core.progress import Progress
from pinsage_jax.data import columns as column_values
from pinsage_jax.data import edges_table, leaks, tables
from pinsage_jax.data.pairs_table import (
    KIND_COLUMN,
    QUERY_COLUMN,
    TARGET_COLUMN,
    derived_kinds,
)
from pinsage_jax.graph import csr
from pinsage_jax.graph.csr import Graph

FOLDER = "split"
TRAIN_EDGES, EVAL_PAIRS = "train_edges.parquet", "eval_pairs.parquet"
# Purposes of the keyed streams; the pairs of a collection are _PAIRS + its index.
_COLLECTIONS, _ITEMS, _SUBSET, _PAIRS = 11, 12, 13, 1 << 33


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """What a split withholds, in indices."""

    train_graph: Graph
    groups: list[Group]  # at most one per collection
    collections: np.ndarray  # int32 [*], withheld collections, ascending
    items: np.ndarray  # int32 [*], withheld items, ascending


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The pairs that one collection may give: any query with any target but itself."""

    collection: int
    queries: np.ndarray  # int32 [q], ascending
    targets: np.ndarray  # int32 [t], ascending; holds all queries or none

    @property
    def possible(self) -> int:
        """Number of pairs."""
        among = len(self.queries) > 0 and bool(np.isin(self.queries[0], self.targets))
        return len(self.queries) * (len(self.targets) - among)

    def pairs(self, places: np.ndarray) -> np.ndarray:
        """int32 [n, 2] of places int64 [n] in [0, possible)."""
        per_query = self.possible // max(len(self.queries), 1)
        query, other = np.divmod(places, max(per_query, 1))
        chosen = self.queries[query]
        if per_query < len(self.targets):
            # The target skips the query itself: `other` counts the rest.
            other = other + (other >= np.searchsorted(self.targets, chosen))
        return np.stack([chosen, self.targets[other]], axis=1).astype(np.int32)


def withhold_collections(graph: Graph, share: float, seed: int) -> Held:
    """A share of the collections of two items or more, withheld whole."""
    degree = graph.degree()
    eligible = np.flatnonzero(degree[graph.num_items :] >= 2)
    chosen = _choose(eligible, max(1, round(share * len(eligible))), seed, _COLLECTIONS)
    train = graph.without(collections=chosen)
    known = train.degree()[: graph.num_items] > 0
    groups = []
    for collection in chosen.tolist():
        members = graph.neighbors(graph.num_items + collection)
        groups.append(Group(collection, members[known[members]], members))
    return Held(train, groups, chosen, np.empty(0, np.int32))


def withhold_items(graph: Graph, share: float, seed: int) -> Held:
    """A share of the items with edges, which lose them all."""
    linked = np.flatnonzero(graph.degree()[: graph.num_items] > 0)
    chosen = _choose(linked, max(1, round(share * len(linked))), seed, _ITEMS)
    train = graph.without(items=chosen)
    cold = np.zeros(graph.num_items, np.bool_)
    cold[chosen] = True
    touched = np.unique(np.concatenate([graph.neighbors(item) for item in chosen.tolist()]))
    groups = []
    for node in touched.tolist():
        members = graph.neighbors(node)
        held = cold[members]
        groups.append(Group(node - graph.num_items, members[~held], members[held]))
    return Held(train, groups, np.empty(0, np.int32), chosen)


def withhold_later(graph: Graph, times: np.ndarray, cut: int) -> Held:
    """Edges after the cut.

    Args:
      times: int64 [E], earliest time of each edge, in the order of the items' rows.
    """
    items = np.repeat(
        np.arange(graph.num_items, dtype=np.int32), np.diff(graph.indptr[: graph.num_items + 1])
    )
    collections = graph.indices[: graph.num_edges] - np.int32(graph.num_items)
    late = np.asarray(times) > cut
    shape = graph.num_items, graph.num_collections
    train = Graph.from_edges(items[~late], collections[~late], *shape)
    after = Graph.from_edges(items[late], collections[late], *shape)
    known = train.degree()[: graph.num_items] > 0
    groups = []
    for node in (np.flatnonzero(after.degree()[graph.num_items :]) + graph.num_items).tolist():
        entered, before = after.neighbors(node), train.neighbors(node)
        queries = before if len(before) else entered[known[entered]]
        groups.append(Group(int(node) - graph.num_items, queries, entered))
    none = np.empty(0, np.int32)
    return Held(train, groups, none, none)


def draw_pairs(groups: list[Group], limit: int, seed: int) -> np.ndarray:
    """At most `limit` distinct pairs (query, target) of the groups, int32 [P, 2]."""
    possible = np.array([group.possible for group in groups], np.int64)
    most = _even_share(possible, limit)
    giving = np.flatnonzero(possible > 0)
    if most == 0 and len(giving):
        most, giving = 1, _choose(giving, limit, seed, _SUBSET)
    drawn = [np.empty((0, 2), np.int32)]
    for place in giving.tolist():
        group = groups[place]
        number = min(most, int(possible[place]))
        rng = _stream(seed, _PAIRS + group.collection)
        chosen = np.sort(rng.choice(possible[place], number, replace=False, shuffle=False))
        drawn.append(group.pairs(chosen))
    pairs = np.concatenate(drawn)
    # Two collections can hold the same two items.
    return pairs[np.sort(np.unique(pairs, axis=0, return_index=True)[1])]


def split(config: Config) -> dict[str, Any]:
    """Writes WORKDIR/split and returns its manifest.

    Raises:
      UserError: a wrong input or flag, or a split without training edges or pairs.
    """
    data, tool = config.data, config.split_tool
    if config.synthetic.synthetic or not data.edges:
        raise UserError("--mode=split needs --edges, the table to split (and not --synthetic).")
    if tool.split_by == "time" and not data.time_column:
        raise UserError("--split_by=time needs --time_column, the column of --edges with the time.")
    edges = tables.open_table(data.path(data.edges), "edges", data)
    folder = pathlib.Path(config.workdir) / FOLDER
    with files.atomic_folder(folder) as temporary:
        scratch = temporary / "scratch"
        ids = edges_table.collect_ids(edges, None, data, None)
        codes = edges_table.write_edge_indices(edges, ids, data, scratch)
        graph, times = csr.build(
            codes.items, codes.collections, len(ids.items), len(ids.collections),
            times=codes.times, folder=scratch,
        )  # fmt: skip
        how: dict[str, Any] = {"by": tool.split_by, "share": tool.split_share, "seed": config.seed}
        cut = None
        if tool.split_by == "time":
            assert times is not None, "there is a --time_column"
            cut = _cut(tool, codes)
            held = withhold_later(graph, times, cut)
            how |= {"cut": cut, "cut_text": _shown_time(cut, codes.time_kind)}
            how |= {"time_kind": codes.time_kind, "time_column": data.time_column}
        elif tool.split_by == "items":
            held = withhold_items(graph, tool.split_share, config.seed)
        else:
            held = withhold_collections(graph, tool.split_share, config.seed)
        pairs = draw_pairs(held.groups, tool.split_pairs, config.seed)
        _refuse_empty(held, pairs, tool)
        rows = _write_train_edges(edges, data, temporary / TRAIN_EDGES, _keeps(codes, held, cut))
        kinds = derived_kinds(pairs, held.train_graph.degree())
        _write_pairs(temporary / EVAL_PAIRS, pairs, kinds, ids.items)
        names = [TRAIN_EDGES, EVAL_PAIRS]
        for kind, table, indices in (
            ("collection_id", ids.collections, held.collections),
            ("item_id", ids.items, held.items),
        ):
            if len(indices):
                pq.write_table(pa.table({kind: table.names(indices)}), temporary / leaks.WITHHELD)
                names.append(leaks.WITHHELD)
        manifest = {
            "format": 1,
            "created_by": leaks.CREATED_BY,
            "edges": str(edges.path),
            **how,
            "counts": {
                "edge_rows": ids.edge_rows,
                "train_edge_rows": rows,
                "train_edges": held.train_graph.num_edges,
                "withheld_edges": graph.num_edges - held.train_graph.num_edges,
                "withheld_collections": len(held.collections),
                "withheld_items": len(held.items),
                "collections_giving_pairs": sum(group.possible > 0 for group in held.groups),
                "eval_pairs": len(pairs),
                "warm_pairs": int((kinds == "warm").sum()),
                "cold_pairs": int((kinds == "cold").sum()),
                "pairs_together_in_training": _together(held.train_graph, pairs),
            },
            "files": files.checksums(temporary, names),
        }
        files.write_json(temporary / leaks.MANIFEST, manifest)
        _check_written(temporary, data)
        shutil.rmtree(scratch)
    counts = manifest["counts"]
    logging.info(
        "split by %s: %d of %d edge rows to train on, %d eval pairs (%d cold), in %s.",
        tool.split_by, rows, ids.edge_rows, len(pairs), counts["cold_pairs"], folder,
    )  # fmt: skip
    if counts["cold_pairs"]:
        logging.info("cold targets are in no training edge: they must be in --items.")
    return manifest


def _keeps(
    codes: edges_table.EdgeIndices, held: Held, cut: int | None
) -> Callable[[slice], np.ndarray]:
    """Which rows of the edge table train: a mask bool [rows] of a slice of rows."""

    def mask(rows: slice) -> np.ndarray:
        if cut is not None and codes.times is not None:
            return codes.times[rows] <= cut
        lost = np.isin(codes.items[rows], held.items)
        return ~(lost | np.isin(codes.collections[rows], held.collections))

    return mask


def _write_train_edges(
    edges: tables.Table, data: Any, path: pathlib.Path, mask: Callable[[slice], np.ndarray]
) -> int:
    """Copies the rows that train, streaming; returns their number."""
    ids = [data.item_column, data.collection_column]
    writer, start, rows = None, 0, 0
    try:
        with Progress(edges.num_rows, "row", "writing training edges") as progress:
            for batch in tables.iter_batches(edges, list(edges.columns), ids=ids):
                kept = batch.rows.filter(pa.array(mask(slice(start, start + len(batch)))))
                if writer is None:
                    writer = pq.ParquetWriter(path, kept.schema)
                writer.write_batch(kept.cast(writer.schema))
                start, rows = start + len(batch), rows + kept.num_rows
                progress.update(len(batch))
    except pa.ArrowInvalid as error:
        raise UserError(
            f"--{edges.flag}={edges.path}: its files differ in the types of a column ({error})."
        ) from None
    finally:
        if writer is not None:
            writer.close()
    return rows


def _write_pairs(path: pathlib.Path, pairs: np.ndarray, kinds: np.ndarray, ids: Any) -> None:
    table = {QUERY_COLUMN: ids.names(pairs[:, 0]), TARGET_COLUMN: ids.names(pairs[:, 1])}
    pq.write_table(pa.table(table | {KIND_COLUMN: pa.array(kinds.tolist(), pa.string())}), path)


def _check_written(folder: pathlib.Path, data: Any) -> None:
    """The checks of the prepare stage, on the tables as they were written."""
    edges = tables.open_table(folder / TRAIN_EDGES, "edges")
    found = edges_table.collect_ids(edges, None, data, None)
    leaks.check_against_split(
        folder / EVAL_PAIRS,
        edges,
        (found.items, np.ones(len(found.items), np.int32)),
        (found.collections, np.ones(len(found.collections), np.int32)),
    )


def _refuse_empty(held: Held, pairs: np.ndarray, tool: SplitToolConfig) -> None:
    if held.train_graph.num_edges == 0:
        remedy = "set a later --split_cut" if tool.split_cut else "lower --split_share"
        raise UserError(f"The split leaves no edge to train on; {remedy}.")
    if len(pairs) == 0:
        remedy = "--split_cut" if tool.split_cut else "--split_share"
        raise UserError(
            f"The split by {tool.split_by} finds no eval pair, because no withheld edge shares a "
            f"collection with an item that keeps an edge; change {remedy}."
        )


def _cut(tool: SplitToolConfig, codes: edges_table.EdgeIndices) -> int:
    """The last time that trains."""
    if not tool.split_cut:
        assert codes.times is not None, "there is a --time_column"
        times = np.sort(codes.times)
        return int(times[max(int(np.ceil((1.0 - tool.split_share) * len(times))) - 1, 0)])
    kind = codes.time_kind
    try:
        found, found_kind = column_values.times(
            pa.array([tool.split_cut], pa.large_string()), "split_cut", str, None
        )
    except UserError:
        found_kind = None
    if found_kind != kind:
        wanted = "a number" if kind == "number" else "a date like 2024-05-31 12:00:00"
        raise UserError(f"--split_cut={tool.split_cut} must be {wanted}, as --time_column holds.")
    return int(found[0])


def _shown_time(time: int, kind: str | None) -> str:
    if kind == "number":
        return str(time)
    epoch = datetime.datetime(1970, 1, 1)
    try:
        return str(epoch + datetime.timedelta(microseconds=time))
    except OverflowError:
        return f"{time} microseconds since 1970"


def _together(graph: Graph, pairs: np.ndarray) -> int:
    """Pairs whose items share a training collection too; allowed, but worth knowing."""
    return sum(
        len(np.intersect1d(graph.neighbors(query), graph.neighbors(target), True)) > 0
        for query, target in pairs.tolist()
    )


def _even_share(possible: np.ndarray, limit: int) -> int:
    """The largest m with sum(min(m, possible)) <= limit, at most max(possible)."""
    ordered = np.sort(possible)
    before = np.concatenate([[0], np.cumsum(ordered)[:-1]]) if len(ordered) else np.empty(0, int)
    left = np.arange(len(ordered), 0, -1)
    for value, spent, rest in zip(ordered.tolist(), before.tolist(), left.tolist()):
        if spent + value * rest > limit:
            return (limit - spent) // rest
    return int(ordered[-1]) if len(ordered) else 0


def _choose(values: np.ndarray, count: int, seed: int, purpose: int) -> np.ndarray:
    chosen = _stream(seed, purpose).choice(values, min(count, len(values)), replace=False)
    return np.sort(chosen).astype(np.int32)


def _stream(seed: int, purpose: int) -> np.random.Generator:
    key = np.array([seed & (2**64 - 1), purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
