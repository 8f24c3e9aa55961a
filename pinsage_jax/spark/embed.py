"""Whole-catalog embedding on Apache Spark: the second executor of map_reduce.py.

Per layer one Spark job, from one Parquet table of nodes to the next:

  nodes --project--> what each sends --+
                                       join on the sender --(reduce within a partition)--+
  lists --one row a neighbor----------+                                                 |
  nodes --------------------------------------------- union, shuffle by receiver, sort --+
                                                      --finish--> nodes of the next layer

The join, the shuffles and the sort are Spark's; project, reduce and finish run in Python
workers on Arrow batches (layer_tasks.py).  Every step streams: no worker holds more than
batches and a bounded table of sums, whatever a node's number of neighbors.

Shuffled in a layer with lists of T, in bytes: N M 4 (what is sent) + 16 N T (lists) +
N 4 (in + D) (own rows) + 4 M (messages after reducing within partitions), the last of
which is the largest: N T messages if partitions are many, N P where P < T are few.
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from pinsage_jax.core import files
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.inference.tables import MAX_TABLE_BYTES
from pinsage_jax.spark import layer_tasks, tables
from pinsage_jax.spark.layer_tasks import MESSAGE, OWN, Model
from pinsage_jax.spark.session import partitions, spark_session
from pinsage_jax.spark.walks import neighbor_lists

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_NODES = "node long, vector binary"
_MESSAGES = "node long, weight float, vector binary"
_LISTS = "node long, ids array<int>, weights array<float>"
# Reducing before the shuffle costs a way through Python: not for a few percent.
_WORTH_REDUCING = 0.7


def embed_on_spark(encoder: Encoder, params: Any) -> np.ndarray:
    """What `encoder.embed(params)` gives, computed on Spark: float32 [nodes, Z].

    Raises:
      UserError: PySpark or Java is missing, no master answers, or the disk is full.
    """
    config = encoder.config
    nodes, width = encoder.lists.source.num_nodes, config.model.output_dim
    out = files.scratch_array((nodes, width), config.workdir, MAX_TABLE_BYTES)
    with (
        tables.scratch_folder(config.spark.spark_folder or config.workdir) as folder,
        spark_session(config.spark, "embed") as session,
    ):
        shards = partitions(session, config.spark, nodes)
        session.conf.set("spark.sql.shuffle.partitions", shards)
        tables.write_nodes(folder / "inputs", nodes, encoder.inputs.dim, encoder.inputs.gather)
        if config.model.num_layers and config.spark.engine == "spark_walks":
            _walk(session, encoder, folder, shards)
        elif config.model.num_layers:
            tables.write_lists(folder / "lists", *encoder.final_lists)
        data = layer_tasks.packed(params)
        model = Model(
            hashlib.blake2b(data + repr(config.model).encode()).hexdigest(),
            config.model,
            session.sparkContext.broadcast(data),
            encoder.inputs.dim,
            config.embed.embed_block,
        )
        tables.read_vectors(_run(session, model, folder, nodes, encoder.lists.width, shards), out)
    return out


def _run(
    session: SparkSession, model: Model, folder: pathlib.Path, nodes: int, width: int, shards: int
) -> pathlib.Path:
    """All layers, from FOLDER/inputs and FOLDER/lists; the folder of the embeddings."""
    state = _read(session, folder / "inputs")
    layers = model.config.num_layers
    if not layers:
        out = folder / "embeddings"
        _save(state.mapInArrow(layer_tasks.head(model), _NODES), out)
        return out
    lists = _read(session, folder / "lists")
    for layer in range(1, layers + 1):
        raise_if_stopped()
        out = folder / ("embeddings" if layer == layers else f"layer-{layer}")
        _save(_layer(model, layer, state, lists, width, shards), out)
        state = _read(session, out)
        logging.info("layer %d of %d: %d nodes in %d partitions", layer, layers, nodes, shards)
    return out


def _layer(
    model: Model, layer: int, state: DataFrame, lists: DataFrame, width: int, shards: int
) -> DataFrame:
    """OWN rows of a layer, and lists, to its output."""
    from pyspark.sql import functions as F

    sent = state.mapInArrow(layer_tasks.project(model, layer), _NODES)
    named = lists.select(
        F.col("node").alias("receiver"), F.inline(F.arrays_zip("ids", "weights"))
    ).where("ids >= 0 and weights > 0")
    messages = named.join(sent, named["ids"] == sent["node"]).select(
        F.col("receiver").alias("node"), F.col("weights").alias("weight"), "vector"
    )
    if messages_sent(width, shards) < width:
        messages = messages.mapInArrow(layer_tasks.combine_messages(model), _MESSAGES)
    own = state.select(
        "node", F.lit(OWN).alias("part"), F.lit(0.0).cast("float").alias("weight"), "vector"
    )
    rows = own.unionByName(messages.withColumn("part", F.lit(MESSAGE)))
    rows = rows.repartition(shards, "node").sortWithinPartitions("node", "part")
    return rows.mapInArrow(layer_tasks.finish(model, layer), _NODES)


def _walk(session: SparkSession, encoder: Encoder, folder: pathlib.Path, shards: int) -> None:
    """FOLDER/lists, from walks by joins and the links of this machine."""
    lists = encoder.final_source
    source = lists.source
    tables.write_edges(folder / "edges", source.graph)
    tables.write_links(folder / "links", lists)
    walked = neighbor_lists(
        _read(session, folder / "edges"),
        source.graph.num_items,
        source.num_nodes,
        source.sampling,
        source.seed,
        shards,
    ).withColumnRenamed("ids", "walked")
    joined = _read(session, folder / "links").join(walked, "node", "left")
    _save(joined.mapInArrow(layer_tasks.blend_lists(lists), _LISTS), folder / "lists")


def messages_sent(width: int, shards: int) -> float:
    """Messages shuffled for a node with `width` neighbors, as expected by chance.

    All of them, or one from each of `shards` partitions that has any where reducing within
    the partitions first saves enough.
    """
    reduced = shards * (1.0 - (1.0 - 1.0 / shards) ** width)
    return reduced if reduced < _WORTH_REDUCING * width else float(width)


def _read(session: SparkSession, folder: pathlib.Path) -> DataFrame:
    return session.read.parquet(folder.as_uri())


def _save(rows: DataFrame, folder: pathlib.Path) -> None:
    rows.write.parquet(folder.as_uri())
