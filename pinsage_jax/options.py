"""Fields of the settings: default, help text and allowed values in one place."""

from __future__ import annotations

import dataclasses
from typing import Any

from pinsage_jax.errors import UserError


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    environment: str = "",
) -> Any:
    """A dataclass field that carries its help text and its allowed values.

    Args:
      environment: variable that holds the value where the flag is not given.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "low": low,
            "high": high,
            "environment": environment,
        },
    )


class Checked:
    """Range and choice checks shared by all settings."""

    def validate(self) -> None:
        """Raises UserError naming the flag whose value is out of range."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, limits = getattr(self, field.name), field.metadata
            if limits["choices"] and value not in limits["choices"]:
                raise UserError(
                    f"--{field.name}={value} is not one of {', '.join(limits['choices'])}."
                )
            if isinstance(value, float) and value != value:
                raise UserError(f"--{field.name} is not a number.")
            for bound, fails in (("low", "at least"), ("high", "at most")):
                limit = limits[bound]
                if limit is None or value is None or isinstance(value, str):
                    continue
                if (value < limit) if bound == "low" else (value > limit):
                    raise UserError(f"--{field.name}={value} must be {fails} {limit}.")
