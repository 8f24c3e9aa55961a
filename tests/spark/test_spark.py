"""Embedding, graph tables and walks on Spark against this machine's own; marked `spark`.

They run on local[2] and on a standalone cluster of one master and two workers, over a graph
with items without edges, a single edge, a hub, and collections of one item and of none.
"""

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_graph import SETTINGS, hub_graph
from scipy import stats
from small_catalog import make_prepared
from small_runs import nasty_graph, random_params, unit_features

from pinsage_jax.catalog.prepare import prepare
from pinsage_jax.config.data import DataConfig, PruneConfig
from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.spark import SparkConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.sampling.neighborhoods import WalkTables, visit_counts
from pinsage_jax.sampling.spectral import item_bases
from pinsage_jax.spark.embed import embed_on_spark
from pinsage_jax.spark.graph_tables import write_graph_tables
from pinsage_jax.spark.session import spark_session
from pinsage_jax.spark.standalone import standalone_cluster
from pinsage_jax.spark.walks import neighbor_lists

pytestmark = [pytest.mark.spark, pytest.mark.timeout(900)]

SMALL = "spark.driver.memory=1g,spark.executor.memory=768m,spark.sql.shuffle.partitions=2"


@pytest.fixture(scope="module", autouse=True)
def loopback():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        yield


@pytest.fixture(scope="module")
def local_session(loopback):
    """One session for all tests on this machine: a Java process and its workers take long."""
    with spark_session(make_config("unused").spark, "tests") as session:
        yield session


def make_config(workdir, cluster=None, **sections) -> Config:
    """Default settings of the model but for its widths."""
    small = {"hidden_dim": 12, "layer_dim": 10, "output_dim": 8, "spectral_dim": 5}
    return Config(
        mode="embed",
        workdir=str(workdir),
        seed=3,
        threads=1,
        sampling=SamplingConfig(
            **{
                "num_neighbors": 4,
                "content_neighbors": 3,
                "num_walks": 30,
                **sections.get("sampling", {}),
            }
        ),
        model=ModelConfig(**{**small, **sections.get("model", {})}),
        embed=EmbedConfig(**{"embed_walks": 0, **sections.get("embed", {})}),
        spark=SparkConfig(
            **{
                "engine": "spark",
                "spark_master": "local[2]",
                "spark_partitions": 3,
                "spark_conf": SMALL,
                **(cluster or {}),
            }
        ),
    )


def make_encoder(config: Config) -> Encoder:
    graph = nasty_graph()
    prepared = make_prepared(graph, unit_features(graph.num_items))
    bases = np.zeros((graph.num_items, 0), np.float32)
    if config.model.spectral_dim:
        bases = item_bases(graph, config.model.spectral_dim, config.seed)
    return Encoder.over(config, prepared, graph, bases)


def params_of(encoder: Encoder):
    num_ids = encoder.lists.source.num_nodes if encoder.config.model.num_layers else 0
    return random_params(encoder.config.model, encoder.inputs.dim, num_ids)


