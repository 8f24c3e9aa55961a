"""Following edges: freshness and cost of an event at several rates, on a finished workdir.

  python -m benchmarks.run scale --scale_edges=20000000 --scale_keep --scale_folder=FOLDER
  python -m benchmarks.run follow --follow_workdir=FOLDER/edges-20000000

Files with edges between random items and random collections of the catalog are put into a
folder five times a second, as another program would, and --mode=follow's thread folds them.
The freshness of a file is the time from its being there to its being in the answers.  CPU is
that of the whole process, without the queries.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
import time

import numpy as np
from absl import flags

from benchmarks import machine, serve_load
from pinsage_jax import cli
from pinsage_jax.config.search import ServeConfig
from pinsage_jax.stages.follow import Following

_FILES_PER_SECOND = 5
_QUERIES = 20


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument("--follow_workdir", default="", help="a finished run; default: a tiny one")
    parser.add_argument("--follow_rates", default="10,100,1000", help="events a second")
    parser.add_argument("--follow_seconds", type=float, default=20.0, help="of each rate")
    parser.add_argument("--follow_tolerance", type=float, default=ServeConfig.follow_tolerance)


def run(options) -> list[dict]:
    """One row for each rate."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "events"
        folder.mkdir()
        workdir = options.follow_workdir or _tiny_run(pathlib.Path(scratch) / "run")
        live = _following(workdir, folder, options)
        service = live.load()
        graph = live._loaded.prepared.graph
        rows = [{"items": graph.num_items, "collections": graph.num_collections,
                 "edges": graph.num_edges, "tolerance": options.follow_tolerance}]  # fmt: skip
        items = live._loaded.prepared.item_ids.ids.to_pylist()
        collections = live._loaded.prepared.collection_ids.ids.to_pylist()
        rng = np.random.default_rng(0)
        # Shapes of a batch are compiled once.
        _put(folder, "warm-up", rng, items, collections, 500)
        live.step()
        seconds = 1.0 if options.quick else options.follow_seconds
        with live.running():
            for rate in map(int, options.follow_rates.split(",")):
                rows.append(_at_rate(live, folder, rate, seconds, (rng, items, collections)))
        spent = [machine.seconds(lambda i=i: service.neighbors(items[i], 10))
                 for i in rng.integers(0, len(items), _QUERIES)]  # fmt: skip
        return [*rows, {"query p50 ms": 1e3 * float(np.median(spent))}]


def _at_rate(live: Following, folder: pathlib.Path, rate: int, seconds: float, drawn) -> dict:
    before, cpu, begin = dataclasses.replace(live.total), time.process_time(), time.perf_counter()
    each = max(round(rate / _FILES_PER_SECOND), 1)
    files = max(round(seconds * rate / each), 1)
    waiting, fresh, sent = [], [], 0
    while sent < files or waiting:
        now = time.perf_counter()
        if sent < files and now >= begin + sent * each / rate:
            _put(folder, f"{rate:06d}-{sent:05d}", *drawn, each)
            sent += 1
            waiting.append((before.events + sent * each, time.perf_counter()))
        while waiting and live.total.events >= waiting[0][0]:
            fresh.append(time.perf_counter() - waiting.pop(0)[1])
        time.sleep(0.005)
    wall = time.perf_counter() - begin
    after, events = live.total, files * each
    return {
        "events/s": rate,
        "reached events/s": events / wall,
        "fresh p50 s": float(np.median(fresh)),
        "fresh p99 s": float(np.quantile(fresh, 0.99)),
        "CPU ms an event": 1e3 * (time.process_time() - cpu) / events,
        "items embedded an event": (after.embedded - before.embedded) / events,
    }


def _put(folder: pathlib.Path, name: str, rng, items, collections, count: int) -> None:
    pairs = rng.integers(0, len(items), count), rng.integers(0, len(collections), count)
    lines = [json.dumps({"item_id": items[i], "collection_id": collections[c]})
             for i, c in zip(*pairs)]  # fmt: skip
    written = folder / f".{name}"
    written.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.rename(written, folder / f"{name}.jsonl")


def _following(workdir: str | pathlib.Path, folder: pathlib.Path, options) -> Following:
    values = flags.FlagValues()
    cli.define_flags(values)
    given = [
        *(f"--workdir={workdir}", "--mode=follow", f"--follow={folder}"),
        *(f"--follow_tolerance={options.follow_tolerance}", f"--threads={options.threads}"),
    ]
    cli.parse_flags(values, ["follow", *given])
    return Following(cli.config_from_flags(values))


def _tiny_run(workdir: pathlib.Path) -> pathlib.Path:
    serve_load.program("--flagfile=experiments/tiny.flags", f"--workdir={workdir}")
    return workdir
