"""Embedding a catalog that lies in an object store, or in a folder, with no prepared arrays here.

The tables are written by what has the arrays, and the embeddings compared with its own.
"""

import dataclasses
import logging
import shutil

import numpy as np
import pyarrow.fs as pf
import pytest
from object_store import s3_server
from small_catalog import make_prepared
from small_runs import nasty_graph, random_params, unit_features

from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.spark import SparkConfig
from pinsage_jax.core.errors import UserError
from pinsage_jax.export.reader import open_export
from pinsage_jax.export.writer import MANIFEST
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.sampling.spectral import item_bases
from pinsage_jax.spark import catalog_tables, table_tasks
from pinsage_jax.spark.catalog_tables import (
    NetworkOfTables,
    embed_tables,
    open_tables,
    write_tables,
)
from pinsage_jax.spark.session import spark_session, task_errors
from pinsage_jax.spark.table_store import folder_of
from pinsage_jax.stages.embed import embed
from pinsage_jax.stages.search import export

pytestmark = [pytest.mark.spark, pytest.mark.timeout(900)]
SPARK = SparkConfig(
    engine="spark",
    spark_master="local[2]",
    spark_partitions=3,
    spark_conf="spark.driver.memory=1g,spark.sql.shuffle.partitions=2",
)
BIAS = 0.5


@pytest.fixture(scope="module")
def server():
    with s3_server("catalog") as address:
        yield address


