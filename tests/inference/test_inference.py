"""Layer-wise embedding against the sampled path, and the export's round trip."""

import dataclasses
import gc
import weakref
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference_model as slow
from small_runs import embed_batch, make_run, nasty_graph, random_params, unit_features

from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.core import files
from pinsage_jax.data.ids import IdTable
from pinsage_jax.export import writer
from pinsage_jax.inference import layerwise, on_devices
from pinsage_jax.inference.layerwise import PassOptions, embed_all
from pinsage_jax.inference.tables import PersistentTables, ScratchTables
from pinsage_jax.model.pinsage import PinSage

FEATURES = unit_features(40)
FEATURES[[0, 7, 12]] = 0.0  # items without features, one of them without edges


def embedded(run, params, **settings):
    nodes = np.arange(run.lists.source.num_nodes, dtype=np.int32)
    ids, weights = run.lists.lookup(nodes)
    return embed_all(
        run.model,
        params,
        run.inputs,
        (ids, weights),
        PassOptions(**{"block": 64, "quiet": True, **settings}),
    )


def sampled(run, params, steps):
    """{node: vector} from minibatches that hide and strip nothing."""
    builder = run.builder()
    num_ids = len(params["params"].get("neighbor_embeddings", ()))
    model = PinSage(run.model, builder.budgets.rows, num_ids)
    found = {}
    for step in range(steps):
        batch, info = builder.make(step)
        assert info.left_out == 0
        out = embed_batch(model, params, batch)
        for rows, names in (
            (batch.queries, batch.query_ids),
            (batch.targets, batch.target_ids),
            (batch.negatives, batch.negative_ids),
        ):
            for row, name in zip(rows[0], names[0]):
                if name >= 0:
                    found[int(name)] = out[row]
    return found


CASES = [
    {"model": {"num_layers": 0}},
    {"model": {"num_layers": 1}},
    {"model": {"num_layers": 2}, "links": 3},
    {"model": {"num_layers": 3}},
    {"model": {"num_layers": 2, "pooling": "max"}, "links": 2},
    {"model": {"num_layers": 2, "pooling": "mean"}},
    {"model": {"num_layers": 2, "skip": False, "popularity_bias": False}},
    {"model": {"num_layers": 1, "isolated_feature": False}},
]


# Every case over one kind of neighborhood, K = 1 and 2 over both.
BOTH = [(case, ("items", "all")[place % 2]) for place, case in enumerate(CASES)]
BOTH += [(CASES[1], "items"), (CASES[2], "all")]


@pytest.mark.parametrize("case,neighborhood", BOTH)
def test_layerwise_equals_the_sampled_path(case, neighborhood):
    run = make_run(
        features=FEATURES,
        train={"random_negatives": 150},
        **case,
        masked=False,
        sampling={"neighborhood": neighborhood},
    )
    num_ids = run.lists.source.num_nodes if run.model.num_layers else 0
    params = random_params(run.model, run.inputs.dim, num_ids)
    vectors = embedded(run, params, block=16)
    assert vectors.shape == (52 if neighborhood == "all" else 40, 8)
    assert vectors.dtype == np.float32
    found = sampled(run, params, 4)
    # Every item, those without edges or features too.
    assert set(found) == set(range(40))
    for node, vector in found.items():
        np.testing.assert_allclose(vectors[node], vector, rtol=1e-4, atol=1e-5)
    assert np.abs(vectors[5] - vectors[6]).max() > 1e-3


