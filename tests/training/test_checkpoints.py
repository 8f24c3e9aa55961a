"""Checkpoints: bit for bit, whole or absent, damage found, and misfits explained."""

import json
import logging as python_logging
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from pinsage_jax.core.errors import UserError
from pinsage_jax.distributed import devices
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.resume import Saver

pytestmark = pytest.mark.timeout(120)

META = {
    "sampler": {"next_index": 17},
    "curriculum": {"epoch": 2, "hard": 1},
    "config": {"model": {"layer_dim": 256, "pooling": "importance"}, "seed": 3},
    "data": {"ids": "ab12", "num_items": 10_000, "num_edges": 7, "feature_dim": 64},
}


class State(NamedTuple):
    """Like a training state: nested containers, an optimizer, a counter."""

    step: Any
    params: Any
    optimizer: Any


def make_state(seed=0, width=3):
    rng = np.random.default_rng(seed)
    params = {
        "layer_0": {"kernel": rng.normal(size=(5, width)).astype(np.float32), "bias": np.zeros(2)},
        "odd": [
            jnp.asarray(rng.normal(size=4), jnp.bfloat16),
            np.array([np.nan, -0.0, np.inf, 5e-324]),
            np.array([2**64 - 1], np.uint64),
            np.zeros((0, 4), np.float16),
            np.array([True, False]),
        ],
    }
    optimizer = optax.adamw(1e-3).init(jax.tree.map(jnp.asarray, params["layer_0"]))
    return State(np.int32(seed), params, optimizer)


def zeros_like(state):
    return jax.tree.map(lambda leaf: np.zeros_like(leaf), state)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for first, second in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        first, second = np.asarray(first), np.asarray(second)
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        assert first.tobytes() == second.tobytes()


def save(checkpoints, step, score=None):
    checkpoints.save(
        step, make_state(step), META | {"step": step}, {"score": score or float("nan")}
    )


def assert_restores(checkpoints, step):
    state, meta = checkpoints.restore(step, zeros_like(make_state()))
    assert_same_bits(state, make_state(step))
    assert meta == META | {"step": step}


def shards(folder, step):
    return sorted(p for p in (folder / str(step)).rglob("d/*") if p.is_file())


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "flipped": lambda folder, step: flip_a_bit(shards(folder, step)[0]),
    "truncated": lambda folder, step: truncate(shards(folder, step)[-1]),
    "missing": lambda folder, step: shards(folder, step)[0].unlink(),
    "meta": lambda folder, step: flip_a_bit(folder / str(step) / "meta" / "metadata"),
    "checksum file": lambda folder, step: (folder / str(step) / "checksums.json").write_text("{"),
    "value in the checksum file": lambda folder, step: (
        folder / str(step) / "checksums.json"
    ).write_text(
        (folder / str(step) / "checksums.json").read_text().replace('"score": 0.', '"score": 0.9')
    ),
}


@pytest.fixture
def warned():
    """Messages at WARNING or above, and everything from Orbax, of the absl logger."""
    records = []

    class Collect(python_logging.Handler):
        def emit(self, record):
            if record.levelno >= python_logging.WARNING or "/orbax/" in record.pathname:
                records.append(record.getMessage())

    handler, verbosity = Collect(), logging.get_verbosity()
    logging.set_verbosity(logging.DEBUG)
    logging.get_absl_logger().addHandler(handler)
    yield records
    logging.get_absl_logger().removeHandler(handler)
    logging.set_verbosity(verbosity)


def test_everything_comes_back_bit_for_bit_and_in_silence(tmp_path, warned, recwarn):
    with Checkpoints(tmp_path / "made" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.best_step() is None
        save(checkpoints, 0)
        save(checkpoints, 12)
        assert_restores(checkpoints, 12)
    with Checkpoints(tmp_path / "made" / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [0, 12]
        assert checkpoints.latest_step() == 12
        assert_restores(checkpoints, 0)
        assert_restores(checkpoints, 12)
    assert warned == []
    assert [str(warning.message) for warning in recwarn] == []


def test_other_warnings_of_orbax_are_not_hidden(tmp_path, warned):
    Checkpoints(tmp_path).close()
    logger = logging.get_absl_logger()
    error = (ValueError, ValueError("full"), None)
    for level, path, message, raised in [
        (python_logging.INFO, "/x/orbax/y.py", "noise", None),
        (python_logging.WARNING, "/x/orbax/y.py", "warning", None),
        (python_logging.ERROR, "/x/orbax/y.py", "error", error),
        (python_logging.ERROR, "/x/orbax/y.py", "_SignalingThread.run() raised", error),
        (python_logging.ERROR, "/x/other.py", "_SignalingThread.run() raised", error),
    ]:
        logger.handle(logger.makeRecord("absl", level, path, 1, message, (), raised))
    assert warned == ["warning", "error", "_SignalingThread.run() raised"]


def test_no_pickles(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle")

    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        assert_restores(checkpoints, 1)
    for path in (tmp_path / "1").rglob("*"):
        assert path.is_dir() or not path.read_bytes().startswith(b"\x80\x04")


@pytest.mark.parametrize("count", [1, 4])
def test_a_placed_state_is_restored_on_any_number_of_devices(tmp_path, count):
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(7)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, devices.replicate(state, devices.make_devices(count)), META)
        like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))
        restored, _ = checkpoints.restore(7, like)
    assert_same_bits(restored, state)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))


