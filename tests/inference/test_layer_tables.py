"""Tables of inference that outlive a kill: nothing finished is computed again, nothing
damaged is used."""

import logging
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from small_runs import make_run, random_params

from pinsage_jax.core import signals
from pinsage_jax.core.errors import UserError
from pinsage_jax.inference.encoder import list_rows, split_lists, stored_lists
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.inference.tables import PersistentTables, ScratchTables

ROWS, SHARD = 40, 7


def wanted(begin, end):
    rows = np.arange(begin, end, dtype=np.float32)[:, None]
    return rows * 10 + np.arange(3, dtype=np.float32)


class Recorded:
    """A fill that remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, begin, end, out):
        self.asked.append(begin)
        out[begin:end] = wanted(begin, end)


def fill_all(folder, fill, keep=False):
    table = PersistentTables(folder, SHARD, keep).get_or_fill("vectors", (ROWS, 3), fill)
    np.testing.assert_array_equal(table, wanted(0, ROWS))
    return table


EVERY = list(range(0, ROWS, SHARD))


def test_what_is_there_is_not_filled_again(tmp_path):
    first, again = Recorded(), Recorded()
    table = fill_all(tmp_path / "a", first)
    assert first.asked == EVERY and not table.flags.writeable
    fill_all(tmp_path / "a", again)
    assert again.asked == []


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = sys.argv[2:]
from test_layer_tables import SHARD, ROWS, wanted
from pinsage_jax.inference.tables import PersistentTables

def fill(begin, end, out):
    out[begin:end] = wanted(begin, end)
    if begin == 3 * SHARD:
        # Rows are written, the mark is not.
        os.kill(os.getpid(), signal.SIGKILL)

PersistentTables(pathlib.Path(sys.argv[1]), SHARD).get_or_fill("vectors", (ROWS, 3), fill)
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    here = pathlib.Path(__file__).parent
    paths = [str(here), str(here.parent / "helpers")]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *paths], timeout=300)
    assert done.returncode == -signal.SIGKILL
    again = Recorded()
    fill_all(tmp_path, again)
    assert again.asked == EVERY[3:]


def test_a_stopped_run_keeps_its_shards(tmp_path, monkeypatch):
    fill = Recorded()

    def stopping(begin, end, out):
        fill(begin, end, out)
        monkeypatch.setattr(signals, "_received", signal.SIGINT if begin == 14 else None)

    with pytest.raises(signals.Stopped):
        PersistentTables(tmp_path, SHARD).get_or_fill("vectors", (ROWS, 3), stopping)
    monkeypatch.setattr(signals, "_received", None)
    again = Recorded()
    fill_all(tmp_path, again)
    assert (fill.asked, again.asked) == ([0, 7, 14], EVERY[3:])


def test_a_damaged_shard_is_named_and_filled_again(tmp_path, caplog):
    fill_all(tmp_path, Recorded())
    path = tmp_path / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # in the last shard
    path.write_bytes(data)
    again = Recorded()
    with caplog.at_level(logging.WARNING, "absl"):
        fill_all(tmp_path, again)
    assert again.asked == EVERY[-1:]
    assert "vectors.npy: shard 5 is damaged" in caplog.text
    # One that is too short lost its last shard.
    path.write_bytes(path.read_bytes()[:-8])
    again = Recorded()
    fill_all(tmp_path, again)
    assert again.asked == EVERY[-1:]
    # A table that is no array, or another one, is made again whole.
    path.write_bytes(b"nothing")
    again = Recorded()
    fill_all(tmp_path, again)
    assert again.asked == EVERY
    PersistentTables(tmp_path, SHARD).get_or_fill(
        "vectors", (ROWS, 4), lambda begin, end, out: None
    )
    again = Recorded()
    fill_all(tmp_path, again)
    assert again.asked == EVERY


def test_tables_are_dropped_or_kept(tmp_path):
    for keep, left in ((False, set()), (True, {"layer1"})):
        tables = PersistentTables(tmp_path / str(keep), SHARD, keep)
        for name in ("messages1", "layer1"):
            tables.get_or_fill(name, (ROWS, 3), Recorded())
            tables.drop(name)
        found = {path.name.split(".")[0] for path in (tmp_path / str(keep)).iterdir()}
        assert found == left
    assert PersistentTables(tmp_path / "e", SHARD).get_or_fill("x", (0, 3), Recorded()).shape == (
        0,
        3,
    )


def test_other_folders_are_removed(tmp_path):
    PersistentTables(tmp_path / "old", SHARD)
    mine = PersistentTables(tmp_path / "new", SHARD)
    mine.remove_others()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        PersistentTables(tmp_path / "file" / "folder", SHARD)


def test_lists_as_a_table():
    rng = np.random.default_rng(0)
    ids, weights = rng.integers(-1, 9, (5, 3)).astype(np.int32), rng.random((5, 3), np.float32)
    found = split_lists(list_rows(ids, weights))
    np.testing.assert_array_equal(found[0], ids)
    np.testing.assert_array_equal(found[1], weights)


class Counted(PersistentTables):
    """Kept tables that count the rows computed of each."""

    def __init__(self, *args):
        super().__init__(*args)
        self.rows = {}

    def get_or_fill(self, name, shape, fill, dtype=np.float32):
        def counting(begin, end, out):
            self.rows[name] = self.rows.get(name, 0) + end - begin
            if name == "layer2" and begin >= 2 * SHARD and self.fails:
                raise KeyError("killed")
            fill(begin, end, out)

        return super().get_or_fill(name, shape, counting, dtype)

    fails = False


@pytest.mark.parametrize("neighborhood", ["items", "all"])
def test_inference_resumes_layer_by_layer(tmp_path, neighborhood):
    run = make_run(model={"num_layers": 3}, sampling={"neighborhood": neighborhood})
    params = random_params(run.model, run.inputs.dim)
    nodes = run.lists.source.num_nodes

    def embed(tables):
        lists = stored_lists(tables, run.lists, nodes)
        return embed_all(
            run.model,
            params,
            run.inputs,
            lists,
            PassOptions(
                block=5,
                quiet=True,
                tables=tables,
                adjust=lambda begin, end, rows: rows.__iadd__(np.arange(begin, end)[:, None]),
            ),
        )

    expected = embed(ScratchTables())
    plain = embed_all(
        run.model, params, run.inputs, run.lists.all_rows(), PassOptions(block=5, quiet=True)
    ) + np.arange(nodes)[:, None]  # fmt: skip
    np.testing.assert_allclose(expected, plain, atol=1e-5)
    first = Counted(tmp_path, SHARD, False)
    first.fails = True
    with pytest.raises(KeyError, match="killed"):
        embed(first)
    again = Counted(tmp_path, SHARD, False)
    np.testing.assert_array_equal(embed(again), expected)
    # Layer 1 and what it sent are whole; of layer 2 two shards are.
    assert again.rows == {"layer2": nodes - 2 * SHARD, "messages3": nodes, "vectors": nodes}
    finished = Counted(tmp_path, SHARD, False)
    np.testing.assert_array_equal(embed(finished), expected)
    assert finished.rows == {}
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"lists", "vectors"}
