"""The stages as functions over columns, and what Spark's workers run, without Spark."""

from itertools import pairwise

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from small_runs import make_run, random_params, unit_features

from pinsage_jax.config.spark import SparkConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.inference import map_reduce
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.inference.map_reduce import (
    padded,
    rebatch,
    reduce_lists,
    reduce_messages,
)
from pinsage_jax.spark import layer_tasks, tables
from pinsage_jax.spark.columns import from_column, to_column
from pinsage_jax.spark.embed import expected_messages
from pinsage_jax.spark.layer_tasks import MESSAGE, SELF, Model
from pinsage_jax.spark.table_store import Folder


class Broadcast:
    """Stands in for Spark's."""

    def __init__(self, value: bytes):
        self.value = value


def slow_reduce(pooling, sent, ids, weights):
    out = np.zeros((len(ids), sent.shape[1]), np.float32)
    for row, (names, masses) in enumerate(zip(ids, weights)):
        for node, mass in zip(names, masses):
            if node >= 0 and mass > 0:
                out[row] = (
                    np.maximum(out[row], sent[node])
                    if pooling == "max"
                    else out[row] + mass * sent[node]
                )
    return out


@pytest.fixture
def lists(small_rng):
    ids = small_rng.integers(-1, 20, (9, 5)).astype(np.int32)
    none = (ids < 0) | (small_rng.random((9, 5)) < 0.2)
    weights = np.where(none, 0.0, small_rng.random((9, 5)))
    sent = small_rng.random((20, 7)).astype(np.float32)
    return sent, ids, weights.astype(np.float32)


@pytest.mark.parametrize("pooling", ["importance", "mean", "max"])
def test_lists_and_messages_reduce_alike(pooling, lists, small_rng):
    sent, ids, weights = lists
    expected = slow_reduce(pooling, sent, ids, weights)
    out = np.full((9, 7), 5.0, np.float32)
    reduce_lists(pooling, sent, ids, weights, out)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    # The same as messages in any order, in two parts that are reduced again.
    receivers = np.repeat(np.arange(9), 5)
    there = small_rng.permutation(np.flatnonzero((ids.ravel() >= 0) & (weights.ravel() > 0)))
    partial = []
    for some in (there[:11], there[11:]):
        part = np.zeros((9, 7), np.float32)
        vectors = sent[ids.ravel()[some]]
        reduce_messages(pooling, vectors, receivers[some], weights.ravel()[some], part)
        partial.append(part)
    again = np.zeros((9, 7), np.float32)
    ones = np.ones(18, np.float32)
    reduce_messages(pooling, np.concatenate(partial), np.tile(np.arange(9), 2), ones, again)
    np.testing.assert_allclose(again, expected, rtol=1e-5)


def test_the_parameters_are_placed_once_for_all_blocks(monkeypatch):
    """Arrays of the host would be sent to the device with every block."""
    run = make_run(features=unit_features(40), links=2, model={"neighbor_embeddings": "on"})
    placed = random_params(run.model, run.inputs.dim, run.lists.source.num_nodes)
    params, given = jax.tree.map(np.array, placed), []
    compiled = map_reduce.compiled_stages

    def recording(*arguments):
        def recorded(stage):
            def call(params, *rest):
                given.append(jax.tree.leaves(params))
                return stage(params, *rest)

            return call

        return {name: recorded(stage) for name, stage in compiled(*arguments).items()}

    monkeypatch.setattr(map_reduce, "compiled_stages", recording)
    lists = run.lists.all_rows()
    embed_all(run.model, params, run.inputs, lists, PassOptions(block=16))
    assert len(given) > 6 and len(given[0]) > 5
    for leaves in given:
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        assert all(one is other for one, other in zip(leaves, given[0], strict=True))


@pytest.mark.parametrize("sizes", [[], [0], [3], [4], [1, 9, 0, 2], [13]])
def test_batches_are_cut_to_one_size(sizes):
    begins = np.cumsum([0, *sizes])
    pieces = [(np.arange(a, b), np.arange(a, b) * 2.0) for a, b in pairwise(begins)]
    found = list(rebatch(iter(pieces), 4))
    assert [len(piece[0]) for piece in found] == [4] * (sum(sizes) // 4) + [sum(sizes) % 4] * bool(
        sum(sizes) % 4
    )
    if found:
        joined = [np.concatenate(columns) for columns in zip(*found)]
        np.testing.assert_array_equal(joined[0], np.arange(sum(sizes)))
        np.testing.assert_array_equal(joined[1], np.arange(sum(sizes)) * 2.0)


