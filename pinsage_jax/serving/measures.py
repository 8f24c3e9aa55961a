"""What the server has done, in the text format that Prometheus reads.

https://prometheus.io/docs/instrumenting/exposition_formats/ (text version 0.0.4)
"""

from __future__ import annotations

import bisect
import threading
from collections import defaultdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Upper ends of the histogram's buckets, in seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Measures:
    """Counts of requests by path and status, and how long they took; any thread may call it."""

    def __init__(self, gauges: dict[str, tuple[str, float]]):
        """Takes name -> (help, value) of what does not change."""
        self._gauges = gauges
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, int], int] = defaultdict(int)
        self._buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._seconds: dict[str, float] = defaultdict(float)

    def add(self, path: str, status: int, seconds: float) -> None:
        """One answered request; `path` is that of a route, of which there are few."""
        with self._lock:
            self._answers[path, status] += 1
            self._buckets[path][bisect.bisect_left(BOUNDS, seconds)] += 1
            self._seconds[path] += seconds

    def text(self) -> str:
        """All of it, in the order of names."""
        with self._lock:
            lines = _head("pinsage_requests_total", "counter", "Requests answered.")
            for (path, status), count in sorted(self._answers.items()):
                lines.append(f'pinsage_requests_total{{path="{path}",status="{status}"}} {count}')
            name = "pinsage_request_seconds"
            lines += _head(name, "histogram", "Seconds from a request's first byte to its answer.")
            for path, counts in sorted(self._buckets.items()):
                total = 0
                for bound, count in zip((*BOUNDS, "+Inf"), counts):
                    total += count
                    lines.append(f'{name}_bucket{{path="{path}",le="{bound}"}} {total}')
                lines.append(f'{name}_sum{{path="{path}"}} {self._seconds[path]:.6f}')
                lines.append(f'{name}_count{{path="{path}"}} {total}')
        for name, (about, value) in sorted(self._gauges.items()):
            lines += [*_head(name, "gauge", about), f"{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
