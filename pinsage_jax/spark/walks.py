"""Samples importance neighborhoods by joins on Spark, without the graph in memory.

A walk is a row, and a hop is a join.  From a node with d neighbors the walk draws a position
below d and is joined, on node and position, with the table

  hops    at (a node), position in [0, d), next, next_edges (d of the next node)

The keys of this table are distinct, so a node with millions of edges does not make one
partition larger than the others, and the joined row has the number of neighbors for the next
draw.  In a weighted graph a row has the whole list of a node, and the draw is searched for in
its running sums.  Such graphs should be pruned of nodes with very many edges first.

The random numbers are those of sampling/kernels.py: hashes of (seed, epoch 0, start, walk,
draw), as Spark expressions.  Positions follow the order of the CSR, and the same hash orders
equal counts.  The lists are therefore identical to those of the in-memory sampler.

Rows shuffled for W walks of L steps from N nodes: 2 L N W rows of about 20 + 8 L bytes, and
2 E rows once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.core import splitmix
from pinsage_jax.cpu import counter_random
from pinsage_jax.sampling import kernels

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

LISTS = "node long, ids array<int>, counts array<int>"
_MIX = ((30, int(splitmix.MIX_1)), (27, int(splitmix.MIX_2)), (31, None))
_LOW_32 = 0xFFFFFFFF


def neighbor_lists(
    edges: DataFrame, num_items: int, nodes: int, sampling: SamplingConfig, seed: int, shards: int
) -> DataFrame:
    """Top-T lists of the nodes below `nodes` that have edges, most visited first.

    Args:
      edges: item, collection (numbered from 0) and, in a weighted graph, weight (float);
        distinct edges.
      num_items: number of items, which is the node of collection 0.
      nodes: number of nodes to start from.
      sampling: settings of the walks.
      seed: seed of the run.
      shards: number of partitions of each shuffle.

    Returns:
      node (long), ids and counts (lists of at most T int), computed when the caller persists
      or writes the table.
    """
    from pyspark.sql import functions as F

    weighted = "weight" in edges.columns
    all_nodes = sampling.neighborhood == "all"
    hops = _weighted_hops(edges, num_items) if weighted else _hops(edges, num_items)
    hops = hops.repartition(shards, *(["at"] if weighted else ["at", "position"])).persist()
    degree = _both_ways(edges, num_items).groupBy("node").agg(F.count("*").cast("int").alias("d"))
    walks = degree.where(F.col("node") < nodes).select(
        F.col("node").alias("start"),
        F.col("d").alias("start_edges"),
        F.explode(F.sequence(F.lit(0), F.lit(sampling.num_walks - 1))).alias("walk"),
        "node",
        F.col("d").alias("edges"),
        F.array().cast("array<int>").alias("visits"),
    )
    restart_below = round(sampling.restart * 2**32)
    for step in range(sampling.walk_length):
        walks = _drawn(walks, seed, 2 * step)
        if step > 0:
            restarts = F.col("draw").bitwiseAND(F.lit(_LOW_32)) < restart_below
            for name in ("node", "edges"):
                home = "start" if name == "node" else "start_edges"
                walks = walks.withColumn(name, F.when(restarts, F.col(home)).otherwise(F.col(name)))
        walks = _hop(walks, hops, weighted, F.col("node") < num_items if all_nodes else None)
        if all_nodes:
            walks = _visited(walks)
        walks = _visited(_hop(_drawn(walks, seed, 2 * step + 1), hops, weighted, None))
    return _top(walks.repartition(shards, "start"), seed, sampling.num_neighbors)


def _both_ways(edges: DataFrame, num_items: int) -> DataFrame:
    """The columns node, next and weight if there is one: each edge in both directions."""
    from pyspark.sql import functions as F

    item = F.col("item").cast("int")
    collection = (F.col("collection") + num_items).cast("int")
    extra = ["weight"] if "weight" in edges.columns else []
    forward = edges.select(item.alias("node"), collection.alias("next"), *extra)
    backward = edges.select(collection.alias("node"), item.alias("next"), *extra)
    return forward.unionByName(backward)


def _hops(edges: DataFrame, num_items: int) -> DataFrame:
    """The table of hops: one row for each node and neighbor."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    rows = _both_ways(edges, num_items)
    degree = rows.groupBy("node").agg(F.count("*").cast("int").alias("next_edges"))
    position = F.row_number().over(Window.partitionBy("node").orderBy("next")) - 1
    rows = rows.select(F.col("node").alias("at"), position.cast("long").alias("position"), "next")
    return rows.join(degree.withColumnRenamed("node", "next"), "next")


