"""Writes what the settings say into the documents.

  python docs/flags.py > docs/flags.md    every flag by topic
  python docs/flags.py BUILD_NOTES.md     fills in the values of its tables

In BUILD_NOTES.md the column "setting" of a table names flags (`--margin`), fields of the
configuration without a flag (`train.logq`) or constants (`sampling.pairs.LIMIT`); the
columns "default" and "paper" of that table are their values.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import re
import sys
from typing import Any

from absl import flags

from pinsage_jax import cli
from pinsage_jax.config.settings import Config


def text() -> str:
    """docs/flags.md: one table a topic, in the order of --helpfull."""
    values = flags.FlagValues()
    cli.define_flags(values)
    lines = [
        "# Flags by topic",
        "",
        "Made by `python docs/flags.py` from the settings; not to be edited by hand. A flagfile",
        "holds one `--flag=value` a line, and the last mention of a flag wins; every flag that is",
        "given overrides `--preset`. `auto` lets the program decide. `--help` shows the flags of",
        "the level basic, `--helpfull` all. Settings without a flag are fields of the dataclasses",
        "in `pinsage_jax/config`, which `pinsage_jax.settings` takes too.",
    ]
    for group, found in values.flags_by_module_dict().items():
        title, _, summary = group.partition(": ")
        lines += ["", f"## {title}", "", f"{summary[:1].upper()}{summary[1:]}.", ""]
        lines += ["| flag | level | default | |", "|---|---|---|---|"]
        for flag in found:
            default = "" if flag.default in (None, "") else _cell(f"`{flag.default}`")
            level = cli.level_of(flag.name)
            lines.append(f"| `--{flag.name}` | {level} | {default} | {_cell(flag.help)} |")
    return "\n".join(lines) + "\n"


def notes(document: str) -> str:
    """The document with the values of every table that has a column "setting".

    Raises:
      ValueError: a cell of that column names no setting.
    """
    default, paper = _config(), _config("--preset=paper")
    lines, head = [], list[str]()
    for line in document.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
        elif "setting" in head and set(line) - set("|-: "):
            names = re.findall(r"`([^`]+)`", cells[head.index("setting")])
            if not names:
                raise ValueError(f"no setting is named in: {line}")
            for column, config in (("default", default), ("paper", paper)):
                if column in head:
                    values = [_formatted(_value(name, config)) for name in names]
                    cells[head.index(column)] = ", ".join(values)
            line = f"| {' | '.join(cells)} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _config(*arguments: str) -> Config:
    values = flags.FlagValues()
    cli.define_flags(values)
    cli.parse_flags(values, ["flags.py", "--synthetic", "--workdir=notes", *arguments])
    return cli.config_from_flags(values)


def _value(name: str, config: Config) -> Any:
    """The value of `--flag`, `section.field` or `folder.module.CONSTANT`."""
    sections = {part.name: getattr(config, part.name) for part in dataclasses.fields(config)}
    if name.startswith("--"):
        for section in sections.values():
            if dataclasses.is_dataclass(section) and hasattr(section, name[2:]):
                return getattr(section, name[2:])
        if name[2:] in sections:
            return sections[name[2:]]
        raise ValueError(f"there is no setting {name}")
    place, _, last = name.rpartition(".")
    if place in sections:
        return getattr(sections[place], last)
    return getattr(importlib.import_module(f"pinsage_jax.{place}"), last)


def _formatted(value: Any) -> str:
    if value is None:
        return "auto"
    if value == "":
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(help: str) -> str:
    return " ".join(help.replace("|", "\\|").split())


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(text(), end="")
    for name in sys.argv[1:]:
        page = pathlib.Path(name)
        page.write_text(notes(page.read_text(encoding="utf-8")), encoding="utf-8")
