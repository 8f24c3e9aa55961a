"""Pipelines that are killed at random moments, continued, and compared bit for bit.

Each row is a run that is killed (SIGKILL) at a random moment of one part of the pipeline and then
continued with the same command to the end.  Its last checkpoint, its embeddings and its eval.json
must have the bytes of an undisturbed run.  Two more runs are stopped with SIGTERM and SIGINT.

  python -m benchmarks.run kill_and_resume --kills=20

The part in which a kill took effect is read from the files on disk.  A kill in another part is
repeated with a new workdir.  If it came too late, the part is shorter than the drawn moment, and
later moments are drawn from the shorter time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.training.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("prepare", "train", "checkpoint", "embed", "export")
_POLL_SECONDS = 0.0005
_MAX_SECONDS = 3600
_MAX_TRIES = 8


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--kills", type=int, default=20, help="runs killed, over all parts")
    parser.add_argument("--kill_seed", type=int, default=0, help="of the random moments")
    parser.add_argument(
        "--kill_flags",
        default="--flagfile=experiments/tiny.flags --checkpoint_every=7",
        help="flags of the program, separated by spaces",
    )


def run(options) -> list[dict]:
    """One row for each killed or stopped run."""
    kills = 2 if options.quick else options.kills
    folder = pathlib.Path(options.out) / "kill_and_resume"
    shutil.rmtree(folder, ignore_errors=True)
    flags = options.kill_flags.split()
    seconds = undisturbed(folder / "undisturbed", flags)
    expected = contents(folder / "undisturbed")
    draws = random.Random(options.kill_seed)
    rows = []
    planned = [(PARTS[number % len(PARTS)], signal.SIGKILL) for number in range(kills)]
    planned += [] if options.quick else [("train", signal.SIGTERM), ("train", signal.SIGINT)]
    for number, (part, sent) in enumerate(planned, start=1):
        workdir = folder / f"run-{number}"
        moment, tries = kill_in_part(part, workdir, flags, seconds, draws, sent)
        row = _row(number, sent.name, part, moment, tries, workdir, flags, expected)
        rows.append(row)
    equal = sum(row["equal"] == "all" for row in rows)
    in_part = sum(row["killed in"] == row["intended part"] for row in rows)
    shutil.rmtree(folder)
    note = f"{equal} of {len(rows)} runs end with the bits of the undisturbed one; "
    return [*rows, {"note": f"{note}{in_part} were killed in the intended part."}]


def kill_in_part(
    part: str,
    workdir: pathlib.Path,
    flags: list[str],
    seconds: dict[str, float],
    draws: random.Random,
    sent: signal.Signals = signal.SIGKILL,
) -> tuple[Moment, int]:
    """Repeats kill_within until the kill is in `part`, at most _MAX_TRIES times.

    Args:
      seconds: time of each part; that of `part` is reduced to a delay that was too long.

    Returns:
      The last moment, and the number of tries.
    """
    tries = 0
    while True:
        moment = kill_within(part, workdir, flags, seconds[part], draws, sent)
        tries += 1
        if moment.part == part or tries == _MAX_TRIES:
            return moment, tries
        # Checkpoints are written during training, so a kill in one is not too late.
        if moment.began and (part, moment.part) != ("train", "checkpoint"):
            seconds[part] = min(seconds[part], moment.delay)


def _row(number, sent, part, moment, tries, workdir, flags, expected) -> dict:
    code = again(workdir, flags)
    found = contents(workdir)
    differ = [name for name, value in expected.items() if found.get(name) != value]
    row = {
        "run": number,
        "sent": sent,
        "intended part": part,
        "killed in": moment.part,
        "tries": tries,
        "after s": round(moment.seconds, 2),
        "checkpoint": "none" if moment.step is None else str(moment.step),
        "leftovers": ", ".join(moment.leftovers) or "nothing",
        "exit": moment.code,
        "exit again": code,
        "equal": ("not " + ", ".join(differ)) if differ or code else "all",
    }
    print(row, file=sys.stderr, flush=True)
    shutil.rmtree(workdir)
    return row


@dataclasses.dataclass(frozen=True)
class Moment:
    """The state of a run after a kill.

    Attributes:
      part: part of the pipeline in which it was killed.
      step: step of the newest complete checkpoint; None without a checkpoint.
      leftovers: incomplete files and folders.
      seconds: time from the start of the process to the signal.
      code: exit code, minus the number of the signal that killed it.
      began: whether the intended part had begun.
      delay: seconds from the beginning of that part to the signal.
    """

    part: str
    step: int | None
    leftovers: tuple[str, ...]
    seconds: float
    code: int
    began: bool
    delay: float


def kill_within(
    part: str,
    workdir: pathlib.Path,
    flags: list[str],
    seconds: float,
    draws: random.Random,
    sent: signal.Signals = signal.SIGKILL,
) -> Moment:
    """Starts a run and kills it at a random moment of a part that takes about `seconds`."""
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    skipped = draws.randrange(4) if part == "checkpoint" else 0
    delay = draws.random() * seconds
    begun = time.perf_counter()
    process = _start(workdir, flags)
    try:
        seen: set[int | None] = {None}
        while not (began := _part_of(workdir) == part and len(seen) > skipped):
            seen.add(_newest(workdir))
            if process.poll() is not None or time.perf_counter() - begun > _MAX_SECONDS:
                break
            time.sleep(_POLL_SECONDS)
        time.sleep(delay)
        spent = time.perf_counter() - begun
        process.send_signal(sent)
        code = process.wait(_MAX_SECONDS)
    finally:
        process.kill()
        process.wait()
    part_hit, newest, leftovers = _part_of(workdir), _newest(workdir), _leftovers(workdir)
    return Moment(part_hit, newest, leftovers, spent, code, began, delay)


def undisturbed(workdir: pathlib.Path, flags: list[str]) -> dict[str, float]:
    """Runs a whole pipeline; returns the seconds of each part and of one checkpoint."""
    workdir.mkdir(parents=True)
    spent, writes = dict.fromkeys(("start", *PARTS, "later"), 0.0), 0
    process = _start(workdir, flags)
    before, part = time.perf_counter(), "start"
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        found, now = _part_of(workdir), time.perf_counter()
        spent[part] += now - before
        writes += found == "checkpoint" != part
        before, part = now, found
    if process.returncode:
        raise RuntimeError(
            f"the undisturbed run ended with {process.returncode}; see {_log(workdir)}"
        )
    return {**spent, "checkpoint": spent["checkpoint"] / max(writes, 1)}


def again(workdir: pathlib.Path, flags: list[str]) -> int:
    """Continues the run of `workdir` and returns its exit code."""
    return _start(workdir, flags).wait(_MAX_SECONDS)


def contents(workdir: pathlib.Path) -> dict[str, str]:
    """Digests of the results of a run: its last state, its embeddings and eval.json.

    The manifest contains the path of the workdir, the only part that may differ.
    """
    found, own_path = {}, str(workdir.resolve()).encode()
    if (last := _newest(workdir)) is not None:
        found["parameters"] = _digest_of_state(workdir / "checkpoints", last)
    for path in sorted((workdir / "embeddings").glob("*")):
        whole = path.read_bytes()
        if path.suffix == ".json":
            whole = whole.replace(own_path, b"WORKDIR")
        found[f"embeddings/{path.name}"] = hashlib.sha256(whole).hexdigest()
    if (evaluation := workdir / "eval.json").exists():
        found["eval.json"] = hashlib.sha256(evaluation.read_bytes()).hexdigest()
    return found


def _digest_of_state(folder: pathlib.Path, step: int) -> str:
    """Digest of all arrays of a checkpoint, with those of the optimizer, and of its step."""
    with Checkpoints(folder, read_only=True) as checkpoints:
        arrays = checkpoints.arrays(step)
    digest = hashlib.sha256(str(step).encode())
    for path, array in sorted(arrays.items()):
        digest.update(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _start(workdir: pathlib.Path, flags: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "pinsage_jax.main", *flags, f"--workdir={workdir.resolve()}"]
    with open(_log(workdir), "a", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def _log(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_suffix(".log")


def _names(folder: pathlib.Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _newest(workdir: pathlib.Path) -> int | None:
    """Step of the newest checkpoint that has its checksum file."""
    folder = workdir / "checkpoints"
    steps = [int(name) for name in _names(folder) if name.isdecimal()]
    return max((s for s in steps if (folder / str(s) / "checksums.json").exists()), default=None)


def _unfinished(workdir: pathlib.Path) -> list[str]:
    folder = workdir / "checkpoints"
    return [n for n in _names(folder) if not (folder / n / "checksums.json").exists()]


def _leftovers(workdir: pathlib.Path) -> tuple[str, ...]:
    """Names of incomplete files and folders, without process ids."""
    names = [name for name in _names(workdir) if ".tmp-" in name]
    names += [f"checkpoints/{name}" for name in _unfinished(workdir)]
    return tuple(sorted({name.split(".tmp-")[0].split(".orbax")[0] for name in names}))


def _part_of(workdir: pathlib.Path) -> str:
    """The part of the pipeline that a run is in, by the files on disk."""
    names = _names(workdir)
    if "prepared" not in names:
        return "prepare" if any(n.startswith(("inputs", "prepared")) for n in names) else "start"
    if any(name.startswith("embeddings.tmp-") for name in names):
        return "export"
    if "embeddings" in names:
        return "later"
    if _unfinished(workdir):
        return "checkpoint"
    return "embed" if _is_trained(workdir) else "train"


def _is_trained(workdir: pathlib.Path) -> bool:
    """Whether the newest checkpoint is that of the last step, by its metadata."""
    step = _newest(workdir)
    if step is None:
        return False
    try:
        meta = files.read_json(workdir / "checkpoints" / str(step) / "meta" / "metadata")
    except UserError:
        return False
    return step >= meta["total"]
