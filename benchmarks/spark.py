"""Embedding on Spark: items a second, CPU, bytes shuffled, and what a billion items would take.

The same generated catalogue is embedded on local[1], local[2] and a standalone cluster of
two workers of one core on this machine.  Bytes and seconds are those of Spark's event log;
CPU is that of all processes, Java and Python, with their start, which a second, smaller
catalogue is there to take out: cost = start + items x cost of an item.

The model is `cost_of`: bytes follow from widths, CPU from the cost of an item measured on
local[1].  The other runs check it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
import time

import numpy as np

from pinsage_jax.cluster.embed import embed_on_spark, messages_left
from pinsage_jax.cluster.standalone import standalone_cluster
from pinsage_jax.config import ClusterConfig, Config, EmbedConfig, ModelConfig, SamplingConfig
from pinsage_jax.graph.csr import Graph
from pinsage_jax.inference.encoder import Encoder, node_inputs
from pinsage_jax.sampling.content_links import ContentLinks
from pinsage_jax.sampling.lists import NeighbourLists
from pinsage_jax.sampling.store import NeighbourhoodSource
from pinsage_jax.training import loop

_EDGES_PER_ITEM, _ITEMS_PER_COLLECTION, _FEATURES = 10, 5, 256
_ROW_BYTES = 24  # Spark's own, of a shuffled row: lengths, node, weight


def add_options(parser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--spark_items", type=int, default=40_000, help="items of the catalogue")
    parser.add_argument("--spark_partitions", type=int, default=8)
    parser.add_argument("--spark_billion", default="378x16x1.25", help="MACHINES x CORES x GB/s")


def run(options) -> list[dict]:
    """One row a run, one a check of the model, and the billion."""
    items = 2_000 if options.quick else options.spark_items
    sizes = (items // 4, items)
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    rows = []
    for name in ("local[1]", "local[2]", "standalone, 2 x 1"):
        with contextlib.ExitStack() as stack:
            master = name
            if not name.startswith("local"):
                master = stack.enter_context(standalone_cluster(workers=2, cores=1))
            rows += [_measured(name, master, size, options) for size in sizes]
    small, large = rows[:2]
    item_cpu = (large["cpu_s"] - small["cpu_s"]) / (large["items"] - small["items"])
    start_cpu = small["cpu_s"] - item_cpu * small["items"]
    checks = []
    for row in rows:
        expected = cost_of(row["items"], ModelConfig(), _lists(), options.spark_partitions)
        cpu = start_cpu + item_cpu * row["items"]
        checks.append(
            {
                "check": row["master"],
                "items": row["items"],
                "MB": row["shuffled_MB"],
                "model_MB": round(expected / 1e6, 1),
                "MB_ratio": round(row["shuffled_MB"] * 1e6 / expected, 2),
                "cpu_s": row["cpu_s"],
                "model_cpu_s": round(cpu, 1),
                "cpu_ratio": round(row["cpu_s"] / cpu, 2),
            }
        )
    return [*rows, *checks, *_billion(options, item_cpu, checks[1]["MB_ratio"])]


def cost_of(items: int, model: ModelConfig, width: int, partitions: int) -> float:
    """Bytes shuffled by one layer over `items` nodes with lists of `width`, uncompressed.

    What every node sends, the lists by sender, the nodes' own rows, and the messages that
    are left after each partition has reduced its own.
    """
    left = messages_left(width, partitions) * width
    sent = 4 * model.hidden_dim + _ROW_BYTES
    own = 4 * (_FEATURES + 2) + _ROW_BYTES
    return items * (sent + own + width * _ROW_BYTES + left * (4 * model.hidden_dim + _ROW_BYTES))


def _billion(options, item_cpu: float, measured_ratio: float) -> list[dict]:
    machines, cores, gigabytes = (float(part) for part in options.spark_billion.split("x"))
    # Partitions are many there, and each message travels alone.
    total = cost_of(10**9, ModelConfig(), _lists(), 10**6) * measured_ratio
    few = messages_left(_lists(), options.spark_partitions)
    return [
        {
            "items": 10**9,
            "machines": int(machines),
            "cores_each": int(cores),
            "GB_per_s_each": gigabytes,
            "shuffled_TB": round(total / 1e12, 1),
            "cpu_hours": round(item_cpu * 1e9 / 3600 / (machines * cores), 2),
            "network_hours": round(total / (machines * gigabytes * 1e9) / 3600, 2),
        },
        {
            "note": f"CPU of an item: {item_cpu * 1e3:.2f} ms, with messages reduced before the "
            f"shuffle to {few:.2f} of their number; alone they cost no Python but more bytes. "
            "One layer; walks and the writing of the input are not in it."
        },
    ]


def _lists() -> int:
    return SamplingConfig().num_neighbours


def _measured(name: str, master: str, items: int, options) -> dict:
    with tempfile.TemporaryDirectory(prefix="spark-cost-") as folder:
        logs = pathlib.Path(folder) / "events"
        logs.mkdir()
        encoder = _encoder(items, folder, master, logs, options.spark_partitions)
        params = loop.init_model(encoder.config, encoder.inputs.dim, items)[1]
        _ = encoder.final_lists  # Walked here, so that what is timed is Spark's.
        cpu, begin = _tree_cpu(), time.perf_counter()
        vectors = embed_on_spark(encoder, params)
        wall, cpu = time.perf_counter() - begin, _tree_cpu() - cpu
        events = _events(logs)
    if not np.isfinite(vectors).all():
        raise RuntimeError("embeddings are not finite")
    row = {
        "master": name,
        "items": items,
        "seconds": round(wall, 1),
        "job_s": round(events["job_s"], 1),
        "items_per_s": round(items / events["job_s"]),
        "cpu_s": round(cpu, 1),
        "shuffled_MB": round(events["bytes"] / 1e6, 1),
        "bytes_per_item": round(events["bytes"] / items),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(row), flush=True)
    return row


def _encoder(items: int, folder: str, master: str, logs: pathlib.Path, partitions: int) -> Encoder:
    settings = {
        "spark.driver.memory": "2g",
        "spark.executor.memory": "900m",
        # A large catalogue is not sent to every worker whole, and neither is this one.
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": logs.as_uri(),
        "spark.eventLog.compress": "false",
        "spark.eventLog.rolling.enabled": "false",
    }
    config = Config(
        mode="embed",
        workdir=folder,
        seed=0,
        threads=1,
        sampling=SamplingConfig(content_neighbours=0),
        model=ModelConfig(structure_dim=0, id_messages="off"),
        embed=EmbedConfig(embed_walks=0),
        cluster=ClusterConfig(
            engine="spark",
            spark_master=master,
            spark_partitions=partitions,
            spark_conf=",".join(f"{key}={value}" for key, value in settings.items()),
        ),
    )
    rng = np.random.default_rng(items)
    collections = items // _ITEMS_PER_COLLECTION
    graph = Graph.from_edges(
        np.repeat(np.arange(items, dtype=np.int32), _EDGES_PER_ITEM),
        rng.integers(0, collections, items * _EDGES_PER_ITEM).astype(np.int32),
        items,
        collections,
    )
    features = rng.normal(size=(items, _FEATURES)).astype(np.float32)
    source = NeighbourhoodSource(graph, config.sampling, config.seed, 1)
    lists = NeighbourLists.made_of(source, ContentLinks.none(items), config)
    return Encoder(config, lists, node_inputs(config, features, graph.degree(), None))


def _events(folder: pathlib.Path) -> dict[str, float]:
    """Bytes written to shuffles, and seconds in which a job ran."""
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
    """CPU seconds of this process's descendants, living and waited for."""
    parents, spent = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            parents[pid] = int(fields[1])
            spent[pid] = sum(int(field) for field in fields[11:15])
    total = 0
    for pid in spent:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        total += spent[pid] if above == os.getpid() and pid != os.getpid() else 0
    return total / os.sysconf("SC_CLK_TCK")
