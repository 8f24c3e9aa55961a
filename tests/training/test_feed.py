"""Batches placed ahead: the bits and order of those that are not. Steps that are recorded."""

import contextlib
import threading

import jax
import numpy as np
import pytest
from small_runs import make_run, unit_features

from pinsage_jax.batching.blocks import Minibatch
from pinsage_jax.batching.prefetch import Prefetcher
from pinsage_jax.config.settings import Config
from pinsage_jax.config.training import TrainConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed.devices import compile_step, make_devices, replicate
from pinsage_jax.training import feed
from pinsage_jax.training.log import StepTrace

pytestmark = pytest.mark.timeout(120)


def batches_of(count):
    run = make_run(features=unit_features(40), links=2, train={"hard_start": "full"})
    builder = run.builder(count)
    return lambda step: builder.make(step)


def leaves(batch):
    """Name -> (dtype, shape, bytes) of every leaf, also of one without elements."""
    made = {name: np.asarray(leaf) for name, leaf in batch._asdict().items() if leaf is not None}
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in made.items()}


@pytest.mark.parametrize("count,small", [(1, 1 << 20), (2, 400), (4, 0)])
def test_a_step_finds_the_leaves_that_were_packed(count, small):
    batch, _ = batches_of(count)(3)
    # Bits that a conversion to another type would change.
    batch.weights[0, 0, :2] = np.array([np.nan, -0.0], np.float32)
    packed = feed.pack(batch, small)
    # Leaves without elements are packed always.
    assert packed.large.keys() == {
        name for name, leaf in batch._asdict().items() if leaf[0].nbytes > small
    }
    assert packed.small.shape == (count, sum(int(np.prod(s)) for _, _, s in packed.layout))
    if small == 1 << 20:
        assert not packed.large and len(packed.layout) == len(Minibatch._fields)

    def step(state, batch, axis_name=None):
        assert isinstance(batch, Minibatch)
        return batch, {}

    # Each device returns its own leaves, so that the first one's are compared.
    run = compile_step(feed.unpacking(step), count, donate=False)
    first, _ = run(replicate({}, make_devices(count)), packed)
    assert leaves(first) == leaves(Minibatch(*(leaf[0] for leaf in batch)))


@pytest.mark.parametrize("placed", [False, True])
def test_batches_come_in_the_order_of_their_steps_and_count_as_made(placed, monkeypatch):
    monkeypatch.setattr(feed, "places_batches", lambda: placed)
    make, devices = batches_of(2), make_devices(2)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(Prefetcher(make, 5, 9, 3, 2))
        batches = feed.Feed(made, (5, 9), devices, stack)
        assert batches.state() == {"next_index": 5}
        for step, (batch, info) in enumerate(batches, start=5):
            expected, expected_info = make(step)
            assert info == expected_info
            assert isinstance(batch, feed.PackedBatch) == placed
            if placed:
                assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(batch))
                expected = feed.pack(expected)
            for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(expected)):
                assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
            # Batches that were only placed are made again by the run that goes on from here.
            assert batches.state() == {"next_index": step + 1} and batches.items == step - 4
        assert step == 8 and batches.make_seconds > 0


@pytest.mark.parametrize("fails", [True, False])
def test_an_error_in_making_a_batch_is_raised_in_its_place_and_threads_end(fails, monkeypatch):
    monkeypatch.setattr(feed, "places_batches", lambda: True)
    make = batches_of(1)

    def failing(step):
        if fails and step == 2:
            raise ValueError("no batch 2")
        return make(step)

    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(Prefetcher(failing, 0, 50, 2))
        batches = feed.Feed(made, (0, 50), make_devices(1), stack)
        next(batches), next(batches)
        if fails:
            with pytest.raises(ValueError, match="no batch 2"):
                next(batches)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "placed,threads,given,expected",
    [
        (False, 64, {}, (2, 1)),
        (True, 64, {}, (17, 16)),
        (True, 9, {}, (5, 4)),
        (True, 1, {}, (2, 1)),
        (True, 64, {"producers": 3}, (4, 3)),
        (False, 1, {"producers": 3, "prefetch": 0}, (0, 3)),
    ],
)
def test_threads_that_make_batches_go_by_cores_on_accelerators(
    placed, threads, given, expected, monkeypatch
):
    monkeypatch.setattr(feed, "places_batches", lambda: placed)
    config = Config(mode="train", workdir="-", threads=threads, train=TrainConfig(**given))
    assert feed.queue_of(config) == expected


# Steps that the profiler records (log.StepTrace).


@pytest.mark.parametrize(
    "span,first,total,recorded",
    [
        (None, 1, 5, []),
        ((2, 3), 1, 5, ["start", 2, 3, "stop"]),
        ((2, 3), 3, 5, ["start", 3, "stop"]),  # the run goes on within the span
        ((4, 9), 1, 5, ["start", 4, 5, "stop"]),  # and ends before its end
        ((2, 3), 4, 5, []),
    ],
)
def test_the_steps_of_the_span_are_recorded(span, first, total, recorded, monkeypatch, tmp_path):
    seen = []
    profiler = jax.profiler
    monkeypatch.setattr(profiler, "start_trace", lambda folder: seen.append("start"))
    monkeypatch.setattr(profiler, "stop_trace", lambda: seen.append("stop"))

    def annotation(name, step_num):
        seen.append(step_num)
        return contextlib.nullcontext()

    monkeypatch.setattr(profiler, "StepTraceAnnotation", annotation)
    with StepTrace(tmp_path, span) as trace:
        for step in range(first, total + 1):
            with trace.step(step):
                made = jax.numpy.ones(3)
            trace.ended(step, made)
    assert seen == recorded


@pytest.mark.parametrize("text", ["3", "0:4", "5:4", "a:b", "1:2:3", ":"])
def test_spans_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=f"--profile_steps={text} is not FIRST:LAST"):
        TrainConfig(profile_steps=text).validate()
    TrainConfig(profile_steps="7:7").validate()
    assert TrainConfig(profile_steps="10:20").profiled == (10, 20)