def test_the_latest_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: 0.1, 6: 0.2}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        kept = []
        for step, score in scores.items():
            save(checkpoints, step, score)
            kept.append((checkpoints.steps(), checkpoints.best_step(), checkpoints.latest_step()))
    assert kept == [
        ([1], 1, 1),
        ([1, 2], 2, 2),
        ([2, 3], 2, 3),
        ([2, 3, 4], 2, 4),
        ([2, 4, 5], 2, 5),
        ([2, 5, 6], 2, 6),
    ]
    with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
        assert checkpoints.metrics(5) == {"score": 0.1}
        assert checkpoints.best_step() == 2
        assert_restores(checkpoints, 2)
        with pytest.raises(ValueError, match="read-only"):
            save(checkpoints, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "6"]


def test_without_scores_the_best_is_the_latest(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 3)
        save(checkpoints, 4)
        assert (checkpoints.steps(), checkpoints.best_step()) == ([4], 4)
        assert checkpoints.metrics(4) == {"score": None}


def test_a_step_can_be_saved_again(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 3)
        checkpoints.save(3, make_state(8), META, {"score": 1.0})
        state, meta = checkpoints.restore(3, make_state())
        assert_same_bits(state, make_state(8))
        assert meta == META
        assert [path.name for path in tmp_path.iterdir()] == ["3"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_passed_over(tmp_path, warned, damage):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 10, 0.1)
        save(checkpoints, 20, 0.2)
    DAMAGES[damage](tmp_path, 20)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 10
        assert checkpoints.best_step() == 10
        message = next(text for text in warned if "using the checkpoint of step 10" in text)
        assert f"{tmp_path}/20/" in message
        with pytest.raises(UserError, match=f"{tmp_path}/20/.* (damaged|missing|not valid JSON)"):
            checkpoints.restore(20, make_state())
        assert_restores(checkpoints, 10)
        # The run goes on from 10, past the damaged one.
        save(checkpoints, 15, 0.05)
        assert checkpoints.latest_step() == 15
        assert checkpoints.steps() == [10, 15, 20]
        save(checkpoints, 20, 0.04)
        assert checkpoints.latest_step() == 20
        assert_restores(checkpoints, 20)
        # Replaced, it counts among the latest again.
        save(checkpoints, 30, 0.03)
        assert checkpoints.steps() == [10, 20, 30]

    for step in (10, 20, 30):
        DAMAGES[damage](tmp_path, step)
    with Checkpoints(tmp_path) as checkpoints:
        for find in (checkpoints.latest_step, checkpoints.best_step):
            with pytest.raises(UserError, match=f"^No checkpoint in {tmp_path} is intact .*anew.$"):
                find()


def test_damage_with_keep_one_does_not_cost_the_new_checkpoint(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 10, 0.5)
        save(checkpoints, 20, 0.1)
    DAMAGES["flipped"](tmp_path, 20)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest_step() == 10
        save(checkpoints, 15, 0.2)
        save(checkpoints, 25, 0.3)
        assert checkpoints.steps() == [10, 25]


