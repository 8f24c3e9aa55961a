"""Counts and latencies of requests, in the text format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/ (text version 0.0.4)
"""

from __future__ import annotations

import bisect
import threading
from collections import defaultdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Upper bounds of the histogram's buckets, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ServerMetrics:
    """Counts of requests by path and status, and a latency histogram by path; thread-safe."""

    def __init__(self, gauges: dict[str, tuple[str, float]]):
        """Takes (help text, value) by name of constant gauges."""
        self._gauges = gauges
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._seconds: dict[str, float] = defaultdict(float)

    def add(self, path: str, status: int, seconds: float) -> None:
        """Adds one request.

        Args:
          path: path of the route, not of the request, so that their number is bounded.
          status: HTTP status of the response.
          seconds: time from the request to the end of the response.
        """
        with self._lock:
            self._requests[path, status] += 1
            self._buckets[path][bisect.bisect_left(BOUNDS, seconds)] += 1
            self._seconds[path] += seconds

    def text(self) -> str:
        """All metrics in the text format, ordered by name."""
        with self._lock:
            lines = _header("pinsage_requests_total", "counter", "Number of requests.")
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'pinsage_requests_total{{path="{path}",status="{status}"}} {count}')
            name = "pinsage_request_seconds"
            lines += _header(name, "histogram", "Latency of requests in seconds.")
            for path, counts in sorted(self._buckets.items()):
                total = 0
                for bound, count in zip((*BOUNDS, "+Inf"), counts):
                    total += count
                    lines.append(f'{name}_bucket{{path="{path}",le="{bound}"}} {total}')
                lines.append(f'{name}_sum{{path="{path}"}} {self._seconds[path]:.6f}')
                lines.append(f'{name}_count{{path="{path}"}} {total}')
        for name, (help_text, value) in sorted(self._gauges.items()):
            lines += [*_header(name, "gauge", help_text), f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _header(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
