"""Replacing a folder: after a kill at any moment exactly one complete version is left."""

import pathlib
import subprocess
import sys

import pytest

# Replaces a folder of two files and ends the process at the n-th system call, before or after
# it, for every n; prints how many calls there are and which versions were found afterwards.
KILLED = """
import os, pathlib, shutil, sys
from pinsage_jax.core import files

root, exchanges = pathlib.Path(sys.argv[1]), sys.argv[2] == "exchange"
calls_of_os = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")
real = {name: getattr(os, name) for name in calls_of_os}
exchange = files._exchange if exchanges else (lambda first, second: False)


def write(version, stop_at=None, after=False):
    calls = 0

    def counted(function):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == stop_at and not after:
                os._exit(9)
            try:
                return function(*arguments, **named)
            finally:
                if calls == stop_at and after:
                    os._exit(9)

        return call

    for name, function in real.items():
        setattr(os, name, counted(function))
    files._exchange = counted(exchange)
    with files.atomic_folder(root / "data") as folder:
        for name in ("a", "b"):
            (folder / name).write_text(version)
        (folder / "inner").mkdir()
        (folder / "inner" / "c").write_text(version)
    return calls


found = set()
for after in (False, True):
    stop_at, finished = 0, False
    while not finished:
        stop_at += 1
        shutil.rmtree(root / "data", ignore_errors=True)
        for name, function in real.items():
            setattr(os, name, function)
        write("old")
        for name, function in real.items():
            setattr(os, name, function)
        child = os.fork()
        if child == 0:
            write("new", stop_at, after)
            os._exit(0)
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        files.remove_temporary_files(root)
        assert [path.name for path in root.iterdir()] == ["data"], (stop_at, list(root.iterdir()))
        versions = {path.read_text() for path in (root / "data").rglob("*") if path.is_file()}
        names = sorted(path.name for path in (root / "data").rglob("*"))
        assert names == ["a", "b", "c", "inner"] and len(versions) == 1, (stop_at, names, versions)
        found |= versions
    assert versions == {"new"}
print(stop_at, *sorted(found))
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_replaced_folder_is_whole_wherever_the_process_is_killed(way, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), way],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    calls, *versions = done.stdout.split()
    assert int(calls) > 8 and versions == ["new", "old"]
