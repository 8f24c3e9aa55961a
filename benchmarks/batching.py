"""Building minibatches: milliseconds per batch by number of threads, and the share of padding.

Neighborhoods are cached, so the time is that of pairs, lists, re-indexing and the inputs that
the host gathers.  The workload is that of benchmarks/end_to_end.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.end_to_end import Training, bipartite, settings
from pinsage_jax.batching.prefetch import Prefetcher

_BATCHES = 12


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each T, location of the inputs and number of threads."""
    graph = bipartite(options.graph_file)
    features = np.random.default_rng(0).standard_normal((graph.num_items, 256), np.float32)
    rows = []
    for top in (10, 50):
        for device_features in ("on", "off"):
            training = Training(
                graph, settings(top, device_features=device_features), features, way="cached"
            )
            for threads in (1, 2):
                times = []
                for _ in range(options.repeat):
                    begun = time.perf_counter()
                    with Prefetcher(training.make, 0, _BATCHES, 4, threads) as queue:
                        infos = [info for _, info in queue]
                    times.append((time.perf_counter() - begun) / _BATCHES)
                used = statistics.mean(sum(info.used) for info in infos)
                rows.append(
                    {
                        "T": top,
                        "inputs_on_device": device_features,
                        "threads": threads,
                        "ms_a_batch": statistics.median(times) * 1e3,
                        "padding_share": 1 - used / training.rows[-1],
                        "left_out": sum(info.left_out for info in infos),
                    }
                )
    return rows
