"""Parquet tables below a path or URL that pyarrow's file systems know: local, s3, gs, hdfs.

A table is a folder of Parquet files with a `_manifest.json`, which is written last and lists the
files that belong to it.  Files that it does not list, of tasks that failed or of a run that was
killed, do not count.  Each block of rows that was written is a row group, so that several tasks
can read one file.

An object store needs no rename: an object exists when it is complete, and names of files are
never used twice.  Only pyarrow reads and writes here, in whatever process it is called; Spark
needs no file system of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pf
import pyarrow.parquet as pq

from pinsage_jax.core.errors import UserError

MANIFEST = "_manifest.json"
FORMAT = 1
# Names of what is written here; nothing else is ever deleted.
_OWN = re.compile(r"_manifest\.json(\.tmp)?|[a-z]+-\d{5,}-[0-9a-f]{8}\.parquet")
# Objects that are replaced in one step; on other file systems a file is written and renamed.
_ATOMIC = ("s3", "gcs", "abfs")
_REASONS = (
    ("NO_SUCH_BUCKET", "there is no such bucket"),
    ("ACCESS_DENIED", "access is denied; check the credentials in the environment"),
    ("INVALID_ACCESS_KEY_ID", "the access key in the environment is not known there"),
    ("SIGNATURE_DOES_NOT_MATCH", "the secret key in the environment is wrong"),
    ("NETWORK_CONNECTION", "the server does not answer"),
    ("libjvm", "Hadoop's libraries, which hdfs:// needs, are not installed"),
)


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of tables; it can be sent to other processes, and need not exist.

    Attributes:
      url: a path, or a URL of pyarrow's file systems, such as s3://BUCKET/PREFIX, with options
        in its query (endpoint_override, scheme, region).
      name: a folder below it.
    """

    url: str
    name: str = ""

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.url, f"{self.name}/{name}" if self.name else name)

    def __str__(self) -> str:
        """The folder without a query and without credentials."""
        base = re.sub(r"(?<=://)[^/@]*@", "", self.url.partition("?")[0])
        base = re.sub(r"(?<=[^/:])/+$", "", base)
        return f"{base}/{self.name}" if self.name else base

    def manifest(self, version: int = FORMAT) -> dict[str, Any] | None:
        """The manifest; None if the folder has none, that is, if it was not finished.

        Args:
          version: the format that it must have.

        Raises:
          UserError: the folder cannot be read, or its manifest is damaged.
        """
        fs, path = self._place()
        with self._reported():
            try:
                with fs.open_input_stream(f"{path}/{MANIFEST}") as handle:
                    text = handle.read()
            except FileNotFoundError:
                self._require_bucket(fs, path)
                return None
        try:
            found = json.loads(text)
        except (ValueError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict) or found.get("format") != version:
            raise UserError(f"{self}/{MANIFEST} is damaged; delete {self} and write it again.")
        return found

    def finish(self, value: dict[str, Any]) -> dict[str, Any]:
        """Writes the manifest, which makes the folder finished; returns it."""
        manifest = {**value, "format": value.get("format", FORMAT)}
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
        fs, path = self._place()
        with self._reported():
            final = f"{path}/{MANIFEST}"
            if fs.type_name in _ATOMIC:
                _put(fs, final, text)
            else:
                fs.create_dir(path, recursive=True)
                _put(fs, f"{final}.tmp", text)
                fs.move(f"{final}.tmp", final)
        return manifest

    def write_part(
        self, name: str, schema: pa.Schema, blocks: Iterable[pa.RecordBatch]
    ) -> dict[str, Any]:
        """Writes one file; each block becomes a row group.

        Args:
          name: beginning of the file's name, which ends with random digits.

        Returns:
          The file's entry of `files` of a manifest: name, rows, groups and CRC-32.
        """
        fs, path = self._place()
        full = f"{name}-{uuid.uuid4().hex[:8]}.parquet"
        rows = groups = 0
        with self._reported():
            if fs.type_name not in _ATOMIC:
                fs.create_dir(path, recursive=True)
            with fs.open_output_stream(f"{path}/{full}") as stream:
                counted = _Checksummed(stream)
                with pq.ParquetWriter(
                    pa.PythonFile(counted, "w"), schema, write_page_checksum=True
                ) as writer:
                    for block in blocks:
                        writer.write_batch(block, row_group_size=max(len(block), 1))
                        rows, groups = rows + len(block), groups + bool(len(block))
        return {"name": full, "rows": rows, "groups": groups, "crc": f"{counted.value:08x}"}

    def read_part(
        self, name: str, groups: Iterable[int] | None = None, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a file, or of some of its row groups, group by group.

        Raises:
          UserError: the file is missing or damaged.
        """
        fs, path = self._place()
        with self._reported(name), fs.open_input_file(f"{path}/{name}") as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            for group in range(file.num_row_groups) if groups is None else groups:
                yield from file.read_row_group(group, columns=columns).to_batches()

    def unfinish(self) -> None:
        """Deletes the manifest, if there is one."""
        fs, path = self._place()
        with self._reported(), contextlib.suppress(FileNotFoundError):
            fs.delete_file(f"{path}/{MANIFEST}")

    def require_own(self) -> None:
        """Raises UserError if a file below the folder is none that this class writes."""
        fs, path = self._place()
        with self._reported():
            below = pf.FileSelector(path, allow_not_found=True, recursive=True)
            for info in fs.get_file_info(below):
                if info.is_file and not _OWN.fullmatch(info.base_name):
                    raise UserError(
                        f"{self} holds {info.base_name}, which is not of --spark_tables; nothing "
                        "was deleted. Choose an empty folder."
                    )

    def remove(self) -> None:
        """Deletes the folder and all below it, if it exists; its manifest first.

        Raises:
          UserError: a file below it is none that this class writes.
        """
        self.require_own()
        self.unfinish()
        fs, path = self._place()
        with self._reported():
            if fs.get_file_info(path).type == pf.FileType.Directory:
                fs.delete_dir(path)

    def remove_unlisted(self, version: int = FORMAT) -> None:
        """Deletes what this class wrote in the folder and its manifest does not list."""
        manifest = self.manifest(version)
        listed = set() if manifest is None else {entry_name(e) for e in manifest["files"]}
        fs, path = self._place()
        with self._reported():
            for name in self._names(fs, path):
                if name not in listed and name != MANIFEST and _OWN.fullmatch(name):
                    fs.delete_file(f"{path}/{name}")

    def names(self) -> list[str]:
        """The names of all files in the folder, and of folders below it."""
        fs, path = self._place()
        with self._reported():
            return self._names(fs, path)

    def _names(self, fs: pf.FileSystem, path: str) -> list[str]:
        found = fs.get_file_info(pf.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def _place(self) -> tuple[pf.FileSystem, str]:
        fs, root = _opened(self.url, str(Folder(self.url)))
        return fs, f"{root}/{self.name}" if self.name else root

    def _require_bucket(self, fs: pf.FileSystem, path: str) -> None:
        if fs.type_name in ("s3", "gcs"):
            bucket = path.partition("/")[0]
            if fs.get_file_info(bucket).type == pf.FileType.NotFound:
                raise OSError("NO_SUCH_BUCKET")

    @contextlib.contextmanager
    def _reported(self, name: str = "") -> Iterator[None]:
        """Raises UserError for what a file system reports."""
        what = f"{self}/{name}" if name else str(self)
        try:
            yield
        except FileNotFoundError as error:
            if not name:
                raise UserError(
                    f"{what} cannot be read or written: {_short(error)}; give another place."
                ) from None
            raise UserError(
                f"{what} does not exist although its manifest lists it; write the tables again."
            ) from None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"{what} is damaged ({_short(error)}); write the tables again."
            ) from None
        except OSError as error:
            text = str(error)
            # A page that does not match its checksum is an OSError too.
            if "CRC" in text or "checksum" in text or "thrift" in text:
                raise UserError(
                    f"{what} is damaged ({_short(error)}); write the tables again."
                ) from None
            known = (reason for code, reason in _REASONS if code in text)
            raise UserError(
                f"{what} cannot be read or written: {next(known, _short(error))}."
            ) from None


def folder_of(url: str) -> Folder:
    """The folder of a path, which is made absolute, or of a URL.

    Raises:
      UserError: pyarrow knows no file system for the URL.
    """
    if "://" not in url:
        # Executors may have another working folder.
        url = os.path.abspath(os.path.expanduser(url))
    folder = Folder(url)
    _opened(url, str(folder))
    return folder


def entry_name(entry: Any) -> str:
    """The name of a file that a manifest lists."""
    return entry if isinstance(entry, str) else entry["name"]


@functools.lru_cache(maxsize=8)
def _opened(url: str, shown: str) -> tuple[pf.FileSystem, str]:
    """The file system of a path or URL, and the path in it; one connection pool a process."""
    try:
        if "://" not in url:
            return pf.LocalFileSystem(), url.rstrip("/")
        fs, path = pf.FileSystem.from_uri(url)
    except (pa.ArrowException, OSError) as error:
        known = (reason for code, reason in _REASONS if code in str(error))
        reason = next(known, _short(error).partition(": '")[0].replace(url, shown))
        raise UserError(
            f"--spark_tables={shown} cannot be opened ({reason}); give a path, or a URL such as "
            "s3://BUCKET/FOLDER."
        ) from None
    if fs.type_name in ("s3", "gcs") and not path:
        raise UserError(f"--spark_tables={shown} names no bucket; give s3://BUCKET/FOLDER.")
    return fs, path.rstrip("/")


def _put(fs: pf.FileSystem, path: str, text: str) -> None:
    with fs.open_output_stream(path) as handle:
        handle.write(text.encode())


def _short(error: Exception) -> str:
    """The first 200 characters of an error, in one line, without the id of a request."""
    return re.sub(r" \(Request ID:[^)]*\)", "", " ".join(str(error).split()))[:200].rstrip(".")


class _Checksummed:
    """A file to write to that keeps the CRC-32 of what was written."""

    closed = False

    def __init__(self, stream: Any):
        self._stream, self.value, self._size = stream, 0, 0

    def write(self, data: Any) -> int:
        self.value = zlib.crc32(data, self.value)
        self._stream.write(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """The owner of the stream closes it."""
