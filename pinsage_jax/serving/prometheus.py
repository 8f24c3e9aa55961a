"""Counts and latencies of requests, in the text format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/ (text version 0.0.4)

A server of several processes (workers.py) keeps the numbers of all of them in one file that
every process maps, so that whichever of them is asked answers for all.
"""

from __future__ import annotations

import bisect
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Upper bounds of the histogram's buckets, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Paths that no route has share one label, because their number is unbounded.
OTHER = "other"
# Loads of a new model, by outcome; they stand in a row of their own.
OUTCOMES = ("done", "failed")
# Columns of a path's row: one for each status, the buckets, the sum of seconds.
_STATUSES = 600
_BUCKETS = slice(_STATUSES, _STATUSES + len(BOUNDS) + 1)
_SECONDS = _BUCKETS.stop
_WIDTH = _SECONDS + 1
_MOST_PATHS = 64


class ServerMetrics:
    """Counts of requests by path and status, and a latency histogram by path; thread-safe.

    Attributes:
      process: number of this process of the server, from 0.
    """

    def __init__(self, shared: np.ndarray | None = None, process: int = 0):
        """Takes where the numbers are kept.

        Args:
          shared: float64 [P, 65, _], which `shared_numbers` made; None: of this process alone.
          process: number of this process; every process writes its own part.
        """
        self._paths = [OTHER]
        self._all = np.zeros((1, _MOST_PATHS + 1, _WIDTH)) if shared is None else shared
        self._own = self._all[process]
        self.process = process
        self._row_of: dict[str, int] = {}
        self._lock = threading.Lock()

    def name_paths(self, paths: Sequence[str]) -> None:
        """Names the routes, the same in all processes, before the first request.

        Other paths count as "other".
        """
        self._paths = [*sorted(set(paths) - {OTHER}), OTHER]
        assert len(self._paths) <= _MOST_PATHS
        self._row_of = {path: row for row, path in enumerate(self._paths)}

    def add(self, path: str, status: int, seconds: float) -> None:
        """Adds one request.

        Args:
          path: path of the route, not of the request, so that their number is bounded.
          status: HTTP status of the response.
          seconds: time from the request to the end of the response.
        """
        row = self._own[self._row_of.get(path, len(self._paths) - 1)]
        with self._lock:
            row[min(status, _STATUSES - 1)] += 1
            row[_BUCKETS.start + bisect.bisect_left(BOUNDS, seconds)] += 1
            row[_SECONDS] += seconds

    def add_reload(self, outcome: str) -> None:
        """Adds one load of a new model, `done` or `failed`."""
        with self._lock:
            self._own[_MOST_PATHS, OUTCOMES.index(outcome)] += 1

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """All metrics of all processes in the text format.

        Args:
          gauges: (help text, value) by name.
        """
        total = self._all.sum(axis=0)
        lines = _header("pinsage_requests_total", "counter", "Number of requests.")
        for row, path in enumerate(self._paths):
            for status in np.flatnonzero(total[row, :_STATUSES]):
                count = int(total[row, status])
                lines.append(f'pinsage_requests_total{{path="{path}",status="{status}"}} {count}')
        name = "pinsage_request_seconds"
        lines += _header(name, "histogram", "Latency of requests in seconds.")
        for row, path in enumerate(self._paths):
            counts = total[row, _BUCKETS].cumsum().astype(int)
            if counts[-1] == 0:
                continue
            for bound, count in zip((*BOUNDS, "+Inf"), counts):
                lines.append(f'{name}_bucket{{path="{path}",le="{bound}"}} {count}')
            lines.append(f'{name}_sum{{path="{path}"}} {total[row, _SECONDS]:.6f}')
            lines.append(f'{name}_count{{path="{path}"}} {counts[-1]}')
        name = "pinsage_reloads_total"
        lines += _header(name, "counter", "Loads of a new model, of each process.")
        for outcome, count in zip(OUTCOMES, total[_MOST_PATHS]):
            lines.append(f'{name}{{outcome="{outcome}"}} {int(count)}')
        every = {
            **gauges,
            "pinsage_processes": ("Number of processes that answer.", len(self._all)),
        }
        for name, (help_text, value) in sorted(every.items()):
            lines += [*_header(name, "gauge", help_text), f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


def shared_numbers(path: pathlib.Path, processes: int) -> np.ndarray:
    """Maps the file with the numbers of all processes, float64 [P, 65, _]; makes it if needed."""
    shape = (processes, _MOST_PATHS + 1, _WIDTH)
    return np.memmap(path, np.float64, "r+" if path.exists() else "w+", shape=shape)


def _header(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
