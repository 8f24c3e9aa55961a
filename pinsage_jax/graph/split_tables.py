"""Train and eval tables made from one edge table: --mode=split.

WORKDIR/split/
  train_edges.parquet  the rows of --edges that may be trained on, all columns
  eval_pairs.parquet   query_id, target_id, kind (warm, or cold: no training edge)
  withheld_edges.parquet  the other rows of --edges, all columns
  withheld.parquet     collection_id or item_id of all that lost every edge, or both of each
                       edge that was left out; not for time
  manifest.json        the settings, counts, and a checksum per file

The query of a pair always has a training edge.  --split_by decides which pairs there are:

  collections  a share of the collections is withheld; query and target are two items of
               one withheld collection
  items        a share of the items loses every edge; these are the targets, and the query
               is an item of a collection that the target was in
  time         edges after one cut are withheld; the target entered a collection after the
               cut, the query was in it before (or, if nothing was, entered it too)
  leave_one_out  one edge of every collection of two or more items is withheld, with a
               --time_column the latest and otherwise a random one; the target is its item,
               the query is one of those that stay

Pairs are drawn evenly from all collections (pair_draws.draw_pairs), --split_pairs in all.
"""

from __future__ import annotations

import contextlib
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
from pinsage_jax.graph.pair_draws import draw_pairs
from pinsage_jax.graph.withholding import (
    Withheld,
    leave_one_out,
    withhold_after,
    withhold_collections,
    withhold_items,
)

FOLDER = "split"
TRAIN_EDGES, EVAL_PAIRS = "train_edges.parquet", "eval_pairs.parquet"
WITHHELD_EDGES = "withheld_edges.parquet"
# Purposes of the random streams; a collection's own is _PAIRS plus its index.
_SUBSET, _PAIRS = 13, 1 << 33


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
    if tool.split_by == "leave_one_out" and tool.gives_a_size:
        raise UserError(
            "--split_by=leave_one_out withholds one edge of every collection; leave out "
            "--split_share and --split_cut."
        )
    edges = tables.open_table(data.path(data.edges), "edges", data)
    folder = pathlib.Path(config.workdir) / FOLDER
    with files.atomic_folder(folder) as temporary:
        scratch = temporary / "scratch"
        ids = edges_table.collect_ids(edges, None, data, None)
        rows = edges_table.write_edge_indices(edges, ids, data, scratch)
        graph, times = csr.build(
            rows.items, rows.collections, len(ids.items), len(ids.collections),
            times=rows.times, folder=scratch,
        )  # fmt: skip
        cut = _time_cut(tool, rows) if tool.split_by == "time" else None
        withheld = _withhold(tool, graph, times, cut, config.seed)
        pairs = draw_pairs(withheld.groups, tool.split_pairs, config.seed, _SUBSET, _PAIRS)
        # Two collections can offer the same two items.
        pairs = pairs[np.sort(np.unique(pairs, axis=0, return_index=True)[1])]
        _check_not_empty(withheld, pairs, tool)
        mask = _train_mask(rows, withheld, cut)
        kept_rows = _write_edges(edges, data, temporary, mask)
        kinds = derived_kinds(pairs, withheld.train_graph.degree())
        _write_pairs(temporary / EVAL_PAIRS, pairs, kinds, ids.items)
        names = [
            TRAIN_EDGES,
            WITHHELD_EDGES,
            EVAL_PAIRS,
            *_write_withheld(temporary, ids, withheld),
        ]
        how: dict[str, Any] = {"by": tool.split_by, "share": tool.split_share, "seed": config.seed}
        if cut is not None:
            how |= {"cut": cut, "cut_text": _format_time(cut, rows.time_kind)}
            how |= {"time_kind": rows.time_kind, "time_column": data.time_column}
        if withheld.left_out is not None:
            del how["share"]
            how |= {"edge": "random" if times is None else "last"}
            how |= {
                "item_column": data.item_column,
                "collection_column": data.collection_column,
            }
        counts = {
            "edge_rows": ids.edge_rows,
            "train_edge_rows": kept_rows,
            **_counts(graph, withheld, pairs, kinds),
        }
        manifest = {
            "format": 1,
            "created_by": leaks.CREATED_BY,
            "edges": str(edges.path),
            **how,
            "counts": counts,
            "files": files.checksums(temporary, names),
        }
        files.write_json(temporary / leaks.MANIFEST, manifest)
        _check_written(temporary, data)
        shutil.rmtree(scratch)
    logging.info(
        "split by %s: %d of %d edge rows to train on, %d eval pairs (%d cold), in %s.",
        tool.split_by, kept_rows, ids.edge_rows, len(pairs), counts["cold_pairs"], folder,
    )  # fmt: skip
    if counts["cold_pairs"]:
        logging.info("cold targets are in no training edge: they must be in --items.")
    return manifest


def _withhold(
    tool: SplitToolConfig, graph: Graph, times: np.ndarray | None, cut: int | None, seed: int
) -> Withheld:
    """What --split_by withholds."""
    if cut is not None:
        assert times is not None, "there is a --time_column"
        return withhold_after(graph, times, cut)
    if tool.split_by == "items":
        return withhold_items(graph, tool.split_share, seed)
    if tool.split_by == "leave_one_out":
        return leave_one_out(graph, times, seed)
    return withhold_collections(graph, tool.split_share, seed)


