"""Embeddings on disk: vectors, their ids and a manifest.

WORKDIR/embeddings/ as Parquet (--export_format=parquet)
  part-00000.parquet ...  item_id (string), embedding (fixed-size list of float32,
                          float16 or int8), in the order of the catalog
  collections-00000.parquet ...  collection_id, embedding; with --neighborhood=all
or as arrays to be memory-mapped (--export_format=npy)
  vectors.npy             [N, d]; item_ids.parquet: item_id, in the same order
  collection_vectors.npy, collection_ids.parquet; with --neighborhood=all
and beside either
  transform.npy           float32 [Z, d], where vectors were rotated or truncated
  manifest.json           what made them, counts, what was lost, a checksum per file

int8 vectors have scales, in columns `scale` and (with a popularity) `last_scale` or in
vectors.scales.npy [N, G]: see export_form.py.  Items that the catalog does not hold
go to WORKDIR/new_embeddings/ in the same form.  A folder is swapped in whole: a reader
sees the old export or the new one.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.core import files
from pinsage_jax.data.ids import IdTable
from pinsage_jax.export.codec import ExportForm

FOLDER = "embeddings"
NEW_FOLDER = "new_embeddings"
MANIFEST = "manifest.json"
TRANSFORM = "transform.npy"
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the files of one kind of nodes are named."""

    shards: str  # NAME-00000.parquet
    vectors: str  # NAME.npy and NAME.scales.npy
    ids: str  # NAME.parquet
    id_column: str


ITEMS = Kind("part", "vectors", "item_ids", "item_id")
COLLECTIONS = Kind("collections", "collection_vectors", "collection_ids", "collection_id")


def _write_parquet(
    folder: pathlib.Path, kind: Kind, ids: IdTable, vectors: np.ndarray, form: ExportForm, rows: int
) -> list[str]:
    """Vectors [n, Z] in shards of so many rows; returns the file names."""
    names = []
    for number, begin in enumerate(range(0, max(len(vectors), 1), rows)):
        codes, scales = form.encode(vectors[begin : begin + rows])
        columns = {
            kind.id_column: ids.names(np.arange(begin, begin + len(codes))),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(codes.reshape(-1)), codes.shape[1]
            ),
        }
        for group, name in enumerate(form.scale_columns):
            columns[name] = pa.array(scales[:, group])
        names.append(f"{kind.shards}-{number:05d}.parquet")
        pq.write_table(pa.table(columns), folder / names[-1])
    return names


def _write_arrays(
    folder: pathlib.Path, kind: Kind, ids: IdTable, vectors: np.ndarray, form: ExportForm, rows: int
) -> list[str]:
    """The same as arrays, so many rows at once."""
    width = form.encode(vectors[:0])[0].shape[1]
    names = [f"{kind.vectors}.npy", f"{kind.ids}.parquet"]
    out = _mapped(folder / names[0], (len(vectors), width), np.dtype(form.dtype))
    out_scales = None
    if groups := len(form.scale_columns):
        names.append(f"{kind.vectors}.scales.npy")
        out_scales = _mapped(folder / names[-1], (len(vectors), groups), np.dtype(np.float32))
    for begin in range(0, len(vectors), rows):
        span = slice(begin, min(begin + rows, len(vectors)))
        out[span], scales = form.encode(vectors[span])
        if out_scales is not None:
            out_scales[span] = scales
    pq.write_table(pa.table({kind.id_column: ids.ids}), folder / names[1])
    return names


def _mapped(path: pathlib.Path, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """An array to fill, mapped into a file; one without numbers cannot be mapped."""
    if 0 in shape:
        files.write_array(path, np.empty(shape, dtype))
        return np.empty(shape, dtype)
    return files.new_array(path, dtype, shape)


def write_embeddings(
    workdir: str | pathlib.Path,
    config: EmbedConfig,
    item_ids: IdTable,
    items: np.ndarray,
    about: dict[str, Any],
    collection_ids: IdTable | None = None,
    collections: np.ndarray | None = None,
    folder_name: str = FOLDER,
    form: ExportForm | None = None,
) -> dict[str, Any]:
    """Writes the export of one run.

    Args:
      items: float32 [num_items, Z] in the order of `item_ids`.
      about: what goes into the manifest: step, fingerprint, normalized, ...
      collections: float32 [num_collections, Z] if collections were embedded.
      folder_name: folder of the workdir to write.
      form: how vectors are stored; by default of --export_dtype, without a transform.

    Returns:
      The manifest.
    """
    form = form or ExportForm(config.export_dtype)
    write = _write_arrays if config.export_format == "npy" else _write_parquet
    with files.atomic_folder(pathlib.Path(workdir) / folder_name) as folder:
        names = write(folder, ITEMS, item_ids, items, form, config.shard_rows)
        if collections is not None and collection_ids is not None:
            names += write(
                folder, COLLECTIONS, collection_ids, collections, form, config.shard_rows
            )
        if form.transform is not None:
            files.write_array(folder / TRANSFORM, form.transform)
            names.append(TRANSFORM)
        manifest = {
            **about,
            "format": FORMAT,
            "layout": config.export_format,
            "count": len(items),
            "collections": 0 if collections is None else len(collections),
            "dimension": int(form.moved(items[:0]).shape[1]),
            "full_dimension": int(items.shape[1]),
            "dtype": form.dtype,
            "last_apart": form.last_apart,
            "files": files.checksums(folder, names),
        }
        files.write_json(folder / MANIFEST, manifest)
    return manifest
