"""The prepared catalog: graph, ids, features and pairs, made from the input tables.

WORKDIR/prepared/
  graph/                 indptr.npy, indices.npy, weights.npy, manifest.json (csr.py)
  features/              features.npy [num_items, D], words.npy and the transform (features.py)
  item_ids.arrow         ids in order of index (ids.py); collection_ids.arrow alike
  titles.arrow           title per item, null where unknown; only if there is a column
  train_pairs.npy        int32 [P, 2]; only with --train_pairs
  eval_pairs.npy         int32 [P, 2], and eval_kinds.json: a list of P strings
  times.npy              int64 [E] in the order of the items' rows; only with --time_column
  kinds.npy              uint16 [E] likewise, a bit for each kind; only with --kind_column
  columns.parquet        the columns of --items that filters read (item_columns.py)
  manifest.json          counts, reports, checksums, and the fingerprint of the inputs

The folder is replaced as a whole, and reused while settings and input files are the same.
Opening it compares every file with its checksum; --mode=prepare makes a damaged folder
again, the other modes refuse it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from pinsage_jax.catalog import item_columns
from pinsage_jax.catalog.encoders import require_encoders
from pinsage_jax.catalog.graph_files import BuiltGraph, ChooseKindWeights, write_graph
from pinsage_jax.catalog.inputs import (
    FOLDER,
    FORMAT,
    fingerprint_of,
    input_tables,
    saved_fingerprint,
)
from pinsage_jax.catalog.item_columns import ItemColumns
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import column_choice, edges_table, features, leaks, pairs_table, tables
from pinsage_jax.data.encoders.loading import open_encoders
from pinsage_jax.data.ids import IdTable, load_column, save_column
from pinsage_jax.graph.csr import Graph
from pinsage_jax.graph.edge_weights import EdgeWeights

_TIMES_FILE, _KINDS_FILE = "times.npy", "kinds.npy"


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared catalog, its arrays memory-mapped."""

    graph: Graph
    features: np.ndarray  # float32 or float16 [num_items, D]
    item_ids: IdTable
    collection_ids: IdTable
    titles: pa.Array | None  # large_string [num_items], null where unknown
    train_pairs: np.ndarray | None  # int32 [P, 2]
    eval_pairs: np.ndarray  # int32 [P, 2]
    eval_kinds: np.ndarray  # str [P]
    manifest: dict[str, Any]
    words: np.ndarray | None = None  # int32 [num_items, 2K] where items are text alone
    columns_file: pathlib.Path | ItemColumns | None = None
    folder: pathlib.Path | None = None

    @functools.cached_property
    def item_columns(self) -> ItemColumns:
        """The columns of --items, each read when it is first asked for."""
        return item_columns.open_columns(self.columns_file, self.item_ids, self.manifest)

    @property
    def edge_kinds(self) -> tuple[np.ndarray, list[str]] | None:
        """Kinds of the edges, see `edge_weights.kinds_of_edges`, and their names; None without."""
        names = self.manifest.get("kind_names") or []
        if not names or self.folder is None:
            return None
        return files.read_array(self.folder / _KINDS_FILE), names

    @property
    def edge_times(self) -> np.ndarray | None:
        """Times of the edges int64 [E] in the order of the items' rows; None without times."""
        if self.manifest.get("time_kind") is None or self.folder is None:
            return None
        return files.read_array(self.folder / _TIMES_FILE)

    def edge_weights(self, data: DataConfig) -> EdgeWeights | None:
        """How the weights of further edges follow from their columns; None without weights."""
        if self.graph.weights is None:
            return None
        return EdgeWeights.from_json(data, self.manifest.get("edge_weights", {}))

    @property
    def link_rows(self) -> np.ndarray:
        """Rows [num_items, *] that content links compare: words if there are any, else features."""
        return self.features if self.words is None else self.words


