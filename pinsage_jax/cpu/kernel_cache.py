"""Numba's decorators with an on-disk cache that notices changes in every source file.

Numba keeps compiled code beside a function's file, or in the folder that NUMBA_CACHE_DIR
names, and drops it when that file changes.  The code also holds what the function calls
and reads from other files: functions, intrinsics, constants.  Here the names of the cache's
files end with a digest of the function's file and of all files of the same package that it
imports, directly or not.  A change of any of them names other files.

A file that changes while a process runs may have been imported before; what that process
compiles from it is not saved.

Saving the code of a function removes what earlier versions of it left in the folder, except
the versions that were used last: switching between two branches compiles nothing anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

# The package's folder.
_ROOT = pathlib.Path(__file__).parents[1]
_DIGEST_LETTERS = 16
_started = time.time()
# Superseded versions of a function that stay: at most so many, each used within this time.
_SUPERSEDED_VERSIONS = 4
_SUPERSEDED_SECONDS = 30 * 86_400.0
# The time of the last use, which is the index's modification time, is this exact.
_USE_SECONDS = 86_400.0
# FUNCTION-LINE.PYTHON-DIGEST.nbi or FUNCTION-LINE.PYTHON-DIGEST.NUMBER.nbc, and the temporary
# files of either.  Numba alone adds no digest.
_CACHE_FILE = re.compile(
    rf"(?P<version>(?P<function>.+)-\d+(?P<python>\.py\d+\w*)(?:-[0-9a-f]{{{_DIGEST_LETTERS}}})?)"
    r"\.(?:nbi|\d+\.nbc)(?P<temporary>\.tmp\.\w+)?"
)
# Imports of the package's modules: `from MODULE import NAMES` or `import MODULE`.  A parser of
# Python would need twenty times as long, in every process.
_MODULE = rf"({_ROOT.name}(?:\.\w+)*)"
_IMPORT = re.compile(
    rf"^[ \t]*(?:from {_MODULE} import (\([^)]*\)|.*)|import {_MODULE})".encode(), re.MULTILINE
)


class _Files(CompileResultCacheImpl):
    """Numba's choice of a folder, and its names of files with the digest added."""

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        return f"{super().get_filename_base(fullname, abiflags)}-{self.digest}"

    def __init__(self, function: Callable):
        self.digest = source_digest(inspect.getfile(function))
        super().__init__(function)


class _Cache(FunctionCache):
    _impl_class = _Files

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Numba's load, which also notes the use of the files."""
        found = super().load_overload(sig, target_context)
        if found is not None:
            # Not in a folder that is read-only, nor if another process has removed the file.
            with contextlib.suppress(OSError):
                note_use(pathlib.Path(self._cache_path), self._impl.filename_base)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Numba's save, after which superseded versions of the function are removed."""
        super().save_overload(sig, data)
        remove_superseded(pathlib.Path(self._cache_path), self._impl.filename_base)


def note_use(folder: pathlib.Path, version: str) -> None:
    """Sets the modification time of an index to now, if it is older than a day.

    Raises:
      OSError: the file does not exist or cannot be changed.
    """
    index = folder / f"{version}.nbi"
    if index.stat().st_mtime < time.time() - _USE_SECONDS:
        os.utime(index)


def remove_superseded(folder: pathlib.Path, version: str) -> None:
    """Removes files of other versions of a function, except those used last.

    A process that still runs one of these versions compiles anew when it misses a file.

    Args:
      folder: of the cache.
      version: name of the current version's files, without their extensions.
    """
    current = _CACHE_FILE.fullmatch(f"{version}.nbi")
    if current is None:
        return
    of_version: dict[str, list[pathlib.Path]] = {}
    last_use: dict[str, float] = {}
    oldest = time.time() - _SUPERSEDED_SECONDS
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = _CACHE_FILE.fullmatch(path.name)
            if found is None or found.group("function", "python") != current.group(
                "function", "python"
            ):
                continue
            changed = path.stat().st_mtime
            # A process may be about to rename a new temporary file.
            if found["version"] != version and (not found["temporary"] or changed < oldest):
                of_version.setdefault(found["version"], []).append(path)
                last_use[found["version"]] = max(changed, last_use.get(found["version"], 0.0))
    latest_first = sorted(of_version, key=lambda name: -last_use[name])
    for rank, name in enumerate(latest_first):
        if rank >= _SUPERSEDED_VERSIONS or last_use[name] < oldest:
            # The index first: without it no process looks for the other files.
            for path in sorted(of_version[name], key=lambda path: path.suffix != ".nbi"):
                with contextlib.suppress(OSError):
                    path.unlink()


def njit(*, nogil: Literal[True], cache: Literal[True]) -> Callable[[Callable], Any]:
    """numba.njit(nogil=True) with the cache that this module describes.

    Where neither the package's folder nor the user's can be written to, every process
    compiles anew.
    """

    def decorate(function: Callable) -> Any:
        compiled = numba.njit(nogil=True)(function)
        # With NUMBA_DISABLE_JIT it is the function itself.
        if compiled is not function:
            _enable(compiled, function)
        return compiled

    return decorate


def is_on_disk(kernel: Any) -> bool:
    """Whether an earlier process has saved compiled code of an `njit` function's version."""
    index = getattr(getattr(kernel._cache, "_cache_file", None), "_index_path", "")
    return os.path.exists(index)


def cfunc(signature: Any) -> Callable[[Callable], Any]:
    """numba.cfunc with the same cache: a C function, whose address is its `address`."""

    def decorate(function: Callable) -> Any:
        compiled = CFunc(function, normalize_signature(signature), locals={}, options={})
        _enable(compiled, function)
        compiled.compile()
        return compiled

    return decorate


def _enable(compiled: Any, function: Callable) -> None:
    # No file to read (a zip archive, a notebook), one that has just changed, or no folder that
    # Numba can write to.
    with contextlib.suppress(OSError, RuntimeError):
        compiled._cache = _Cache(function)


@functools.cache
def source_digest(path: str) -> str:
    """Digest of a source file and of the files of this package that it imports.

    Args:
      path: of a file, inside the package or outside.

    Raises:
      OSError: it cannot be read.
      RuntimeError: a file has changed since this process started.
    """
    files: dict[str, bytes] = {}
    waiting = [path]
    while waiting:
        if (current := waiting.pop()) not in files:
            files[current], imported = _read(current)
            waiting += imported
    digest = hashlib.sha256(files.pop(path))
    for name in sorted(files):
        digest.update(os.path.relpath(name, _ROOT).encode() + files[name])
    return digest.hexdigest()[:_DIGEST_LETTERS]


@functools.cache
def _read(path: str) -> tuple[bytes, list[str]]:
    """The digest of one file, and the paths of the package's files that it imports."""
    # A time to come is a clock that was wrong, not a change.
    if _started < os.stat(path).st_mtime <= time.time():
        raise RuntimeError(f"{path} has changed since this process started")
    source = pathlib.Path(path).read_bytes()
    return hashlib.sha256(source).digest(), list(_imported_files(source))


def _imported_files(source: bytes) -> Iterator[str]:
    for module, names, imported in _IMPORT.findall(source):
        # What is imported from a module may be a name in it or a submodule.
        inner = [module + b"." + name for name in re.findall(rb"\w+", names)]
        for name in (imported or module, *inner):
            # Found without importing it, which would run its code.
            stem = _ROOT.parent.joinpath(*name.decode().split("."))
            files = (stem.with_suffix(".py"), stem / "__init__.py")
            yield from (str(file) for file in files if file.is_file())