def test_padding_is_cut():
    seen = []

    def double(rows, weights):
        seen.append((rows.shape, weights.shape))
        return rows * 2 + weights[:, None]

    out = padded(double, [np.ones((3, 2)), np.arange(3.0)], 8)
    assert seen == [((8, 2), (8,))]
    np.testing.assert_array_equal(out, [[2, 2], [3, 3], [4, 4]])


@pytest.mark.parametrize("rows,width", [(0, 3), (1, 1), (5, 4)])
def test_vectors_travel_as_binary(rows, width, small_rng):
    vectors = small_rng.normal(size=(rows, width)).astype(np.float32)
    column = to_column(vectors)
    np.testing.assert_array_equal(from_column(column, width), vectors)
    np.testing.assert_array_equal(from_column(column.slice(1), width), vectors[1:])
    assert column.to_pylist() == [row.astype("<f4").tobytes() for row in vectors]
    if rows:
        with pytest.raises(ValueError, match="does not have"):
            from_column(column, width + 1)
        with pytest.raises(ValueError, match="missing"):
            from_column(pa.array([None], pa.binary()), width)


def test_parameters_travel_as_arrays():
    run = make_run(features=unit_features(40))
    params = random_params(run.model, run.inputs.dim, 40)
    found = layer_tasks.unpack(layer_tasks.pack(params))
    assert found["params"].keys() == params["params"].keys()
    np.testing.assert_array_equal(found["params"]["G1"]["kernel"], params["params"]["G1"]["kernel"])
    np.testing.assert_array_equal(
        found["params"]["neighbor_embeddings"], params["params"]["neighbor_embeddings"]
    )


def in_batches(table: pa.Table, size: int) -> list[pa.RecordBatch]:
    return table.combine_chunks().to_batches(size)


@pytest.mark.parametrize("pooling", ["importance", "max"])
@pytest.mark.parametrize("size,block", [(1, 3), (7, 40), (1000, 16)])
def test_tasks_in_turn_are_the_local_engine(pooling, size, block, monkeypatch):
    """Project, join, reduce in two partitions, sort and finish, with Arrow in Spark's place."""
    monkeypatch.setattr(layer_tasks, "_BLOCK_MESSAGES", 5)
    monkeypatch.setattr(layer_tasks, "_SUMS_BYTES", 4 * 12 * 9)
    run = make_run(features=unit_features(40), links=2, model={"pooling": pooling})
    params = random_params(run.model, run.inputs.dim, 40)
    nodes = np.arange(40, dtype=np.int32)
    ids, weights = run.lists.lookup(nodes)
    expected = embed_all(
        run.model, params, run.inputs, (ids, weights), PassOptions(block=64, quiet=True)
    )
    data = Broadcast(layer_tasks.pack(params))
    model = Model(f"{pooling} {block}", run.model, data, run.inputs.dim, block)
    state = pa.table(
        {"node": nodes.astype(np.int64), "vector": to_column(run.inputs.gather(nodes))}
    )
    receivers, senders = np.repeat(nodes, ids.shape[1]), ids.ravel()
    there = np.flatnonzero((senders >= 0) & (weights.ravel() > 0))
    for layer in (1, 2):
        messages_of = pa.Table.from_batches(
            layer_tasks.project(model, layer)(in_batches(state, size))
        )
        vectors = messages_of["vector"].combine_chunks()
        assert messages_of["node"].to_pylist() == list(range(40))
        parts = []
        for partition in (there[::2], there[1::2]):
            messages = pa.table(
                {
                    "node": receivers[partition].astype(np.int64),
                    "weight": weights.ravel()[partition],
                    "vector": vectors.take(pa.array(senders[partition])),
                }
            )
            task = layer_tasks.combine_messages(model)
            found = pa.Table.from_batches(task(in_batches(messages, size)))
            assert found.num_rows < messages.num_rows
            parts.append(found)
        rows = pa.concat_tables(
            [
                pa.table(
                    {
                        "node": part["node"],
                        "part": np.full(part.num_rows, kind, np.int32),
                        "weight": part["weight"] if kind else np.zeros(40, np.float32),
                        "vector": part["vector"],
                    }
                )
                for kind, part in [(SELF, state), *[(MESSAGE, part) for part in parts]]
            ]
        ).sort_by([("node", "ascending"), ("part", "ascending")])
        task = layer_tasks.finish(model, layer)
        state = pa.Table.from_batches(task(in_batches(rows, size)))
        assert state["node"].to_pylist() == list(range(40))
    found = from_column(state["vector"], run.model.output_dim)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_message_to_a_node_without_a_row_is_refused():
    run = make_run(features=unit_features(40), model={"num_layers": 1})
    params = random_params(run.model, run.inputs.dim)
    data = Broadcast(layer_tasks.pack(params))
    model = Model("nobody", run.model, data, run.inputs.dim, 8)
    self_row = to_column(np.ones((1, run.inputs.dim), np.float32)).to_pylist()
    message = to_column(np.ones((1, 12), np.float32)).to_pylist()
    for nodes, parts, vectors in (
        ([1, 2], [SELF, MESSAGE], self_row + message),
        ([2], [MESSAGE], message),
    ):
        rows = {
            "node": pa.array(nodes, pa.int64()),
            "part": pa.array(parts, pa.int32()),
            "weight": pa.array([1.0] * len(nodes), pa.float32()),
            "vector": pa.array(vectors, pa.binary()),
        }
        with pytest.raises(ValueError, match="message"):
            list(layer_tasks.finish(model, 1)(in_batches(pa.table(rows), 9)))


