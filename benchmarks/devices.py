"""Training on 1, 2, 4 and 8 devices: equality of the parameters, and speed on accelerators.

The same batches are split over each number of devices, and after the same steps every array of
parameters is compared with that of one device.  Float32 sums are added in another order, so
they are not equal bit for bit.  The reported difference is the largest difference in an array
over the largest magnitude in it, the maximum over all arrays.

On a CPU the devices are simulated by one processor, so only the difference is reported.  On
accelerators there are also pairs/s and the efficiency: pairs/s over the number of devices times
that of one device.

  python -m benchmarks.run devices
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from benchmarks.end_to_end import WARM_UP, Training, bipartite, settings
from pinsage_jax.config.settings import Config
from pinsage_jax.distributed.devices import device_count
from pinsage_jax.graph.csr import Graph

_COUNTS = (1, 2, 4, 8)
_STEPS = 50


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    parser.add_argument("--device_steps", type=int, default=_STEPS, help="steps before comparing")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures in a new process, because the number of simulated devices is fixed at its start."""
    settings_of_run = {name: getattr(options, name) for name in ("quick", "repeat", "device_steps")}
    settings_of_run["graph_file"] = options.graph_file
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.devices", json.dumps(settings_of_run)],
        env={"JAX_NUM_CPU_DEVICES": str(_COUNTS[-1])} | os.environ,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def training_on(devices: int, graph: Graph, width: int, **train: Any) -> Training:
    """A training run of a two-layer softmax model on some number of devices."""
    base = settings(10)
    chosen = {"loss": "softmax", "symmetric": True, "batch_size": 64, "random_negatives": 64}
    config: Config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, hidden_dim=width, layer_dim=width, output_dim=width),
        train=dataclasses.replace(base.train, **{**chosen, **train}),
    )
    features = np.random.default_rng(0).standard_normal((graph.num_items, width), np.float32)
    return Training(graph, config, features, way="cached", num_devices=devices)


def largest_difference(ours: Any, theirs: Any) -> float:
    """The largest difference between two pytrees, relative to each array's largest entry."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def small_graph() -> Graph:
    """2,000 random edges of 300 items and 80 collections."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, (300, 80), (2_000, 2)).astype(np.int32), axis=0)
    return Graph.from_edges(pairs[:, 0], pairs[:, 1], 300, 80)


def measure(options: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each number of devices that is available."""
    graph = small_graph() if options["quick"] else bipartite(options["graph_file"])
    sizes = {} if options["quick"] else {"batch_size": 1024, "random_negatives": 512}
    width, steps = (16 if options["quick"] else 128), options["device_steps"]
    real = jax.default_backend() != "cpu"
    counts = [count for count in _COUNTS if count <= device_count()]
    rows, alone = [], None
    for count in counts:
        training = training_on(count, graph, width, **sizes)
        training.measure(steps)
        parameters = training.parameters()
        alone = alone or parameters
        row = {
            "devices": count,
            "steps": steps + WARM_UP + 2,
            "difference": f"{largest_difference(parameters, alone):.1e}",
        }
        if real:
            rate = statistics.median(training.measure(steps)[0] for _ in range(options["repeat"]))
            row["pairs_per_s"] = rate
            row["efficiency"] = rate / count / (rows[0]["pairs_per_s"] if rows else rate)
        rows.append(row)
    if not real:
        rows.append({"note": "Simulated devices share one processor, so no speed is reported."})
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
