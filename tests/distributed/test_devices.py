"""devices: a step computes the same values on 1, 2 and 4 devices and is traced once."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed import devices as device_lib

pytestmark = pytest.mark.timeout(120)

DEVICES = [1, 2, 4]
ROWS, WIDTH = 8, 5


def initial_state(rng):
    return {
        "params": {"w": rng.normal(size=(WIDTH, 3)).astype(np.float32), "b": np.zeros(3)},
        "step": 0,  # a Python number is weakly typed in JAX
        "empty": optax.EmptyState(),
    }


def uneven_batch(rng, devices):
    """ROWS pairs over `devices`; the devices have different numbers of masked rows."""
    mask = np.ones(ROWS, np.float32)
    mask[[0, 5]] = 0.0
    batch = {
        "x": rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "y": rng.normal(size=(ROWS, 3)).astype(np.float32),
        "mask": mask,
    }
    return jax.tree.map(lambda a: a.reshape(devices, ROWS // devices, *a.shape[1:]), batch)


def make_step(traces=None, forget_psum=False):
    """Least squares, plus a term that couples all rows of the global batch."""

    def step(state, batch, axis_name=None):
        if traces is not None:
            traces.append(axis_name)
        count = device_lib.psum_if(batch["mask"].sum(), axis_name)

        def local_loss(params):
            out = batch["x"] @ params["w"] + params["b"][None, :]
            error = ((out - batch["y"]) ** 2).sum(axis=1)
            gathered = device_lib.all_gather_if(out, axis_name)  # [ROWS, 3] on every device
            coupled = jax.nn.logsumexp(out @ gathered.T, axis=1)
            return (batch["mask"] * (error + coupled)).sum() / count

        loss, grads = jax.value_and_grad(local_loss)(state["params"])
        if not forget_psum:
            grads = device_lib.psum_if(grads, axis_name)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, state["params"], grads)
        new = {"params": params, "step": state["step"] + 1, "empty": state["empty"]}
        return new, {"loss": device_lib.psum_if(loss, axis_name), "count": count}

    return step


def reference(state, batches):
    """The same steps in float64 NumPy on the whole batch, with the gradient derived by hand."""
    w, b = (np.asarray(state["params"][name], np.float64) for name in ("w", "b"))
    losses = []
    for batch in batches:
        x, y, mask = (
            np.asarray(batch[name], np.float64).reshape(ROWS, -1) for name in ("x", "y", "mask")
        )
        share = mask[:, 0] / mask.sum()
        out = x @ w + b
        scores = np.exp(out @ out.T)
        chance = scores / scores.sum(axis=1, keepdims=True)
        losses.append((share * (((out - y) ** 2).sum(axis=1) + np.log(scores.sum(axis=1)))).sum())
        weighted = share[:, None] * chance
        slope = 2 * share[:, None] * (out - y) + weighted @ out + weighted.T @ out
        w, b = w - 0.05 * x.T @ slope, b - 0.05 * slope.sum(axis=0)
    return w, b, losses


@pytest.mark.parametrize("place", [False, True])
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("count", DEVICES)
def test_a_step_equals_the_reference_on_any_number_of_devices(small_rng, count, donate, place):
    traces = []
    devices = device_lib.make_devices(count)
    host_state = initial_state(small_rng)
    batches = [uneven_batch(small_rng, count) for _ in range(4)]
    w, b, losses = reference(host_state, batches)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "donated buffers were not usable"
        state = device_lib.replicate(host_state, devices)
        step = device_lib.compile_step(make_step(traces), count, donate=donate)
        for number, batch in enumerate(batches):
            old = state
            state, metrics = step(state, device_lib.place_batch(batch, devices) if place else batch)
            assert old["params"]["w"].is_deleted() == donate
            assert metrics["loss"].shape == ()
            np.testing.assert_allclose(metrics["loss"], losses[number], rtol=1e-5)
            assert metrics["count"] == ROWS - 2
            device_lib.assert_is_replicated((state, metrics))

    assert traces == [None if count == 1 else device_lib.AXIS_NAME]
    np.testing.assert_allclose(state["params"]["w"], w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state["params"]["b"], b, rtol=1e-5, atol=1e-5)
    assert state["params"]["w"].shape == (WIDTH, 3)
    assert int(state["step"]) == 4
    assert len(state["step"].sharding.device_set) == count


@pytest.mark.parametrize("count", DEVICES)
def test_a_restored_host_state_continues_bit_for_bit_without_a_new_trace(small_rng, count):
    traces = []
    devices = device_lib.make_devices(count)
    batches = [uneven_batch(small_rng, count) for _ in range(4)]
    step = device_lib.compile_step(make_step(traces), count)
    state = device_lib.replicate(initial_state(small_rng), devices)
    for number, batch in enumerate(batches):
        if number == 2:
            saved = jax.device_get(state)
        state, _ = step(state, batch)
    again = device_lib.replicate(saved, devices)
    for batch in batches[2:]:
        again, _ = step(again, batch)
    assert len(traces) == 1
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("count", DEVICES)
def test_donation_leaves_the_arguments_of_replicate_unchanged(count):
    devices = device_lib.make_devices(count)
    # Large arrays, whose memory device_put would share.
    host = np.arange(1 << 16, dtype=np.float32)
    on_device = jax.device_put(np.arange(1 << 16, dtype=np.float32), devices[0])

    def double(state, batch, axis_name=None):
        return jax.tree.map(lambda leaf: leaf * 2, state), {}

    step = device_lib.compile_step(double, count)
    state = device_lib.replicate({"host": host, "device": on_device, "twice": on_device}, devices)
    for name in ("device", "twice"):
        for shard in state[name].addressable_shards:
            assert shard.data.unsafe_buffer_pointer() != on_device.unsafe_buffer_pointer()
    host[:] = -1.0
    for _ in range(2):
        state, _ = step(state, {"x": np.zeros((count, 1), np.float32)})
    expected = np.arange(1 << 16, dtype=np.float32)
    np.testing.assert_array_equal(host, -1.0)
    np.testing.assert_array_equal(state["host"], expected * 4)
    np.testing.assert_array_equal(on_device, expected)
    np.testing.assert_array_equal(state["twice"], expected * 4)


def test_replicate_keeps_dtypes_and_makes_weak_types_strong():
    tree = {"bf": jnp.ones(3, jnp.bfloat16), "f": 1.5, "i": 2, "weak": jnp.asarray(1.0)}
    for count in DEVICES:
        placed = device_lib.replicate(tree, device_lib.make_devices(count))
        assert {name: str(leaf.dtype) for name, leaf in placed.items()} == {
            "bf": "bfloat16",
            "f": "float32",
            "i": "int32",
            "weak": "float32",
        }
        assert not any(leaf.weak_type for leaf in placed.values())


@pytest.mark.parametrize("count", DEVICES)
def test_rows_reach_their_device_in_order(count):
    def step(state, batch, axis_name=None):
        local = batch["row"] * 10 + device_lib.axis_index_or_zero(axis_name)
        return state, {
            "all": device_lib.all_gather_if(local, axis_name),
            "sum": device_lib.psum_if({"rows": batch["row"]}, axis_name),
        }

    state = device_lib.replicate({"s": 0}, device_lib.make_devices(count))
    rows = np.arange(2 * count, dtype=np.int32).reshape(count, 2)
    _, metrics = device_lib.compile_step(step, count)(state, {"row": rows})
    expected = [int(row) * 10 + device for device in range(count) for row in rows[device]]
    assert metrics["all"].tolist() == expected
    assert metrics["sum"]["rows"].tolist() == rows.sum(axis=0).tolist()


@pytest.mark.parametrize("count", DEVICES)
def test_arrays_without_elements_are_read_and_returned(count):
    def step(state, batch, table, axis_name=None):
        assert batch["none"].shape == (2, 0) and table.shape == (0, 3)
        joined = jnp.concatenate([batch["x"], batch["none"]], axis=1)
        total = device_lib.psum_if(joined.sum() + table.sum(), axis_name)
        return {"w": state["w"] + total, "none": state["none"] * 2}, {"total": total}

    devices = device_lib.make_devices(count)
    host = {"w": np.ones(4, np.float32), "none": np.zeros((4, 0), jnp.bfloat16)}
    batch = {
        "x": np.arange(6 * count, dtype=np.float32).reshape(count, 2, 3),
        "none": np.zeros((count, 2, 0), np.float32),
    }
    table = device_lib.replicate(np.zeros((0, 3), np.float32), devices)
    run = device_lib.compile_step(step, count, constants=1)
    state = device_lib.replicate(host, devices)
    for made in (batch, device_lib.place_batch(batch, devices)):
        state, metrics = run(state, made, table)
        assert metrics["total"] == batch["x"].sum()
    np.testing.assert_array_equal(state["w"], 1.0 + 2 * batch["x"].sum())
    assert state["none"].shape == (4, 0) and state["none"].dtype == jnp.bfloat16
    device_lib.assert_is_replicated(state)
    if count > 1:
        # A compiler crashes on them, if they are arguments over several devices.
        ahead = device_lib.compile_ahead(step, devices, host, batch, table)
        assert {a.shape for a in jax.tree.leaves(ahead.args_info)} == {(4,), (count, 2, 3)}


def test_assert_is_replicated_finds_a_missing_psum():
    rng = np.random.default_rng(0)
    step = device_lib.compile_step(make_step(forget_psum=True), 4)
    state = device_lib.replicate(initial_state(rng), device_lib.make_devices(4))
    device_lib.assert_is_replicated(state)
    state, _ = step(state, uneven_batch(rng, 4))
    with pytest.raises(AssertionError, match=r"\['params'\]\['b'\] on device 1 differs"):
        device_lib.assert_is_replicated(state)


def test_assert_is_replicated_rejects_split_arrays_and_accepts_nan():
    devices = device_lib.make_devices(2)
    device_lib.assert_is_replicated(
        device_lib.replicate({"nan": np.array([np.nan, -0.0])}, devices)
    )
    split = device_lib.place_batch({"rows": np.zeros((2, 3))}, devices)
    with pytest.raises(AssertionError, match=r"\['rows'\] is split over devices"):
        device_lib.assert_is_replicated(split)


def test_make_devices_returns_the_first_local_devices():
    assert device_lib.device_count() == 4
    assert len(device_lib.make_devices()) == 4
    assert device_lib.make_devices(2) == tuple(jax.local_devices()[:2])
    with pytest.raises(UserError, match="--devices=5 is more than the 4"):
        device_lib.make_devices(5)


@pytest.mark.parametrize("count", DEVICES)
@pytest.mark.parametrize("leaf", [np.zeros((3, 2)), np.float32(1.0)])
def test_a_batch_without_the_device_axis_raises(count, leaf):
    step = device_lib.compile_step(make_step(), count)
    message = rf"batch\['x'\] has shape .* must be the {count} devices"
    with pytest.raises(ValueError, match=message):
        step({}, {"x": leaf})
    with pytest.raises(ValueError, match=message):
        device_lib.place_batch({"x": leaf}, device_lib.make_devices(count))
