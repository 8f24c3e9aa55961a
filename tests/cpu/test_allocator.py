"""The allocator's settings: one heap of huge pages that keeps what is freed; made by main alone."""

import os
import pathlib
import subprocess
import sys

import pytest

_HEAP = r"""
import ctypes, re
from pinsage_jax.cpu.allocator import keep_freed_memory
def kib(name, path="/proc/self/smaps_rollup"):
    return int(re.search(name + r":\s+(\d+) kB", open(path).read())[1])
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before = kib("Rss")
assert keep_freed_memory() and keep_freed_memory()
reserved = kib("Rss") - before
block = libc.malloc(64 << 20)
ctypes.memset(block, 1, 64 << 20)
huge = kib("AnonHugePages")
libc.free(block)
print(reserved, huge, kib("Rss") - before)
"""


def in_a_process_of_its_own(code):
    """The integers that it prints: these settings are for the whole of a process."""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return [int(number) for number in ran.stdout.split()]


def test_memory_is_kept_in_huge_pages_and_only_what_was_used():
    reserved, huge, kept = in_a_process_of_its_own(_HEAP)
    assert reserved < 4 << 10
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if setting.exists() and "[never]" not in setting.read_text():
        assert huge >= 56 << 10
    assert 56 << 10 <= kept < 80 << 10


_THREAD = r"""
import ctypes, re, threading
from pinsage_jax.cpu.allocator import single_heap
assert not ONE or single_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
found = []
thread = threading.Thread(target=lambda: found.append(libc.malloc(10_000)))
thread.start()
thread.join()
heap = re.search(r"^(\w+)-(\w+) .*\[heap\]$", open("/proc/self/maps").read(), re.MULTILINE)
print(int(int(heap[1], 16) <= found[0] < int(heap[2], 16)))
"""


@pytest.mark.parametrize("one", [True, False])
def test_threads_allocate_from_the_one_heap(one):
    assert in_a_process_of_its_own(_THREAD.replace("ONE", str(one))) == [int(one)]


# Stands in for the C library as ctypes opens it, and counts calls of mallopt.
_SPY = r"""
import ctypes
real, calls = ctypes.CDLL, []
class Spy(real):
    def __getattr__(self, name):
        if name == "mallopt":
            return lambda *arguments: calls.append(arguments) or 1
        return super().__getattr__(name)
ctypes.CDLL = Spy
import pinsage_jax
from trained_run import settings
from pinsage_jax.distributed.devices import make_devices
from pinsage_jax.distributed.joining import connect
from pinsage_jax.stages import embed, prepare, train
connect()
make_devices()
config = settings(WORKDIR, epochs=0.2, tracker="")
prepare.prepare(config)
train.train(config)
embed.embed(config)
print(len(calls))
from pinsage_jax import main
main.main(["pinsage-jax", "--mode=neighbors", "--workdir=" + WORKDIR])
by_neighbors = len(calls)
main.main(["pinsage-jax", "--mode=train", "--workdir=" + WORKDIR])
print(by_neighbors)
print(len(calls))
"""


def test_the_library_leaves_the_allocator_as_it_was(tmp_path, monkeypatch):
    helpers = pathlib.Path(__file__).parents[1] / "helpers"
    folders = [str(helpers), str(helpers.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, folders)))
    code = _SPY.replace("WORKDIR", repr(str(tmp_path / "run")))
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=600
    )
    printed = [int(line) for line in ran.stdout.splitlines() if line.isdigit()]
    # The program sets one heap for every mode, and what else there is where steps run.
    assert printed == [0, 1, 4]
