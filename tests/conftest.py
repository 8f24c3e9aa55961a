"""Settings of every test process: four fake CPU devices, strict broadcasting and dtypes.

They are set inside this process only, so a program that a test starts as a
subprocess runs with the settings a user would have.  What it shares with this
process is the folder of compiled steps.

In this process XLA leaves most of its optimizations out, since half of the time of
the tests would go into them; programs that tests start are optimized as a user's are.
JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment tests optimized code here as well.
"""

import logging as standard_logging
import os
import tempfile

# Steps of the same shapes are compiled once, in this process and in programs that tests start.
# JAX reads both when it is imported; a folder that is given, as by .ci/run, is kept.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="pinsage-jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import numpy as np
import pytest
from absl import logging

_VERBOSITY = logging.get_verbosity()
# Test files that take longest begin first, so that no process is left alone with one at the end.
_LONGEST = (
    *("test_kernel_modes.py", "test_shop_week.py", "test_process_group.py", "test_training.py"),
    *("test_steps.py", "test_model.py", "test_inference.py", "test_kernel_cache.py"),
    *("test_retrain.py", "test_gathered_loss.py", "test_estimator.py", "test_ablation.py"),
)

jax.config.update("jax_num_cpu_devices", 4)
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
# Arrays of different rank never broadcast by accident: [B] against [B, 1] is an error.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Nor do arrays of different dtypes meet: float32 times int32 is an error.
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the tests of the longest files to the front, otherwise in the order of collection."""
    turn = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: turn.get(item.path.name, len(turn)))


@pytest.fixture
def small_rng() -> np.random.Generator:
    """A generator with the same stream in every test and every run."""
    return np.random.default_rng(20180610)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Settings of a finished pipeline of seconds; its workdir is for reading only."""
    # Here, because most tests need neither the stages nor what they import.
    from trained_run import small_run

    return small_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of a file of tests (extra test-browser)."""
    from browser import launched

    with launched() as found:
        yield found


@pytest.fixture(autouse=True)
def _logging_of_its_own():
    """Every test begins as a process does: no earlier program or fixture decides what is logged."""
    _reset_logging()
    yield
    _reset_logging()


def _reset_logging() -> None:
    standard_logging.getLogger().removeHandler(logging.get_absl_handler())
    logging.set_verbosity(_VERBOSITY)
