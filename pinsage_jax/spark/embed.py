"""Embeds the whole catalog on Apache Spark: the second executor of map_reduce.py.

Each layer is one Spark job, from one Parquet table of nodes to the next:

  nodes --project--> messages ---------+
                                       join on the sender --(reduce within a partition)--+
  lists --one row per neighbor---------+                                                 |
  nodes --------------------------------------------- union, shuffle by receiver, sort --+
                                                      --finish--> nodes of the next layer

The join, the shuffles and the sort are Spark's; project, reduce and finish run in Python
workers on Arrow batches (layer_tasks.py), which also read and write the tables (table_tasks.py).
Every step streams: no worker holds more than batches and a bounded table of sums, however many
neighbors a node has.

`embed_on_spark` writes the inputs and lists of this machine into a scratch folder and reads the
vectors back.  `embed_tables` finds them in a folder or an object store and leaves the embeddings
there; this process then sees names of files and counts only.

Bytes shuffled in a layer with lists of T neighbors: 4 N M (messages of the nodes), 16 N T
(lists), 4 N (in + D) (the nodes' own rows) and 4 M for each message after the reduction within
partitions.  The last part is the largest: there are N T such messages with many partitions,
and N P with P < T partitions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.signals import raise_if_stopped
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.inference.tables import MAX_TABLE_BYTES
from pinsage_jax.spark import layer_tasks, tables
from pinsage_jax.spark.layer_tasks import MESSAGE, SELF, Model, Task
from pinsage_jax.spark.session import partitions, spark_session
from pinsage_jax.spark.table_store import Folder
from pinsage_jax.spark.table_tasks import Export, save, scan, write_export, written
from pinsage_jax.spark.walks import neighbor_lists

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_NODES = "node long, vector binary"
_MESSAGES = "node long, weight float, vector binary"
_NAMED = "receiver long, sender long, weight float"
_LINKS = "node long, ids array<int>, weights array<float>, edges int"
_EDGES = "item long, collection long"
_WEIGHTED_EDGES = f"{_EDGES}, weight float"
# Reducing before the shuffle sends the rows through Python, so it must save at least 30%.
_MAX_REDUCED_SHARE = 0.7


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a catalog as Spark's tables have it.

    Attributes:
      items: number of items; nodes: with the collections that are embedded.
      input_dim: D; list_width: longest list.
    """

    items: int
    nodes: int
    input_dim: int
    list_width: int


