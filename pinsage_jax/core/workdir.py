"""The folder of a run: made, checked and locked, so that two runs never share one.

The lock is WORKDIR/.lock, held with flock and holding the process id.  The system
lets go of it when the process ends in whatever way, so it is never stale.  Where several
processes are one run (distributed/process_group.py), process 0 holds it for all of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import tempfile
from collections.abc import Iterator

from absl import logging

from pinsage_jax.core.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Makes the folder if need be and keeps other runs out of it for the block.

    Raises:
      UserError: `path` is a file, cannot be written, or another process runs in it.
    """
    folder = pathlib.Path(path)
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--workdir={path} is a file; name a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        # An older lock file may be open to us in a folder that is not.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"--workdir={path} cannot be written ({error.strerror}); name another folder."
        ) from None
    try:
        _lock(handle, path)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        try:
            yield folder
        finally:
            # The file stays: were it removed, a run waiting for it would lock a file
            # that the next run does not see.
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def refuse_unshared(path: str | os.PathLike, holder: int) -> None:
    """Refuses a folder that the process `holder`, on this host or another, does not hold.

    For the other processes of a run, which the lock of process 0 lets in.

    Raises:
      UserError: it is another folder, say one of this host's own.
    """
    try:
        found = (pathlib.Path(path) / LOCK).read_text(encoding="utf-8").strip()
    except OSError:
        found = ""
    if found != str(holder):
        raise UserError(
            f"--workdir={path} is not the folder that process 0 holds; "
            "all processes of a run need one that their hosts share."
        )


def _lock(handle: int, path: str | os.PathLike) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
