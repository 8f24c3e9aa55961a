"""Atomic writes, ``.npy`` arrays, JSON and checksums for the files of a workdir.

A file or folder is written under a temporary name in the same parent folder and then
renamed, so that no file under its final name is ever incomplete.  Arrays are plain
``.npy`` files (never pickles); JSON is sorted and indented.  Each group of arrays has a
manifest with a CRC-32 per file, so that a truncated or bit-flipped file raises an error
that names it; a manifest also holds a checksum of itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import mmap
import os
import pathlib
import re
import shutil
import tempfile
import time
import types
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pinsage_jax.core.errors import UserError

_TEMPORARY_MARK, _OLD_MARK = ".tmp-", ".tmp-old-"
# AT_FDCWD and RENAME_EXCHANGE, arguments of Linux's renameat2.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_LEFTOVER = re.compile(r"\.tmp-(old-)?\d+$")
_CHECKSUM_BLOCK = 1 << 22
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# File timestamps are coarse: a file modified again within this time may keep its mtime.
_RECENT_NS = 2 * 10**9
# (size, mtime, inode, checksum) of the files that this process has already verified.
_verified: dict[pathlib.Path, tuple[int, int, int, str]] = {}


@contextlib.contextmanager
def reported_os_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raises UserError naming `path` for a full disk or a path that cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            reason = os.strerror(error.errno)
            raise UserError(
                f"No space left while writing {path} ({reason}); free some disk and run again."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"Cannot write {path} ({error.strerror}); choose another --workdir."
            ) from error
        raise


def require_free_space(folder: str | os.PathLike, size: int) -> None:
    """Checks that the disk of `folder` can hold arrays of `size` bytes plus 5% and 64 KiB.

    The margin covers the metadata written beside the arrays.  It is for writers that do
    not report a full disk themselves.

    Raises:
      OSError: ENOSPC, too little space is free.
    """
    if shutil.disk_usage(folder).free < size + size // 20 + (1 << 16):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _temporary_name(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}{_TEMPORARY_MARK}{os.getpid()}")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path; renames it to `path` when the block succeeds."""
    path = pathlib.Path(path)
    temporary = _temporary_name(path)
    with reported_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields an empty temporary folder; renames it to `path` when the block succeeds.

    A folder that already exists at `path` stays readable until the new one is complete and
    synced to disk; then the two are exchanged in one step.  On a file system without that
    operation there are two renames, and after a kill between them `remove_temporary_files`
    restores the old folder.
    """
    path = pathlib.Path(path)
    temporary = _temporary_name(path)
    with reported_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in [*names, "."]:
                    _sync(os.path.join(folder, name))
            if not path.exists():
                os.rename(temporary, path)
            elif not _exchange(temporary, path):
                discarded = path.with_name(f"{path.name}{_OLD_MARK}{os.getpid()}")
                os.rename(path, discarded)
                os.rename(temporary, path)
                shutil.rmtree(discarded, ignore_errors=True)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: str | os.PathLike) -> None:
    """Flushes a file's content, or a folder's entries, to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Atomically exchanges two paths; False if the system or file system does not support it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), os.fspath(second))


def remove_temporary_files(folder: str | os.PathLike) -> int:
    """Deletes the temporary files and folders that killed processes left in `folder`.

    A folder that `atomic_folder` had renamed and not yet replaced gets its name back.  Only
    direct children are looked at.  Only the process that holds the workdir's lock may call
    it; otherwise it would delete files that another process is still writing.

    Returns:
      The number of files and folders deleted or restored.
    """
    leftovers = [path for path in pathlib.Path(folder).iterdir() if _LEFTOVER.search(path.name)]
    for path in leftovers:
        name, was_renamed, _ = path.name.partition(_OLD_MARK)
        if was_renamed and not path.with_name(name).exists():
            os.rename(path, path.with_name(name))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as sorted, indented JSON, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file does not exist or is not valid JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it first.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run again.") from None


