"""Embeds the whole catalog on Apache Spark: the second executor of map_reduce.py.

Each layer is one Spark job, from one Parquet table of nodes to the next:

  nodes --project--> messages ---------+
                                       join on the sender --(reduce within a partition)--+
  lists --one row per neighbor---------+                                                 |
  nodes --------------------------------------------- union, shuffle by receiver, sort --+
                                                      --finish--> nodes of the next layer

The join, the shuffles and the sort are Spark's; project, reduce and finish run in Python
workers on Arrow batches (layer_tasks.py).  Every step streams: no worker holds more than
batches and a bounded table of sums, however many neighbors a node has.

Bytes shuffled in a layer with lists of T neighbors: 4 N M (messages of the nodes), 16 N T
(lists), 4 N (in + D) (the nodes' own rows) and 4 M for each message after the reduction within
partitions.  The last part is the largest: there are N T such messages with many partitions,
and N P with P < T partitions.
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
from pinsage_jax.spark.layer_tasks import MESSAGE, SELF, Model
from pinsage_jax.spark.session import partitions, spark_session
from pinsage_jax.spark.walks import neighbor_lists

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_NODES = "node long, vector binary"
_MESSAGES = "node long, weight float, vector binary"
_LISTS = "node long, ids array<int>, weights array<float>"
# Reducing before the shuffle sends the rows through Python, so it must save at least 30%.
_MAX_REDUCED_SHARE = 0.7


def embed_on_spark(encoder: Encoder, params: Any) -> np.ndarray:
    """Computes the same as `encoder.embed(params)` on Spark: float32 [nodes, Z].

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
            tables.write_lists(folder / "lists", *encoder.all_inference_lists)
        data = layer_tasks.pack(params)
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
    """Computes all layers from FOLDER/inputs and FOLDER/lists; returns the embeddings' folder."""
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
    """Computes the output of a layer from its input (`state`) and the lists."""
    from pyspark.sql import functions as F

    messages_of = state.mapInArrow(layer_tasks.project(model, layer), _NODES)
    named = lists.select(
        F.col("node").alias("receiver"), F.inline(F.arrays_zip("ids", "weights"))
    ).where("ids >= 0 and weights > 0")
    messages = named.join(messages_of, named["ids"] == messages_of["node"]).select(
        F.col("receiver").alias("node"), F.col("weights").alias("weight"), "vector"
    )
    if expected_messages(width, shards) < width:
        messages = messages.mapInArrow(layer_tasks.combine_messages(model), _MESSAGES)
    self_rows = state.select(
        "node", F.lit(SELF).alias("part"), F.lit(0.0).cast("float").alias("weight"), "vector"
    )
    rows = self_rows.unionByName(messages.withColumn("part", F.lit(MESSAGE)))
    rows = rows.repartition(shards, "node").sortWithinPartitions("node", "part")
    return rows.mapInArrow(layer_tasks.finish(model, layer), _NODES)


def _walk(session: SparkSession, encoder: Encoder, folder: pathlib.Path, shards: int) -> None:
    """Writes FOLDER/lists from walks on Spark and the content links of this machine."""
    lists = encoder.inference_lists
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


def expected_messages(width: int, shards: int) -> float:
    """The expected number of messages that are shuffled for a node with `width` neighbors.

    These are all messages, or, if reducing within the partitions first saves enough, one from
    each of the `shards` partitions that has any.
    """
    reduced = shards * (1.0 - (1.0 - 1.0 / shards) ** width)
    return reduced if reduced < _MAX_REDUCED_SHARE * width else float(width)


def _read(session: SparkSession, folder: pathlib.Path) -> DataFrame:
    return session.read.parquet(folder.as_uri())


def _save(rows: DataFrame, folder: pathlib.Path) -> None:
    rows.write.parquet(folder.as_uri())
