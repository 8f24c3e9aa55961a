"""A folder of this user in which JAX keeps compiled programs between runs.

A step takes seconds to compile on a CPU and up to minutes on an accelerator, and the next start of
the same command needs the same program.  A kept program is run as it is found.  So the folder is
not in the workdir, which may be a stranger's, but in the user's cache, and it is used only while
nobody else can have put anything there: it belongs to the user of this process and only that user
may open it, and nobody else may rename it or a folder above it.

JAX's own variable JAX_COMPILATION_CACHE_DIR names another folder, which is not checked; with an
empty value nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import time
from collections.abc import Mapping

from absl import logging

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Programs that no run has used for so long are removed.
_UNUSED_SECONDS = 30 * 86_400.0


def keep_programs(environment: Mapping[str, str] | None = None) -> pathlib.Path | None:
    """Makes JAX, which has not been imported, keep its programs in the folder of this user.

    Child processes do the same.

    Args:
      environment: of this process.

    Returns:
      The folder; None where JAX_COMPILATION_CACHE_DIR decides or the folder cannot be trusted.
    """
    environment = os.environ if environment is None else environment
    if VARIABLE in environment:
        return None
    folder = _folder(environment)
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if reason := distrust(folder):
            logging.warning("compiled programs are not kept: %s", reason)
            return None
        _remove_unused(folder)
    except OSError as error:
        logging.debug("compiled programs are not kept: %s", error)
        return None
    os.environ[VARIABLE] = str(folder)
    return folder


def distrust(folder: pathlib.Path) -> str:
    """Why somebody else may have written into `folder`; "" if nobody can have.

    Raises:
      OSError: it does not exist or cannot be read.
    """
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is no folder"
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to another user; remove it"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return f"{folder} is open to other users; remove it, or chmod 700 it if you trust it"
    for above in folder.resolve().parents:
        found = os.stat(above)
        if found.st_uid not in (0, os.geteuid()):
            return f"{above}, in which it is, belongs to another user"
        # In a folder with the sticky bit others cannot rename what is not theirs.
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            return f"other users can write to {above}, in which it is"
    return ""


def _folder(environment: Mapping[str, str]) -> pathlib.Path | None:
    """The folder for machines like this one; None if the user has no cache folder."""
    base = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = environment.get("HOME", "")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    # Hosts that share a home may have processors with other instructions.
    digest = hashlib.sha256(_processor().encode()).hexdigest()[:16]
    return pathlib.Path(base) / "pinsage-jax" / f"programs-{digest}"


def _processor() -> str:
    """Name and instructions of this machine's processor."""
    kept = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                break
            if line.startswith(("model name", "flags", "Features", "CPU part")):
                kept.append(line.strip())
    return "\n".join([platform.machine(), *kept])


def _remove_unused(folder: pathlib.Path) -> None:
    """Removes programs that were last used long ago, with the files that say when."""
    limit = time.time() - _UNUSED_SECONDS
    for path in folder.glob("*-cache"):
        used = path.with_name(f"{path.name.removesuffix('-cache')}-atime")
        with contextlib.suppress(OSError):
            last = max(each.stat().st_mtime for each in (path, used) if each.exists())
            if last < limit:
                path.unlink()
                used.unlink(missing_ok=True)