def write_checked_json(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes `value` as JSON together with its own hash under the key "checksum"."""
    write_json(path, value | {"checksum": fingerprint(value)})


def read_checked_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a file of write_checked_json and returns its value without the checksum.

    Raises:
      UserError: the file does not exist, is not valid JSON, or does not match its checksum.
    """
    value = read_json(path)
    checksum = value.pop("checksum", None) if isinstance(value, dict) else None
    if checksum != fingerprint(value):
        raise UserError(
            f"{path} is damaged (its checksum does not match); delete it and run again."
        )
    return value


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes one ``.npy`` file atomically."""
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        # NumPy writes to a real file with tofile, whose errors lack the errno.
        writer = types.SimpleNamespace(write=handle.write)
        np.save(writer, array, allow_pickle=False)


def read_array(path: str | os.PathLike, *, mmap: bool = True) -> np.ndarray:
    """Opens one ``.npy`` file, memory-mapped read-only by default; never unpickles.

    Raises:
      UserError: the file is missing, truncated or not an array.
    """
    try:
        # A zero-length array cannot be mapped, so it is read instead.
        try:
            array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
        except ValueError:
            array = np.load(path, allow_pickle=False)
        # np.load opens a zip archive as an NpzFile, which would fail later.
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("an archive and not one array")
        return array
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run --mode=prepare again.") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again.") from None


def new_array(path: str | os.PathLike, dtype: type | np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Creates a ``.npy`` file of zeros and memory-maps it for writing.

    Raises:
      OSError: the disk has too little space for the array (see reported_os_errors).
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    # Allocates the blocks now: on a full disk a write to the map would raise SIGBUS.
    with open(path, "r+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
    return array


def release(array: np.ndarray | None) -> None:
    """Drops the resident pages of a memory-mapped array (MADV_DONTNEED).

    The next read loads them from the file again; written values are kept in the file.
    For an array in ordinary memory, or None, it does nothing.
    """
    mapped = getattr(array, "_mmap", None)
    # A copy-on-write map (mode "c") would lose the values written to it.
    if mapped is not None and getattr(array, "mode", None) != "c":
        mapped.madvise(mmap.MADV_DONTNEED)


def scratch_array(
    shape: tuple[int, ...],
    folder: str | os.PathLike | None,
    max_bytes: int,
    dtype: Any = np.float32,
) -> np.ndarray:
    """An uninitialized array in memory, or in an unnamed temporary file if it is large.

    Args:
      shape: shape of the array.
      folder: folder of the temporary file, which exists as long as the array does; None
        keeps the array in memory whatever its size.
      max_bytes: largest size in bytes of an array in memory.
      dtype: dtype of the array.

    Raises:
      UserError: the disk of `folder` is full, or the folder cannot be written.
    """
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    if folder is None or size <= max_bytes:
        return np.empty(shape, dtype)
    with reported_os_errors(folder), tempfile.TemporaryFile(dir=os.fspath(folder)) as handle:
        # Allocates the blocks now: on a full disk a write to the map would raise SIGBUS.
        os.posix_fallocate(handle.fileno(), 0, size)
        return np.memmap(handle, dtype, "r+", shape=shape)


def checksum(path: str | os.PathLike) -> str:
    """CRC-32 of a file's bytes as eight hexadecimal digits."""
    value = 0
    with open(path, "rb") as handle:
        while block := handle.read(_CHECKSUM_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def checksums(folder: str | os.PathLike, names: list[str]) -> dict[str, str]:
    """CRC-32 of each named file of `folder`, for its manifest."""
    return {name: checksum(pathlib.Path(folder) / name) for name in names}


def verify_checksums(folder: str | os.PathLike, expected: dict[str, str]) -> None:
    """Compares files with the checksums of their manifest.

    A process reads each file once; it reads it again only if its size, mtime or inode
    has changed.

    Raises:
      UserError: names the first file that is missing or differs.
    """
    for name, expected_checksum in expected.items():
        path = pathlib.Path(folder) / name
        if not path.exists():
            raise UserError(
                f"{path} is missing although its manifest lists it; delete {folder} and run again."
            )
        stat, resolved = path.stat(), path.resolve()
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ino, expected_checksum)
        if _verified.get(resolved) == state:
            continue
        if (actual := checksum(path)) != expected_checksum:
            raise UserError(
                f"{path} is damaged (checksum {actual}, manifest says {expected_checksum}); "
                f"delete {folder} and run again."
            )
        if time.time_ns() - stat.st_mtime_ns > _RECENT_NS:
            _verified[resolved] = state


def fingerprint(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of `value` as sorted JSON."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
