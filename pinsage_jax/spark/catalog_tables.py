"""The tables of a catalog below --spark_tables, from which Spark embeds without this machine.

URL/
  inputs/, lists/, edges/, links/, items/, collections/    see tables.py; written once by
                    --mode=export, on the machine that has WORKDIR/prepared
  layers/KEY/       what a run computes between, for the next run if it is killed
  embeddings/       the export, as in export/writer.py
  _manifest.json    written when all tables are: counts, settings, the identity of the data

Tables of another format, data or settings are refused.  One command may write below a URL at a
time: an object store has no locks.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from absl import logging

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.export.codec import VectorCodec
from pinsage_jax.export.writer import FOLDER, FORMAT, ITEMS
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.spark import tables
from pinsage_jax.spark.embed import Sizes, run_pass, walks_of
from pinsage_jax.spark.session import partitions, spark_session
from pinsage_jax.spark.table_store import Folder, folder_of
from pinsage_jax.spark.table_tasks import Export, Ranges

LAYERS = "layers"
_MODEL_SETTINGS = ("num_layers", "pooling", "whiten", "isolated_feature", "spectral_dim")
_NAMES = ("inputs", "lists", "edges", "links", "items", "collections")


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that the inputs and the lists depend on, by name."""
    model = {name: getattr(config.model, name) for name in _MODEL_SETTINGS}
    found = {
        "seed": config.seed,
        "embed_walks": config.embed.embed_walks,
        **dataclasses.asdict(config.split),
        **dataclasses.asdict(config.sampling),
        **model,
    }
    return json.loads(json.dumps(found))


def write_tables(
    config: Config, prepared: Prepared, encoder: Encoder, identity: dict[str, Any]
) -> dict[str, Any]:
    """Writes the tables of a prepared catalog below --spark_tables; returns their manifest.

    Args:
      encoder: the inputs and lists over the whole graph.
      identity: of the data, which a checkpoint must have.

    Raises:
      UserError: the place cannot be written, or holds files of something else.
    """
    folder, source = folder_of(config.spark.spark_tables), encoder.lists.source
    graph = source.graph
    about: dict[str, Any] = {
        "items": graph.num_items,
        "nodes": source.num_nodes,
        "input_dim": encoder.inputs.dim,
        "list_width": encoder.lists.width,
        "weighted": graph.weights is not None,
        "settings": settings_of(config),
        "prepared": prepared.manifest["fingerprint"],
        "data": identity,
        "inputs": prepared.manifest["inputs"],
    }
    about = json.loads(json.dumps(about))
    found = folder.manifest()
    if found is not None and found == {**about, "format": found["format"]}:
        logging.info("export: the tables in %s are of this catalog already", folder)
        return found
    for name in _NAMES:
        (folder / name).require_own()
    folder.unfinish()
    for name in _NAMES:
        (folder / name).remove()
    logging.info("export: writing the tables of %d nodes to %s", source.num_nodes, folder)
    degree, items = graph.degree(), graph.num_items
    tables.write_ids(folder / "items", "item_id", prepared.item_ids, degree[:items], 0)
    tables.write_ids(
        folder / "collections", "collection_id", prepared.collection_ids, degree[items:], items
    )
    tables.write_edges(folder / "edges", graph)
    tables.write_links(folder / "links", encoder.inference_lists)
    tables.write_nodes(
        folder / "inputs", source.num_nodes, encoder.inputs.dim, encoder.inputs.gather
    )
    if config.model.num_layers:
        tables.write_lists(folder / "lists", *encoder.all_inference_lists)
    return folder.finish(about)


def open_tables(config: Config) -> tuple[Folder, dict[str, Any]]:
    """The folder of --spark_tables and the manifest of its tables.

    Raises:
      UserError: they are missing, were not finished, or are of other settings.
    """
    folder = folder_of(config.spark.spark_tables)
    manifest = folder.manifest()
    again = f"--mode=export --spark_tables={folder} where WORKDIR/prepared is"
    if manifest is None:
        raise UserError(f"{folder} holds no finished tables; write them by {again}.")
    now, then = settings_of(config), manifest["settings"]
    for name, value in now.items():
        if then.get(name) != value:
            raise UserError(
                f"The tables in {folder} were written with {name}={then.get(name)}, and now it is "
                f"{value}; give the same, or write them again by {again}."
            )
    return folder, manifest


@dataclasses.dataclass(frozen=True)
class NetworkOfTables:
    """A trained network to embed tables with.

    Attributes:
      params: its parameters; digest: their checksum; bias: added to the last coordinate of items
        without edges.
    """

    params: Any
    digest: str
    bias: float


def embed_tables(
    config: Config,
    folder: Folder,
    tables_manifest: dict[str, Any],
    network: NetworkOfTables,
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """Embeds the tables in `folder` on Spark into its embeddings/; returns their manifest.

    Layers that an earlier run of the same network finished are not computed again.

    Raises:
      UserError: Spark does not start, a table is missing or damaged, or a vector is not finite.
    """
    about, embed = tables_manifest, config.embed
    out, layers = folder / FOLDER, folder / LAYERS
    settings = files.fingerprint([about, network.digest, network.bias, embed.export_dtype])
    done = out.manifest(FORMAT)
    if done is not None and done.get("settings") == settings:
        logging.info("embed: %s holds these embeddings already", out)
        return done
    key = files.fingerprint([about, network.digest])
    for name in layers.names():
        if name != key:
            (layers / name).remove()
    codec = VectorCodec(embed.export_dtype, config.model.popularity_bias)
    items, nodes, width = about["items"], about["nodes"], config.model.output_dim
    sizes = Sizes(items, nodes, about["input_dim"], about["list_width"])
    on_walks = config.spark.engine == "spark_walks" and config.model.num_layers
    with spark_session(config.spark, "embed") as session:
        shards = partitions(session, config.spark, nodes)
        ranges = Ranges(min(embed.shard_rows, -(-nodes // shards)), items, nodes)
        entries = run_pass(
            session,
            config,
            network.params,
            sizes,
            folder,
            layers / key,
            walks_of(config, about["weighted"]) if on_walks else None,
            Export(out, folder, ranges, codec, network.bias, width),
        )
    rows = {ITEMS.shards: 0}
    for entry in entries:
        kind = entry["name"].partition("-")[0]
        rows[kind] = rows.get(kind, 0) + entry["rows"]
    count = rows.pop(ITEMS.shards)
    if (count, sum(rows.values())) != (items, nodes - items):
        raise ValueError(f"{count} items and {rows} were embedded, of {items} and {nodes - items}")
    manifest = out.finish(
        {
            **metadata,
            "format": FORMAT,
            "settings": settings,
            "ids": about["data"]["ids"],
            "data": {**about["data"], "inputs": about["inputs"]},
            "layout": "parquet",
            "count": count,
            "collections": nodes - items,
            "dimension": width,
            "full_dimension": width,
            "dtype": codec.dtype,
            "separate_bias_scale": codec.separate_bias_scale,
            "files": {entry["name"]: entry["crc"] for entry in entries},
        }
    )
    out.remove_unlisted(FORMAT)
    if not embed.keep_layers:
        layers.remove()
    logging.info("embedded %d items into %s", items, out)
    return manifest
