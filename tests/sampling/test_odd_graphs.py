"""Degenerate graphs: no node, one, two, star, clique, chain, components, a huge hub.

By default they are prepared and sampled.  The long suite runs the whole pipeline, which
must succeed or report in one sentence that the graph is too small for training.
"""

import contextlib
import io
import itertools
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinsage_jax import main
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.sampling.store import NeighborhoodSource

# (collection, item) by name of the shape.
SHAPES = {
    "one item in one collection": [(0, 0)],
    "two items in one collection": [(0, 0), (0, 1)],
    "one item in two collections": [(0, 0), (1, 0)],
    "the same edge a hundred times": [(0, 0)] * 100,
    "star around a collection": [(0, item) for item in range(40)],
    "star around an item": [(collection, 0) for collection in range(40)],
    "clique": [
        (number, item)
        for number, pair in enumerate(itertools.combinations(range(12), 2))
        for item in pair
    ],
    "chain": [(number, number + side) for number in range(40) for side in (0, 1)],
    "two components": [(c + 10 * half, i + 20 * half)
                       for half in (0, 1) for c in range(10) for i in range(20) if (c + i) % 3],
    "every collection has one item": [(number, number) for number in range(30)],
}  # fmt: skip


def write_edges(path, edges):
    """Edges int [E, 2] (collection, item), or a list of such pairs, as Parquet."""
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    pq.write_table(pa.table({"collection_id": edges[:, 0], "item_id": edges[:, 1]}), path)
    return path


def run(*arguments):
    """(exit code, output on stderr) of the program."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = main.main(["program", "--verbosity=error", *arguments])
    return code, stderr.getvalue()


def components(edges):
    """The connected component of each item, by a graph search."""
    found = {}
    for start in {item for _, item in edges}:
        if start in found:
            continue
        waiting = [start]
        while waiting:
            item = waiting.pop()
            if item not in found:
                found[item] = start
                inside = {c for c, i in edges if i == item}
                waiting += [i for c, i in edges if c in inside]
    return found


def test_no_edge_at_all(tmp_path):
    path = write_edges(tmp_path / "edges.parquet", [])
    code, stderr = run(f"--edges={path}", f"--workdir={tmp_path / 'w'}", "--mode=prepare")
    assert code == 2 and stderr == f"error: --edges={path} has no rows.\n"


@pytest.mark.parametrize("shape", SHAPES)
def test_prepare_and_sample(shape, tmp_path):
    edges = SHAPES[shape]
    path = write_edges(tmp_path / "edges.parquet", edges)
    assert run(f"--edges={path}", f"--workdir={tmp_path / 'w'}", "--mode=prepare") == (0, "")
    prepared = open_prepared(tmp_path / "w")
    graph = prepared.graph
    assert graph.num_edges == len(set(edges))
    assert graph.num_items == len({item for _, item in edges})
    settings = SamplingConfig(num_neighbors=5, num_walks=30)
    source = NeighborhoodSource(graph, settings, 0, 1)
    lists = source.lookup(np.arange(graph.num_items, dtype=np.int32))
    names = [int(name) for name in prepared.item_ids.ids.to_pylist()]
    component = components(edges)
    for item, (row, counts) in enumerate(zip(lists.ids, lists.counts)):
        neighbors = row[counts > 0]
        assert all(0 <= other < graph.num_items and other != item for other in neighbors)
        assert {component[names[other]] for other in neighbors} <= {component[names[item]]}
        co_members = {i for c, i in edges for d, j in edges if c == d and j == names[item]}
        assert (len(neighbors) > 0) == (len(co_members) > 1)


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_pipeline(shape, tmp_path):
    path, work = write_edges(tmp_path / "edges.parquet", SHAPES[shape]), tmp_path / "w"
    small = ["--batch_size=16", "--random_negatives=8", "--max_steps=3", "--hidden_dim=8"]
    small += ["--layer_dim=8", "--output_dim=8", "--spectral_dim=4", "--embed_walks=auto"]
    small += ["--num_walks=20", "--hard_walks=20", "--bootstrap=0"]
    code, stderr = run(f"--edges={path}", f"--workdir={work}", *small)
    one_error = code == 2 and re.fullmatch(r"error: [^\n]+[.?]\n", stderr)
    assert (code, stderr) == (0, "") or one_error, stderr
    assert not [path for path in work.rglob("*") if ".tmp-" in path.name]
    if code == 0:
        table = pq.read_table(work / "embeddings" / "part-00000.parquet")
        vectors = np.array(table["embedding"].to_pylist(), np.float32)
        assert np.isfinite(vectors).all() and len(vectors) == len({i for _, i in SHAPES[shape]})


@pytest.mark.long
def test_a_hub_of_a_million(tmp_path):
    hub = np.stack([np.zeros(10**6, np.int64), np.arange(10**6)], 1)
    rest = np.stack([1 + np.arange(10**4) % 1000, np.arange(10**4)], 1)
    path = write_edges(tmp_path / "edges.parquet", np.concatenate([hub, rest]))
    assert run(f"--edges={path}", f"--workdir={tmp_path / 'w'}", "--mode=prepare") == (0, "")
    graph = open_prepared(tmp_path / "w").graph
    assert graph.num_edges == 10**6 + 10**4 and graph.degree().max() == 10**6
    source = NeighborhoodSource(graph, SamplingConfig(num_neighbors=20, num_walks=100), 0, 1)
    lists = source.lookup(np.arange(0, 10**6, 1000, dtype=np.int32))
    assert (lists.counts.sum(axis=1) > 0).all() and (lists.ids < 10**6).all()