def test_remains_of_killed_saves_are_not_checkpoints(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 0.5)
        save(checkpoints, 2)
    # Killed while Orbax wrote, ...
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    (tmp_path / "3.orbax-checkpoint-tmp" / "checksums.json").unlink()
    # ... after it renamed, ...
    shutil.copytree(tmp_path / "2", tmp_path / "4")
    (tmp_path / "4" / "checksums.json").unlink()
    # ... while step 2 was being replaced, ...
    (tmp_path / "2").rename(tmp_path / "2.replaced")
    shutil.copytree(tmp_path / "4", tmp_path / "2")
    # ... and after step 1 was, by what it now holds.
    shutil.copytree(tmp_path / "4", tmp_path / "1.replaced")

    before = sorted(path.name for path in tmp_path.iterdir())
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.latest_step() == 2
        assert_restores(checkpoints, 1)
        assert_restores(checkpoints, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("step", [1, 2])
def test_a_failed_save_leaves_the_older_ones(tmp_path, monkeypatch, step):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)

        def full(*args, **kwargs):
            (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
            raise ValueError("INTERNAL: write failed: No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "_write_checksums", full)
            with pytest.raises(UserError, match=f"^No space left while writing {tmp_path}; free"):
                save(checkpoints, step)
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        assert_restores(checkpoints, 1)
        save(checkpoints, 2)
        assert_restores(checkpoints, 2)


def test_a_deletion_cut_short_leaves_no_damaged_checkpoint(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 1)
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
            save(checkpoints, 2)
        assert (tmp_path / "1").exists()
        assert checkpoints.steps() == [2]


KILLED_PROGRAM = """
import os, signal, sys
import numpy as np
from pinsage_jax.training.checkpoints import Checkpoints
from pinsage_jax.training.resume import Saver

def state(step):
    return {"w": np.random.default_rng(step).normal(size=(700, 700)), "step": step}

checkpoints = Checkpoints(sys.argv[1], keep=1)
if sys.argv[2] == "before the checksums":
    checkpoints.save(1, state(1), {"step": 1})
    checkpoints._write_checksums = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
for step in range(2, 1000):
    print("saving", step, flush=True)
    checkpoints.save(step, state(step), {"step": step})
    print("saved", step, flush=True)
"""


@pytest.mark.parametrize("moment", ["before the checksums", 0.0, 0.03])
def test_kill_nine_in_the_middle_of_a_save(tmp_path, moment):
    folder = tmp_path / "checkpoints"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_PROGRAM, str(folder), str(moment)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    if moment != "before the checksums":
        for line in child.stdout:
            if line.split() == ["saving", "5"]:
                break
        # The child is somewhere in a save; where does not matter for the outcome.
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(moment)
        child.send_signal(signal.SIGKILL)
    output, errors = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, errors
    saved = [int(line.split()[1]) for line in output.splitlines() if line.startswith("saved")]
    at_least = max(saved, default=1 if moment == "before the checksums" else 4)

    with Checkpoints(folder, keep=1) as checkpoints:
        latest = checkpoints.latest_step()
        assert latest >= at_least
        state, meta = checkpoints.restore(latest, {"w": np.zeros((700, 700)), "step": 0})
        expected = np.random.default_rng(latest).normal(size=(700, 700))
        assert state["w"].tobytes() == expected.tobytes()
        assert (int(state["step"]), meta["step"]) == (latest, latest)
    assert {path.name for path in folder.iterdir()} == {str(step) for step in checkpoints.steps()}


def test_misfits_are_reported_in_one_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    model, data = META["config"]["model"], META["data"]
    checkpoints.check(META, data, model)
    checkpoints.check(json.loads(json.dumps(META | {"data": {"a": (1, 2)}})), {"a": (1, 2)}, model)
    end = "; choose another --workdir, or delete that folder to train anew."
    for new_data, new_model, message in [
        ({}, {"layer_dim": 128}, "with layer_dim=256 but this run asks for 128"),
        (
            {"num_items": 9_990},
            {},
            "on a catalog of 10,000 items but the workdir holds 9,990",
        ),
        (
            {"feature_dim": 65},
            {},
            "on features of 64 dimensions but those in the workdir have 65",
        ),
        ({"ids": "ff"}, {}, "on other ids (digest ab12) than the workdir holds (digest ff)"),
        ({"num_edges": 8}, {}, "on 7 edges but the workdir holds 8"),
        ({"language": "en"}, {}, "with language=nothing but the workdir has en"),
        (
            {"ids": "ff", "num_items": 1},
            {"pooling": "max", "layer_dim": 1, "new": True},
            "on a catalog of 10,000 items but the workdir holds 1, on other ids (digest ab12) "
            "than the workdir holds (digest ff), with layer_dim=256 but this run asks for 1 "
            "(2 more)",
        ),
    ]:
        with pytest.raises(UserError) as caught:
            checkpoints.check(META, data | new_data, model | new_model)
        assert str(caught.value) == f"The checkpoint in {tmp_path} was trained {message}{end}"


def test_a_state_of_other_shapes_is_refused(tmp_path):
    state = {"params": {"w": np.zeros((5, 3), np.float32), "b": np.zeros(3, np.float32)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state, META)
        for like, message in [
            ({"w": np.zeros((5, 4), np.float32)}, "is float32[5, 3] there and float32[5, 4] here"),
            ({"w": np.zeros((5, 3))}, "params/w is float32[5, 3] there and float64[5, 3] here"),
            ({"c": np.zeros(1)}, "params/c is not in it"),
        ]:
            with pytest.raises(UserError) as caught:
                checkpoints.restore(4, {"params": state["params"] | like})
            assert message in str(caught.value)
            assert str(caught.value).startswith(f"The checkpoint {tmp_path}/4 does not fit")
        with pytest.raises(UserError, match="it has params/b in addition"):
            checkpoints.restore(4, {"params": {"w": state["params"]["w"]}})
        with pytest.raises(UserError, match=r"has no checkpoint of step 5; it has 4\."):
            checkpoints.restore(5, state)


def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for meta in ({"a": float("nan")}, {"a": np.arange(2)}):
            with pytest.raises((ValueError, TypeError), match="JSON"):
                checkpoints.save(1, make_state(), meta)
        assert list(tmp_path.iterdir()) == []
        title = {"title": 'a "title", ünï, \U0001f600', "big": 2**70, "exact": 0.1 + 0.2}
        checkpoints.save(1, make_state(), title)
        assert checkpoints.restore(1, make_state())[1] == title


def test_a_folder_that_cannot_be_made_and_a_wrong_keep(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot write .*/file/checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(tmp_path / "absent", read_only=True) as checkpoints:
        assert checkpoints.latest_step() is None
    assert not (tmp_path / "absent").exists()


# Checkpoints that a thread writes while training goes on (resume.Saver).


class SlowCheckpoints(Checkpoints):
    """Waits before each save until it is let go."""

    def __init__(self, folder):
        super().__init__(folder)
        self.let_go = threading.Event()

    def save(self, *arguments):
        assert self.let_go.wait(60)
        super().save(*arguments)


def test_a_thread_saves_what_the_state_was_and_one_checkpoint_at_a_time(tmp_path):
    with SlowCheckpoints(tmp_path / "c") as checkpoints, Saver(checkpoints, True) as saver:
        state = make_state(1)
        before = jax.tree.map(np.array, state)
        saver.save(3, state, META, {"score": 1.0})
        # Training goes on, and reuses the memory; what is not sealed is no checkpoint.
        for leaf in jax.tree.leaves(state):
            if isinstance(leaf, np.ndarray) and leaf.ndim:
                leaf[...] = 0
        assert checkpoints.steps() == []
        threading.Timer(0.05, checkpoints.let_go.set).start()
        saver.save(5, make_state(2), META, {})
        assert 3 in checkpoints.steps()
        saver.wait()
        assert checkpoints.steps() == [3, 5]
        restored, _ = checkpoints.restore(3, before)
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(before), strict=True):
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.parametrize("background", [False, True])
def test_an_error_of_a_save_is_raised_at_the_next_wait(tmp_path, monkeypatch, background):
    def full(*arguments, **named):
        raise UserError("No space left")

    with Checkpoints(tmp_path / "c") as checkpoints, Saver(checkpoints, background) as saver:
        monkeypatch.setattr(checkpoints, "save", full)
        with pytest.raises(UserError, match="No space left"):
            saver.save(1, make_state(), META, {})
            assert background
            saver.wait()
        # It is raised once, and the next checkpoint may find room.
        monkeypatch.undo()
        saver.save(2, make_state(), META, {})
        saver.wait()
        assert checkpoints.steps() == [2]


def test_leaving_waits_for_the_last_checkpoint_and_keeps_the_error_on_its_way(tmp_path, caplog):
    with SlowCheckpoints(tmp_path / "c") as checkpoints:
        checkpoints.let_go.set()
        with pytest.raises(KeyError), Saver(checkpoints, True) as saver:
            saver.save(1, make_state(), META, {})
            raise KeyError
        assert checkpoints.steps() == [1]
        with pytest.raises(KeyError), Saver(checkpoints, True) as saver:
            saver.save(2, make_state(), {"not JSON": object()}, {})
            raise KeyError
        assert checkpoints.steps() == [1] and "was not written" in caplog.text
    assert not [t for t in threading.enumerate() if t.name.startswith("saver")]
