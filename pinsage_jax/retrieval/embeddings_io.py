"""Reads the exported embeddings back, in the order of the prepared items."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinsage_jax import files
from pinsage_jax.errors import UserError
from pinsage_jax.graph.prepare import Prepared
from pinsage_jax.inference.export import FOLDER, MANIFEST

_ROWS = 1 << 16


def load_embeddings(workdir: str | pathlib.Path, prepared: Prepared) -> np.ndarray:
    """WORKDIR/embeddings/part-*.parquet as float32 [num_items, Z].

    Raises:
      UserError: not exported yet, a file is missing or damaged, or the export is of
        another catalogue.
    """
    folder = pathlib.Path(workdir) / FOLDER
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds no embeddings; run --mode=embed first.")
    manifest = files.read_json(folder / MANIFEST)
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict) or not isinstance(manifest.get("dimension"), int):
        raise UserError(f"{folder / MANIFEST} is damaged; run --mode=embed again.")
    names = sorted(name for name in listed if name.startswith("part-"))
    files.verify_checksums(folder, {name: listed[name] for name in names})
    count = len(prepared.item_ids)
    result = np.empty((count, manifest["dimension"]), np.float32)
    done = 0
    for name in names:
        try:
            for batch in pq.ParquetFile(folder / name).iter_batches(_ROWS):
                done = _place(batch, prepared, result, done, folder)
        except (pa.ArrowException, OSError, KeyError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder / name} is damaged ({said}); run --mode=embed again."
            ) from None
    if done != count:
        raise _another_catalogue(folder, f"it has {done:,} items, the prepared data {count:,}")
    return result


def _place(
    batch: pa.RecordBatch, prepared: Prepared, result: np.ndarray, done: int, folder: pathlib.Path
) -> int:
    """Copies one batch into the rows from `done` on; returns the next row."""
    end = done + len(batch)
    if end > len(result):
        raise _another_catalogue(folder, f"it has more than {len(result):,} items")
    found = batch.column("item_id").cast(pa.large_string())
    if not found.equals(prepared.item_ids.names(np.arange(done, end)).cast(pa.large_string())):
        raise _another_catalogue(folder, f"its ids differ from row {done:,} on")
    vectors = batch.column("embedding")
    values = vectors.flatten().to_numpy(zero_copy_only=False)
    if values.size != len(batch) * result.shape[1]:
        raise UserError(
            f"{folder} has vectors of another length than its manifest says; "
            "run --mode=embed again."
        )
    result[done:end] = values.reshape(len(batch), result.shape[1])
    return end


def _another_catalogue(folder: pathlib.Path, how: str) -> UserError:
    return UserError(f"{folder} belongs to another catalogue ({how}); run --mode=embed again.")
