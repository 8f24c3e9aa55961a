"""Embedding on Spark: items per second, CPU time, bytes shuffled, and an estimate for 10^9 items.

The same generated catalogs are embedded on local[1], on local[2] and on a standalone cluster of two
one-core workers on this machine: with few partitions, where messages are reduced before the
shuffle, and with many, where most messages are shuffled unreduced.  Bytes and seconds are from
Spark's event log; CPU time is that of all Java and Python processes.

The cost model: bytes follow from the widths (`cost_of`) times the compression ratio on local[1].
CPU time is a start-up cost plus a cost per item, fitted to two sizes on local[1].  The other runs
check the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
import time

import numpy as np

from pinsage_jax.batching.graph_view import node_inputs
from pinsage_jax.config.embed import EmbedConfig
from pinsage_jax.config.model import ModelConfig
from pinsage_jax.config.sampling import SamplingConfig
from pinsage_jax.config.settings import Config
from pinsage_jax.config.spark import SparkConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.model.init import init_model
from pinsage_jax.sampling.content_links import ContentLinks
from pinsage_jax.sampling.lists import NeighborLists
from pinsage_jax.sampling.store import NeighborhoodSource
from pinsage_jax.spark import tables
from pinsage_jax.spark.embed import embed_on_spark, expected_messages
from pinsage_jax.spark.session import spark_session
from pinsage_jax.spark.standalone import standalone_cluster
from pinsage_jax.spark.table_store import Folder
from pinsage_jax.spark.table_tasks import scan
from pinsage_jax.spark.walks import neighbor_lists

_EDGES_PER_ITEM, _ITEMS_PER_COLLECTION, _FEATURES = 10, 5, 256
_PARTITIONS = (8, 40)
_WALKS = 50
_ROW_BYTES = 24  # Spark's own, of a shuffled row: lengths, node, weight


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--spark_items", type=int, default=60_000, help="items of the catalog")
    parser.add_argument(
        "--spark_model_items",
        type=lambda text: [int(part) for part in text.split(",")],
        help="only compare the bytes of catalogs of such numbers of items with the model",
    )
    parser.add_argument(
        "--spark_billion", default="20x16x1.25,378x16x1.25", help="MACHINESxCORESxGB/s"
    )


def run(options) -> list[dict]:
    """One row for each run and each check of the model, and the estimates for 10^9 items."""
    items = 3_000 if options.quick else options.spark_items
    sizes = (items // 3, items)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    if options.spark_model_items:
        return [
            _against_model(items, partitions)
            for items in options.spark_model_items
            for partitions in reversed(_PARTITIONS)
        ]
    rows = []
    for name in ("local[1]", "local[2]", "standalone, 2 x 1"):
        with contextlib.ExitStack() as stack:
            master = name
            if not name.startswith("local"):
                master = stack.enter_context(standalone_cluster(workers=2, cores=1))
            _measured(name, master, sizes[0], _PARTITIONS[0])  # Java starts and compiles.
            for partitions in _PARTITIONS:
                for size in sizes:
                    rows.append(_measured(name, master, size, partitions))
                    print(json.dumps(rows[-1]), flush=True)
    fits = {}
    for row in rows:
        fits.setdefault((row["master"], row["partitions"]), []).append(row)
    fits = {run: _fit(*found) for run, found in fits.items()}
    walks = _walked(items // 6, options)
    checks = [_check(run, fit, fits["local[1]", run[1]]) for run, fit in fits.items()]
    return [*rows, *checks, walks, *_billion(options, fits)]


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The cost per item, fitted to two sizes."""

    cpu_start: float
    cpu: float
    share: float  # bytes shuffled over cost_of


def _fit(small: dict, large: dict) -> _Fit:
    cpu = (large["cpu_s"] - small["cpu_s"]) / (large["items"] - small["items"])
    share = large["shuffled_MB"] * 1e6 / _bytes(large["items"], large["partitions"])
    return _Fit(small["cpu_s"] - cpu * small["items"], cpu, share)


def _bytes(items: int, partitions: int) -> float:
    return cost_of(items, ModelConfig(), _lists(), partitions)


