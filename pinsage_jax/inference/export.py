"""Embeddings on disk: Parquet shards and a manifest.

WORKDIR/embeddings/
  part-00000.parquet ...  item_id (string), embedding (fixed-size list of float32
                          or float16), in the order of the catalogue
  collections-00000.parquet ...  collection_id, embedding; with --neighbourhood=all
  manifest.json           what made them, counts, and a checksum per file

Items that the catalogue does not hold go to WORKDIR/new_embeddings/ in the same form.
A folder is swapped in whole: a reader sees the old export or the new one.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinsage_jax import files
from pinsage_jax.config import EmbedConfig
from pinsage_jax.graph.ids import IdTable

FOLDER = "embeddings"
NEW_FOLDER = "new_embeddings"
MANIFEST = "manifest.json"


def _write_shards(
    folder: pathlib.Path,
    prefix: str,
    id_column: str,
    ids: IdTable,
    vectors: np.ndarray,
    config: EmbedConfig,
) -> list[str]:
    """Writes vectors [n, Z] in shards; returns the file names."""
    names = []
    dtype = np.dtype(config.export_dtype)
    for number, begin in enumerate(range(0, max(len(vectors), 1), config.shard_rows)):
        block = np.ascontiguousarray(vectors[begin : begin + config.shard_rows], dtype)
        rows = np.arange(begin, begin + len(block))
        table = pa.table(
            {
                id_column: ids.names(rows),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(block.reshape(-1)), vectors.shape[1]
                ),
            }
        )
        name = f"{prefix}-{number:05d}.parquet"
        pq.write_table(table, folder / name)
        names.append(name)
    return names


def write_embeddings(
    workdir: str | pathlib.Path,
    config: EmbedConfig,
    item_ids: IdTable,
    items: np.ndarray,
    about: dict[str, Any],
    collection_ids: IdTable | None = None,
    collections: np.ndarray | None = None,
    folder_name: str = FOLDER,
) -> dict[str, Any]:
    """Writes the export of one run.

    Args:
      items: float32 [num_items, Z] in the order of `item_ids`.
      about: what goes into the manifest: step, fingerprint, normalised, ...
      collections: float32 [num_collections, Z] if collections were embedded.
      folder_name: folder of the workdir to write.

    Returns:
      The manifest.
    """
    with files.atomic_folder(pathlib.Path(workdir) / folder_name) as folder:
        names = _write_shards(folder, "part", "item_id", item_ids, items, config)
        if collections is not None and collection_ids is not None:
            names += _write_shards(
                folder, "collections", "collection_id", collection_ids, collections, config
            )
        manifest = {
            **about,
            "format": 1,
            "count": len(items),
            "collections": 0 if collections is None else len(collections),
            "dimension": int(items.shape[1]),
            "dtype": config.export_dtype,
            "files": files.checksums(folder, names),
        }
        files.write_json(folder / MANIFEST, manifest)
    return manifest
