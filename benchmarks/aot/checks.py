"""Checks that the compiled train step pools by kernels, without large arrays or costly scatters.

    python -m benchmarks.aot.checks h200

compiles the smallest step, and prints two lists of complaints as JSON, about the step with
transposed lists and about the plain form; tests/benchmarks/test_aot.py asserts that the first is
empty and the second is not.
"""

from __future__ import annotations

import json
import math
import sys

from benchmarks.aot import programs, targets
from benchmarks.aot.report import Program
from pinsage_jax.cpu import ops
from pinsage_jax.distributed.devices import compile_ahead


def complaints(read: Program, size: programs.Size) -> list[str]:
    """Violations of pooling: [n, T, m] in memory, scatters as large or imprecise."""
    model = size.config().model
    gathered = size.rows[-2] * size.lists * model.hidden_dim
    found = [
        f"{name} is written to memory"
        for name, _ in read.temporaries(on_chip=True)
        if _entries(name) >= gathered
    ]
    for target, added in read.scatters():
        if math.prod(added.shape) >= gathered:
            found.append(f"{added} is scattered to {target}")
    return found + [f"sums in {target}" for target, _ in read.low_precision_scatters()]


def _entries(name: str) -> int:
    return math.prod(int(part) for part in name[name.index("[") + 1 : -1].split(",") if part)


def complaints_of(target: str) -> list[list[str]]:
    """`complaints` about the step with transposed lists, and about the plain form."""
    targets.prepare()
    ops.choose_kernels("off")
    size = programs.SIZES["smallest"]
    step = programs.step_program(size, 1)
    found = []
    for batch in (step.batch, step.batch._replace(transposed=None)):
        device = targets.devices(target, 1)
        program = compile_ahead(step.step, device, step.state, batch, *step.constants)
        read = Program.of(program.as_text())
        found.append(complaints(read, size))
        # On a TPU v5e the plain form moves as little (model/row_sum_kernels.py).
        if not read.kernels() and targets.chip(target) != "v5e":
            found[-1].append("no Pallas kernel pools")
    return found


if __name__ == "__main__":
    print(json.dumps(complaints_of(sys.argv[1])))
