"""Inputs read from a table on the device: the bits of the host's gather."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import make_run, nasty_graph, pairs_of, random_params, unit_features

from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.cpu import ops
from pinsage_jax.distributed.devices import (
    all_gather_if,
    compile_step,
    make_devices,
    place_batch,
    replicate,
)
from pinsage_jax.distributed.owned_rows import (
    all_parts,
    owned_by,
    part_size,
    places,
    read_owned,
)
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.sampling.spectral import SpectralFeatures
from pinsage_jax.training import device_inputs
from pinsage_jax.training.device_inputs import (
    projects_table,
    read_inputs,
    table_arguments,
    table_form,
)
from pinsage_jax.training.state import initial_state, make_optimizer
from pinsage_jax.training.steps import global_gradients, make_train_step

CASES = {
    "everything": {},
    "neighbor masked": {"train_pairs": pairs_of(make_run())},
    "nothing masked": {"masked": False},
    "collections too": {"sampling": {"neighborhood": "all"}},
    "one layer": {"model": {"num_layers": 1}},
    "no mark": {"model": {"isolated_feature": False}},
}
SMALL = ("bfloat16", "int8")


def run_with_every_column(spectral=True, features=True, **settings):
    """A run whose inputs have every kind of column, over the nasty graph."""
    graph = nasty_graph()
    made = unit_features(40) if features else np.zeros((40, 0), np.float32)
    train = {"hard_start": "full", "edge_dropout": 0.3, **settings.pop("train", {})}
    run = make_run(graph, features=made, links=2, train=train, **settings)
    bases = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32)
    inputs = NodeInputs(
        made,
        graph.degree(),
        isolated_feature=run.model.isolated_feature,
        node_type=run.sampling.neighborhood == "all",
        whiten=0.5,
        spectral=SpectralFeatures(graph, bases) if spectral else None,
    )
    return dataclasses.replace(run, inputs=inputs)


@pytest.mark.parametrize("spectral,features", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("case", CASES)
def test_rows_have_the_bits_of_the_hosts_gather(case, spectral, features):
    run = run_with_every_column(spectral, features, **CASES[case])
    host = run.builder()
    device = run.builder(budgets=host.budgets, table=True)
    table = device.inputs.table()
    assert table.nbytes == run.inputs.table_bytes
    read = jax.jit(read_inputs)
    dropout = masked = 0
    for step in range(6):
        whole, info = host.make(step)
        parts, _ = device.make(step)
        rows = np.asarray(read(jax.tree.map(lambda leaf: leaf[0], parts), table))
        real = whole.node_ids[0] >= 0
        np.testing.assert_array_equal(
            rows[real].view(np.int32), whole.features[0][real].view(np.int32)
        )
        for name in set(whole._fields) - {"features", "spectral_features", "has_spectral"}:
            np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
        dropout += info.edge_dropout_share
        if spectral:
            unmasked = table[np.maximum(whole.node_ids[0], 0)][real]
            masked += np.any(unmasked != rows[real])
    assert dropout > 0
    assert masked or not spectral


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rows_in_fewer_bits_are_near_those_of_float32(dtype):
    run = run_with_every_column(train={"device_features_dtype": dtype})
    builder = run.builder(table=True)
    whole = builder.inputs.table()
    (table,) = table_arguments(builder, run.train, make_devices(1))
    batch = jax.tree.map(lambda leaf: leaf[0], builder.make(2)[0])
    rows = np.asarray(jax.jit(read_inputs)(batch, table))
    exact = np.asarray(read_inputs(batch, whole))
    assert rows.dtype == np.float32 and np.any(rows != exact)
    # What a batch brings keeps all its bits, and a column without numbers stays zero.
    width, first = batch.spectral_features.shape[1], len(batch.spectral_features)
    np.testing.assert_array_equal(rows[:, -2:], exact[:, -2:])
    np.testing.assert_array_equal(rows[:first, -2 - width :], exact[:first, -2 - width :])
    if dtype == "bfloat16":
        error = 2.0**-8 * np.abs(exact)
        assert table.dtype == "bfloat16" and table.nbytes == whole.nbytes // 2
    else:
        largest = np.abs(whole).max(axis=0)
        error = np.broadcast_to(largest / 254 * 1.001, exact.shape)
        assert table.codes.dtype == np.int8 and table.codes.nbytes == whole.nbytes // 4
        assert np.abs(table.codes[:, largest > 0]).max(axis=0).min() == 127
    assert (np.abs(rows - exact) <= error).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("own", [range(0, 1), range(1, 3)])
def test_a_process_makes_its_own_parts_alone_and_in_blocks(own, dtype, monkeypatch):
    inputs = run_with_every_column().inputs
    whole, read = inputs.table(), []
    monkeypatch.setattr(device_inputs, "_BLOCK_BYTES", 4 * 7 * inputs.dim)
    original = type(inputs).table
    monkeypatch.setattr(
        type(inputs), "table", lambda self, nodes: read.append(nodes) or original(self, nodes)
    )
    parts = device_inputs.stored_parts(inputs, dtype, 3, own)
    owned = [owned_by(device, len(whole), 3) for device in own]
    assert {row for rows in read for row in rows} == {row for rows in owned for row in rows}
    assert max(map(len, read)) == 7
    codes = parts.codes if dtype == "int8" else parts
    assert codes.shape == (len(own), part_size(len(whole), 3), inputs.dim)
    for number, rows in enumerate(owned):
        found = np.asarray(codes[number], np.float32)
        if dtype == "int8":
            found = found * parts.scale[number]
        assert not found[len(rows) :].any()
        error = {"float32": 0, "bfloat16": 2.0**-8, "int8": 1 / 250}[dtype]
        largest = np.abs(whole[np.concatenate(owned)]).max(axis=0)
        assert (np.abs(found[: len(rows)] - whole[rows]) <= error * largest).all()


@pytest.mark.parametrize("dtype,size", [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_auto_goes_by_the_size_in_its_type(dtype, size, monkeypatch):
    run = run_with_every_column()
    needed = run.inputs.table_bytes // 4 * size
    train = TrainConfig(device_features_dtype=dtype)
    for room in (needed - 1, needed):
        monkeypatch.setattr(device_inputs, "max_table_bytes", lambda devices: room)  # noqa: B023
        assert table_form(train, run.inputs) == ("whole" if room == needed else "none")


def trained(run, devices, table, steps=4):
    builder = run.builder(devices, table=table)
    model = PinSage(run.model, builder.budgets.rows)
    params = random_params(run.model, run.inputs.dim)
    optimizer = make_optimizer(run.train, 4.0)
    constants = table_arguments(builder, run.train, make_devices(devices))
    assert len(constants) == int(table is not False)
    traces = []

    def counted(*arguments, **named):
        traces.append(1)
        return make_train_step(model, run.train, optimizer)(*arguments, **named)

    split = builder.spec.table_is_split
    step = compile_step(counted, devices, constants=len(constants), split=split)
    state = replicate(initial_state(params, optimizer), make_devices(devices))
    for number in range(steps):
        batch, info = builder.make(number)
        assert info.left_out == 0
        state, _ = step(state, batch, *constants)
    assert len(traces) == 1
    return jax.tree.map(np.asarray, state.params)


def test_same_parameters_with_and_without_it_on_1_2_and_4_devices():
    run = run_with_every_column()
    expected = trained(run, 1, table=False)
    for devices in (1, 2, 4):
        found = trained(run, devices, table=True)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, found
        )
    rough = trained(run_with_every_column(train={"device_features_dtype": "int8"}), 2, table=True)
    moved, apart = (
        np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, pair))))
        for pair in ((expected, random_params(run.model, run.inputs.dim)), (expected, rough))
    )
    assert 0 < apart < 0.1 * moved


@pytest.fixture
def plain_operations():
    ops.choose_kernels("off")
    yield
    ops.choose_kernels("auto")


@pytest.mark.parametrize(
    "case,dtype", [*((case, "float32") for case in CASES), *(("everything", t) for t in SMALL)]
)
def test_gradients_with_the_table_projected_are_those_with_rows(
    case, dtype, plain_operations, monkeypatch
):
    settings = {**CASES[case], "train": {"device_features_dtype": dtype}}
    run = run_with_every_column(**settings)
    builder = run.builder(table=True)
    model = PinSage(run.model, builder.budgets.rows, builder.num_nodes)
    params = random_params(run.model, run.inputs.dim, builder.num_nodes)
    (table,) = table_arguments(builder, run.train, make_devices(1))
    batch = jax.tree.map(lambda leaf: leaf[0], builder.make(1)[0])
    found = []
    for chosen in (False, True):
        monkeypatch.setattr(device_inputs, "projects_table", lambda *_, c=chosen: c)
        gradients = jax.jit(global_gradients, static_argnums=(2, 3, 4))
        found.append(gradients(params, batch, model, run.train, None, table))
    assert np.any(found[0][0]["params"]["projections_0"]["Q"]["kernel"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), *found)


def test_the_table_is_projected_where_it_has_fewer_rows_than_the_frontier(plain_operations):
    run = run_with_every_column()
    builder = run.builder(table=True)
    batch = jax.tree.map(lambda leaf: leaf[0], builder.make(1)[0])
    *_, before, last = builder.budgets.rows
    later = last - len(batch.spectral_features)
    assert projects_table(later, batch, (before, last))
    assert not projects_table(later + 1, batch, (before, last))
    assert not projects_table(later, batch, (last,))
    # Steps of the kernels for CPUs have the same bits with a table and without.
    ops.choose_kernels("on")
    assert not projects_table(later, batch, (before, last))


@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
@pytest.mark.parametrize("devices", [2, 4])
def test_rows_of_a_table_that_devices_share_are_those_of_the_whole_one(
    devices, mapping, small_rng, monkeypatch
):
    monkeypatch.setattr("pinsage_jax.distributed.devices.MAPPING", mapping)
    table = small_rng.normal(size=(41, 3)).astype(np.float32)
    wanted = small_rng.integers(-1, 41, (devices, 30)).astype(np.int32)
    # All of one owner, so that there are more rounds than usual; and none.
    wanted[0] = devices * small_rng.integers(0, 8, 30)
    wanted[1] = -1

    def step(state, rows, part, axis_name=None):
        found = read_owned(part, rows, axis_name)
        every = all_parts(part)[places(rows, len(part), axis_name)]
        return state, all_gather_if((found[None], every[None]), axis_name)

    run = compile_step(step, devices, donate=False, constants=1, split=True)
    parts = np.zeros((devices, part_size(len(table), devices), 3), np.float32)
    for device in range(devices):
        rows = owned_by(device, len(table), devices)
        parts[device, : len(rows)] = table[rows]
    part = place_batch(parts, make_devices(devices))
    _, (found, every) = run(replicate({}, make_devices(devices)), wanted, part)
    expected = np.where((wanted >= 0)[..., None], table[wanted], 0)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.where((wanted >= 0)[..., None], every, 0), expected)


@pytest.mark.parametrize("projected", [False, True])
def test_same_parameters_with_a_shared_table(projected, monkeypatch):
    run = run_with_every_column()
    expected = trained(run, 1, table=False)
    monkeypatch.setattr(device_inputs, "projects_table", lambda *_: projected)
    for devices in (2, 4):
        found = trained(run, devices, table="split")
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), expected, found
        )


def test_on_accelerators_devices_share_what_is_too_large_for_each(monkeypatch):
    run = run_with_every_column()
    size, count = run.inputs.table_bytes, len(make_devices())
    assert count > 1
    for backend, memory, form in (
        ("cpu", size - 1, "none"),
        ("gpu", size, "whole"),
        ("gpu", size - 1, "split"),
        ("gpu", -(-size // count) - 1, "none"),
    ):
        monkeypatch.setattr(jax, "default_backend", lambda b=backend: b)
        monkeypatch.setattr(device_inputs, "max_table_bytes", lambda _, m=memory: m)
        assert table_form(TrainConfig(), run.inputs) == form


def test_auto_goes_by_size():
    run = run_with_every_column()
    assert table_form(TrainConfig(), run.inputs) == "whole"
    assert table_form(TrainConfig(device_features="off"), run.inputs) == "none"

    class Huge(NodeInputs):
        table_bytes = 2**60

    inputs = Huge(np.zeros((4, 2), np.float32), np.zeros(6, np.int32))
    assert table_form(TrainConfig(), inputs) == "none"
    assert table_form(TrainConfig(device_features="on"), inputs) == "whole"
    assert table_form(TrainConfig(device_features="split"), inputs) == "split"


def test_nothing_to_keep():
    inputs = NodeInputs(np.zeros((4, 0), np.float32), np.zeros(6, np.int32))
    for wanted in ("auto", "on", "off"):
        assert table_form(TrainConfig(device_features=wanted), inputs) == "none"
