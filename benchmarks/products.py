"""The matrix products of a JAX function, found in its jaxpr and timed alone.

What a computation takes beyond its own products is gathers, reductions, elementwise
work and copies; a ratio of the two says how close it is to the speed of the machine.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def products(jaxpr: Any, times: int = 1) -> collections.Counter:
    """How often each dot_general runs: (shape, shape, dimension numbers) -> times."""
    found: collections.Counter = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (tuple(each.aval.shape) for each in equation.invars)
            found[left, right, equation.params["dimension_numbers"]] += times
        rounds = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += products(inner, times * rounds)
    return found


def flops(kinds: collections.Counter) -> float:
    """Multiplications and additions of all products."""
    total = 0.0
    for (left, right, (contracted, batched)), times in kinds.items():
        free = [
            size
            for axis, size in enumerate(right)
            if axis not in contracted[1] and axis not in batched[1]
        ]
        total += 2.0 * times * np.prod(left, dtype=float) * np.prod(free, dtype=float)
    return float(total)


def alone(kinds: collections.Counter) -> list[tuple[Callable[[], Any], int]]:
    """A function that computes each kind of product alone, and how often the product runs."""
    rng = np.random.default_rng(0)
    made = []
    for (left, right, numbers), times in kinds.items():
        arrays = [jax.device_put(rng.standard_normal(s, np.float32)) for s in (left, right)]
        product = jax.jit(lambda a, b, numbers=numbers: jax.lax.dot_general(a, b, numbers))
        made.append((lambda product=product, arrays=arrays: product(*arrays), times))
    return made


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    begun = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begun
