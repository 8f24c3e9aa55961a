"""Fields of the settings: default, help text and allowed values in one place."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypeVar

from pinsage_jax.core.errors import UserError


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


class Validated(Protocol):
    """Settings that can tell whether they fit together."""

    def validate(self) -> None:
        """Raises UserError if they do not."""


Settings = TypeVar("Settings", bound=Validated)


def from_values(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Validated settings from values by the names of their flags; others keep their defaults.

    Args:
      kind: a dataclass whose fields are sections, dataclasses themselves, or plain values.

    Raises:
      UserError: a name is unknown, a value is of another type or out of range, or
        settings do not fit together.
    """
    left = dict(values)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(field.default) and not isinstance(field.default, type):
            part = {
                inner.name: _typed(inner.name, left.pop(inner.name), inner.default)
                for inner in dataclasses.fields(field.default)
                if inner.name in left
            }
            given[field.name] = dataclasses.replace(field.default, **part)
        elif field.name in left:
            # Annotations are text; a field without a default is a path, a word or a number.
            example = {"int": 0, "str": ""}.get(str(field.type), field.default)
            given[field.name] = _typed(field.name, left.pop(field.name), example)
    if left:
        raise UserError(f"There is no setting --{next(iter(left))}; docs/flags.md lists all.")
    settings = kind(**given)
    settings.validate()
    return settings


def _typed(name: str, value: Any, default: Any) -> Any:
    """A value of the type of the default: paths become text, whole numbers numbers.

    Raises:
      UserError: it is of another type.
    """
    if isinstance(default, str) and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise UserError(
            f"--{name}={value!r} must be of type {type(default).__name__}, as its default "
            f"{default!r} is."
        )
    return value


def with_saved(
    settings: Settings, saved: Mapping[str, Any], keep: Collection[str] = ()
) -> Settings:
    """`settings` with the values that a checkpoint remembers, except the fields in `keep`.

    A saved value whose name is unknown, or whose type is another one now, is passed over.
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        if field.name in keep or field.name not in saved:
            continue
        current, value = getattr(settings, field.name), saved[field.name]
        section = dataclasses.is_dataclass(current) and not isinstance(current, type)
        if section and isinstance(value, Mapping):
            names = [inner.name for inner in dataclasses.fields(current)]
            known = {name: value[name] for name in names if name in value}
            changed[field.name] = dataclasses.replace(
                current,
                **{n: entry for n, entry in known.items() if _fits(entry, getattr(current, n))},
            )
        elif _fits(value, current):
            changed[field.name] = value
    return dataclasses.replace(settings, **changed)  # type: ignore[type-var]


def _fits(value: Any, current: Any) -> bool:
    """Whether a saved value has the type of the current one; whole numbers are numbers."""
    if isinstance(current, float) and type(value) is int:
        return True
    return type(value) is type(current)
