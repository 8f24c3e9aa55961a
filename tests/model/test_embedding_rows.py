"""Neighbor embeddings updated by rows: Adam on the rows of a batch, on any number of devices."""

import jax
import numpy as np
import pytest
from small_runs import make_run, random_params, unit_features

from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.distributed.devices import compile_step, make_devices, replicate
from pinsage_jax.model import embedding_rows
from pinsage_jax.model.embedding_rows import updates_by_rows
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.training.state import initial_state, make_optimizer
from pinsage_jax.training.steps import make_train_step

# More ids than nodes of the graph: no batch meets the last ones.
IDS = 60


def trained(kind, devices=1, steps=1, **train):
    """(parameters before, parameters and state of Adam after, ids of the batches)."""
    run = make_run(
        features=unit_features(40),
        links=2,
        train={"hard_start": "full", "embedding_updates": kind, "warmup_epochs": 0.0, **train},
    )
    builder = run.builder(devices)
    model = PinSage(run.model, builder.budgets.rows, IDS)
    params = random_params(run.model, run.inputs.dim, IDS)
    optimizer = make_optimizer(run.train, 4.0)
    step = compile_step(make_train_step(model, run.train, optimizer), devices)
    state = replicate(initial_state(params, optimizer), make_devices(devices))
    met = set()
    for number in range(steps):
        batch, _ = builder.make(number)
        met |= {*batch.node_ids.reshape(-1).tolist()}
        state, metrics = step(state, batch)
    state = jax.tree.map(np.asarray, state)
    return params, state, sorted(met - {-1}), metrics


def table(params):
    return params["params"]["neighbor_embeddings"]


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_the_first_step_without_weight_decay_is_that_of_the_dense_gradient():
    _, dense, met, expected = trained("dense", weight_decay=0.0)
    before, rows, _, metrics = trained("rows", weight_decay=0.0)
    close(rows, dense)
    # The norm that gradients are clipped by, too.
    close(metrics, expected)
    assert np.any(table(rows.params) != table(before)) and len(met) < IDS


def test_rows_that_no_batch_meets_stay_and_others_are_decayed():
    before, rows, met, _ = trained("rows", weight_decay=0.1)
    _, dense, _, _ = trained("dense", weight_decay=0.1)
    close(table(rows.params)[met], table(dense.params)[met])
    others = np.setdiff1d(np.arange(IDS), met)
    assert len(others)
    np.testing.assert_array_equal(table(rows.params)[others], table(before)[others])
    assert np.any(table(dense.params)[others] != table(before)[others])


@pytest.mark.parametrize("devices", [2, 4])
def test_parameters_and_moments_are_the_same_on_several_devices(devices):
    _, one, _, _ = trained("rows", steps=4)
    _, several, _, _ = trained("rows", devices, steps=4)
    close(several, one)


def test_rows_are_chosen_where_the_table_is_large(monkeypatch):
    model = PinSage(ModelConfig(hidden_dim=8), (4, 8), 10)
    for limit, kind, chosen in (
        (80, "auto", False),
        (79, "auto", True),
        (79, "dense", False),
        (80, "rows", True),
    ):
        monkeypatch.setattr(embedding_rows, "MAX_EMBEDDING_NUMBERS", limit)
        assert updates_by_rows(model, TrainConfig(embedding_updates=kind)) == chosen
    assert not updates_by_rows(model.clone(num_ids=0), TrainConfig(embedding_updates="rows"))
