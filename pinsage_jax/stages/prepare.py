"""The stages that read input tables: prepare, the doctor, split and Spark's graph tables."""

from __future__ import annotations

from typing import Any

from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.catalog.prepare import prepare as prepare_tables
from pinsage_jax.config.settings import Config
from pinsage_jax.distributed import process_group
from pinsage_jax.graph import split_tables
from pinsage_jax.spark.graph_tables import write_graph_tables


def load_graph(config: Config) -> Prepared:
    """Graph, features, ids and pairs; input tables are read into WORKDIR/prepared first.

    What is there already, of the same tables and settings, is only opened.  Of several
    processes only the writer reads the tables.
    """
    if process_group.is_rank0():
        prepare_tables(config)
    process_group.all_gather_object(None)
    return open_prepared(config.workdir)


def prepare(config: Config) -> Prepared:
    """Input tables to the graph, features and pairs in WORKDIR/prepared."""
    return load_graph(config)


def doctor(config: Config) -> dict[str, Any]:
    """What is odd about the inputs, and what a run of them costs: WORKDIR/doctor.json."""
    # Its forecast trains for some steps; the other stages of this module need no JAX.
    from pinsage_jax.checkup.doctor import examine

    return examine(config)


def split(config: Config) -> dict[str, Any]:
    """Train and eval tables from one edge table, into WORKDIR/split."""
    return split_tables.split(config)


def graph_tables(config: Config) -> dict[str, Any]:
    """Clean, pruned, numbered edges and neighbor lists by Spark: WORKDIR/graph_tables."""
    return write_graph_tables(config)