def _weighted_hops(edges: DataFrame, num_items: int) -> DataFrame:
    """The columns at and others: for each node its neighbors, ascending, as (next, reach)."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    order = Window.partitionBy("node").orderBy("next").rowsBetween(Window.unboundedPreceding, 0)
    # Added left to right in double precision, as kernels.running_sums does.
    reach = F.sum(F.col("weight").cast("double")).over(order)
    rows = _both_ways(edges, num_items).withColumn("reach", reach)
    others = F.array_sort(F.collect_list(F.struct("next", "reach")))
    return rows.groupBy(F.col("node").alias("at")).agg(others.alias("others"))


def _hop(walks: DataFrame, hops: DataFrame, weighted: bool, moving: Column | None) -> DataFrame:
    """Moves every walk to a random neighbor, or only those for which `moving` is true."""
    from pyspark.sql import functions as F

    bits = F.shiftrightunsigned("draw", 32)
    here = F.col("node") if moving is None else F.when(moving, F.col("node")).otherwise(-1)
    walks = walks.withColumn("here", here)
    same = F.col("here") == F.col("at")
    if weighted:
        share = (bits.cast("double") + 0.5) / F.lit(4294967296.0)
        target = share * F.element_at("others", -1)["reach"]
        passed = F.size(F.filter("others", lambda other: other["reach"] <= target))
        # Rounding can make the target equal to the whole reach.
        found = F.get("others", F.least(passed, F.size("others") - 1))["next"]
        edges = F.lit(0)
    else:
        walks = walks.withColumn("drawn", F.shiftrightunsigned(bits * F.col("edges"), 32))
        same = same & (F.col("drawn") == F.col("position"))
        found, edges = F.col("next"), F.coalesce("next_edges", "edges")
    return walks.join(hops, same, "inner" if moving is None else "left").select(
        *["start", "start_edges", "walk", "visits"],
        F.coalesce(found, "node").alias("node"),
        edges.alias("edges"),
    )


def _visited(walks: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    more = F.concat("visits", F.array("node"))
    counted = F.col("node") != F.col("start")
    return walks.withColumn("visits", F.when(counted, more).otherwise(F.col("visits")))


def _top(walks: DataFrame, seed: int, size: int) -> DataFrame:
    """The most visited nodes of each start node; walks are partitioned by start node."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    counts = (
        walks.select("start", F.explode("visits").alias("other"))
        .groupBy("start", "other")
        .agg(F.count("*").cast("int").alias("visited"))
    )
    counts = _keyed(counts, seed, F.col("start"))
    tie = F.col("draw").bitwiseXOR(F.lit(_signed(kernels.TIE_STREAM)))
    counts = _mixed(
        counts.withColumn("draw", tie + F.col("other") * F.lit(_signed(splitmix.GOLDEN)))
    )
    best = Window.partitionBy("start").orderBy(
        F.desc("visited"), F.desc(F.shiftrightunsigned("draw", 32)), "other"
    )
    ranked = counts.withColumn("rank", F.row_number().over(best)).where(F.col("rank") <= size)
    found = F.array_sort(F.collect_list(F.struct("rank", "other", "visited")))
    return (
        ranked.groupBy("start")
        .agg(found.alias("found"))
        .select(
            F.col("start").cast("long").alias("node"),
            F.col("found.other").alias("ids"),
            F.col("found.visited").alias("counts"),
        )
    )


def _drawn(walks: DataFrame, seed: int, index: int) -> DataFrame:
    """Adds the column draw: counter_random.draw(stream of the start node, walk, index)."""
    from pyspark.sql import functions as F

    walks = _keyed(walks, seed, F.col("start"))
    counter = F.shiftleft(F.col("walk").cast("long"), 16) + (index + 1)
    return _mixed(
        walks.withColumn("draw", F.col("draw") + counter * F.lit(_signed(splitmix.GOLDEN)))
    )


def _keyed(rows: DataFrame, seed: int, node: Column) -> DataFrame:
    """Adds the column draw: counter_random.stream(seed, 0, node)."""
    from pyspark.sql import functions as F

    with np.errstate(over="ignore"):
        first = counter_random.mix(np.uint64(seed) + splitmix.GOLDEN)
        key = counter_random.mix(np.uint64(first) + counter_random.U1)
    value = node.cast("long") * F.lit(_signed(splitmix.GOLDEN)) + F.lit(1) + F.lit(_signed(key))
    return _mixed(rows.withColumn("draw", value))


def _mixed(rows: DataFrame) -> DataFrame:
    """Replaces draw by counter_random.mix(draw); products of long wrap around without ANSI."""
    from pyspark.sql import functions as F

    for shift, factor in _MIX:
        value = F.col("draw").bitwiseXOR(F.shiftrightunsigned("draw", shift))
        if factor is not None:
            value = value * F.lit(_signed(factor))
        rows = rows.withColumn("draw", value)
    return rows


def _signed(bits: int | np.unsignedinteger) -> int:
    """The signed 64-bit integer with the bits of an unsigned one."""
    value = int(bits)
    return value - 2**64 if value >= 2**63 else value
