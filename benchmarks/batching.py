"""Batch building alone: milliseconds a batch by threads, and how much of it is padding.

Neighborhoods are kept, so that what is timed is pairs, lists, re-indexing and whatever
of the inputs the host gathers; the workload is that of benchmarks/end_to_end.py.
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
    """Rows of milliseconds a batch, one for each T, home of the inputs and threads."""
    graph = bipartite(options.graph_file)
    features = np.random.default_rng(0).standard_normal((graph.num_items, 256), np.float32)
    rows = []
    for top in (10, 50):
        for home in ("on", "off"):
            training = Training(graph, settings(top, device_features=home), features, way="kept")
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
                        "inputs_on_device": home,
                        "threads": threads,
                        "ms_a_batch": statistics.median(times) * 1e3,
                        "padding_share": 1 - used / training.rows[-1],
                        "left_out": sum(info.left_out for info in infos),
                    }
                )
    return rows