def prepare(
    config: Config,
    check: Callable[[Prepared], None] | None = None,
    choose_kind_weights: ChooseKindWeights | None = None,
) -> Prepared:
    """Writes WORKDIR/prepared, or reuses it, and opens it.

    Args:
      check: called with the new catalog before it replaces what is there; raises UserError
        to leave everything as it is.
      choose_kind_weights: for --kind_weights=auto; see `graph_files.write_graph`.

    Raises:
      UserError: an input table or a setting has a mistake.
    """
    workdir = pathlib.Path(config.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder.")
    folder = workdir / FOLDER
    wanted = fingerprint_of(config)
    if saved_fingerprint(folder) == wanted:
        try:
            prepared = open_prepared(workdir)
        except UserError as error:
            logging.warning("%s; preparing again.", str(error).split(";")[0])
        else:
            logging.info("prepare: %s is up to date.", folder)
            return prepared
    require_encoders(config, folder)
    data, paths = input_tables(config)
    inputs = {flag: tables.open_table(path, flag, data) for flag, path in paths.items()}
    with files.atomic_folder(folder) as temporary:
        _write(inputs, config, data, temporary, wanted, choose_kind_weights)
        if check is not None:
            check(_open(temporary))
    return open_prepared(workdir)


def open_prepared(workdir: str | pathlib.Path) -> Prepared:
    """Opens WORKDIR/prepared, memory-mapped, every file compared with its checksum.

    Raises:
      UserError: it is not there, or a file is missing, damaged or of another size.
    """
    return _open(pathlib.Path(workdir) / FOLDER)


def _open(folder: pathlib.Path) -> Prepared:
    if not (folder / "manifest.json").exists():
        raise UserError(f"{folder} holds no prepared data; run --mode=prepare first.")
    manifest = files.read_checked_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder} has another format; delete it and run --mode=prepare again.")
    titles = train_pairs = None
    if manifest["has_titles"]:
        titles = load_column(folder / "titles.arrow")
    if manifest["has_train_pairs"]:
        train_pairs = files.read_array(folder / "train_pairs.npy")
    words = folder / "features" / features.WORDS_FILE
    prepared = Prepared(
        graph=Graph.load(folder / "graph"),
        features=files.read_array(folder / "features" / features.FEATURES_FILE),
        item_ids=IdTable.load(folder / "item_ids.arrow"),
        collection_ids=IdTable.load(folder / "collection_ids.arrow"),
        titles=titles,
        train_pairs=train_pairs,
        eval_pairs=files.read_array(folder / "eval_pairs.npy"),
        eval_kinds=np.array(files.read_json(folder / "eval_kinds.json"), dtype=np.str_),
        manifest=manifest,
        words=files.read_array(words) if words.exists() else None,
        columns_file=item_columns.saved_file(folder),
        folder=folder,
    )
    counts = manifest["counts"]
    for name, found, expected in (
        ("graph", prepared.graph.num_items, counts["items"]),
        ("graph", prepared.graph.num_collections, counts["collections"]),
        ("features/features.npy", prepared.features.shape[0], counts["items"]),
        ("features/words.npy", len(prepared.link_rows), counts["items"]),
        ("item_ids.arrow", len(prepared.item_ids), counts["items"]),
        ("collection_ids.arrow", len(prepared.collection_ids), counts["collections"]),
        ("titles.arrow", counts["items"] if titles is None else len(titles), counts["items"]),
        ("eval_pairs.npy", len(prepared.eval_pairs), counts["eval_pairs"]),
        ("eval_kinds.json", len(prepared.eval_kinds), counts["eval_pairs"]),
    ):
        if found != expected:
            raise UserError(
                f"{folder / name} has {found:,} entries but the manifest says {expected:,}; "
                f"delete {folder} and run --mode=prepare again."
            )
    files.verify_checksums(folder, manifest["checksums"])
    return prepared


@dataclasses.dataclass(frozen=True, eq=False)
class _Pairs:
    """The pair tables that are given, by flag, and the checks against leaks that they passed."""

    tables: dict[str, pairs_table.Pairs]
    leak_checks: list[str]

    @property
    def num_eval(self) -> int:
        found = self.tables.get("eval_pairs")
        return 0 if found is None else len(found.pairs)