@pytest.mark.parametrize("pooling", ["importance", "max"])
def test_layerwise_equals_the_reference_for_every_node(pooling):
    run = make_run(
        features=FEATURES,
        links=2,
        sampling={"neighborhood": "all"},
        model={"pooling": pooling},
    )
    params = random_params(run.model, run.inputs.dim, run.graph.num_items)
    nodes = np.arange(run.graph.num_nodes, dtype=np.int32)
    ids, weights = run.lists.lookup(nodes)
    lists = {
        int(node): [(int(n), float(w)) for n, w in zip(ids[node], weights[node]) if n >= 0]
        for node in nodes
    }
    expected = slow.embed(
        params,
        dict(enumerate(run.inputs.gather(nodes))),
        lists,
        nodes.tolist(),
        layers=2,
        pooling=pooling,
        normalized=True,
    )
    np.testing.assert_allclose(embedded(run, params), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block,threads", [(1, 1), (7, 3), (39, 1), (41, 3), (1000, 1)])
def test_block_size_and_threads_do_not_matter(block, threads, monkeypatch):
    monkeypatch.setattr(layerwise, "_REDUCE_ROWS", 5)
    run = make_run(features=FEATURES, links=2)
    params = random_params(run.model, run.inputs.dim)
    whole = embedded(run, params, block=40)
    np.testing.assert_allclose(
        embedded(run, params, block=block, threads=threads), whole, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4], CASES[5]])
def test_a_pass_on_the_devices_equals_the_pass_on_the_host(case, monkeypatch, tmp_path):
    run = make_run(features=FEATURES, **case)
    num_ids = run.lists.source.num_nodes if run.model.num_layers else 0
    params = random_params(run.model, run.inputs.dim, num_ids)
    whole = embedded(run, params)
    monkeypatch.setattr(on_devices, "holds_messages", lambda *_: True)
    monkeypatch.setattr(layerwise, "_Pass", None)
    # Five blocks on four devices, the last one short; shards that are no multiple of blocks.
    tables = PersistentTables(tmp_path / "tables", shard_rows=13)
    for options in ({"block": 9}, {"block": 1000}, {"block": 9, "tables": tables}):
        found = embedded(run, params, **options)
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


def test_a_pass_on_the_devices_computes_the_rows_that_are_needed(monkeypatch, small_rng):
    run = make_run(features=FEATURES)
    params = random_params(run.model, run.inputs.dim)
    rows = layerwise.NeededRows(small_rng.permutation(40).astype(np.int32)[:35], (35, 20, 11))
    # The lists of the last layer's rows name rows of the layer before.
    ids = small_rng.integers(-1, np.where(np.arange(20) < 11, 20, 35)[:, None], (20, 4), np.int32)
    weights = np.where(ids >= 0, small_rng.random((20, 4)), 0).astype(np.float32)
    options = PassOptions(8, quiet=True, adjust=lambda begin, end, out: np.negative(out, out=out))
    given = (run.model, params, run.inputs, (ids, weights), options, rows)
    whole = embed_all(*given)
    monkeypatch.setattr(on_devices, "holds_messages", lambda *_: True)
    found = embed_all(*given)
    assert found.shape == (11, 8)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


def test_messages_stay_on_accelerators_that_have_room(monkeypatch):
    config = make_run(features=FEATURES).model
    needed = 4 * 10 * (2 * config.hidden_dim + config.layer_dim)
    assert not on_devices.holds_messages(config, 10)
    monkeypatch.setattr(on_devices.jax, "default_backend", lambda: "gpu")
    for room in (needed - 1, needed):
        monkeypatch.setattr(on_devices, "max_table_bytes", lambda devices: room)  # noqa: B023
        assert on_devices.holds_messages(config, 10) == (room == needed)


def test_every_node_is_computed_once_per_layer(monkeypatch):
    """Rows put through the network: N per stage, whatever the lists."""
    rows = []
    original = layerwise._in_blocks

    def counting(function, inputs, span, block, out, progress):
        rows.append(span[1] - span[0])
        original(function, inputs, span, block, out, progress)

    monkeypatch.setattr(layerwise, "_in_blocks", counting)
    run = make_run(features=FEATURES)
    embedded(run, random_params(run.model, run.inputs.dim))
    assert set(rows) == {40}
    assert len(rows) <= 2 * run.model.num_layers + 1


def test_tables_are_freed_at_once():
    """Not when a collector of cycles comes by: they may be most of what a process holds."""
    held = []

    class Watched(ScratchTables):
        def get_or_fill(self, *arguments, **named):
            table = super().get_or_fill(*arguments, **named)
            held.append(weakref.ref(table))
            return table

    run = make_run(features=FEATURES, links=2)
    params = random_params(run.model, run.inputs.dim)
    gc.collect()
    gc.disable()
    try:
        embedded(run, params, tables=Watched())
        assert len(held) > run.model.num_layers
        assert not any(table() is not None for table in held)
    finally:
        gc.enable()


