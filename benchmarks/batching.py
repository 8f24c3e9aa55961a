"""Batch building alone: milliseconds a batch by threads, and how much of it is padding.

Neighbourhoods are kept, so that what is timed is pairs, lists, re-indexing and whatever
of the inputs the host gathers; the workload is that of benchmarks/end_to_end.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.end_to_end import Training, add_graph_option, bipartite, settings
from pinsage_jax.batching.prefetch import Prefetcher

_BATCHES = 12


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of milliseconds a batch, one for each T, home of the inputs and threads."""
    graph = bipartite(getattr(options, "graph_file", ""))
    features = np.random.default_rng(0).standard_normal((graph.num_items, 256), np.float32)
    rows = []
    for top in (10, 50):
        for home in ("on", "off"):
            training = Training(graph, settings(top, device_features=home), features, kept=True)
            for threads in (1, 2):
                times = []
                for _ in range(getattr(options, "repeat", 5)):
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark, beside --repeat."""
    add_graph_option(parser)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repeat", type=int, default=5)
    add_options(arguments)
    for result in run(arguments.parse_args()):
        print(json.dumps(result))
