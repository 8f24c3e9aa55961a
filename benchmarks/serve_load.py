"""The HTTP service under load: requests per second and latencies over real sockets.

Starts `--mode=serve` on --serve_workdir (or, with --quick, on a new small one) and sends requests
over several persistent connections, each of which waits for a response before the next request.
Client and server share the machine.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import numpy as np

from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.data.features import FeatureTransform

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_CONNECTIONS = (1, 4, 16)
_SECONDS, _WARM_UP = 8.0, 2.0
_START = 300
_HISTORY = 20
Request = Callable[[http.client.HTTPConnection, np.random.Generator], int]


def add_options(parser) -> None:
    """Adds the flags of this benchmark."""
    parser.add_argument(
        "--serve_workdir", type=pathlib.Path, help="serve_load: a workdir with embeddings"
    )


def run(options) -> list[dict]:
    """One row for each endpoint and number of connections."""
    with contextlib.ExitStack() as stack:
        workdir = options.serve_workdir
        if workdir is None:
            if not options.quick:
                return [{"note": "Give --serve_workdir: a workdir with embeddings."}]
            workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            program("--flagfile=experiments/tiny.flags", f"--workdir={workdir}")
        prepared = open_prepared(workdir)
        port = stack.enter_context(served(workdir, options.threads))
        rows = []
        seconds, warm_up = (0.5, 0.2) if options.quick else (_SECONDS, _WARM_UP)
        for name, ask in requests(prepared, workdir).items():
            for connections in _CONNECTIONS[:1] if options.quick else _CONNECTIONS:
                load(port, ask, connections, warm_up)
                waits, refused, spent = load(port, ask, connections, seconds)
                p50, p99 = 1e3 * np.quantile(waits, [0.5, 0.99])
                rows.append({"request": name, "connections": connections, "requests": len(waits),
                             "requests/s": len(waits) / spent, "p50 ms": float(p50),
                             "p99 ms": float(p99), "refused": refused})  # fmt: skip
        rows.append({"note": f"{prepared.graph.num_items:,} items, {options.threads} threads."})
    return rows


def requests(prepared: Prepared, workdir: pathlib.Path) -> dict[str, Request]:
    """Functions that send a request for random items and return the status of the response."""
    ids = prepared.item_ids.ids

    def get(connection, rng) -> int:
        name = quote(ids[int(rng.integers(len(ids)))].as_py(), safe="")
        connection.request("GET", f"/neighbors?item={name}&k=10")
        return _status(connection)

    def history(connection, rng) -> int:
        items = [ids[int(row)].as_py() for row in rng.integers(len(ids), size=_HISTORY)]
        return _post(connection, "/neighbors/history", {"items": items, "k": 10})

    asks = {"item": get, f"history of {_HISTORY}": history}
    rows = _feature_rows(workdir, prepared)
    if rows:

        def new(connection, rng) -> int:
            row = rows[int(rng.integers(len(rows)))]
            return _post(connection, "/neighbors/new", {"items": [row], "k": 10})

        asks["new item"] = new
    return asks


def _feature_rows(workdir: pathlib.Path, prepared: Prepared) -> list[dict]:
    """Rows with random vectors for every dense column; none if there are other columns."""
    blocks = FeatureTransform.load(workdir / "prepared" / "features").describe()
    if not blocks or any(block["kind"] != "dense" for block in blocks):
        return []
    rng = np.random.default_rng(1)
    return [
        {block["columns"][0]: rng.normal(size=block["width"]).tolist() for block in blocks}
        for _ in range(200)
    ]


def _post(connection: http.client.HTTPConnection, path: str, body: dict) -> int:
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return _status(connection)


def _status(connection: http.client.HTTPConnection) -> int:
    answer = connection.getresponse()
    answer.read()
    return answer.status


def load(
    port: int, ask: Request, connections: int, seconds: float
) -> tuple[np.ndarray, int, float]:
    """The latency of each answered request, the number of refused ones, and the total seconds."""
    waits: list[list[float]] = [[] for _ in range(connections)]
    refused = [0] * connections
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (begin := time.perf_counter()) < end:
            if ask(connection, rng) == 200:
                waits[number].append(time.perf_counter() - begin)
            else:
                refused[number] += 1
        connection.close()

    begin = time.perf_counter()
    workers = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spent = time.perf_counter() - begin
    return np.concatenate([np.array(each) for each in waits]), sum(refused), spent


def program(*flags: str) -> None:
    """Runs the program to its end."""
    subprocess.run([sys.executable, "-m", "pinsage_jax.main", *flags], cwd=_ROOT, check=True,
                   capture_output=True)  # fmt: skip


@contextlib.contextmanager
def served(workdir: pathlib.Path, threads: int) -> Iterator[int]:
    """Runs a server for the block and yields its port."""
    command = [sys.executable, "-m", "pinsage_jax.main", "--mode=serve", f"--workdir={workdir}",
               "--serve_port=0", f"--threads={threads}"]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=_ROOT, stderr=log, stdout=log)
        try:
            deadline, found = time.monotonic() + _START, None
            while not found and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                log.seek(0)
                output = log.read()
                found = re.search(r"serving at http://[^/]*:(\d+)/", output)
            if not found:
                raise RuntimeError(f"the server did not start:\n{output[-2000:]}")
            yield int(found[1])
        finally:
            process.terminate()
            process.wait(30)
