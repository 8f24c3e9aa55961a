"""Inputs read from a table on the device: the bits of the host's gather."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import make_run, nasty_graph, pairs_of, random_params, unit_features

from pinsage_jax.batching.inputs import NodeInputs
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.distributed.devices import compile_step, make_devices, replicate
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.sampling.spectral import SpectralFeatures
from pinsage_jax.training import device_inputs
from pinsage_jax.training.device_inputs import keeps_table, read_inputs, replicated_table
from pinsage_jax.training.state import initial_state, make_optimizer
from pinsage_jax.training.steps import make_train_step

CASES = {
    "everything": {},
    "neighbor masked": {"train_pairs": pairs_of(make_run())},
    "nothing masked": {"masked": False},
    "collections too": {"sampling": {"neighborhood": "all"}},
    "one layer": {"model": {"num_layers": 1}},
    "no mark": {"model": {"isolated_feature": False}},
}


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
    table = device.table()
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
    whole = builder.table()
    (table,) = replicated_table(builder, run.train, make_devices(1))
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


@pytest.mark.parametrize("dtype,size", [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_auto_goes_by_the_size_in_its_type(dtype, size, monkeypatch):
    run = run_with_every_column()
    needed = run.inputs.table_bytes // 4 * size
    train = TrainConfig(device_features_dtype=dtype)
    for room in (needed - 1, needed):
        monkeypatch.setattr(device_inputs, "max_table_bytes", lambda devices: room)  # noqa: B023
        assert keeps_table(train, run.inputs) == (room == needed)


def trained(run, devices, table, steps=4):
    builder = run.builder(devices, table=table)
    model = PinSage(run.model, builder.budgets.rows)
    params = random_params(run.model, run.inputs.dim)
    optimizer = make_optimizer(run.train, 4.0)
    constants = replicated_table(builder, run.train, make_devices(devices))
    assert len(constants) == int(table)
    traces = []

    def counted(*arguments, **named):
        traces.append(1)
        return make_train_step(model, run.train, optimizer)(*arguments, **named)

    step = compile_step(counted, devices, constants=len(constants))
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


def test_auto_goes_by_size():
    run = run_with_every_column()
    assert keeps_table(TrainConfig(), run.inputs)
    assert not keeps_table(TrainConfig(device_features="off"), run.inputs)

    class Huge(NodeInputs):
        table_bytes = 2**60

    inputs = Huge(np.zeros((4, 2), np.float32), np.zeros(6, np.int32))
    assert not keeps_table(TrainConfig(), inputs)
    assert keeps_table(TrainConfig(device_features="on"), inputs)


def test_nothing_to_keep():
    inputs = NodeInputs(np.zeros((4, 0), np.float32), np.zeros(6, np.int32))
    for wanted in ("auto", "on", "off"):
        assert not keeps_table(TrainConfig(device_features=wanted), inputs)
