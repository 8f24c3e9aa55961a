"""Fields of the settings: default, help text, allowed values and level in one place.

A field is a flag that --help shows (`basic`), a flag that only --helpfull shows, or a
constant: a setting without a flag, which code and Python's `settings` can change.

A setting that the program may choose itself is `auto` on the command line, None in the
dataclasses and null in JSON files; Python's `settings` takes None and "auto".
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypeVar

from pinsage_jax.core.errors import UserError

AUTO = "auto"


def option(
    default: Any,
    help: str,
    *,
    basic: bool = False,
    auto: type | None = None,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    environment: str = "",
) -> Any:
    """A dataclass field that carries its help text and its allowed values.

    Args:
      basic: whether --help shows the flag; --helpfull shows every flag.
      auto: type of the values beside None, which is written `auto`; None: there is no auto.
      choices: the allowed values; None allows all.
      low, high: bounds of a number, both inclusive; None is no bound.
      environment: variable that holds the value where the flag is not given.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "level": "basic" if basic else "full",
            "auto": auto,
            "choices": choices,
            "low": low,
            "high": high,
            "environment": environment,
        },
    )


def constant(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field without a flag; `limits` are the allowed values, as in `option`."""
    metadata = option(default, help, **limits).metadata
    return dataclasses.field(default=default, metadata={**metadata, "level": "constant"})


def code(help: str) -> Any:
    """A field whose value names code that is run or, in Python, is a callable; empty: none.

    It comes from the command or the call alone: no file of a run holds it or sets it.
    """
    return dataclasses.field(default="", metadata={**option("", help).metadata, "code": True})


class Checked:
    """Range and choice checks shared by all settings."""

    def validate(self) -> None:
        """Raises UserError naming the setting whose value is out of range."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if "level" in field.metadata:
                _check(field, getattr(self, field.name))


def _check(field: dataclasses.Field, value: Any) -> None:
    """UserError if a value is not among the allowed ones of its field."""
    limits, name = field.metadata, spelled(field)
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(f"{name}={value} is not one of {', '.join(limits['choices'])}.")
    if isinstance(value, float) and value != value:
        raise UserError(f"{name} is not a number.")
    for bound, fails in (("low", "at least"), ("high", "at most")):
        limit = limits[bound]
        if limit is None or value is None or isinstance(value, str):
            continue
        if (value < limit) if bound == "low" else (value > limit):
            raise UserError(f"{name}={value} must be {fails} {limit}.")


def spelled(field: dataclasses.Field) -> str:
    """The setting as its flag is written; a constant by its name alone."""
    return field.name if field.metadata["level"] == "constant" else f"--{field.name}"


class Validated(Protocol):
    """Settings that can check whether they are consistent."""

    def validate(self) -> None:
        """Raises UserError if they are not."""


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
                inner.name: _typed(inner, left.pop(inner.name))
                for inner in dataclasses.fields(field.default)
                if inner.name in left
            }
            given[field.name] = dataclasses.replace(field.default, **part)
        elif field.name in left:
            given[field.name] = _typed(field, left.pop(field.name))
    if left:
        raise UserError(f"There is no setting --{next(iter(left))}; docs/flags.md lists all.")
    settings = kind(**given)
    settings.validate()
    return settings


def from_text(field: dataclasses.Field, text: str) -> Any:
    """The value that a flagfile spells as `text`; None for `auto`.

    Raises:
      ValueError: it is not of the field's type.
    """
    kind: type = field.metadata["auto"] or type(field.default)
    if field.metadata["auto"] and text == AUTO:
        return None
    if kind is not bool:
        return kind(text)
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _typed(field: dataclasses.Field, value: Any) -> Any:
    """A value of the field's type: paths become text, whole numbers numbers, `auto` None.

    Raises:
      UserError: it is of another type.
    """
    meta, default = field.metadata, field.default
    if meta.get("code") and callable(value):
        return value
    if meta.get("auto"):
        if value is None or value == AUTO:
            return None
        wanted = meta["auto"]
        if dataclasses.is_dataclass(wanted) and isinstance(value, Mapping):
            value = wanted(**value)  # type: ignore[operator]
    else:
        # Annotations are text; a field without a default is a path, a word or a number.
        wanted = {"int": int, "str": str}.get(str(field.type), type(default))
        if value is None and (default == AUTO or AUTO in (meta.get("choices") or ())):
            return AUTO
    if wanted is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        example = default if default is not dataclasses.MISSING else wanted()
        raise UserError(
            f"--{field.name}={value!r} must be of type {wanted.__name__}"
            + (f" or {AUTO!r}." if meta.get("auto") else f", as its default {example!r} is.")
        )
    return value


def with_saved(
    settings: Settings, saved: Mapping[str, Any], keep: Collection[str] = ()
) -> Settings:
    """`settings` with the values that a checkpoint remembers, except the fields in `keep`.

    A saved value whose name is unknown, whose type is another one now, or that names code, is
    passed over.
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        if field.name in keep or field.name not in saved:
            continue
        current, value = getattr(settings, field.name), saved[field.name]
        section = dataclasses.is_dataclass(current) and not isinstance(current, type)
        if section and isinstance(value, Mapping):
            known = {
                inner.name: value[inner.name]
                for inner in dataclasses.fields(current)
                if inner.name in value
                and _fits(inner, value[inner.name], getattr(current, inner.name))
            }
            changed[field.name] = dataclasses.replace(current, **known)
        elif _fits(field, value, current):
            changed[field.name] = value
    return dataclasses.replace(settings, **changed)  # type: ignore[type-var]


def _fits(field: dataclasses.Field, value: Any, current: Any) -> bool:
    """Whether a saved value has the type of the current one; whole numbers are numbers."""
    auto = field.metadata.get("auto")
    if field.metadata.get("code"):
        return False
    if auto and value is None:
        return True
    kind = auto or type(current)
    return type(value) is kind or (kind is float and type(value) is int)
