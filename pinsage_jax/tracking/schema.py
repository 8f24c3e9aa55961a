"""The lines of metrics.jsonl: their kinds, and what each field of a kind is.

docs/for_researchers.md has `schema_table`; the tests check every line of a run against it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

STEP, VALIDATION, RUN = "step", "validation", "run"


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a line.

    Attributes:
      types: what its value may be in JSON.
      text: what it is.
      optional: whether a line of the kind may lack it.
    """

    types: tuple[type, ...]
    text: str
    optional: bool = False


_WHOLE, _NUMBER = (int,), (int, float)
# A name in angle brackets stands for any word.
SCHEMA: dict[str, dict[str, Field]] = {
    STEP: {
        "step": Field(_WHOLE, "steps taken"),
        "epoch": Field(_WHOLE, "epoch of the step, from 1"),
        "loss": Field(_NUMBER, "mean loss of the pairs since the line before"),
        "learning_rate": Field(_NUMBER, "of the step"),
        "hard_per_query": Field(_NUMBER, "hard negatives of a query, mean since the line before"),
        "pairs_per_second": Field(_NUMBER, "training pairs per second, without pauses"),
        "wait_share": Field(_NUMBER, "share of the time in which the device had nothing to do"),
        "make_ms": Field(_NUMBER, "time of the threads that make batches, ms per batch"),
        "producers_needed": Field(_WHOLE, "--producers with which the device would not wait"),
        "padding_share": Field(_NUMBER, "share of a batch's rows that hold no node"),
        "neighbors_left_out": Field(_WHOLE, "neighbors that full batches left out"),
        "edge_dropout_share": Field(_NUMBER, "share of nodes trained as if without edges"),
    },
    VALIDATION: {
        "step": Field(_WHOLE, "steps taken"),
        "epoch": Field(_NUMBER, "passes over the training pairs so far"),
        "score": Field(_NUMBER, "chooses the best checkpoint: mean of rates within a kind", True),
        "score_error": Field(_NUMBER, "standard error of the score, over queries", True),
        "cold_start_bias": Field(_NUMBER, "the bias that validation chose", True),
        "<kind>_hit@<k>": Field(_NUMBER, "hit-rate of the validation pairs of a kind", True),
    },
    RUN: {
        "step": Field(_WHOLE, "steps taken when the process ended"),
        "session_seconds": Field(_NUMBER, "time of this process"),
        "device_seconds": Field(_NUMBER, "session_seconds times devices"),
        "pairs": Field(_WHOLE, "training pairs of this process"),
        "wait_share": Field(_NUMBER, "share of its training in which devices waited"),
        "peak_memory_bytes": Field(_WHOLE, "most memory that the process held"),
    },
}


def complaints(line: Mapping[str, Any]) -> list[str]:
    """What in a line of metrics.jsonl is not of the schema; [] for a line that is."""
    fields = SCHEMA.get(line.get("kind", ""))
    if fields is None:
        return [f"kind {line.get('kind')!r} is not one of {', '.join(SCHEMA)}"]
    found = []
    for name, value in line.items():
        if name == "kind":
            continue
        field = fields.get(name) or next(
            (each for pattern, each in fields.items() if _matches(pattern, name)), None
        )
        if field is None:
            found.append(f"{line['kind']} has no field {name}")
        elif type(value) not in field.types:
            found.append(f"{name} is {value!r}")
    missing = [name for name, field in fields.items() if not field.optional and name not in line]
    return found + [f"{line['kind']} lacks {name}" for name in missing]


def schema_table() -> str:
    """The schema as a Markdown table."""
    rows = ["| kind | field | type | |", "|---|---|---|---|"]
    for kind, fields in SCHEMA.items():
        for name, field in fields.items():
            number = "integer" if field.types == _WHOLE else "number"
            optional = ", may be absent" if field.optional else ""
            rows.append(f"| {kind} | `{name}` | {number}{optional} | {field.text} |")
    return "\n".join(rows)


def _matches(pattern: str, name: str) -> bool:
    parts = re.split(r"<\w+>", pattern)
    return len(parts) > 1 and re.fullmatch(".+".join(map(re.escape, parts)), name) is not None