@pytest.mark.parametrize("links", [0, 3])
@pytest.mark.parametrize("pooling", ["importance", "mean"])
def test_lists_of_walks_made_elsewhere(links, pooling, tmp_path):
    run = make_run(features=unit_features(40), links=links, model={"pooling": pooling})
    nodes = np.arange(40, dtype=np.int32)
    walked = run.lists.source.lookup(nodes)
    tables.write_links(Folder(str(tmp_path)) / "links", run.lists)
    (path,) = (tmp_path / "links").glob("*.parquet")
    table = pa.parquet.read_table(path)
    short = [
        [None if ids[0] < 0 else [v for v, i in zip(values, ids) if i >= 0] for values, ids in rows]
        for rows in (
            zip(walked.ids.tolist(), walked.ids),
            zip(walked.counts.tolist(), walked.ids),
        )
    ]
    for name, column in zip(("walked", "counts"), short):
        table = table.append_column(name, pa.array(column, pa.list_(pa.int32())))
    task = layer_tasks.blend_lists(run.lists.source.sampling, pooling)
    found = pa.Table.from_batches(task(in_batches(table, 7)))
    ids, weights = run.lists.lookup(nodes)
    np.testing.assert_array_equal(np.array(found["ids"].to_pylist()), ids)
    np.testing.assert_array_equal(np.array(found["weights"].to_pylist(), np.float32), weights)


def test_edges_are_written_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_GROUP_BYTES", 20 * 7)
    monkeypatch.setattr(tables, "_GROUPS_PER_FILE", 2)
    run = make_run(features=unit_features(40))
    tables.write_edges(Folder(str(tmp_path)) / "edges", run.graph)
    paths = sorted((tmp_path / "edges").glob("*.parquet"))
    assert len(paths) == -(-run.graph.num_edges // 14)
    assert pa.parquet.ParquetFile(paths[0]).metadata.row_group(0).num_rows == 7
    found = pa.concat_tables([pa.parquet.read_table(path) for path in paths])
    expected = [
        (item, int(node) - 40)
        for item in range(40)
        for node in run.graph.indices[run.graph.indptr[item] : run.graph.indptr[item + 1]]
    ]
    assert list(zip(*(found[name].to_pylist() for name in ("item", "collection")))) == expected


def test_expected_messages_are_the_mean_of_random_shuffles(small_rng):
    for width, shards in ((20, 4), (20, 12), (6, 1)):
        drawn = small_rng.integers(0, shards, (4000, width))
        left = np.mean([len(set(row)) for row in drawn.tolist()])
        assert expected_messages(width, shards) == pytest.approx(left, rel=0.02)
    # Where reducing first would save little, every message is sent.
    assert expected_messages(20, 1000) == 20 and expected_messages(1, 3) == 1


@pytest.mark.parametrize("text", ["spark.a", "a=b", "=b"])
def test_settings_of_spark_are_checked(text):
    with pytest.raises(UserError, match="--spark_conf"):
        SparkConfig(spark_conf=f"spark.x=1, {text}").validate()
    assert SparkConfig(spark_conf="spark.x=a=b,").spark_settings() == {"spark.x": "a=b"}
