"""process_group: the processes of a run connect, gather values and end together.

The first tests run the processes as threads of one process, the later ones as programs.
Tests that wait until a silent process counts as lost are in the long suite (-m long).
"""

import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_runs import make_run

from pinsage_jax.config.distributed import DistributedConfig
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core import files, workdir
from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed import channel, hellos, joining, process_group
from pinsage_jax.training import device_inputs
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.leaf_paths import by_path, nested
from pinsage_jax.training.log import dump_batch

pytestmark = pytest.mark.timeout(240)

ROOT = pathlib.Path(__file__).parents[2]
IDENTITY = {"settings": {"train": {"epochs": 3}, "seed": 1}, "versions": {"jax": "0.10.2"}}


_started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _kill_started_processes():
    """Kills the processes of a test that failed before they ended."""
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until(condition, seconds: float) -> None:
    """Waits until condition() is true and fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.02)


def settings(process: int, port: int, count: int = 2, **others) -> DistributedConfig:
    address = f"127.0.0.1:{port}"
    given = {"join_seconds": 10, "lost_seconds": 2} | others
    return DistributedConfig(coordinator=address, num_processes=count, process_id=process, **given)


def connected(folder, count, lost, identities=None):
    """`count` connected groups, each from a thread; an entry is a UserError if it failed."""
    port, results = free_port(), {}

    def connect(process: int) -> None:
        group = process_group.ProcessGroup(settings(process, port, count), lost.append)
        identity = (identities or {}).get(process, IDENTITY)
        try:
            group.join(identity, str(folder)) if process else group.listen(identity, str(folder))
            results[process] = group
        except UserError as error:
            results[process] = error

    threads = [threading.Thread(target=connect, args=(process,)) for process in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [results[process] for process in range(count)]


def call_in_all(groups, function):
    """The results of function(group), called for all groups concurrently."""
    results = {}

    def call(group) -> None:
        results[group.index] = function(group)

    threads = [threading.Thread(target=call, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [results[group.index] for group in groups]


def test_a_single_process_gets_its_own_values():
    assert process_group.is_rank0() and process_group.all_gather_object(3, "test") == [3]
    assert (
        process_group.broadcast_from_rank0(lambda: 4, "test") == 4
        and process_group.rank0_first(lambda: 5, "test") == 5
    )


@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_gather_values_and_exit_with_the_largest_code(count, tmp_path):
    lost = []
    groups = connected(tmp_path, count, lost)
    for number in range(3):
        values = call_in_all(
            groups,
            lambda group: group.all_gather_object([group.index, number], "test"),  # noqa: B023
        )
        assert values == [[[index, number] for index in range(count)]] * count
    # Longer than --lost_seconds: heartbeats keep the channels open.
    time.sleep(2.5)
    codes = call_in_all(groups, lambda group: group.barrier_exit(7 * group.index))
    assert codes == [7 * (count - 1)] * count
    assert lost == []


@pytest.mark.parametrize(
    "theirs,message",
    [
        (IDENTITY | {"versions": {"jax": "0.11.0"}}, "it has jax 0.11.0, not 0.10.2"),
        (IDENTITY | {"settings": {"train": {"epochs": 4}, "seed": 1}}, "--epochs=4, not 3"),
        (IDENTITY | {"settings": {"train": {"epochs": 3}, "seed": 2}}, "--seed=2, not 1"),
    ],
)
def test_processes_with_different_settings_or_versions_do_not_start(theirs, message, tmp_path):
    errors = connected(tmp_path, 2, [], {1: theirs})
    assert all(isinstance(error, UserError) and message in str(error) for error in errors)
    assert "Process 1 does not match process 0" in str(errors[0])


def test_the_error_names_the_processes_that_do_not_connect():
    port = free_port()
    with pytest.raises(UserError, match="Of 3 processes 1, 2 did not connect to --coordinator"):
        process_group.ProcessGroup(settings(0, port, 3, join_seconds=1)).listen(IDENTITY, "nowhere")
    with pytest.raises(UserError, match="Process 0 does not answer at --coordinator"):
        process_group.ProcessGroup(settings(1, port, 2, join_seconds=1)).join(IDENTITY, "nowhere")


@pytest.mark.parametrize("closed", [0, 1])
def test_every_remaining_process_reports_a_broken_channel_once(closed, tmp_path):
    lost = []
    groups = connected(tmp_path, 3, lost)
    for peer in groups[closed]._channels.values():
        peer.close()
    wait_until(lambda: len(lost) >= 2, 20)
    assert all("start all 3 again to go on from the last checkpoint" in each for each in lost)


def test_an_error_of_one_process_is_reported_by_the_others(tmp_path):
    lost = []
    groups = connected(tmp_path, 2, lost)
    groups[1].fail("--edges=x does not exist; name a file.")
    wait_until(lambda: lost, 20)
    assert lost[0].startswith("Process 1 of 2 ended: --edges=x does not exist; name a file")


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\n", b"[]\n", b"{}\n", b"\n"])
def test_a_channel_reads_json_objects_only(sent):
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    theirs.sendall(sent)
    peer = channel.Channel(ours, 2.0)
    if sent == b"{}\n":
        assert peer.read() == {}
    else:
        with pytest.raises(ValueError):
            peer.read()
    theirs.close()
    assert peer.read() is None
    peer.close()


@pytest.mark.parametrize(
    "given,named",
    [
        ({"coordinator": "", "num_processes": 2}, "--coordinator"),
        ({"coordinator": "nowhere", "num_processes": 2}, "--coordinator"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id"),
    ],
)
def test_the_error_about_an_invalid_setting_names_its_flag(given, named):
    with pytest.raises(UserError, match=named):
        DistributedConfig(**given).validate()


# Strangers, and mistakes of the user.


def raw(port: int, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(sent)
    return connection


HELLO = json.dumps(hellos.message(1, IDENTITY)).encode()
STRANGERS = {
    "garbage": b"\x16\x03\x01\x00\xff\xfe\n",
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "closed at once": None,
    "silent": b"",
    "half a message": HELLO[:40],
    "wrong token": HELLO.replace(hellos.PROTOCOL.encode(), b"something else") + b"\n",
    "no token": b'{"process": 1, "identity": {"settings": {}, "versions": {}}}\n',
    "odd number": HELLO.replace(b'"process": 1', b'"process": Infinity') + b"\n",
    "odd settings": HELLO.replace(b'{"train": {"epochs": 3}, "seed": 1}', b"[]") + b"\n",
    "nested": b"[" * 200_000 + b"\n",
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_does_not_end_process_0(stranger, tmp_path):
    port, lost, outcome = free_port(), [], {}
    first = process_group.ProcessGroup(settings(0, port), lost.append)
    second = process_group.ProcessGroup(settings(1, port), lost.append)

    def listen():
        try:
            first.listen(IDENTITY, str(tmp_path))
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=listen)
    thread.start()
    connection = channel.connect(("127.0.0.1", port), 10)
    if STRANGERS[stranger] is None:
        connection.close()
    else:
        connection.sendall(STRANGERS[stranger])
    started = time.monotonic()
    second.join(IDENTITY, str(tmp_path))
    thread.join(20)
    # A silent connection keeps nobody waiting.
    assert time.monotonic() - started < 8 and outcome == {}
    values = call_in_all([first, second], lambda group: group.all_gather_object(group.index, "t"))
    assert values == [[0, 1]] * 2
    call_in_all([first, second], lambda group: group.barrier_exit(0))
    connection.close()


@pytest.mark.parametrize("number", [1, 2, -1])
def test_a_number_that_is_taken_or_too_large_is_turned_away_and_the_others_go_on(number, tmp_path):
    port, lost = free_port(), []
    groups = [process_group.ProcessGroup(settings(i, port, 3), lost.append) for i in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(groups[0].listen, IDENTITY, str(tmp_path))]
        waiting.append(pool.submit(groups[1].join, IDENTITY, str(tmp_path)))
        wait_until(lambda: 1 in groups[0]._channels, 10)
        odd = 5 if number == 2 else number
        with raw(port, json.dumps(hellos.message(odd, IDENTITY)).encode() + b"\n") as other:
            assert f"there is another --process_id={odd}" in other.makefile().readline()
        waiting.append(pool.submit(groups[2].join, IDENTITY, str(tmp_path)))
        for future in waiting:
            future.result(20)
    assert call_in_all(groups, lambda group: group.barrier_exit(0)) == [0, 0, 0]
    assert lost == []


def test_the_shared_folder_is_known_by_a_random_file(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    # Both folders are locked by a process of the same number, as in two containers.
    for folder in (ours, theirs):
        (folder / ".lock").write_text(f"{os.getpid()}\n")
    mark = workdir.mark_shared(ours)
    workdir.check_shared(ours, mark)
    with pytest.raises(UserError, match="is not the folder that process 0 has locked"):
        workdir.check_shared(theirs, mark)
    with pytest.raises(UserError, match="is not the folder"):
        workdir.check_shared(theirs, str(ours / mark))
    # A killed run leaves its file; the next one has another name.
    assert workdir.mark_shared(ours) != mark and len(list(ours.glob(".shared-*"))) == 1
    workdir.remove_marks(ours)
    assert [path.name for path in ours.iterdir()] == [".lock"]


def test_the_port_of_jax_is_held_until_it_is_used(tmp_path):
    groups = connected(tmp_path, 2, [])
    host, port = groups[0].service
    assert groups[1].service == (host, port)
    with pytest.raises(OSError):
        socket.create_server((host, port))
    # JAX's service binds it with this option.
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind((host, port))
        server.listen()
        socket.create_connection((host, port), timeout=5).close()
    call_in_all(groups, lambda group: group.barrier_exit(0))


def test_processes_at_different_operations_are_refused_by_name(tmp_path):
    groups = connected(tmp_path, 2, [])
    names = ["neighborhoods", "latest checkpoint"]
    with pytest.raises(UserError, match="Process 1 is at 'latest checkpoint', process 0 at 'nei"):
        groups[1]._send({"operation": names[1], "value": None})
        groups[0].all_gather_object(None, names[0])


def test_the_process_with_the_least_memory_decides_on_the_input_table(monkeypatch):
    train = TrainConfig(device_features="auto")
    inputs = SimpleNamespace(table_bytes=1000, table_columns=[True])
    assert device_inputs.table_form(train, inputs) == "whole"
    for memory, everywhere in (
        (10_000, ["whole", "none"]),
        (10_000, ["whole", "split"]),
        (10_000, ["whole"] * 2),
        (10, ["none", "split"]),
    ):
        gathered = []
        monkeypatch.setattr(device_inputs, "max_table_bytes", lambda devices: memory)  # noqa: B023
        monkeypatch.setattr(
            process_group,
            "all_gather_object",
            lambda value, name: gathered.append((value, name)) or everywhere,  # noqa: B023
        )
        assert device_inputs.table_form(train, inputs) == min(everywhere)
        own = "whole" if memory > 1000 else "none"
        assert gathered == [(own, "input table on the devices")]


@pytest.mark.parametrize(
    "claims,shared",
    [
        ([[], []], None),
        ([[["a", None, 0]], [["b", None, 0]]], None),
        ([[["a", "0", 0]], [["a", "1", 0]]], None),
        ([[["a", None, 0]], [["b", None, 0]], [["b", None, 1], ["b", None, 0]]], (1, 2)),
    ],
)
def test_processes_that_use_the_same_accelerators_are_found(claims, shared):
    assert joining.claimed_twice(claims) == shared


def test_the_accelerators_of_a_process_are_passed_to_jax(monkeypatch):
    given = {}
    group = process_group.ProcessGroup(settings(0, 1, local_device_ids="2, 3"))
    monkeypatch.setattr(process_group, "_current", group)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **named: given.update(named))
    monkeypatch.setattr(jax.config, "update", lambda *a: None)
    joining.connect()
    assert given["local_device_ids"] == [2, 3]


@pytest.mark.parametrize(
    "ids,count,named",
    [
        ("0,x", 2, "must be different numbers"),
        ("0,0", 2, "must be different numbers"),
        ("-1", 2, "must be different numbers"),
        ("0", 1, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_accelerators_that_cannot_be_meant(ids, count, named):
    with pytest.raises(UserError, match=named):
        DistributedConfig(
            coordinator="a:1", num_processes=count, process_id=0, local_device_ids=ids
        ).validate()


# Stops outside the step loop: programs without JAX, which start quickly.

SCENE = """
import sys, time
from pinsage_jax.config.distributed import DistributedConfig
from pinsage_jax.core import signals
from pinsage_jax.distributed import process_group

