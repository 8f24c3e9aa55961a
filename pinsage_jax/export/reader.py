"""Reads exported embeddings of any format as float32.

Files are verified against the manifest's checksums first; a missing or damaged file is
named in an error instead of being used.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinsage_jax.catalog.prepare import Prepared
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.data.ids import IdTable
from pinsage_jax.export.codec import EncodedRows, VectorCodec
from pinsage_jax.export.writer import FOLDER, FORMAT, ITEMS, MANIFEST, TRANSFORM

# Larger exports are not decoded as a whole where rows suffice.
MOST_DECODED_BYTES = 1 << 31
_ROWS = 1 << 16
_EXPORT_AGAIN = "run --mode=embed again."


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """One folder of embeddings whose files were verified.

    Attributes:
      folder: the folder of the export.
      manifest: contents of its _manifest.json.
      codec: how its vectors are stored.
    """

    folder: pathlib.Path
    manifest: dict[str, Any]
    codec: VectorCodec

    @property
    def count(self) -> int:
        """Number of items."""
        return self.manifest["count"]

    @property
    def dimension(self) -> int:
        """Number of coordinates of an exported vector."""
        return self.manifest["dimension"]

    def blocks(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Yields ids large_string [n] and vectors float32 [n, dimension], in catalog order.

        Raises:
          UserError: a file cannot be read or its vectors have another length.
        """
        return self._arrays() if self.manifest.get("layout") == "npy" else self._shards()

    def mapped(self) -> np.ndarray | None:
        """The vectors as a memory-mapped array [count, dimension], if they need no decoding."""
        if self.manifest.get("layout") == "npy" and self.codec.dtype == "float32":
            return self._checked_array(f"{ITEMS.vectors}.npy", np.float32, self.dimension)
        return None

    def rows(self) -> np.ndarray | EncodedRows | None:
        """The vectors [count, dimension], none of which are in memory; None if there are shards."""
        if self.manifest.get("layout") != "npy":
            return None
        return self.mapped() if self.codec.dtype == "float32" else self._encoded()

    def ids(self) -> IdTable:
        """Ids of all items, in catalog order."""
        return IdTable(pa.concat_arrays([pa.array([], pa.large_string()), *self._all_ids()]))

    def vectors(self) -> np.ndarray:
        """All vectors, float32 [count, dimension]."""
        mapped = self.mapped()
        if mapped is not None:
            return mapped
        result = np.empty((self.count, self.dimension), np.float32)
        done = 0
        for _, rows in self.blocks():
            result[done : done + len(rows)] = rows
            done += len(rows)
        return result

    def _all_ids(self) -> Iterator[pa.Array]:
        if self.manifest.get("layout") == "npy":
            for batch in _batches(self.folder / f"{ITEMS.ids}.parquet"):
                yield batch.column("item_id").cast(pa.large_string())
            return
        for ids, _ in self.blocks():
            yield ids

    def _shards(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        shards = [name for name in self.manifest["files"] if name.startswith(f"{ITEMS.shards}-")]
        for shard in sorted(shards):
            for batch in _batches(self.folder / shard):
                codes = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
                if codes.size != len(batch) * self.dimension:
                    raise UserError(
                        f"{self.folder} has vectors of another length than its manifest says; "
                        f"{_EXPORT_AGAIN}"
                    )
                columns = [batch.column(name).to_numpy() for name in self.codec.scale_columns]
                scales = np.stack(columns, axis=1) if columns else np.empty((len(batch), 0))
                codes = codes.reshape(len(batch), self.dimension)
                yield (
                    batch.column("item_id").cast(pa.large_string()),
                    self.codec.decode(codes, scales),
                )

    def _encoded(self) -> EncodedRows:
        codes = self._checked_array(f"{ITEMS.vectors}.npy", self.codec.dtype, self.dimension)
        groups = len(self.codec.scale_columns)
        scales = np.empty((self.count, 0), np.float32)
        if groups:
            scales = self._checked_array(f"{ITEMS.vectors}.scales.npy", np.float32, groups)
        return EncodedRows(codes, scales, self.codec)

    def _arrays(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        rows, done = self._encoded(), 0
        for ids in self._all_ids():
            yield ids, rows[done : done + len(ids)]
            done += len(ids)

    def _checked_array(self, name: str, dtype: Any, width: int) -> np.ndarray:
        array = files.read_array(self.folder / name)
        if array.shape != (self.count, width) or array.dtype != np.dtype(dtype):
            raise UserError(
                f"{self.folder} has vectors of another length than its manifest says; "
                f"{_EXPORT_AGAIN}"
            )
        return array


def open_export(folder: str | pathlib.Path) -> Export:
    """Opens a folder that write_embeddings wrote and verifies its files.

    Raises:
      UserError: the folder holds no embeddings or embeddings of another format version, or a
        file is missing or damaged.
    """
    folder = pathlib.Path(folder)
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds no embeddings; run --mode=embed first.")
    manifest = files.read_json(folder / MANIFEST)
    listed = manifest.get("files") if isinstance(manifest, dict) else None
    numbers = ("dimension", "count")
    if not isinstance(listed, dict) or not all(
        isinstance(manifest.get(name), int) for name in numbers
    ):
        raise UserError(f"{folder / MANIFEST} is damaged; {_EXPORT_AGAIN}")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {manifest.get('format')}, which this version of the program "
            f"cannot read (it reads format {FORMAT}); {_EXPORT_AGAIN}"
        )
    names = [name for name in listed if not name.startswith("collection")]
    files.verify_checksums(folder, {name: listed[name] for name in sorted(names)})
    transform = files.read_array(folder / TRANSFORM, mmap=False) if TRANSFORM in listed else None
    codec = VectorCodec(manifest["dtype"], manifest["separate_bias_scale"], transform)
    return Export(folder, manifest, codec)


def load_embeddings(workdir: str | pathlib.Path, prepared: Prepared) -> np.ndarray:
    """Loads WORKDIR/embeddings, of any format, as float32 [num_items, dimension].

    Raises:
      UserError: there is no export, a file is missing or damaged, or the export belongs to
        another catalog.
    """
    export = open_export(pathlib.Path(workdir) / FOLDER)
    return _load(export, prepared, export.mapped())


def load_rows(workdir: str | pathlib.Path, prepared: Prepared) -> np.ndarray:
    """Like load_embeddings, but vectors of a large export as arrays are decoded when they are read.

    They are EncodedRows then, which are read like an array: a search needs as much memory as the
    codes have, and no copy of float32.
    """
    export = open_export(pathlib.Path(workdir) / FOLDER)
    is_large = 4 * export.count * export.dimension > MOST_DECODED_BYTES
    return _load(export, prepared, export.rows() if is_large else export.mapped())


def _load(export: Export, prepared: Prepared, found: Any) -> Any:
    """The vectors, `found` or decoded if that is None, after the ids and the graph are compared."""
    folder, count, done = export.folder, len(prepared.item_ids), 0
    result = np.empty((count, export.dimension), np.float32) if found is None else found
    blocks = export.blocks() if found is None else ((ids, None) for ids in export._all_ids())
    for ids, rows in blocks:
        end = done + len(ids)
        if end > count:
            raise _another_catalog(folder, f"it has more than {count:,} items")
        if not ids.equals(prepared.item_ids.names(np.arange(done, end)).cast(pa.large_string())):
            raise _another_catalog(folder, f"its ids differ from row {done:,} on")
        if rows is not None:
            result[done:end] = rows
        done = end
    if done != count:
        raise _another_catalog(folder, f"it has {done:,} items, the prepared data {count:,}")
    made_over = export.manifest.get("data", {}).get("graph")
    if made_over and made_over != prepared.manifest["checksums"].get("graph/manifest.json"):
        raise _another_catalog(folder, "its edges are other ones")
    return result


def _batches(path: pathlib.Path) -> Iterator[pa.RecordBatch]:
    try:
        yield from pq.ParquetFile(path, pre_buffer=False).iter_batches(_ROWS)
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({message}); {_EXPORT_AGAIN}") from None


def _another_catalog(folder: pathlib.Path, difference: str) -> UserError:
    return UserError(f"{folder} belongs to another catalog ({difference}); {_EXPORT_AGAIN}")
