"""Cleans, prunes and numbers the edges and samples neighbor lists on Apache Spark.

WORKDIR/graph_tables/
  items/            node (long, from 0 in the order of the ids), item_id (string)
  collections/      node (long, following the items), collection_id (string)
  edges/            item and collection (long, each numbered from 0), item_id, collection_id,
                    and weight (float) and time if there are such columns; distinct edges,
                    ordered by item
  neighborhoods/    node (long), ids and counts (lists of int): top-T lists (walks.py)
  manifest.json     counts and settings

All tables are Parquet, so --mode=prepare can read `edges` as its --edges.  Rows are cleaned as
prepare cleans them: weights of duplicates are added, the earliest time is kept, and a missing id
or a weight that is not positive is an error.  Only counts are sent to this machine.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

from absl import logging

from pinsage_jax.config.data import PruneConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.spark.session import partitions, spark_session
from pinsage_jax.spark.walks import neighbor_lists

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FOLDER = "graph_tables"
_MAX_NODES = 2**31 - 1
_ROW_BITS = 33  # of monotonically_increasing_id: the row within its partition


def write_graph_tables(config: Config) -> dict[str, Any]:
    """Writes WORKDIR/graph_tables from --edges and --items; returns the manifest.

    Raises:
      UserError: Spark does not start, or a table is invalid.
    """
    with (
        files.atomic_folder(pathlib.Path(config.workdir) / FOLDER) as folder,
        spark_session(config.spark, "graph tables") as session,
    ):
        manifest = _write(session, config, folder.resolve())
        files.write_json(folder / "manifest.json", manifest)
    counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in manifest["counts"].items()]
    logging.info("graph tables: %s", ", ".join(counts))
    return manifest


def _write(session: SparkSession, config: Config, folder: pathlib.Path) -> dict[str, Any]:
    from pyspark.sql import functions as F

    edges, rows = _clean_edges(session, config)
    shards = partitions(session, config.spark, rows)
    session.conf.set("spark.sql.shuffle.partitions", shards)
    edges = edges.persist()
    items = _item_table(session, config)
    remaining = pruned(edges, items, config.prune, config.seed).persist()

    item_ids = edges.select("item_id")
    if items is not None:
        item_ids = item_ids.unionByName(items.select("item_id"))
    counts = {
        "edge_rows": rows,
        "distinct_edges": edges.count(),
        "edges": remaining.count(),
        "items": _number(session, item_ids.distinct(), "item_id", 0, folder / "items"),
    }
    counts["collections"] = _number(
        session,
        remaining.select("collection_id").distinct(),
        "collection_id",
        counts["items"],
        folder / "collections",
    )
    nodes = counts["items"] + counts["collections"]
    if nodes > _MAX_NODES:
        raise UserError(f"There are {nodes:,} nodes, more than the {_MAX_NODES:,} of 32-bit ids.")
    item = _read(session, folder / "items").withColumnRenamed("node", "item")
    collection = _read(session, folder / "collections").select(
        (F.col("node") - counts["items"]).alias("collection"), "collection_id"
    )
    numbered = remaining.join(item, "item_id").join(collection, "collection_id")
    extra = [name for name in ("weight", "time") if name in remaining.columns]
    numbered = numbered.select("item", "collection", "item_id", "collection_id", *extra)
    _save(numbered.orderBy("item", "collection"), folder / "edges")

    everything = config.sampling.neighborhood == "all"
    names = ["item", "collection", *[name for name in extra if name == "weight"]]
    lists = neighbor_lists(
        _read(session, folder / "edges").select(*names),
        counts["items"],
        nodes if everything else counts["items"],
        config.sampling,
        config.seed,
        shards,
    )
    _save(lists, folder / "neighborhoods")
    counts["neighborhoods"] = _read(session, folder / "neighborhoods").count()
    return {
        "format": 1,
        "counts": counts,
        "prune": dataclasses.asdict(config.prune),
        "sampling": dataclasses.asdict(config.sampling),
        "seed": config.seed,
    }


def _table(session: SparkSession, config: Config, flag: str, columns: dict[str, str]) -> DataFrame:
    """Opens an input table and renames its columns.

    Args:
      columns: names in the table by new name; empty names are left out.

    Raises:
      UserError: the table cannot be read as Parquet or lacks a column.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql import functions as F

    given = getattr(config.data, flag)
    path = given if "://" in given else config.data.path(given).resolve().as_uri()
    try:
        table = session.read.parquet(path)
    except PySparkException as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"--{flag}={given} cannot be read as Parquet ({message}).") from error
    for name in columns.values():
        if name and name not in table.columns:
            raise UserError(
                f"--{flag}={given} has no column '{name}'; its columns are: "
                f"{', '.join(table.columns)}."
            )
    # A name may contain dots.
    return table.select(*[F.col(f"`{name}`").alias(new) for new, name in columns.items() if name])