index, port, folder, scene = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
config = DistributedConfig(f"127.0.0.1:{port}", int(sys.argv[5]), index, lost_seconds=3)

def work():
    for _ in range(2000):
        signals.raise_if_stopped()
        time.sleep(0.02)

with process_group.joined(config, {"workdir": folder}) as group:
    signals.install()
    print("ready", flush=True)
    with group.stopping_together():
        signals.raise_if_stopped()
        if scene == "store":
            process_group.rank0_first(work, "neighborhoods")
        elif scene == "different":
            work() if index == 0 else process_group.all_gather_object(1, "number of devices")
        elif scene == "hangs":
            # A collective operation of JAX looks neither at signals nor at messages.
            work() if index == 0 else [time.sleep(0.02) for _ in range(2000)]
        elif scene == "done":
            work() if index == 0 else None
    code = group.barrier_exit(signals.exit_code())
sys.exit(code)
"""


def start_scene(scene, count, folder):
    """Processes that have joined and are in the middle of a scene."""
    port = str(free_port())
    for index in range(count):
        process = subprocess.Popen(
            [sys.executable, "-c", SCENE, str(index), port, str(folder), scene, str(count)],
            cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        _started.append(process)
    processes = list(_started)
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    return processes


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_is_silent_ends_the_other(how, lost, tmp_path):
    processes = start_scene("store", 2, tmp_path)
    processes[lost].send_signal(how)
    _, errors = processes[1 - lost].communicate(timeout=25)
    assert processes[1 - lost].returncode == 2, errors
    reason = "was silent for 3 seconds" if how == signal.SIGSTOP else "has ended without an error"
    assert f"error: Process {lost} of 2 {reason}" in errors and "start all 2 again" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "scene,signaled,count",
    [
        ("store", 0, 2), ("store", 1, 2), ("store", 2, 3), ("different", 0, 2),
        ("different", 1, 2), ("hangs", 0, 2), ("done", 1, 2), ("done", 0, 3),
    ],
)  # fmt: skip
def test_a_stop_outside_the_step_loop_ends_all_processes_alike(scene, signaled, count, tmp_path):
    processes = start_scene(scene, count, tmp_path)
    processes[signaled].send_signal(signal.SIGTERM)
    for process in processes:
        _, errors = process.communicate(timeout=25)
        assert process.returncode == 143, errors
        assert "Traceback" not in errors and "error:" not in errors


# The program itself.

# Enough steps that a run is still training when its first checkpoint has been written.
STEPS = 24
LOST_SECONDS = 8
FLAGS = (
    "--flagfile=experiments/tiny.flags", "--synthetic_size=200x1200",
    "--batch_size=64", f"--max_steps={STEPS}",
    "--pairs_per_epoch=512", "--checkpoint_every=4", "--validate_every=6", "--baselines=none",
    "--bootstrap=0", "--threads=1", f"--lost_seconds={LOST_SECONDS}",
)  # fmt: skip


def start(workdir, devices, *more):
    """Starts the program in a process with `devices` CPU devices."""
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
        shapes = {path: jax.ShapeDtypeStruct(shape, kind) for path, (kind, shape) in arrays.items()}
        state, _ = checkpoints.restore(STEPS, nested(shapes))
    return {name: value for name, value in by_path(state).items() if "params" in name}


@pytest.fixture(scope="module")
def single_process_run(tmp_path_factory):
    """The workdir of a finished run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("single_process") / "run"
    process = start(workdir, 4)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return workdir


