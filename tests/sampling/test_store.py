"""Neighborhood stores: every store has the same lists, and damaged shards are never used."""

import concurrent.futures
import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from small_runs import make_run, nasty_graph, random_params

from pinsage_jax.config.data import DataConfig
from pinsage_jax.config.sampling import SamplingConfig, StoreConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.core import signals
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.sampling import kernels, shards, store
from pinsage_jax.sampling.lists import ListColumn, NeighborLists
from pinsage_jax.sampling.shards import ShardedTable
from pinsage_jax.sampling.store import NeighborhoodSource

SAMPLING = SamplingConfig(num_neighbors=4, num_walks=10, walk_length=2, neighborhood="all")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_NODES", 9)


def fake_rows(begin, end):
    """Ids and counts from which the node can be read, in place of a sampler's."""
    nodes = np.arange(begin, end, dtype=np.int32)[:, None]
    return nodes * 10 + np.arange(3, dtype=np.int32), nodes + np.int32(1) + np.zeros(3, np.int32)


class Recorder:
    """Calls fake_rows and records the arguments."""

    def __init__(self):
        self.calls = []

    def __call__(self, begin, end):
        self.calls.append((begin, end))
        return fake_rows(begin, end)


def assert_whole(table, count):
    rng = np.random.default_rng(0)
    for nodes in (np.arange(count), rng.integers(0, max(count, 1), 50)[:count]):
        ids, counts = table.lookup(nodes.astype(np.int32))
        expected_ids, expected_counts = fake_rows(0, count)
        np.testing.assert_array_equal(ids, expected_ids[nodes])
        np.testing.assert_array_equal(counts, expected_counts[nodes])
        assert ids.dtype == counts.dtype == np.int32


# The last shard is full, not full, or a single node; one shard; none.
@pytest.mark.parametrize("count", [20, 23, 21, 4, 0])
def test_a_table_is_sampled_once_and_then_opened(count, tmp_path):
    recorder = Recorder()
    assert_whole(ShardedTable(tmp_path / "t", count, 3, recorder, 5), count)
    assert recorder.calls == [(begin, min(begin + 5, count)) for begin in range(0, count, 5)]
    again = Recorder()
    assert_whole(ShardedTable(tmp_path / "t", count, 3, again, 5), count)
    assert again.calls == []


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = sys.argv[2].split(os.pathsep)
from test_store import fake_rows
from pinsage_jax.core import files
from pinsage_jax.sampling.shards import ShardedTable

folder = pathlib.Path(sys.argv[1])
if sys.argv[3] == "writing":
    # Dies when a part of the fourth shard's file is written and not yet renamed.
    replace, renamed = os.replace, []
    def cut(source, target):
        renamed.append(target)
        if len(renamed) == 4:
            with open(source, "r+b") as handle:
                handle.truncate(50)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    os.replace = cut

def sample_rows(begin, end):
    if sys.argv[3] == "sampling" and begin == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return fake_rows(begin, end)