@dataclasses.dataclass(frozen=True)
class Walks:
    """How lists are sampled on Spark from the tables edges and links.

    Attributes:
      pooling: importance, mean or max.
      weighted: whether edges have weights.
    """

    sampling: SamplingConfig
    pooling: str
    seed: int
    weighted: bool


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass over all layers.

    Attributes:
      source: folder with the tables inputs, and lists or edges and links; layers: folder of what
        is computed between, where finished tables are found again.
      walks: samples the lists from edges and links; None: the table lists has them.
      export: where the embeddings go; None: as nodes to the table embeddings in `layers`.
    """

    session: SparkSession
    model: Model
    sizes: Sizes
    source: Folder
    layers: Folder
    shards: int
    walks: Walks | None = None
    export: Export | None = None

    def run(self) -> list[dict[str, Any]]:
        """Computes all layers; returns the files of the embeddings, as their manifest lists them.

        Raises:
          UserError: a table is missing or damaged, or a vector is not finite.
        """
        state, last = self.source / "inputs", self.model.config.num_layers
        if not last:
            rows = self._by_node(scan(self.session, state, self.shards, _NODES), True, "node")
            return self._embeddings(rows, layer_tasks.head(self.model))
        lists = self._lists()
        for layer in range(1, last):
            out = self.layers / f"layer-{layer}"
            if out.manifest() is None:
                raise_if_stopped()
                rows = self._by_node(self._rows(layer, state, lists), False, "node", "part")
                save(rows, out, layer_tasks.finish(self.model, layer))
                logging.info(
                    "layer %d of %d: %d nodes in %d partitions",
                    layer, last, self.sizes.nodes, self.shards,
                )  # fmt: skip
            else:
                logging.info("layer %d of %d was finished before", layer, last)
            state = out
        raise_if_stopped()
        rows = self._by_node(self._rows(last, state, lists), True, "node", "part")
        found = self._embeddings(rows, layer_tasks.finish(self.model, last))
        logging.info(
            "layer %d of %d: %d nodes in %d partitions", last, last, self.sizes.nodes, self.shards
        )
        return found

    def _embeddings(self, rows: DataFrame, task: Task) -> list[dict[str, Any]]:
        if self.export is None:
            return save(rows, self.layers / "embeddings", task)["files"]
        return written(rows, task, write_export(self.export, self.model.block))

    def _by_node(self, rows: DataFrame, final: bool, *order: str) -> DataFrame:
        """Rows in `shards` partitions by node, each sorted; those of embeddings by range."""
        if final and self.export is not None:
            rows = self.export.ranges.partitioned(rows, self.shards)
        else:
            rows = rows.repartition(self.shards, "node")
        return rows.sortWithinPartitions(*order)

    def _rows(self, layer: int, state: Folder, lists: Folder) -> DataFrame:
        """The nodes' own rows of a layer's input (`state`), and the messages to them."""
        from pyspark.sql import functions as F

        session, model, shards = self.session, self.model, self.shards
        messages_of = scan(session, state, shards, _NODES, layer_tasks.project(model, layer))
        named = scan(session, lists, shards, _NAMED, layer_tasks.name_neighbors())
        messages = named.join(messages_of, named["sender"] == messages_of["node"]).select(
            F.col("receiver").alias("node"), "weight", "vector"
        )
        if expected_messages(self.sizes.list_width, shards) < self.sizes.list_width:
            messages = messages.mapInArrow(layer_tasks.combine_messages(model), _MESSAGES)
        self_rows = scan(session, state, shards, _NODES).select(
            "node", F.lit(SELF).alias("part"), F.lit(0.0).cast("float").alias("weight"), "vector"
        )
        return self_rows.unionByName(messages.withColumn("part", F.lit(MESSAGE)))

    def _lists(self) -> Folder:
        """The table of lists; with `walks` made of walks on Spark and of content links."""
        if self.walks is None:
            return self.source / "lists"
        out, session, shards = self.layers / "lists", self.session, self.shards
        if out.manifest() is not None:
            return out
        walks, columns = self.walks, _WEIGHTED_EDGES if self.walks.weighted else _EDGES
        walked = neighbor_lists(
            scan(session, self.source / "edges", shards, columns),
            self.sizes.items,
            self.sizes.nodes,
            walks.sampling,
            walks.seed,
            shards,
        ).withColumnRenamed("ids", "walked")
        links = scan(session, self.source / "links", shards, _LINKS)
        task = layer_tasks.blend_lists(walks.sampling, walks.pooling)
        save(links.join(walked, "node", "left"), out, task)
        return out


def embed_on_spark(encoder: Encoder, params: Any) -> np.ndarray:
    """Computes the same as `encoder.embed(params)` on Spark: float32 [nodes, Z].

    Raises:
      UserError: PySpark or Java is missing, no master answers, or the disk is full.
    """
    config, source = encoder.config, encoder.lists.source
    width = encoder.lists.width
    sizes = Sizes(source.graph.num_items, source.num_nodes, encoder.inputs.dim, width)
    out = files.scratch_array(
        (sizes.nodes, config.model.output_dim), config.workdir, MAX_TABLE_BYTES
    )
    with (
        tables.scratch_folder(config.spark.spark_folder or config.workdir) as folder,
        spark_session(config.spark, "embed") as session,
    ):
        tables.write_nodes(folder / "inputs", sizes.nodes, sizes.input_dim, encoder.inputs.gather)
        walks = None
        if config.model.num_layers and config.spark.engine == "spark_walks":
            tables.write_edges(folder / "edges", source.graph)
            tables.write_links(folder / "links", encoder.inference_lists)
            walks = walks_of(config, source.graph.weights is not None)
        elif config.model.num_layers:
            tables.write_lists(folder / "lists", *encoder.all_inference_lists)
        run_pass(session, config, params, sizes, folder, folder, walks)
        tables.read_vectors(folder / "embeddings", out)
    return out


def run_pass(
    session: SparkSession,
    config: Config,
    params: Any,
    sizes: Sizes,
    source: Folder,
    layers: Folder,
    walks: Walks | None = None,
    export: Export | None = None,
) -> list[dict[str, Any]]:
    """Embeds the tables in `source`; see _Pass for the arguments and the result."""
    shards = partitions(session, config.spark, sizes.nodes)
    session.conf.set("spark.sql.shuffle.partitions", shards)
    data = layer_tasks.pack(params)
    model = Model(
        hashlib.blake2b(data + repr(config.model).encode()).hexdigest(),
        config.model,
        session.sparkContext.broadcast(data),
        sizes.input_dim,
        config.embed.embed_block,
    )
    return _Pass(session, model, sizes, source, layers, shards, walks, export).run()


def walks_of(config: Config, weighted: bool) -> Walks:
    """The walks of --engine=spark_walks: as many as embeddings pool over."""
    walks = config.embed.embed_walks or config.sampling.num_walks
    sampling = dataclasses.replace(config.sampling, num_walks=walks)
    return Walks(sampling, config.model.pooling, config.seed, weighted)


def expected_messages(width: int, shards: int) -> float:
    """The expected number of messages that are shuffled for a node with `width` neighbors.

    These are all messages, or, if reducing within the partitions first saves enough, one from
    each of the `shards` partitions that has any.
    """
    reduced = shards * (1.0 - (1.0 - 1.0 / shards) ** width)
    return reduced if reduced < _MAX_REDUCED_SHARE * width else float(width)
