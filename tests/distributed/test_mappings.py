"""devices: the step under jit of shard_map computes the bits of the step under pmap."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_runs import make_run, random_params, unit_features

from pinsage_jax.distributed import devices as device_lib
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.training.state import initial_state, make_optimizer
from pinsage_jax.training.steps import make_train_step

pytestmark = pytest.mark.timeout(120)

ROOT = pathlib.Path(__file__).parents[2]


def trained(count, mapping, monkeypatch, place):
    """State and metrics of two steps on `count` devices, and how often the step was traced."""
    monkeypatch.setattr(device_lib, "MAPPING", mapping)
    run = make_run(
        features=unit_features(40),
        links=2,
        model={"num_layers": 1},
        train={"hard_start": "full", "edge_dropout": 0.2},
    )
    builder = run.builder(count)
    params = random_params(run.model, run.inputs.dim, run.lists.source.num_nodes)
    model = PinSage(run.model, builder.budgets.rows, len(params["params"]["neighbor_embeddings"]))
    optimizer = make_optimizer(run.train, 10.0)
    traced = []
    inner = make_train_step(model, run.train, optimizer)

    def step(state, batch, axis_name=None):
        traced.append(axis_name)
        return inner(state, batch, axis_name=axis_name)

    devices = device_lib.make_devices(count)
    compiled = device_lib.compile_step(step, count)
    state = device_lib.replicate(initial_state(params, optimizer), devices)
    for number in range(2):
        old, (batch, _) = state, builder.make(11 + number)
        batch = device_lib.place_batch(batch, devices) if place else batch
        state, metrics = compiled(state, batch)
        assert jax.tree.leaves(old.params)[0].is_deleted()
    device_lib.assert_is_replicated((state, metrics))
    return state, metrics, traced


@pytest.mark.parametrize("count,place", [(2, False), (4, True)])
def test_shard_map_computes_the_bits_of_pmap(count, place, monkeypatch):
    state, metrics, traced = trained(count, "pmap", monkeypatch, place)
    again = trained(count, "shard_map", monkeypatch, place)
    assert traced == again[2] == [device_lib.AXIS_NAME]
    assert metrics["loss_count"] > 0
    ours, theirs = jax.tree.leaves((state, metrics)), jax.tree.leaves(again[:2])
    assert len(ours) == len(theirs) > 10
    for one, other in zip(ours, theirs, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_a_program_of_shard_map_is_compiled_ahead_with_its_collectives(monkeypatch):
    def step(state, batch, axis_name=None):
        total = device_lib.psum_if(batch["x"].sum() + batch["none"].sum(), axis_name)
        return state + total, {"total": total}

    devices = device_lib.make_devices(4)
    batch = {"x": np.ones((4, 3), np.float32), "none": np.ones((4, 0), np.float32)}
    for mapping in ("pmap", "shard_map"):
        monkeypatch.setattr(device_lib, "MAPPING", mapping)
        program = device_lib.compile_ahead(step, devices, np.float32(1), batch)
        assert program.as_text().count(" all-reduce(") == 1


# Two processes with two devices each take the same two steps as one process with four.
PROCESS = """
import sys
import numpy as np, jax
from pinsage_jax.config.distributed import DistributedConfig
from pinsage_jax.distributed import devices, joining, process_group

index, count, address, devices.MAPPING = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5]
config = DistributedConfig(address if count > 1 else "", count, index)

def step(state, batch, axis_name=None):
    rows = devices.all_gather_if(batch["x"] * state["w"], axis_name)
    return {"w": state["w"] + devices.psum_if(batch["x"].sum(0), axis_name)}, {"rows": rows}

with process_group.joined(config, {"workdir": sys.argv[5]}) as group:
    joining.connect()
    mine = devices.make_devices()
    state = devices.replicate({"w": np.ones(3, np.float32)}, mine)
    run = devices.compile_step(step, len(mine))
    for number in range(2):
        x = np.arange(12, dtype=np.float32).reshape(4, 1, 3) + number
        first = index * len(mine)
        state, metrics = run(state, {"x": x[first : first + len(mine)]})
    devices.assert_is_replicated((state, metrics))
    print("RESULT", np.asarray(state["w"]).tolist(), np.asarray(metrics["rows"]).tolist())
    group.barrier_exit(0)
"""


def started(index, count, address, mapping, folder):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_NUM_CPU_DEVICES=str(4 // count))
    environment.pop("XLA_FLAGS", None)
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(index), str(count), address, mapping, folder],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_two_processes_under_shard_map_equal_one(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    running = [started(0, 1, address, "pmap", str(tmp_path))]
    running += [started(index, 2, address, "shard_map", str(tmp_path)) for index in range(2)]
    results = []
    for process in running:
        printed = process.communicate(timeout=100)[0]
        lines = [line for line in printed.splitlines() if line.startswith("RESULT")]
        assert process.returncode == 0 and len(lines) == 1, printed
        results += lines
    # w = 1 + the sums over both steps of four rows 0, 3, 6, 9 and their neighbors.
    assert results[0].startswith("RESULT [41.0, 49.0, 57.0] ")
    assert results == [results[0]] * 3
