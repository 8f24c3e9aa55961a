"""Bytes that a step reduces over 1 to 8 devices, and a model of its time on H200s.

The train step is compiled for simulated devices, and the sums, gathers and their types are read
from the optimized program.  Weak scaling: each device has a batch; strong: one batch is split.
Nothing is timed: simulated devices share one processor.  `python -m benchmarks.run devices`
shows that the parameters are the same on each number of devices.

The model of a step has three terms, none of which is hidden behind another one:

  products   operations of the step's matrix products at the published peak
  reduce     a ring's share of what is summed and gathered, 2(n-1)/n and (n-1)/n of the bytes,
             at the published bandwidth of NVLink in one direction
  feed       what a batch brings to a device at the published bandwidth of PCIe in one direction

  python -m benchmarks.run collectives --collective_sizes=default,workload,paper-soft
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from typing import Any

from benchmarks.aot import programs, targets
from benchmarks.aot.report import Program
from benchmarks.products import flops, products
from pinsage_jax.cpu import ops
from pinsage_jax.distributed.devices import compile_ahead, make_devices

COUNTS = (1, 2, 4, 8)
# bytes/s in one direction.
NVLINK, PCIE = 450e9, 64e9
NOTES = (
    "Bytes are those of one device and step. reduce-scatter is the derivative of all-gather.",
    f"Model: products at the peak of the {targets.PUBLISHED['h200'].source}; reduce at 450 GB/s, "
    "feed at 64 GB/s (the same data sheet: NVLink 900 GB/s and PCIe Gen5 128 GB/s, both "
    "directions together). The terms are floors, and nothing overlaps.",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark to the shared ones."""
    parser.add_argument(
        "--collective_sizes", default="default", help="of benchmarks/aot/programs.py"
    )


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiles in a new process, because the number of simulated devices is fixed at its start."""
    sizes = ["smallest"] if options.quick else options.collective_sizes.split(",")
    if unknown := sorted(set(sizes) - set(programs.SIZES)):
        known = ", ".join(programs.SIZES)
        raise SystemExit(f"--collective_sizes: no {unknown[0]}; there are {known}.")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.collectives", *sizes],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(COUNTS[-1]), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]) + [{"note": line} for line in NOTES]


def split_over(size: programs.Size, devices: int) -> programs.Size:
    """The size with one batch split over `devices`.

    Frontiers keep their rows, which change nothing of what is reduced.
    """
    whole = size.config()
    train = dataclasses.replace(whole.train, batch_size=whole.train.batch_size // devices)
    return dataclasses.replace(size, config=lambda: dataclasses.replace(whole, train=train))


def measured(name: str, devices: int, split: bool) -> dict[str, Any]:
    """What a step of a size moves between devices, MB; without `split`, the model's terms too."""
    size = split_over(programs.SIZES[name], devices) if split else programs.SIZES[name]
    step = programs.step_program(size, devices)
    found = compile_ahead(step.step, make_devices(devices), step.state, step.batch, *step.constants)
    collectives = Program.of(found.as_text(), size.trips()).collectives()
    moved = {
        kind: sum(collectives.get(kind, {}).values())
        for kind in ("all-reduce", "all-gather", "reduce-scatter")
    }
    types = sorted({dtype for by_type in collectives.values() for dtype in by_type})
    row: dict[str, Any] = {
        "size": name,
        "scaling": "strong" if split else "weak",
        "devices": devices,
        "pairs_a_device": size.config().train.batch_size,
        **{f"{kind} MB": round(count / 1e6, 3) for kind, count in moved.items()},
        "types": " ".join(types),
    }
    if split:
        return row
    dtype = size.config().model.compute_dtype
    share = (devices - 1) / devices
    brought = sum(leaf.dtype.itemsize * math.prod(leaf.shape[1:]) for leaf in step.batch)
    # The result of reduce-scatter is one part of what is summed.
    passed = 2 * moved["all-reduce"] + moved["all-gather"] + devices * moved["reduce-scatter"]
    operations = flops(products(step.jaxpr()))
    terms = {
        "products": operations / targets.PUBLISHED["h200"].peaks[dtype],
        "reduce": share * passed / NVLINK,
        "feed": brought / PCIE,
    }
    return (
        row
        | {"batch MB": round(brought / 1e6, 1), "tflop": operations / 1e12}
        | {f"{term} ms": 1e3 * seconds for term, seconds in terms.items()}
    )


def all_measured(sizes: list[str]) -> list[dict[str, Any]]:
    """Weak scaling of every size, then strong."""
    # Only CPUs have these kernels; the step then is that of every other device.
    ops.choose_kernels("off")
    rows = [measured(name, count, False) for name in sizes for count in COUNTS]
    return rows + [measured(name, count, True) for name in sizes for count in COUNTS[1:]]


if __name__ == "__main__":
    print(json.dumps(all_measured(sys.argv[1:])))
