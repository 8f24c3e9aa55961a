"""Compiles the programs of a run for accelerators that this machine lacks, and tabulates them."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import time
from typing import Any

import jax

from benchmarks.aot import programs, targets
from benchmarks.aot.report import Array, Program
from benchmarks.products import flops, products
from pinsage_jax.cpu import ops
from pinsage_jax.distributed.devices import compile_ahead, on_device

STEP = "train step"
NOTES = (
    "Bytes moved: operands and results of every instruction of the optimized program outside "
    "fusions; loops count as often as they run, of tables the gathered rows, and of a Pallas "
    "kernel what it copies. Floor: the longer of operations at the published peak and bytes at "
    "the published bandwidth; float32 products count as JAX multiplies them by default (TF32 on "
    "GPUs, one bfloat16 pass on TPUs).",
    "Several devices have a batch each: the bytes reduced are those of one device.",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One program of one size for a number of devices of one target."""

    target: str
    size: str
    program: str
    devices: int


def cases(options: argparse.Namespace) -> list[Case]:
    """The cases of a command line: every size, the step first, then the stages."""
    found = []
    for target in options.target.split(","):
        for size in options.sizes.split(","):
            found += [Case(target, size, STEP, count) for count in options.target_devices]
            if options.stages:
                stages = programs.STAGES
                found += [Case(target, size, name, 1) for name in stages]
    return found


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tables of all cases that can be compiled here, and sentences on the others."""
    asked = options.target.split(",")
    unknown = sorted(set(options.sizes.split(",")) - set(programs.SIZES))
    if unknown:
        raise SystemExit(f"--sizes: no {unknown[0]}; there are {', '.join(programs.SIZES)}.")
    if options.frontiers:
        targets.prepare()
        wanted = [(name, programs.SIZES[name]) for name in options.sizes.split(",")]
        return [_frontiers(name, size, options.graphs) for name, size in wanted]
    try:
        obstacles = {target: targets.obstacle(target) for target in asked}
    except ValueError as error:
        raise SystemExit(str(error)) from None
    targets.prepare()
    # Only CPUs have these kernels; the step then is that of every other device.
    ops.choose_kernels("off")
    numbers, details = [], []
    for case in cases(options):
        if not obstacles[case.target]:
            row, detail = measured(case)
            numbers.append(row)
            details.append(detail)
            print(row, detail, flush=True)
    sentences = [line for line in obstacles.values() if line] + list(NOTES)
    sentences += [targets.PUBLISHED[targets.chip(target)].source for target in asked]
    return numbers + details + [{"note": line} for line in dict.fromkeys(sentences)]


def _frontiers(name: str, size: programs.Size, graphs: pathlib.Path) -> dict[str, Any]:
    rows, groups = programs.measured(size, graphs)
    return {"size": name, "rows": str(rows), "groups": str(groups)}


def compiled(case: Case) -> tuple[Any, float]:
    """(jax.stages.Compiled, operations of its products on one device).

    Raises:
      jax.errors.JaxRuntimeError: it does not fit.
    """
    size = programs.SIZES[case.size]
    found = targets.devices(case.target, case.devices)
    if case.program == STEP:
        step = programs.step_program(size, case.devices)
        count = flops(products(step.jaxpr()))
        return compile_ahead(step.step, found, step.state, step.batch, *step.constants), count
    function, arguments = programs.stage_programs(size)[case.program]
    traced = function.trace(*on_device(arguments, found[0]))
    return traced.lower().compile(), flops(products(traced.jaxpr.jaxpr))


def measured(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """One case as a row of numbers, and a row of its largest arrays and scatters."""
    published = targets.PUBLISHED[targets.chip(case.target)]
    size = programs.SIZES[case.size]
    begun = time.perf_counter()
    named = dataclasses.asdict(case)
    empty = dict.fromkeys(("scatters", "low-precision scatters", "reduced"), None)
    try:
        program, operations = compiled(case)
    except jax.errors.JaxRuntimeError as error:
        return {**named, "fits": "no", **_NO_NUMBERS}, {**named, "largest": _short(error), **empty}
    memory, read = (
        program.memory_analysis(),
        Program.of(program.as_text(), size.trips(), size.kernel_bytes()),
    )
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    whole = held + memory.temp_size_in_bytes
    peak = published.peaks[size.config().model.compute_dtype]
    moved = read.bytes()
    floors = {"compute": operations / peak, "memory": moved / published.bandwidth}
    bound = max(floors, key=lambda name: floors[name])
    collectives = read.collectives()
    row = {
        **named,
        "fits": "yes" if whole <= published.memory else "no",
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "tflop": operations / 1e12,
        "moved_gb": moved / 1e9,
        "floor_ms": 1e3 * floors[bound],
        "bound": bound,
        "scatters": len(read.scatters()),
        "all_reduced_mb": sum(collectives.get("all-reduce", {}).values()) / 1e6,
        "compile_s": time.perf_counter() - begun,
    }
    detail = {
        **named,
        "largest": "; ".join(
            f"{name} {size / 1e9:.2f} GB" for name, size in read.temporaries()[:5]
        ),
        "scatters": _scatters(read.scatters()),
        "low-precision scatters": _scatters(read.low_precision_scatters()),
        "reduced": _collectives(collectives),
    }
    return row, detail


_NO_NUMBERS: dict[str, Any] = dict.fromkeys(
    (
        *("arguments_gb", "temporaries_gb", "tflop", "moved_gb", "floor_ms", "bound"),
        *("scatters", "all_reduced_mb", "compile_s"),
    )
)


def _scatters(found: list[tuple[Array, Array]]) -> str | None:
    return "; ".join(sorted(f"{target} <- {added}" for target, added in found)) or None


def _collectives(found: dict[str, dict[str, float]]) -> str | None:
    parts = [
        f"{kind} {dtype} {size / 1e6:.1f} MB"
        for kind, by_type in sorted(found.items())
        for dtype, size in sorted(by_type.items())
    ]
    return "; ".join(parts) or None


def _short(error: Exception) -> str:
    """The compiler's sentence on how much memory is missing, or the first line of the error."""
    found = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ \w+", str(error))
    return found[0] if found else str(error).splitlines()[0][:200]