ShardedTable(folder, 32, 3, sample_rows, 5)
"""


@pytest.mark.parametrize("when", ["sampling", "writing"])
def test_a_killed_build_resumes_with_the_missing_shards(when, tmp_path):
    here = os.path.dirname(__file__)
    folders = os.pathsep.join([here, os.path.join(here, os.pardir, "helpers")])
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), folders, when], timeout=120)
    assert done.returncode == -signal.SIGKILL
    finished = sorted(path for path in tmp_path.iterdir() if ".tmp-" not in path.name)
    assert len(finished) == 3
    before = [(path.name, path.stat().st_mtime_ns) for path in finished]
    recorder = Recorder()
    assert_whole(ShardedTable(tmp_path, 32, 3, recorder, 5), 32)
    assert recorder.calls == [(15, 20), (20, 25), (25, 30), (30, 32)]
    assert [(path.name, path.stat().st_mtime_ns) for path in finished] == before
    assert len(list(tmp_path.iterdir())) == 7


def test_a_stopped_build_keeps_its_shards(tmp_path, monkeypatch):
    begins = []

    def sample_rows(begin, end):
        begins.append(begin)
        monkeypatch.setattr(signals, "_received", signal.SIGINT if begin == 10 else None)
        return fake_rows(begin, end)

    with pytest.raises(signals.Stopped):
        ShardedTable(tmp_path, 32, 3, sample_rows, 5)
    assert begins == [0, 5, 10]
    monkeypatch.setattr(signals, "_received", None)
    again = Recorder()
    assert_whole(ShardedTable(tmp_path, 32, 3, again, 5), 32)
    assert again.calls[0] == (15, 20)


def flip(index):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[index] ^= 1
        path.write_bytes(bytes(data))

    return damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def empty(path):
    path.write_bytes(b"")


def other_shape(path):
    """Replaces the shard by one of another table, with its valid checksum."""
    folder = path.parent / "other"
    ShardedTable(folder, 10, 2, lambda b, e: tuple(part[:, :2] for part in fake_rows(b, e)), 5)
    [source] = folder.glob("00001-*.npy")
    source.rename(path.parent / source.name)
    path.unlink()
    for rest in folder.iterdir():
        rest.unlink()
    folder.rmdir()


DAMAGES = {
    "first bit": flip(0), "header": flip(70), "a count": flip(-1), "an id": flip(130),
    "truncated": cut, "empty": empty, "another table's": other_shape,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_sampled_again(damage, tmp_path, caplog):
    ShardedTable(tmp_path, 23, 3, fake_rows, 5)
    [path] = tmp_path.glob("00001-*.npy")
    DAMAGES[damage](path)
    recorder = Recorder()
    assert_whole(ShardedTable(tmp_path, 23, 3, recorder, 5), 23)
    assert recorder.calls == [(5, 10)]
    [message] = [line for line in caplog.messages if "is damaged" in line]
    assert message.startswith(str(tmp_path / "00001-")) and "sampled again" in message
    assert len(list(tmp_path.iterdir())) == 5
    caplog.clear()
    ShardedTable(tmp_path, 23, 3, Recorder(), 5)
    assert not caplog.messages


@pytest.mark.parametrize("neighborhood", ["items", "all"])
def test_all_stores_and_numbers_of_threads_have_the_same_lists(
    neighborhood, small_shards, tmp_path
):
    graph = nasty_graph()
    sampling = dataclasses.replace(SAMPLING, neighborhood=neighborhood)
    sources = {
        (kind, threads): NeighborhoodSource(
            graph, sampling, 8, threads, kind, tmp_path / f"{kind}{threads}"
        )
        for kind in ("memory", "disk", "none", "auto")
        for threads in (1, 3)
    }
    rng = np.random.default_rng(1)
    count = sources["none", 1].num_nodes
    nodes = rng.integers(0, count, 70).astype(np.int32)
    masked_neighbor = np.where(rng.random(70) < 0.5, rng.integers(0, 40, 70), -1).astype(np.int32)
    wanted = [
        sources["none", 1].lookup(np.arange(count, dtype=np.int32)),
        sources["none", 1].lookup(nodes, 3, None, masked_neighbor),
    ]
    for (kind, _), source in sources.items():
        cached = source.materialize()
        assert (cached is None) == (kind == "none") and source.materialize() is cached
        found = [
            source.lookup(np.arange(count, dtype=np.int32)),
            source.lookup(nodes, 3, None, masked_neighbor),
        ]
        for one, other in zip(found, wanted):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_array_equal(one.counts, other.counts)
    shards_of = [
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.npy")}
        for name in ("disk1", "disk3")
    ]
    assert shards_of[0] == shards_of[1] and len(shards_of[0]) == -(-count // 9)
    assert not (tmp_path / "memory1").exists() and not (tmp_path / "none1").exists()


def test_auto_depends_on_the_size(monkeypatch, tmp_path):
    graph = nasty_graph()
    size = 8 * graph.num_nodes * SAMPLING.num_neighbors
    for limit, kind in ((size, "memory"), (size - 1, "disk")):
        monkeypatch.setattr(store, "AUTO_BYTES", limit)
        assert NeighborhoodSource(graph, SAMPLING, 0, 1, "auto", tmp_path).store == kind
        assert NeighborhoodSource(graph, SAMPLING, 0, 1, "auto").store == "memory"


def test_the_key_changes_with_everything_that_the_lists_depend_on(monkeypatch):
    graph = nasty_graph()

    def key(graph=graph, seed=3, threads=1, **changes):
        sampling = dataclasses.replace(SAMPLING, **changes)
        return NeighborhoodSource(graph, sampling, seed, threads).key()

    base = key()
    assert key(threads=3) == base and key(hard_walks=7) == base and len(base) == 16
    weighted = dataclasses.replace(graph, weights=np.ones(len(graph.indices), np.float32))
    others = [
        key(seed=4), key(num_neighbors=5), key(num_walks=11), key(walk_length=3),
        key(restart=0.4), key(neighborhood="items"),
        key(graph=nasty_graph(seed=1)),
        key(graph=graph.without(items=np.array([7]))), key(graph=weighted),
    ]  # fmt: skip

    def another_sampler(*arguments):
        sample(*arguments)
        arguments[-1][:] += 1

    sample = kernels.sample_block
    monkeypatch.setattr(kernels, "sample_block", another_sampler)
    others.append(key())
    assert len({base, *others}) == 1 + len(others)


def test_key_of_an_empty_graph():
    none = np.empty(0, np.int32)
    source = NeighborhoodSource(Graph.from_edges(none, none, 0, 0), SAMPLING, 0)
    assert source.num_nodes == 0 and len(source.key()) == 16


def test_other_settings_have_another_folder(small_shards, tmp_path):
    one = NeighborhoodSource(nasty_graph(), SAMPLING, 8, 1, "disk", tmp_path)
    other = one.with_config(dataclasses.replace(SAMPLING, num_walks=40))
    first, second = (source.materialize().lookup(np.arange(40)) for source in (one, other))
    assert not np.array_equal(first[1], second[1])
    assert {path.name for path in tmp_path.iterdir()} == {one.key(), other.key()}


@pytest.mark.parametrize("kind", ["memory", "disk", "none"])
def test_lists_of_all_nodes(kind, small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("pinsage_jax.sampling.lists._ROWS_PER_BLOCK", 7)
    run = make_run(links=3)
    source = NeighborhoodSource(run.graph, run.sampling, run.seed, 2, kind, tmp_path)
    lists = NeighborLists(source, "importance", run.links, 0.5)
    ids, weights = lists.all_rows()
    everyone = np.arange(source.num_nodes, dtype=np.int32)
    wanted_ids, wanted_weights = run.lists.lookup(everyone)
    assert isinstance(ids, ListColumn) == (kind != "memory")
    assert ids.shape == weights.shape == (len(everyone), lists.width) and len(ids) == len(everyone)
    for rows in (slice(0, 5), slice(5, 30), slice(30, 99), slice(3, 3), slice(None)):
        np.testing.assert_array_equal(ids[rows], wanted_ids[rows])
        np.testing.assert_array_equal(weights[rows], wanted_weights[rows])
        np.testing.assert_array_equal(weights[rows], wanted_weights[rows])
    params = random_params(run.model, run.inputs.dim)
    first, second = (
        embed_all(run.model, params, run.inputs, (some, mass), PassOptions(block=16))
        for some, mass in ((ids, weights), (wanted_ids, wanted_weights))
    )
    np.testing.assert_array_equal(first, second)
    if kind != "memory":
        with pytest.raises(IndexError):
            ids[::2]


@pytest.mark.parametrize("kind", ["auto", "none", "memory", "disk"])
def test_a_store_on_disk_does_not_allow_resampling(kind, tmp_path):
    config = Config(
        "train", str(tmp_path), 0, 1, data=DataConfig(edges="e.csv"),
        sampling=SamplingConfig(resample=True), store=StoreConfig(neighborhood_store=kind),
    )  # fmt: skip
    if kind != "disk":
        config.validate()
        return
    with pytest.raises(
        UserError, match=rf"^--neighborhood_store={kind} .*resample=True .*drop one"
    ):
        config.validate()


def test_the_newest_epoch_is_sampled_once_and_an_older_one_on_demand(monkeypatch):
    graph = nasty_graph()
    sampling = dataclasses.replace(SAMPLING, resample=True)
    uncached = NeighborhoodSource(graph, sampling, seed=1, store="none")
    source = NeighborhoodSource(graph, sampling, seed=1, store="memory")
    sampled = []
    sample = source._sample

    def record(nodes, epoch, masked_collection, masked_neighbor, threads):
        sampled.append((epoch, nodes.tolist()))
        return sample(nodes, epoch, masked_collection, masked_neighbor, threads)

    monkeypatch.setattr(source, "_sample", record)
    nodes = np.flatnonzero(graph.degree() > 0).astype(np.int32)
    assert len(nodes) > 6 and nodes[0] < graph.num_items
    masked_collection = np.full(4, -1, np.int32)
    masked_collection[2] = graph.neighbors(nodes[0])[0]
    lookups = [
        # A node with a masked collection is another row than the node without a mask.
        (0, nodes[[3, 1, 0, 3]], masked_collection, [[3, 1, 3], [0]]),
        (0, nodes[[1, 0, 2, 3]], None, [[0, 2]]),
        (0, nodes[[1, 0, 2, 3]], None, []),
        (1, nodes[[1, 5]], None, [[1, 5]]),
        (0, nodes[[1, 0]], None, [[1, 0]]),
        (1, nodes[[5, 6]], None, [[6]]),
    ]
    for epoch, some, masks, newly_sampled in lookups:
        sampled.clear()
        found = source.lookup(some, epoch, masked_collection=masks)
        assert sampled == [(epoch, nodes[part].tolist()) for part in newly_sampled]
        expected = uncached.lookup(some, epoch, masked_collection=masks)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.counts, expected.counts)
        # A caller may write to its lists without changing the cache.
        found.ids[:], found.counts[:] = -7, -7


def test_a_stop_ends_the_build_of_a_table_in_memory(monkeypatch):
    source = NeighborhoodSource(nasty_graph(), SAMPLING, seed=1, store="memory")
    monkeypatch.setattr(signals, "_received", signal.SIGTERM)
    with pytest.raises(signals.Stopped):
        source.materialize()


def test_threads_that_begin_an_epoch_at_once_share_one_table(monkeypatch):
    sampling = dataclasses.replace(SAMPLING, resample=True)
    source = NeighborhoodSource(nasty_graph(), sampling, seed=1, store="memory")
    made, init = [], store.EpochLists.__init__

    def slow(lists, epoch, *others):
        made.append(epoch)
        time.sleep(0.05)
        init(lists, epoch, *others)

    monkeypatch.setattr(store.EpochLists, "__init__", slow)
    nodes = np.arange(4, dtype=np.int32)
    for epoch in (1, 2):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: source.lookup(nodes, epoch), range(8)))  # noqa: B023
    assert made == [1, 2] and source._epoch_lists.epoch == 2


def test_concurrent_lookups_of_an_epoch_have_the_same_lists():
    graph = nasty_graph()
    sampling = dataclasses.replace(SAMPLING, resample=True)
    uncached = NeighborhoodSource(graph, sampling, seed=1, store="none")
    source = NeighborhoodSource(graph, sampling, seed=1, store="memory")
    expected = {epoch: uncached.lookup(np.arange(graph.num_nodes), epoch) for epoch in range(3)}
    rng = np.random.default_rng(0)
    lookups = [
        (epoch + int(late), rng.permutation(graph.num_nodes)[: rng.integers(1, 9)])
        for epoch in (0, 1)
        for late in rng.random(200) < 0.5
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda each: source.lookup(each[1], each[0]), lookups))
    for (epoch, nodes), lists in zip(lookups, found):
        np.testing.assert_array_equal(lists.ids, expected[epoch].ids[nodes])
        np.testing.assert_array_equal(lists.counts, expected[epoch].counts[nodes])


def test_the_default_shard_size():
    assert shards.SHARD_NODES == store.SHARD_NODES == 65536