def _counts(
    graph: Graph, withheld: Withheld, pairs: np.ndarray, kinds: np.ndarray
) -> dict[str, int]:
    """Sizes for the manifest."""
    return {
        "train_edges": withheld.train_graph.num_edges,
        "withheld_edges": graph.num_edges - withheld.train_graph.num_edges,
        "withheld_collections": len(withheld.collections),
        "withheld_items": len(withheld.items),
        "collections_with_pairs": sum(group.num_pairs > 0 for group in withheld.groups),
        "eval_pairs": len(pairs),
        "warm_pairs": int((kinds == "warm").sum()),
        "cold_pairs": int((kinds == "cold").sum()),
        "pairs_sharing_a_training_collection": _count_pairs_together(withheld.train_graph, pairs),
    }


def _write_withheld(folder: pathlib.Path, ids: edges_table.Ids, withheld: Withheld) -> list[str]:
    """Writes the ids of what lost every edge, or of edges; returns the names of the files."""
    if withheld.left_out is not None:
        collections = np.flatnonzero(withheld.left_out >= 0)
        found = {
            "collection_id": ids.collections.names(collections),
            "item_id": ids.items.names(withheld.left_out[collections]),
        }
        pq.write_table(pa.table(found), folder / leaks.WITHHELD)
        return [leaks.WITHHELD]
    for kind, table, indices in (
        ("collection_id", ids.collections, withheld.collections),
        ("item_id", ids.items, withheld.items),
    ):
        if len(indices):
            pq.write_table(pa.table({kind: table.names(indices)}), folder / leaks.WITHHELD)
            return [leaks.WITHHELD]
    return []


def _train_mask(
    rows: edges_table.EdgeIndices, withheld: Withheld, cut: int | None
) -> Callable[[slice], np.ndarray]:
    """A function from a slice of the rows of the edge table to bool [rows]: kept to train on."""

    def mask(span: slice) -> np.ndarray:
        if cut is not None and rows.times is not None:
            return rows.times[span] <= cut
        if withheld.left_out is not None:
            return rows.items[span] != withheld.left_out[rows.collections[span]]
        isolated = np.isin(rows.items[span], withheld.items)
        return ~(isolated | np.isin(rows.collections[span], withheld.collections))

    return mask


def _write_edges(
    edges: tables.Table, data: Any, folder: pathlib.Path, mask: Callable[[slice], np.ndarray]
) -> int:
    """Copies the rows that train and those that do not, streaming; returns how many train."""
    ids = [data.item_column, data.collection_column]
    start, rows = 0, 0
    try:
        with contextlib.ExitStack() as stack:
            writers: list[pq.ParquetWriter] = []
            progress = stack.enter_context(Progress(edges.num_rows, "row", "writing edges"))
            for batch in tables.iter_batches(edges, list(edges.columns), ids=ids):
                if not writers:
                    writers = [
                        stack.enter_context(pq.ParquetWriter(folder / name, batch.rows.schema))
                        for name in (TRAIN_EDGES, WITHHELD_EDGES)
                    ]
                kept = mask(slice(start, start + len(batch)))
                for writer, chosen in zip(writers, (kept, ~kept)):
                    found = batch.rows.filter(pa.array(chosen))
                    writer.write_batch(found.cast(writer.schema))
                start, rows = start + len(batch), rows + int(kept.sum())
                progress.update(len(batch))
    except pa.ArrowInvalid as error:
        raise UserError(
            f"--{edges.flag}={edges.path}: its files differ in the types of a column ({error})."
        ) from None
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


def _check_not_empty(withheld: Withheld, pairs: np.ndarray, tool: SplitToolConfig) -> None:
    if withheld.train_graph.num_edges == 0:
        remedy = "set a later --split_cut" if tool.split_cut else "lower --split_share"
        raise UserError(f"The split leaves no edge to train on; {remedy}.")
    if len(pairs) == 0 and tool.split_by == "leave_one_out":
        raise UserError(
            "The split by leave_one_out finds no eval pair, because no collection holds two items; "
            "choose another --split_by."
        )
    if len(pairs) == 0:
        remedy = "--split_cut" if tool.split_cut else "--split_share"
        raise UserError(
            f"The split by {tool.split_by} finds no eval pair, because no withheld edge shares a "
            f"collection with an item that keeps an edge; change {remedy}."
        )


def _time_cut(tool: SplitToolConfig, rows: edges_table.EdgeIndices) -> int:
    """The last time that is trained on, from --split_cut or --split_share."""
    if not tool.split_cut:
        assert rows.times is not None, "there is a --time_column"
        times = np.sort(rows.times)
        return int(times[max(int(np.ceil((1.0 - tool.split_share) * len(times))) - 1, 0)])
    kind = rows.time_kind
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


def _format_time(time: int, kind: str | None) -> str:
    if kind == "number":
        return str(time)
    epoch = datetime.datetime(1970, 1, 1)
    try:
        return str(epoch + datetime.timedelta(microseconds=time))
    except OverflowError:
        return f"{time} microseconds since 1970"


def _count_pairs_together(graph: Graph, pairs: np.ndarray) -> int:
    """Number of pairs whose items share a training collection too, which is allowed."""
    return sum(
        len(np.intersect1d(graph.neighbors(query), graph.neighbors(target), True)) > 0
        for query, target in pairs.tolist()
    )
