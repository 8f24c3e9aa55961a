"""Creates, checks and locks the workdir of a run, so that two runs never share one.

The lock file is WORKDIR/.lock; the process holds an flock on it and writes its process
id into it.  The kernel releases the flock when the process ends for any reason, so the
lock is never stale.  In a run of several processes (distributed/process_group.py)
process 0 holds the lock for all of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator

from absl import logging

from pinsage_jax.core import exchange
from pinsage_jax.core.errors import UserError

LOCK = ".lock"
_SHARED = ".shared-"


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder that is only read, without its lock: another process may write to it.

    Raises:
      UserError: there is no such folder.
    """
    folder = pathlib.Path(path)
    _check_exists(folder)
    if (folder / exchange.REPLACING).is_dir():
        # A process was killed, or is just now putting a new model in place.
        with locked(path, wait=True):
            pass
    yield folder


@contextlib.contextmanager
def locked(
    path: str | os.PathLike, *, wait: bool = False, create: bool = True
) -> Iterator[pathlib.Path]:
    """Creates the folder if it does not exist and locks it during the block.

    An exchange of models that a killed process had begun is completed first.  A folder that
    was created here and in which the block leaves nothing is removed again.

    Args:
      wait: for a process that has the lock; False: it is an error.
      create: False: a folder that does not exist is an error.

    Raises:
      UserError: `path` is a file, cannot be written, or is locked by another process.
    """
    folder = pathlib.Path(path)
    made: list[pathlib.Path] = []
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--workdir={path} is a file; name a folder.")
        if not create:
            _check_exists(folder)
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        # The lock file of an earlier run may be writable in a folder that is not.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"--workdir={path} cannot be written ({error.strerror}); name another folder."
        ) from None
    try:
        _lock(handle, path, wait)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        try:
            exchange.complete(folder)
            yield folder
        finally:
            # The file is not removed: a process that has it open would then lock a deleted
            # file, which the next run does not see.
            os.ftruncate(handle, 0)
            _remove_empty(made)
    finally:
        os.close(handle)


def mark_shared(path: str | os.PathLike) -> str:
    """Process 0 of several: makes a file of random name in the folder, and returns the name.

    Process ids would not do, since they are the same in many containers.  And nobody has looked
    up the name before, so that no cache of a network file system says that it is not there.

    Raises:
      UserError: the folder cannot be written.
    """
    remove_marks(path)
    mark = pathlib.Path(path) / f"{_SHARED}{secrets.token_hex(16)}"
    try:
        for name, flags in ((mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL), (path, os.O_RDONLY)):
            handle = os.open(name, flags | os.O_CLOEXEC, 0o644)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        raise UserError(
            f"--workdir={path} cannot be written ({error.strerror}); name another folder."
        ) from None
    return mark.name


def remove_marks(path: str | os.PathLike) -> None:
    """Removes the files of `mark_shared`, those of killed runs included."""
    for mark in pathlib.Path(path).glob(f"{_SHARED}*"):
        mark.unlink(missing_ok=True)


def check_shared(path: str | os.PathLike, name: str) -> None:
    """Checks that `path` is the folder in which process 0 has made the file `name` (`mark_shared`).

    Raises:
      UserError: it is another folder, for instance one on this host's own disk.
    """
    if not (name.startswith(_SHARED) and "/" not in name and (pathlib.Path(path) / name).exists()):
        raise UserError(
            f"--workdir={path} is not the folder that process 0 has locked; "
            "all processes of a run need one workdir that their hosts share."
        )


def _remove_empty(made: list[pathlib.Path]) -> None:
    """Removes folders, innermost first, that hold nothing but the lock file."""
    # A model that is whole has left its folder by an exchange.
    if made and made[0].is_dir() and {path.name for path in made[0].iterdir()} == {LOCK}:
        (made[0] / LOCK).unlink()
        for folder in made:
            # Another command may have written into a parent meanwhile.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _check_exists(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"--workdir={folder} is a file; name a folder.")
        raise UserError(
            f"--workdir={folder} does not exist; name the folder of a run, or make one with "
            "--mode=pipeline."
        )


def _lock(handle: int, path: str | os.PathLike, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
        process = f"process {holder}" if holder else "another process"
        raise UserError(
            f"--workdir={path} is in use by {process}; wait for it or name another folder."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        logging.warning("%s cannot be locked (%s): start one run at a time.", path, error.strerror)