def assert_same_run(workdir, single_process_run):
    """Compares parameters and Adam's moments up to the rounding of reordered float32 sums."""
    ours, theirs = parameters(workdir), parameters(single_process_run)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # The bounds are about ten times the difference measured after 24 steps, relative to
        # the array's largest entry: at most 8e-7, and 1e-5 for neighbor_embeddings.  Some of
        # the latter have gradients near zero, and Adam, which divides by their size, turns
        # their rounding errors into whole steps; its moments are as close as the rest.
        bound = 1e-4 if name.startswith("params") and "neighbor_embeddings" in name else 1e-5
        difference = np.abs(value - theirs[name]).max() / np.abs(theirs[name]).max()
        assert difference < bound, f"{name} differs by {difference:.1e}"


def test_two_processes_of_two_devices_train_as_one_of_four(single_process_run, tmp_path):
    processes = start_two(tmp_path / "two")
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    assert_same_run(tmp_path / "two", single_process_run)
    assert (tmp_path / "two" / "eval.json").exists()


def test_a_killed_process_ends_the_other_and_both_resume_when_started_again(tmp_path):
    workdir = tmp_path / "killed"
    first, second = start_two(workdir, "--max_steps=100000")
    wait_until((workdir / "checkpoints" / "4").exists, 150)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    output, _ = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert time.monotonic() - killed < 40
    assert first.returncode == 2, output
    assert "error: Process 1 of 2" in output and "start all 2 again" in output
    assert "Traceback" not in output
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        latest = checkpoints.latest_step()
    for process in start_two(workdir, f"--max_steps={latest + 4}"):
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert f"continuing from the checkpoint of step {latest}" in output


