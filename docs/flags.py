"""Prints docs/flags.md, every flag by topic, from the settings themselves.

python docs/flags.py > docs/flags.md
"""

from __future__ import annotations

from absl import flags

from pinsage_jax import cli


def text() -> str:
    """The document: one table a topic, in the order of --helpfull."""
    values = flags.FlagValues()
    cli.define_flags(values)
    lines = [
        "# Flags by topic",
        "",
        "Made by `python docs/flags.py` from the settings; not to be edited by hand. A flagfile",
        "holds one `--flag=value` a line, and the last mention of a flag wins.",
    ]
    for group, found in values.flags_by_module_dict().items():
        title, _, summary = group.partition(": ")
        lines += ["", f"## {title}", "", f"{summary[:1].upper()}{summary[1:]}.", ""]
        lines += ["| flag | default | |", "|---|---|---|"]
        for flag in found:
            default = "" if flag.default in (None, "") else f"`{flag.default}`"
            lines.append(f"| `--{flag.name}` | {default} | {_cell(flag.help)} |")
    return "\n".join(lines) + "\n"


def _cell(help: str) -> str:
    return " ".join(help.replace("|", "\\|").split())


if __name__ == "__main__":
    print(text(), end="")
