"""Files that are whole or absent: write beside, then rename.

Nothing under a workdir is ever half-written.  A file is written under a
temporary name in the same folder and renamed; a folder likewise.  Arrays are
plain ``.npy`` files (never pickles), JSON is sorted and indented, and every
group of arrays has a manifest with a CRC-32 per file, so that a truncated or
bit-flipped file is named instead of used; the manifest is sealed with a hash of
itself.
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
# Of Linux's renameat2: paths are relative to the working folder; exchange the two.
_WORKING_FOLDER, _RENAME_EXCHANGE = -100, 2
_LEFTOVER = re.compile(r"\.tmp-(old-)?\d+$")
_CHECKSUM_BLOCK = 1 << 22
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A file changed again this soon may keep its time of change: clocks of files are coarse.
_RECENT_NS = 2 * 10**9
# (size, time of change, inode, checksum) of files that this process has found intact.
_intact: dict[pathlib.Path, tuple[int, int, int, str]] = {}


@contextlib.contextmanager
def reported_os_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns a full disk or a read-only place into one sentence naming `path`."""
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


def require_room(folder: str | os.PathLike, size: int) -> None:
    """Raises OSError (no space left) where `folder` has no room for arrays of `size` bytes.

    With a twentieth and 64 KiB for what is written beside them.  For writers that cope
    badly with a disk that fills up under them.
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
    """Yields an empty temporary folder; swaps it in for `path` on success.

    An older folder at `path` stays readable until the new one is complete and on disk.
    At every moment one of the two is whole: where the system cannot exchange two names in
    one step, `remove_leftovers` puts the older one back after a kill between two renames.
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
    """Has what was written to a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Exchanges two names in one step; False where the system or its disk cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if renameat2(_WORKING_FOLDER, names[0], _WORKING_FOLDER, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), os.fspath(second))


def remove_leftovers(folder: str | os.PathLike) -> int:
    """Deletes what killed processes left half-written directly in a workdir.

    A folder that a process had moved aside, and not yet replaced, gets its name back.

    Only for the process that holds the workdir: another's files are in the making.

    Returns:
      How many files and folders were deleted.
    """
    ours = [path for path in pathlib.Path(folder).iterdir() if _LEFTOVER.search(path.name)]
    for path in ours:
        name, aside, _ = path.name.partition(_OLD_MARK)
        if aside and not path.with_name(name).exists():
            os.rename(path, path.with_name(name))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(ours)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as sorted, indented JSON, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file; a damaged one raises UserError naming it."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it first.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run again.") from None


def write_sealed(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes a manifest: JSON with a hash of itself under "seal"."""
    write_json(path, value | {"seal": fingerprint(value)})


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what write_sealed wrote, without the seal; UserError names a damaged file."""
    value = read_json(path)
    seal = value.pop("seal", None) if isinstance(value, dict) else None
    if seal != fingerprint(value):
        raise UserError(f"{path} is damaged (its seal does not fit); delete it and run again.")
    return value


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes one ``.npy`` file atomically."""
    with atomic_file(path) as temporary, open(temporary, "wb") as handle:
        # Into a file NumPy writes by itself and does not say why it could not.
        plain = types.SimpleNamespace(write=handle.write)
        np.save(plain, array, allow_pickle=False)


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
        # A zip archive opens as something else that would only fail later.
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("an archive and not one array")
        return array
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run --mode=prepare again.") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again.") from None


def new_array(path: str | os.PathLike, dtype: type | np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A new ``.npy`` file of zeros, memory-mapped to be filled.

    Raises:
      OSError: the disk has no room for all of it (see reported_os_errors).
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    # So that a full disk is told here and not by a signal at the first write.
    with open(path, "r+b") as handle:
        os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
    return array


def release(array: np.ndarray | None) -> None:
    """Gives the memory of an array mapped from a file back until it is read again.

    What was written to it is in the file.  Does nothing to an array in memory.
    """
    mapped = getattr(array, "_mmap", None)
    # A private copy ("c") would lose what was written.
    if mapped is not None and getattr(array, "mode", None) != "c":
        mapped.madvise(mmap.MADV_DONTNEED)


def scratch_array(
    shape: tuple[int, ...],
    folder: str | os.PathLike | None,
    most_bytes: int,
    dtype: Any = np.float32,
) -> np.ndarray:
    """An array to be filled: in memory, or in a nameless file if it is larger.

    Args:
      folder: where the file lies until nothing refers to the array any more; without
        one the array is always in memory.
      most_bytes: what may be in memory.
    """
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    if folder is None or size <= most_bytes:
        return np.empty(shape, dtype)
    with reported_os_errors(folder), tempfile.TemporaryFile(dir=os.fspath(folder)) as handle:
        # So that a full disk is told here and not by a signal at the first write.
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
    """Checksums of the named files of a folder, for its manifest."""
    return {name: checksum(pathlib.Path(folder) / name) for name in names}


def verify_checksums(folder: str | os.PathLike, expected: dict[str, str]) -> None:
    """Raises UserError naming the first file that is missing or differs.

    A file is read once by a process: again only if its size or time has changed.
    """
    for name, wanted in expected.items():
        path = pathlib.Path(folder) / name
        if not path.exists():
            raise UserError(
                f"{path} is missing although its manifest lists it; delete {folder} and run again."
            )
        about, real = path.stat(), path.resolve()
        state = (about.st_size, about.st_mtime_ns, about.st_ino, wanted)
        if _intact.get(real) == state:
            continue
        if (found := checksum(path)) != wanted:
            raise UserError(
                f"{path} is damaged (checksum {found}, manifest says {wanted}); "
                f"delete {folder} and run again."
            )
        if time.time_ns() - about.st_mtime_ns > _RECENT_NS:
            _intact[real] = state


def fingerprint(value: Any) -> str:
    """A short stable hash of a JSON-like value, to tell settings apart."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
