"""Loss and gradients on any number of devices, one trace, schedule, curriculum, optimizer."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest
from small_runs import make_run, random_params, unit_features

from pinsage_jax.batching.blocks import Budgets
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.distributed.devices import (
    assert_is_replicated,
    compile_step,
    make_devices,
    replicate,
)
from pinsage_jax.model.pinsage import PinSage
from pinsage_jax.training.curriculum import (
    Schedule,
    hard_negatives_in,
    hard_slots,
    total_epochs,
    total_steps,
)
from pinsage_jax.training.state import initial_state, learning_rate_schedule, make_optimizer
from pinsage_jax.training.steps import global_gradients, loss_sum, make_train_step

FEATURES = unit_features(40)


def run_for(loss="softmax", **train):
    return make_run(
        features=FEATURES,
        links=2,
        train={"loss": loss, "hard_start": "full", "edge_dropout": 0.2, **train},
    )


def with_uneven_masks(batch, seed=0):
    """Most pairs of the first device masked, few of the others; the same for any cut."""
    shape = batch.pair_weights.shape
    chance = np.linspace(0.9, 0.0, batch.pair_weights.size)
    masked = np.random.default_rng(seed).random(batch.pair_weights.size) < chance
    return batch._replace(
        pair_weights=(batch.pair_weights.reshape(-1) * ~masked).reshape(shape).astype(np.float32)
    )


def loss_and_gradients(run, params, devices, step):
    """Mean loss, count and gradients of one step on `devices` devices."""
    builder = run.builder(devices)
    batch, info = builder.make(step)
    assert info.left_out == 0
    batch = with_uneven_masks(batch)
    model = PinSage(run.model, builder.budgets.rows, num_ids_of(params))

    def function(params, batch, axis_name=None):
        gradients, total, count = global_gradients(params, batch, model, run.train, axis_name)
        return params, {"gradients": gradients, "total": total, "count": count}

    placed = replicate(params, make_devices(devices))
    _, out = compile_step(function, devices, donate=False)(placed, batch)
    return jax.tree.map(np.asarray, out), batch


def num_ids_of(params):
    return len(params["params"].get("neighbor_embeddings", ()))


def assert_trees_close(left, right, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), left, right)


CASES = [("margin", True), ("cross_entropy", False), ("softmax", True)]


@pytest.mark.parametrize("loss,symmetric", CASES)
def test_same_loss_and_gradients_on_1_2_and_4_devices(loss, symmetric):
    run = run_for(loss, symmetric=symmetric, temperature=0.5)
    params = random_params(run.model, run.inputs.dim, run.lists.source.num_nodes)
    step = 11
    one, batch = loss_and_gradients(run, params, 1, step)
    directions = 2 if symmetric else 1
    assert one["count"] == directions * batch.pair_weights.sum()
    assert 0 < batch.pair_weights.sum() < 8
    norm = optax.tree.norm(one["gradients"])
    assert norm > 1e-3
    for devices in (2, 4):
        many, parts = loss_and_gradients(run, params, devices, step)
        counts = parts.pair_weights.sum(axis=1)
        assert counts.min() < counts.max()
        assert many["count"] == one["count"]
        np.testing.assert_allclose(
            many["total"] / many["count"], one["total"] / one["count"], rtol=1e-6, atol=1e-6
        )
        assert_trees_close(many["gradients"], one["gradients"], rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_mean_loss():
    """Finite differences along a random direction."""
    run = run_for("softmax", temperature=0.5)
    params = random_params(run.model, run.inputs.dim)
    out, _ = loss_and_gradients(run, params, 2, 3)
    whole = with_uneven_masks(run.builder(1).make(3)[0])
    part = type(whole)(*(array[0] for array in whole))
    model = PinSage(run.model, run.builder(1).budgets.rows)

    @jax.jit
    def mean(params):
        total, count = loss_sum(params, part, model, run.train, None)
        return total / count

    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    slope = sum(
        float((g * d).sum())
        for g, d in zip(jax.tree.leaves(out["gradients"]), jax.tree.leaves(direction))
    )
    size = 3e-3

    def moved(sign):
        return jax.tree.map(lambda p, d: p + sign * size * d, params, direction)

    measured = float(mean(moved(1)) - mean(moved(-1))) / (2 * size)
    np.testing.assert_allclose(slope, measured, rtol=0.03)


@pytest.mark.parametrize("loss,devices", [("margin", 1), ("cross_entropy", 1), ("softmax", 2)])
def test_padding_does_not_change_loss_and_gradients(loss, devices):
    run = run_for(loss, temperature=0.5)
    params = random_params(run.model, run.inputs.dim, run.lists.source.num_nodes)
    builder = run.builder(devices)
    rows = builder.budgets.rows
    outs = []
    for extra in (0, 37):
        grown = Budgets(tuple(size + extra * (place + 1) for place, size in enumerate(rows)))
        builder = run.builder(devices, budgets=grown)
        model = PinSage(run.model, grown.rows, num_ids_of(params))

        def function(params, batch, axis_name=None, model=model):
            out = global_gradients(params, batch, model, run.train, axis_name)
            return params, out

        placed = replicate(params, make_devices(devices))
        _, out = compile_step(function, devices, donate=False)(placed, builder.make(5)[0])
        outs.append(jax.tree.map(np.asarray, out))
    for other in outs[1:]:
        assert_trees_close(other, outs[0], rtol=1e-5, atol=1e-6)


def test_a_batch_in_which_no_pair_counts_moves_nothing():
    run = run_for(weight_decay=0.0)
    builder = run.builder()
    batch = builder.make(0)[0]
    batch = batch._replace(
        pair_weights=np.zeros_like(batch.pair_weights),
        target_ids=np.full_like(batch.target_ids, -1),
    )
    params = random_params(run.model, run.inputs.dim)
    model = PinSage(run.model, builder.budgets.rows)
    optimizer = make_optimizer(run.train, 10.0)
    step = compile_step(make_train_step(model, run.train, optimizer), 1)
    state = replicate(initial_state(params, optimizer), make_devices(1))
    state, metrics = step(state, batch)
    assert float(metrics["loss_sum"]) == float(metrics["loss_count"]) == 0.0
    assert float(metrics["gradient_norm"]) == 0.0
    assert_trees_close(state.params, params, rtol=0, atol=0)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_step_traces_once_and_learns(devices):
    run = run_for(warmup_epochs=0.0, learning_rate=3.0, batch_size=8, edge_dropout=0.0)
    builder = run.builder(devices)
    params = random_params(run.model, run.inputs.dim, run.lists.source.num_nodes)
    model = PinSage(run.model, builder.budgets.rows, num_ids_of(params))
    optimizer = make_optimizer(run.train, 10.0)
    traced = []
    step = make_train_step(model, run.train, optimizer)

    def counted(state, batch, axis_name=None):
        traced.append(1)
        return step(state, batch, axis_name=axis_name)

    compiled = compile_step(counted, devices)
    state = replicate(initial_state(params, optimizer), make_devices(devices))
    losses = []
    for number in range(12):
        batch, _ = builder.make(number % 2)
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss_sum"] / metrics["loss_count"]))
        if number >= 3:
            assert len(traced) == 1
    assert int(state.step) == 12
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])
    assert_is_replicated(state)


def test_steps_on_1_2_and_4_devices_stay_together():
    run = run_for("margin", margin=0.5)
    params = random_params(run.model, run.inputs.dim, run.lists.source.num_nodes)
    ends = []
    for devices in (1, 2, 4):
        builder = run.builder(devices)
        model = PinSage(run.model, builder.budgets.rows, num_ids_of(params))
        # Adam's first steps are signs of gradients, which rounding can turn; SGD's are not.
        optimizer = optax.sgd(0.1)
        step = compile_step(make_train_step(model, run.train, optimizer), devices)
        state = replicate(initial_state(params, optimizer), make_devices(devices))
        for number in range(4):
            state, _ = step(state, builder.make(number)[0])
        ends.append(jax.tree.map(np.asarray, state.params))
    assert_trees_close(ends[1], ends[0], rtol=1e-4, atol=1e-6)
    assert_trees_close(ends[2], ends[0], rtol=1e-4, atol=1e-6)


# Learning rate, curriculum, optimizer.


@pytest.mark.parametrize("batch_size", [256, 1024, 4096])
@pytest.mark.parametrize("warmup,steps", [(1.0, 50), (0.5, 40), (2.0, 12.5), (0.0, 10)])
def test_learning_rate(batch_size, warmup, steps):
    train = TrainConfig(batch_size=batch_size, warmup_epochs=warmup, learning_rate=1e-3, decay=0.5)
    rate = learning_rate_schedule(train, steps)
    peak = 1e-3 * batch_size / 1024
    last = max(round(warmup * steps), 1)
    for step in range(last):
        np.testing.assert_allclose(rate(step), peak * (step + 1) / last, rtol=1e-5)
    np.testing.assert_allclose(rate(last - 1), peak, rtol=1e-6)
    for epochs in (1, 2, 5):
        step = last - 1 + epochs * steps
        np.testing.assert_allclose(rate(step), peak * 0.5**epochs, rtol=1e-4)
    values = [float(rate(step)) for step in range(int(4 * steps))]
    assert int(np.argmax(values)) == last - 1
    assert min(values) > 0


@pytest.mark.parametrize("warmup,steps", [(1.0, 50), (0.5, 40), (2.0, 12.5), (0.25, 4883.3)])
def test_learning_rate_is_the_schedule_of_optax_up_to_rounding(warmup, steps):
    train = TrainConfig(batch_size=512, warmup_epochs=warmup, decay=0.3)
    peak, last = train.learning_rate / 2, round(warmup * steps)
    expected = optax.schedules.warmup_exponential_decay_schedule(
        peak / last, peak, last - 1, steps, train.decay
    )
    numbers = np.arange(2000)
    rates = jax.vmap(learning_rate_schedule(train, steps))(numbers)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(rates, jax.vmap(expected)(numbers), rtol=1e-3)


def test_without_decay_the_rate_stays():
    rate = learning_rate_schedule(TrainConfig(decay=1.0, batch_size=1024, learning_rate=2e-3), 10)
    np.testing.assert_allclose([rate(9), rate(50), rate(5000)], 2e-3, rtol=1e-6)


CURRICULA = [
    ("curriculum", 6, [0, 1, 2, 3, 4, 5, 6, 6, 6]),
    ("curriculum", 2, [0, 1, 2, 2, 2, 2, 2, 2, 2]),
    ("curriculum", 0, [0] * 9),
    ("full", 3, [3] * 9),
    ("none", 3, [0] * 9),
]


@pytest.mark.parametrize("start,most,expected", CURRICULA)
def test_curriculum(start, most, expected):
    """Epochs count from 0: the paper's epoch n, from 1, has n - 1 hard negatives."""
    train = TrainConfig(hard_start=start, hard_max=most)
    assert [hard_negatives_in(epoch, train) for epoch in range(9)] == expected
    for epochs, last in ((1.0, 0), (2.0, 1), (2.5, 2), (9.0, 8), (0.5, 0)):
        train = TrainConfig(hard_start=start, hard_max=most, epochs=epochs, batch_size=100)
        assert hard_slots(train, 1000) == expected[last]


