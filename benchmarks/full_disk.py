"""Disks that fill up in the middle of a run: how it ends, and whether it can go on.

A tmpfs of each size holds the workdir of experiments/tiny.flags.  The run on it is to end
with exit code 2 and a sentence, or to finish; then the disk grows and the same command is
to finish with the very embeddings of an undisturbed run.

  python -m benchmarks.run full_disk --disk_kib=64,512,2048

With --disk_mode=prepare that stage alone runs and its files are compared.

Mounting needs root on Linux; tests/test_faults.py does without, by limits on file sizes.
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
    """Options of this benchmark, beside those of every benchmark."""
    parser.add_argument("--disk_kib", default="64,256,1024,2048,4096", help="sizes of the disks")
    parser.add_argument("--disk_mode", default="pipeline", choices=("pipeline", "prepare"))


@contextlib.contextmanager
def disk(size: str) -> Iterator[pathlib.Path]:
    """A tmpfs of this size, mounted for the block."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        subprocess.run(options, check=True)
        try:
            yield pathlib.Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def program(workdir: pathlib.Path, mode: str) -> tuple[int, str]:
    """Exit code and what stderr holds of one run of the program."""
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
    """Checksums of what the last stage leaves, by file."""
    folder = workdir / ("embeddings" if mode == "pipeline" else "prepared")
    name = "_manifest.json" if mode == "pipeline" else "manifest.json"
    manifest = files.read_json(folder / name)
    return manifest["files"] if mode == "pipeline" else manifest["checksums"]


def run(options: argparse.Namespace) -> list[dict]:
    """A row a size."""
    sizes = ["256"] if options.quick else options.disk_kib.split(",")
    mode = "prepare" if options.quick else options.disk_mode
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = pathlib.Path(folder) / "run"
        code, said = program(undisturbed, mode)
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {said}")
        wanted = results(undisturbed, mode)
    rows = []
    for size in sizes:
        with disk(f"{size}k") as folder:
            code, said = program(folder / "run", mode)
            stages = ("prepared", "checkpoints", "embeddings", "eval.json")
            held = [name for name in stages if (folder / "run" / name).exists()]
            litter = [path.name for path in folder.rglob("*.tmp-*")]
            subprocess.run(["mount", "-o", f"remount,size={_ENOUGH}", folder], check=True)
            again, after = program(folder / "run", mode)
            rows.append(
                {
                    "disk_kib": int(size),
                    "exit_code": code,
                    "held": " ".join(held) or "-",
                    "litter": len(litter),
                    "with_room": again,
                    "same_results": not again and results(folder / "run", mode) == wanted,
                    "traceback": "Traceback" in said,
                    "said": last_line(said).replace(str(folder), "DISK")[-150:] if code else "-",
                }
            )
            if again:
                rows.append({"note": f"With room: {last_line(after)}"})
    return rows