def _clean_edges(session: SparkSession, config: Config) -> tuple[DataFrame, int]:
    """Distinct edges item_id, collection_id[, weight][, time], and the number of rows read."""
    from pyspark.sql import functions as F

    data = config.data
    if data.weighs_edges:
        raise UserError(
            "--mode=graph_tables does not weigh edges by kind or age; write the products into a "
            "column and name it with --weight_column, without --kind_weights and --half_life."
        )
    columns = {
        "item_id": data.item_column,
        "collection_id": data.collection_column,
        "weight": data.weight_column,
        "time": data.time_column,
    }
    table = _table(session, config, "edges", columns)
    for name in ("item_id", "collection_id"):
        table = table.withColumn(name, F.col(name).cast("string"))
    missing = F.col("item_id").isNull() | F.col("collection_id").isNull()
    missing = missing | (F.col("item_id") == "") | (F.col("collection_id") == "")
    faults = {"a missing id": missing}
    merged = []
    if data.weight_column:
        table = table.withColumn("weight", F.col("weight").cast("float"))
        bad = F.isnan("weight") | (F.col("weight") <= 0) | (F.col("weight") == float("inf"))
        faults["a weight that is not a positive number"] = F.col("weight").isNull() | bad
        # As graph.build adds them: in float64, the smallest first.
        ascending = F.sort_array(F.collect_list(F.col("weight").cast("double")))
        total = F.aggregate(ascending, F.lit(0.0), lambda one, other: one + other)
        merged.append(total.cast("float").alias("weight"))
    if data.time_column:
        merged.append(F.min("time").alias("time"))
    rows, *found = table.agg(
        F.count("*"), *[F.count_if(fault) for fault in faults.values()]
    ).collect()[0]
    for fault, count in zip(faults, found, strict=True):
        if count:
            raise UserError(f"--edges={data.edges} has {count:,} rows with {fault}; correct them.")
    if not rows:
        raise UserError(f"--edges={data.edges} has no rows.")
    keys = table.groupBy("item_id", "collection_id")
    return (keys.agg(*merged) if merged else keys.count().drop("count")), rows


def _item_table(session: SparkSession, config: Config) -> DataFrame | None:
    """The columns item_id and, with --prune_topic_column, topic; None without --items."""
    from pyspark.sql import functions as F

    if not config.data.items:
        if config.prune.prune_entropy:
            raise UserError(f"--prune_entropy={config.prune.prune_entropy} needs --items.")
        return None
    columns = {"item_id": config.data.item_id_column, "topic": config.prune.prune_topic_column}
    table = _table(session, config, "items", columns)
    table = table.withColumn("item_id", F.col("item_id").cast("string"))
    missing = F.col("item_id").isNull() | (F.col("item_id") == "")
    rows, found, distinct = table.agg(
        F.count("*"), F.count_if(missing), F.count_distinct("item_id")
    ).collect()[0]
    if found:
        raise UserError(f"--items={config.data.items} has {found:,} rows without an id.")
    if distinct < rows:
        raise UserError(
            f"--items={config.data.items} has {rows - distinct:,} rows that repeat an item; "
            "keep one row per item."
        )
    return table


def pruned(edges: DataFrame, items: DataFrame | None, config: PruneConfig, seed: int) -> DataFrame:
    """The edges that pruning keeps; see graph/pruning.py."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    if config.prune_collection_items:
        large = edges.groupBy("collection_id").count()
        large = large.where(F.col("count") > config.prune_collection_items)
        edges = edges.join(large.select("collection_id"), "collection_id", "left_anti")
    if config.prune_entropy and items is not None:
        topics = items.where((F.col("topic").isNotNull()) & (F.col("topic") != "")).select(
            "item_id", "topic"
        )
        sizes = edges.join(topics, "item_id").groupBy("collection_id", "topic").count()
        share = F.col("count") / F.sum("count").over(Window.partitionBy("collection_id"))
        entropy = F.sum(-F.col("share") * F.log2("share"))
        broad = sizes.withColumn("share", share).groupBy("collection_id").agg(entropy.alias("bits"))
        broad = broad.where(F.col("bits") > config.prune_entropy)
        edges = edges.join(broad.select("collection_id"), "collection_id", "left_anti")
    if config.prune_power < 1.0:
        same_item = Window.partitionBy("item_id")
        heaviest = [F.desc("weight")] if "weight" in edges.columns else []
        chance = F.xxhash64(F.lit(seed), "item_id", "collection_id")
        powered = F.ceil(F.pow(F.col("degree").cast("double"), F.lit(config.prune_power)))
        wanted = F.greatest(powered, F.lit(config.prune_from).cast("long"))
        edges = (
            edges.withColumn("degree", F.count("*").over(same_item))
            .withColumn("rank", F.row_number().over(same_item.orderBy(*heaviest, chance)))
            .where(F.col("rank") <= wanted)
            .drop("degree", "rank")
        )
    return edges


def _number(
    session: SparkSession, ids: DataFrame, name: str, first: int, folder: pathlib.Path
) -> int:
    """Numbers distinct ids from `first` in their order and writes them; returns their count.

    A row is numbered within its partition, and a partition by the number of rows before it.
    This takes two passes over a sorted table, and one number per partition on this machine.
    """
    from pyspark.sql import functions as F

    sorted_ids = folder.with_name(f"{folder.name}-sorted")
    _save(ids.orderBy(name).withColumn("position", F.monotonically_increasing_id()), sorted_ids)
    rows = _read(session, sorted_ids).withColumn("shard", F.shiftright("position", _ROW_BITS))
    begin, starts = first, []
    for shard, count in sorted(map(tuple, rows.groupBy("shard").count().collect())):
        starts.append((shard, begin))
        begin += count
    within = F.col("position").bitwiseAND(F.lit((1 << _ROW_BITS) - 1))
    offsets = session.createDataFrame(starts, "shard long, begin long")
    numbered = rows.join(F.broadcast(offsets), "shard")
    _save(numbered.select((F.col("begin") + within).alias("node"), name), folder)
    shutil.rmtree(sorted_ids)
    return begin - first


def _read(session: SparkSession, folder: pathlib.Path) -> DataFrame:
    return session.read.parquet(folder.as_uri())


def _save(rows: DataFrame, folder: pathlib.Path) -> None:
    rows.write.parquet(folder.as_uri())