@pytest.mark.parametrize("start,most,expected", CURRICULA)
def test_the_number_of_steps_takes_the_place_of_epochs_in_the_curriculum_too(start, most, expected):
    for steps, last in ((1, 0), (10, 0), (11, 1), (15, 1), (81, 8)):
        train = TrainConfig(
            hard_start=start, hard_max=most, epochs=3.0, max_steps=steps, batch_size=100
        )
        assert Schedule.from_config(train, 1000).total == total_steps(train, 1000) == steps
        assert total_epochs(train, 1000) == steps / 10
        # A shorter run can be continued to three epochs, with the same shapes.
        assert hard_slots(train, 1000) == expected[max(last, 2)]


@pytest.mark.parametrize("pairs", [1, 40, 49, 51, 99, 100, 101, 104, 107, 149, 151, 1000])
@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.0, 3.0, 10.0])
def test_a_run_validates_once_an_epoch_and_at_its_end(pairs, epochs):
    train = TrainConfig(epochs=epochs, batch_size=10)
    schedule = Schedule.from_config(train, pairs)
    steps = range(1, schedule.total + 1)
    found = [step for step in steps if schedule.validates_after(step)]
    # The steps in which an epoch's last pair is; the run ends with the last one.
    assert schedule.total == max(math.ceil(epochs * pairs / 10), 1)
    ends = {-(-pairs * epoch // 10) for epoch in range(1, int(epochs) + 1)}
    assert found == sorted(ends | {schedule.total})
    assert schedule.validations == len(found)
    assert [step for step in steps if schedule.saves_after(step)] == found
    every = dataclasses.replace(train, validate_every=3, checkpoint_every=4)
    schedule = Schedule.from_config(every, pairs)
    found = [step for step in steps if schedule.validates_after(step)]
    assert found == [step for step in steps if step % 3 == 0 or step == schedule.total]
    assert schedule.validations == len(found)
    saves = [step for step in steps if schedule.saves_after(step)]
    assert saves == [step for step in steps if step % 4 == 0 or step == schedule.total]


def test_epochs_that_end_with_a_batch_have_no_step_more():
    # 1.1 * 10 is above 11 in float64.
    train = TrainConfig(epochs=10.0, batch_size=10)
    assert total_steps(train, 11) == 11


def test_more_steps_than_epochs_get_all_their_hard_negatives():
    run = make_run(train={"hard_max": 3, "epochs": 1.0, "max_steps": 500, "batch_size": 4})
    batch, _ = run.builder().make(499)
    assert run.pairs.epoch_of(499 * 4) >= 3
    assert batch.hard_ids.shape[-1] == 3


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_biases_do_not_decay(clip):
    train = TrainConfig(weight_decay=0.5, learning_rate=0.1, batch_size=1024, clip_norm=clip)
    optimizer = make_optimizer(train, 1.0)
    params = {"kernel": np.full((3, 2), 2.0, np.float32), "bias": np.full(2, 2.0, np.float32)}
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert not np.asarray(updates["bias"]).any()
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-5)


def test_long_gradients_are_scaled_down():
    params = {"kernel": np.zeros((2, 2), np.float32)}
    steps = {}
    for clip in (0.0, 1.0):
        train = TrainConfig(clip_norm=clip, weight_decay=0.0, batch_size=1024, warmup_epochs=0.0)
        optimizer = make_optimizer(train, 1e9)
        state, total = optimizer.init(params), 0.0
        # Adam forgets the length of a single gradient, not the ratio of two.
        for size in (1.0, 100.0):
            gradient = {"kernel": np.full((2, 2), size, np.float32)}
            updates, state = optimizer.update(gradient, state, params)
            total = float(np.asarray(updates["kernel"])[0, 0])
        steps[clip] = total
    assert abs(steps[0.0] - steps[1.0]) > 0.01 * abs(steps[0.0])
