"""Runs DGL in a process of another Python environment, controlled over a pipe.

The process runs benchmarks/dgl_worker.py, which imports nothing of this project.  It sleeps
while it waits for a request, so that either side has all cores while it is measured.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

WORKER = pathlib.Path(__file__).with_name("dgl_worker.py")
SKIPPED = "DGL: skipped; name an environment that has it with --dgl_python=/path/to/python."


class Worker:
    """A running DGL process; use as a context manager.

    Raises:
      RuntimeError: the process ended, or returned an error.
    """

    def __init__(self, python: pathlib.Path, threads: int):
        # Isolated (-I), because `import dgl` would find this file beside the worker.
        # Threads of OpenMP that spin after their work would slow down the other side.
        settings = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        self._process = subprocess.Popen(
            [str(python), "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings | {"DGLBACKEND": "pytorch"},
        )
        self.versions = self.ask("start", threads=threads)

    def ask(self, what: str, **arguments):
        """Sends one request and returns the answer, a JSON value."""
        self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the DGL process ended at {what!r}; its error is above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"DGL at {what!r}: {answer['error']}")
        return answer["answer"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