def test_bfloat16_and_float16_features_embed():
    run = make_run(features=FEATURES)
    params = random_params(run.model, run.inputs.dim)
    exact = embedded(run, params)
    half = make_run(features=FEATURES.astype(np.float16))
    np.testing.assert_allclose(embedded(half, params), exact, atol=5e-3)
    rough = make_run(features=FEATURES, model={"compute_dtype": "bfloat16"})
    assert np.abs(embedded(rough, params) - exact).max() < 0.1


# Export.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shard_rows,shards", [(3, 4), (5, 2), (10, 1), (1000, 1)])
def test_export_round_trip(dtype, shard_rows, shards, tmp_path, small_rng):
    vectors = small_rng.normal(size=(10, 6)).astype(np.float32)
    names = [f"item {i} é" for i in range(10)]
    about = {"step": 7, "normalized": True}
    config = EmbedConfig(export_dtype=dtype, shard_rows=shard_rows)
    manifest = writer.write_embeddings(
        tmp_path, config, writer.Embeddings(IdTable(pa.array(names)), vectors), about
    )
    folder = tmp_path / "embeddings"
    paths = sorted(folder.glob("*.parquet"))
    assert [path.name for path in paths] == [f"part-{i:05d}.parquet" for i in range(shards)]
    tables = [pq.read_table(path) for path in paths]
    kind = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    for table in tables:
        assert table.column_names == ["item_id", "embedding"]
        assert table.schema.field("embedding").type == pa.list_(kind, 6)
        assert pa.types.is_string(table.schema.field("item_id").type) or pa.types.is_large_string(
            table.schema.field("item_id").type
        )
        assert table.num_rows <= shard_rows
    joined = pa.concat_tables(tables)
    assert joined["item_id"].to_pylist() == names
    back = np.array([list(row) for row in joined["embedding"].to_pylist()], np.float32)
    np.testing.assert_array_equal(back, vectors.astype(dtype).astype(np.float32))
    assert manifest == files.read_json(folder / "_manifest.json")
    assert {**about, "count": 10, "dimension": 6, "dtype": dtype}.items() <= manifest.items()
    assert set(manifest["files"]) == {path.name for path in paths}
    for path in paths:
        assert int(manifest["files"][path.name], 16) == zlib.crc32(path.read_bytes())


def test_export_of_collections_and_replacement(tmp_path, small_rng):
    graph = nasty_graph()
    vectors = small_rng.normal(size=(graph.num_nodes, 4)).astype(np.float32)
    items = IdTable(pa.array([f"i{n}" for n in range(graph.num_items)]))
    collections = IdTable(pa.array([f"c{n}" for n in range(graph.num_collections)]))
    config = EmbedConfig(shard_rows=7)
    parts = vectors[: graph.num_items], vectors[graph.num_items :]
    embedded = writer.Embeddings(items, parts[0])
    manifest = writer.write_embeddings(
        tmp_path, config, embedded, {}, writer.Embeddings(collections, parts[1])
    )
    folder = tmp_path / "embeddings"
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted(folder.glob("collections-*.parquet"))]
    )
    assert table["collection_id"].to_pylist() == collections.ids.to_pylist()
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), parts[1])
    assert manifest["collections"] == graph.num_collections
    # A second export leaves nothing of the first.
    config = dataclasses.replace(config, shard_rows=100)
    writer.write_embeddings(tmp_path, config, embedded, {})
    assert sorted(path.name for path in folder.iterdir()) == [
        "_manifest.json",
        "part-00000.parquet",
    ]


@pytest.mark.parametrize("rows", [0, 1])
def test_export_of_little(rows, tmp_path):
    config = EmbedConfig()
    ids = IdTable(pa.array(["a"] * rows, pa.string()))
    embedded = writer.Embeddings(ids, np.ones((rows, 3), np.float32))
    manifest = writer.write_embeddings(tmp_path, config, embedded, {})
    assert manifest["count"] == rows
    assert pq.read_table(tmp_path / "embeddings" / "part-00000.parquet").num_rows == rows
