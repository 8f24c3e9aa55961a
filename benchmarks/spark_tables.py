"""Memory of a driver that embeds the tables of --spark_tables, and of the process that writes them.

Each is a process of its own.  A standalone cluster of two one-core workers on this machine
computes, so that the Java process of the driver does not.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
import types
from concurrent import futures
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.processes import status_kib
from benchmarks.spark import config_of, encoder_of
from pinsage_jax.core.costs import peak_memory
from pinsage_jax.data.ids import IdTable
from pinsage_jax.model.init import init_model
from pinsage_jax.spark.catalog_tables import (
    NetworkOfTables,
    embed_tables,
    open_tables,
    write_tables,
)
from pinsage_jax.spark.session import spark_session
from pinsage_jax.spark.standalone import standalone_cluster

_PARTITIONS = 8


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument(
        "--spark_tables_items",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[30_000, 120_000],
        help="items of the catalogs, separated by commas",
    )


def run(options) -> list[dict]:
    """One row for each catalog."""
    sizes = [1_000, 3_000] if options.quick else options.spark_tables_items
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    with standalone_cluster(workers=2, cores=1) as master:
        return [_driver(items, master) for items in sizes]


def _driver(items: int, master: str) -> dict:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="spark-cost-") as folder:
        found = {"tables": items}
        for task in (_write_tables, _embed_tables):
            with futures.ProcessPoolExecutor(1, mp_context=spawn) as alone:
                found |= alone.submit(task, items, folder, master).result()
    print(json.dumps(found), flush=True)
    return found


def _write_tables(items: int, folder: str, master: str) -> dict:
    encoder = encoder_of(items, folder, master, pathlib.Path(folder), _PARTITIONS)
    graph = encoder.lists.source.graph
    names = [pa.array(np.arange(n).astype(str)) for n in (items, graph.num_collections)]
    prepared: Any = types.SimpleNamespace(
        item_ids=IdTable(names[0]),
        collection_ids=IdTable(names[1]),
        manifest={"fingerprint": "", "inputs": {}},
    )
    begin = time.perf_counter()
    write_tables(encoder.config, prepared, encoder, {"ids": ""})
    return {"write_s": round(time.perf_counter() - begin, 1), "write_peak_MB": _peak_megabytes()}


def _embed_tables(items: int, folder: str, master: str) -> dict:
    config = config_of(folder, master, pathlib.Path(folder), _PARTITIONS)
    before, begin = _peak_megabytes(), time.perf_counter()
    tables_folder, about = open_tables(config)
    network = NetworkOfTables(init_model(config, about["input_dim"], items)[1], "", 0.0)
    with spark_session(config.spark, "driver"):
        embed_tables(config, tables_folder, about, network, {})
        java = _java_peak_megabytes()
    return {
        "embed_s": round(time.perf_counter() - begin, 1),
        "driver_python_start_MB": before,
        "driver_python_peak_MB": _peak_megabytes(),
        "driver_java_peak_MB": java,
    }


def _peak_megabytes() -> int:
    return round(peak_memory() / 2**20)


def _java_peak_megabytes() -> int:
    """Of the Java process of this driver."""
    found = [0]
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        status = status_kib(folder.name, ("PPid", "VmHWM"))
        with contextlib.suppress(OSError, KeyError):
            if status["PPid"] == os.getpid() and (folder / "comm").read_text().strip() == "java":
                found.append(status["VmHWM"] // 1024)
    return max(found)
