"""Flagfiles: one --flag=value a line, comments on lines of their own, others included.

A flagfile includes another with --flagfile=PATH; PATH is looked up from the current
folder and, failing that, from the folder of the file that includes it.

--example=NAME is --flagfile of a file that comes with the package (`shipped_flagfiles`).

WORKDIR/run.flags is a flagfile of the settings that a run remembers.  What no line of a
flagfile can hold, such as a setting without a flag, stands in it as a comment:
`#: NAME=JSON`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pinsage_jax.core.errors import UserError

RUN_FLAGS = "run.flags"
# Flagfiles that come with the package: of the source tree, or as the wheel holds them (setup.py).
_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_SHIPPED = (_PACKAGE / "experiments", _PACKAGE.parent / "experiments")
_JSON_LINE = re.compile(r"#: (\w+)=(.*)")


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument and, when a flagfile holds it, where."""

    text: str
    where: str = ""

    @property
    def name(self) -> str:
        return self.text.lstrip("-").split("=", 1)[0]


def expand_flagfiles(
    argv: list[str], takes_value: Callable[[str], bool], code: Collection[str] = ()
) -> list[Argument]:
    """Replaces every --flagfile and --example by the lines of its file, files included too.

    Args:
      argv: a command line without the program.
      takes_value: whether a flag of that name takes the next argument as its value.
      code: names of flags that no run.flags may hold.

    Raises:
      UserError: a file is missing, unreadable or includes itself, a line is not one --flag or
        --flag=value, or a run.flags names code.
    """
    arguments: list[Argument] = []
    rest = list(argv)
    while rest:
        text = rest.pop(0)
        name, _, value = text.partition("=")
        if name not in ("--flagfile", "-flagfile", "--example", "-example"):
            arguments.append(Argument(text))
            # The value of "--name value" must not be taken for a flagfile.
            alone = name.startswith("-") and "=" not in text
            if alone and rest and takes_value(name.lstrip("-")):
                arguments.append(Argument(rest.pop(0)))
            continue
        if "=" not in text:
            value = rest.pop(0) if rest else ""
        if name.endswith("example"):
            path, named = shipped_flagfile(value), f"--example={value}: "
        elif not value:
            raise UserError("--flagfile names no file; write --flagfile=PATH.")
        else:
            path, named = pathlib.Path(value).expanduser(), "--flagfile"
        arguments += _read_flagfile(path, [], named)
    for argument in arguments:
        # Such a file comes with a workdir, which may be a stranger's.
        file = pathlib.Path(argument.where.rpartition(", line ")[0])
        if argument.name in code and file.name == RUN_FLAGS:
            raise UserError(
                f"{argument.where}: '{argument.text}' names code to run, which no {RUN_FLAGS} may; "
                "give the flag in the command."
            )
    return arguments


def shipped_flagfiles() -> dict[str, pathlib.Path]:
    """The flagfiles that come with the package by name, such as pinterest_like; sorted."""
    folder = next((folder for folder in _SHIPPED if folder.is_dir()), _SHIPPED[0])
    return {path.stem: path for path in sorted(folder.glob("*.flags"))}


def shipped_flagfile(name: str) -> pathlib.Path:
    """The path of a flagfile that comes with the package.

    Raises:
      UserError: there is none of that name.
    """
    found = shipped_flagfiles()
    if name in found:
        return found[name]
    near = difflib.get_close_matches(name, found, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(found)}."
    raise UserError(f"--example={name} is no flagfile of the package; {hint}")


def run_flags_text(values: Mapping[str, Any], constants: Collection[str], program: str) -> str:
    """The text of a run.flags.

    Args:
      values: settings by name; None is `auto`.
      constants: names of settings that have no flag.
      program: name and version of the program.
    """
    lines = [
        f"# Settings of this run, written by {program}; every mode reads them from here, so that "
        "--workdir alone is enough."
    ]
    others = []
    for name, value in values.items():
        text = _flag_text(value)
        if name not in constants and _fits_a_line(text):
            lines.append(f"--{name}={text}")
        else:
            others.append(f"#: {name}={json.dumps(_plain(value))}")
    return "\n".join([*lines, *others]) + "\n"


def read_run_flags(path: pathlib.Path) -> tuple[list[Argument], dict[str, Any]]:
    """The flags of a run.flags, and its other settings by name.

    Raises:
      UserError: the file is damaged.
    """
    arguments, others = _read_flagfile(path, [], ""), {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not (found := _JSON_LINE.fullmatch(line.strip())):
            continue
        try:
            others[found[1]] = json.loads(found[2])
        except ValueError:
            raise UserError(f"{path}, line {number}: {found[2]!r} is not JSON.") from None
    return arguments, others


def _flag_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "auto" if value is None else str(value)


def _fits_a_line(text: str) -> bool:
    """Whether a flagfile can hold the value: readers strip it, and end it at a line's end."""
    lone_surrogates = any("\ud800" <= c <= "\udfff" for c in text)
    one_line = text.splitlines() in ([], [text])
    return one_line and text == text.strip() and not re.search(r"\s#", text) and not lone_surrogates


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def _read_flagfile(path: pathlib.Path, within: list[pathlib.Path], where: str) -> list[Argument]:
    """Arguments of a flagfile; `within` are the files that include it, outermost first."""
    if within and not path.exists() and (within[-1].parent / path).exists():
        path = within[-1].parent / path
    named = f"{where} includes {path}, which" if within else f"{where}={path}".lstrip("=")
    if any(path.exists() and path.samefile(outer) for outer in within):
        raise UserError(f"{named} includes itself.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{named} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{named} cannot be read ({reason}).") from None
    arguments: list[Argument] = []
    for number, line in enumerate(lines, start=1):
        text, here = line.strip(), f"{path}, line {number}"
        if not text or text.startswith(("#", "//")):
            continue
        if not re.match(r"--?\w", text):
            raise UserError(
                f"{here}: '{text}' is not a flag; write it as --flag=value or begin it with #."
            )
        name, equals, value = text.partition("=")
        if re.search(r"\s", name) or re.search(r"\s#", value):
            raise UserError(
                f"{here}: '{text}' is not one --flag=value; comments need a line of their own."
            )
        if name.lstrip("-") == "flagfile":
            included = pathlib.Path(value.strip()).expanduser()
            if not equals or not value.strip():
                raise UserError(f"{here}: --flagfile names no file; write --flagfile=PATH.")
            arguments += _read_flagfile(included, [*within, path], here)
        else:
            arguments.append(Argument(text, here))
    return arguments
