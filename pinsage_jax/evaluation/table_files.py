"""--tables: the tables of an evaluation or an ablation as files of other programs.

WORKDIR/tables/NAME.csv has one row for each number, with its interval; NAME.md and NAME.tex have
the tables that the program prints, whole, with the numbers rounded.  The LaTeX needs the package
booktabs.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from pinsage_jax.core import files

FOLDER = "tables"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
    "[": "{[}", "]": "{]}",
}  # fmt: skip
_LATEX_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))
# A minus sign and no hyphen, as in 1-2.
_MINUS = re.compile(r"(?<!\w)-(?=\d)")


@dataclasses.dataclass(frozen=True)
class Tables:
    """Tables under one name.

    Attributes:
      name: stem of the files.
      notes: sentences above the tables.
      tables: rows of cells of each table, the first row its heading.
      records: all numbers, one a row, for the CSV.
    """

    name: str
    notes: Sequence[str]
    tables: Sequence[list[list[str]]]
    records: Sequence[dict[str, Any]]


def write_tables(workdir: str | pathlib.Path, formats: Sequence[str], tables: Tables) -> None:
    """Writes WORKDIR/tables/NAME in each of the formats; does nothing without any.

    Args:
      formats: of csv, markdown and latex.

    Raises:
      UserError: the disk is full or the folder cannot be written.
    """
    written = []
    for form in formats:
        suffix, text_of = _WRITERS[form]
        path = pathlib.Path(workdir) / FOLDER / f"{tables.name}.{suffix}"
        with files.atomic_file(path) as temporary:
            temporary.write_text(text_of(tables), encoding="utf-8", newline="")
        written.append(str(path))
    if written:
        logging.info("tables written to %s", ", ".join(written))


def latex_text(text: str) -> str:
    """Text as LaTeX prints it, whatever its characters."""
    escaped = _LATEX_SPECIAL.sub(lambda found: _LATEX[found[0]], " ".join(text.split()))
    return _MINUS.sub("$-$", escaped)


def markdown_text(text: str) -> str:
    """Text as Markdown shows it, in a cell of a table too."""
    escaped = re.sub(r"([\\`*_|\[\]#~])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _csv(tables: Tables) -> str:
    names = list(dict.fromkeys(name for record in tables.records for name in record))
    handle = io.StringIO()
    writer = csv.DictWriter(handle, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(tables.records)
    return handle.getvalue()


def _markdown(tables: Tables) -> str:
    lines = [f"- {markdown_text(note)}" for note in tables.notes]
    for rows in tables.tables:
        cells = [[markdown_text(cell) for cell in row] for row in rows]
        cells.insert(1, ["---", *["---:"] * (len(rows[0]) - 1)])
        lines += ["", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join(lines) + "\n"


def _latex(tables: Tables) -> str:
    lines = ["% Needs \\usepackage{booktabs}."]
    lines += [f"% {' '.join(note.split())}" for note in tables.notes]
    for number, rows in enumerate(tables.tables, start=1):
        head, *body = [" & ".join(map(latex_text, row)) + r" \\" for row in rows]
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(rows[0][0])}}}",
            rf"\label{{tab:{tables.name}-{number}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


_WRITERS: dict[str, tuple[str, Callable[[Tables], str]]] = {
    "csv": ("csv", _csv),
    "markdown": ("md", _markdown),
    "latex": ("tex", _latex),
}
