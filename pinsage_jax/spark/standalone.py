"""Runs a Spark standalone cluster on this machine, from the files of the PySpark package.

  python -m pinsage_jax.spark.standalone --workers=2 --cores=1 --memory=1g

starts a master and workers on the loopback interface, prints the master's address for
--spark_master, and stops them at Ctrl-C.  It is for tests and for trying out a cluster.  On
several machines the same two classes run with other hosts:

  spark-class org.apache.spark.deploy.master.Master --host HOST --port 7077
  spark-class org.apache.spark.deploy.worker.Worker spark://HOST:7077
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from pinsage_jax.core.errors import UserError

_HOST = "127.0.0.1"
_SECONDS_TO_START = 180.0
_CLASS = "org.apache.spark.deploy"


@contextlib.contextmanager
def standalone_cluster(workers: int = 2, cores: int = 1, memory: str = "1g") -> Iterator[str]:
    """Starts a cluster, yields its address spark://127.0.0.1:PORT, and stops it.

    Args:
      workers: number of worker processes.
      cores: cores of each worker.
      memory: memory of each worker, in Spark's notation.

    Raises:
      UserError: PySpark is missing, or a process does not start.
    """
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise UserError("Spark needs PySpark: pip install 'pinsage-jax[spark]'.")
    home = pathlib.Path(spec.origin).parent
    environment = {
        **os.environ,
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": _HOST,
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_NO_DAEMONIZE": "1",
    }
    with tempfile.TemporaryDirectory(prefix="spark-standalone-") as folder:
        logs = pathlib.Path(folder)
        started: list[subprocess.Popen] = []

        def start(name: str, ready: str, *arguments: str) -> None:
            with open(logs / f"{name}.log", "wb") as log:
                process = subprocess.Popen(
                    [str(home / "bin" / "spark-class"), *arguments],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            started.append(process)
            _wait_for(process, logs / f"{name}.log", ready)

        try:
            port = _free_port()
            master = f"spark://{_HOST}:{port}"
            where = ["--host", _HOST, "--webui-port", "0"]
            start(
                "master",
                "I have been elected leader",
                *[f"{_CLASS}.master.Master", *where, "--port", str(port)],
            )
            for number in range(workers):
                sizes = ["--cores", str(cores), "--memory", memory]
                start(
                    f"worker-{number}",
                    "Successfully registered with master",
                    *[f"{_CLASS}.worker.Worker", *where, *sizes],
                    *["--work-dir", str(logs / f"work-{number}"), master],
                )
            yield master
        finally:
            for process in reversed(started):
                _stop(process)


def _wait_for(process: subprocess.Popen, log: pathlib.Path, words: str) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while words not in log.read_text(encoding="utf-8", errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            message = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-300:]
            raise UserError(f"Spark's {log.stem} does not start ({message}).")
        time.sleep(0.1)


def _stop(process: subprocess.Popen) -> None:
    # The whole process group, because a worker starts executors.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def main(argv: list[str]) -> int:
    """Runs a cluster until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cores", type=int, default=1, help="of each worker")
    parser.add_argument("--memory", default="1g", help="of each worker")
    options = parser.parse_args(argv)
    try:
        with standalone_cluster(options.workers, options.cores, options.memory) as master:
            print(master, flush=True)
            signal.pause()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