def _check(run: tuple[str, int], fit: _Fit, model: _Fit) -> dict:
    return {
        "check": run[0],
        "partitions": run[1],
        "bytes_over_uncompressed": round(fit.share, 3),
        "over_local1": round(fit.share / model.share, 3),
        "cpu_start_s": round(fit.cpu_start, 1),
        "cpu_ms_per_item": round(fit.cpu * 1e3, 3),
        "cpu_over_local1": round(fit.cpu / model.cpu, 2),
    }


def cost_of(items: int, model: ModelConfig, width: int, partitions: int) -> float:
    """Bytes shuffled by one layer over `items` nodes with lists of `width`, uncompressed.

    These are the messages of all nodes, the lists by sender, the nodes' own rows, and the
    messages that remain after the reduction within each partition.
    """
    messages = expected_messages(width, partitions)
    message_bytes = 4 * model.hidden_dim + _ROW_BYTES
    self_bytes = 4 * (_FEATURES + 2) + _ROW_BYTES
    return items * (
        message_bytes
        + self_bytes
        + width * _ROW_BYTES
        + messages * (4 * model.hidden_dim + _ROW_BYTES)
    )


def _billion(options, fits: dict[tuple[str, int], _Fit]) -> list[dict]:
    # With many partitions most messages are shuffled unreduced.
    fit = fits["local[1]", _PARTITIONS[-1]]
    total = _bytes(10**9, 10**6) * fit.share
    rows = []
    for cluster in options.spark_billion.split(","):
        machines, cores, gigabytes = (float(part) for part in cluster.split("x"))
        rows.append(
            {
                "items": 10**9,
                "machines": int(machines),
                "cores_each": int(cores),
                "GB_per_s_each": gigabytes,
                "shuffled_TB": round(total / 1e12, 1),
                "core_hours": round(fit.cpu * 1e9 / 3600),
                "cpu_hours": round(fit.cpu * 1e9 / 3600 / (machines * cores), 3),
                "network_hours": round(total / (machines * gigabytes * 1e9) / 3600, 3),
            }
        )
    note = "One layer, without sampling, writing the input, waiting and spilling."
    return [*rows, {"note": note}]


def _lists() -> int:
    return SamplingConfig().num_neighbors


def _measured(name: str, master: str, items: int, partitions: int) -> dict:
    with tempfile.TemporaryDirectory(prefix="spark-cost-") as folder:
        logs = pathlib.Path(folder) / "events"
        logs.mkdir()
        encoder = encoder_of(items, folder, master, logs, partitions)
        params = init_model(encoder.config, encoder.inputs.dim, items)[1]
        _ = encoder.all_inference_lists  # Sampled here, so that only Spark is timed.
        cpu, begin = _tree_cpu(), time.perf_counter()
        vectors = embed_on_spark(encoder, params)
        wall, cpu = time.perf_counter() - begin, _tree_cpu() - cpu
        events = _events(logs)
    if not np.isfinite(vectors).all():
        raise RuntimeError("embeddings are not finite")
    return {
        "master": name,
        "items": items,
        "partitions": partitions,
        "seconds": round(wall, 1),
        "job_s": round(events["job_s"], 1),
        "items_per_s": round(items / events["job_s"]),
        "cpu_s": round(cpu, 1),
        "shuffled_MB": round(events["bytes"] / 1e6, 1),
        "bytes_per_item": round(events["bytes"] / items),
        "load": round(os.getloadavg()[0], 1),
    }


def _against_model(items: int, partitions: int) -> dict:
    row = _measured("local[2]", "local[2]", items, partitions)
    row["bytes_over_uncompressed"] = round(row["shuffled_MB"] * 1e6 / _bytes(items, partitions), 3)
    row["cpu_ms_per_item"] = round(row["cpu_s"] * 1e3 / items, 3)
    print(json.dumps(row), flush=True)
    return row