@pytest.fixture(scope="module")
def session(server):
    """One session for all tests, whose workers know the server by their environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        with spark_session(SPARK, "tests") as running:
            yield running


def make_encoder(url: str, engine: str = "spark", **sections) -> Encoder:
    widths = {"hidden_dim": 12, "layer_dim": 10, "output_dim": 8, "spectral_dim": 5}
    graph = nasty_graph()
    config = Config(
        mode="embed",
        workdir="unused",
        seed=3,
        threads=1,
        sampling=SamplingConfig(
            num_neighbors=4, content_neighbors=3, num_walks=30, **sections.get("sampling", {})
        ),
        model=ModelConfig(**widths, **sections.get("model", {})),
        embed=EmbedConfig(**{"embed_walks": 0, "shard_rows": 11, **sections.get("embed", {})}),
        spark=dataclasses.replace(SPARK, engine=engine, spark_tables=url),
    )
    prepared = make_prepared(graph, unit_features(graph.num_items))
    bases = item_bases(graph, config.model.spectral_dim, config.seed)
    return Encoder.over(config, prepared, graph, bases)


def written(encoder: Encoder) -> NetworkOfTables:
    """Writes the tables of a small catalog; returns a network of random parameters."""
    config, graph = encoder.config, encoder.lists.source.graph
    prepared = make_prepared(graph)
    prepared.manifest.update(fingerprint="f", inputs={})
    write_tables(config, prepared, encoder, {"ids": prepared.item_ids.digest()})
    params = random_params(config.model, encoder.inputs.dim, encoder.lists.source.num_nodes)
    return NetworkOfTables(params, "digest", BIAS)


def expected(encoder: Encoder, network: NetworkOfTables) -> np.ndarray:
    vectors = encoder.embed(network.params, quiet=True)
    items = encoder.lists.source.graph.num_items
    isolated = encoder.lists.source.graph.degree()[:items] == 0
    assert 0 < isolated.sum() < items
    vectors[:items][isolated, -1] += np.float32(network.bias)
    return vectors


def fetched(url: str, folder):
    """The embeddings of a URL as a local export, verified by its checksums."""
    folder.mkdir()
    fs, path = pf.FileSystem.from_uri(url)
    pf.copy_files(f"{path}/embeddings", str(folder), source_filesystem=fs)
    return open_export(folder)


def run(encoder: Encoder, network: NetworkOfTables):
    folder, about = open_tables(encoder.config)
    return embed_tables(encoder.config, folder, about, network, {"normalized": True})


def test_an_object_store_is_embedded_as_this_machine_does(session, tmp_path):
    url = f"s3://catalog/{tmp_path.name}"
    encoder = make_encoder(url)
    network = written(encoder)
    manifest = run(encoder, network)
    found = fetched(url, tmp_path / "embeddings")
    vectors = expected(encoder, network)
    np.testing.assert_allclose(found.vectors(), vectors, rtol=0, atol=1e-5)
    assert found.ids().ids.to_pylist() == [f"item-{i}" for i in range(len(vectors))]
    assert len(manifest["files"]) == 4 and manifest["count"] == len(vectors) == 40
    assert folder_of(url).names() == sorted(
        [
            "_manifest.json",
            "collections",
            "edges",
            "embeddings",
            "inputs",
            "items",
            "links",
            "lists",
        ]
    )
    # Again there is nothing to do.
    assert run(encoder, network)["files"] == manifest["files"]


def test_a_run_that_fails_goes_on_and_never_counts_as_finished(session, tmp_path, monkeypatch):
    url = str(tmp_path / "tables")
    encoder = make_encoder(
        url,
        "spark_walks",
        model={"num_layers": 2},
        sampling={"neighborhood": "all"},
        embed={"embed_walks": 40, "export_dtype": "float16"},
    )
    network = written(encoder)
    wrong = dataclasses.replace(network, bias=float("nan"))
    with pytest.raises(UserError, match=r"^The vector of item 'item-\d+' is not finite, so noth"):
        run(encoder, wrong)
    out = folder_of(url) / "embeddings"
    assert out.manifest(3) is None
    layers = next((tmp_path / "tables" / "layers").iterdir())
    first = {path.name: path.stat().st_mtime_ns for path in (layers / "layer-1").iterdir()}
    assert MANIFEST in first and (layers / "lists" / MANIFEST).exists()
    projected = []
    scan = table_tasks.scan
    monkeypatch.setattr(
        "pinsage_jax.spark.embed.scan",
        lambda session, table, *rest: projected.append(str(table)) or scan(session, table, *rest),
    )
    run(encoder, network)
    assert {name.rpartition("/")[2] for name in projected} == {"layer-1", "lists"}
    found, vectors = open_export(tmp_path / "tables" / "embeddings"), expected(encoder, network)
    np.testing.assert_allclose(found.vectors(), vectors[:40], rtol=2e-3, atol=2e-3)
    assert found.manifest["collections"] == len(vectors) - 40 > 0
    assert not (tmp_path / "tables" / "layers").exists()
    # What the failed run wrote is gone.
    assert set(out.names()) == {*found.manifest["files"], MANIFEST}


def test_a_workdir_without_prepared_arrays_embeds(session, trained, tmp_path):
    url = f"s3://catalog/{tmp_path.name}"
    there = dataclasses.replace(SPARK, spark_tables=url)
    export(dataclasses.replace(trained, mode="export", spark=there))
    workdir = tmp_path / "run"
    shutil.copytree(f"{trained.workdir}/checkpoints", workdir / "checkpoints")
    config = dataclasses.replace(trained, mode="embed", workdir=str(workdir), spark=there)
    manifest = embed(config)
    here = open_export(f"{trained.workdir}/embeddings")
    found = fetched(url, tmp_path / "embeddings")
    np.testing.assert_allclose(found.vectors(), here.vectors(), rtol=0, atol=1e-5)
    assert found.ids().digest() == here.ids().digest() == manifest["ids"]
    same = ("normalized", "step", "parameters", "cold_start_bias", "data")
    assert {n: found.manifest[n] for n in same} == {n: here.manifest[n] for n in same}
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints", "run.flags"]
    # A table that somebody deleted is named.
    (folder_of(url) / "embeddings").unfinish()
    table = folder_of(url) / "lists"
    fs, path = table._place()
    fs.delete_file(f"{path}/{table.manifest()['files'][0]['name']}")
    with pytest.raises(UserError, match=r"/lists/part-00000-\w+\.parquet does not exist although"):
        embed(config)


# Without Spark.


def test_tables_that_cannot_be_embedded_are_refused_in_one_sentence(server, tmp_path, caplog):
    url = str(tmp_path / "tables")
    encoder = make_encoder(url)
    with pytest.raises(UserError, match=r"holds no finished tables; write them by --mode=export"):
        open_tables(encoder.config)
    written(encoder)
    with caplog.at_level(logging.INFO):
        written(encoder)
    other = dataclasses.replace(encoder.config, seed=4)
    with pytest.raises(UserError, match="were written with seed=3, and now it is 4; give the same"):
        open_tables(other)
    nothing = dataclasses.replace(encoder.config, workdir=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="run --mode=train first"):
        embed(nothing)
    with pytest.raises(UserError, match=r"^/proc/nothing/items cannot be read or written: "):
        written(make_encoder("/proc/nothing"))
    for change, sentence in (
        ({"spark": dataclasses.replace(encoder.config.spark, engine="local")}, "needs --engine=sp"),
        ({"embed": EmbedConfig(export_dim=4)}, "does not go together with --export_dim"),
        ({"embed": EmbedConfig(export_format="npy")}, "with --export_format=npy; leave"),
    ):
        with pytest.raises(UserError, match=sentence):
            embed(dataclasses.replace(encoder.config, **change))


def test_what_fails_on_an_executor_is_one_sentence():
    errors = pytest.importorskip("pyspark.errors")
    lines = "Job aborted due to stage failure:\nTraceback (most recent call last):\n"
    for line, sentence in (
        (
            "pinsage_jax.core.errors.UserError: s3://b/lists is damaged.",
            r"s3://b/lists is damaged\.",
        ),
        (
            "ModuleNotFoundError: No module named 'pinsage_jax'",
            "cannot import pinsage_jax; install",
        ),
    ):
        with pytest.raises(UserError, match=sentence), task_errors():
            raise errors.PySparkException(f"{lines}{line}\n\tat org.apache.spark.api")
    with pytest.raises(errors.PySparkException, match="no space"), task_errors():
        raise errors.PySparkException("no space")


def test_what_others_wrote_is_never_deleted(server, tmp_path):
    (tmp_path / "edges").mkdir()
    (tmp_path / "edges" / "mine.parquet").write_text("mine")
    with pytest.raises(UserError, match=r"edges holds mine\.parquet, which is not of"):
        written(make_encoder(str(tmp_path)))
    assert (tmp_path / "edges" / "mine.parquet").read_text() == "mine"
    assert catalog_tables.folder_of(str(tmp_path)).manifest() is None


def test_ranges_cover_every_node_once():
    for items, nodes, rows in ((10, 10, 3), (10, 17, 4), (3, 9, 100), (8, 12, 4)):
        ranges = table_tasks.Ranges(rows, items, nodes)
        numbers = ranges.number(np.arange(nodes))
        assert numbers[0] == 0 and set(np.diff(numbers)) <= {0, 1}
        spans = [ranges.span(number) for number in range(numbers[-1] + 1)]
        for number, (begin, end) in enumerate(spans):
            assert np.array_equal(np.flatnonzero(numbers == number), np.arange(begin, end))
            assert end - begin <= rows and not begin < items < end
