"""A pipeline killed at random moments, started again, and compared bit for bit.

Every row is a run of its own: killed once (SIGKILL) at a random moment of the part in turn,
then started again with the same command until it ends by itself.  Its last checkpoint, its
embeddings and its eval.json must hold the bytes of a run that nobody disturbed.  Two more
rows are stopped politely, with SIGTERM and SIGINT.

  python -m benchmarks.run kill_and_resume --kills=20

Where a kill hit is read from what it left on disk, not from when it was sent.  One that missed
its part is tried again with a fresh workdir; if it came late, the part is shorter than the
moment that was drawn, and later moments are drawn from that shorter time.
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

import jax

from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.leaf_paths import by_path, nested

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("prepare", "train", "checkpoint", "embed", "export")
_LOOK_EVERY_SECONDS = 0.0005
_MOST_SECONDS = 3600
_MOST_TRIES = 8


def add_options(parser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--kills", type=int, default=20, help="runs killed, over all parts")
    parser.add_argument("--kill_seed", type=int, default=0, help="of the random moments")
    parser.add_argument(
        "--kill_flags",
        default="--flagfile=experiments/tiny.flags --checkpoint_every=7",
        help="flags of the program, separated by spaces",
    )


def run(options) -> list[dict]:
    """One row a killed or stopped run."""
    kills = 2 if options.quick else options.kills
    folder = pathlib.Path(options.out) / "kill_and_resume"
    shutil.rmtree(folder, ignore_errors=True)
    flags = options.kill_flags.split()
    seconds = undisturbed(folder / "undisturbed", flags)
    expected = contents(folder / "undisturbed")
    draws = random.Random(options.kill_seed)
    rows = []
    asked = [(PARTS[number % len(PARTS)], signal.SIGKILL) for number in range(kills)]
    asked += [] if options.quick else [("train", signal.SIGTERM), ("train", signal.SIGINT)]
    for number, (part, sent) in enumerate(asked, start=1):
        workdir = folder / f"run-{number}"
        moment, tries = aimed(part, workdir, flags, seconds, draws, sent)
        row = _row(number, sent.name, part, moment, tries, workdir, flags, expected)
        rows.append(row)
    equal = sum(row["equal"] == "all" for row in rows)
    hit = sum(row["hit"] == row["meant for"] for row in rows)
    shutil.rmtree(folder)
    told = f"{equal} of {len(rows)} runs end as the undisturbed one, bit for bit; {hit} were hit "
    return [*rows, {"note": told + "in the part that they were meant for."}]


def aimed(
    part: str,
    workdir: pathlib.Path,
    flags: list[str],
    seconds: dict[str, float],
    draws: random.Random,
    sent: signal.Signals = signal.SIGKILL,
) -> tuple[Moment, int]:
    """kill_within until it hits `part`, at most _MOST_TRIES times.

    Args:
      seconds: of each part; that of `part` shrinks to any delay that was too long.

    Returns:
      The last moment, and how many there were.
    """
    tries = 0
    while True:
        moment = kill_within(part, workdir, flags, seconds[part], draws, sent)
        tries += 1
        if moment.part == part or tries == _MOST_TRIES:
            return moment, tries
        # Checkpoints are written in the midst of training: one of them is not after it.
        if moment.began and (part, moment.part) != ("train", "checkpoint"):
            seconds[part] = min(seconds[part], moment.delay)


def _row(number, sent, part, moment, tries, workdir, flags, expected) -> dict:
    code = again(workdir, flags)
    found = contents(workdir)
    differ = [name for name, value in expected.items() if found.get(name) != value]
    row = {
        "run": number,
        "sent": sent,
        "meant for": part,
        "hit": moment.part,
        "tries": tries,
        "after s": round(moment.seconds, 2),
        "checkpoint": "none" if moment.step is None else str(moment.step),
        "left behind": ", ".join(moment.leftovers) or "nothing",
        "exit": moment.code,
        "exit again": code,
        "equal": ("not " + ", ".join(differ)) if differ or code else "all",
    }
    print(row, file=sys.stderr, flush=True)
    shutil.rmtree(workdir)
    return row


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a killed run left.

    Attributes:
      part: of the pipeline that it was in.
      step: of the newest complete checkpoint; None without any.
      leftovers: what was half-written.
      seconds: from the start of the process to the signal.
      code: how it ended: minus the number of the signal that killed it.
      began: whether the part it was meant for had been seen to begin.
      delay: seconds from then to the signal.
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
    """Starts a run and ends it at a random moment of a part that takes about `seconds`."""
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
            if process.poll() is not None or time.perf_counter() - begun > _MOST_SECONDS:
                break
            time.sleep(_LOOK_EVERY_SECONDS)
        time.sleep(delay)
        spent = time.perf_counter() - begun
        process.send_signal(sent)
        code = process.wait(_MOST_SECONDS)
    finally:
        process.kill()
        process.wait()
    part_hit, newest, leftovers = _part_of(workdir), _newest(workdir), _leftovers(workdir)
    return Moment(part_hit, newest, leftovers, spent, code, began, delay)


def undisturbed(workdir: pathlib.Path, flags: list[str]) -> dict[str, float]:
    """A whole run; seconds that each part took (of checkpoints: one of them)."""
    workdir.mkdir(parents=True)
    spent, writes = dict.fromkeys(("start", *PARTS, "later"), 0.0), 0
    process = _start(workdir, flags)
    before, part = time.perf_counter(), "start"
    while process.poll() is None:
        time.sleep(_LOOK_EVERY_SECONDS)
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
    """Starts the run of `workdir` again and returns how it ended."""
    return _start(workdir, flags).wait(_MOST_SECONDS)


def contents(workdir: pathlib.Path) -> dict[str, str]:
    """Digests of what a finished run leaves: its last state, its embeddings, eval.json.

    The manifest names the workdir, whose name is all that may differ.
    """
    found, own = {}, str(workdir.resolve()).encode()
    if (last := _newest(workdir)) is not None:
        found["parameters"] = _digest_of_state(workdir / "checkpoints", last)
    for path in sorted((workdir / "embeddings").glob("*")):
        whole = path.read_bytes()
        if path.suffix == ".json":
            whole = whole.replace(own, b"WORKDIR")
        found[f"embeddings/{path.name}"] = hashlib.sha256(whole).hexdigest()
    if (evaluation := workdir / "eval.json").exists():
        found["eval.json"] = hashlib.sha256(evaluation.read_bytes()).hexdigest()
    return found


def _digest_of_state(folder: pathlib.Path, step: int) -> str:
    """Of every array of a checkpoint, those of the optimizer too, and its step."""
    shapes = files.read_json(folder / str(step) / "checksums.json")["arrays"]
    like = {path: jax.ShapeDtypeStruct(shape, dtype) for path, (dtype, shape) in shapes.items()}
    with Checkpoints(folder, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(step, nested(like))
    digest = hashlib.sha256(str(step).encode())
    for path, array in sorted(by_path(state).items()):
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
    """Names of what is half-written, without the process ids in them."""
    names = [name for name in _names(workdir) if ".tmp-" in name]
    names += [f"checkpoints/{name}" for name in _unfinished(workdir)]
    return tuple(sorted({name.split(".tmp-")[0].split(".orbax")[0] for name in names}))


def _part_of(workdir: pathlib.Path) -> str:
    """The part of the pipeline that a run is in, from what there is on disk."""
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
    """Whether the newest checkpoint is of the last step, as it says itself."""
    step = _newest(workdir)
    if step is None:
        return False
    try:
        meta = files.read_json(workdir / "checkpoints" / str(step) / "meta" / "metadata")
    except UserError:
        return False
    return step >= meta["total"]
