"""hosts: the processes of one run meet, exchange, and end together; as threads and for real.

Tests that wait until a silent process counts as lost are in the long suite (-m long).
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from small_worlds import make_run

from pinsage_jax.config.distributed import DistributedConfig
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed import channel, process_group
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.divergence import keep_batch
from pinsage_jax.training.leaf_paths import by_path, nested

pytestmark = pytest.mark.timeout(240)

ROOT = pathlib.Path(__file__).parents[2]
ABOUT = {"settings": {"train": {"epochs": 3}, "seed": 1}, "versions": {"jax": "0.10.2"}}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until(holds, seconds: float) -> None:
    """Waits until holds() is true, which it must be within `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.02)


def settings(process: int, port: int, count: int = 2, **others) -> DistributedConfig:
    address = f"127.0.0.1:{port}"
    given = {"join_seconds": 10, "lost_seconds": 2} | others
    return DistributedConfig(coordinator=address, num_processes=count, process_id=process, **given)


def met(folder, count, lost, abouts=None):
    """`count` processes that have met, as threads of this one; or the errors they met with."""
    port, found = free_port(), {}
    # process 0 holds the lock of the workdir, as main does.
    (folder / ".lock").write_text(f"{os.getpid()}\n")

    def come(process: int) -> None:
        group = process_group.ProcessGroup(settings(process, port, count), lost.append)
        about = (abouts or {}).get(process, ABOUT)
        try:
            group.join(about, str(folder)) if process else group.listen(about)
            found[process] = group
        except UserError as error:
            found[process] = error

    threads = [threading.Thread(target=come, args=(process,)) for process in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[process] for process in range(count)]


def in_all(processes, function):
    """function(process) of all at once, in their order."""
    results = {}

    def call(process) -> None:
        results[process.index] = function(process)

    threads = [threading.Thread(target=call, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [results[process.index] for process in processes]


def test_alone_everything_is_for_the_one():
    assert process_group.is_rank0() and process_group.all_gather_object(3) == [3]
    assert (
        process_group.broadcast_from_rank0(lambda: 4) == 4
        and process_group.rank0_first(lambda: 5) == 5
    )


@pytest.mark.parametrize("count", [2, 3])
def test_values_come_to_all_in_order_and_all_leave_with_the_worst_code(count, tmp_path):
    lost = []
    processes = met(tmp_path, count, lost)
    for turn in range(3):
        answers = in_all(processes, lambda one: one.all_gather_object([one.index, turn]))  # noqa: B023
        assert answers == [[[index, turn] for index in range(count)]] * count
    # Longer than the silence that counts as death: they say that they are alive.
    time.sleep(2.5)
    assert in_all(processes, lambda one: one.leave(7 * one.index)) == [7 * (count - 1)] * count
    assert lost == []


@pytest.mark.parametrize(
    "theirs,said",
    [
        (ABOUT | {"versions": {"jax": "0.11.0"}}, "it has jax 0.11.0, not 0.10.2"),
        (ABOUT | {"settings": {"train": {"epochs": 4}, "seed": 1}}, "--epochs=4, not 3"),
        (ABOUT | {"settings": {"train": {"epochs": 3}, "seed": 2}}, "--seed=2, not 1"),
    ],
)
def test_processes_that_differ_do_not_begin(theirs, said, tmp_path):
    errors = met(tmp_path, 2, [], {1: theirs})
    assert all(isinstance(error, UserError) and said in str(error) for error in errors)
    assert "Process 1 does not fit" in str(errors[0])


def test_one_that_does_not_come_is_named_and_so_is_nobody_there():
    port = free_port()
    with pytest.raises(UserError, match="Of 3 processes 1, 2 did not come to --coordinator"):
        process_group.ProcessGroup(settings(0, port, 3, join_seconds=1)).listen(ABOUT)
    with pytest.raises(UserError, match="Process 0 does not answer at --coordinator"):
        process_group.ProcessGroup(settings(1, port, 2, join_seconds=1)).join(ABOUT, "nowhere")


@pytest.mark.parametrize("gone", [0, 1])
def test_a_broken_line_is_told_once_in_every_process_left(gone, tmp_path):
    lost = []
    processes = met(tmp_path, 3, lost)
    for line in processes[gone]._lines.values():
        line.close()
    wait_until(lambda: len(lost) >= 2, 20)
    assert all("start all 3 again to go on from the last checkpoint" in each for each in lost)


def test_an_error_of_one_is_the_sentence_of_all(tmp_path):
    lost = []
    processes = met(tmp_path, 2, lost)
    processes[1].fail("--edges=x does not exist; name a file.")
    wait_until(lambda: lost, 20)
    assert lost[0].startswith("Process 1 of 2 ended: --edges=x does not exist; name a file")


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\n", b"[]\n", b"{}\n", b"\n"])
def test_a_line_reads_objects_only(sent):
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    theirs.sendall(sent)
    line = channel.Channel(ours, 2.0)
    if sent == b"{}\n":
        assert line.read() == {}
    else:
        with pytest.raises(ValueError):
            line.read()
    theirs.close()
    assert line.read() is None
    line.close()


@pytest.mark.parametrize(
    "given,named",
    [
        ({"coordinator": "", "num_processes": 2}, "--coordinator"),
        ({"coordinator": "nowhere", "num_processes": 2}, "--coordinator"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id"),
    ],
)
def test_settings_that_cannot_work_name_their_flag(given, named):
    with pytest.raises(UserError, match=named):
        DistributedConfig(**given).validate()


# The program itself.

# Enough that a run which is stopped when its first checkpoint is seen has not ended by then.
STEPS = 24
LOST_SECONDS = 8
FLAGS = (
    "--flagfile=experiments/tiny.flags", "--world_items=200", "--world_collections=60",
    "--world_edges=1200", "--world_pairs=200", "--batch_size=64", f"--max_steps={STEPS}",
    "--pairs_per_epoch=512", "--checkpoint_every=4", "--validate_every=6", "--baselines=none",
    "--bootstrap=0", "--threads=1", f"--lost_seconds={LOST_SECONDS}",
)  # fmt: skip


_started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _nothing_goes_on_behind():
    """A test that fails half-way leaves no process."""
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def start(workdir, devices, *more):
    """The program in a process of its own that sees `devices` CPU devices."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "pinsage_jax.main", *FLAGS, f"--workdir={workdir}", *more]
    _started.append(
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
    )  # fmt: skip
    return _started[-1]


def start_two(workdir, *more):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    return [
        start(workdir, 2, address, "--num_processes=2", f"--process_id={number}", *more)
        for number in (0, 1)
    ]


def parameters(workdir):
    """The parameters of the last checkpoint, by path."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        arrays = files.read_json(workdir / f"checkpoints/{STEPS}/checksums.json")["arrays"]
        like = {path: jax.ShapeDtypeStruct(shape, kind) for path, (kind, shape) in arrays.items()}
        state, _ = checkpoints.restore(STEPS, nested(like))
    return {name: value for name, value in by_path(state).items() if "params" in name}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A finished run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("hosts") / "alone"
    process = start(workdir, 4)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return workdir


def assert_same_run(workdir, alone):
    """Parameters and Adam's moments, up to the rounding of float32 in sums of another order."""
    ours, theirs = parameters(workdir), parameters(alone)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # About ten times what was measured after 24 steps, in shares of an array's largest
        # entry: 8e-7 at most, and 1e-5 of the vectors of ids.  Of those some have gradients
        # of next to nothing, and Adam, which divides by their size, makes whole steps of
        # their rounding; its moments of them are as close as all else.
        most = 1e-4 if name.startswith("params") and "neighbor_embeddings" in name else 1e-5
        difference = np.abs(value - theirs[name]).max() / np.abs(theirs[name]).max()
        assert difference < most, f"{name} differs by {difference:.1e}"


def test_two_processes_of_two_devices_train_as_one_of_four(alone, tmp_path):
    processes = start_two(tmp_path / "two")
    for process in processes:
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
    assert_same_run(tmp_path / "two", alone)
    assert (tmp_path / "two" / "eval.json").exists()


def test_a_killed_process_ends_the_other_and_both_go_on_when_started_again(tmp_path):
    workdir = tmp_path / "killed"
    first, second = start_two(workdir, "--max_steps=100000")
    wait_until((workdir / "checkpoints" / "4").exists, 150)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said, _ = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert time.monotonic() - killed < 40
    assert first.returncode == 2, said
    assert "error: Process 1 of 2" in said and "start all 2 again" in said
    assert "Traceback" not in said
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        latest = checkpoints.latest_step()
    for process in start_two(workdir, f"--max_steps={latest + 4}"):
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert f"continuing from the checkpoint of step {latest}" in said


def ended(process, within: float) -> tuple[int, str]:
    """Exit code and output of a process that ends by itself within `within` seconds."""
    said, _ = process.communicate(timeout=within)
    return process.returncode, said


@pytest.mark.long
@pytest.mark.timeout(500)
@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_process_ends_the_other_and_comes_back_without_harm(silent, alone, tmp_path):
    workdir = tmp_path / "silent"
    processes = start_two(workdir)
    # Without its seal it would not count yet.
    wait_until((workdir / "checkpoints" / "4" / "checksums.json").exists, 150)
    processes[silent].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    code, said = ended(processes[1 - silent], 60)
    assert LOST_SECONDS - 1 < time.monotonic() - begun < LOST_SECONDS + 30
    sentence = f"error: Process {silent} of 2 was silent for {LOST_SECONDS} seconds; start all 2"
    assert code == 2 and said.count(sentence) == 1, said
    assert "Traceback" not in said
    assert processes[silent].poll() is None

    if silent == 0:
        # It holds the workdir, so that nobody goes on beside it.
        other = start(workdir, 4)
        code, said = ended(other, 100)
        assert code == 2 and f"in use by process {processes[0].pid}" in said
        processes[0].send_signal(signal.SIGCONT)
        code, said = ended(processes[0], 60)
        assert code == 2 and sentence in said, said
        again = start_two(workdir)
    else:
        # It comes back while both go on, and finds nobody of its own.
        again = start_two(workdir)
        wait_until((workdir / "checkpoints" / "8").exists, 150)
        processes[1].send_signal(signal.SIGCONT)
        code, said = ended(processes[1], 60)
        assert code == 2 and sentence in said, said
    for process in again:
        code, said = ended(process, 200)
        assert code == 0, said
        assert "continuing from the checkpoint of step" in said
    assert_same_run(workdir, alone)
    assert not list(workdir.glob("*.tmp-*"))


def test_a_batch_that_is_not_finite_is_kept_whole_and_named_by_both(tmp_path):
    for process in start_two(tmp_path, "--learning_rate=1e30", "--warmup_epochs=0"):
        code, said = ended(process, 200)
        (path,) = tmp_path.glob("not_finite_step_*.json")
        assert code == 2 and "The loss is" in said and f"its batch is in {path}" in said, said
        assert "Traceback" not in said
    kept = files.read_json(path)
    # --batch_size, of which each process makes half.
    assert len(kept["query_ids"]) == len(kept["target_ids"]) == len(kept["hard_ids"]) == 64
    assert not list(tmp_path.glob("*.tmp-*"))


def test_any_process_can_write_the_batch_of_all(tmp_path):
    run = make_run(train={"hard_start": "full"})
    whole, own = run.builder(4), run.builder(4, own=range(2, 3))
    assert own.make(5)[0].query_ids.shape == (1, 2)
    batch, _ = whole.make(5)
    kept = files.read_json(keep_batch(tmp_path, own, 6, {"epoch": 1}))
    assert (kept["step"], kept["epoch"]) == (6, 1)
    for name in ("query_ids", "target_ids", "negative_ids"):
        assert kept[name] == getattr(batch, name).reshape(-1).tolist()
    assert kept["hard_ids"] == batch.hard_ids.reshape(8, -1).tolist()


def test_another_run_is_kept_out_of_the_workdir_of_two(tmp_path):
    first, second = start_two(tmp_path, "--max_steps=100000")
    wait_until((tmp_path / "checkpoints" / "4").exists, 150)
    other = start(tmp_path, 1)
    said, _ = other.communicate(timeout=100)
    assert other.returncode == 2 and f"in use by process {first.pid}" in said
    # One signal to one of them stops both after a step, with a checkpoint of it.
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 143, said
    logged = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = max(line["step"] for line in map(json.loads, logged) if "loss" in line)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == last
