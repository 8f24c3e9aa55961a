"""Writes embeddings to disk: vectors, their ids and a manifest.

WORKDIR/embeddings/ as Parquet (--export_format=parquet):
  part-00000.parquet ...  item_id (string), embedding (fixed-size list of float32,
                          float16 or int8), in catalog order
  collections-00000.parquet ...  collection_id, embedding; with --neighborhood=all
or as arrays for memory-mapping (--export_format=npy):
  vectors.npy             [N, d]; item_ids.parquet: item_id, in the same order
  collection_vectors.npy, collection_ids.parquet; with --neighborhood=all
and with either:
  _transform.npy          float32 [Z, d], where vectors were rotated or truncated
  _manifest.json          the run that wrote the export, counts, recall lost, checksums

int8 vectors have scales, in the columns `scale` and (with a popularity bias) `bias_scale`
or in vectors.scales.npy [N, G]: see codec.py.  New items that the catalog does not
contain go to WORKDIR/new_embeddings/ in the same format.  A finished folder replaces the
old one in a single rename, so that a reader sees either the old export or the new one.
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
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.columns import format_id
from pinsage_jax.data.ids import IdTable
from pinsage_jax.export.codec import VectorCodec

FOLDER = "embeddings"
NEW_FOLDER = "new_embeddings"
# Readers of a folder of Parquet files pass over names that begin with an underscore.
MANIFEST = "_manifest.json"
TRANSFORM = "_transform.npy"
FORMAT = 3


@dataclasses.dataclass(frozen=True)
class Kind:
    """File names of the items or of the collections."""

    shards: str  # NAME-00000.parquet
    vectors: str  # NAME.npy and NAME.scales.npy
    ids: str  # NAME.parquet
    id_column: str


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors with their ids.

    Attributes:
      ids: n ids of items or of collections.
      vectors: float32 [n, Z], in the order of `ids`.
    """

    ids: IdTable
    vectors: np.ndarray


ITEMS = Kind("part", "vectors", "item_ids", "item_id")
COLLECTIONS = Kind("collections", "collection_vectors", "collection_ids", "collection_id")


def _write_parquet(
    folder: pathlib.Path,
    kind: Kind,
    embeddings: Embeddings,
    codec: VectorCodec,
    rows: int,
) -> list[str]:
    """Writes Parquet shards of `rows` rows; returns the file names."""
    ids, vectors = embeddings.ids, embeddings.vectors
    names = []
    for number, begin in enumerate(range(0, max(len(vectors), 1), rows)):
        codes, scales = codec.encode(vectors[begin : begin + rows])
        columns = {
            kind.id_column: ids.names(np.arange(begin, begin + len(codes))),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(codes.reshape(-1)), codes.shape[1]
            ),
        }
        for group, name in enumerate(codec.scale_columns):
            columns[name] = pa.array(scales[:, group])
        names.append(f"{kind.shards}-{number:05d}.parquet")
        pq.write_table(pa.table(columns), folder / names[-1])
    return names


def _write_arrays(
    folder: pathlib.Path,
    kind: Kind,
    embeddings: Embeddings,
    codec: VectorCodec,
    rows: int,
) -> list[str]:
    """Writes NumPy arrays, `rows` rows at a time; returns the file names."""
    ids, vectors = embeddings.ids, embeddings.vectors
    width = codec.encode(vectors[:0])[0].shape[1]
    names = [f"{kind.vectors}.npy", f"{kind.ids}.parquet"]
    out = _mapped(folder / names[0], (len(vectors), width), np.dtype(codec.dtype))
    out_scales = None
    if groups := len(codec.scale_columns):
        names.append(f"{kind.vectors}.scales.npy")
        out_scales = _mapped(folder / names[-1], (len(vectors), groups), np.dtype(np.float32))
    for begin in range(0, len(vectors), rows):
        span = slice(begin, min(begin + rows, len(vectors)))
        out[span], scales = codec.encode(vectors[span])
        if out_scales is not None:
            out_scales[span] = scales
        files.release(out)
        files.release(vectors)
    pq.write_table(pa.table({kind.id_column: ids.ids}), folder / names[1])
    return names


def _check_finite(embeddings: Embeddings, what: str, rows: int) -> None:
    """Raises UserError if a vector has NaN or infinity; `rows` vectors are checked at a time."""
    ids, vectors = embeddings.ids, embeddings.vectors
    for begin in range(0, len(vectors), rows):
        finite = np.isfinite(vectors[begin : begin + rows]).all(axis=1)
        files.release(vectors)
        if not finite.all():
            name = ids.names(np.array([begin + int(np.argmin(finite))]))[0].as_py()
            raise UserError(
                f"The vector of {what} {format_id(name)} is not finite, so nothing is exported; "
                "does the item have a number or vector of extreme size?"
            )


def _mapped(path: pathlib.Path, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A writable array mapped into a file; an empty array cannot be mapped and is written."""
    if 0 in shape:
        files.write_array(path, np.empty(shape, dtype))
        return np.empty(shape, dtype)
    return files.new_array(path, dtype, shape)


def write_embeddings(
    workdir: str | pathlib.Path,
    config: EmbedConfig,
    items: Embeddings,
    metadata: dict[str, Any],
    collections: Embeddings | None = None,
    *,
    folder_name: str = FOLDER,
    codec: VectorCodec | None = None,
) -> dict[str, Any]:
    """Writes the export of one run.

    Args:
      workdir: the run's folder.
      config: settings of the export.
      items: the items' embeddings.
      metadata: further entries of the manifest: step, settings, normalized, ...
      collections: the collections' embeddings; None if they were not embedded.
      folder_name: folder of the workdir to write.
      codec: how vectors are stored; by default --export_dtype without a transform.

    Returns:
      The manifest.

    Raises:
      UserError: a vector is not finite; nothing is written then.
    """
    _check_finite(items, "item", config.shard_rows)
    if collections is not None:
        _check_finite(collections, "collection", config.shard_rows)
    codec = codec or VectorCodec(config.export_dtype)
    write = _write_arrays if config.export_format == "npy" else _write_parquet
    with files.atomic_folder(pathlib.Path(workdir) / folder_name) as folder:
        names = write(folder, ITEMS, items, codec, config.shard_rows)
        if collections is not None:
            names += write(folder, COLLECTIONS, collections, codec, config.shard_rows)
        if codec.transform is not None:
            files.write_array(folder / TRANSFORM, codec.transform)
            names.append(TRANSFORM)
        manifest = {
            **metadata,
            "format": FORMAT,
            "layout": config.export_format,
            "count": len(items.vectors),
            "collections": 0 if collections is None else len(collections.vectors),
            "dimension": int(codec.project(items.vectors[:0]).shape[1]),
            "full_dimension": int(items.vectors.shape[1]),
            "dtype": codec.dtype,
            "separate_bias_scale": codec.separate_bias_scale,
            "files": files.checksums(folder, names),
        }
        files.write_json(folder / MANIFEST, manifest)
    return manifest
