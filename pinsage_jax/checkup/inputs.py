"""Reads the input tables as the prepare stage does, but continues after an error.

The prepare stage stops at the first error.  Here each table is read on its own: its error
becomes a finding, and the other tables are still checked.  Features are checked column by
column but not fitted, and no file stays in the workdir.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import numpy as np
import pyarrow as pa

from pinsage_jax.catalog.inputs import input_tables
from pinsage_jax.checkup.clock import now
from pinsage_jax.checkup.findings import Findings
from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data import column_choice, edges_table, pairs_table, tables
from pinsage_jax.data.edges_table import Ids
from pinsage_jax.data.encoders.loading import Encoders, open_encoders
from pinsage_jax.data.tables import Table
from pinsage_jax.graph import csr, edge_weights
from pinsage_jax.graph.csr import Graph

# Unknown ids that are collected, to be named and compared.
_MAX_UNKNOWN_IDS = 10_000


@dataclasses.dataclass
class PairTable:
    """A table of pairs.

    Attributes:
      pairs: int32 [P, 2] usable pairs.
      kinds: str [P].
      rows: rows of the table.
      unknown: number of rows with an unknown id.
      unknown_ids: some of the unknown ids.
      self_pairs: number of rows that pair an item with itself.
      repeated: number of usable rows that repeat an earlier one.
    """

    table: Table
    pairs: np.ndarray
    kinds: np.ndarray
    rows: int
    unknown: int
    unknown_ids: list[str]
    self_pairs: int
    repeated: int


@dataclasses.dataclass
class Inputs:
    """The input tables that could be read.

    Attributes:
      data: the settings, with the paths of the synthetic catalog if --synthetic is set.
      tables: tables by flag, without those that cannot be opened.
      ids, graph: None if the edge table cannot be used.
      pairs: pair tables by flag, without those that cannot be used.
      encoders: of text and of pictures.
      seconds: time to read the ids and edges and to build the graph, as in clock.py.
    """

    data: DataConfig
    tables: dict[str, Table]
    ids: Ids | None = None
    graph: Graph | None = None
    pairs: dict[str, PairTable] = dataclasses.field(default_factory=dict)
    encoders: Encoders = Encoders()
    seconds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))

    @property
    def degree(self) -> np.ndarray:
        """Edges of every item, int32 [num_items]."""
        assert self.graph is not None
        return self.graph.degree()[: self.graph.num_items]

    @property
    def sizes(self) -> np.ndarray:
        """Items of every collection, int32 [num_collections]."""
        assert self.graph is not None
        return self.graph.degree()[self.graph.num_items :]


def read_inputs(config: Config, findings: Findings) -> Inputs:
    """Opens the tables, builds the graph in memory and reads the pairs.

    Raises:
      UserError: there is no edge table.
    """
    data, paths = input_tables(config)
    inputs = Inputs(data, {}, encoders=open_encoders(config.encoders))
    for flag, path in paths.items():
        with findings.caught(flag):
            inputs.tables[flag] = tables.open_table(path, flag, data)
    if "edges" not in inputs.tables:
        return inputs
    start = now()
    inputs.ids = _ids(inputs, findings)
    if inputs.ids is not None:
        with findings.caught("edges"):
            inputs.graph = _graph(inputs, pathlib.Path(config.workdir))
    inputs.seconds = now() - start
    if inputs.graph is not None:
        for flag in ("train_pairs", "eval_pairs"):
            if flag in inputs.tables:
                with findings.caught(flag):
                    inputs.pairs[flag] = read_pair_table(inputs.tables[flag], inputs)
    return inputs


def _ids(inputs: Inputs, findings: Findings) -> Ids | None:
    """The ids of the edge and item tables, or of the edge table if the other cannot be used."""
    edges, items = inputs.tables["edges"], inputs.tables.get("items")
    if items is not None:
        with findings.caught("items"):
            items.require(inputs.data.item_id_column, "item_id_column")
            title = column_choice.choose_title(items, inputs.data)
            return edges_table.collect_ids(edges, items, inputs.data, title)
    with findings.caught("edges"):
        return edges_table.collect_ids(edges, None, inputs.data, None)
    return None


def _graph(inputs: Inputs, workdir: pathlib.Path) -> Graph:
    """Builds the graph in memory, with a temporary folder for the encoded edges."""
    ids = inputs.ids
    assert ids is not None
    with files.reported_os_errors(workdir), tempfile.TemporaryDirectory(dir=workdir) as folder:
        codes = edges_table.write_edge_indices(
            inputs.tables["edges"], ids, inputs.data, pathlib.Path(folder)
        )
        codes, _ = edge_weights.weighed(codes, inputs.data, pathlib.Path(folder))
        graph, _ = csr.build(
            codes.items, codes.collections, len(ids.items), len(ids.collections), codes.weights
        )
    return graph


def read_pair_table(table: Table, inputs: Inputs) -> PairTable:
    """Reads a pair table and counts its unusable rows.

    Raises:
      UserError: a missing column or id, or no usable pair.
    """
    assert inputs.ids is not None and inputs.graph is not None
    unknown = unknown_ids(table, [pairs_table.QUERY_COLUMN, pairs_table.TARGET_COLUMN], inputs.ids)
    try:
        found = pairs_table.read_pairs(table, inputs.ids.items, inputs.graph.degree())
    except UserError as error:
        named = ", ".join(repr(name) for name in unknown[:3])
        raise UserError(f"{error} Unknown ids: {named}." if named else str(error)) from None
    report = found.report
    distinct = len(np.unique(found.pairs, axis=0)) if len(found.pairs) else 0
    return PairTable(
        table,
        found.pairs,
        found.kinds,
        report["rows"],
        report["rows"] - report["kept"] - report["self_pairs"],
        unknown,
        report["self_pairs"],
        len(found.pairs) - distinct,
    )


def unknown_ids(table: Table, columns: list[str], ids: Ids) -> list[str]:
    """Ids in `columns` that no item has, each once, in order of appearance; at most 10,000."""
    for name in columns:
        table.require(name)
    found: dict[str, None] = {}
    for group in edges_table.group_batches(
        tables.iter_batches(table, columns, ids=columns), 1 << 20
    ):
        for name in columns:
            column = pa.chunked_array([batch.column(name) for batch in group])
            missing = pa.array(ids.items.lookup(column) < 0)
            found |= dict.fromkeys(column.filter(missing).slice(0, _MAX_UNKNOWN_IDS).to_pylist())
        if len(found) >= _MAX_UNKNOWN_IDS:
            break
    return list(found)