def wait_for_exit(process, within: float) -> tuple[int, str]:
    """Exit code and output of a process that must end within `within` seconds."""
    output, _ = process.communicate(timeout=within)
    return process.returncode, output


@pytest.mark.long
@pytest.mark.timeout(500)
@pytest.mark.parametrize("silent", [0, 1])
def test_a_silent_process_ends_the_other_and_itself_later(silent, single_process_run, tmp_path):
    workdir = tmp_path / "silent"
    processes = start_two(workdir)
    # A checkpoint counts from the moment that its checksums are written.
    wait_until((workdir / "checkpoints" / "4" / "checksums.json").exists, 150)
    processes[silent].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    code, output = wait_for_exit(processes[1 - silent], 60)
    assert LOST_SECONDS - 1 < time.monotonic() - stopped < LOST_SECONDS + 30
    message = f"error: Process {silent} of 2 was silent for {LOST_SECONDS} seconds; start all 2"
    assert code == 2 and output.count(message) == 1, output
    assert "Traceback" not in output
    assert processes[silent].poll() is None

    if silent == 0:
        # The stopped process still holds the lock of the workdir.
        other = start(workdir, 4)
        code, output = wait_for_exit(other, 100)
        assert code == 2 and f"in use by process {processes[0].pid}" in output
        processes[0].send_signal(signal.SIGCONT)
        code, output = wait_for_exit(processes[0], 60)
        assert code == 2 and message in output, output
        restarted = start_two(workdir)
    else:
        # The stopped process continues during the new run and has lost its own group.
        restarted = start_two(workdir)
        wait_until((workdir / "checkpoints" / "8").exists, 150)
        processes[1].send_signal(signal.SIGCONT)
        code, output = wait_for_exit(processes[1], 60)
        assert code == 2 and message in output, output
    for process in restarted:
        code, output = wait_for_exit(process, 200)
        assert code == 0, output
        assert "continuing from the checkpoint of step" in output
    assert_same_run(workdir, single_process_run)
    assert not list(workdir.glob("*.tmp-*"))