CASES = {
    "as by default": {},
    "two layers, all nodes": {
        "model": {"num_layers": 2},
        "sampling": {"neighborhood": "all"},
        "embed": {"embed_block": 7},
    },
    "three layers, maximum": {"model": {"num_layers": 3, "pooling": "max"}},
    "no layer": {"model": {"num_layers": 0}},
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_spark_embeds_as_this_machine(local_session, case, tmp_path):
    encoder = make_encoder(make_config(tmp_path, **CASES[case]))
    params = params_of(encoder)
    expected = encoder.embed(params, quiet=True)
    found = embed_on_spark(encoder, params)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(expected[5] - expected[6]).max() > 1e-3
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("neighborhood", ["items", "all"])
def test_spark_walks_give_the_same_embeddings(local_session, neighborhood, tmp_path):
    sections = {"sampling": {"neighborhood": neighborhood}, "embed": {"embed_walks": 40}}
    encoder = make_encoder(make_config(tmp_path, {"engine": "spark_walks"}, **sections))
    params = params_of(encoder)
    found = embed_on_spark(encoder, params)
    np.testing.assert_allclose(found, encoder.embed(params, quiet=True), rtol=0, atol=1e-5)


def test_many_partitions_send_every_message(local_session, tmp_path):
    """More partitions than neighbors: messages are not reduced before the shuffle."""
    encoder = make_encoder(make_config(tmp_path, {"spark_partitions": 40}))
    params = params_of(encoder)
    found = embed_on_spark(encoder, params)
    np.testing.assert_allclose(found, encoder.embed(params, quiet=True), rtol=0, atol=1e-5)


# Walks and graph tables.


def overlap_and_correlation(first, second) -> tuple[np.ndarray, np.ndarray]:
    """Per node: share of the first list in the second, and rank correlation over both.

    Args:
      first, second: {node: {neighbor: visits}}; nodes of either count.
    """
    overlaps, correlations = [], []
    for node in sorted(first.keys() | second.keys()):
        one, other = first.get(node, {}), second.get(node, {})
        overlaps.append(len(one.keys() & other.keys()) / max(len(one), len(other), 1))
        both = sorted(one.keys() | other.keys())
        visits = [[lists.get(name, 0) for name in both] for lists in (one, other)]
        if all(len(set(counts)) > 1 for counts in visits):
            correlations.append(stats.spearmanr(*visits).statistic)
    return np.array(overlaps), np.array(correlations)


def sampled(graph, nodes, sampling, seed) -> dict[int, dict[int, int]]:
    found = visit_counts(WalkTables(graph), np.arange(nodes), sampling, seed=seed)
    return {
        node: {int(i): int(c) for i, c in zip(found.ids[node], found.counts[node]) if i >= 0}
        for node in range(nodes)
        if found.ids[node, 0] >= 0
    }


def edge_rows(graph, weighted: bool) -> list[tuple]:
    rows = []
    for item in range(graph.num_items):
        for place in range(graph.indptr[item], graph.indptr[item + 1]):
            weight = (float(graph.weights[place]),) if weighted else ()
            rows.append((item, int(graph.indices[place]) - graph.num_items, *weight))
    return rows


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("neighborhood", ["items", "all"])
def test_walks_by_joins_are_the_samplers(local_session, neighborhood, weighted, tmp_path, capsys):
    """Equal count for count; another seed shows what sampling error alone would do.

    The threshold for the same seed is 1, without error: the random numbers are the same.
    """
    graph = nasty_graph()
    if weighted:
        items, collections = np.array(edge_rows(graph, False), np.int32).T
        weights = np.random.default_rng(1).uniform(0.1, 4.0, len(items)).astype(np.float32)
        graph = Graph.from_edges(items, collections, 40, 12, weights)
    sampling = SamplingConfig(neighborhood=neighborhood, num_neighbors=6, num_walks=50)
    nodes = graph.num_nodes if neighborhood == "all" else graph.num_items
    config = make_config(tmp_path).spark
    with spark_session(config, "test") as session:
        names = "item long, collection long" + (", weight float" if weighted else "")
        edges = session.createDataFrame(edge_rows(graph, weighted), names)
        lists = neighbor_lists(edges, graph.num_items, nodes, sampling, 7, shards=2).collect()
    found = {row.node: dict(zip(row.ids, row.counts)) for row in lists}
    expected = sampled(graph, nodes, sampling, 7)
    overlap, correlation = overlap_and_correlation(found, expected)
    other = overlap_and_correlation(sampled(graph, nodes, sampling, 8), expected)
    with capsys.disabled():
        for what, (share, rank) in {"joins": (overlap, correlation), "seed": other}.items():
            print(
                f"\n{neighborhood}, weighted={weighted}, {what}: top-6 overlap "
                f"{share.mean():.3f} +- {share.std() / len(share) ** 0.5:.3f}, rank correlation "
                f"{rank.mean():.3f} +- {rank.std() / len(rank) ** 0.5:.3f}",
                end="",
            )
    assert overlap.min() == 1.0 and correlation.min() > 1.0 - 1e-9
    assert other[0].mean() < 1.0
    assert found == expected
    for row in lists:
        assert list(found[row.node]) == list(expected[row.node])


def write_tables(folder, graph, topics, weighted: bool) -> DataConfig:
    """Edges, each third row twice, and items of which one has no edge."""
    rows = edge_rows(graph, weighted)
    rows += rows[::3]
    table = {
        "pin": [f"i{row[0]:02d}" for row in rows],
        "board": [f"c{row[1]:02d}" for row in rows],
    }
    if weighted:
        table["mass"] = pa.array([row[2] for row in rows], pa.float64())
    (folder / "edges").mkdir()
    for number in range(2):
        part = pa.table(table).slice(number * (len(rows) // 2), len(rows) // 2 + 1)
        part = part if number else part.slice(0, len(rows) // 2)
        pq.write_table(part, folder / "edges" / f"{number}.parquet")
    items = {
        "item_id": [f"i{item:02d}" for item in range(graph.num_items)],
        "topic": [None if topic < 0 else f"t{topic}" for topic in topics],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    return DataConfig(
        data_dir=str(folder),
        edges="edges",
        items="items.parquet",
        item_column="pin",
        collection_column="board",
        weight_column="mass" if weighted else "",
    )


@pytest.mark.parametrize("name,weighted", [("none", False), ("all", True), ("degree", False)])
def test_graph_tables_are_prepared_as_here(local_session, name, weighted, tmp_path):
    graph, topics = hub_graph(weighted)
    data = write_tables(tmp_path, graph, topics, weighted)
    config = make_config(tmp_path / "run", sampling={"num_walks": 10})
    config = dataclasses.replace(
        config, mode="graph_tables", data=data, prune=SETTINGS[name], threads=1
    )
    counts = write_graph_tables(config)["counts"]
    folder = tmp_path / "run" / "graph_tables"
    read = {
        part: pq.read_table(folder / part).sort_by(key)
        for part, key in [
            ("items", "node"),
            ("collections", "node"),
            ("edges", "item"),
            ("neighborhoods", "node"),
        ]
    }
    local = prepare(config)
    assert read["items"]["item_id"].to_pylist() == local.item_ids.ids.to_pylist()
    assert read["items"]["node"].to_pylist() == list(range(50))
    named = dict(zip(*(read["collections"][c].to_pylist() for c in ("node", "collection_id"))))
    assert sorted(named) == list(range(50, 50 + len(named)))
    assert list(named.values()) == sorted(named.values())
    edges = read["edges"].to_pylist()
    for edge in edges:
        assert edge["item_id"] == f"i{edge['item']:02d}"
        assert named[edge["collection"] + 50] == edge["collection_id"]
    assert counts["edge_rows"] == graph.num_edges + -(-graph.num_edges // 3)
    assert counts["distinct_edges"] == graph.num_edges
    kept, here = Counter(edge["item"] for edge in edges), local.graph.degree()[:50]
    assert kept == {item: int(n) for item, n in enumerate(here) if n}
    assert len(edges) == counts["edges"] == len({(e["item"], e["collection"]) for e in edges})
    if weighted or name == "none":
        # Where weights (or nothing) decide, the very edges are the same.
        expected = {
            (int(i), str(local.collection_ids.ids[int(c)])): None if not w else round(w[0], 3)
            for i, c, *w in edge_rows(local.graph, weighted)
        }
        found = {
            (e["item"], e["collection_id"]): round(e["weight"], 3) if weighted else None
            for e in edges
        }
        assert found == expected
    # The lists are the sampler's over the graph that the tables describe.
    columns = [read["edges"][c].to_numpy() for c in ("item", "collection")]
    weights = read["edges"]["weight"].to_numpy() if weighted else None
    tabled = Graph.from_edges(*columns, 50, len(named), weights)
    lists = {row["node"]: row for row in read["neighborhoods"].to_pylist()}
    expected = sampled(tabled, 50, config.sampling, config.seed)
    assert {n: dict(zip(row["ids"], row["counts"])) for n, row in lists.items()} == expected
    # And they can be prepared again, with the ids that the input has.
    again = DataConfig(edges=str(folder / "edges"), weight_column="weight" if weighted else "")
    config = dataclasses.replace(
        config, workdir=str(tmp_path / "again"), data=again, prune=PruneConfig()
    )
    assert prepare(config).graph.num_edges == counts["edges"]


def test_graph_tables_of_edges_in_any_order_are_prepared_to_the_same_bits(local_session, tmp_path):
    rng = np.random.default_rng(8)
    boards, pins = rng.integers(0, 12, 400), rng.integers(0, 30, 400)
    weights = (10.0 ** rng.uniform(-9, 9, 400)).astype(np.float32)
    checksums = []
    for seed in range(2):
        order = rng.permutation(400)
        folder = tmp_path / str(seed)
        folder.mkdir()
        columns = {"board": boards[order], "pin": pins[order], "mass": weights[order]}
        pq.write_table(pa.table(columns), folder / "edges.parquet")
        data = DataConfig(
            data_dir=str(folder), edges="edges.parquet", item_column="pin",
            collection_column="board", weight_column="mass",
        )  # fmt: skip
        config = make_config(folder / "run", sampling={"num_walks": 10})
        config = dataclasses.replace(config, mode="graph_tables", data=data, threads=1)
        write_graph_tables(config)
        tabled = DataConfig(
            edges=str(folder / "run" / "graph_tables" / "edges"), weight_column="weight"
        )
        for name, given in (("here", data), ("tabled", tabled)):
            prepared = prepare(dataclasses.replace(config, workdir=str(folder / name), data=given))
            checksums.append(prepared.manifest["checksums"])
    assert all(found == checksums[0] for found in checksums)


@pytest.mark.parametrize(
    "rows,message",
    [
        ({"pin": ["a", None], "board": ["b", "b"]}, "1 rows with a missing id"),
        ({"pin": ["a"], "set": ["b"]}, "has no column 'board'"),
        ({"pin": ["a"], "board": ["b"], "mass": [-1.0]}, "1 rows with a weight that is not"),
    ],
)
def test_bad_tables_are_reported_in_one_sentence(local_session, rows, message, tmp_path):
    pq.write_table(pa.table(rows), tmp_path / "edges.parquet")
    data = DataConfig(
        data_dir=str(tmp_path),
        edges="edges.parquet",
        item_column="pin",
        collection_column="board",
        weight_column="mass" if "mass" in rows else "",
    )
    config = dataclasses.replace(make_config(tmp_path / "run"), mode="graph_tables", data=data)
    with pytest.raises(UserError, match=message):
        write_graph_tables(config)
    assert list((tmp_path / "run").iterdir()) == []


# Last, because a process has one session: those of the tests above end first.


@pytest.fixture(scope="module")
def cluster_address(loopback):
    from pyspark.sql import SparkSession

    if (running := SparkSession.getActiveSession()) is not None:
        running.stop()
    with standalone_cluster(workers=2, cores=1, memory="1g") as address:
        yield address


def test_a_cluster_embeds_as_this_machine(cluster_address, tmp_path):
    cluster = {"spark_master": cluster_address}
    encoder = make_encoder(make_config(tmp_path, cluster, model={"num_layers": 2}))
    params = params_of(encoder)
    found = embed_on_spark(encoder, params)
    np.testing.assert_allclose(found, encoder.embed(params, quiet=True), rtol=0, atol=1e-5)


def test_a_master_that_does_not_answer_is_reported(cluster_address):
    cluster = SparkConfig(spark_master="spark://127.0.0.1:1")
    with pytest.raises(UserError, match="does not answer"), spark_session(cluster, "test"):
        pass
