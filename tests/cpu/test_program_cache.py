"""The folder of compiled programs: used only while nobody else can have written to it."""

import os

import pytest

from pinsage_jax.cpu import program_cache


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder of this user, in an environment without JAX's own variable."""
    monkeypatch.delenv(program_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Set and removed here, so that it is restored after the test.
    monkeypatch.setenv(program_cache.VARIABLE, "-")
    monkeypatch.delenv(program_cache.VARIABLE)
    return tmp_path


def test_the_folder_is_made_for_this_user_alone_and_used_again(home):
    folder = program_cache.keep_programs()
    assert folder is not None and folder.is_relative_to(home)
    assert os.environ[program_cache.VARIABLE] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    del os.environ[program_cache.VARIABLE]
    assert program_cache.keep_programs() == folder


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_jaxs_own_variable_decides(given, home, monkeypatch):
    monkeypatch.setenv(program_cache.VARIABLE, given)
    assert program_cache.keep_programs() is None
    assert os.environ[program_cache.VARIABLE] == given and not list(home.iterdir())


def test_without_a_home_nothing_is_kept(monkeypatch):
    assert program_cache.keep_programs({"XDG_CACHE_HOME": "relative"}) is None


@pytest.mark.parametrize("change", ["open", "link", "owner", "above"])
def test_a_folder_that_others_can_have_written_to_is_not_used(change, home, monkeypatch):
    folder = program_cache.keep_programs()
    del os.environ[program_cache.VARIABLE]
    if change == "open":
        folder.chmod(0o750)
    elif change == "above":
        folder.parent.chmod(0o777)
    elif change == "link":
        folder.rmdir()
        folder.symlink_to(home)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert program_cache.distrust(folder)
    assert program_cache.keep_programs() is None
    assert program_cache.VARIABLE not in os.environ


def test_programs_that_were_last_used_long_ago_are_removed(home):
    folder = program_cache.keep_programs()
    del os.environ[program_cache.VARIABLE]
    for name in ("old-cache", "old-atime", "used-cache", "used-atime", "new-cache"):
        (folder / name).touch()
    for name in ("old-cache", "old-atime", "used-cache"):
        os.utime(folder / name, (1, 1))
    program_cache.keep_programs()
    assert {path.name for path in folder.iterdir()} == {"used-cache", "used-atime", "new-cache"}
