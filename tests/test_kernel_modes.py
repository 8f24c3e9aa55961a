"""The kernels again: without compilation, and compiled with bounds checks.

Numba reads both settings when it is imported, so each runs in a process of its own,
with a cache of its own.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent

KERNEL_TESTS = (
    *("walks", "nearly_sort", "pairs", "bounded_memory", "link_spaces", "pooling_kernels"),
    *("topk", "selection", "new_items", "transposed", "overlay"),
)

# Run before the tests, in the same process: the setting has taken effect.
NOT_COMPILED = """
from pinsage_jax.sampling import kernels
assert not hasattr(kernels.mix, "py_func")
"""
BOUNDS_CHECKED = """
import numpy as np
from pinsage_jax.sampling import kernels
try:
    kernels.running_sums(np.array([0, 5]), np.ones(2, np.float32), np.ones(2))
except IndexError:
    pass
else:
    raise AssertionError("a read past the end went unnoticed")
"""
MODES = {
    "not compiled": ({"NUMBA_DISABLE_JIT": "1"}, NOT_COMPILED),
    "bounds checked": ({"NUMBA_BOUNDSCHECK": "1"}, BOUNDS_CHECKED),
}
RUN = """
import sys
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_of(mode, folder) -> subprocess.Popen:
    """Starts the kernel tests in a mode; what they print is in `folder`."""
    settings, check = MODES[mode]
    with open(folder / "printed", "w") as printed:
        return subprocess.Popen(
            [
                *(sys.executable, "-c", check + RUN),
                *("-m", "kernels", "-q", "-p", "no:cacheprovider", "-n", "0"),
                *(str(next(TESTS.rglob(f"test_{name}.py"))) for name in KERNEL_TESTS),
            ],
            cwd=TESTS.parent,
            env=os.environ | settings | {"NUMBA_CACHE_DIR": str(folder)},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(process, folder) by mode: one thread each, so they run side by side."""
    folders = {mode: tmp_path_factory.mktemp("mode") for mode in MODES}
    started = {mode: (run_of(mode, folder), folder) for mode, folder in folders.items()}
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("mode", MODES)
def test_kernels_in_another_mode(mode, runs):
    process, folder = runs[mode]
    code = process.wait()
    printed = (folder / "printed").read_text(encoding="utf-8")
    assert code == 0, printed
    counts = dict(re.findall(r"(\d+) (passed|skipped|failed|warnings?)", printed)[::-1])
    counts = {word: int(number) for number, word in counts.items()}
    assert counts.get("passed", 0) >= 50 and set(counts) == {"passed"}, printed
