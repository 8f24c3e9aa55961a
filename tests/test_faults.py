"""Full disks and damaged files raise errors that name the file; no incomplete file is used.

A limit on the file size (RLIMIT_FSIZE) stands in for a full disk: it needs no privileges
and applies to whatever library writes.  benchmarks/full_disk.py does the same on a small
real disk.  Damaged checkpoints, stores and exports are tested in test_checkpoints.py,
test_store.py and test_reader.py.
"""

import contextlib
import errno
import json
import logging
import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pinsage_jax import main
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.data import SyntheticCatalog, SyntheticConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.csr import Graph
from pinsage_jax.sampling import spectral
from pinsage_jax.stages.prepare import prepare
from pinsage_jax.training.checkpoints import Checkpoints

CATALOG = SyntheticCatalog(
    items=60, collections=20, edges=300, topics=4,
    styles=2, pairs=20,
)  # fmt: skip


@contextlib.contextmanager
def small_disk(max_bytes):
    """Limits every file that this process writes to `max_bytes`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def config_for(workdir):
    return Config(
        "prepare", str(workdir), 0, 1, synthetic=SyntheticConfig(True, synthetic_catalog=CATALOG)
    )


@pytest.fixture(scope="module")
def prepared_workdir(tmp_path_factory):
    """A prepared workdir."""
    folder = tmp_path_factory.mktemp("prepared_workdir") / "run"
    prepare(config_for(folder))
    return folder


@pytest.fixture
def workdir(prepared_workdir, tmp_path):
    shutil.copytree(prepared_workdir, tmp_path / "run")
    return tmp_path / "run"


def bytes_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("max_bytes", [0, 100, 2_000, 6_000])
def test_a_full_disk_during_prepare(max_bytes, tmp_path):
    with small_disk(max_bytes), pytest.raises(UserError, match="No space left while writing"):
        prepare(config_for(tmp_path / "run"))
    left = {path.name for path in (tmp_path / "run").glob("*")}
    assert left <= {"inputs"}, left
    # With space on the disk the same command succeeds.
    assert prepare(config_for(tmp_path / "run")).graph.num_items == 60


def test_the_program_ends_with_2_on_a_full_disk(tmp_path):
    script = (
        "import resource, sys; from pinsage_jax import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sys.exit(main.main(['program', *sys.argv[1:]]))"
    )
    flags = ["--synthetic", "--synthetic_size=60x300"]
    done = subprocess.run(
        [sys.executable, "-c", script, "--mode=prepare", f"--workdir={tmp_path}", *flags],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(main.__file__).parent.parent,
    )
    assert done.returncode == 2, done.stderr
    assert "error: No space left while writing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_full_disk_is_a_user_error(code, tmp_path):
    with (
        pytest.raises(UserError, match=rf"No space left while writing {tmp_path} \(.+\); free"),
        files.reported_os_errors(tmp_path),
    ):
        raise OSError(code, "what the system says")


def test_a_failed_write_of_an_array_keeps_the_old_file(tmp_path):
    files.write_array(tmp_path / "a.npy", np.arange(3))
    with small_disk(1000), pytest.raises(UserError, match=r"No space left while writing .*a\.npy"):
        files.write_array(tmp_path / "a.npy", np.zeros((1000, 3)))
    assert files.read_array(tmp_path / "a.npy").tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.float32(2), np.arange(6).reshape(2, 3).T])
def test_arrays_are_read_as_they_were_written(array, tmp_path):
    files.write_array(tmp_path / "a.npy", array)
    found = files.read_array(tmp_path / "a.npy", mmap=False)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype and found.shape == array.shape


def test_a_checkpoint_checks_the_free_space_before_it_writes(tmp_path, monkeypatch):
    state = {"w": np.zeros(1 << 16, np.float32)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {})
        usage = shutil.disk_usage(tmp_path)
        for free, fits in ((1 << 18, False), ((1 << 18) * 3, True)):
            monkeypatch.setattr(shutil, "disk_usage", lambda _, f=free: usage._replace(free=f))
            if fits:
                checkpoints.save(2, state, {})
                continue
            with pytest.raises(UserError, match=r"No space left while writing .*checkpoints"):
                checkpoints.save(2, state, {})
            assert checkpoints.latest_step() == 1
    assert checkpoints.steps() == [1, 2]


def test_new_array_allocates_its_disk_space_at_once(tmp_path):
    array = files.new_array(tmp_path / "a.npy", np.int64, (1000, 3))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes
    assert array.shape == (1000, 3) and array.dtype == np.int64 and not array.any()
    array[5] = 7
    array.flush()
    assert files.read_array(tmp_path / "a.npy")[5].tolist() == [7, 7, 7]
    # Otherwise the first write to an unallocated page would kill the process with SIGBUS.
    with small_disk(1000), pytest.raises(OSError) as caught:
        files.new_array(tmp_path / "b.npy", np.int64, (1000, 3))
    assert caught.value.errno == errno.EFBIG


PREPARED = [
    "manifest.json",
    "graph/manifest.json",
    "graph/indptr.npy",
    "graph/indices.npy",
    "features/features.npy",
    "features/transform.json",
    "item_ids.arrow",
    "collection_ids.arrow",
    "titles.arrow",
    "columns.parquet",
    "train_pairs.npy",
    "eval_pairs.npy",
    "eval_kinds.json",
]


def damage(path, way):
    whole = path.read_bytes()
    if way == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif way == "gone":
        path.unlink()
    else:
        corrupted = bytearray(whole)
        corrupted[len(whole) // 2] ^= 1
        path.write_bytes(bytes(corrupted))


def test_the_list_of_prepared_files_is_complete(prepared_workdir):
    found = set(bytes_of(prepared_workdir / "prepared"))
    assert set(PREPARED) == found


@pytest.mark.parametrize("way", ["middle", "cut", "gone"])
@pytest.mark.parametrize("name", PREPARED)
def test_a_damaged_prepared_file_is_named_and_written_again(
    name, way, prepared_workdir, workdir, caplog
):
    path = workdir / "prepared" / name
    damage(path, way)
    with pytest.raises(UserError) as caught:
        open_prepared(workdir)
    named = path.parent if name == "manifest.json" and way == "gone" else path
    assert str(named) in str(caught.value) and "\n" not in str(caught.value)
    prepare(config_for(workdir))
    again, before = bytes_of(workdir / "prepared"), bytes_of(prepared_workdir / "prepared")
    # The manifest holds the paths of the inputs, which are in the workdir.
    again.pop("manifest.json"), before.pop("manifest.json")
    assert again == before
    if name != "manifest.json":
        assert any(str(path) in record.getMessage() for record in caplog.records)


def test_verified_files_are_read_once_and_changed_files_again(tmp_path, monkeypatch):
    read = []
    checksum = files.checksum
    monkeypatch.setattr(files, "checksum", lambda path: read.append(path.name) or checksum(path))
    old = files.time.time_ns() - 10**10
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        files.os.utime(tmp_path / name, ns=(old, old))
    wanted = files.checksums(tmp_path, ["a", "b"])
    del read[:]
    files.verify_checksums(tmp_path, wanted)
    files.verify_checksums(tmp_path, wanted)
    assert read == ["a", "b"]
    (tmp_path / "b").write_text("c")
    with pytest.raises(UserError, match="b is damaged"):
        files.verify_checksums(tmp_path, wanted)
    # A file written just now is read each time: it may change without a new mtime.
    (tmp_path / "b").write_text("b")
    files.verify_checksums(tmp_path, wanted)
    files.verify_checksums(tmp_path, wanted)
    assert read == ["a", "b", "b", "b", "b"]


@pytest.mark.parametrize("name", ["manifest.json", "bases.npy"])
@pytest.mark.parametrize("way", ["middle", "cut", "gone"])
def test_damaged_spectral_features_are_computed_again(name, way, tmp_path, caplog):
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 12, (2, 60)).astype(np.int32)
    graph = Graph.from_edges(edges[0], edges[1] % 6, 12, 6)
    first = np.array(spectral.saved_bases(tmp_path, graph, 4, 0, "mark"))
    path = tmp_path / spectral.FOLDER / name
    damage(path, way)
    with caplog.at_level(logging.WARNING):
        again = spectral.saved_bases(tmp_path, graph, 4, 0, "mark")
    np.testing.assert_array_equal(first, again)
    # A folder without a manifest counts as absent, so there is nothing to report.
    assert (str(path) in caplog.text) == ((name, way) != ("manifest.json", "gone"))


def test_json_with_a_checksum(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"c": "é"}}
    files.write_checked_json(tmp_path / "m.json", value)
    assert files.read_checked_json(tmp_path / "m.json") == value
    for other in ([], {}, value, {**json.loads((tmp_path / "m.json").read_text()), "a": []}):
        files.write_json(tmp_path / "m.json", other)
        with pytest.raises(UserError, match=r"m\.json is damaged \(its checksum does not match\)"):
            files.read_checked_json(tmp_path / "m.json")
