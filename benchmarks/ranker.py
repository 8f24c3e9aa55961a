"""Lists by the ranker: the related items of a whole catalog, and a query that the server answers.

Needs --ranked_workdir, a workdir with embeddings and ranker.json (or --quick, which makes a small
one).  Processor time is given beside the clock's, which other jobs on the machine lengthen.  Client
and server share the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import time

import numpy as np

from benchmarks import serve_load
from pinsage_jax.catalog.prepare import open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.export.reader import load_embeddings
from pinsage_jax.retrieval.export_quality import evenly_spaced_rows
from pinsage_jax.stages.search import listed_by

# The goals of a catalog of 25,000 items: a minute for all lists, 20 ms for a served one.
_K, _SINGLE = 100, 500


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument(
        "--ranked_workdir", type=pathlib.Path, help="ranker: a workdir with a ranker"
    )


def run(options) -> list[dict]:
    """Rows for all lists, for lists one by one, and for the server."""
    with contextlib.ExitStack() as stack:
        workdir = options.ranked_workdir
        if workdir is None:
            if not options.quick:
                return [{"note": "Give --ranked_workdir: a workdir with ranker.json."}]
            workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            serve_load.program("--flagfile=experiments/tiny.flags", f"--workdir={workdir}")
            serve_load.program(f"--workdir={workdir}", "--mode=rank")
        config = Config(mode="neighbors", workdir=str(workdir), threads=options.threads)
        search = dataclasses.replace(config.search, related_by="ranker")
        config = dataclasses.replace(config, search=search)
        prepared = open_prepared(workdir)
        vectors = load_embeddings(workdir, prepared)
        begin = _clocks()
        ranker = listed_by(config, prepared, options.threads, vectors)
        assert ranker is not None, "--related_by=ranker opens a ranker"
        ready = _since(begin)
        # The kernels are compiled, or read from the disk, outside of what is timed.
        ranker.top_k(vectors[:0], _K, np.arange(2))
        items = np.arange(len(vectors))
        begin = _clocks()
        ranker.top_k(vectors[:0], _K, items)
        wall, cpu = _since(begin)
        rows: list[dict] = [
            {"lists": len(items), "k": _K, "threads": options.threads, "opened s": ready[0],
             "s": wall, "CPU s": cpu, "CPU ms a list": 1e3 * cpu / len(items)}
        ]  # fmt: skip
        single = []
        for row in evenly_spaced_rows(len(items), 20 if options.quick else _SINGLE):
            begin = _clocks()
            ranker.top_k(vectors[:0], _K, np.array([row]))
            single.append(_since(begin))
        names = ("p50 ms", "CPU p50 ms", "p99 ms", "CPU p99 ms")
        values = 1e3 * np.quantile(single, [0.5, 0.99], axis=0).ravel()
        rows.append({"one list at a time": len(single), **dict(zip(names, map(float, values)))})
        port = stack.enter_context(serve_load.served(workdir, options.threads))
        ask = serve_load.requests(prepared, workdir)["item"]
        seconds = 0.5 if options.quick else 10.0
        serve_load.load(port, ask, 1, seconds / 5)
        waits, refused, _ = serve_load.load(port, ask, 1, seconds)
        p50, p99 = 1e3 * np.quantile(waits, [0.5, 0.99])
        rows.append({"GET /neighbors": len(waits), "refused": refused, "p50 ms": float(p50),
                     "p99 ms": float(p99)})  # fmt: skip
        return rows


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(begin: tuple[float, float]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    return time.perf_counter() - begin[0], time.process_time() - begin[1]
