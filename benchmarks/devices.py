"""Training on 1, 2, 4 and 8 devices: the same parameters, and on real ones how fast.

The same batches are cut for each number of devices; after the same steps every array of
parameters is compared with that of one device.  They cannot be equal bit for bit, since
float32 sums are added up in another order; the difference given is the largest of an
array's over the largest magnitude in it, the worst of all arrays.

CPUs are faked (one processor posing as eight devices), so there only correctness is
reported.  On accelerators: pairs/s, and efficiency, their ratio to as many times one.

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
    """Options of this benchmark, beside those of every benchmark."""
    parser.add_argument("--device_steps", type=int, default=_STEPS, help="steps before comparing")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a process of its own, since the number of faked devices is fixed at its start."""
    asked = {name: getattr(options, name) for name in ("quick", "repeat", "device_steps")}
    asked["graph_file"] = options.graph_file
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.devices", json.dumps(asked)],
        env={"JAX_NUM_CPU_DEVICES": str(_COUNTS[-1])} | os.environ,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def training_on(devices: int, graph: Graph, width: int, **train: Any) -> Training:
    """A run of a two-layer softmax model, with as much of it in common as can be."""
    base = settings(10)
    chosen = {"loss": "softmax", "symmetric": True, "batch_size": 64, "random_negatives": 64}
    config: Config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, hidden_dim=width, layer_dim=width, output_dim=width),
        train=dataclasses.replace(base.train, **{**chosen, **train}),
    )
    features = np.random.default_rng(0).standard_normal((graph.num_items, width), np.float32)
    return Training(graph, config, features, way="kept", num_devices=devices)


def largest_difference(ours: Any, theirs: Any) -> float:
    """The largest difference between two pytrees, in shares of each array's largest entry."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def small_graph() -> Graph:
    """2,000 random edges of 300 items and 80 collections."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, (300, 80), (2_000, 2)).astype(np.int32), axis=0)
    return Graph.from_edges(pairs[:, 0], pairs[:, 1], 300, 80)


def measure(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows, one for each number of devices that there is."""
    graph = small_graph() if asked["quick"] else bipartite(asked["graph_file"])
    sizes = {} if asked["quick"] else {"batch_size": 1024, "random_negatives": 512}
    width, steps = (16 if asked["quick"] else 128), asked["device_steps"]
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
            rate = statistics.median(training.measure(steps)[0] for _ in range(asked["repeat"]))
            row["pairs_per_s"] = rate
            row["efficiency"] = rate / count / (rows[0]["pairs_per_s"] if rows else rate)
        rows.append(row)
    if not real:
        rows.append({"note": "Faked devices: they share one processor, so no speed is given."})
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