def _walked(items: int, options) -> dict:
    """Times walks by joins on local[2] and compares their lists with the sampler's."""
    with tempfile.TemporaryDirectory(prefix="spark-cost-") as folder:
        logs = pathlib.Path(folder) / "events"
        logs.mkdir()
        encoder = encoder_of(items, folder, "local[2]", logs, _PARTITIONS[0])
        source = encoder.lists.with_num_walks(_WALKS).source
        cpu, begin = _tree_cpu(), time.perf_counter()
        with spark_session(encoder.config.spark, "walks") as session:
            session.conf.set("spark.sql.shuffle.partitions", _PARTITIONS[0])
            tables.write_edges(Folder(folder) / "edges", source.graph)
            edges = scan(session, Folder(folder) / "edges", 2, "item long, collection long")
            found = neighbor_lists(
                edges, items, items, source.sampling, source.seed, _PARTITIONS[0]
            ).collect()
        wall, cpu = time.perf_counter() - begin, _tree_cpu() - cpu
        shuffled = _events(logs)["bytes"]
    expected = source.lookup(np.arange(items, dtype=np.int32))
    same = sum(
        row.ids == expected.ids[row.node][: len(row.ids)].tolist()
        and row.counts == expected.counts[row.node][: len(row.ids)].tolist()
        for row in found
    )
    walks = items * _WALKS
    return {
        "walks by joins": f"{_WALKS} walks of {source.sampling.walk_length} steps",
        "items": items,
        "seconds": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "cpu_us_per_walk": round(cpu / walks * 1e6, 1),
        "shuffled_MB": round(shuffled / 1e6, 1),
        "bytes_per_walk": round(shuffled / walks),
        "equal_lists": same / items,
    }


def config_of(folder: str, master: str, logs: pathlib.Path, partitions: int) -> Config:
    settings = {
        "spark.driver.memory": "2g",
        "spark.executor.memory": "900m",
        # No broadcast joins, because a large catalog would have none.
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        # The cost model needs a fixed number of partitions.
        "spark.sql.adaptive.coalescePartitions.enabled": "false",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": logs.as_uri(),
        "spark.eventLog.compress": "false",
        "spark.eventLog.rolling.enabled": "false",
    }
    return Config(
        mode="embed",
        workdir=folder,
        seed=0,
        threads=1,
        sampling=SamplingConfig(content_neighbors=0),
        model=ModelConfig(spectral_dim=0, neighbor_embeddings="off"),
        embed=EmbedConfig(embed_walks=None),
        spark=SparkConfig(
            engine="spark",
            spark_master=master,
            spark_partitions=partitions,
            spark_tables=str(pathlib.Path(folder) / "tables"),
            spark_conf=",".join(f"{key}={value}" for key, value in settings.items()),
        ),
    )


def encoder_of(
    items: int, folder: str, master: str, logs: pathlib.Path, partitions: int
) -> Encoder:
    config = config_of(folder, master, logs, partitions)
    rng = np.random.default_rng(items)
    collections = items // _ITEMS_PER_COLLECTION
    graph = Graph.from_edges(
        np.repeat(np.arange(items, dtype=np.int32), _EDGES_PER_ITEM),
        rng.integers(0, collections, items * _EDGES_PER_ITEM).astype(np.int32),
        items,
        collections,
    )
    features = rng.normal(size=(items, _FEATURES)).astype(np.float32)
    source = NeighborhoodSource(graph, config.sampling, config.seed, 1)
    lists = NeighborLists.from_config(source, ContentLinks.none(items), config)
    return Encoder(config, lists, node_inputs(config, features, graph.degree(), None))


def _events(folder: pathlib.Path) -> dict[str, float]:
    """Bytes written to shuffles, and the seconds during which a job ran."""
    total, spans = 0, {}
    for path in folder.iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["Event"] == "SparkListenerTaskEnd":
                written = event.get("Task Metrics", {}).get("Shuffle Write Metrics", {})
                total += written.get("Shuffle Bytes Written", 0)
            elif event["Event"] == "SparkListenerJobStart":
                spans[event["Job ID"]] = [event["Submission Time"], event["Submission Time"]]
            elif event["Event"] == "SparkListenerJobEnd":
                spans[event["Job ID"]][1] = event["Completion Time"]
    seconds, end = 0.0, 0
    for first, last in sorted(spans.values()):
        seconds += max(last - max(first, end), 0) / 1000.0
        end = max(end, last)
    return {"bytes": total, "job_s": seconds}


def _tree_cpu() -> float:
    """CPU seconds of this process's descendants, running or ended."""
    parents, spent = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents[pid] = int(fields[1])
            spent[pid] = sum(int(field) for field in fields[11:15])
    total = 0
    for pid in spent:
        ancestor = pid
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        total += spent[pid] if ancestor == os.getpid() and pid != os.getpid() else 0
    return total / os.sysconf("SC_CLK_TCK")