def test_both_processes_name_the_file_with_the_whole_non_finite_batch(tmp_path):
    for process in start_two(tmp_path, "--learning_rate=1e30"):
        code, output = wait_for_exit(process, 200)
        (path,) = tmp_path.glob("not_finite_step_*.json")
        assert code == 2 and "The loss is" in output and f"its batch is in {path}" in output, output
        assert "Traceback" not in output
    dumped = files.read_json(path)
    # --batch_size rows, of which each process samples half.
    assert len(dumped["query_ids"]) == len(dumped["target_ids"]) == len(dumped["hard_ids"]) == 64
    assert not list(tmp_path.glob("*.tmp-*"))


def test_any_process_can_dump_the_batch_of_all_processes(tmp_path):
    run = make_run(train={"hard_start": "full"})
    whole, local = run.builder(4), run.builder(4, local=range(2, 3))
    assert local.make(5)[0].query_ids.shape == (1, 2)
    batch, _ = whole.make(5)
    dumped = files.read_json(dump_batch(tmp_path, local, 6, {"epoch": 1}))
    assert (dumped["step"], dumped["epoch"]) == (6, 1)
    for name in ("query_ids", "target_ids", "negative_ids"):
        assert dumped[name] == getattr(batch, name).reshape(-1).tolist()
    assert dumped["hard_ids"] == batch.hard_ids.reshape(8, -1).tolist()


def test_a_run_of_two_processes_locks_its_workdir_and_stops_by_one_signal(tmp_path):
    first, second = start_two(tmp_path, "--max_steps=100000")
    wait_until((tmp_path / "checkpoints" / "4").exists, 150)
    other = start(tmp_path, 1)
    output, _ = other.communicate(timeout=100)
    assert other.returncode == 2 and f"in use by process {first.pid}" in output
    # A signal to one process stops both after the current step, which is checkpointed.
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 143, output
    logged = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = max(line["step"] for line in map(json.loads, logged) if "loss" in line)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == last
