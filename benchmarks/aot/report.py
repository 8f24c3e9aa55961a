"""Reads XLA's optimized program: its buffers, bytes, scatters and collectives.

The text of a compiled program lists computations of instructions.  Bytes are counted as XLA's
cost model counts them, operands read and results written of every instruction that is not
inside a fusion, with two corrections: the body of a loop counts as often as it runs, and of a
table from which rows are gathered or sliced, those rows count and not the table.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "u16": 2, "s16": 2, "s8": 1, "u8": 1}
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+|f8\w+)\[([\d,]*)\]({[^}]*})?")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SCOPE = re.compile(r'op_name="([^"]*)"')
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "iota", "after-all"),
    *("while", "conditional", "call", "opt-barrier", "partition-id", "replica-id"),
}
# Custom calls that move nothing.
_NO_WORK = re.compile(r'custom_call_target="(AllocateBuffer|AssumeGatherIndicesInBound)"')
_PALLAS = re.compile(r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton)"')
_LOW_PRECISION = {"bf16", "f16"}


@dataclasses.dataclass(frozen=True)
class Array:
    """One result of an instruction; `on_chip`: in the vector memory of a TPU."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> int:
        width = _WIDTHS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype)) / 8
        return int(math.prod(self.shape) * width)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `rest` are its attributes."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.results if not array.on_chip)

    def called(self, attribute: str) -> str:
        """The computation that an attribute names; "" where there is none."""
        found = re.search(attribute + r"=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


Computations = dict[str, dict[str, Instruction]]


def parse(text: str) -> tuple[Computations, str]:
    """Computations of a program by name, and the name of its entry."""
    found: Computations = {}
    entry, current = "", None
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            current = found.setdefault(begins[2], {})
            entry = begins[2] if begins[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (matched := _INSTRUCTION.match(line)):
            made = _instruction(matched[2], matched[3], bool(matched[1]))
            if made:
                current[made.name] = made
    return found, entry


def _instruction(name: str, text: str, is_root: bool) -> Instruction | None:
    kind, text = _balanced(text) if text.startswith("(") else _until_space(text)
    matched = re.match(r"\s*([\w\-]+)\(", text)
    if not matched:
        return None
    operands, rest = _balanced(text[matched.end() - 1 :])
    if matched[1] in ("parameter", "constant"):
        rest = operands.strip("()")
    arrays = tuple(
        Array(dtype, tuple(int(size) for size in shape.split(",") if size), "S(1)" in layout)
        for dtype, shape, layout in _ARRAY.findall(kind)
    )
    return Instruction(name, matched[1], arrays, tuple(_NAME.findall(operands)), rest, is_root)


def _until_space(text: str) -> tuple[str, str]:
    head, _, tail = text.partition(" ")
    return head, tail


def _balanced(text: str) -> tuple[str, str]:
    """The text up to the bracket that closes the first one, and what follows."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, parsed.

    Attributes:
      computations: by name; entry: the name of the first.
      scoped_trips: how often loops run whose trips the program does not say, because they
        depend on the batch; by the jax.named_scope that they are in.
      scoped_bytes: bytes that Pallas kernels move, by their scope likewise: a program does not
        say which rows of an operand they read.
    """

    computations: Computations
    entry: str
    scoped_trips: Mapping[str, int]
    scoped_bytes: Mapping[str, float]

    @classmethod
    def of(
        cls,
        text: str,
        scoped_trips: Mapping[str, int] | None = None,
        scoped_bytes: Mapping[str, float] | None = None,
    ) -> Program:
        """Parses the text of jax.stages.Compiled.as_text."""
        return cls(*parse(text), scoped_trips or {}, scoped_bytes or {})

    def trips(self, loop: Instruction) -> int:
        """Number of iterations of a while loop; 0 if it is unknown."""
        if found := _TRIPS.search(loop.rest):
            return int(found[1])
        # XLA for TPUs does not say it: loops of JAX count from 0 to a constant.
        condition = self.computations.get(loop.called("condition"), {})
        for each in condition.values():
            if each.is_root and each.opcode == "compare" and "direction=LT" in each.rest:
                bound = condition[each.operands[1]]
                if bound.opcode == "constant":
                    return int(bound.rest)
        return _of_scope(loop, self.scoped_trips) or 0

    def executed(self) -> Iterator[tuple[str, Instruction, float]]:
        """(computation, instruction, how often it runs) of all that is not inside a fusion."""
        waiting = [(self.entry, 1.0)]
        while waiting:
            name, times = waiting.pop()
            for each in self.computations.get(name, {}).values():
                yield name, each, times
                if each.opcode == "while":
                    waiting.append((each.called("body"), times * (self.trips(each) or 1)))
                elif each.opcode in ("call", "async-start"):
                    target = each.called("to_apply") or each.called("calls")
                    waiting.append((target, times))
                elif each.opcode == "conditional":
                    listed = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
                    waiting += [(n, times) for n in _NAME.findall(listed[1] if listed else "")]

    def temporaries(self, on_chip: bool = False) -> list[tuple[str, int]]:
        """Distinct arrays that instructions write to memory, the largest first, with bytes.

        Args:
          on_chip: those in the vector memory of a TPU, too.
        """
        found: dict[str, int] = {}
        for _, each, _ in self.executed():
            if each.opcode in _FREE or each.opcode.endswith("-done"):
                continue
            for array in each.results:
                if on_chip or not array.on_chip:
                    found[str(array)] = array.bytes
        return sorted(found.items(), key=lambda item: -item[1])

    def bytes(self) -> float:
        """Bytes read and written, loops as often as they run."""
        total = 0.0
        for name, each, times in self.executed():
            if each.opcode in _FREE or each.opcode.endswith("-done"):
                continue
            total += times * self._moved(self.computations[name], each)
        return total

    def _moved(self, around: dict[str, Instruction], each: Instruction) -> float:
        if each.opcode == "custom-call":
            if _NO_WORK.search(each.rest):
                return 0.0
            if declared := _of_scope(each, self.scoped_bytes):
                return declared
        if each.opcode == "fusion":
            return self._moved_by_fusion(around, each)
        if each.opcode in ("gather", "dynamic-slice", "slice"):
            return 2.0 * each.bytes
        if each.opcode == "dynamic-update-slice":
            return 2.0 * around[each.operands[1]].bytes
        if each.opcode == "scatter":
            return 3.0 * around[each.operands[-1]].bytes
        return each.bytes + sum(
            around[operand].bytes for operand in each.operands if operand in around
        )

    def _moved_by_fusion(self, around: dict[str, Instruction], each: Instruction) -> float:
        inside = self.computations.get(each.called("calls"), {})
        readers = collections.defaultdict(list)
        for inner in inside.values():
            for place, operand in enumerate(inner.operands):
                readers[operand].append((inner, place))
        total = 0.0
        for inner in inside.values():
            if inner.opcode != "parameter":
                continue
            place = int(re.sub(r"\D", "", inner.rest) or 0)
            outside = around.get(each.operands[place]) if place < len(each.operands) else None
            if outside is None or all(array.on_chip for array in outside.results):
                continue
            total += self._read(inner, readers)
        roots = [inner for inner in inside.values() if inner.is_root]
        root = roots[0] if roots else None
        while root is not None and root.opcode in ("bitcast", "copy") and root.operands:
            root = inside.get(root.operands[0])
        if root is not None and root.opcode == "dynamic-update-slice":
            return total + _size(inside[root.operands[1]])
        if root is not None and root.opcode == "scatter":
            return total + 2.0 * _size(inside[root.operands[-1]])
        return total + each.bytes

    def _read(self, given: Instruction, readers) -> float:
        """Bytes of an operand that a fusion reads: rows, where rows are all it takes."""
        total, waiting = 0.0, [given]
        while waiting:
            for inner, place in readers[waiting.pop().name]:
                if inner.opcode == "bitcast":
                    waiting.append(inner)
                elif inner.opcode in ("gather", "dynamic-slice", "slice") and place == 0:
                    total += _size(inner)
                elif inner.opcode in ("dynamic-update-slice", "scatter") and place == 0:
                    total += 0.0
                else:
                    return _size(given)
        return total

    def kernels(self) -> list[str]:
        """Names of the instructions that call Pallas kernels."""
        return [
            name
            for inside in self.computations.values()
            for name, each in inside.items()
            if each.opcode == "custom-call" and _PALLAS.search(each.rest)
        ]

    def scatters(self) -> list[tuple[Array, Array]]:
        """The target array of every scatter, and the array that it adds."""
        return [
            (each.results[0], inside[each.operands[-1]].results[0])
            for inside in self.computations.values()
            for each in inside.values()
            if each.opcode == "scatter"
        ]

    def low_precision_scatters(self) -> list[tuple[Array, Array]]:
        """Scatters that accumulate in fewer than 32 bits."""
        return [pair for pair in self.scatters() if pair[0].dtype in _LOW_PRECISION]

    def collectives(self) -> dict[str, dict[str, float]]:
        """Bytes of the results of all-reduce and all-gather by dtype."""
        found: dict[str, dict[str, float]] = {}
        for _, each, times in self.executed():
            kind = re.sub("-start$", "", each.opcode)
            if kind not in ("all-reduce", "all-gather", "reduce-scatter"):
                continue
            # The start of an all-gather returns its operand beside its result.
            results = each.results
            if each.opcode == "all-gather-start":
                results = results[len(results) // 2 :]
            for array in results:
                by_type = found.setdefault(kind, {})
                by_type[array.dtype] = by_type.get(array.dtype, 0.0) + times * array.bytes
        return found

    def loops_without_trips(self) -> int:
        """Loops whose number of iterations is unknown; they count once."""
        return sum(
            each.opcode == "while" and not self.trips(each) for _, each, _ in self.executed()
        )


def _of_scope(each: Instruction, known: Mapping[str, float]) -> Any:
    """The value of the first jax.named_scope of an instruction that is known; None if none is."""
    scope = _SCOPE.search(each.rest)
    names = re.findall(r"\w+", scope[1]) if scope else []
    return next((known[name] for name in names if name in known), None)


def _size(inner: Instruction) -> float:
    return float(sum(array.bytes for array in inner.results))
