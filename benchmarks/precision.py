"""Training in bfloat16 and in float32: validation scores of the same runs, by seed.

Each flagfile is prepared once and trained with each seed in each type, by the program itself.  A
pair of runs differs in --compute_dtype alone, so the mean difference is judged by the spread of
the differences over the seeds, beside that of float32 itself.

  python -m benchmarks.run precision --flagfiles experiments/pinterest_like.flags
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

_TYPES = ("float32", "bfloat16")
_ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for every flagfile, seed and type, and one for each measure of a flagfile."""
    rows: list[dict[str, Any]] = []
    flagfiles = [_ROOT / "experiments" / "tiny.flags"] if options.quick else options.flagfiles
    seeds = options.seeds[:2] if options.quick else options.seeds
    with tempfile.TemporaryDirectory() as folder:
        for number, flagfile in enumerate(flagfiles):
            place = pathlib.Path(folder) / str(number)
            shared = [f"--flagfile={flagfile}", *options.training_flags]
            _program([*shared, f"--workdir={place / 'prepared'}", "--mode=prepare"])
            scores: dict[str, list[dict[str, float]]] = {name: [] for name in _TYPES}
            for seed in seeds:
                for name in _TYPES:
                    found, spent = _trained(place, shared, seed, name)
                    scores[name].append(found)
                    about = {"flagfile": pathlib.Path(flagfile).name, "seed": seed, "type": name}
                    rows.append(about | {"seconds": spent} | found)
                    print(rows[-1], flush=True)
            compared = differences(scores["float32"], scores["bfloat16"])
            rows += [{"compared": pathlib.Path(flagfile).name, **row} for row in compared]
    return rows


def differences(
    exact: list[dict[str, float]], rough: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """Mean and standard error of the paired differences of every measure.

    Args:
      exact, rough: measures by name of the runs in float32 and in bfloat16, seed by seed.
    """
    rows = []
    for name in exact[0]:
        whole = [run[name] for run in exact]
        apart = [other[name] - value for value, other in zip(whole, rough, strict=True)]
        many = len(apart) > 1
        rows.append(
            {
                "measure": name,
                "float32": statistics.mean(whole),
                "over seeds": statistics.stdev(whole) if many else None,
                "bfloat16 less float32": statistics.mean(apart),
                "standard error": statistics.stdev(apart) / math.sqrt(len(apart)) if many else None,
            }
        )
    return rows


def _trained(
    place: pathlib.Path, shared: list[str], seed: int, name: str
) -> tuple[dict[str, float], float]:
    """The last validation of one run and its seconds."""
    workdir = place / f"{name}-{seed}"
    shutil.copytree(place / "prepared", workdir)
    begun = time.perf_counter()
    chosen = [f"--seed={seed}", f"--compute_dtype={name}", f"--workdir={workdir}", "--mode=train"]
    _program([*shared, *chosen])
    spent = time.perf_counter() - begun
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = next(line for line in reversed(lines) if "warm_hit@10" in line or "score" in line)
    shutil.rmtree(workdir)
    kept = {key: value for key, value in found.items() if key == "score" or "hit@" in key}
    return kept, spent


def _program(flags: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pinsage_jax.main", *flags],
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(flags)} failed:\n{done.stderr[-2000:]}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    parser.add_argument("--flagfiles", nargs="+", default=["experiments/pinterest_like.flags"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--training_flags", type=str.split, default=[], help="further flags, between blanks"
    )
