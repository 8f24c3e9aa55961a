"""Compiled code on disk: kept between processes, and dropped with any file it was made from."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import pinsage_jax
from pinsage_jax.cpu import kernel_cache

PACKAGE = pathlib.Path(pinsage_jax.__file__).parent

_READ_ROWS = """
import numpy as np
from pinsage_jax.cpu.pooling_kernels import read_rows as kernel
memory = np.zeros(64, np.float32)
first = -(memory.ctypes.data // 4) % 16
out = memory[first : first + 32].reshape(2, 16)
kernel(np.arange(48, dtype=np.float32).reshape(3, 16), np.array([2, 0], np.int32), 0, out)
print(out.sum())
"""
_RELEASE = """
import numpy as np
from pinsage_jax.cpu.ffi_handlers import _release as kernel
words = np.full(64, 5, np.int64)
kernel(words)
print(words.sum())
"""
_PERMUTED = """
from pinsage_jax.sampling.pair_kernels import permuted as kernel
print([kernel(7, place, 1000) for place in range(9)])
"""
_STATISTICS = """
statistics = kernel.stats
print(sum(statistics.cache_hits.values()), sum(statistics.cache_misses.values()))
"""
# A kernel, a file that it was made from beside its own, and a change of its answer there.
CHANGES = {
    "an intrinsic": (
        _READ_ROWS,
        "cpu/prefetch.py",
        (
            "loaded = builder.load(address(2, 3), align=4)",
            "loaded = ir.Constant(line.pointee, None)",
        ),
    ),
    "an atomic addition": (_RELEASE, "cpu/intrinsics.py", ('atomic_rmw("add"', 'atomic_rmw("sub"')),
    "a constant": (
        _PERMUTED,
        "core/splitmix.py",
        ("GOLDEN = np.uint64(0x9E3779B97F4A7C15)", "GOLDEN = np.uint64(0x9E3779B97F4A7C17)"),
    ),
}


@pytest.fixture
def copied(tmp_path):
    """The folder of a copy of the package, without compiled code."""
    shutil.copytree(
        PACKAGE, tmp_path / "lib" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path / "lib" / PACKAGE.name


def answers(code, package, **variables):
    """What a process prints that imports the package from there: the answer, cache hits, misses."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")
    }
    ran = subprocess.run(
        [sys.executable, "-c", code + _STATISTICS],
        env=environment | {"PYTHONPATH": str(package.parent)} | variables,
        cwd=package.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    answer, statistics = ran.stdout.splitlines()
    return answer, *(int(number) for number in statistics.split())


@pytest.mark.parametrize("case", CHANGES)
def test_compiled_code_does_not_outlive_a_change_of_what_it_was_made_from(case, copied):
    code, file, (before, after) = CHANGES[case]
    first, *statistics = answers(code, copied)
    assert statistics == [0, 1]
    assert answers(code, copied) == (first, 1, 0)
    source = (copied / file).read_text(encoding="utf-8")
    assert before in source
    (copied / file).write_text(source.replace(before, after), encoding="utf-8")
    second, *statistics = answers(code, copied)
    assert second != first and statistics == [0, 1]


def test_what_a_process_compiles_of_a_file_that_has_just_changed_is_not_kept(copied):
    _, _, (before, after) = CHANGES["an intrinsic"]
    change = (
        "import pathlib, time\n"
        "from pinsage_jax.cpu import kernel_cache, prefetch\n"
        "time.sleep(0.1)\n"
        "file = pathlib.Path(prefetch.__file__)\n"
        f"file.write_text(file.read_text().replace({before!r}, {after!r}))\n"
    )
    # It holds the old file in memory, and finds the new one on disk.
    first = answers(change + _READ_ROWS, copied)
    second, *statistics = answers(_READ_ROWS, copied)
    assert second != first[0] and statistics == [0, 1]
    assert answers(_READ_ROWS, copied) == (second, 1, 0)


def test_a_package_that_cannot_be_written_to(copied, tmp_path):
    home = tmp_path / "home"
    for folder in (copied, *(path for path in copied.iterdir() if path.is_dir())):
        # No folder can be made where a file is, whoever asks.
        (folder / "__pycache__").write_text("")
    variables = {"XDG_CACHE_HOME": str(home), "HOME": str(home)}
    first, *statistics = answers(_PERMUTED, copied, **variables)
    assert statistics == [0, 1] and list(home.rglob("*.nbc"))
    assert answers(_PERMUTED, copied, **variables) == (first, 1, 0)
    nowhere = tmp_path / "nowhere"
    nowhere.write_text("")
    variables = {"XDG_CACHE_HOME": str(nowhere), "HOME": str(nowhere)}
    assert answers(_PERMUTED, copied, **variables) == (first, 0, 1)


def test_the_folder_that_numba_is_given_is_used(copied, tmp_path):
    answers(_PERMUTED, copied, NUMBA_CACHE_DIR=str(tmp_path / "given"))
    assert list((tmp_path / "given").rglob("*permuted-*.nbc"))
    assert not list(copied.rglob("*.nbc"))


def test_every_import_of_the_package_is_followed():
    for path in PACKAGE.rglob("*.py"):
        source = path.read_bytes()
        expected = set()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{name}" for name in names)]
            for name in names:
                if name.split(".")[0] == PACKAGE.name:
                    stem = PACKAGE.parent.joinpath(*name.split("."))
                    expected |= {stem.with_suffix(".py"), stem / "__init__.py"}
        expected = {str(file) for file in expected if file.is_file()}
        assert expected <= set(kernel_cache._imported_files(source)), path


def test_the_digest_is_of_contents_and_of_all_that_is_imported(copied):
    # Another folder with the same files has the same digest.
    script = (
        "from pinsage_jax.cpu.kernel_cache import _ROOT, source_digest\n"
        "print(source_digest(str(_ROOT / 'cpu' / 'pooling_kernels.py')))"
    )

    def digest():
        ran = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(copied.parent)},
            cwd=copied.parent,
            check=True,
            capture_output=True,
            text=True,
        )
        return ran.stdout.strip()

    here = kernel_cache.source_digest(str(PACKAGE / "cpu" / "pooling_kernels.py"))
    assert digest() == here
    unrelated, related = copied / "graph" / "csr.py", copied / "cpu" / "ffi_structs.py"
    unrelated.write_text(unrelated.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert digest() == here
    # pooling_kernels imports ffi_handlers, which imports ffi_structs.
    related.write_text(related.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert digest() != here


def age(paths, days):
    for path in paths:
        past = path.stat().st_mtime - days * 86_400
        os.utime(path, (past, past))


def made_files(folder, names_and_days):
    for name, days in names_and_days.items():
        (folder / name).write_bytes(b"")
        age([folder / name], days)


def test_superseded_files_are_removed_when_they_are_old_or_many(tmp_path):
    digests = [f"{number:016x}" for number in range(9)]
    current = f"kernels.walk-12.py311-{digests[0]}"
    others = {}
    for days, digest in enumerate(digests[1:7]):
        others[f"kernels.walk-{10 + days}.py311-{digest}.nbi"] = days
        # Compiled long ago; the index has the time of the last use.
        others[f"kernels.walk-{10 + days}.py311-{digest}.1.nbc"] = 40 + days
    old = {
        f"kernels.walk-9.py311-{digests[7]}.nbi": 31,
        f"kernels.walk-9.py311-{digests[7]}.2.nbc": 31,
        f"kernels.walk-9.py311-{digests[7]}.2.nbc.tmp.0a1b": 31,
        "kernels.walk-12.py311.nbi": 400,
        "kernels.walk-12.py311.1.nbc": 400,
    }
    unrelated = {
        f"{current}.nbi": 99,
        f"{current}.1.nbc": 99,
        f"{current}.2.nbc.tmp.0a1b": 99,
        f"kernels.walk-11.py312-{digests[8]}.nbi": 99,
        f"kernels.walk_on-12.py311-{digests[8]}.nbi": 99,
        f"other.walk-12.py311-{digests[8]}.1.nbc": 99,
        f"kernels.walk-9.py311-{digests[8]}.2.nbc.tmp.0a1b": 1,
        "kernels.cpython-311.pyc": 99,
        "kernels.walk.txt": 99,
    }
    made_files(tmp_path, others | old | unrelated)
    kernel_cache.remove_superseded(tmp_path, current)
    latest = {name for name in others if any(digest in name for digest in digests[1:5])}
    assert {path.name for path in tmp_path.iterdir()} == latest | {*unrelated}
    kernel_cache.remove_superseded(tmp_path, current)
    assert len([*tmp_path.iterdir()]) == len(latest) + len(unrelated)
    kernel_cache.remove_superseded(tmp_path / "missing", current)


def test_a_file_that_another_process_removed_meanwhile_is_passed_over(tmp_path, monkeypatch):
    names = [f"kernels.walk-1.py311-{number:016x}.nbi" for number in range(1, 9)]
    made_files(tmp_path, dict.fromkeys(names, 50))
    unlink = pathlib.Path.unlink

    def twice(path):
        unlink(path)
        unlink(path)

    monkeypatch.setattr(pathlib.Path, "unlink", twice)
    kernel_cache.remove_superseded(tmp_path, f"kernels.walk-1.py311-{0:016x}")
    assert not [*tmp_path.iterdir()]


def test_versions_in_use_stay_and_others_go(copied):
    _, file, change = CHANGES["a constant"]
    original = (copied / file).read_text(encoding="utf-8")

    def index_files():
        return {*copied.rglob("*permuted-*.nbi")}

    first, *_ = answers(_PERMUTED, copied)
    (used,) = index_files()
    # Two versions that nobody has used for 40 days.
    for comment in ("# One.\n", "# Two.\n"):
        (copied / file).write_text(original + comment, encoding="utf-8")
        assert answers(_PERMUTED, copied) == (first, 0, 1)
    unused = index_files() - {used}
    age([*copied.rglob("*.nb[ic]")], 40)
    (copied / file).write_text(original, encoding="utf-8")
    assert answers(_PERMUTED, copied) == (first, 1, 0)
    assert len(index_files()) == 3 and len(unused) == 2
    (copied / file).write_text(original.replace(*change), encoding="utf-8")
    assert answers(_PERMUTED, copied)[1:] == (0, 1)
    assert used in index_files() and not index_files() & unused and len(index_files()) == 2
    # Code that is missing beside its index is compiled anew.
    for path in copied.rglob("*permuted-*.nbc"):
        path.unlink()
    assert answers(_PERMUTED, copied)[1:] == (0, 1)
    assert answers(_PERMUTED, copied)[1:] == (1, 0)