def _write(
    inputs: dict[str, tables.Table],
    config: Config,
    data: DataConfig,
    folder: pathlib.Path,
    fingerprint: str,
    choose_kind_weights: ChooseKindWeights | None,
) -> None:
    """Fills the (temporary) folder; `data` are the settings of the tables that are read."""
    items = inputs.get("items")
    title_column = None
    if items is not None:
        title_column = column_choice.choose_title(items, data)
        # A wrong column name is reported before the tables are read, which may take minutes.
        items.require(data.item_id_column, "item_id_column")
        column_choice.named_columns(items, data)
    ids = edges_table.collect_ids(inputs["edges"], items, data, title_column)
    built = write_graph(inputs, ids, config, data, folder, choose_kind_weights)
    _write_ids(ids, folder)
    if built.times is not None:
        files.write_array(folder / _TIMES_FILE, built.times)
    if built.kinds is not None:
        files.write_array(folder / _KINDS_FILE, built.kinds)
    (folder / "features").mkdir()
    feature_report = features.write_features(
        items, data, ids.item_rows, len(ids.items), folder / "features",
        open_encoders(config.encoders),
    )  # fmt: skip
    kept_columns = item_columns.write_item_columns(items, data.item_id_column, folder)
    pairs = _write_pairs(inputs, ids, built.graph.degree(), folder)
    counts = _counts(ids, built, pairs)
    about = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "inputs": {flag: str(table.path) for flag, table in inputs.items()},
        "counts": counts,
        "features": feature_report,
        "pairs": {flag: found.report for flag, found in pairs.tables.items()},
        "leak_checks": pairs.leak_checks,
        "title_column": title_column,
        "item_columns": kept_columns,
        "has_titles": ids.titles is not None,
        "has_train_pairs": "train_pairs" in inputs,
        "weighted": built.graph.weights is not None,
        "time_kind": built.how.time_kind,
        "edge_weights": built.how.to_json(),
        "kind_names": list(built.kind_names),
        "item_digest": ids.items.digest(),
        "collection_digest": ids.collections.digest(),
        "checksums": files.checksums(folder, _files_to_check(folder)),
    }
    files.write_checked_json(folder / "manifest.json", about)
    logging.info(
        "prepare: %d items (%d without edges), %d collections, %d edges "
        "(%d duplicate rows merged, %d edges pruned), %d features per item, %d evaluation pairs.",
        counts["items"], counts["items_without_edges"], counts["collections"], counts["edges"],
        counts["duplicate_edges"], counts["pruned_edges"], feature_report["width"],
        counts["eval_pairs"],
    )  # fmt: skip


def _write_ids(ids: edges_table.Ids, folder: pathlib.Path) -> None:
    ids.items.save(folder / "item_ids.arrow")
    ids.collections.save(folder / "collection_ids.arrow")
    if ids.titles is not None:
        save_column(folder / "titles.arrow", ids.titles, "title")


def _write_pairs(
    inputs: dict[str, tables.Table], ids: edges_table.Ids, degree: np.ndarray, folder: pathlib.Path
) -> _Pairs:
    """Reads the pair tables, refuses what leaks, and writes what is there.

    Args:
      degree: int32 [N] of every node of the graph.
    """
    given: list[str] = [flag for flag in ("train_pairs", "eval_pairs") if flag in inputs]
    found = {flag: pairs_table.read_pairs(inputs[flag], ids.items, degree) for flag in given}
    if "train_pairs" in found:
        files.write_array(folder / "train_pairs.npy", found["train_pairs"].pairs)
    none = pairs_table.Pairs(np.empty((0, 2), np.int32), np.empty(0, np.str_), {})
    train, evaluation = found.get("train_pairs", none), found.get("eval_pairs", none)
    leaks.check_disjoint_pairs(train.pairs, evaluation.pairs, ids.items)
    leak_checks = ["pairs"]
    if "eval_pairs" in inputs:
        items = len(ids.items)
        leak_checks += leaks.check_against_split(
            inputs["eval_pairs"].path,
            inputs["edges"],
            (ids.items, degree[:items]),
            (ids.collections, degree[items:]),
        )
    files.write_array(folder / "eval_pairs.npy", evaluation.pairs)
    files.write_json(folder / "eval_kinds.json", evaluation.kinds.tolist())
    return _Pairs(found, leak_checks)


def _counts(ids: edges_table.Ids, built: BuiltGraph, pairs: _Pairs) -> dict[str, int]:
    """Sizes for the manifest."""
    graph = built.graph
    return {
        "items": graph.num_items,
        "collections": graph.num_collections,
        "edges": graph.num_edges,
        "edge_rows": ids.edge_rows,
        "duplicate_edges": ids.edge_rows - built.distinct_edges,
        "pruned_edges": built.distinct_edges - graph.num_edges,
        "item_rows": ids.item_rows,
        "items_without_edges": int((graph.degree()[: graph.num_items] == 0).sum()),
        "eval_pairs": pairs.num_eval,
    }


def _files_to_check(folder: pathlib.Path) -> list[str]:
    """Files whose checksums the manifest holds; the graph's own has those of its arrays."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (path.parent != folder / "graph" or path.suffix == ".json")
    )
