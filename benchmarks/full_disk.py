"""Runs whose disk becomes full: how they end, and whether they can be resumed.

The workdir of experiments/tiny.flags is on a tmpfs of each size.  The run must finish, or end
with exit code 2 and one sentence.  Then the disk is enlarged, and the same command must finish
with the same embeddings as an undisturbed run.

  python -m benchmarks.run full_disk --disk_kib=64,512,2048

With --disk_mode=prepare that stage alone runs and its files are compared.

Mounting needs root on Linux; tests/test_faults.py limits the size of files instead.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from pinsage_jax.core import files

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_ENOUGH = "256m"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    parser.add_argument("--disk_kib", default="64,256,1024,2048,4096", help="sizes of the disks")
    parser.add_argument("--disk_mode", default="pipeline", choices=("pipeline", "prepare"))


@contextlib.contextmanager
def disk(size: str) -> Iterator[pathlib.Path]:
    """Mounts a tmpfs of this size for the block."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        subprocess.run(options, check=True)
        try:
            yield pathlib.Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def program(workdir: pathlib.Path, mode: str) -> tuple[int, str]:
    """Runs the program; returns its exit code and what it wrote to stderr."""
    flags = [f"--flagfile={_ROOT / 'experiments' / 'tiny.flags'}", f"--workdir={workdir}"]
    done = subprocess.run(
        [sys.executable, "-m", "pinsage_jax.main", *flags, f"--mode={mode}"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr.strip()


def last_line(text: str) -> str:
    """The last line of a text, or nothing."""
    return text.splitlines()[-1] if text else ""


def results(workdir: pathlib.Path, mode: str) -> dict[str, str]:
    """Checksums of the files that the last stage wrote."""
    folder = workdir / ("embeddings" if mode == "pipeline" else "prepared")
    name = "_manifest.json" if mode == "pipeline" else "manifest.json"
    manifest = files.read_json(folder / name)
    return manifest["files"] if mode == "pipeline" else manifest["checksums"]


def run(options: argparse.Namespace) -> list[dict]:
    """One row for each size."""
    sizes = ["256"] if options.quick else options.disk_kib.split(",")
    mode = "prepare" if options.quick else options.disk_mode
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = pathlib.Path(folder) / "run"
        code, message = program(undisturbed, mode)
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {message}")
        wanted = results(undisturbed, mode)
    rows = []
    for size in sizes:
        with disk(f"{size}k") as folder:
            code, message = program(folder / "run", mode)
            stages = ("prepared", "checkpoints", "embeddings", "eval.json")
            present = [name for name in stages if (folder / "run" / name).exists()]
            temporary = [path.name for path in folder.rglob("*.tmp-*")]
            subprocess.run(["mount", "-o", f"remount,size={_ENOUGH}", folder], check=True)
            again, after = program(folder / "run", mode)
            rows.append(
                {
                    "disk_kib": int(size),
                    "exit_code": code,
                    "files": " ".join(present) or "-",
                    "temporary_files": len(temporary),
                    "with_room": again,
                    "same_results": not again and results(folder / "run", mode) == wanted,
                    "traceback": "Traceback" in message,
                    "message": last_line(message).replace(str(folder), "DISK")[-150:]
                    if code
                    else "-",
                }
            )
            if again:
                rows.append({"note": f"With room: {last_line(after)}"})
    return rows
